#!/bin/sh
# Make a root directory with another release of Ceph in it, for ceph.Options.Root and
# `ceph-folder in-root`: daemons and tools, and what it takes to compile and run our tests
# against that release's librbd.
#
#   root.sh 18|20 [FOLDER]
#
# FOLDER is build/ceph-roots/RELEASE of the repository unless given. A root that is complete is
# left as it is. It is Debian's: Ceph 18 from trixie, 20 from forky. Needs root, debootstrap and
# the mirror that this machine's apt uses; takes one to four minutes and 1.2 GB.
set -eu

release=${1:-}
case $release in
18) suite=trixie script=trixie ;;
# The debootstrap of Debian 12 has no script of that name; sid's does the same.
20) suite=forky script=sid ;;
*) echo "usage: root.sh 18|20 [FOLDER]" >&2; exit 2 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
root=${2:-$here/../../build/ceph-roots/$release}
packages="ceph-mon ceph-mgr ceph-osd ceph-common librbd-dev librados-dev gcc libc6-dev e2fsprogs xfsprogs"

mkdir -p "$(dirname "$root")"
root=$(cd "$(dirname "$root")" && pwd)/$(basename "$root")

# Mounts are made in a mount namespace of our own and end with it; two that make the same root
# at the same time wait for each other.
if [ "${RBD_CSI_ROOT_INSIDE:-}" != yes ]; then
	[ "$(id -u)" = 0 ] || { echo "root.sh: needs root" >&2; exit 1; }
	command -v debootstrap >/dev/null || { echo "root.sh: needs debootstrap (apt-get install debootstrap)" >&2; exit 1; }
	export RBD_CSI_ROOT_INSIDE=yes
	exec flock "$root.lock" unshare --mount --propagation private "$0" "$release" "$root"
fi

if [ -d "$root" ]; then
	echo "root.sh: $root is there"
	exit 0
fi

# Where this machine has Debian from, and through what.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' | sed -n 's/ Debian$//p' | sort -u | head -n 1)
[ -n "$mirror" ] || { echo "root.sh: found no mirror of Debian in apt's configuration" >&2; exit 1; }

new=$root.new
rm -rf "$new"
# Go's ./... does not descend into a folder that is a module of its own.
[ -e "$(dirname "$root")/go.mod" ] || echo 'module roots.invalid' >"$(dirname "$root")/go.mod"

echo "root.sh: $suite to $root"
debootstrap --variant=minbase "$suite" "$new" "$mirror" "/usr/share/debootstrap/scripts/$script" >"$root.log" 2>&1 ||
	{ tail -n 20 "$root.log" >&2; exit 1; }

# The packages start no daemons, and the suite's Release file may have expired.
printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
chmod 755 "$new/usr/sbin/policy-rc.d"
{
	echo 'Acquire::Check-Valid-Until "false";'
	echo 'APT::Install-Recommends "false";'
	echo 'DPkg::Options:: "--force-unsafe-io";'
	apt-config dump Acquire::http::Proxy
	apt-config dump Acquire::https::Proxy
} >"$new/etc/apt/apt.conf.d/90rbd-csi"

# Not /dev and /sys: the installation of lvm2 reads every block device it finds, and would hang
# on one of ours that hangs. debootstrap made the devices that matter.
mount -t proc proc "$new/proc"
{
	chroot "$new" apt-get update
	DEBIAN_FRONTEND=noninteractive chroot "$new" apt-get install -y $packages
	chroot "$new" apt-get clean
} >>"$root.log" 2>&1 || { tail -n 20 "$root.log" >&2; exit 1; }
umount "$new/proc"
rm -rf "$new"/var/lib/apt/lists/*

mv "$new" "$root"
rm -f "$root.log"
echo "root.sh: $(chroot "$root" ceph-mon --version)"
