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

// A CreateSpec asks for a volume.
type CreateSpec struct {
	Handle  volid.Image
	Request string // the request's name
	// Size returns how large a volume with so many bytes of content is to be made,
	// or why there can be none.
	Size  func(content int64) (int64, error)
	Class params.Class
	// Fits reports whether a volume of that size, which is there already, is what was asked for.
	Fits func(bytes int64) bool
	// Source is what the volume is to be a copy of, nil for an empty one.
	Source *Source
}

// layout returns how the image is to be laid out.
func (s CreateSpec) layout(bytes int64) rbd.Layout {
	return rbd.Layout{
		Bytes:       bytes,
		ObjectBytes: s.Class.ObjectSize,
		Features:    rbd.Features(s.Class.Features),
		StripeUnit:  s.Class.StripeUnit,
		StripeCount: s.Class.StripeCount,
		DataPool:    s.Class.DataPool,
	}
}

// marks returns the metadata that the image begins its life with.
func (s CreateSpec) marks(id string, from origin) map[string]string {
	volume := image.VolumeMark{ID: id, State: image.Live, Request: s.Request, Class: s.Class.Fingerprint()}
	if from.source != nil {
		volume.State, volume.Source, volume.Depth, volume.Deep = image.Copying, from.source, from.depth, from.deep
	}
	meta := map[string]string{image.VolumeKey: image.Written(volume)}
	if owner := s.Class.Owner; owner != (params.Owner{}) {
		meta[image.OwnerKey] = image.Written(image.OwnerMark{ID: id, PV: owner.Volume, PVC: owner.Claim, Namespace: owner.ClaimNamespace})
	}
	return meta
}

// Create makes sure that the volume is there and returns it. It is empty or a copy of
// its source, or it is the one that an earlier, equal request made. Five operations
// for a new volume, three for one that is there; see [Source] for copies.
//
// It returns fault.Exists when the image name is taken by something else,
// fault.Invalid when cluster or pool are not there, and fault.NotFound when the source is not.
func (s *Store) Create(ctx context.Context, spec CreateSpec, as params.Credentials) (Volume, error) {
	defer s.cache.change(spec.Handle)
	pool, err := s.clusters.Pool(ctx, spec.Handle.Pool, as)
	if errors.Is(err, fault.NotFound) {
		// CSI keeps NOT_FOUND for the source of a copy.
		err = fmt.Errorf("%w: %w", fault.Invalid, err)
	}
	var made image.Image
	if err == nil {
		err = image.Repeat("create", func() error {
			made, err = s.create(ctx, pool, spec, as)
			return err
		})
	}
	if err != nil {
		return Volume{}, fmt.Errorf("create volume %s: %w", spec.Handle, err)
	}
	return asVolume(made), nil
}

// create claims the name, or goes on with what stands under it.
func (s *Store) create(ctx context.Context, pool rbd.Pool, spec CreateSpec, as params.Credentials) (image.Image, error) {
	from, err := s.origin(ctx, pool, spec, as)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.OutOfRange) {
		return s.already(ctx, pool, spec, err)
	}
	if err != nil {
		return image.Image{}, err
	}
	fresh := image.Image{Pool: pool, Name: spec.Handle.Name, ID: rbd.NewID()}
	err = pool.AddEntry(ctx, fresh.Name, fresh.ID)
	if errors.Is(err, fault.Exists) {
		return s.resume(ctx, pool, spec, from)
	}
	if err != nil {
		return image.Image{}, fmt.Errorf("claim name of image %s: %w", fresh, err)
	}
	return s.build(ctx, fresh, spec, from)
}

// already returns the volume that an equal request made before its source went away, or grew
// beyond what the request allows. What an interrupted one has left, and nobody can finish any
// more, is taken away: the answer is final, so nobody comes again for it.
func (s *Store) already(ctx context.Context, pool rbd.Pool, spec CreateSpec, gone error) (image.Image, error) {
	found, err := image.Look(ctx, pool, spec.Handle.Name)
	switch {
	case errors.Is(err, fault.NotFound):
		return image.Image{}, gone
	case err != nil:
		return image.Image{}, err
	case found.Marks.Deleted():
		if err := s.discard(ctx, found); err != nil {
			return image.Image{}, err
		}
		return image.Image{}, gone
	case found.Headed:
		if err := agrees(found, spec); err != nil {
			return image.Image{}, err
		}
	}
	switch {
	case found.Headed && found.Named && !found.Marks.Copying():
		return found, nil
	case found.Headed && !found.Marks.Copying():
		return s.build(ctx, found, spec, origin{})
	case !rbd.Ours(found.ID):
		return image.Image{}, gone
	}
	if err := s.abandon(ctx, found); err != nil {
		return image.Image{}, err
	}
	return image.Image{}, gone
}

