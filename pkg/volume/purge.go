package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Purger frees the space of deleted volumes in the background. The trash is
// its queue: what this process deletes is told to Add, and what an earlier or
// another process left is found by looking through the trash from time to time.
// It purges only what the driver condemned; of other people's trash it touches nothing.
//
// Several controllers may purge at once. librbd takes the image's exclusive
// lock for a purge, so the second finds the image busy or gone.
type Purger struct {
	store   *Store
	options PurgeOptions

	mu      sync.Mutex
	pools   []string             // pools with work, in the order of their turns
	waiting map[string][]Removed // by pool
	known   map[string]bool      // IDs waiting or at work
	large   int                  // workers at work on large images
	work    *sync.Cond
	stopped bool
}

// PurgeOptions tune a Purger; the zero value of each field is its default.
type PurgeOptions struct {
	Workers int           // images purged at once; 4
	Every   time.Duration // between looks through the trash; DefaultPurgeEvery
	// Grace is how long a sweep leaves an entry of the trash to the process that made
	// it; a minute. Two purges of one image do no harm, and the second is in vain.
	Grace time.Duration
	// Done is told of each image after it was purged, or could not be.
	Done func(removed Removed, err error)
}

// DefaultPurgeEvery is the time between looks through the trash.
const DefaultPurgeEvery = 5 * time.Minute

// largeObjects is from when on an image counts as large: removing that many data
// objects takes minutes. One worker is always kept free of large images, so
// that a huge volume does not hold up the rest.
const largeObjects = 100_000

// NewPurger returns a purger; [Purger.Run] starts it. The store may still be nil
// in a Purger that is only added to.
func NewPurger(options PurgeOptions) *Purger {
	if options.Workers <= 0 {
		options.Workers = 4
	}
	if options.Every <= 0 {
		options.Every = DefaultPurgeEvery
	}
	if options.Grace == 0 {
		options.Grace = time.Minute
	}
	if options.Done == nil {
		options.Done = func(Removed, error) {}
	}
	p := &Purger{options: options, waiting: map[string][]Removed{}, known: map[string]bool{}}
	p.work = sync.NewCond(&p.mu)
	return p
}

// Add queues an image. It does not block, and an image that is queued already
// is not queued again.
func (p *Purger) Add(removed Removed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	where := removed.Pool.Where()
	key := where.FSID + "/" + where.String()
	if p.known[removed.ID] || p.stopped {
		return
	}
	p.known[removed.ID] = true
	if len(p.waiting[key]) == 0 {
		p.pools = append(p.pools, key)
	}
	p.waiting[key] = append(p.waiting[key], removed)
	p.work.Broadcast()
}

// Waiting returns how many images are queued or at work.
func (p *Purger) Waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.known)
}

// Run purges until the context ends, and returns when the last worker has
// stopped. A purge under way is given up on then; whoever looks through the trash next goes on.
func (p *Purger) Run(ctx context.Context, store *Store) {
	p.store = store
	var workers sync.WaitGroup
	for range p.options.Workers {
		workers.Go(func() { p.serve(ctx) })
	}
	workers.Go(func() { p.sweepUntil(ctx) })
	<-ctx.Done()
	p.mu.Lock()
	p.stopped = true
	p.work.Broadcast()
	p.mu.Unlock()
	workers.Wait()
}

func (p *Purger) serve(ctx context.Context) {
	for {
		removed, ok := p.next()
		if !ok {
			return
		}
		err := p.purge(ctx, removed)
		p.finish(removed)
		p.options.Done(removed, err)
		log := klog.FromContext(ctx).WithValues("image", removed.Name, "imageID", removed.ID)
		if err != nil {
			log.Error(err, "Deleted volume stays in the trash until the next look")
			continue
		}
		log.V(2).Info("Freed deleted volume")
	}
}

// next waits for an image whose turn it is: pools take turns, and large images
// leave one worker free.
func (p *Purger) next() (Removed, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.stopped {
			return Removed{}, false
		}
		for turn := range p.pools {
			if removed, ok := p.take(turn); ok {
				return removed, true
			}
		}
		p.work.Wait()
	}
}

