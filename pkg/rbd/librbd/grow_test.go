package librbd

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// TestGrowAtOnce grows images from two processes at once. Without the lock of
// Grow it fails in one round of ten.
func TestGrowAtOnce(t *testing.T) {
	const rounds = 20
	l := newLab(t)
	one, other := l.open(t, l.place()), l.open(t, l.place())
	for range rounds {
		id := create(t, one, "grow-"+rbd.NewID(), mapped())
		var group sync.WaitGroup
		for i, mebibytes := range []int64{180, 260, 220, 200} {
			from := []*pool{one, one, other, other}[i]
			group.Go(func() {
				if err := from.Grow(t.Context(), id, mebibytes*mebibyte); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		header, err := one.Header(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got := header.Layout.Bytes / mebibyte; got != 260 {
			t.Errorf("grown by four at once: got %d MiB, want 260", got)
		}
	}
}

// TestGrowWaitsForOthers holds the lock as another process does: who grows says who
// has it, goes on when it is given back, and when that process has died.
func TestGrowWaitsForOthers(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	id := create(t, p, "grow", mapped())
	object := headerPrefix + id
	err := l.in(l.place(), func(other at) error {
		if err := other.lock(growLock, object, "theirs"); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		err := p.Grow(ctx, id, 200*mebibyte)
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "another process is at it: client.") {
			t.Errorf("held: got %v, want %v and who holds it", err, fault.Unavailable)
		}
		if header, err := p.Header(t.Context(), id); err != nil || header.Layout.Bytes != mapped().Bytes {
			t.Errorf("held: got %d bytes, %v; want %d", header.Layout.Bytes, err, mapped().Bytes)
		}
		if err := other.unlock(growLock, []string{id}, "theirs"); err != nil {
			return err
		}
		return other.write(object, func(op *writeOp) {
			op.exec("lock", "lock", lockRequest(growing, "dead", "a process that died", time.Second, lockNew))
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Grow(t.Context(), id, 200*mebibyte); err != nil {
		t.Errorf("held by a dead process: got %v, want nil", err)
	}
	if err := p.Grow(t.Context(), rbd.NewID(), mebibyte); !fault.Is(err, fault.NotFound) {
		t.Errorf("no image: got %v, want %v", err, fault.NotFound)
	}
	if len(p.clusters.growing.images) != 0 {
		t.Errorf("got %d images queued for, want none", len(p.clusters.growing.images))
	}
}

// TestQueue holds that one caller at a time has an image, that others do not keep it
// from other images, and that nothing is remembered.
func TestQueue(t *testing.T) {
	var q queues
	one, other := imageKey{id: "one"}, imageKey{id: "other"}
	leave, err := q.enter(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	if leaveOther, err := q.enter(t.Context(), other); err != nil {
		t.Errorf("another image: got %v, want nil", err)
	} else {
		leaveOther()
	}
	for want, ctx := range map[fault.Kind]context.Context{
		fault.Canceled: ended(t, 0), fault.Unavailable: ended(t, time.Nanosecond),
	} {
		if _, err := q.enter(ctx, one); !fault.Is(err, want) {
			t.Errorf("taken: got %v, want %v", err, want)
		}
	}
	next := make(chan func())
	go func() {
		leave, _ := q.enter(t.Context(), one)
		next <- leave
	}()
	until(t, func() bool { return q.waiting(one) == 2 }, func() string { return "the second does not wait" })
	select {
	case <-next:
		t.Error("got in beside the first, want to wait")
	default:
	}
	leave()
	(<-next)()
	if len(q.images) != 0 {
		t.Errorf("got %d images remembered, want none", len(q.images))
	}
}

// waiting returns how many have an image or wait for it.
func (q *queues) waiting(image imageKey) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if one, found := q.images[image]; found {
		return one.users
	}
	return 0
}

// ended returns a context that was canceled, or whose time is up.
func ended(t *testing.T, after time.Duration) context.Context {
	t.Helper()
	if after == 0 {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		return ctx
	}
	ctx, cancel := context.WithTimeout(t.Context(), after)
	t.Cleanup(cancel)
	<-ctx.Done()
	return ctx
}
