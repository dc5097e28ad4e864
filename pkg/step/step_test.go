package step_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/step"
)

func TestLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, watcher := step.Watch(t.Context())
		expect(t, watcher, "", time.Time{})

		connecting := time.Now()
		step.Set(ctx, "connecting to cluster", "a")
		expect(t, watcher, "connecting to cluster a", connecting)

		time.Sleep(time.Minute) // in the bubble's time
		step.Set(ctx, "connecting to cluster", "a")
		expect(t, watcher, "connecting to cluster a", connecting)

		creating := time.Now()
		step.Set(ctx, "creating")
		expect(t, watcher, "creating", creating)
	})
}

func TestSetReachesTheNearestWatcher(t *testing.T) {
	outer, above := step.Watch(t.Context())
	inner, below := step.Watch(outer)
	step.Set(inner, "inner")
	if what, _ := above.Latest(); what != "" {
		t.Errorf("outer watcher: got %q, want nothing", what)
	}
	if what, _ := below.Latest(); what != "inner" {
		t.Errorf("inner watcher: got %q, want %q", what, "inner")
	}
}

func TestSetFollowsDerivedContexts(t *testing.T) {
	ctx, watcher := step.Watch(t.Context())
	derived, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cancel()
	step.Set(derived, "cleaning up")
	if what, _ := watcher.Latest(); what != "cleaning up" {
		t.Errorf("got %q, want %q", what, "cleaning up")
	}
}

func TestNilWatcher(t *testing.T) {
	var watcher *step.Watcher
	expect(t, watcher, "", time.Time{})
}

func TestSetWithoutWatcherAllocatesNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	name := t.Name()
	got := testing.AllocsPerRun(100, func() { step.Set(ctx, "connecting to cluster", name) })
	if got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	ctx, watcher := step.Watch(t.Context())
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 100 {
				step.Set(ctx, "a")
				step.Set(ctx, "b")
				watcher.Latest()
			}
		})
	}
	group.Wait()
	if what, _ := watcher.Latest(); what != "a" && what != "b" {
		t.Errorf("got %q, want one of the steps", what)
	}
}

func expect(t *testing.T, watcher *step.Watcher, wantWhat string, wantSince time.Time) {
	t.Helper()
	what, since := watcher.Latest()
	if what != wantWhat || !since.Equal(wantSince) {
		t.Errorf("got %q since %v, want %q since %v", what, since, wantWhat, wantSince)
	}
}