// take takes the first image of a pool that may be begun now and sends the pool to the end of the line.
func (p *Purger) take(turn int) (Removed, bool) {
	key := p.pools[turn]
	queue := p.waiting[key]
	for i, removed := range queue {
		if removed.Objects >= largeObjects {
			if p.large >= max(1, p.options.Workers-1) {
				continue
			}
			p.large++
		}
		p.pools = append(p.pools[:turn:turn], p.pools[turn+1:]...)
		if queue = append(queue[:i:i], queue[i+1:]...); len(queue) > 0 {
			p.waiting[key] = queue
			p.pools = append(p.pools, key)
		} else {
			delete(p.waiting, key)
		}
		return removed, true
	}
	return Removed{}, false
}

func (p *Purger) finish(removed Removed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, removed.ID)
	if removed.Objects >= largeObjects {
		p.large--
	}
	p.work.Broadcast()
}

// purge frees an image, and lets go of what it was a clone of.
func (p *Purger) purge(ctx context.Context, removed Removed) error {
	if err := purge(ctx, removed); err != nil || removed.Source == nil {
		return err
	}
	return p.store.leave(ctx, *removed.Source, removed.ID)
}

// leave lets go of a clone's source after the clone has gone: the snapshot that was
// taken for it, if its making was interrupted, and the image of a deleted volume
// that this was the last clone of.
func (s *Store) leave(ctx context.Context, source image.Source, clone string) error {
	where, err := volid.ParsePool(source.Pool)
	if err != nil {
		return fmt.Errorf("source of clone %s: %w", clone, err)
	}
	pool, err := s.clusters.Pool(ctx, where, params.Credentials{})
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	left, err := image.Image{Pool: pool, Name: source.Name, ID: source.Image}.Read(ctx)
	if err != nil || !left.Headed {
		return err
	}
	if snapshot.Serves(left, clone) {
		if err := s.snapshots.DropFor(ctx, left, clone); err != nil {
			return err
		}
	}
	if left.Marks.Volume.State == image.Retired {
		return s.bury(ctx, left)
	}
	_, err = snapshot.Emptied(ctx, left)
	return err
}

// purge frees a condemned image in the trash.
func purge(ctx context.Context, removed Removed) error {
	pool := removed.Pool
	if removed.Named {
		err := cmp.Or(pool.RemoveName(ctx, removed.Name, removed.ID), pool.RemoveEntry(ctx, removed.Name, removed.ID))
		if err != nil {
			return fmt.Errorf("purge image %s (ID %s): %w", removed.Name, removed.ID, err)
		}
	}
	if removed.Bare {
		if err := errors.Join(pool.RemoveObjectMap(ctx, removed.ID), pool.RemoveHeader(ctx, removed.ID)); err != nil {
			return fmt.Errorf("purge half-made image %s (ID %s): %w", removed.Name, removed.ID, err)
		}
	}
	if err := pool.Purge(ctx, removed.ID); err != nil && !errors.Is(err, fault.NotFound) {
		return fmt.Errorf("purge image %s (ID %s): %w", removed.Name, removed.ID, err)
	}
	return sweepUp(ctx, removed)
}

// sweepUp removes a header that is none. Of two purges of one image, the slower one's
// librbd can still set flags in the header that the faster one has just removed, and that
// makes the object anew. What has a layout is an image, which a person brought back
// out of the trash, and stays.
func sweepUp(ctx context.Context, purged Removed) error {
	header, err := purged.Pool.Header(ctx, purged.ID)
	if err == nil && !header.Whole {
		err = errors.Join(purged.Pool.RemoveObjectMap(ctx, purged.ID), purged.Pool.RemoveHeader(ctx, purged.ID))
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return fmt.Errorf("sweep up after image %s (ID %s): %w", purged.Name, purged.ID, err)
	}
	return nil
}

