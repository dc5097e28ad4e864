package orphan

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Watch looks for orphans again and again. Several controllers may do so at once: each tells what it finds, and of two that
// remove one thing the second finds it gone. It needs about one operation for each image and look: 10,000 images each hour are
// three operations a second on average, made one after the other.
type Watch struct {
	Checker *Checker
	// Every is how long to wait between two looks; DefaultEvery.
	Every time.Duration
	// Collect is how old something has to be to be removed, and 0 removes nothing. It counts for no less than the checker's grace.
	//
	// Removed is only what [Spare] says cannot hold anything that anybody wrote and no PersistentVolume names: half-made
	// images, and volumes that are empty and untouched, as a CreateVolume leaves whose answer nobody kept. Likewise pairs of
	// the index that name a snapshot which is not there. It must be 0 where another Kubernetes cluster uses
	// the same pools: its empty volumes would be removed.
	Collect time.Duration
	// Counted is told after each complete look how many findings there are of each kind.
	Counted func(map[Kind]int)
	// Found is told of each finding when it is new.
	Found func(context.Context, Finding)

	mu   sync.Mutex
	seen map[string]sighting // by the findings' keys
}

// A sighting is when a finding was seen first, and whether it was told.
type sighting struct {
	first time.Time
	told  bool
}

// DefaultEvery is the time between two looks of a Watch.
const DefaultEvery = time.Hour

// Run looks until the context ends, for the first time at once.
func (w *Watch) Run(ctx context.Context) {
	every := w.Every
	if every <= 0 {
		every = DefaultEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := w.Once(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Look for orphans")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Once looks once, tells what is new, and removes what may be removed.
func (w *Watch) Once(ctx context.Context) error {
	report, err := w.Checker.Look(ctx)
	if err != nil {
		return err
	}
	log := klog.FromContext(ctx)
	for _, note := range report.Notes {
		log.V(2).Info("Not compared", "what", note)
	}
	settled, ripe := w.sort(report)
	for _, one := range settled {
		if w.isNew(one) {
			log.Info("Orphan", "kind", one.Kind, "where", one.Where, "since", one.Age(), "what", one.What, "do", one.Do)
			if w.Found != nil {
				w.Found(ctx, one)
			}
		}
	}
	if !report.Incomplete && w.Counted != nil {
		w.Counted(Count(settled))
	}
	return w.collect(ctx, ripe)
}

// sort remembers the findings, and returns those that are older than the grace and those that are old enough to be
// removed. What has no age is as old as it has been seen. An incomplete look forgets nothing.
func (w *Watch) sort(report Report) (settled, ripe []Finding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, seen := w.Checker.now(), map[string]sighting{}
	if report.Incomplete {
		seen = w.seen
	}
	if seen == nil {
		seen = map[string]sighting{}
	}
	for _, one := range report.Findings {
		before, known := w.seen[one.key()]
		if !known {
			before = sighting{first: now}
		}
		seen[one.key()] = before
		since := one.Since
		if since.IsZero() {
			since = before.first
		}
		if now.Sub(since) >= w.Checker.grace() {
			settled = append(settled, one)
		}
		if w.Collect > 0 && now.Sub(since) >= max(w.Collect, w.Checker.grace()) {
			ripe = append(ripe, one)
		}
	}
	w.seen = seen
	return settled, ripe
}

// isNew reports, once, that a finding was not told before.
func (w *Watch) isNew(one Finding) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	sighting := w.seen[one.key()]
	if sighting.told {
		return false
	}
	sighting.told = true
	w.seen[one.key()] = sighting
	return true
}

// collect removes those of the findings that may be removed.
func (w *Watch) collect(ctx context.Context, ripe []Finding) error {
	if len(ripe) == 0 {
		return nil
	}
	now, err := w.Checker.ask(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, one := range ripe {
		switch err := w.Checker.collect(ctx, one, now); {
		case err == nil:
		case fault.Is(err, fault.InUse), fault.Is(err, fault.NotFound):
			klog.FromContext(ctx).V(4).Info("Orphan left to a person", "where", one.Where, "reason", err.Error())
		default:
			failed = append(failed, fmt.Errorf("remove %s: %w", one.Where, err))
		}
	}
	return errors.Join(failed...)
}

// collect removes what a finding is about, if it may be removed. fault.InUse: it may not, for that reason.
func (c *Checker) collect(ctx context.Context, one Finding, now known) error {
	switch {
	case one.Kind == Index && one.pair.Spare():
		return snapshot.Forget(ctx, one.pool, one.pair)
	case one.Kind != HalfMade && one.Kind != Volume:
		return fmt.Errorf("only a person can decide about it: %w", fault.InUse)
	}
	handle, err := volid.ParseImage(one.Where)
	if err != nil {
		return fmt.Errorf("a snapshot is for a person to remove: %w: %w", fault.InUse, err)
	}
	removed := false
	err = c.Store.DeleteIf(ctx, handle, params.Credentials{}, func(found image.Image) error {
		if found.ID != one.id {
			return fmt.Errorf("another image has its name: %w", fault.NotFound)
		}
		if err := now.free(one.Where); err != nil {
			return err
		}
		removed = true
		return Spare(ctx, found)
	})
	if err == nil && removed {
		klog.FromContext(ctx).Info("Removed orphan", "kind", one.Kind, "where", one.Where, "imageID", one.id, "what", one.What)
	}
	return err
}
