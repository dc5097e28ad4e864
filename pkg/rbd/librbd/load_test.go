package librbd

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// TestLoad makes, grows, and removes images, many at once, and leaves
// nothing, and gives memory back.
func TestLoad(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	before, err := l.Objects(l.place())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("before: %d threads, %d MiB", threads(t), resident(t))
	for round := range 2 {
		began := time.Now()
		var group sync.WaitGroup
		for range 32 {
			group.Go(func() {
				for range 10 {
					name := "load-" + rbd.NewID()
					id := create(t, p, name, mapped())
					for _, step := range []func() error{
						func() error { return p.Grow(t.Context(), id, 200*mebibyte) },
						func() error { _, err := p.HoldsData(t.Context(), id); return err },
						func() error { return p.AddTrash(t.Context(), id, name) },
						func() error { return p.RemoveName(t.Context(), name, id) },
						func() error { return p.RemoveEntry(t.Context(), name, id) },
						func() error { return p.Purge(t.Context(), id) },
					} {
						if err := step(); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		group.Wait()
		t.Logf("round %d: %s, %d threads, %d MiB", round, time.Since(began), threads(t), resident(t))
	}
	busy := resident(t)
	until(t, func() bool { return resident(t) < busy-5 }, func() string {
		return fmt.Sprintf("at rest: got %d MiB, want less than under load, %d", resident(t), busy)
	})
	t.Logf("at rest: %d threads, %d MiB", threads(t), resident(t))
	if after, err := l.Objects(l.place()); !slices.Equal(after, before) || err != nil {
		t.Errorf("left: got %q, %v; want %q", after, err, before)
	}
}
