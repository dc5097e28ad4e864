package rbdtest

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// snapshotCases are about snapshots without clones.
func snapshotCases() []trialCase {
	return []trialCase{
		{"take and remove", testSnapshots},
		{"all layouts", testSnapshotLayouts},
		{"a name twice", func(t *trial) {
			d := t.disk("a", mapped())
			first := t.snap(d, "s")
			t.is("TakeSnapshot", t.pool.TakeSnapshot(t.Context(), d.id, "s"), fault.Exists)
			t.counts("after the second", d, 1)
			t.unsnap(d, first)
			if again := t.snap(d, "s"); again.ID <= first.ID {
				t.Errorf("taken anew: got ID %d, want one after %d", again.ID, first.ID)
			}
			t.ok(t.RemoveSnapshots(d.image))
			t.drop(d)
		}},
		{"odd names", func(t *trial) {
			d := t.disk("a", mapped())
			for _, name := range []string{"a b", "ä-名", "x%41", strings.Repeat("n", 95), `"q"`, "3"} {
				if s := t.snap(d, name); s.Name != name {
					t.Errorf("got %q, want %q", s.Name, name)
				}
			}
			t.ok(t.RemoveSnapshots(d.image))
			t.drop(d)
		}},
		{"no image", func(t *trial) {
			ctx, id := t.Context(), rbd.NewID()
			t.is("no header", t.pool.TakeSnapshot(ctx, id, "s"), fault.NotFound)
			t.ok(t.pool.RemoveSnapshot(ctx, id, 1))
			t.ok(t.pool.ReserveHeader(ctx, id, nil))
			t.is("a bare header", t.pool.TakeSnapshot(ctx, id, "s"), fault.NotFound)
			t.ok(t.pool.RemoveSnapshot(ctx, id, 1))
			t.ok(t.pool.RemoveHeader(ctx, id))
		}},
		{"in the trash", func(t *trial) {
			d := t.disk("a", mapped())
			t.trash(d.image, d.id)
			s := t.snap(d, "s")
			t.is("Purge", t.pool.Purge(t.Context(), d.id), fault.InUse)
			t.counts("in the trash", d, 1)
			t.unsnap(d, s)
			t.ok(t.pool.Purge(t.Context(), d.id))
		}},
		{"without a name", testNameless},
		{"while a client has it", func(t *trial) {
			d := t.disk("a", mapped())
			release, err := t.Hold(d.image)
			t.ok(err)
			s := t.snap(d, "s")
			t.unsnap(d, s)
			t.counts("removed", d, 0)
			release()
			t.drop(d)
		}},
		{"at once", testSnapshotsAtOnce},
		{"several of one moment", testTogether},
		{"not of one moment", testNotTogether},
	}
}

func testSnapshots(t *trial) {
	before, began := t.objects(), time.Now()
	d := t.disk("a", mapped())
	t.writes(d, 0, "before")
	first := t.snap(d, "first")
	t.writes(d, 0, "later!")
	t.ok(t.pool.Grow(t.Context(), d.id, 96*mebibyte))
	second := t.snap(d, "second")
	if all := t.snapshots(d); !slices.Equal(all, []rbd.Snapshot{first, second}) {
		t.Errorf("header: got %+v, want %+v and %+v", all, first, second)
	}
	if first.ID == 0 || second.ID <= first.ID {
		t.Errorf("IDs: got %d and %d, want the second larger", first.ID, second.ID)
	}
	if first.Bytes != 64*mebibyte || second.Bytes != 96*mebibyte {
		t.Errorf("sizes: got %d and %d, want those of their moments", first.Bytes, second.Bytes)
	}
	for _, s := range []rbd.Snapshot{first, second} {
		if s.Kind != rbd.UserSnapshot || s.Children != 0 {
			t.Errorf("got %+v, want an ordinary snapshot without clones", s)
		}
		if s.Time.Before(began.Add(-2*time.Second)) || time.Until(s.Time) > 2*time.Second {
			t.Errorf("time: got %v, want one since %v", s.Time, began)
		}
	}
	t.unsnap(d, first)
	t.unsnap(d, first)
	t.counts("first removed twice", d, 1)
	t.unsnap(d, rbd.Snapshot{ID: second.ID + 1000})
	t.counts("another removed", d, 1)
	t.unsnap(d, second)
	header, err := t.pool.Header(t.Context(), d.id)
	t.ok(err)
	if len(header.Snapshots) != 0 || !header.HasSnaps || header.Layout.Bytes != 96*mebibyte {
		t.Errorf("all removed: got %+v, want no snapshot, and that there were some", header)
	}
	t.reads(d, 0, "later!")
	t.drop(d)
	same(t.T, "left", t.objects(), before)
}

// testSnapshotLayouts also holds that nothing of a snapshot is left: an object map has a
// copy for each.
func testSnapshotLayouts(t *trial) {
	striped, apart := mapped(), mapped()
	striped.StripeUnit, striped.StripeCount = 64<<10, 4
	apart.DataPool = t.DataPool
	for _, one := range []struct {
		name   string
		layout rbd.Layout
	}{{"plain", plain()}, {"striped", striped}, {"data pool", apart}} {
		before := t.objects()
		d := t.disk("a", one.layout)
		t.writes(d, 5*mebibyte, "text")
		s := t.snap(d, "s")
		if s.Name != "s" || s.Bytes != one.layout.Bytes {
			t.Errorf("%s: got %+v, want s of %d bytes", one.name, s, one.layout.Bytes)
		}
		t.unsnap(d, s)
		t.drop(d)
		same(t.T, one.name+", left", t.objects(), before)
	}
}