func (p *Purger) sweepUntil(ctx context.Context) {
	tick := time.NewTicker(p.options.Every)
	defer tick.Stop()
	for {
		if err := p.Sweep(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Look through the trash")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Sweep looks through the trash of all visible pools and queues what the driver
// condemned. One operation for each pool, and one for each of our IDs in the trash.
func (p *Purger) Sweep(ctx context.Context) error {
	pools, err := rbd.AllPools(ctx, p.store.clusters)
	if err != nil {
		return err
	}
	var failed []error
	for _, at := range pools {
		pool, err := p.store.clusters.Pool(ctx, at, params.Credentials{})
		if err == nil {
			err = p.sweepPool(ctx, pool)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("trash of pool %s: %w", at, err))
		}
	}
	return errors.Join(failed...)
}

func (p *Purger) sweepPool(ctx context.Context, pool rbd.Pool) error {
	entries, err := pool.Trashed(ctx)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if time.Since(entry.Time) < p.options.Grace {
			continue // whoever put it there is at it
		}
		found, err := image.Image{Pool: pool, Name: entry.Name, ID: entry.ID}.Read(ctx)
		if err != nil {
			return err
		}
		// Without a header an earlier purge was interrupted at its very end.
		switch {
		case found.Marks.Condemned() || !found.Headed && rbd.Ours(entry.ID):
			removed := asRemoved(found)
			removed.Named = true
			p.Add(removed)
		case found.Marks.Deleted():
			if err := p.store.tidy(ctx, found); err != nil {
				return err
			}
		}
	}
	return nil
}

// intentGrace is how long the image of a deleted volume is kept for a snapshot that was
// announced and is not there: nobody is at it any more then.
const intentGrace = time.Hour

// tidy looks after the retired image of a deleted volume: what interrupted work has left
// of its snapshots is removed, and the image buried if nothing is left. One operation for
// each snapshot with clones, and for each clone.
func (s *Store) tidy(ctx context.Context, retired image.Image) error {
	for _, one := range retired.Header.Snapshots {
		if one.Children > 0 {
			if err := s.removeGhosts(ctx, retired, one.ID); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(retired.Marks.Snapshots)) {
		if err := s.removeIntent(ctx, retired, name, retired.Marks.Snapshots[name]); err != nil {
			return err
		}
	}
	return s.bury(ctx, retired)
}

// removeGhosts lets a snapshot forget clones that were purged before it was told of them.
func (s *Store) removeGhosts(ctx context.Context, of image.Image, id uint64) error {
	children, err := of.Pool.Children(ctx, of.ID, id)
	if err != nil {
		return err
	}
	for _, child := range children {
		pool, err := s.place(ctx, of.Where().Cluster, child.PoolID, child.Namespace)
		if err == nil && rbd.Ours(child.ID) {
			_, err = pool.Header(ctx, child.ID)
			if errors.Is(err, fault.NotFound) {
				err = of.Pool.RemoveChild(ctx, of.ID, id, child)
			}
		}
		if err != nil && !errors.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

// place finds a pool by its ID.
func (s *Store) place(ctx context.Context, cluster string, id int64, namespace string) (rbd.Pool, error) {
	pools, err := s.clusters.Pools(ctx, cluster)
	if err != nil {
		return nil, err
	}
	for _, at := range pools {
		if at.Namespace != namespace {
			continue
		}
		pool, err := s.clusters.Pool(ctx, at, params.Credentials{})
		if err == nil && pool.Where().PoolID == id {
			return pool, nil
		}
	}
	return nil, fmt.Errorf("pool %d of cluster %s: %w", id, cluster, fault.NotFound)
}

// removeIntent removes the mark of a snapshot that nobody will take any more.
func (s *Store) removeIntent(ctx context.Context, of image.Image, name string, mark image.SnapshotMark) error {
	if mark.For == "" {
		return s.snapshots.DropIntent(ctx, of, name, intentGrace)
	}
	gone, err := s.gone(ctx, mark)
	if err != nil || !gone {
		return err
	}
	return s.snapshots.DropFor(ctx, of, mark.For)
}

// gone reports whether the clone that a snapshot was taken for is not there.
func (s *Store) gone(ctx context.Context, mark image.SnapshotMark) (bool, error) {
	where, err := volid.ParsePool(mark.ForPool)
	if err != nil {
		return false, fmt.Errorf("pool of clone %s: %w", mark.For, err)
	}
	pool, err := s.clusters.Pool(ctx, where, params.Credentials{})
	if err == nil {
		_, err = pool.Header(ctx, mark.For)
	}
	if errors.Is(err, fault.NotFound) {
		return true, nil
	}
	return false, err
}
