#!/bin/sh
# Collects the root directory of the image: the tools that the driver calls or an
# operator wants, the libraries of all these, and what those read. Nothing else is in
# the image: no package manager, no Perl, no Python.
#
#   deploy/root.sh DIRECTORY PROGRAM...    run inside the base image, with the packages installed
#
# The PROGRAMs are looked at for their libraries and not copied.
set -eu
root=$1
shift

# What the node service calls. xfs_scrub is left out: it alone wants ICU and Python (50 MB).
filesystems='mkfs.ext4 mke2fs e2fsck fsck.ext4 resize2fs tune2fs dumpe2fs mkfs.xfs xfs_repair xfs_growfs xfs_admin
  xfs_db xfs_io fsck.xfs fsck blkid mount umount unlink rmdir realpath stat dd findmnt losetup blockdev fsfreeze fstrim wipefs'
# What the mappers call: krbd and nbd want modules of the kernel, and nbd is rbd-nbd.
mappers='modprobe rbd-nbd'
# What an operator looks around with in `kubectl exec`.
operators='sh ls cat cp mv rm mkdir ln readlink df du sync head tail wc sort cut tr tee touch chmod
  sha256sum sleep date id env uname timeout printf test true false grep sed find lsblk mountpoint dmesg nsenter'
# mke2fs reads its defaults from mke2fs.conf, and does without when it is missing: the
# filesystems would differ from everyone else's. dlopen finds what is in the two folders of Ceph.
data='/etc/mke2fs.conf /etc/nsswitch.conf /etc/ld.so.conf /etc/ld.so.conf.d /etc/debian_version /etc/os-release
  /usr/lib/os-release /usr/share/xfsprogs'

# copy copies files to the same places under the root, and what symbolic links point to.
copy() {
  for file in "$@"; do
    file=$(realpath -s "$(realpath "$(dirname "$file")")/$(basename "$file")")
    if [ ! -e "$file" ] || [ -e "$root$file" ]; then continue; fi
    echo "$file" >>"$root.files"
    mkdir -p "$root$(dirname "$file")"
    cp -a "$file" "$root$file"
    [ ! -L "$file" ] || copy "$(realpath "$file")"
  done
}

# libraries prints the libraries that programs load, and fails where one is not there.
libraries() {
  for file in "$@"; do
    found=$(ldd "$file" 2>/dev/null) || continue # a script, or linked statically
    if echo "$found" | grep 'not found' >&2; then
      echo "root.sh: $file misses a library" >&2
      return 1
    fi
    echo "$found" | grep -o '/[^ ]*'
  done | sort -u
}

mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/etc" "$root/dev" "$root/proc" "$root/sys" \
  "$root/run" "$root/var/lib/dpkg/status.d"
mkdir -m 1777 "$root/tmp"
for link in bin sbin lib lib64; do
  if [ -L "/$link" ]; then
    cp -a "/$link" "$root/$link"
    mkdir -p "$root$(realpath "/$link")"
  fi
done

programs=
for tool in $filesystems $mappers $operators; do
  path=$(command -v "$tool" || true)
  # What the shell has built in is printed without a path.
  [ -n "${path##/*}" ] && path=$(PATH=/usr/bin:/bin; which "$tool" 2>/dev/null || true)
  [ -n "$path" ] || continue
  programs="$programs $path"
done
for tool in $filesystems $mappers; do
  case " $programs " in *"/$tool "*) ;; *) echo "root.sh: $tool is not installed" >&2; exit 1 ;; esac
done
# shellcheck disable=SC2086
{
  copy $programs $data
  for plugin in /usr/lib/*/ceph /usr/lib/*/librbd; do [ ! -d "$plugin" ] || copy "$plugin"; done
  plugins=$(find "$root"/usr/lib/*/ceph "$root"/usr/lib/*/librbd -name '*.so*' -type f 2>/dev/null || true)
  loaded=$(libraries $programs $plugins "$@")
  copy $loaded
}
ldconfig -r "$root"
# The numbers are those that the manifests give the controller; a name for them makes `id` readable.
printf '%s\n' 'root:x:0:0:root:/:/bin/sh' 'rbd-csi:x:65532:65532:rbd-csi:/:/bin/false' >"$root/etc/passwd"
printf '%s\n' 'root:x:0:' 'disk:x:6:' 'rbd-csi:x:65532:' >"$root/etc/group"

# Scanners look in status.d for what an image without a package manager holds; and the
# licences have to go with the programs.
sort -u "$root.files" | while read -r file; do
  dpkg -S "$file" 2>/dev/null || dpkg -S "${file#/usr}" 2>/dev/null || true
done | cut -d: -f1 | sort -u | while read -r package; do
  dpkg -s "$package" >"$root/var/lib/dpkg/status.d/$package" 2>/dev/null || continue
  mkdir -p "$root/usr/share/doc/$package"
  gzip -9nc "/usr/share/doc/$package/copyright" >"$root/usr/share/doc/$package/copyright.gz"
done
rm -f "$root.files"
