package librbd

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// inTrash makes an image that is in the trash and has no name.
func (l *lab) inTrash(t *testing.T, p *pool, layout rbd.Layout) (id string) {
	t.Helper()
	name, ctx := "purged-"+rbd.NewID(), t.Context()
	id = create(t, p, name, layout)
	if err := errors.Join(p.AddTrash(ctx, id, name), p.RemoveName(ctx, name, id), p.RemoveEntry(ctx, name, id)); err != nil {
		t.Fatal(err)
	}
	return id
}

// TestPurgeAtOnce purges each image by two processes at once, and asks for its lock from a third by growing it. Without the
// lock of Purge librbd 16.2 ends the process of this test in one of the first rounds.
func TestPurgeAtOnce(t *testing.T) {
	const rounds, latest = 40, 40 * time.Millisecond
	l := newLab(t)
	one, other, third := l.open(t, l.place()), l.open(t, l.place()), l.open(t, l.place())
	before := l.objectsIn(t)
	layout := mapped()
	layout.Bytes = 4096 * mebibyte // enough objects that looking for them takes a while
	for round := range rounds {
		id := l.inTrash(t, one, layout)
		// The second begins a little later each time, up to when the first has ended.
		delay := latest * time.Duration(round) / rounds
		purge := func(p *pool, after time.Duration) func() error {
			return func() error {
				<-time.After(after)
				return p.Purge(t.Context(), id)
			}
		}
		grow := func() error { return third.Grow(t.Context(), id, 2*layout.Bytes) }
		var group sync.WaitGroup
		for _, call := range []func() error{purge(one, 0), purge(other, delay), grow}[:2+round%2] {
			group.Go(func() {
				if err := call(); err != nil && !fault.Is(err, fault.InUse) && !fault.Is(err, fault.NotFound) {
					t.Errorf("round %d: got %v, want nil, %v or %v", round, err, fault.InUse, fault.NotFound)
				}
			})
		}
		group.Wait()
		// When each was in the other's way, none has done it.
		until(t, func() bool {
			err := one.Purge(t.Context(), id)
			return err == nil || fault.Is(err, fault.NotFound)
		}, func() string { return "not purged" })
	}
	if got := l.objectsIn(t); !slices.Equal(got, before) {
		t.Errorf("objects afterwards: got %v, want %v", got, before)
	}
}

// objectsIn lists what is in the test's pool.
func (l *lab) objectsIn(t *testing.T) []string {
	t.Helper()
	lines, err := l.Objects(l.place())
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// TestPurgeWaitsForNobody holds the lock as another process does: the image is left whole, and goes when that
// process has died.
func TestPurgeWaitsForNobody(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	id := l.inTrash(t, p, mapped())
	err := l.in(l.place(), func(other at) error {
		if err := other.lock(purgeLock, headerPrefix+id, "theirs"); err != nil {
			return err
		}
		err := p.Purge(t.Context(), id)
		if !fault.Is(err, fault.InUse) || !strings.Contains(err.Error(), "another process is at it: client.") {
			t.Errorf("held: got %v, want %v and who holds it", err, fault.InUse)
		}
		if _, err := p.Header(t.Context(), id); err != nil {
			t.Errorf("held: the header: got %v, want nil", err)
		}
		brief := advisory{names: purgeLock.names, lasts: time.Second}
		return other.writeAlways(headerPrefix+id, brief.ask("theirs", lockRenewed))
	})
	if err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { return p.Purge(t.Context(), id) == nil }, func() string { return "held by a dead process: not purged" })
}

// TestLockedLong holds that a lock outlasts its time while the call that it is for goes on, and is given
// back after that.
func TestLockedLong(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	id := create(t, p, "long", mapped())
	lock := advisory{names: []string{"rbd-csi.io/a", "rbd-csi.io/b"}, lasts: 3 * time.Second}
	lockers := func(name string) (clients []string) {
		err := l.in(l.place(), func(a at) error {
			info, err := a.ListLockers(headerPrefix+id, name)
			if err == nil {
				clients = info.Clients
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		return clients
	}
	err := l.in(l.place(), func(a at) error {
		return a.lockedLong(lock, id, func() error {
			for end := time.Now().Add(2 * lock.lasts); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				for _, name := range lock.names {
					if got := lockers(name); len(got) != 1 {
						t.Errorf("%s while the call goes on: got lockers %v, want one", name, got)
					}
				}
			}
			// Renewing does not bring a header back.
			return a.write(headerPrefix+id, func(op *writeOp) { op.remove() })
		})
	})
	if err != nil {
		t.Errorf("locked long: got %v, want nil", err)
	}
	if _, err := p.Header(t.Context(), id); !fault.Is(err, fault.NotFound) {
		t.Errorf("the header: got %v, want %v", err, fault.NotFound)
	}
}