// testSnapshotsAtOnce holds that one of several with a name wins, and that snapshots with
// names of their own all come about.
func testSnapshotsAtOnce(t *trial) {
	d := t.disk("a", mapped())
	var group sync.WaitGroup
	wins := atomic.Int64{}
	for _, name := range []string{"same", "same", "same", "b", "c"} {
		group.Go(func() {
			err := t.pool.TakeSnapshot(t.Context(), d.id, name)
			switch {
			case err == nil:
				wins.Add(1)
			case name != "same" || !fault.Is(err, fault.Exists):
				t.Errorf("TakeSnapshot of %s: got %v, want nil, or %v for a name taken", name, err, fault.Exists)
			}
		})
	}
	group.Wait()
	all := t.snapshots(d)
	if wins.Load() != 3 || len(all) != 3 {
		t.Errorf("got %d taken and snapshots %+v, want 3", wins.Load(), all)
	}
	for i := 1; i < len(all); i++ {
		if all[i].ID <= all[i-1].ID {
			t.Errorf("got %+v, want them in the order of their IDs", all)
		}
	}
	t.ok(t.RemoveSnapshots(d.image))
	t.drop(d)
}

func testTogether(t *trial) {
	ctx := t.Context()
	t.ok(t.pool.TakeSnapshots(ctx, nil))
	a, b, c := t.disk("a", mapped()), t.disk("b", mapped()), t.disk("c", mapped())
	t.ok(t.pool.TakeSnapshots(ctx, []rbd.SnapshotOf{{ID: c.id, Name: "g"}, {ID: a.id, Name: "g"}, {ID: b.id, Name: "h"}}))
	for d, name := range map[disk]string{a: "g", b: "h", c: "g"} {
		if all := t.snapshots(d); len(all) != 1 || all[0].Name != name || all[0].Kind != rbd.UserSnapshot {
			t.Errorf("%s: got %+v, want %s as an ordinary snapshot", d.image.Name, all, name)
		}
		t.writes(d, 0, "writable")
		t.ok(t.RemoveSnapshots(d.image))
	}
	t.drop(a, b, c)
}

func testNotTogether(t *trial) {
	whole, unlocked, kept := t.disk("a", mapped()), t.disk("b", plain()), t.disk("d", mapped())
	second := t.disk("c", mapped())
	s := t.snap(second, "taken")
	release, err := t.Hold(kept.image)
	t.ok(err)
	for _, one := range []struct {
		name  string
		other rbd.SnapshotOf
		kind  fault.Kind
	}{
		{"an image twice", rbd.SnapshotOf{ID: whole.id, Name: "h"}, fault.Invalid},
		{"its lock is kept", rbd.SnapshotOf{ID: kept.id, Name: "g"}, fault.InUse},
		{"without exclusive-lock", rbd.SnapshotOf{ID: unlocked.id, Name: "g"}, fault.Unsupported},
		{"no such image", rbd.SnapshotOf{ID: rbd.NewID(), Name: "g"}, fault.NotFound},
		{"name taken", rbd.SnapshotOf{ID: second.id, Name: "taken"}, fault.Exists},
	} {
		err := t.pool.TakeSnapshots(t.Context(), []rbd.SnapshotOf{{ID: whole.id, Name: "g"}, one.other})
		t.is(one.name, err, one.kind)
		if one.kind == fault.Unsupported {
			t.counts(one.name, whole, 0)
			t.counts(one.name, unlocked, 0)
		}
		t.ok(t.RemoveSnapshots(whole.image))
	}
	t.is("too many", t.pool.TakeSnapshots(t.Context(), make([]rbd.SnapshotOf, 1000)), fault.OutOfRange)
	t.counts("at the end", whole, 0)
	t.counts("at the end", kept, 0)
	release()
	t.unsnap(second, s)
	t.drop(whole, unlocked, kept, second)
}

// testNameless holds that librbd opens no image that has neither a name nor an entry in the trash:
// the half-made, and those between one and the other.
func testNameless(t *trial) {
	ctx, d := t.Context(), t.disk("a", mapped())
	s := t.snap(d, "s")
	t.ok(t.pool.RemoveName(ctx, d.image.Name, d.id)) // the directory is what counts
	t.ok(t.pool.Grow(ctx, d.id, 96*mebibyte))
	t.ok(t.pool.RemoveEntry(ctx, d.image.Name, d.id))
	t.is("Grow", t.pool.Grow(ctx, d.id, 128*mebibyte), fault.NotFound)
	_, err := t.pool.HoldsData(ctx, d.id)
	t.is("HoldsData", err, fault.NotFound)
	t.is("TakeSnapshot", t.pool.TakeSnapshot(ctx, d.id, "t"), fault.NotFound)
	t.is("TakeSnapshots", t.pool.TakeSnapshots(ctx, []rbd.SnapshotOf{{ID: d.id, Name: "t"}}), fault.NotFound)
	_, err = t.pool.Changed(ctx, d.id, rbd.Between{To: s.ID}, whole())
	t.is("Changed", err, fault.NotFound)
	t.is("RemoveSnapshot", t.pool.RemoveSnapshot(ctx, d.id, s.ID), fault.InUse)
	t.ok(t.pool.RemoveSnapshot(ctx, d.id, s.ID+1000))
	t.counts("without a name", d, 1)
	t.ok(t.pool.AddTrash(ctx, d.id, d.image.Name))
	t.unsnap(d, s)
	t.ok(t.pool.Purge(ctx, d.id))
}
