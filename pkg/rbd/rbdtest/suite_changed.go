package rbdtest

import (
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// changedCases are about what differs between two states of an image.
func changedCases() []trialCase {
	return []trialCase{
		{"with fast-diff", func(t *trial) { testChanged(t, mapped()) }},
		// Without it the data objects tell, and they know better than by whole objects.
		{"without fast-diff", func(t *trial) { testChanged(t, plain()) }},
		{"striped", testChangedStripes},
		{"grown", func(t *trial) {
			d := t.disk("a", mapped())
			s := t.snap(d, "s")
			t.ok(t.pool.Grow(t.Context(), d.id, 97*mebibyte))
			t.writes(d, 80*mebibyte, "text")
			t.writes(d, 96*mebibyte, "text")
			last := rbd.Extent{Offset: 96 * mebibyte, Bytes: mebibyte, Exists: true}
			t.changed("since", d, rbd.Between{From: s.ID}, whole(), append(there(20), last))
			t.changed("from the beginning to before", d, rbd.Between{To: s.ID}, whole(), nil)
			after := t.snap(d, "after")
			t.ok(t.pool.Grow(t.Context(), d.id, 128*mebibyte))
			t.changed("as large as it was then", d, rbd.Between{To: after.ID}, whole(), append(there(20), last))
			t.unsnap(d, s)
			t.unsnap(d, after)
			t.drop(d)
		}},
		{"of a clone", testChangedClone},
		{"nothing to compare", testChangedNothing},
		{"in the trash", func(t *trial) {
			d := t.disk("a", mapped())
			t.writes(d, 0, "text")
			s := t.snap(d, "s")
			t.trash(d.image, d.id)
			t.changed("from the beginning", d, rbd.Between{To: s.ID}, whole(), there(0))
			t.unsnap(d, s)
			t.ok(t.pool.Purge(t.Context(), d.id))
		}},
	}
}

func testChanged(t *trial, layout rbd.Layout) {
	d := t.disk("a", layout)
	t.changed("an empty image", d, rbd.Between{}, whole(), nil)
	t.writeObjects(d, 0, 2, 3)
	one := t.snap(d, "one")
	t.ok(t.Discard(d.image, 0, 4*mebibyte))
	t.writeObjects(d, 2, 5)
	two := t.snap(d, "two")
	t.writeObjects(d, 7)
	since := slices.Concat(gone(0), there(2, 5))
	for _, c := range []struct {
		name    string
		between rbd.Between
		piece   rbd.Extent
		want    []rbd.Extent
	}{
		{"one from the beginning", rbd.Between{To: one.ID}, whole(), there(0, 2, 3)},
		{"two from the beginning", rbd.Between{To: two.ID}, whole(), there(2, 3, 5)},
		{"the present from the beginning", rbd.Between{}, whole(), there(2, 3, 5, 7)},
		{"one to two", rbd.Between{From: one.ID, To: two.ID}, whole(), since},
		{"two to the present", rbd.Between{From: two.ID}, whole(), there(7)},
		{"one to the present", rbd.Between{From: one.ID}, whole(), append(since, there(7)...)},
		{"one to one", rbd.Between{From: one.ID, To: one.ID}, whole(), nil},
		{"a piece of whole objects", rbd.Between{From: one.ID, To: two.ID}, rbd.Extent{Offset: 8 * mebibyte, Bytes: 8 * mebibyte}, there(2)},
		{"a piece that begins and ends within objects", rbd.Between{From: one.ID, To: two.ID}, rbd.Extent{Offset: 10 * mebibyte, Bytes: 12 * mebibyte}, since},
		{"a piece of one object", rbd.Between{To: one.ID}, rbd.Extent{Offset: 9 * mebibyte, Bytes: 512}, there(2)},
		{"the last piece", rbd.Between{}, rbd.Extent{Offset: 28 * mebibyte, Bytes: 1 << 40}, there(7)},
		{"a piece beyond the end", rbd.Between{}, rbd.Extent{Offset: 64 * mebibyte, Bytes: mebibyte}, nil},
		{"no piece", rbd.Between{}, rbd.Extent{Offset: 8 * mebibyte}, nil},
	} {
		t.changed(c.name, d, c.between, c.piece, c.want)
	}
	t.unsnap(d, one)
	t.changed("two to the present, one removed", d, rbd.Between{From: two.ID}, whole(), there(7))
	t.unsnap(d, two)
	t.drop(d)
}

// testChangedStripes only holds that what was written is told and that nothing is told
// that lies in other data objects: four of them take turns every 64 KiB.
func testChangedStripes(t *trial) {
	layout := mapped()
	layout.StripeUnit, layout.StripeCount = 64<<10, 4
	d := t.disk("a", layout)
	s := t.snap(d, "s")
	t.writes(d, 16*mebibyte+64<<10, "text") // object 5
	for _, between := range []rbd.Between{{}, {From: s.ID}} {
		got, err := t.pool.Changed(t.Context(), d.id, between, whole())
		t.ok(err)
		var bytes int64
		for _, one := range got {
			bytes += one.Bytes
			if unit := one.Offset / layout.StripeUnit; !one.Exists || unit%4 != 1 || (one.Offset+one.Bytes-1)/layout.StripeUnit != unit {
				t.Errorf("%+v: got %+v, want pieces of the sixth data object alone", between, one)
			}
		}
		written := rbd.Extent{Offset: 16*mebibyte + 64<<10, Bytes: 4, Exists: true}
		if !slices.Equal(clip(got, written), []rbd.Extent{written}) || bytes > layout.ObjectBytes {
			t.Errorf("%+v: got %+v, want %+v among it", between, got, written)
		}
	}
	t.unsnap(d, s)
	t.drop(d)
}

// testChangedClone holds that the beginning of a clone is before its parent.
func testChangedClone(t *trial) {
	t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
		layout := mapped()
		layout.Bytes = 96 * mebibyte
		copied := t.clone("b", source, s, layout)
		t.changed("what the parent has", copied, rbd.Between{}, whole(), there(0, 1))
		t.writeObjects(copied, 5, 20)
		own := t.snap(copied, "m")
		t.writeObjects(copied, 1)
		t.changed("a snapshot from the beginning", copied, rbd.Between{To: own.ID}, whole(), there(0, 1, 5, 20))
		t.changed("since the snapshot", copied, rbd.Between{From: own.ID}, whole(), there(1))
		t.changed("the present", copied, rbd.Between{}, whole(), there(0, 1, 5, 20))
		t.unsnap(copied, own)
		t.ok(t.pool.Flatten(t.Context(), copied.id))
		t.changed("flattened", copied, rbd.Between{}, whole(), there(0, 1, 5, 20))
		t.drop(copied)
	})
}

