package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Delete makes sure that the volume is gone from its name; its space is freed in
// the background. A volume that is not there is success. Six operations.
//
// It returns fault.InUse for a volume that is attached, and for an image that
// the driver did not make: such an image, used by a PersistentVolume written by
// hand, is removed only by whoever made it.
func (s *Store) Delete(ctx context.Context, handle volid.Image, as params.Credentials) error {
	return s.DeleteIf(ctx, handle, as, func(image.Image) error { return nil })
}

// DeleteIf is Delete for what is removed for another reason than that Kubernetes asked for it: allow is shown what
// stands under the name, which need not be whole, and its error keeps it there. What allow was shown is
// what is removed: where somebody attaches, formats or makes it a volume meanwhile, or a snapshot of
// it is announced, it is looked at again.
func (s *Store) DeleteIf(ctx context.Context, handle volid.Image, as params.Credentials, allow func(image.Image) error) error {
	defer s.cache.change(handle)
	pool, err := s.clusters.Pool(ctx, handle.Pool, as)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", handle, err)
	}
	return image.Repeat("delete volume "+handle.String(), func() error {
		found, err := image.Look(ctx, pool, handle.Name)
		if errors.Is(err, fault.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := allow(found); err != nil {
			return err
		}
		return s.remove(ctx, found)
	})
}

// remove takes an image from its name and condemns it, or retires it while it has snapshots.
func (s *Store) remove(ctx context.Context, found image.Image) error {
	if err := removable(found); err != nil {
		return err
	}
	if len(found.Header.Snapshots)+len(found.Marks.Snapshots) > 0 {
		return s.retire(ctx, found)
	}
	return s.abandon(ctx, found)
}

// retire ends a volume whose snapshots stay. Its image goes to the trash like any
// other: clones are made and snapshots removed there by its ID.
func (s *Store) retire(ctx context.Context, found image.Image) error {
	if !found.Marks.Deleted() {
		mark := found.Marks.Volume
		mark.State = image.Retired
		retired, err := found.Set(ctx, image.VolumeKey, image.Written(mark))
		if err != nil {
			return fmt.Errorf("retire image %s: %w", found, err)
		}
		retired.Marks.Volume = mark
		found = retired
	}
	if err := s.discard(ctx, found); err != nil {
		return err
	}
	// The last snapshot may have gone before the mark was there.
	return s.bury(ctx, found)
}

// bury condemns the retired image of a deleted volume when nothing of it is wanted
// any more, and otherwise does nothing. It may be called at any time. An operation
// while it has snapshots.
func (s *Store) bury(ctx context.Context, retired image.Image) error {
	return image.Repeat("remove image "+retired.String(), func() error {
		found, err := retired.Read(ctx)
		if err != nil || !found.Headed || !found.Marks.Deleted() {
			return err
		}
		empty, err := snapshot.Emptied(ctx, found)
		if err != nil || !empty {
			return err
		}
		return s.abandon(ctx, found)
	})
}

// removable returns nil for an image that may be deleted on request.
func removable(i image.Image) error {
	switch nodes := i.Marks.Attachments.Names(); {
	case len(nodes) > 0:
		return fmt.Errorf("volume %s is attached to %v: %w", i, nodes, fault.InUse)
	case i.Headed && !i.Marks.Ours():
		return fmt.Errorf("image %s was not made by this driver, remove it with `rbd`: %w", i, fault.InUse)
	case !i.Headed && !rbd.Ours(i.ID):
		return fmt.Errorf("image %s (ID %s) has no header, someone else is making or removing it: %w", i, i.ID, fault.InUse)
	}
	return nil
}

// abandon condemns an image, whatever it is lacking, and discards it.
func (s *Store) abandon(ctx context.Context, found image.Image) error {
	condemned, err := s.condemn(ctx, found)
	if err != nil {
		return fmt.Errorf("condemn image %s: %w", found, err)
	}
	return s.discard(ctx, condemned)
}

// abandonNow is abandon for an image that this process made or was at: others may have
// been at it since. What they retired is kept for its snapshots, and loses only the name.
func (s *Store) abandonNow(ctx context.Context, made image.Image) error {
	found, err := made.Read(ctx)
	switch {
	case err != nil:
		return err
	case found.Marks.Deleted():
		return s.discard(ctx, found)
	}
	return s.abandon(ctx, found)
}

// condemn marks an image so that no other process can attach, finish or use it.
func (s *Store) condemn(ctx context.Context, found image.Image) (image.Image, error) {
	if found.Marks.Condemned() {
		return found, nil
	}
	mark := found.Marks.Volume
	mark.ID, mark.State = found.ID, image.Condemned
	var err error
	if found.Headed {
		found, err = found.Change(ctx, map[string]string{image.VolumeKey: image.Written(mark)}, image.AnnouncedKey)
	} else {
		err = found.Pool.ReserveHeader(ctx, found.ID, map[string]string{image.VolumeKey: image.Written(mark)})
	}
	if errors.Is(err, fault.Exists) || errors.Is(err, fault.NotFound) {
		err = fmt.Errorf("its header came or went: %w: %w", fault.Superseded, err)
	}
	if err != nil {
		return image.Image{}, err
	}
	found.Headed, found.Marks.Volume = true, mark
	return found, nil
}

// discard takes a condemned or retired image from its name and leaves the rest to the purge.
// The trash comes first, also for what never was whole: from then on whoever
// sweeps the trash finds it, even if this process dies after the name is gone. Every
// step can be repeated, and each compares the ID.
func (s *Store) discard(ctx context.Context, condemned image.Image) error {
	if err := unname(ctx, condemned); err != nil {
		return fmt.Errorf("remove image %s (ID %s): %w", condemned, condemned.ID, err)
	}
	if condemned.Marks.Condemned() {
		s.options.Removed(asRemoved(condemned))
	}
	return nil
}

func unname(ctx context.Context, i image.Image) error {
	if err := i.Pool.AddTrash(ctx, i.ID, i.Name); err != nil {
		return err
	}
	if err := i.Pool.RemoveName(ctx, i.Name, i.ID); err != nil {
		return err
	}
	return i.Pool.RemoveEntry(ctx, i.Name, i.ID)
}

// asRemoved returns what a purge has to know of the image.
func asRemoved(i image.Image) Removed {
	return Removed{
		Pool: i.Pool, ID: i.ID, Name: i.Name,
		Bare:    i.Headed && !i.Header.Whole,
		Objects: i.Header.Layout.Objects(),
		Source:  i.Marks.Volume.Source,
	}
}
