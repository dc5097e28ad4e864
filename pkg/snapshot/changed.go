package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A ChangedSpec asks what differs between two snapshots of a volume.
type ChangedSpec struct {
	From *volid.Snapshot // nil: from the beginning, when nothing was written
	To   volid.Snapshot
	// Offset is how many bytes of the volume the caller knows about already.
	Offset int64
}

// asked is how many data objects are asked about at once: 64 GiB of 4 MiB each. It bounds
// what is held in memory and what one call of send gets.
const asked = 16384

// Changed calls send with what differs between two snapshots of a volume, in order and in
// whole data objects, and with the volume's size in To. Nothing of the data is read.
// From the beginning it is what is allocated; between two snapshots it is what was written,
// and what was discarded, which reads as zeroes and has Exists unset. Where a caller was
// interrupted it goes on with the end of the last extent that it got as the offset: the
// first extent may begin before the offset, never end before it. About 15 operations
// for each 16,384 data objects, and send is called at most once for them, at
// least once in all.
//
// It returns fault.Invalid for snapshots of different images and for a From that is not
// older than To, fault.OutOfRange for an offset that is negative or behind the end,
// fault.NotFound for a snapshot that is not there, also when it goes meanwhile, and what
// send returns.
func (s *Store) Changed(ctx context.Context, spec ChangedSpec, as params.Credentials, send func(bytes int64, extents []rbd.Extent) error) error {
	c, err := s.compare(ctx, spec, as)
	if err == nil {
		err = c.each(ctx, spec.Offset, send)
	}
	if err != nil {
		return fmt.Errorf("what changed up to snapshot %s: %w", spec.To, err)
	}
	return nil
}

// A comparison is of two snapshots that are there.
type comparison struct {
	image    image.Image
	from, to rbd.Snapshot // from is zero for the beginning
}

// compare finds the snapshots. One operation.
func (s *Store) compare(ctx context.Context, spec ChangedSpec, as params.Credentials) (comparison, error) {
	if from := spec.From; from != nil && (from.Image.Pool != spec.To.Image.Pool || from.ImageID != spec.To.ImageID) {
		return comparison{}, fmt.Errorf("snapshot %s is of another volume: %w", from, fault.Invalid)
	}
	found, err := s.open(ctx, spec.To, as)
	if err != nil {
		return comparison{}, err
	}
	c := comparison{image: found}
	var there bool
	if c.to, there = find(found, spec.To.Name); !there {
		return comparison{}, fault.NotFound
	}
	if spec.Offset < 0 || spec.Offset > c.to.Bytes {
		return comparison{}, fmt.Errorf("offset %d, where the volume has %d bytes: %w", spec.Offset, c.to.Bytes, fault.OutOfRange)
	}
	if spec.From == nil {
		return c, nil
	}
	if c.from, there = find(found, spec.From.Name); !there {
		return comparison{}, fmt.Errorf("base snapshot %s: %w", spec.From, fault.NotFound)
	}
	if c.from.ID >= c.to.ID {
		return comparison{}, fmt.Errorf("base snapshot %s is not older: %w", spec.From, fault.Invalid)
	}
	return c, nil
}

// each asks about one piece after the other. Pieces begin where a data object does (with
// striping, a set of them), so that none is cut.
func (c comparison) each(ctx context.Context, offset int64, send func(int64, []rbd.Extent) error) error {
	layout := c.image.Header.Layout
	set := layout.ObjectBytes * max(layout.StripeCount, 1)
	piece := set * max(asked/max(layout.StripeCount, 1), 1)
	sent := false
	for at := offset - offset%set; at < c.to.Bytes; at += piece {
		extents, err := c.ask(ctx, rbd.Extent{Offset: at, Bytes: min(piece, c.to.Bytes-at)})
		if err != nil {
			return err
		}
		extents = slices.DeleteFunc(extents, func(e rbd.Extent) bool {
			return e.Offset+e.Bytes <= offset || c.from.ID == 0 && !e.Exists
		})
		if len(extents) == 0 {
			continue
		}
		if err := send(c.to.Bytes, extents); err != nil {
			return err
		}
		sent = true
	}
	if sent {
		return nil
	}
	return send(c.to.Bytes, nil)
}

// ask asks about one piece. When that fails it looks whether the snapshots are still there:
// librbd can tell less of one that was removed.
func (c comparison) ask(ctx context.Context, piece rbd.Extent) ([]rbd.Extent, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	extents, err := c.image.Pool.Changed(ctx, c.image.ID, rbd.Between{From: c.from.ID, To: c.to.ID}, piece)
	if err == nil || errors.Is(err, fault.NotFound) || ctx.Err() != nil {
		return extents, err
	}
	now, unread := c.image.Read(ctx)
	if unread != nil {
		return nil, err
	}
	for _, one := range []rbd.Snapshot{c.from, c.to} {
		if one.ID != 0 && !slices.ContainsFunc(now.Header.Snapshots, func(s rbd.Snapshot) bool {
			return s.ID == one.ID && s.Kind == rbd.UserSnapshot
		}) {
			return nil, fmt.Errorf("snapshot %s was deleted: %w: %w", one.Name, fault.NotFound, err)
		}
	}
	return nil, err
}