// resume finishes, returns or clears away what stands under the name.
func (s *Store) resume(ctx context.Context, pool rbd.Pool, spec CreateSpec, from origin) (image.Image, error) {
	found, err := image.Look(ctx, pool, spec.Handle.Name)
	switch {
	case errors.Is(err, fault.NotFound):
		return image.Image{}, fmt.Errorf("image %s went away: %w", spec.Handle, fault.Superseded)
	case err != nil:
		return image.Image{}, err
	case found.Marks.Deleted():
		if err := s.discard(ctx, found); err != nil {
			return image.Image{}, err
		}
		return image.Image{}, fmt.Errorf("image %s was being deleted: %w", found, fault.Superseded)
	case !found.Headed && found.Named && rbd.Ours(found.ID):
		// A name is given only to an image with a header: this one was purged.
		// Building on its ID could show what is left of its data.
		if err := s.abandon(ctx, found); err != nil {
			return image.Image{}, err
		}
		return image.Image{}, fmt.Errorf("image %s was half removed: %w", found, fault.Superseded)
	case !found.Headed && rbd.Ours(found.ID):
		return s.build(ctx, found, spec, from)
	}
	if err := agrees(found, spec); err != nil {
		return image.Image{}, err
	}
	if !found.Named {
		return s.build(ctx, found, spec, from)
	}
	return found, s.dropLeft(ctx, found, from)
}

// dropLeft removes the snapshot that another process took for a clone which is whole, and
// died before it had removed it. The source was read, so it costs nothing where there is none.
func (s *Store) dropLeft(ctx context.Context, clone image.Image, from origin) error {
	if from.source == nil || !from.source.Own || !snapshot.Serves(from.image, clone.ID) {
		return nil
	}
	return s.snapshots.DropFor(ctx, from.image, clone.ID)
}

// build makes what is still missing of an image whose name is claimed.
func (s *Store) build(ctx context.Context, claimed image.Image, spec CreateSpec, from origin) (image.Image, error) {
	headed, err := s.ensureHeader(ctx, claimed, spec, from)
	if err != nil {
		return image.Image{}, s.giveUp(ctx, claimed, err)
	}
	if headed.Header.Layout.Features.Has(rbd.ObjectMap) {
		if err := headed.Pool.EnsureObjectMap(ctx, headed.ID, headed.Header.Layout); err != nil {
			return image.Image{}, fmt.Errorf("make object map of image %s: %w", headed, err)
		}
	}
	if headed.Marks.Copying() {
		if headed, err = s.graft(ctx, headed, from); err != nil {
			return image.Image{}, s.giveUp(ctx, headed, err)
		}
	}
	if err := s.bound(ctx, headed); err != nil {
		return image.Image{}, err
	}
	if err := s.publish(ctx, headed); err != nil {
		return image.Image{}, err
	}
	headed.Named = true
	return headed, nil
}

// ensureHeader makes the header with its marks, or checks the one that is there.
func (s *Store) ensureHeader(ctx context.Context, claimed image.Image, spec CreateSpec, from origin) (image.Image, error) {
	if !claimed.Headed {
		made, err := s.makeHeader(ctx, claimed, spec, from)
		if !errors.Is(err, fault.Exists) {
			return made, err
		}
		if claimed, err = claimed.Read(ctx); err != nil {
			return image.Image{}, err
		}
	}
	if !claimed.Headed || claimed.Marks.Deleted() {
		return image.Image{}, fmt.Errorf("image %s is being deleted: %w", claimed, fault.Superseded)
	}
	return claimed, agrees(claimed, spec)
}

// makeHeader makes the header with its marks, or returns fault.Exists.
func (s *Store) makeHeader(ctx context.Context, claimed image.Image, spec CreateSpec, from origin) (image.Image, error) {
	bytes, err := spec.Size(from.bytes)
	if err != nil {
		return image.Image{}, err
	}
	layout := spec.layout(bytes)
	header := rbd.Header{ID: claimed.ID, Whole: true, Layout: layout, Meta: spec.marks(claimed.ID, from)}
	err = claimed.Pool.CreateHeader(ctx, claimed.ID, layout, header.Meta)
	if errors.Is(err, fault.NotFound) {
		err = fmt.Errorf("%w: %w", fault.Invalid, err) // the data pool
	}
	if err != nil {
		return image.Image{}, fmt.Errorf("make header of image %s: %w", claimed, err)
	}
	return claimed.With(header)
}

