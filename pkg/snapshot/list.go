package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// MostListed bounds a page of a list: what is asked for beyond it comes with the next page.
const MostListed = 1000

// spare is how many entries of the index more than rows are asked for, so that a few stale
// ones do not cost a page of their own.
const spare = 64

// A position in a list is the pool and the index key of a row. Its String is the token
// that goes on behind the row: the pool's handle, which has no "@", an "@" and the key.
type position struct {
	pool volid.Pool
	key  string
}

func (p position) String() string { return p.pool.String() + "@" + p.key }

// parsePosition reads a token, and refuses what no list can have given out.
func parsePosition(token string) (position, error) {
	handle, key, _ := strings.Cut(token, "@")
	pool, err := volid.ParsePool(handle)
	if err == nil {
		err = checkKey(key)
	}
	if err != nil {
		return position{}, fmt.Errorf("starting token %q: %w: %w", token, fault.Superseded, err)
	}
	return position{pool: pool, key: key}, nil
}

// checkKey returns nil for what can be the key of a snapshot's entry.
func checkKey(key string) error {
	request, isSnapshot := strings.CutPrefix(key, snapshotKeys)
	end := strings.LastIndexByte(request, '/')
	if !isSnapshot || end <= 0 || end > volid.MaxRequest {
		return fmt.Errorf("%q is not the name of a snapshot in the index: %w", key, fault.Invalid)
	}
	if id := request[end+1:]; id != "" {
		return volid.CheckImageID(id)
	}
	return nil
}

// A row is a snapshot in a list and where it stands.
type row struct {
	Snapshot
	at position
}

// List returns up to most snapshots that the driver made, in the order of pools and of
// the requests' names, beginning after the one that the token stands for; "" begins
// at the start. next is the token for what follows, "" when nothing does.
//
// A page costs an operation for each row at most (several snapshots of one image cost
// one), one for each 1024 entries of an index that are passed, and one for each pool. What
// was only announced is left out, and so are group snapshots that are not whole.
//
// A token may be used after its snapshot is gone. fault.Superseded refuses one
// that no earlier answer can have held.
func (s *Store) List(ctx context.Context, token string, most int) (page []Snapshot, next string, err error) {
	pools, err := rbd.AllPools(ctx, s.clusters)
	if err != nil {
		return nil, "", err
	}
	pools, after, err := resumeAt(pools, token)
	if err != nil {
		return nil, "", err
	}
	most = bounded(most)
	var rows []row
	for _, where := range pools {
		found, err := s.listPool(ctx, where, after, most+1-len(rows))
		if err != nil {
			return nil, "", fmt.Errorf("list snapshots in pool %s: %w", where, err)
		}
		if rows, after = append(rows, found...), ""; len(rows) > most {
			break
		}
	}
	page, next = cut(rows, most)
	return page, next, nil
}

// ListOf is List for the snapshots of one volume, in the order of their requests' names.
// Two operations while the volume is there. The snapshots of a deleted one are looked
// for in the index of its pool, an operation for each 1024 entries and one for each image; while a
// later volume has the name, only that one's are listed. A volume or pool
// that is not known has none.
func (s *Store) ListOf(ctx context.Context, source volid.Image, token string, most int) (page []Snapshot, next string, err error) {
	after, err := resumeIn(source.Pool, token)
	if err != nil {
		return nil, "", err
	}
	most = bounded(most)
	rows, err := s.rowsOf(ctx, source, after, most+1)
	if err != nil {
		return nil, "", fmt.Errorf("list snapshots of volume %s: %w", source, err)
	}
	page, next = cut(rows, most)
	return page, next, nil
}

func (s *Store) rowsOf(ctx context.Context, source volid.Image, after string, most int) ([]row, error) {
	pool, err := s.clusters.Pool(ctx, source.Pool, params.Credentials{})
	if errors.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found, err := image.FindIn(ctx, pool, source.Name)
	if errors.Is(err, fault.NotFound) {
		return s.rows(ctx, pool, after, most, func(e entry) bool { return e.Image == source.Name })
	}
	if err != nil {
		return nil, err
	}
	return rowsIn(found, after, most)
}

