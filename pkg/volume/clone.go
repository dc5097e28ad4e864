package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Source is what a volume is to be a copy of: a snapshot, or another volume as it
// is now. It may be in another pool of the cluster. The copy is a clone, made at once and
// whatever the size: ten operations for that of a snapshot, a snapshot more for
// that of a volume.
type Source struct {
	Snapshot *volid.Snapshot
	Volume   *volid.Image
	// Filesystem is the type that the copy is to be mounted with, "" for any or for a raw block device.
	Filesystem string
}

// handle returns the handle of what the source is, "" for no source.
func (s *Source) handle() string {
	switch {
	case s == nil:
		return ""
	case s.Snapshot != nil:
		return s.Snapshot.String()
	}
	return s.Volume.String()
}

func handleOf(source *image.Source) string {
	if source == nil {
		return ""
	}
	return source.Handle
}

// An origin is a source as it was found. The zero value is that of an empty volume.
type origin struct {
	source *image.Source // as the clone records it
	image  image.Image
	parent snapshot.Parent // zero for a volume: its snapshot is taken when the clone has its header
	bytes  int64           // of content
	depth  int             // of the clone
	deep   bool            // the clone is to be flattened
}

// origin finds the source of a volume and checks that it can be copied to the pool.
func (s *Store) origin(ctx context.Context, pool rbd.Pool, spec CreateSpec, as params.Credentials) (origin, error) {
	if spec.Source == nil {
		return origin{}, nil
	}
	from, format, err := s.find(ctx, *spec.Source, as)
	if err != nil {
		return origin{}, err
	}
	from.source = &image.Source{
		Handle: spec.Source.handle(), Own: spec.Source.Volume != nil,
		Pool: from.image.Where().Pool.String(), Image: from.image.ID, Name: from.image.Name,
	}
	from.depth = depth(from.image) + 1
	from.deep = from.depth >= s.options.FlattenDepth
	return from, copyable(from, format, pool.Where(), spec)
}

func (s *Store) find(ctx context.Context, source Source, as params.Credentials) (origin, image.FormatMark, error) {
	if source.Snapshot != nil {
		parent, err := s.snapshots.Parent(ctx, *source.Snapshot, as)
		if err != nil {
			return origin{}, image.FormatMark{}, err
		}
		var format image.FormatMark
		if parent.Format != nil {
			format = *parent.Format
		}
		return origin{image: parent.Image, parent: parent, bytes: parent.Bytes}, format, nil
	}
	found, err := image.Find(ctx, s.clusters, *source.Volume, as)
	if err != nil {
		return origin{}, image.FormatMark{}, fmt.Errorf("source volume %s: %w", source.Volume, err)
	}
	return origin{image: found, bytes: found.Header.Layout.Bytes}, found.Marks.Format, nil
}

// copyable says why a source cannot be cloned as asked, or nil.
func copyable(from origin, format image.FormatMark, to rbd.Where, spec CreateSpec) error {
	source := spec.Source.handle()
	switch filesystem := spec.Source.Filesystem; {
	case from.image.Where().FSID != to.FSID:
		return fmt.Errorf("source %s is in another cluster than pool %s, and clones stay in theirs: %w", source, to, fault.Invalid)
	case filesystem != "" && format.Type != "" && filesystem != format.Type:
		return fmt.Errorf("source %s holds %s and the volume is to be mounted as %s, set fsType to %s: %w",
			source, format.Type, filesystem, format.Type, fault.Invalid)
	case !from.image.Header.Layout.Features.Has(rbd.Layering), !rbd.Features(spec.Class.Features).Has(rbd.Layering):
		return fmt.Errorf("source %s and the volume both need the image feature layering: %w", source, fault.Invalid)
	case from.depth > deepest:
		return fmt.Errorf("source %s is a clone of %d images already, which are being flattened; nodes can use %d at most, come again later: %w",
			source, from.depth-1, deepest, fault.Unavailable)
	}
	_, err := spec.Size(from.bytes)
	return err
}

// graft gives a clone its parent, and settles what it holds.
func (s *Store) graft(ctx context.Context, clone image.Image, from origin) (image.Image, error) {
	parent, err := s.parented(ctx, clone, from)
	if err != nil {
		return clone, err
	}
	if from.source.Own {
		err = s.snapshots.DropFor(ctx, parent.Image, clone.ID)
	}
	settled := clone
	if err == nil {
		settled, err = settle(ctx, clone, parent.Format)
	}
	if err != nil {
		return clone, s.disown(ctx, clone, parent, from, err)
	}
	return settled, nil
}

// parented attaches a clone to its parent, or finds that it is attached.
func (s *Store) parented(ctx context.Context, clone image.Image, from origin) (snapshot.Parent, error) {
	if begun := clone.Marks.Volume.Source; begun == nil || begun.Image != from.image.ID {
		return snapshot.Parent{}, s.startOver(ctx, clone, "it was begun of another image that had the name of its source")
	}
	if !clone.Header.HasParent {
		return s.adopt(ctx, clone, from)
	}
	known, err := registered(ctx, clone, from)
	if err == nil && !known {
		err = s.startOver(ctx, clone, "the snapshot that it was begun of has gone")
	}
	return snapshot.Parent{
		Image: from.image, Snapshot: rbd.Snapshot{ID: clone.Header.Parent.Snapshot}, Format: formatOf(from),
	}, err
}

