// Package image says what stands under a name in a pool, and keeps what the
// driver has to know of an image with that image: in its metadata, see mark.go.
//
// It is what packages volume (for a controller) and host (on a node) share. It
// decides nothing about requests; it reads, and it changes marks by compare-and-set.
package image

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// An Image is what stands under a name, or has an ID, in a pool at the moment of
// looking. It is a value: what changes the image returns another one.
type Image struct {
	Pool rbd.Pool
	Name string
	ID   string // no other image ever has it
	// Named says that rbd_id.NAME has the ID; otherwise at most the directory has.
	Named bool
	// Headed says that rbd_header.ID is there; otherwise Header and Marks are empty.
	Headed bool
	Header rbd.Header
	Marks  Marks
}

// Look finds what stands under a name. fault.NotFound means that neither
// rbd_id.NAME nor the directory knows it: one alone is not proof, because
// interrupted work leaves either. Two operations for a volume, three for
// what is half made or gone.
func Look(ctx context.Context, pool rbd.Pool, name string) (Image, error) {
	found := Image{Pool: pool, Name: name, Named: true}
	var err error
	if found.ID, err = pool.FindName(ctx, name); errors.Is(err, fault.NotFound) {
		found.Named = false
		found.ID, err = pool.FindEntry(ctx, name)
	}
	if err != nil {
		return Image{}, fmt.Errorf("look for image %s: %w", found, err)
	}
	return found.Read(ctx)
}

// Read returns the image with what its header says now. fault.InUse means that a
// mark was edited and cannot be read. One operation.
func (i Image) Read(ctx context.Context) (Image, error) {
	header, err := i.Pool.Header(ctx, i.ID)
	if errors.Is(err, fault.NotFound) {
		i.Headed, i.Header, i.Marks = false, rbd.Header{}, Marks{}
		return i, nil
	}
	if err != nil {
		return Image{}, fmt.Errorf("read header of image %s: %w", i, err)
	}
	return i.With(header)
}

// With returns the image with a header that was read or made, and the marks in it.
func (i Image) With(header rbd.Header) (Image, error) {
	var err error
	i.Headed, i.Header = true, header
	if i.Marks, err = readMarks(header); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", i, err)
	}
	return i, nil
}

// Set writes one mark if all marks that decisions rest on are as they were read,
// and returns the image as it is now. fault.Superseded: something changed
// meanwhile. One operation.
func (i Image) Set(ctx context.Context, key, value string) (Image, error) {
	return i.Change(ctx, map[string]string{key: value})
}

// Change is Set for several marks at once. An empty value removes a mark. The
// marks of the keys in also have to be as they were read, too.
func (i Image) Change(ctx context.Context, values map[string]string, also ...string) (Image, error) {
	keys := append([]string{VolumeKey, AttachmentsKey, FormatKey}, also...)
	change := rbd.Change{Expect: i.Marks.expect(keys...), Set: map[string]string{}}
	raw := maps.Clone(i.Marks.Raw)
	if raw == nil {
		raw = map[string]string{}
	}
	for key, value := range values {
		if raw[key] = value; value == "" {
			change.Remove = append(change.Remove, key)
			continue
		}
		change.Set[key] = value
	}
	if err := i.Pool.ChangeMeta(ctx, i.ID, change); err != nil {
		return i, err
	}
	i.Marks.Raw = raw
	return i, nil
}

// Handle returns the image's volume handle.
func (i Image) Handle() volid.Image {
	return volid.Image{Pool: i.Pool.Where().Pool, Name: i.Name}
}

// Where returns the image's pool and the identities that outlive names.
func (i Image) Where() rbd.Where { return i.Pool.Where() }

// HoldsData reports whether any data object of the image exists; see rbd.Pool.
func (i Image) HoldsData(ctx context.Context) (bool, error) {
	holds, err := i.Pool.HoldsData(ctx, i.ID)
	if err != nil {
		return false, fmt.Errorf("look for data in volume %s: %w", i, err)
	}
	return holds, nil
}

// String returns the handle, for errors.
func (i Image) String() string { return i.Handle().String() }

// Find returns the image of a volume that can be used: named, whole, and neither
// being made nor on its way out. It need not be one that the driver made. Everything else is
// fault.NotFound.
func Find(ctx context.Context, clusters rbd.Clusters, handle volid.Image, as params.Credentials) (Image, error) {
	pool, err := clusters.Pool(ctx, handle.Pool, as)
	if err != nil {
		return Image{}, err
	}
	return FindIn(ctx, pool, handle.Name)
}

// FindIn is Find in a pool that is open.
func FindIn(ctx context.Context, pool rbd.Pool, name string) (Image, error) {
	found, err := Look(ctx, pool, name)
	switch {
	case err != nil:
		return Image{}, err
	case found.Marks.Deleted():
		return Image{}, fmt.Errorf("volume %s is being deleted: %w", found, fault.NotFound)
	case !found.Named || !found.Headed || !found.Header.Whole || found.Marks.Copying():
		return Image{}, fmt.Errorf("volume %s is not finished: %w", found, fault.NotFound)
	}
	return found, nil
}

// attempts bounds how often Repeat looks again after another process changed
// what it had seen. Each round needs another process to have got on meanwhile,
// so a few are enough; then the caller is told to come again.
const attempts = 5

// Repeat calls step until it returns something else than fault.Superseded, or
// the attempts are used up.
func Repeat(what string, step func() error) error {
	var err error
	for range attempts {
		if err = step(); !fault.Is(err, fault.Superseded) {
			return err
		}
	}
	return fmt.Errorf("%s: looked %d times: %w", what, attempts, err)
}
