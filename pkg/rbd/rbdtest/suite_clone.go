package rbdtest

import (
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// cloneCases are about clones made step by step, and what they hold of their parent.
func cloneCases() []trialCase {
	return []trialCase{
		{"reads its parent", testClone},
		{"steps repeated", testCloneSteps},
		{"nothing to make it of", testCloneOfNothing},
		{"larger", func(t *trial) {
			t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
				layout := mapped()
				layout.Bytes = 96 * mebibyte
				copied := t.clone("b", source, s, layout)
				t.reads(copied, 5*mebibyte, "middle")
				t.reads(copied, 64*mebibyte-2, "\x00\x00\x00\x00")
				t.ok(t.pool.Grow(t.Context(), copied.id, 128*mebibyte))
				t.reads(copied, 64*mebibyte, "\x00\x00")
				t.writes(copied, 64*mebibyte-2, "edge")
				t.reads(copied, 64*mebibyte-2, "edge")
				t.drop(copied)
			})
		}},
		// The overlap is never larger than the clone was; what the clone grows by is empty.
		{"smaller, then grown", func(t *trial) {
			t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
				layout := mapped()
				layout.Bytes = 4 * mebibyte
				copied, parent := t.clone("b", source, s, layout), t.parent(source, s)
				parent.Overlap = layout.Bytes
				t.parented(copied.id, parent)
				t.ok(t.pool.Grow(t.Context(), copied.id, 64*mebibyte))
				t.ok(t.pool.AttachParent(t.Context(), copied.id, t.parent(source, s)))
				t.parented(copied.id, parent)
				t.reads(copied, 0, "begin")
				t.reads(copied, 5*mebibyte, "\x00\x00")
				t.changed("from the beginning", copied, rbd.Between{}, whole(), there(0))
				t.ok(t.pool.Flatten(t.Context(), copied.id))
				t.changed("flattened", copied, rbd.Between{}, whole(), there(0))
				t.reads(copied, 0, "begin")
				t.drop(copied)
			})
		}},
		{"another layout", func(t *trial) {
			small, striped, apart := mapped(), mapped(), mapped()
			small.ObjectBytes = mebibyte
			striped.StripeUnit, striped.StripeCount = 64<<10, 4
			apart.DataPool = t.DataPool
			for _, layout := range []rbd.Layout{small, striped, apart, plain()} {
				t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) { t.copyOf(t, source, s, layout) })
				t.cloned(layout, func(t *trial, source disk, s rbd.Snapshot) { t.copyOf(t, source, s, mapped()) })
			}
		}},
		{"in another namespace", func(t *trial) {
			elsewhere := t.Fixture.Namespace
			if t.at == elsewhere {
				elsewhere = t.Fixture.Pool
			}
			there := newTrial(t.T, t.Fixture, elsewhere)
			t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) { t.copyOf(there, source, s, mapped()) })
		}},
		{"in another pool", func(t *trial) {
			if t.OtherPool.Pool == "" {
				t.Skip("the fixture has no other pool")
			}
			there := newTrial(t.T, t.Fixture, t.OtherPool)
			t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) { t.copyOf(there, source, s, mapped()) })
		}},
		{"of an image in the trash", func(t *trial) {
			t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
				t.trash(source.image, source.id)
				t.copyOf(t, source, s, mapped())
				t.is("Purge of the source", t.pool.Purge(t.Context(), source.id), fault.InUse)
			})
		}},
		{"that is empty", func(t *trial) {
			source := t.disk("a", mapped())
			s := t.snap(source, "s")
			t.writes(source, 0, "later")
			copied := t.clone("b", source, s, mapped())
			t.holds(copied.id, false)
			t.drop(copied)
			t.unsnap(source, s)
			t.drop(source)
		}},
		{"half made", testHalfClones},
		{"forgotten", testRemoveChild},
		{"parted from its parent", testDetachParent},
		{"its parent is gone", testOrphan},
		{"what librbd made", func(t *trial) {
			source := t.disk("a", mapped())
			t.writes(source, 0, "data")
			image := t.image("b")
			id, err := t.Clone(source.image, image.Name)
			t.ok(err)
			s := t.snapshots(source)[0]
			t.children(source, s, t.child(id))
			t.parented(id, t.parent(source, s))
			t.ok(t.pool.AttachParent(t.Context(), id, t.parent(source, s)))
			t.ok(t.pool.AddChild(t.Context(), source.id, s.ID, t.child(id)))
			t.remove(image, id)
			t.children(source, s)
			t.unsnap(source, s)
			t.drop(source)
		}},
	}
}