// rowsIn returns the snapshots that the header of an image tells of.
func rowsIn(of image.Image, after string, most int) ([]row, error) {
	var rows []row
	for name, mark := range of.Marks.Snapshots {
		key := keyOf(mark)
		if key <= after {
			continue // also one without an entry
		}
		made, ok, err := rowOf(of, key, name)
		if err != nil {
			return nil, err
		}
		if ok {
			rows = append(rows, made)
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.at.key, b.at.key) })
	return rows[:min(most, len(rows))], nil
}

// bounded returns how many rows a page is to have.
func bounded(most int) int {
	if most <= 0 || most > MostListed {
		return MostListed
	}
	return most
}

// cut returns the first rows as a page, and the token for what follows.
func cut(rows []row, most int) (page []Snapshot, next string) {
	if len(rows) > most {
		rows = rows[:most]
		next = rows[most-1].at.String()
	}
	for _, one := range rows {
		page = append(page, one.Snapshot)
	}
	return page, next
}

// resumeAt returns the pools to go on with, and the key to go on after in the first of them.
func resumeAt(pools []volid.Pool, token string) (rest []volid.Pool, after string, err error) {
	if token == "" {
		return pools, "", nil
	}
	last, err := parsePosition(token)
	if err != nil {
		return nil, "", err
	}
	rest, there := rbd.From(pools, last.pool)
	if !there {
		return rest, "", nil
	}
	return rest, last.key, nil
}

// resumeIn returns the key to go on after in one pool.
func resumeIn(pool volid.Pool, token string) (after string, err error) {
	if token == "" {
		return "", nil
	}
	last, err := parsePosition(token)
	if err == nil && last.pool != pool {
		err = fmt.Errorf("starting token %q is not of pool %s: %w", token, pool, fault.Superseded)
	}
	return last.key, err
}

// listPool returns up to most rows of one pool that come after a key.
func (s *Store) listPool(ctx context.Context, where volid.Pool, after string, most int) ([]row, error) {
	pool, err := s.clusters.Pool(ctx, where, params.Credentials{})
	if errors.Is(err, fault.NotFound) {
		return nil, nil // deleted since the pools were listed
	}
	if err != nil {
		return nil, err
	}
	return s.rows(ctx, pool, after, most, func(entry) bool { return true })
}

// rows returns up to most rows of one pool that come after a key, of those entries of its
// index that are wanted.
func (s *Store) rows(ctx context.Context, pool rbd.Pool, after string, most int, wanted func(entry) bool) ([]row, error) {
	if after == "" {
		after = snapshotKeys
		if there, err := s.indexed(ctx, pool); err != nil || !there {
			return nil, err
		}
	}
	images := images{pool: pool, read: map[string]image.Image{}}
	var rows []row
	for len(rows) < most {
		entries, err := pool.Index(ctx, after, min(pageSize, most-len(rows)+spare))
		if errors.Is(err, fault.NotFound) {
			if there, err := s.indexed(ctx, pool); err != nil || !there {
				return rows, err
			}
			continue
		}
		if err != nil || len(entries) == 0 {
			return rows, err
		}
		if rows, err = images.rows(ctx, rows, entries, most, wanted); err != nil {
			return nil, err
		}
		after = entries[len(entries)-1].Key
	}
	return rows, nil
}

// images reads the images of one page, each once.
type images struct {
	pool rbd.Pool
	read map[string]image.Image // by ID
}

// rows adds the rows of those entries that are wanted, until there are so many.
func (i images) rows(ctx context.Context, rows []row, entries []rbd.IndexEntry, most int, wanted func(entry) bool) ([]row, error) {
	for _, one := range entries {
		if len(rows) == most {
			break
		}
		named, ok := readEntry(one.Value)
		if !ok || !isSnapshot(one.Key) || !wanted(named) {
			continue
		}
		made, ok, err := i.row(ctx, one.Key, named)
		if err != nil {
			return nil, err
		}
		if ok {
			rows = append(rows, made)
		}
	}
	return rows, nil
}

