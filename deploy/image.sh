#!/usr/bin/env bash
# Builds the container image without a registry: a base with debootstrap, and the
# Dockerfile on it with buildah.
#
#   deploy/image.sh [forky|trixie]
#
# Everything is kept in build/image: the base (made once), buildah's storage, and the result,
# build/image/rbd-csi-RELEASE.tar, for `docker load` or `ctr images import`. Where this machine
# gets its packages and Go modules from is passed to the build and is not in the image. It wants
# root, because debootstrap and mounts do.
set -euo pipefail
cd "$(dirname "$0")/.."

release=${1:-forky}
version=${VERSION:-unknown}
go=${GO:-go}
work=$PWD/build/image
base=localhost/rbd-csi-base:$release
name=localhost/rbd-csi:$release

say() { printf 'image: %s\n' "$*"; }
die() { printf 'image: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "debootstrap and buildah's chroot isolation want root: sudo make image"

# The vfs driver works on every filesystem, and chroot isolation in every container.
images() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }

# mirror prints where this machine's apt gets Debian from; nothing means debootstrap's own choice.
mirror() {
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/$' || true
}

# apt_settings prints apt's settings of this machine for downloads: proxies, and whether dates count.
apt_settings() { apt-config dump --no-empty | grep '^Acquire::' | grep -v '::IndexTargets::' || true; }

make_base() {
  local root=$work/base-$release script=/usr/share/debootstrap/scripts/$release
  # Older versions of debootstrap do not know the newest releases, which are made like sid.
  [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
  say "making the base, Debian $release (two minutes, once)"
  rm -rf "$root"
  debootstrap --variant=minbase "$release" "$root" "$(mirror)" "$script" >"$work/debootstrap.log" 2>&1 ||
    { tail -n 20 "$work/debootstrap.log" >&2; die "debootstrap: see $work/debootstrap.log"; }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  local container
  container=$(images from scratch)
  images add -q "$container" "$root" / >/dev/null
  images commit -q "$container" "$base" >/dev/null
  images rm "$container" >/dev/null
  rm -rf "$root"
}

build() {
  mkdir -p "$work/gocache-$release"
  apt_settings >"$work/apt.conf"
  local certificates=/etc/ssl/certs/ca-certificates.crt lent=()
  [ ! -e "$certificates" ] || lent=(--volume "$certificates:/run/certificates:ro" --build-arg SSL_CERT_FILE=/run/certificates)
  # This machine's Go, its modules and its certificates are lent to the build. The compiler's cache is not, because
  # it does not notice that the headers of librbd are others.
  images bud --isolation chroot --layers=false --force-rm --quiet --format docker \
    --build-arg BASE="$base" --build-arg VERSION="$version" --build-arg APT_CONFIG=/run/apt.conf \
    --build-arg GOPROXY="$("$go" env GOPROXY)" --build-arg GOSUMDB="$("$go" env GOSUMDB)" --build-arg GOFLAGS="$("$go" env GOFLAGS)" \
    --volume "$work/apt.conf:/run/apt.conf:ro" \
    --volume "$("$go" env GOROOT):/usr/local/go:ro" \
    --volume "$("$go" env GOMODCACHE):/root/go/pkg/mod" \
    --volume "$work/gocache-$release:/root/.cache/go-build" \
    "${lent[@]}" -t "$name" . >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; die "build: see $work/build.log"; }
}

show() {
  local container root archive=$work/rbd-csi-$release.tar
  container=$(images from "$name")
  root=$(images mount "$container")
  say "$name: $(du -sm "$root" | cut -f1) MB, of which the driver $(du -m "$root/usr/bin/rbd-csi" | cut -f1) MB"
  images run --isolation chroot "$container" -- rbd-csi version
  images umount "$container" >/dev/null
  images rm "$container" >/dev/null
  rm -f "$archive"
  images rmi --prune >/dev/null # what an earlier build was
  images push -q "$name" "docker-archive:$archive:rbd-csi:$version"
  say "packed in ${archive#"$PWD"/}: $(gzip -1 <"$archive" | wc -c | awk '{printf "%.0f", $1 / 1e6}') MB compressed"
}

mkdir -p "$work"
images inspect --type image "$base" >/dev/null 2>&1 || make_base
say "building $name $version"
begun=$SECONDS
build
say "built in $((SECONDS - begun)) s"
show
