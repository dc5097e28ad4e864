package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// MostListed bounds a page of List: what is asked for beyond it comes with the next page.
const MostListed = 1000

// List returns up to most volumes that the driver made, in the order of pools and
// names, beginning after the one whose handle the token is; "" begins at the
// start. next is the token for what follows, "" when nothing does. A page costs
// an operation for each row and one for each 1000 names passed, and with
// Options.PublishedNodes mostly none.
//
// Volumes that come and go between pages do not disturb: one that is there all the
// time is listed once. A clone that is not whole yet, and a deleted volume that is kept for its
// snapshots, are no volumes.
//
// A token may be used after its volume is gone. fault.Superseded refuses one
// that no earlier answer can have held.
func (s *Store) List(ctx context.Context, token string, most int) (page []Volume, next string, err error) {
	pools, err := rbd.AllPools(ctx, s.clusters)
	if err != nil {
		return nil, "", err
	}
	s.cache.keep(pools)
	pools, after, err := resumeAt(pools, token)
	if err != nil {
		return nil, "", err
	}
	if most <= 0 || most > MostListed {
		most = MostListed
	}
	for _, where := range pools {
		volumes, err := s.listPool(ctx, where, after, most+1-len(page))
		if err != nil {
			return nil, "", err
		}
		page, after = append(page, volumes...), ""
		if len(page) > most {
			page = page[:most]
			return page, page[most-1].Handle.String(), nil
		}
	}
	return page, "", nil
}

// PublishedNodes reports whether listings are kept in memory (see Options.PublishedNodes), so that
// a controller may offer LIST_VOLUMES_PUBLISHED_NODES.
func (s *Store) PublishedNodes() bool { return s.cache != nil }

// resumeAt returns the pools to go on with, and the name to go on after in the first of them.
func resumeAt(pools []volid.Pool, token string) (rest []volid.Pool, after string, err error) {
	if token == "" {
		return pools, "", nil
	}
	last, err := volid.ParseImage(token)
	if err != nil {
		return nil, "", fmt.Errorf("starting token %q: %w: %w", token, fault.Superseded, err)
	}
	rest, there := rbd.From(pools, last.Pool)
	if !there {
		return rest, "", nil
	}
	return rest, last.Name, nil
}

// listPool returns up to most volumes of one pool, whose names come after the given one.
func (s *Store) listPool(ctx context.Context, where volid.Pool, after string, most int) ([]Volume, error) {
	pool, err := s.clusters.Pool(ctx, where, params.Credentials{})
	if errors.Is(err, fault.NotFound) {
		return nil, nil // deleted since the pools were listed
	}
	if err != nil {
		return nil, fmt.Errorf("list pool %s: %w", where, err)
	}
	volumes, err := s.cache.list(ctx, pool, after, most)
	if errors.Is(err, errNotKept) {
		volumes, err = readVolumes(ctx, pool, after, most)
	}
	if err != nil {
		return nil, fmt.Errorf("list pool %s: %w", where, err)
	}
	return volumes, nil
}

// readVolumes reads up to most volumes whose names come after the given one.
func readVolumes(ctx context.Context, pool rbd.Pool, after string, most int) ([]Volume, error) {
	var volumes []Volume
	for len(volumes) < most {
		entries, err := pool.Entries(ctx, after, min(most-len(volumes), MostListed))
		if err != nil {
			return nil, err
		}
		if len(entries) == 0 {
			break
		}
		after = entries[len(entries)-1].Name
		rows, err := readRows(ctx, pool, entries)
		if err != nil {
			return nil, err
		}
		for _, found := range rows {
			if isVolume(found) {
				volumes = append(volumes, asVolume(found))
			}
		}
	}
	return volumes, nil
}

// isVolume reports whether an image is a volume of the driver: whole, made by it, and
// neither being copied nor deleted.
func isVolume(i image.Image) bool {
	return i.Headed && i.Header.Whole && i.Marks.Ours() && !i.Marks.Copying() && !i.Marks.Deleted()
}

// readRows reads the headers of entries, in their order. The image of an entry
// whose marks cannot be read is left without a header.
func readRows(ctx context.Context, pool rbd.Pool, entries []rbd.Entry) ([]image.Image, error) {
	rows := make([]image.Image, len(entries))
	err := eachAtOnce(ctx, len(entries), func(ctx context.Context, at int) error {
		bare := image.Image{Pool: pool, Name: entries[at].Name, ID: entries[at].ID}
		found, err := bare.Read(ctx)
		if errors.Is(err, fault.InUse) {
			klog.FromContext(ctx).Error(err, "Volume left out of the list")
			found, err = bare, nil
		}
		rows[at] = found
		return err
	})
	return rows, err
}

// readAtOnce is how many headers a listing reads at once: most of a read is waiting, and
// with 16 a page of 1000 takes a fraction of a second. It leaves two thirds of the calls that a
// cluster is sent at a time (see rbd.Calls) to the requests that users wait for.
const readAtOnce = 16

// eachAtOnce calls do for 0 to times-1, up to readAtOnce of them at a time, and returns the
// first error. After one the context of the others ends.
func eachAtOnce(ctx context.Context, times int, do func(ctx context.Context, at int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(times, readAtOnce) {
		workers.Go(func() {
			for at := next.Add(1) - 1; at < int64(times) && ctx.Err() == nil; at = next.Add(1) - 1 {
				if err := do(ctx, int(at)); err != nil {
					cancel(err)
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}
