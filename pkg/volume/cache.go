package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A cache keeps what List answers, so that who lists everything each minute is
// answered from memory: the external-attacher does, when the controller offers
// LIST_VOLUMES_PUBLISHED_NODES, and it wants all pages within its timeout of 15 s. A nil
// cache keeps nothing.
//
// What an old answer can do: the attacher (ReconcileVA in its csi_handler.go) compares the nodes of
// each volume with its VolumeAttachments. Where they differ it processes the VolumeAttachment
// once more, as what it is: one that stands is attached again, which finds the attachment there
// and changes nothing, and only one that is being deleted is detached, as it would be anyway.
// It never detaches because a node is missing from the list or in it. So an old row
// costs a needless ControllerPublishVolume of two operations, or a repair that comes
// a round later; it never takes a volume from a node. Nothing in the driver
// decides by the cache: attaching, detaching and deleting read the image.
//
// Rows that this process changed are read again before they are told, so with one controller there are
// no such differences. What other processes did is told when the pool is read again.
//
// A row takes about 200 bytes beside the node's IDs, which are kept once: 2 MB for 10,000 volumes,
// twice that while a pool is being read again. A pool with more than mostKept images is not kept.
type cache struct {
	age time.Duration
	now func() time.Time

	mu    sync.Mutex
	pools map[volid.Pool]*keptPool
}

// DefaultListAge is an age for Options.PublishedNodes. The attacher lists each minute; the rows are read
// again in the background when they are half as old, so it never waits but for the
// first time, and 10,000 volumes cost 80 operations a second.
const DefaultListAge = 4 * time.Minute

// mostKept is how many images a pool may have for its rows to be kept: 20 MB of them.
const mostKept = 100_000

// errNotKept says that the answer has to be read from the cluster.
var errNotKept = errors.New("not kept in memory")

// newCache returns a cache whose rows are at most so old, or nil for no age.
func newCache(age time.Duration) *cache {
	if age <= 0 {
		return nil
	}
	return &cache{age: age, now: time.Now, pools: map[volid.Pool]*keptPool{}}
}

// A keptPool is the volumes of one pool as they were read last.
type keptPool struct {
	mu       sync.Mutex
	rows     []row     // in the order of their names
	tooLarge bool      // there are too many of them, and none is kept
	read     time.Time // when reading them began; zero: they were not read
	reading  *reading  // under way; nil: none
	// changed has the volumes that this process changed and did not read since, each with
	// the number of its last change.
	changed map[string]int
	changes int // the number of the last change
}

// A row is a volume without its pool. The nodes are shared with answers.
type row struct {
	name  string
	bytes int64
	nodes []string
}

// A reading is one process of reading all rows of a pool. err may be read when done is closed.
type reading struct {
	changes int // the last change before it began
	done    chan struct{}
	err     error
}

// keep forgets all pools but these.
func (c *cache) keep(visible []volid.Pool) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.pools, func(where volid.Pool, _ *keptPool) bool { return !slices.Contains(visible, where) })
}

// change notes that this process has changed a volume, or may have: it is to be
// called afterwards, whatever came out of it.
func (c *cache) change(of volid.Image) {
	if c == nil {
		return
	}
	c.mu.Lock()
	kept := c.pools[of.Pool]
	c.mu.Unlock()
	if kept != nil {
		kept.change(of.Name, c.now().Add(-c.age))
	}
}

// change notes a change of a volume, unless all rows would have to be read again anyway: because
// nobody lists any more, or because so many were changed that reading all costs less.
func (k *keptPool) change(name string, oldest time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changes++
	k.changed[name] = k.changes
	if k.reading == nil && (k.read.Before(oldest) || len(k.changed) > max(MostListed, len(k.rows)/2)) {
		k.read, k.rows, k.changed = time.Time{}, nil, map[string]int{}
	}
}

// list returns up to most volumes whose names come after the given one, or errNotKept. It
// waits for a reading when there is no answer that is young enough; that one may be as old as the reading took.
func (c *cache) list(ctx context.Context, pool rbd.Pool, after string, most int) ([]Volume, error) {
	if c == nil {
		return nil, errNotKept
	}
	where := pool.Where().Pool
	c.mu.Lock()
	kept := c.pools[where]
	if kept == nil {
		kept = &keptPool{changed: map[string]int{}}
		c.pools[where] = kept
	}
	c.mu.Unlock()
	if err := kept.await(ctx, kept.refresh(ctx, pool, c)); err != nil {
		return nil, err
	}
	if err := kept.update(ctx, pool); err != nil {
		return nil, err
	}
	return kept.page(where, after, most)
}

// refresh makes sure that rows that are half as old as they may become are being read again, and
// returns the reading that the caller has to wait for, nil for none.
func (k *keptPool) refresh(ctx context.Context, pool rbd.Pool, c *cache) *reading {
	k.mu.Lock()
	defer k.mu.Unlock()
	age := c.now().Sub(k.read)
	if k.reading == nil && age > c.age/2 {
		k.reading = &reading{changes: k.changes, done: make(chan struct{})}
		// It serves who comes later too, so it does not end with this caller. It only
		// reads, so nothing has to wait for it when the process ends.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readingTime)
		go func(begun *reading, at time.Time) {
			defer cancel()
			k.readAll(ctx, pool, begun, at)
		}(k.reading, c.now())
	}
	if age > c.age {
		return k.reading
	}
	return nil
}

