// Package linux is the filesystem.Host of a real node: it runs mkfs, blkid,
// e2fsck, mount and their like, and reads the kernel's own tables.
//
// Three things are done differently than in k8s.io/mount-utils, which is why that
// package is not used here. Its tools run for as long as the kernel pleases, in
// the goroutine of the request. It takes a device on which blkid finds nothing for
// an empty one, though blkid says the same of a device that it cannot read. And it
// does not undo the escapes of mountinfo, so that a path with a blank is never found.
//
// The package needs Linux 4.18 (TIOCGPTPEER is of 4.13, /proc/thread-self of 3.17) and
// the tools of util-linux 2.35, coreutils 8.32, e2fsprogs 1.47 and xfsprogs 5.19 or newer.
package linux
