package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// queued returns the IDs in the order in which one worker takes them.
func queued(p *Purger, n int) []string {
	var ids []string
	for range n {
		removed, ok := p.next()
		if !ok {
			break
		}
		ids = append(ids, removed.ID)
	}
	return ids
}

// place is a pool that only has a name.
type place struct {
	rbd.Pool
	name string
}

func (p place) Where() rbd.Where {
	return rbd.Where{Pool: volid.Pool{Cluster: "main", Pool: p.name}, FSID: "fsid"}
}

func TestPoolsTakeTurns(t *testing.T) {
	p := NewPurger(PurgeOptions{Workers: 1})
	for i := range 3 {
		p.Add(Removed{Pool: place{name: "busy"}, ID: fmt.Sprintf("busy-%d", i)})
	}
	p.Add(Removed{Pool: place{name: "quiet"}, ID: "quiet-0"})
	p.Add(Removed{Pool: place{name: "quiet"}, ID: "quiet-0"})
	want := []string{"busy-0", "quiet-0", "busy-1", "busy-2"}
	if got := queued(p, 4); !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
}

func TestLargeImagesLeaveAWorkerFree(t *testing.T) {
	p := NewPurger(PurgeOptions{Workers: 3})
	pool := place{name: "kube"}
	for i := range 4 {
		p.Add(Removed{Pool: pool, ID: fmt.Sprintf("large-%d", i), Objects: largeObjects})
	}
	p.Add(Removed{Pool: pool, ID: "small"})
	if got, want := queued(p, 3), []string{"large-0", "large-1", "small"}; !slices.Equal(got, want) {
		t.Errorf("three workers took %v, want %v", got, want)
	}
	p.finish(Removed{ID: "large-0", Objects: largeObjects})
	if got, want := queued(p, 1), []string{"large-2"}; !slices.Equal(got, want) {
		t.Errorf("after one had finished: %v, want %v", got, want)
	}
}

func TestPurgeRuns(t *testing.T) {
	ceph := newCeph()
	done := make(chan error, 3)
	purger := NewPurger(PurgeOptions{Grace: -1, Done: func(_ Removed, err error) { done <- err }})
	store := NewStore(ceph.Process(), Options{Removed: purger.Add})
	left := start(ceph) // a process that is killed before it purges
	must(t, left.create(t.Context(), "pvc-left"))
	must(t, left.delete(t.Context(), "pvc-left"))

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { purger.Run(ctx, store); close(ended) }()
	must(t, <-done)
	_, err := store.Create(t.Context(), specOf("pvc-1"), nobody)
	must(t, err)
	must(t, store.Delete(t.Context(), specOf("pvc-1").Handle, nobody))
	must(t, <-done)
	wantNothing(t, ceph)
	stop()
	<-ended
	purger.Add(Removed{Pool: place{name: "kube"}, ID: "late"})
	if n := purger.Waiting(); n != 0 {
		t.Errorf("%d images queued after the end, want 0", n)
	}
}

func TestPurgeLeavesWhatIsInUse(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	must(t, d.create(t.Context(), "pvc-1"))
	release, err := ceph.Hold(specOf("pvc-1").Handle)
	must(t, err)
	must(t, d.delete(t.Context(), "pvc-1"))
	if err := purge(t.Context(), d.removed[0]); !errors.Is(err, fault.InUse) {
		t.Errorf("purge of a watched image: error %v, want kind %v", err, fault.InUse)
	}
	release()
	purgeAll(t, ceph)
	wantNothing(t, ceph)
}

func TestSweepLeavesTheTrashOfOthers(t *testing.T) {
	ceph := newCeph()
	spec := specOf("foo")
	_, err := ceph.Create(spec.Handle, spec.layout(gib))
	must(t, err)
	must(t, ceph.Trash(spec.Handle))
	// A volume of ours that a person moved to the trash is not condemned.
	d := start(ceph)
	must(t, d.create(t.Context(), "pvc-1"))
	must(t, ceph.Trash(specOf("pvc-1").Handle))
	before := ceph.Dump()
	purgeAll(t, ceph)
	if after := ceph.Dump(); !slices.Equal(before, after) {
		t.Errorf("left %v, want as before %v", after, before)
	}
}

func TestSweepLeavesWhatIsFresh(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	must(t, d.create(t.Context(), "pvc-1"))
	must(t, d.delete(t.Context(), "pvc-1"))
	purger := NewPurger(PurgeOptions{})
	purger.store = d.Store
	must(t, purger.Sweep(t.Context()))
	if n := purger.Waiting(); n != 0 {
		t.Errorf("%d images queued that were deleted this moment, want 0", n)
	}
}

func TestPurgeSweepsUpWhatASlowerOneLeft(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	ctx := t.Context()
	must(t, d.create(ctx, "pvc-1"))
	must(t, d.delete(ctx, "pvc-1"))
	removed := d.removed[0]
	must(t, purge(ctx, removed))
	// The slower one's librbd sets flags in the header, which makes it anew.
	must(t, removed.Pool.ReserveHeader(ctx, removed.ID, nil))
	must(t, purge(ctx, removed))
	wantNothing(t, ceph)
}

func TestPurgeLeavesWhatAPersonRestored(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	ctx := t.Context()
	must(t, d.create(ctx, "pvc-1"))
	must(t, d.delete(ctx, "pvc-1"))
	d.process.Fail(rbdtest.Fault{Method: "Purge", Err: fault.NotFound})
	must(t, purge(ctx, d.removed[0]))
	if _, err := d.removed[0].Pool.Header(ctx, d.removed[0].ID); err != nil {
		t.Errorf("the header of an image that is not in the trash: %v, want it kept", err)
	}
}