// row returns the row of an entry, if there is such a snapshot. The marks of an image
// that cannot be read are logged: they must not keep a list from being made.
func (i images) row(ctx context.Context, key string, named entry) (row, bool, error) {
	found, known := i.read[named.ID]
	if !known {
		var err error
		found, err = image.Image{Pool: i.pool, Name: named.Image, ID: named.ID}.Read(ctx)
		if errors.Is(err, fault.InUse) {
			klog.FromContext(ctx).Error(err, "Snapshots of a volume left out of the list")
		} else if err != nil {
			return row{}, false, err
		}
		i.read[named.ID] = found
	}
	return rowOf(found, key, named.Snapshot)
}

// rowOf returns the row of a snapshot, if the image has it under this key.
func rowOf(of image.Image, key, name string) (row, bool, error) {
	mark, marked := of.Marks.Snapshots[name]
	if !marked || keyOf(mark) != key || mark.Group != "" && !mark.Whole {
		return row{}, false, nil
	}
	taken, there := find(of, name)
	if !there {
		return row{}, false, nil
	}
	made, err := answer(of, taken)
	return row{Snapshot: made, at: position{pool: of.Where().Pool, key: key}}, err == nil, err
}

// indexed makes sure that a pool's index is there and whole, or reports that the pool
// needs none because the driver has no images in it. One operation for a pool whose
// index is there, or that was looked at lately.
//
// In a pool of others nothing is ever made. A pool whose images are all made by others and
// whose volumes were written by hand is one of them: its index, if somebody removes it,
// comes back with the next snapshot.
func (s *Store) indexed(ctx context.Context, pool rbd.Pool) (bool, error) {
	values, err := pool.IndexValues(ctx, completeKey)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return false, err
	}
	if values[completeKey] == complete {
		return true, nil
	}
	if errors.Is(err, fault.NotFound) {
		if ours, err := s.others.ours(ctx, pool); err != nil || !ours {
			return false, err
		}
	}
	return true, Build(ctx, pool)
}

// rememberedFor is how long a pool without images of the driver is not looked through again. Nothing is
// missed in that time: the first snapshot in a pool makes its index.
const rememberedFor = 10 * time.Minute

// others remembers pools that the driver has no images in. To find out costs an operation for each
// 1024 images in the trash and in the directory, which a list must not spend each
// time on a large pool of somebody else.
type others struct {
	mu    sync.Mutex
	until map[volid.Pool]time.Time
}

// ours reports whether the driver has images in a pool.
func (o *others) ours(ctx context.Context, pool rbd.Pool) (bool, error) {
	where := pool.Where().Pool
	o.mu.Lock()
	known := time.Now().Before(o.until[where])
	o.mu.Unlock()
	if known {
		return false, nil
	}
	ours, err := hasOurs(ctx, pool)
	if err != nil || ours {
		return ours, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.until == nil {
		o.until = map[volid.Pool]time.Time{}
	}
	o.until[where] = time.Now().Add(rememberedFor)
	return false, nil
}

// hasOurs looks through the trash, where images of deleted volumes wait for their last
// snapshot to go, and the directory, until it finds an ID that the driver made.
func hasOurs(ctx context.Context, pool rbd.Pool) (bool, error) {
	trashed, err := pool.Trashed(ctx)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(trashed, func(t rbd.TrashEntry) bool { return rbd.Ours(t.ID) }) {
		return true, nil
	}
	for after := ""; ; {
		page, err := pool.Entries(ctx, after, pageSize)
		if err != nil || len(page) == 0 {
			return false, err
		}
		if slices.ContainsFunc(page, func(e rbd.Entry) bool { return rbd.Ours(e.ID) }) {
			return true, nil
		}
		after = page[len(page)-1].Name
	}
}
