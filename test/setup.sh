#!/usr/bin/env bash
# Installs what building and testing need, from the packages of Debian 12 or newer.
#
#   test/setup.sh build   a C compiler and the headers of librbd and librados
#   test/setup.sh test    the same, a Ceph cluster to start, and the tools for filesystems
#   test/setup.sh image   what makes a container image
#   test/setup.sh kernel  what "test" has, and what a small kernel of its own needs around it
#   test/setup.sh fio     what measures volumes
#   test/setup.sh kube    both "test" and "image", and what runs a Kubernetes: containerd, runc, crun, CNI plugins
#
# It wants root or sudo, and neither when everything is there: then it only asks dpkg,
# which takes a fraction of a second. No package's services are started.
set -euo pipefail

compile=(make git gcc libc6-dev librbd-dev librados-dev)
cluster=(ceph-mon ceph-mgr ceph-osd ceph-common)
# kmod: the kernel calls modprobe when it first needs loop devices or FUSE. procps: the demo shows processes.
node=(e2fsprogs xfsprogs util-linux mount fuse3 kmod procps)
image=(debootstrap buildah ca-certificates make git)
# The kernel itself, and a libc for it, test/kernel/fetch.sh fetches from a newer Debian. rbd-nbd is what the mapper nbd runs.
kernel=(dmsetup iproute2 kmod patchelf rbd-nbd)
fio=(fio)
# crun is for nodes in small kernels.
kube=(containerd runc crun containernetworking-plugins iptables iproute2)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$@" >&2; exit 1; }

packages_of() {
  case ${1:-test} in
    build) printf '%s\n' "${compile[@]}" ;;
    test) printf '%s\n' "${compile[@]}" "${cluster[@]}" "${node[@]}" ;;
    kernel) printf '%s\n' "${compile[@]}" "${cluster[@]}" "${node[@]}" "${kernel[@]}" | sort -u ;;
    image) printf '%s\n' "${image[@]}" ;;
    fio) printf '%s\n' "${fio[@]}" ;;
    kube) printf '%s\n' "${compile[@]}" "${cluster[@]}" "${node[@]}" "${image[@]}" "${kube[@]}" | sort -u ;;
    *) die "unknown group '$1': build, test, image, kernel, fio or kube" ;;
  esac
}

# missing prints those of its arguments that are no installed package.
missing() {
  local installed name
  installed=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "$@" 2>/dev/null | sed -n 's/^ii //p' || true)
  for name in "$@"; do
    grep -qxF "$name" <<<"$installed" || printf '%s\n' "$name"
  done
}

# require_go lets the go command say whether it is, or can fetch, the version of go.mod.
require_go() {
  local go wanted top
  go=${GO:-$(command -v go || echo /usr/local/go/bin/go)}
  top=$(cd "$(dirname "$0")/.." && pwd)
  wanted=$(sed -n 's/^go //p' "$top/go.mod")
  if ! (cd "$top" && "$go" list -m >/dev/null 2>&1); then
    die "Go $wanted or newer is needed (the go line in go.mod), and Debian's packages may be older." \
      "Unpack it from https://go.dev/dl/ to /usr/local/go and put /usr/local/go/bin into PATH," \
      "or name the command: make GO=/path/to/go. Here: $("$go" version 2>/dev/null || echo none)"
  fi
}

# as_root runs a command as root, by sudo if need be.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "root or sudo is needed to run: $*"
  fi
}

policy=/usr/sbin/policy-rc.d
begin_no_services() {
  [ -e "$policy" ] && return
  trap end_no_services EXIT
  printf '#!/bin/sh\n# Written by rbd-csi, test/setup.sh: start no services.\nexit 101\n' | as_root tee "$policy" >/dev/null
  as_root chmod 755 "$policy"
}
end_no_services() {
  grep -qsF 'Written by rbd-csi' "$policy" && as_root rm -f "$policy"
}

# apt never asks anything, and waits for another apt that is at work.
apt() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 \
    -o Dpkg::Use-Pty=0 -o APT::Install-Recommends=false "$@" </dev/null
}

# run_quietly shows a command's output only when it ends badly.
run_quietly() {
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

# lists_are_read reports whether the lists of packages were read within the last hour. (apt gives a list the time
# that its server says, but no file can have another time of change than its own.)
lists_are_read() {
  [ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -cmin -60 -print -quit 2>/dev/null)" ]
}

read_lists() {
  say "reading the lists of packages"
  run_quietly apt update || die "apt-get update: see above"
}

install_packages() {
  local begun=$SECONDS read=no
  say "installing $# packages: $*"
  begin_no_services
  lists_are_read || { read_lists; read=yes; }
  say "downloading and unpacking (a minute or two)"
  if ! run_quietly apt install "$@"; then
    [ $read = no ] || die "apt-get install: see above"
    read_lists
    run_quietly apt install "$@" || die "apt-get install: see above"
  fi
  say "installed in $((SECONDS - begun)) s"
}

# on_another_system says what is needed where there is no dpkg, unless it is there.
on_another_system() {
  local name lacking=()
  for name in gcc ceph-mon ceph-mgr ceph-osd ceph rbd mkfs.ext4 mkfs.xfs losetup mount; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$name" >/dev/null || lacking+=("$name")
  done
  [ -e /usr/include/rbd/librbd.h ] || lacking+=("the headers of librbd (librbd-devel)")
  [ -e /usr/include/rados/librados.h ] || lacking+=("the headers of librados (librados-devel)")
  if [ ${#lacking[@]} -gt 0 ]; then
    printf 'setup: this is not Debian. Please install, with its own packages: %s\n' "$(printf '%s, ' "${lacking[@]}")" >&2
    exit 1
  fi
}

group=${1:-test}
mapfile -t packages < <(packages_of "$group")
[ ${#packages[@]} -gt 0 ] || exit 1
if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
  mapfile -t lacking < <(missing "${packages[@]}")
  [ ${#lacking[@]} = 0 ] || install_packages "${lacking[@]}"
elif [ "$group" = image ]; then
  die "images are made with debootstrap and buildah; without apt-get, use: docker build -t rbd-csi ."
elif [ "$group" = kube ]; then
  die "a Kubernetes is made of packages of Debian: containerd, CNI plugins, and others for its images"
else
  on_another_system
fi
[ "$group" = image ] || require_go
