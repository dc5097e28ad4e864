// Package filesystem says what the driver asks of a node's kernel and tools
// about filesystems: look, format, mount, bind, grow, measure.
//
// The adapter linux does it with mount(8), mkfs, fsck and the kernel's own
// tables; filesystemtest has one in memory. filesystemtest.Suite runs on both.
package filesystem

import (
	"context"
	"errors"
)

// A Type is a filesystem that the driver can make.
type Type string

// The types.
const (
	Ext4 Type = "ext4"
	XFS  Type = "xfs"
)

// ErrReplay means that a filesystem was not taken down in order, or is a copy of one that was in use: its journal has to be replayed
// before it can be mounted, and the device is read-only.
var ErrReplay = errors.New("the filesystem has a journal to be replayed, and its device is read-only")

// A Host is the node. All methods may be called at once.
//
// Nothing here waits longer than its context: what can block in the kernel (an
// umount on a dead device, a stat) runs in a child process that is given up on.
// Then the error is fault.Unknown, at most a moment (0.1 s) after the context has
// ended. What hangs is not begun a second time and the number of such children is
// bounded: until they end, methods return fault.Unavailable at once.
type Host interface {
	// Probe says what stands on a device. Where nothing is seen it returns fault.Unavailable when the
	// device cannot be read at its beginning and at its end, or two readings differ,
	// so that an empty answer is proof that the beginning of the device was read and
	// holds no signature. Several signatures beside each other are [Ambiguous].
	Probe(ctx context.Context, device string) (Signature, error)

	// Format makes a filesystem with a UUID of the caller's. The caller has made
	// sure that nothing on the device is needed. fault.Invalid names options that
	// mkfs refuses, fault.OutOfRange a device too small for the type, fault.InUse a
	// device that is mounted or holds something (see Format.Redo). After any other
	// failure the device may hold a part of the filesystem.
	Format(ctx context.Context, device string, spec Format) error

	// Check repairs an unmounted filesystem as far as that is safe without asking a
	// human. Nothing is undone that mounting would replay: ext4's journal is replayed
	// here, xfs's log is left to mounting. It returns fault.DataLoss when errors are
	// left that a human has to look at, and fault.InUse when the device is mounted.
	Check(ctx context.Context, device string, kind Type) error

	// Mount mounts a device at a directory, which it makes if need be. It returns
	// fault.InUse when something else is mounted there; the same device in the same
	// mode there is success. A filesystem that has gone read-only since is in another
	// mode. fault.Invalid means that the target is no directory (a symbolic link in
	// the last element is none), or that the kernel refuses type or options;
	// fault.DataLoss that the filesystem is too damaged to be mounted; [ErrReplay], with fault.InUse, that
	// it cannot be read before it was written.
	Mount(ctx context.Context, mount Mount) error

	// Bind shows a directory, a file or a device node at another path, which it makes
	// if need be: a directory for a directory and a file for anything else. The same
	// thing in the same mode there is success, and so is one that is to become
	// read-only: an interrupted Bind is finished that way. Anything else is
	// fault.InUse, a source that is not there fault.NotFound.
	Bind(ctx context.Context, bind Bind) error

	// Unmount makes sure that nothing is mounted at the path and that the path is
	// gone. It removes an empty directory or an empty file only; fault.InUse is the
	// answer to others, and while somebody uses the mount. It never
	// follows a symbolic link in the last element: that is fault.Invalid.
	Unmount(ctx context.Context, path string) error

	// At returns what is mounted at exactly this path, the topmost if several are;
	// found is false when nothing is.
	At(ctx context.Context, path string) (point Point, found bool, err error)

	// Uses returns every mount of the device, in the order in which they were made.
	Uses(ctx context.Context, device string) ([]Point, error)

	// Grow makes the filesystem as large as its device, and does nothing when there is
	// nothing to grow. It is mounted at the path, and may be in use. fault.Unsupported
	// means that this process may not grow it while it is mounted (ext4 wants
	// CAP_SYS_RESOURCE); then an empty path grows an ext4 that is not mounted.
	Grow(ctx context.Context, device, path string, kind Type) error

	// Usage measures the filesystem mounted at a path, or the block device bound there;
	// fault.NotFound when nothing is.
	Usage(ctx context.Context, path string) (Usage, error)
}

// A Signature is what a device begins with.
type Signature struct {
	Type string // blkid's word: ext4, xfs, btrfs, LVM2_member, dos (a partition table); "" for none
	UUID string
}

// Ambiguous is the Type of a Signature when a device bears those of several things.
const Ambiguous = "ambiguous"

// Empty reports that no signature was found.
func (s Signature) Empty() bool { return s == Signature{} }

// A Format asks for a filesystem.
type Format struct {
	Type    Type
	UUID    string
	Options []string // of mkfs, after the driver's own
	// Redo says that the device may hold the beginnings of this same format,
	// interrupted, and certainly nothing else. Without it a device with any
	// signature is refused with fault.InUse.
	Redo bool
	// Zeroed says that the whole device reads as zeros, as an image without data
	// objects does. Then mkfs writes none of its own, and a large volume costs no
	// more than a small one.
	Zeroed bool
}

// A Mount asks for a device at a directory.
type Mount struct {
	Device   string
	Path     string
	Type     Type
	ReadOnly bool
	Options  []string // of mount(8)
}

// A Bind asks for a path to be seen at another.
type Bind struct {
	Source   string
	Path     string
	ReadOnly bool
	Options  []string
}

// A Point is one line of /proc/self/mountinfo.
type Point struct {
	Path     string
	Device   string // the block device's path, for a bound device node the device that it is
	Type     string // ext4, xfs; "" for a bound device node
	ReadOnly bool
	// Stopped says that the filesystem went read-only after an error, although it was not mounted so.
	Stopped bool
}

// Usage of a filesystem in bytes and inodes. A block device has Total only.
type Usage struct {
	Block                               bool
	Total, Used, Available              int64
	Inodes, InodesUsed, InodesAvailable int64
}
