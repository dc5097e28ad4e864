#!/usr/bin/env bash
# Fetches a Linux that runs as an ordinary process: User-Mode Linux, from Debian's packages.
#
#   test/kernel/fetch.sh [DIRECTORY]     default: build/kernel
#
# What is there afterwards:
#
#   DIRECTORY/linux      the kernel, a program
#   DIRECTORY/modules    a link to its modules
#   DIRECTORY/version    of the package
#
# The package is of the suite SUITE (default forky: its 7.2 starts on processors with AMX, on
# which 6.1 and 6.12 panic) and wants a newer libc than Debian 12 has, so it gets one of its own
# beside it. Nothing is installed, and apt's own lists and sources are not touched. It downloads
# about 41 MB, and nothing when DIRECTORY is whole.
set -euo pipefail

suite=${SUITE:-forky}
top=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${1:-$top/build/kernel}"
directory=$(cd "${1:-$top/build/kernel}" && pwd)

say() { printf 'kernel: %s\n' "$*"; }
die() { printf 'kernel: %s\n' "$@" >&2; exit 1; }

# mirror prints the archive that apt is configured with here, without the security one.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | grep -m1 '/debian/\?$' || true
}

# own_apt runs apt-get with sources, lists and a cache of its own.
own_apt() {
  apt-get -q -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root \
    -o APT::Get::List-Cleanup=false -o Acquire::Languages=none "$@"
}

# unpack unpacks a package that was downloaded into a folder of the package's name.
unpack() { dpkg -x "$work"/"$1"_*.deb "$directory/$1"; }

# adopt makes the kernel find the libc beside it. Starting it by that libc's loader would not
# do: it starts itself again by its own name.
adopt() {
  local libc=$directory/libc6/usr/lib/x86_64-linux-gnu
  install -m 755 "$directory/user-mode-linux/usr/bin/linux.uml" "$work/linux"
  patchelf --set-interpreter "$libc/ld-linux-x86-64.so.2" --set-rpath "$libc" "$work/linux"
  "$work/linux" --version >/dev/null || die "the kernel does not start on this machine"
}

[ "$(uname -m)" = x86_64 ] || die "Debian has User-Mode Linux for x86_64 alone, and this is $(uname -m)"
if [ -e "$directory/version" ] && "$directory/linux" --version >/dev/null 2>&1; then
  exit 0
fi
command -v patchelf >/dev/null || die "patchelf is needed: test/setup.sh kernel"
command -v apt-get >/dev/null || die "the kernel comes from Debian's packages, and there is no apt-get here"
archive=${MIRROR:-$(mirror)}
[ -n "$archive" ] || die "apt has no Debian archive configured: name one, MIRROR=http://... $0"

begun=$SECONDS
work=$(mktemp -d "$directory/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache/archives}/partial
printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$archive" "$suite" >"$work/sources.list"
say "fetching User-Mode Linux of $suite (41 MB)"
own_apt update >"$work/log" 2>&1 || die "apt-get update:" "$(tail -5 "$work/log")"
(cd "$work" && own_apt download user-mode-linux libc6 >"$work/log" 2>&1) || die "apt-get download:" "$(tail -5 "$work/log")"
rm -rf "$directory"/{user-mode-linux,libc6,linux,modules,version}
unpack user-mode-linux
unpack libc6
adopt
mv "$work/linux" "$directory/linux"
ln -s "$(echo "$directory"/user-mode-linux/usr/lib/uml/modules/*)" "$directory/modules"
dpkg-deb -f "$work"/user-mode-linux_*.deb Version >"$directory/version"
say "Linux $(cat "$directory/version") is in $directory, after $((SECONDS - begun)) s"
