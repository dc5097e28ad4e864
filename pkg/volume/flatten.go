package volume

import (
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
)

// DefaultFlattenDepth leaves room for clones of clones while a flatten is under way.
const DefaultFlattenDepth = 8

// deepest is how many images a read may go through beside the volume's own. krbd maps
// no image with more than 16 parents (RBD_MAX_PARENT_CHAIN_LEN in drivers/block/rbd.c).
const deepest = 15

// depth returns how many images a read of an image can go through beside its own.
func depth(i image.Image) int {
	if !i.Header.HasParent {
		return 0
	}
	return max(1, i.Marks.Volume.Depth)
}

// bound sees to it that a clone that has become too deep is flattened.
func (s *Store) bound(ctx context.Context, made image.Image) error {
	if !made.Marks.Volume.Deep {
		return nil
	}
	if err := snapshot.NoteDeep(ctx, made); err != nil {
		return err
	}
	s.options.Deep(Deep{Pool: made.Pool, ID: made.ID, Name: made.Name})
	return nil
}

// Deep names a clone that is to be flattened.
type Deep struct {
	Pool rbd.Pool
	ID   string
	Name string
}

// A Flattener copies into deep clones what they read from their parents, one after the
// other, so that it takes little of what the cluster can do. The indices of the pools
// are its queue: what an earlier or another process left is found by looking
// through them from time to time.
//
// Several controllers may flatten at once: librbd holds the image's exclusive lock
// meanwhile, and an image that has no parent any more is left as it is.
type Flattener struct {
	options FlattenOptions
	queue   chan Deep

	mu    sync.Mutex
	known map[string]bool // IDs waiting or at work
}

// FlattenOptions tune a Flattener; the zero value of each field is its default.
type FlattenOptions struct {
	Every time.Duration // between looks through the indices; DefaultFlattenEvery
	// Done is told of each image after it was flattened, or could not be.
	Done func(deep Deep, err error)
}

// DefaultFlattenEvery is the time between looks through the indices.
const DefaultFlattenEvery = 5 * time.Minute

// mostDeep is how many clones wait in memory; more are found by the next look.
const mostDeep = 1000

// NewFlattener returns a flattener; [Flattener.Run] starts it.
func NewFlattener(options FlattenOptions) *Flattener {
	if options.Every <= 0 {
		options.Every = DefaultFlattenEvery
	}
	if options.Done == nil {
		options.Done = func(Deep, error) {}
	}
	return &Flattener{options: options, queue: make(chan Deep, mostDeep), known: map[string]bool{}}
}

// Add queues a clone. It does not block, and a clone that is queued already is not
// queued again.
func (f *Flattener) Add(deep Deep) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known[deep.ID] {
		return
	}
	select {
	case f.queue <- deep:
		f.known[deep.ID] = true
	default:
	}
}

// Run flattens until the context ends. A flatten under way is given up on then; whoever
// looks through the index next goes on.
func (f *Flattener) Run(ctx context.Context, store *Store) {
	tick := time.NewTicker(f.options.Every)
	defer tick.Stop()
	f.lookThrough(ctx, store)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.lookThrough(ctx, store)
		case deep := <-f.queue:
			f.serve(ctx, store, deep)
		}
	}
}

func (f *Flattener) serve(ctx context.Context, store *Store, deep Deep) {
	err := store.flatten(ctx, deep)
	f.mu.Lock()
	delete(f.known, deep.ID)
	f.mu.Unlock()
	f.options.Done(deep, err)
	log := klog.FromContext(ctx).WithValues("image", deep.Name, "imageID", deep.ID)
	if err != nil {
		log.Error(err, "Clone is not flattened until the next look")
		return
	}
	log.V(2).Info("Flattened clone")
}

func (f *Flattener) lookThrough(ctx context.Context, store *Store) {
	if err := f.Sweep(ctx, store); err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "Look for clones to flatten")
	}
}

// Sweep queues the clones that the indices of all visible pools name.
func (f *Flattener) Sweep(ctx context.Context, store *Store) error {
	pools, err := rbd.AllPools(ctx, store.clusters)
	if err != nil {
		return err
	}
	var failed []error
	for _, at := range pools {
		pool, err := store.clusters.Pool(ctx, at, params.Credentials{})
		if err != nil {
			failed = append(failed, err)
			continue
		}
		waiting, err := snapshot.AllDeep(ctx, pool)
		if err != nil {
			failed = append(failed, fmt.Errorf("index of pool %s: %w", at, err))
		}
		for _, id := range slices.Sorted(maps.Keys(waiting)) {
			f.Add(Deep{Pool: pool, ID: id, Name: waiting[id]})
		}
	}
	return errors.Join(failed...)
}

// flatten parts a clone from its parents, and lets go of them.
func (s *Store) flatten(ctx context.Context, deep Deep) error {
	found, err := image.Image{Pool: deep.Pool, Name: deep.Name, ID: deep.ID}.Read(ctx)
	if err == nil && found.Headed && found.Header.HasParent && !found.Marks.Condemned() {
		err = s.part(ctx, found)
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("flatten image %s (ID %s): %w", deep.Name, deep.ID, err)
	}
	if source := found.Marks.Volume.Source; source != nil {
		if err := s.leave(ctx, *source, deep.ID); err != nil {
			return err
		}
	}
	return snapshot.ForgetDeep(ctx, deep.Pool, deep.ID)
}

// part copies what a clone reads from its parent and parts the two, or ends what was begun of that.
//
// librbd copies everything, takes the clone from its parent's snapshot, removes that when it was the last one and the
// snapshot is in the trash, and then takes the parent from the clone's header (DetachChildRequest, DetachParentRequest; 16.2). A process that is
// killed between these leaves a clone that nobody can open once the snapshot has gone, although it has all its data.
func (s *Store) part(ctx context.Context, clone image.Image) error {
	copied, err := s.copied(ctx, clone)
	if err != nil {
		return fmt.Errorf("look whether the parent still knows it: %w", err)
	}
	if !copied {
		return clone.Pool.Flatten(ctx, clone.ID)
	}
	parent := clone.Header.Parent
	klog.FromContext(ctx).Info("The flatten of a clone was interrupted after everything was copied, and is ended", "image", clone.Name, "imageID", clone.ID,
		"parent", parent.ID, "snapshot", parent.Snapshot)
	return clone.Pool.DetachParent(ctx, clone.ID, parent)
}

// copied reports whether a flatten has copied all that a clone reads from its parent: the parent does not know the clone any more. It
// did when the clone was marked as live (graft), and nothing else than that makes it forget a clone that is neither half made nor deleted.
func (s *Store) copied(ctx context.Context, clone image.Image) (bool, error) {
	parent := clone.Header.Parent
	mark := clone.Marks.Volume
	if mark.State != image.Live && mark.State != image.Retired || mark.Source == nil || mark.Source.Image != parent.ID {
		return false, nil
	}
	pool, err := s.place(ctx, clone.Where().Cluster, parent.PoolID, parent.Namespace)
	if errors.Is(err, fault.NotFound) {
		return false, nil // it cannot be asked
	}
	if err != nil {
		return false, err
	}
	children, err := pool.Children(ctx, parent.ID, parent.Snapshot)
	return err == nil && !slices.Contains(children, childOf(clone)), err
}