// publish gives the image its name and makes sure that the claim still holds.
func (s *Store) publish(ctx context.Context, made image.Image) error {
	err := made.Pool.AddName(ctx, made.Name, made.ID)
	if err != nil && !errors.Is(err, fault.Exists) {
		return fmt.Errorf("publish image %s: %w", made, err)
	}
	taken := err != nil
	claimed, err := made.Pool.FindEntry(ctx, made.Name)
	if errors.Is(err, fault.NotFound) || err == nil && claimed != made.ID {
		return s.overtaken(ctx, made)
	}
	if err != nil {
		return fmt.Errorf("verify image %s: %w", made, err)
	}
	if !taken {
		return nil
	}
	named, err := made.Pool.FindName(ctx, made.Name)
	if err == nil && named != made.ID {
		err = s.misnamed(ctx, made, named)
	}
	if err != nil {
		return fmt.Errorf("verify image %s: %w", made, err)
	}
	return nil
}

// misnamed takes a name from a deleted image that a process gave it too late, and was killed before it
// looked again. What else can have the name is not for the driver to decide.
func (s *Store) misnamed(ctx context.Context, made image.Image, named string) error {
	other, err := image.Image{Pool: made.Pool, Name: made.Name, ID: named}.Read(ctx)
	switch {
	case err != nil:
		return err
	case other.Marks.Deleted():
		err = s.discard(ctx, other)
	case !other.Headed && rbd.Ours(named):
		err = s.abandon(ctx, other)
	default:
		return fmt.Errorf("rbd_id.%s has ID %s and the directory has %s; remove the wrong one with `rados`: %w",
			made.Name, named, made.ID, fault.InUse)
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("a deleted image had its name: %w", fault.Superseded)
}

// overtaken takes away again what this process made after it had lost its claim: it
// was frozen in the middle while others finished the image and deleted it,
// and perhaps took the name anew.
func (s *Store) overtaken(ctx context.Context, made image.Image) error {
	lost := fmt.Errorf("publish image %s: the name was given to another: %w", made, fault.Superseded)
	if err := s.abandonNow(context.WithoutCancel(ctx), made); err != nil && !fault.Is(err, fault.Superseded) {
		return fmt.Errorf("%w (and its own image, ID %s, is left: %w)", lost, made.ID, err)
	}
	return lost
}

// giveUp undoes a claim when the failure is final: the sidecar may not come
// again, neither to create nor to delete. With the others it comes again and finishes, and so it has
// to when the claim could not be undone.
func (s *Store) giveUp(ctx context.Context, claimed image.Image, cause error) error {
	switch fault.Of(cause) {
	case fault.Superseded:
		return s.stillMine(ctx, claimed, cause)
	case fault.Unknown, fault.Unavailable, fault.Canceled, fault.Exists:
		return cause
	}
	ctx = context.WithoutCancel(ctx)
	found, err := claimed.Read(ctx)
	if err == nil && claimed.Marks.Copying() && found.Headed && !found.Marks.Copying() && !found.Marks.Deleted() {
		return fmt.Errorf("image %s was finished by another process: %w: %w", claimed, fault.Superseded, cause)
	}
	if err == nil {
		err = s.abandon(ctx, found)
	}
	if err != nil && !fault.Is(err, fault.Superseded) {
		return fmt.Errorf("give the name of image %s back: %w (it cannot be made: %w)", claimed, err, cause)
	}
	return cause
}

// stillMine returns the cause when a repeat can go on with the image, because the name is
// claimed for it. Otherwise the image is taken away again: nobody else would find it.
func (s *Store) stillMine(ctx context.Context, made image.Image, cause error) error {
	claimed, err := made.Pool.FindEntry(ctx, made.Name)
	if errors.Is(err, fault.NotFound) || err == nil && claimed != made.ID {
		return s.overtaken(ctx, made)
	}
	return cause
}

// agrees returns nil when the image is a volume that this request, or an equal
// one, made or is making, and fault.Exists with the difference otherwise.
func agrees(i image.Image, spec CreateSpec) error {
	mark := i.Marks.Volume
	var differs string
	switch {
	case !i.Marks.Ours():
		differs = "it was not made by this driver"
	case mark.Request != spec.Request:
		differs = fmt.Sprintf("it was made for the request %q", mark.Request)
	case mark.Class != spec.Class.Fingerprint():
		differs = "it was made with other StorageClass parameters"
	case handleOf(mark.Source) != spec.Source.handle():
		differs = fmt.Sprintf("it was made of the source %q", handleOf(mark.Source))
	case !spec.Fits(i.Header.Layout.Bytes):
		differs = fmt.Sprintf("it has %d bytes", i.Header.Layout.Bytes)
	default:
		return nil
	}
	return fmt.Errorf("image %s is there and %s: %w", i, differs, fault.Exists)
}

// asVolume returns what the services answer about the image.
func asVolume(i image.Image) Volume {
	return Volume{Handle: i.Handle(), Bytes: i.Header.Layout.Bytes, Nodes: i.Marks.Attachments.Names()}
}