// readingTime bounds a reading of a pool.
const readingTime = 5 * time.Minute

func (k *keptPool) await(ctx context.Context, begun *reading) error {
	if begun == nil {
		return nil
	}
	select {
	case <-begun.done:
		return begun.err
	case <-ctx.Done():
		return fmt.Errorf("wait until all volumes are read: %w: %w", fault.Unavailable, ctx.Err())
	}
}

// readAll reads all rows of a pool. Changes that this process made meanwhile stay noted: whether they
// were seen cannot be told.
func (k *keptPool) readAll(ctx context.Context, pool rbd.Pool, begun *reading, at time.Time) {
	defer close(begun.done)
	rows, err := readPool(ctx, pool)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reading = nil
	if err != nil && !errors.Is(err, errNotKept) {
		begun.err = err
		klog.FromContext(ctx).V(2).Info("Volumes not read for the list", "pool", pool.Where().Pool, "reason", err.Error())
		return
	}
	k.rows, k.read, k.tooLarge = rows, at, err != nil
	maps.DeleteFunc(k.changed, func(_ string, number int) bool { return number <= begun.changes })
}

// readPool reads all rows of a pool, or returns errNotKept when there are too many.
func readPool(ctx context.Context, pool rbd.Pool) ([]row, error) {
	entries, err := allEntries(ctx, pool)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	var rows []row
	for some := range slices.Chunk(entries, MostListed) {
		images, err := readRows(ctx, pool, some)
		if err != nil {
			return nil, err
		}
		for _, found := range images {
			if isVolume(found) {
				rows = append(rows, asRow(found, names))
			}
		}
	}
	return slices.Clip(rows), nil
}

// allEntries returns the names in a pool, or errNotKept when there are too many.
func allEntries(ctx context.Context, pool rbd.Pool) ([]rbd.Entry, error) {
	var all []rbd.Entry
	for after := ""; ; after = all[len(all)-1].Name {
		some, err := pool.Entries(ctx, after, MostListed)
		if err != nil || len(some) == 0 {
			return all, err
		}
		if all = append(all, some...); len(all) > mostKept {
			return nil, errNotKept
		}
	}
}

// asRow returns what is kept of a volume. The IDs of nodes in it are those in names.
func asRow(i image.Image, names map[string]string) row {
	nodes := i.Marks.Attachments.Names()
	for at, name := range nodes {
		if _, known := names[name]; !known {
			names[name] = name
		}
		nodes[at] = names[name]
	}
	return row{name: i.Name, bytes: i.Header.Layout.Bytes, nodes: nodes}
}

// update reads the rows again that this process has changed. Two operations for each.
func (k *keptPool) update(ctx context.Context, pool rbd.Pool) error {
	changed := k.stale()
	names := slices.Sorted(maps.Keys(changed))
	found := make([]image.Image, len(names))
	err := eachAtOnce(ctx, len(names), func(ctx context.Context, at int) error {
		one, err := image.Look(ctx, pool, names[at])
		if err != nil && !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.InUse) {
			return err
		}
		found[at] = one // without a header after an error
		return nil
	})
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for at, name := range names {
		if k.changed[name] == changed[name] {
			k.put(name, found[at])
		}
	}
	return nil
}

// stale returns the volumes whose rows have to be read again, each with the number of its last change.
func (k *keptPool) stale() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tooLarge {
		return nil
	}
	return maps.Clone(k.changed)
}

// put replaces, adds or removes a row. While all rows are read the change stays noted,
// because that reading may have seen the volume before it.
func (k *keptPool) put(name string, found image.Image) {
	if k.reading == nil {
		delete(k.changed, name)
	}
	at, known := k.find(name)
	switch {
	case isVolume(found) && known:
		k.rows[at] = asRow(found, map[string]string{})
	case isVolume(found):
		k.rows = slices.Insert(k.rows, at, asRow(found, map[string]string{}))
	case known:
		k.rows = slices.Delete(k.rows, at, at+1)
	}
}

func (k *keptPool) find(name string) (at int, known bool) {
	return slices.BinarySearchFunc(k.rows, name, func(r row, name string) int { return strings.Compare(r.name, name) })
}

// page returns up to most volumes whose names come after the given one, or errNotKept.
func (k *keptPool) page(where volid.Pool, after string, most int) ([]Volume, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tooLarge || k.read.IsZero() {
		return nil, errNotKept
	}
	at, known := k.find(after)
	if known {
		at++
	}
	var volumes []Volume
	for _, r := range k.rows[at:min(at+most, len(k.rows))] {
		volumes = append(volumes, Volume{Handle: volid.Image{Pool: where, Name: r.name}, Bytes: r.bytes, Nodes: r.nodes})
	}
	return volumes, nil
}
