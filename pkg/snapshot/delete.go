package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Delete makes sure that the snapshot is gone; one that is not there is success. Its
// clones stay as they are, and its space is freed with the last of them.
//
// It returns fault.InUse for a snapshot that the driver did not make.
func (s *Store) Delete(ctx context.Context, handle volid.Snapshot, as params.Credentials) error {
	what := "delete snapshot " + handle.String()
	err := image.Repeat(what, func() error {
		found, err := s.open(ctx, handle, as)
		if errors.Is(err, fault.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return s.remove(ctx, found, handle.Name)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// remove removes a snapshot, its entry in the index, and its mark. Three operations beside the snapshot's own.
func (s *Store) remove(ctx context.Context, of image.Image, name string) error {
	mark, marked := of.Marks.Snapshots[name]
	if !marked {
		return foreign(of, name)
	}
	if err := drop(ctx, of, name); err != nil {
		return err
	}
	if err := forget(ctx, of.Pool, keyOf(mark), entry{ID: of.ID, Image: mark.Image, Snapshot: name}); err != nil {
		return err
	}
	of, err := unmark(ctx, of, name)
	if err == nil {
		of, err = of.Read(ctx)
	}
	if err != nil {
		return err
	}
	// Another process may have announced it anew before the mark was read, and taken it since. It
	// looks for the mark after that, as this one looks for the snapshot after the mark.
	if _, marked := of.Marks.Snapshots[name]; !marked {
		if _, there := userSnapshot(of, name); there {
			return s.withdraw(ctx, of, name, mark)
		}
	}
	return s.settle(ctx, of)
}

// foreign refuses a snapshot that is there without a mark.
func foreign(of image.Image, name string) error {
	if _, there := userSnapshot(of, name); !there {
		return nil
	}
	return fmt.Errorf("snapshot %s of image %s was not made by this driver, remove it with `rbd snap rm`: %w", name, of, fault.InUse)
}

// drop removes the RBD snapshot of that name that the image was read with.
func drop(ctx context.Context, of image.Image, name string) error {
	if _, marked := of.Marks.Snapshots[name]; !marked {
		return nil
	}
	return dropAny(ctx, of, name)
}

// dropAny is drop for a snapshot that is ours by its name, whether it has a mark or not.
func dropAny(ctx context.Context, of image.Image, name string) error {
	taken, there := userSnapshot(of, name)
	if !there {
		return nil
	}
	if err := of.Pool.RemoveSnapshot(ctx, of.ID, taken.ID); err != nil {
		return fmt.Errorf("remove snapshot %s of image %s: %w", name, of, err)
	}
	return nil
}

// unmark removes the mark of a snapshot that has gone, unless another process wrote it anew.
func unmark(ctx context.Context, of image.Image, name string) (image.Image, error) {
	changed, err := of.Change(ctx, map[string]string{image.SnapshotKey(name): ""}, image.SnapshotKey(name))
	if errors.Is(err, fault.NotFound) {
		err = nil // the image has gone with it
	}
	if err != nil {
		return image.Image{}, fmt.Errorf("remove mark of snapshot %s of image %s: %w", name, of, err)
	}
	return changed, nil
}

// DropIntent removes what announces a snapshot that is not there, if it was announced
// longer ago than that. A snapshot for a group that never became whole was
// answered to nobody, and goes too.
func (s *Store) DropIntent(ctx context.Context, of image.Image, name string, ago time.Duration) error {
	mark, marked := of.Marks.Snapshots[name]
	if !marked || time.Since(time.Unix(mark.At, 0)) < ago {
		return nil
	}
	unfinished := mark.Group != "" && !mark.Whole
	if _, there := find(of, name); there && !unfinished {
		return nil
	}
	return s.remove(ctx, of, name)
}

// settle lets go of the image of a deleted volume when nothing of it is wanted any more. From a volume that lives
// it takes what a removal of a snapshot that was interrupted has left in the trash's namespace.
func (s *Store) settle(ctx context.Context, of image.Image) error {
	if of.Marks.Volume.State == image.Retired {
		return s.emptied(ctx, of)
	}
	_, err := Emptied(ctx, of)
	return err
}
