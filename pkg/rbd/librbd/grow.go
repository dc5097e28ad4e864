package librbd

import (
	"context"
	"fmt"
	"syscall"
	"time"

	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// An image is grown by one at a time. librbd compares the new size with that
// which its handle knows, and the handle may not have heard yet of what another
// one did: of four that grew an image at once the last made it smaller, in spite of
// allow_shrink=false. Those of this process wait in a queue; those of others are
// kept out by an advisory lock of the OSD class lock on the header.
//
// growStart is how long after it asked for the lock a call may still begin to
// resize. Each operation of a resize is given up after rados_osd_op_timeout.
const growStart = 20 * time.Second

// growLock is held while an image is grown.
var growLock = advisory{names: []string{growing}, lasts: 60 * time.Second}

// growing is the name of that lock.
const growing = "rbd-csi.io/grow"

// Grow implements rbd.Pool: rbd_open_by_id, rbd_resize2 without leave to shrink,
// rbd_close, all under the lock of the image.
func (p *pool) Grow(ctx context.Context, id string, bytes int64) error {
	done, err := p.clusters.growing.enter(ctx, p.imageKey(id))
	if err != nil {
		return fmt.Errorf("grow %s in %s: %w", id, p.where, err)
	}
	defer done()
	what := "grow " + id
	return untilLocked(ctx, what, func() error {
		return do(ctx, p, what, func(a at) error { return a.growLocked(id, uint64(bytes)) })
	})
}

// growLocked grows an image under its lock.
func (a at) growLocked(id string, bytes uint64) error {
	asked := time.Now()
	return a.locked(growLock, []string{id}, func() error { return a.grow(id, bytes, asked.Add(growStart)) })
}

// grow opens an image and resizes it, unless it is large enough or it took until
// after the deadline to open it.
func (a at) grow(id string, bytes uint64, deadline time.Time) error {
	return a.withImage(id, func(image *cephrbd.Image) error { return growOpen(image, bytes, deadline) })
}

// growOpen resizes an image that was opened under the lock. Someone may have made
// it larger by hand since; librbd refuses to shrink it with EINVAL, if it knows of
// that, which is then what was wanted.
func growOpen(image *cephrbd.Image, bytes uint64, deadline time.Time) error {
	size, err := image.GetSize()
	if err != nil || size >= bytes {
		return err
	}
	if time.Now().After(deadline) {
		return fmt.Errorf("%w: it took longer than %s to open the image", fault.Unavailable, growStart)
	}
	goOn := func(uint64, uint64, any) int { return 0 }
	err = image.Resize2(bytes, false, goOn, nil)
	if !is(err, syscall.EINVAL) {
		return err
	}
	if size, again := image.GetSize(); again == nil && size >= bytes {
		return nil
	}
	return err
}