// cloned runs a test with a snapshot of an image that has data, and sees that nothing is left.
// The image may be in the trash afterwards; its clones must be gone.
func (t *trial) cloned(layout rbd.Layout, test func(t *trial, source disk, s rbd.Snapshot)) {
	t.Helper()
	before := t.objects()
	source := t.disk("a", layout)
	t.writes(source, 0, "begin")
	t.writes(source, 5*mebibyte, "middle")
	s := t.snap(source, "s")
	t.writes(source, 5*mebibyte, "after!")
	t.writes(source, 20*mebibyte, "after!")
	test(t, source, s)
	t.children(source, s)
	t.unsnap(source, s)
	t.counts("at the end", source, 0)
	t.drop(source)
	same(t.T, "left", t.objects(), before)
}

// copyOf makes a clone in another trial's place, tries it and removes it.
func (t *trial) copyOf(there *trial, source disk, s rbd.Snapshot, layout rbd.Layout) {
	t.Helper()
	before := there.objects()
	copied := t.cloneIn(there, "b", source, s, layout)
	there.parented(copied.id, t.parent(source, s))
	t.children(source, s, there.child(copied.id))
	there.holds(copied.id, true)
	there.reads(copied, 0, "begin\x00")
	there.reads(copied, 5*mebibyte, "middle\x00")
	there.reads(copied, 20*mebibyte, "\x00\x00")
	there.writes(copied, 5*mebibyte+1, "UDD")
	there.reads(copied, 5*mebibyte-1, "\x00mUDDle")
	there.drop(copied)
	same(t.T, "left of the clone", there.objects(), before)
}

// parented reports when an image does not have this parent.
func (t *trial) parented(id string, want rbd.Parent) {
	t.Helper()
	header, err := t.pool.Header(t.Context(), id)
	if !header.HasParent || header.Parent != want || err != nil {
		t.Errorf("header: got parent %v %+v, %v; want %+v", header.HasParent, header.Parent, err, want)
	}
}

func testClone(t *trial) {
	t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
		one, two := t.clone("b", source, s, mapped()), t.clone("c", source, s, mapped())
		t.children(source, s, t.child(one.id), t.child(two.id))
		t.writes(one, 5*mebibyte, "one")
		t.writes(source, 0, "again")
		t.reads(one, 5*mebibyte, "onedle")
		t.reads(two, 5*mebibyte, "middle")
		t.reads(two, 0, "begin")
		t.reads(source, 5*mebibyte, "after!")
		t.ok(t.Discard(one.image, 4*mebibyte, 4*mebibyte))
		t.reads(one, 5*mebibyte, "\x00\x00\x00")
		t.reads(one, 0, "begin")
		t.drop(one)
		t.children(source, s, t.child(two.id))
		t.drop(two)
	})
}

// testCloneSteps holds that each step can be taken by one who does not know whether it was taken.
func testCloneSteps(t *trial) {
	t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
		ctx, copied, parent := t.Context(), t.clone("b", source, s, mapped()), t.parent(source, s)
		t.ok(t.pool.AttachParent(ctx, copied.id, parent))
		t.ok(t.pool.AddChild(ctx, source.id, s.ID, t.child(copied.id)))
		t.children(source, s, t.child(copied.id))
		other := parent
		other.Snapshot++
		t.is("another snapshot", t.pool.AttachParent(ctx, copied.id, other), fault.Exists)
		other = parent
		other.ID = rbd.NewID()
		t.is("another image", t.pool.AttachParent(ctx, copied.id, other), fault.Exists)
		other = parent
		other.Overlap -= mebibyte // how much shows through does not tell one parent from another
		t.ok(t.pool.AttachParent(ctx, copied.id, other))
		t.parented(copied.id, parent)
		t.reads(copied, 5*mebibyte, "middle")
		t.drop(copied)
	})
}