func testChangedNothing(t *trial) {
	d := t.disk("a", mapped())
	one, two := t.snap(d, "one"), t.snap(d, "two")
	for _, c := range []struct {
		name    string
		id      string
		between rbd.Between
		kind    fault.Kind
	}{
		{"no image", rbd.NewID(), rbd.Between{}, fault.NotFound},
		{"no first snapshot", d.id, rbd.Between{From: two.ID + 1000}, fault.NotFound},
		{"no second snapshot", d.id, rbd.Between{From: one.ID, To: two.ID + 1000}, fault.NotFound},
		{"the wrong order", d.id, rbd.Between{From: two.ID, To: one.ID}, fault.Invalid},
	} {
		got, err := t.pool.Changed(t.Context(), c.id, c.between, whole())
		if len(got) != 0 || !fault.Is(err, c.kind) {
			t.Errorf("%s: got %+v, %v; want %v", c.name, got, err, c.kind)
		}
	}
	t.unsnap(d, one)
	t.unsnap(d, two)
	t.drop(d)
}

// writeObjects writes to the beginnings of data objects of 4 MiB.
func (t *trial) writeObjects(d disk, numbers ...int64) {
	t.Helper()
	for _, number := range numbers {
		t.writes(d, 4*mebibyte*number, "text")
	}
}

// whole is a piece that holds every image here.
func whole() rbd.Extent { return rbd.Extent{Bytes: 1 << 40} }

// there returns data objects of 4 MiB as Changed tells of them, and gone those that were discarded.
func there(numbers ...int64) []rbd.Extent { return wholeObjects(true, numbers) }

func gone(numbers ...int64) []rbd.Extent { return wholeObjects(false, numbers) }

func wholeObjects(exists bool, numbers []int64) (extents []rbd.Extent) {
	for _, number := range numbers {
		extents = append(extents, rbd.Extent{Offset: 4 * mebibyte * number, Bytes: 4 * mebibyte, Exists: exists})
	}
	return extents
}

// changed reports when Changed does not tell what of these data objects lies in the piece. Without
// fast-diff it may tell less of each, but not leave out the four bytes at its beginning.
func (t *trial) changed(what string, d disk, between rbd.Between, piece rbd.Extent, want []rbd.Extent) {
	t.Helper()
	header, err := t.pool.Header(t.Context(), d.id)
	t.ok(err)
	got, err := t.pool.Changed(t.Context(), d.id, between, piece)
	t.ok(err)
	for i := 1; i < len(got); i++ {
		if got[i].Offset < got[i-1].Offset+got[i-1].Bytes {
			t.Errorf("%s: got %+v, want them in order and apart", what, got)
		}
	}
	exact := join(clip(want, piece))
	if header.Layout.Features.Has(rbd.FastDiff) {
		if got := join(slices.Clone(got)); !slices.Equal(got, exact) {
			t.Errorf("%s: got %+v, want %+v", what, got, exact)
		}
		return
	}
	for _, one := range got {
		if !slices.ContainsFunc(exact, func(w rbd.Extent) bool { return holds(w, one) }) {
			t.Errorf("%s: got %+v, want nothing but %+v", what, one, exact)
		}
	}
	for _, object := range want {
		object.Bytes = 4
		if len(clip([]rbd.Extent{object}, piece)) > 0 && !slices.ContainsFunc(got, func(g rbd.Extent) bool { return holds(g, object) }) {
			t.Errorf("%s: got %+v, want %+v in it", what, got, object)
		}
	}
}

// holds reports whether one extent holds another of the same kind.
func holds(outer, inner rbd.Extent) bool {
	return outer.Exists == inner.Exists && inner.Offset >= outer.Offset && inner.Offset+inner.Bytes <= outer.Offset+outer.Bytes
}
