package snapshot

import (
	"context"
	"errors"
	"fmt"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Parent is a snapshot that can be cloned.
type Parent struct {
	Image image.Image
	rbd.Snapshot
	Format *image.FormatMark // nil where no filesystem is in it for certain
}

// Parent returns the parent of a clone that has this source, which is in the pool,
// or fault.NotFound. One operation.
func (s *Store) Parent(ctx context.Context, handle volid.Snapshot, as params.Credentials) (Parent, error) {
	found, err := s.open(ctx, handle, as)
	if err != nil {
		return Parent{}, fmt.Errorf("source snapshot %s: %w", handle, err)
	}
	parent, ok := parentOf(found, handle.Name)
	if !ok {
		return Parent{}, fmt.Errorf("source snapshot %s: %w", handle, fault.NotFound)
	}
	return parent, nil
}

func parentOf(of image.Image, name string) (Parent, bool) {
	taken, ok := find(of, name)
	if !ok {
		return Parent{}, false
	}
	return Parent{Image: of, Snapshot: taken, Format: of.Marks.Snapshots[name].Format}, true
}

// forClone returns the name of the snapshot that a clone of a volume is made of. No
// request can have it: see volid.SnapshotName.
func forClone(clone string) string { return "%c" + clone }

// TakeFor makes sure that a volume has the snapshot that a clone of it is to be
// made of, and returns it. It stands in no list. It goes again with [Store.DropFor],
// and the clone's metadata has to say so before.
func (s *Store) TakeFor(ctx context.Context, source, clone image.Image) (Parent, error) {
	name := forClone(clone.ID)
	if parent, ok := parentOf(source, name); ok {
		return parent, nil
	}
	if err := s.ready(ctx, source, name); err != nil {
		return Parent{}, err
	}
	mark := image.SnapshotMark{For: clone.ID, ForPool: clone.Where().Pool.String()}
	marked, err := announce(ctx, source, name, mark)
	if err != nil {
		return Parent{}, err
	}
	source, taken, err := s.take(ctx, marked, name, mark)
	if err != nil {
		return Parent{}, err
	}
	return Parent{Image: source, Snapshot: taken, Format: source.Marks.Snapshots[name].Format}, nil
}

// Serves reports whether an image has a snapshot that was taken for a clone, or the mark of one.
func Serves(source image.Image, clone string) bool {
	_, marked := source.Marks.Snapshots[forClone(clone)]
	_, taken := userSnapshot(source, forClone(clone))
	return marked || taken
}

// DropFor makes sure that the snapshot made by TakeFor cannot be cloned again. While
// the clone lives it stays in the trash's namespace.
//
// It goes with or without its mark: a second process that makes the same clone may take
// its own when the first has dropped one, and be killed before it looks again.
func (s *Store) DropFor(ctx context.Context, source image.Image, clone string) error {
	name := forClone(clone)
	return image.Repeat("drop snapshot "+name, func() error {
		found := source
		source = image.Image{Pool: found.Pool, Name: found.Name, ID: found.ID}
		_, marked := found.Marks.Snapshots[name]
		if !marked {
			var err error
			if found, err = found.Read(ctx); err != nil {
				return err
			}
			_, marked = found.Marks.Snapshots[name]
		}
		if err := dropAny(ctx, found, name); err != nil || !marked {
			return err
		}
		left, err := unmark(ctx, found, name)
		if err != nil {
			return err
		}
		return s.settle(ctx, left)
	})
}

// Emptied reports whether nothing of an image's snapshots is wanted any more: it
// has neither snapshots nor intents. Snapshots in the trash that lost their last clone
// are removed first; an operation is spent only on those.
func Emptied(ctx context.Context, of image.Image) (bool, error) {
	left := len(of.Marks.Snapshots)
	for _, one := range of.Header.Snapshots {
		if one.Kind == rbd.TrashedSnapshot && one.Children == 0 {
			err := of.Pool.RemoveSnapshot(ctx, of.ID, one.ID)
			if err != nil && !errors.Is(err, fault.InUse) {
				return false, fmt.Errorf("remove snapshot %s of image %s: %w", one.Name, of, err)
			}
			if err == nil {
				continue
			}
		}
		left++
	}
	return left == 0, nil
}
