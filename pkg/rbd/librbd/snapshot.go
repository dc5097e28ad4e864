package librbd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// TakeSnapshot implements rbd.Copies: rbd_open_by_id, rbd_snap_create, rbd_close. Calls of one
// process for an image come one after the other: librbd takes EEXIST for the answer to
// its own, repeated request, and so of several that begin at once with one name
// all succeed. Of two processes both may, and then there is one snapshot.
func (p *pool) TakeSnapshot(ctx context.Context, id, name string) error {
	what := "take the snapshot " + name + " of " + id
	return untilLocked(ctx, what, func() error {
		return doAlone(ctx, p, &p.clusters.taking, id, what, func(a at) error {
			return a.locked(takeLock, []string{id}, func() error { return a.takeSnapshot(id, name) })
		})
	})
}

// takeLock is held while a snapshot of an image is taken, by all processes of the driver. Two
// at once can end a third: librbd 16.2 aborts when it hears the end of a snapshot whose beginning
// it has not been asked about, or of two that overlap (QuiesceWatchers::notify), and who takes a snapshot with others
// is asked. It lasts long enough for a snapshot where all clients live.
var takeLock = advisory{names: []string{taking}, lasts: 15 * time.Second}

// taking is the name of that lock.
const taking = "rbd-csi.io/snapshot"

func (a at) takeSnapshot(id, name string) error {
	return a.withImage(id, func(image *cephrbd.Image) error {
		_, err := image.CreateSnapshot(name)
		return err
	})
}

// withImage does something with an open image and closes it.
func (a at) withImage(id string, call func(*cephrbd.Image) error) error {
	if err := a.announce(); err != nil {
		return err
	}
	image, err := a.open(id, cephrbd.OpenImageById)
	if err != nil {
		return err
	}
	err = call(image)
	return errors.Join(err, image.Close())
}

// RemoveSnapshot implements rbd.Copies: rbd_open_by_id, rbd_snap_remove_by_id, rbd_close.
// librbd moves a snapshot to the trash first (rbd.snapshot_trash_add) and removes it then,
// if it has no clones; it takes those that stand in it from a pool that is no more
// for none. An image without a layout has no snapshots. It takes turns with TakeSnapshot: librbd sends
// what it is asked for to whoever has the image's exclusive lock, also when that is about to close it.
func (p *pool) RemoveSnapshot(ctx context.Context, id string, snapshot uint64) error {
	what := fmt.Sprintf("remove snapshot %d of %s", snapshot, id)
	return doAlone(ctx, p, &p.clusters.taking, id, what, func(a at) error {
		err := a.withImage(id, func(image *cephrbd.Image) error { return image.RemoveSnapByID(snapshot) })
		if is(err, syscall.ENOENT, syscall.EBUSY) {
			return a.notRemoved(id, snapshot, err)
		}
		return err
	})
}

// notRemoved says why librbd did not remove a snapshot; nil when it is not there or in
// the trash, where it stays for its clones. Otherwise it is protected, as a snapshot has
// to be of which clones of format 1 are made (`rbd snap protect`), or librbd did not
// find the image, because it has neither a name nor an entry in the trash, or another client, which
// librbd had asked to do it, was in the middle of it.
func (a at) notRemoved(id string, snapshot uint64, cause error) error {
	header, err := a.header(id)
	if is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	at := slices.IndexFunc(header.Snapshots, func(s rbd.Snapshot) bool { return s.ID == snapshot })
	switch {
	case at < 0:
		return nil
	case !is(cause, syscall.EBUSY) && !a.known(id):
		return fmt.Errorf("%w: the image has neither a name nor an entry in the trash", fault.InUse)
	case !is(cause, syscall.EBUSY):
		return fmt.Errorf("%w: another client was at it: %v", fault.Unavailable, cause)
	case header.Snapshots[at].Kind == rbd.TrashedSnapshot:
		return nil
	}
	return fmt.Errorf("%w: the snapshot %s is protected (see `rbd snap unprotect`)", fault.InUse, header.Snapshots[at].Name)
}
