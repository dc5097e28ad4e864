package orphan

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Remove deletes one volume or snapshot, with what is in it, that a person has found to be nobody's. It looks
// again whether it is one; a volume whose marks change after that stays.
//
// fault.InUse, with the reason: Kubernetes knows it, a node has it or a client has it open, it is younger than
// the grace, or the driver did not make it. fault.NotFound: it is not there. fault.Unsupported: there is no
// Kubernetes to ask. fault.Invalid: the text is no handle. A volume's snapshots stay, and a snapshot's clones.
func (c *Checker) Remove(ctx context.Context, handle string) error {
	if c.Kubernetes == nil {
		return fmt.Errorf("remove %s: whether Kubernetes knows it can only be asked in a pod: %w", handle, fault.Unsupported)
	}
	var err error
	if strings.Contains(handle, "@") {
		err = c.removeSnapshot(ctx, handle)
	} else {
		err = c.removeVolume(ctx, handle)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", handle, err)
	}
	return nil
}

func (c *Checker) removeVolume(ctx context.Context, text string) error {
	handle, err := volid.ParseImage(text)
	if err != nil {
		return fmt.Errorf("%w: %w", fault.Invalid, err)
	}
	gone := fmt.Errorf("no image has this name: %w", fault.NotFound)
	err = c.Store.DeleteIf(ctx, handle, params.Credentials{}, func(found image.Image) error {
		gone = nil
		now, err := c.ask(ctx)
		if err != nil {
			return err
		}
		if err := now.free(text); err != nil {
			return err
		}
		if found.Headed && found.Header.Whole && !c.old(found.Header.Created) {
			return fmt.Errorf("it was made at %s, less than %v ago, or before Ceph noted the time: %w", found.Header.Created, c.grace(), fault.InUse)
		}
		return unused(ctx, found)
	})
	if err != nil {
		return err
	}
	return gone
}

// free returns nil when no PersistentVolume has a handle.
func (k known) free(handle string) error {
	one, wanted := k.volumes[handle]
	if !wanted {
		return nil
	}
	claim := ""
	if one.Claim != "" {
		claim = " of claim " + one.Claim
	}
	return fmt.Errorf("PersistentVolume %s%s has it: %w", one.Name, claim, fault.InUse)
}

// unused returns nil when no client has an image open. Who attaches it is for the deletion to see.
func unused(ctx context.Context, i image.Image) error {
	if !i.Headed {
		return nil
	}
	users, err := i.Pool.Users(ctx, i.ID)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	for _, user := range users {
		if user.Watches && !user.Control {
			return fmt.Errorf("client %s has it open: %w", user.Client, fault.InUse)
		}
	}
	return nil
}

func (c *Checker) removeSnapshot(ctx context.Context, text string) error {
	handle, err := volid.ParseSnapshot(text)
	if err != nil {
		return fmt.Errorf("%w: %w", fault.Invalid, err)
	}
	pool, err := c.Clusters.Pool(ctx, handle.Pool, params.Credentials{})
	if err != nil {
		return err
	}
	of, err := image.Image{Pool: pool, Name: handle.Image.Name, ID: handle.ImageID}.Read(ctx)
	if err != nil {
		return err
	}
	one, err := marked(of, handle)
	if err != nil {
		return err
	}
	now, err := c.ask(ctx)
	if err != nil {
		return err
	}
	content, wanted := now.contents[text]
	switch {
	case wanted:
		return fmt.Errorf("%s has it: %w", content, fault.InUse)
	case now.mayWaitFor(one.At):
		return fmt.Errorf("%s has no handle yet and may wait for it: %w", now.pending, fault.InUse)
	case !c.old(one.At):
		return fmt.Errorf("it was taken at %s, less than %v ago: %w", one.At, c.grace(), fault.InUse)
	}
	return c.Store.Snapshots().Delete(ctx, handle, params.Credentials{})
}

// marked returns the snapshot of a handle in an image.
func marked(of image.Image, handle volid.Snapshot) (snapshot.Marked, error) {
	for _, one := range snapshot.MarkedIn(of) {
		if one.Handle == handle {
			return one, nil
		}
	}
	return snapshot.Marked{}, fmt.Errorf("the driver has made no such snapshot: %w", fault.NotFound)
}

// Spare returns nil for an image that cannot hold anything that anybody wrote, and otherwise fault.InUse with the reason:
// one that never was whole, and an empty volume that never had a snapshot and was never attached or formatted. Three
// operations for a volume, and about 13 more to ask for its data.
func Spare(ctx context.Context, i image.Image) error {
	if neverWhole(i) {
		return nil
	}
	if err := untouched(i); err != nil {
		return err
	}
	if err := unused(ctx, i); err != nil {
		return err
	}
	holds, err := i.HoldsData(ctx)
	if err != nil {
		return err
	}
	if holds {
		return fmt.Errorf("it has data: %w", fault.InUse)
	}
	return nil
}

// neverWhole reports whether nobody can have used an image yet: it is half made, by the driver.
func neverWhole(i image.Image) bool {
	if !i.Headed {
		return rbd.Ours(i.ID)
	}
	return i.Marks.Copying() || !i.Header.Whole && i.Marks.Condemned()
}

// untouched returns nil for an image of the driver that, as its header says, was made empty and has not been used since.
func untouched(i image.Image) error {
	switch {
	case !i.Headed || !i.Marks.Ours():
		return fmt.Errorf("the driver did not make it: %w", fault.InUse)
	case i.Marks.Deleted():
		return fmt.Errorf("it was deleted before, perhaps restored since: %w", fault.InUse)
	case i.Marks.Volume.Source != nil || i.Header.HasParent:
		return fmt.Errorf("it is a clone: %w", fault.InUse)
	case i.Header.HasSnaps || len(i.Header.Snapshots)+len(i.Marks.Snapshots) > 0:
		return fmt.Errorf("it has or had snapshots: %w", fault.InUse)
	case i.Marks.Raw[image.AttachmentsKey] != "":
		return fmt.Errorf("it was attached: %w", fault.InUse)
	case i.Marks.Raw[image.FormatKey] != "":
		return fmt.Errorf("it was formatted: %w", fault.InUse)
	}
	return nil
}