func testCloneOfNothing(t *trial) {
	t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
		ctx, id := t.Context(), rbd.NewID()
		t.is("AttachParent without a header", t.pool.AttachParent(ctx, id, t.parent(source, s)), fault.NotFound)
		_, err := t.pool.Header(ctx, id)
		t.is("Header", err, fault.NotFound)
		t.ok(t.pool.ReserveHeader(ctx, id, nil))
		t.is("AttachParent to a bare header", t.pool.AttachParent(ctx, id, t.parent(source, s)), fault.NotFound)
		t.ok(t.pool.RemoveHeader(ctx, id))

		t.is("AddChild, no such snapshot", t.pool.AddChild(ctx, source.id, s.ID+1, t.child(id)), fault.NotFound)
		t.is("AddChild, no such image", t.pool.AddChild(ctx, rbd.NewID(), s.ID, t.child(id)), fault.NotFound)
		t.children(source, rbd.Snapshot{ID: s.ID + 1})
		t.children(source, s)
		children, err := t.pool.Children(ctx, rbd.NewID(), s.ID)
		if len(children) != 0 || err != nil {
			t.Errorf("Children, no such image: got %+v, %v; want none", children, err)
		}
	})
}

// testHalfClones removes clones whose making was stopped, also when what they were to be made of has
// gone meanwhile.
func testHalfClones(t *trial) {
	for _, one := range []struct {
		name            string
		register, empty bool // the parent knows it; no object map
		parentGone      int  // 1 the snapshot, 2 the image
	}{
		{"known to no parent", false, false, 0},
		{"known to no parent, no object map", false, true, 0},
		{"known, no object map", true, true, 0},
		{"its snapshot gone", false, false, 1},
		{"its snapshot gone, no object map", false, true, 1},
		{"its parent gone", false, false, 2},
		{"its parent gone, no object map", false, true, 2},
	} {
		before, ctx := t.objects(), t.Context()
		source, id := t.disk("a", mapped()), rbd.NewID()
		t.writes(source, 0, "data")
		s := t.snap(source, "s")
		t.ok(t.pool.CreateHeader(ctx, id, mapped(), nil))
		t.ok(t.pool.AttachParent(ctx, id, t.parent(source, s)))
		if one.register {
			t.ok(t.pool.AddChild(ctx, source.id, s.ID, t.child(id)))
		}
		if !one.empty {
			t.ok(t.pool.EnsureObjectMap(ctx, id, mapped()))
		}
		gone := []func(){func() { t.unsnap(source, s) }, func() { t.drop(source) }}
		for _, remove := range gone[:one.parentGone] {
			remove()
		}
		t.ok(t.pool.AddTrash(ctx, id, "half"))
		if err := t.pool.Purge(ctx, id); err != nil {
			t.Errorf("%s: Purge: got %v, want nil", one.name, err)
		}
		if one.register {
			t.children(source, s)
		}
		for _, remove := range gone[one.parentGone:] {
			remove()
		}
		same(t.T, one.name+", left", t.objects(), before)
	}
}