// adopt attaches a clone to its parent, each to the other.
func (s *Store) adopt(ctx context.Context, clone image.Image, from origin) (snapshot.Parent, error) {
	parent := from.parent
	if from.source.Own {
		var err error
		if parent, err = s.snapshots.TakeFor(ctx, from.image, clone); err != nil {
			return snapshot.Parent{}, err
		}
	}
	where := parent.Image.Where()
	err := clone.Pool.AttachParent(ctx, clone.ID, rbd.Parent{
		PoolID: where.PoolID, Namespace: where.Namespace, ID: parent.Image.ID,
		Snapshot: parent.ID, Overlap: parent.Bytes,
	})
	if errors.Is(err, fault.Exists) {
		return snapshot.Parent{}, s.outrun(ctx, clone, from, err)
	}
	if err != nil {
		return snapshot.Parent{}, fmt.Errorf("attach image %s to its parent %s@%s: %w", clone, parent.Image, parent.Name, err)
	}
	err = parent.Image.Pool.AddChild(ctx, parent.Image.ID, parent.ID, childOf(clone))
	if errors.Is(err, fault.NotFound) && from.source.Own {
		// Nobody drops it but a process that has finished the clone.
		return snapshot.Parent{}, s.outrun(ctx, clone, from, err)
	}
	if err != nil {
		return snapshot.Parent{}, fmt.Errorf("register clone %s with its parent %s@%s: %w", clone, parent.Image, parent.Name, err)
	}
	return parent, nil
}

// disown lets the parent forget a clone that could not be settled because it has been
// deleted and purged meanwhile, by another process: the parent had been told of it after that.
func (s *Store) disown(ctx context.Context, clone image.Image, parent snapshot.Parent, from origin, cause error) error {
	ctx = context.WithoutCancel(ctx)
	now, err := clone.Read(ctx)
	if err == nil && now.Headed {
		return cause // its purge tells the parent
	}
	if err == nil {
		err = parent.Image.Pool.RemoveChild(ctx, parent.Image.ID, parent.ID, childOf(clone))
	}
	if err == nil {
		err = s.leave(ctx, *from.source, clone.ID)
	}
	if err != nil {
		return fmt.Errorf("%w (and its parent %s still knows it: %w)", cause, parent.Image, err)
	}
	return cause
}

// outrun takes back the snapshot of a process that finds the clone attached to
// another one: somebody else was at it, and had finished when this process took its own.
func (s *Store) outrun(ctx context.Context, clone image.Image, from origin, cause error) error {
	if from.source.Own {
		if err := s.snapshots.DropFor(ctx, from.image, clone.ID); err != nil {
			return err
		}
	}
	return fmt.Errorf("attach image %s to its parent: another process did: %w: %w", clone, fault.Superseded, cause)
}

func childOf(clone image.Image) rbd.Child {
	where := clone.Where()
	return rbd.Child{PoolID: where.PoolID, Namespace: where.Namespace, ID: clone.ID}
}

// registered makes sure that the snapshot that a clone was attached to earlier knows
// the clone, or reports that it has gone. A snapshot in the trash takes no more
// clones, but keeps those that it has.
func registered(ctx context.Context, clone image.Image, from origin) (bool, error) {
	parent := clone.Header.Parent
	if parent.ID != from.image.ID {
		return false, nil
	}
	err := from.image.Pool.AddChild(ctx, parent.ID, parent.Snapshot, childOf(clone))
	if !errors.Is(err, fault.NotFound) {
		return err == nil, err
	}
	children, err := from.image.Pool.Children(ctx, parent.ID, parent.Snapshot)
	if errors.Is(err, fault.NotFound) {
		return false, nil
	}
	return slices.Contains(children, childOf(clone)), err
}

// formatOf returns which filesystem is in a clone whose making was interrupted. A volume
// may have got one since its snapshot was taken, so nothing is said then: the node looks.
func formatOf(from origin) *image.FormatMark {
	if from.source.Own {
		return nil
	}
	return from.parent.Format
}

// startOver condemns a clone that cannot be finished.
func (s *Store) startOver(ctx context.Context, clone image.Image, why string) error {
	if err := s.abandon(ctx, clone); err != nil {
		return err
	}
	return fmt.Errorf("image %s cannot be finished, %s: %w", clone, why, fault.Superseded)
}

// settle marks a clone as whole.
func settle(ctx context.Context, clone image.Image, format *image.FormatMark) (image.Image, error) {
	mark := clone.Marks.Volume
	mark.State = image.Live
	values := map[string]string{image.VolumeKey: image.Written(mark)}
	if format != nil {
		own := *format
		own.ID = clone.ID
		values[image.FormatKey] = image.Written(own)
		clone.Marks.Format = own
	}
	settled, err := clone.Change(ctx, values)
	if err != nil {
		return clone, fmt.Errorf("settle image %s: %w", clone, err)
	}
	settled.Marks.Volume = mark
	return settled, nil
}
