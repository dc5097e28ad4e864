// Package mapper says what the driver asks of a way to make an RBD image a
// block device of this node. The ways are in the packages below it; none knows
// of the others, and all pass mappertest.Suite.
package mapper

import (
	"context"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Mapper makes images block devices. It keeps no record of its own: the
// kernel knows what is mapped, so a restarted driver finds every device again.
// All methods may be called at once, but not for one image at the same time.
type Mapper interface {
	// Name is the word for this way in a StorageClass: krbd, nbd, fuse.
	Name() string

	// Check reports with fault.Unsupported what this node lacks, in words that
	// say what to install or load. It changes nothing.
	Check(ctx context.Context) error

	// Map makes sure that the image is a device and returns it. An image that this
	// mapper has mapped already, in the same mode, keeps its device; a dead device
	// (see Device.Dead) is replaced. After a failure nothing is left mapped.
	//
	// It returns fault.NotFound when the image, with that ID, is gone;
	// fault.InUse when it is mapped in the other mode; fault.Unauthenticated and
	// fault.Denied as the cluster answered; fault.Unsupported when kernel or
	// librbd cannot open it; fault.Invalid for options that it does not know.
	Map(ctx context.Context, request Request) (Device, error)

	// Devices lists what this mapper has mapped on this node, dead ones included.
	// It asks the kernel only and never blocks on a cluster.
	Devices(ctx context.Context) ([]Device, error)

	// Unmap makes sure that the device is gone; a dead one is taken down by
	// force. What was written is on the cluster when it returns nil, unless the
	// device was dead. It returns fault.InUse while something holds the device, a
	// mount for instance.
	Unmap(ctx context.Context, device Device) error

	// Grow makes the device as large as its image has become and returns the
	// size in bytes. It may be called while the device is mounted and written.
	Grow(ctx context.Context, device Device) (bytes int64, err error)
}

// A Finder finds devices for less than listing all of them costs.
type Finder interface {
	// Find lists those of Devices whose images are wanted.
	Find(ctx context.Context, wanted func(Target) bool) ([]Device, error)
}

// A Selective mapper tells beforehand which images it cannot open here.
type Selective interface {
	// CheckFeatures reports with fault.Unsupported which of an image's features, as
	// librbd's bits, it lacks for opening an image to write or to read only. It asks no cluster.
	CheckFeatures(features uint64, readOnly bool) error
}

// A Target is one image in one of its lives. Names can change and be taken
// again while an image is mapped, so the identity is FSID, PoolID and ImageID.
type Target struct {
	Image   volid.Image // its names when it was mapped; zero for a dead device that lost them
	FSID    string
	PoolID  int64
	ImageID string
}

// Same reports whether both are the same image, whatever their names are now.
func (t Target) Same(other Target) bool {
	return t.FSID == other.FSID && t.PoolID == other.PoolID && t.ImageID == other.ImageID
}

// A Request asks for a device.
type Request struct {
	Target   Target
	Access   cluster.Access // how to reach the cluster, and as whom
	ReadOnly bool
	Options  []string // of the mapper's own kind, from the class
}

// A Device is a mapped image.
type Device struct {
	Path     string // for instance /dev/loop3
	Mapper   string // the name of the mapper that it belongs to
	Target   Target
	ReadOnly bool
	// Client is the cluster's name for the client that does this device's I/O,
	// as `ceph osd blocklist add` takes it: address:port/nonce. Empty when the
	// device is dead.
	Client string
	// Dead says why no I/O will ever come back from this device, or is empty.
	Dead string
}