// testRemoveChild holds that a snapshot forgets a clone that has no header, and does no more than that:
// in the trash it stays.
func testRemoveChild(t *trial) {
	ctx, source := t.Context(), t.disk("a", mapped())
	s := t.snap(source, "s")
	lost, other := t.child(rbd.NewID()), t.child(rbd.NewID())
	t.ok(t.pool.AddChild(ctx, source.id, s.ID, lost))
	t.ok(t.pool.AddChild(ctx, source.id, s.ID, other))
	t.unsnap(source, s)
	for range 2 {
		t.ok(t.pool.RemoveChild(ctx, source.id, s.ID, lost))
		t.children(source, s, other)
	}
	t.ok(t.pool.RemoveChild(ctx, source.id, s.ID, other))
	t.children(source, s)
	if all := t.snapshots(source); len(all) != 1 || all[0].Kind != rbd.TrashedSnapshot {
		t.Errorf("without a clone: got %+v, want it in the trash", all)
	}
	t.unsnap(source, s)
	t.counts("removed again", source, 0)
	t.ok(t.pool.RemoveChild(ctx, source.id, s.ID, lost))
	t.drop(source)
	t.ok(t.pool.RemoveChild(ctx, source.id, s.ID, lost))
}

// testDetachParent parts clones that have what they need, whether their parent is there or not.
func testDetachParent(t *trial) {
	for _, gone := range []string{"", "snapshot", "image"} {
		ctx, source := t.Context(), t.disk("a", mapped())
		t.writes(source, 5*mebibyte, "parent's")
		s := t.snap(source, "s")
		copied := t.clone("b", source, s, mapped())
		t.writes(copied, 0, "own")
		parent, other := t.parent(source, s), t.parent(source, s)
		other.Snapshot++
		t.is("DetachParent of another", t.pool.DetachParent(ctx, copied.id, other), fault.Exists)
		t.parented(copied.id, parent)
		t.ok(t.pool.RemoveChild(ctx, source.id, s.ID, t.child(copied.id)))
		if gone != "" {
			t.unsnap(source, s)
		}
		if gone == "image" {
			t.drop(source)
		}
		for range 2 {
			t.ok(t.pool.DetachParent(ctx, copied.id, parent))
		}
		if header, err := t.pool.Header(ctx, copied.id); header.HasParent || err != nil {
			t.Errorf("header: got parent %+v, %v; want none", header.Parent, err)
		}
		t.reads(copied, 0, "own")
		t.reads(copied, 5*mebibyte, "\x00\x00")
		t.ok(t.pool.Flatten(ctx, copied.id))
		t.drop(copied)
		t.is("DetachParent, no such image", t.pool.DetachParent(ctx, copied.id, parent), fault.NotFound)
		if gone == "" {
			t.unsnap(source, s)
		}
		if gone != "image" {
			t.drop(source)
		}
	}
}

// testOrphan holds that a clone without its parent is not said to be missing: who is told so would
// forget it.
func testOrphan(t *trial) {
	for _, gone := range []string{"image", "snapshot"} {
		ctx, source, copied := t.Context(), t.disk("a", mapped()), t.disk("b", mapped())
		s := t.snap(source, "s")
		t.ok(t.pool.AttachParent(ctx, copied.id, t.parent(source, s)))
		t.unsnap(source, s)
		if gone == "image" {
			t.drop(source)
		}
		for name, call := range map[string]func() error{
			"Grow":           func() error { return t.pool.Grow(ctx, copied.id, 96*mebibyte) },
			"HoldsData":      func() error { _, err := t.pool.HoldsData(ctx, copied.id); return err },
			"TakeSnapshot":   func() error { return t.pool.TakeSnapshot(ctx, copied.id, "t") },
			"TakeSnapshots":  func() error { return t.pool.TakeSnapshots(ctx, []rbd.SnapshotOf{{ID: copied.id, Name: "t"}}) },
			"RemoveSnapshot": func() error { return t.pool.RemoveSnapshot(ctx, copied.id, 1) },
			"Flatten":        func() error { return t.pool.Flatten(ctx, copied.id) },
			"Changed": func() error {
				_, err := t.pool.Changed(ctx, copied.id, rbd.Between{}, whole())
				return err
			},
		} {
			t.is(name+", its parent's "+gone+" gone", call(), fault.DataLoss)
		}
		t.drop(copied)
		if gone == "snapshot" {
			t.drop(source)
		}
	}
}
