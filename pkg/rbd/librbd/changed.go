package librbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// Changed implements rbd.Copies: rbd_open_by_id_read_only, rbd_snap_set_by_id,
// rbd_diff_iterate2 in whole objects, rbd_close.
func (p *pool) Changed(ctx context.Context, id string, between rbd.Between, piece rbd.Extent) ([]rbd.Extent, error) {
	what := fmt.Sprintf("compare snapshots %d and %d of %s", between.From, between.To, id)
	return run(ctx, p, what, func(a at) ([]rbd.Extent, error) {
		if between.To != 0 && between.From > between.To {
			return nil, fmt.Errorf("%w: the first snapshot is the later one", fault.Invalid)
		}
		image, err := a.open(id, cephrbd.OpenImageByIdReadOnly)
		if err != nil {
			return nil, err
		}
		changed, err := differences(ctx, image, between, piece)
		return joined(changed), errors.Join(err, image.Close())
	})
}

// differences returns what differs in a piece of an image.
func differences(ctx context.Context, image *cephrbd.Image, between rbd.Between, piece rbd.Extent) ([]rbd.Extent, error) {
	if between.To != 0 {
		if err := image.SetSnapByID(between.To); err != nil {
			return nil, fmt.Errorf("snapshot %d: %w", between.To, err)
		}
	}
	compare, err := comparison(image, between.From)
	if err != nil {
		return nil, err
	}
	var changed []rbd.Extent
	note := func(offset, bytes uint64, exists int, _ any) int {
		changed = append(changed, rbd.Extent{Offset: int64(offset), Bytes: int64(bytes), Exists: exists != 0})
		return 0
	}
	err = inPieces(ctx, image, piece, func(offset, length uint64) (bool, error) {
		return false, compare(offset, length, note)
	})
	return changed, err
}

// A comparer asks what differs in a piece of an open image.
type comparer func(offset, length uint64, note cephrbd.DiffIterateCallback) error

// comparison returns a comparer with a snapshot, 0 for the beginning. rbd_diff_iterate2
// takes the snapshot's name, and none that is in the trash; for these there is
// rbd_diff_iterate3, since Ceph 20.
func comparison(image *cephrbd.Image, from uint64) (comparer, error) {
	name := cephrbd.NoSnapshot
	if from != 0 {
		var err error
		if name, err = image.GetSnapByID(from); err != nil {
			return nil, fmt.Errorf("snapshot %d: %w", from, err)
		}
		if !hasName(image, name, from) {
			return trashedComparison(image, from), nil
		}
	}
	return func(offset, length uint64, note cephrbd.DiffIterateCallback) error {
		return image.DiffIterate(cephrbd.DiffIterateConfig{
			SnapName: name, Offset: offset, Length: length, Callback: note,
			IncludeParent: cephrbd.IncludeParent, WholeObject: cephrbd.EnableWholeObject,
		})
	}, nil
}

// hasName reports whether a snapshot can be named: one in the trash cannot.
func hasName(image *cephrbd.Image, name string, id uint64) bool {
	named, err := image.GetSnapID(name)
	return err == nil && named == id
}

func trashedComparison(image *cephrbd.Image, from uint64) comparer {
	return func(offset, length uint64, note cephrbd.DiffIterateCallback) error {
		err := image.DiffIterateByID(cephrbd.DiffIterateByIDConfig{
			FromSnapID: from, Offset: offset, Length: length, Callback: note,
			IncludeParent: cephrbd.IncludeParent, WholeObject: cephrbd.EnableWholeObject,
		})
		if errors.Is(err, cephrbd.ErrNotImplemented) {
			return fmt.Errorf("%w: snapshot %d was removed, and this release of librbd compares only with others", fault.Unsupported, from)
		}
		return err
	}
}

// inPieces calls for a piece of an image until done; what is behind the image's end
// is left out. Without fast-diff librbd asks for each object, and the calls are for
// smaller pieces, so that it ends soon after its caller has gone.
func inPieces(ctx context.Context, image *cephrbd.Image, whole rbd.Extent, call func(offset, length uint64) (done bool, err error)) error {
	info, err := image.Stat()
	if err != nil {
		return err
	}
	features, err := image.GetFeatures()
	if err != nil {
		return err
	}
	if whole.Offset < 0 || whole.Bytes < 0 {
		return fmt.Errorf("%w: %d bytes at %d", fault.Invalid, whole.Bytes, whole.Offset)
	}
	offset := uint64(whole.Offset)
	end := min(offset+uint64(whole.Bytes), info.Size)
	const objectsAtOnce = 1024
	piece := info.Size
	if !rbd.Features(features).Has(rbd.FastDiff) {
		piece = objectsAtOnce * info.Obj_size
	}
	for ; offset < end; offset += piece {
		if err := ctx.Err(); err != nil {
			return err
		}
		if done, err := call(offset, min(piece, end-offset)); done || err != nil {
			return err
		}
	}
	return nil
}

// joined puts extents in order, which they are not where an image is striped, and
// makes one of those that touch and are alike.
func joined(extents []rbd.Extent) []rbd.Extent {
	slices.SortFunc(extents, func(a, b rbd.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	var all []rbd.Extent
	for _, one := range extents {
		last := len(all) - 1
		if last >= 0 && all[last].Exists == one.Exists && one.Offset <= all[last].Offset+all[last].Bytes {
			all[last].Bytes = max(all[last].Bytes, one.Offset+one.Bytes-all[last].Offset)
			continue
		}
		all = append(all, one)
	}
	return all
}
