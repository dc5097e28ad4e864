package rbdtest

import (
	"sync"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// mapCases are about rbd_object_map.ID.
func mapCases() []trialCase {
	return []trialCase{
		{"ensure and remove", func(t *trial) {
			ctx, id := t.Context(), rbd.NewID()
			before := t.objects()
			t.ok(t.pool.RemoveObjectMap(ctx, id))
			t.ok(t.pool.EnsureObjectMap(ctx, id, mapped()))
			t.covers(id, 16)
			t.ok(t.pool.EnsureObjectMap(ctx, id, mapped()))
			t.covers(id, 16)
			t.ok(t.pool.RemoveObjectMap(ctx, id))
			same(t.T, "after removal", t.objects(), before)
		}},
		// A process that repeats an old request must not cut the map of an image
		// that another one has grown since.
		{"a map never shrinks", func(t *trial) {
			image, ctx := t.image("a"), t.Context()
			id := t.make(image, mapped(), nil)
			t.ok(t.pool.Grow(ctx, id, 128*mebibyte))
			t.covers(id, 32)
			t.ok(t.pool.EnsureObjectMap(ctx, id, mapped()))
			t.covers(id, 32)
			t.remove(image, id)
		}},
		{"stripes", func(t *trial) {
			id, layout := rbd.NewID(), mapped()
			layout.Bytes, layout.StripeUnit, layout.StripeCount = 33*mebibyte, mebibyte, 4
			t.ok(t.pool.EnsureObjectMap(t.Context(), id, layout))
			t.covers(id, 9)
			t.ok(t.pool.RemoveObjectMap(t.Context(), id))
		}},
		{"states are kept", func(t *trial) {
			image := t.image("a")
			id := t.make(image, mapped(), nil)
			t.ok(t.Write(image))
			t.ok(t.pool.EnsureObjectMap(t.Context(), id, mapped()))
			t.holds(id, true)
			t.remove(image, id)
		}},
	}
}

// imageCases are about what needs the whole image.
func imageCases() []trialCase {
	return []trialCase{
		{"grow", func(t *trial) {
			image, ctx := t.image("a"), t.Context()
			id := t.make(image, mapped(), nil)
			for _, step := range []struct{ ask, want int64 }{
				{64 * mebibyte, 64 * mebibyte},
				{100 * mebibyte, 100 * mebibyte},
				{1, 100 * mebibyte},
				{100*mebibyte + 512, 100*mebibyte + 512},
			} {
				t.ok(t.pool.Grow(ctx, id, step.ask))
				t.size(id, step.want)
			}
			t.covers(id, 26)
			t.remove(image, id)
		}},
		{"growing never shrinks", func(t *trial) {
			image := t.image("a")
			id := t.make(image, mapped(), nil)
			var group sync.WaitGroup
			for _, mebibytes := range []int64{80, 160, 120, 100} {
				group.Go(func() {
					if err := t.pool.Grow(t.Context(), id, mebibytes*mebibyte); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			t.size(id, 160*mebibyte)
			t.covers(id, 40)
			t.remove(image, id)
		}},
		{"no image", func(t *trial) {
			ctx, id := t.Context(), rbd.NewID()
			for range 2 {
				t.is("Grow", t.pool.Grow(ctx, id, mebibyte), fault.NotFound)
				_, err := t.pool.HoldsData(ctx, id)
				t.is("HoldsData", err, fault.NotFound)
				// Once more with a bare header, which is no image either.
				if _, err := t.pool.Header(ctx, id); err != nil {
					t.ok(t.pool.ReserveHeader(ctx, id, nil))
				}
			}
			t.ok(t.pool.RemoveHeader(ctx, id))
		}},
		{"data with an object map", func(t *trial) { testHoldsData(t, mapped()) }},
		{"data without an object map", func(t *trial) { testHoldsData(t, plain()) }},
		{"data in a data pool", func(t *trial) {
			layout := mapped()
			layout.DataPool = t.DataPool
			testHoldsData(t, layout)
		}},
		{"an image like any other", testWholeLife},
	}
}

func testHoldsData(t *trial, layout rbd.Layout) {
	image, copied := t.image("a"), t.image("b")
	id := t.make(image, layout, nil)
	t.holds(id, false)
	emptyClone, err := t.Clone(image, copied.Name)
	t.ok(err)
	t.holds(emptyClone, false)
	t.remove(copied, emptyClone)

	t.ok(t.Write(image))
	t.holds(id, true)
	clone, err := t.Clone(image, copied.Name)
	t.ok(err)
	t.holds(clone, true)
	t.remove(copied, clone)
	t.ok(t.RemoveSnapshots(image))
	t.remove(image, id)
}

// testWholeLife holds that an image made step by step takes everything that one
// made by `rbd create` takes.
func testWholeLife(t *trial) {
	image, copied, ctx := t.image("a"), t.image("b"), t.Context()
	before := t.objects()
	id := t.make(image, mapped(), map[string]string{rbd.MetaPrefix + "mark": "m"})
	same(t.T, "made", t.objects(), append(before,
		"rbd_id."+image.Name, "rbd_directory "+image.Name+" "+id, "rbd_header."+id, "rbd_object_map."+id))
	t.ok(t.Write(image))
	t.ok(t.Snapshot(image, "s"))
	t.ok(t.pool.Grow(ctx, id, 128*mebibyte))
	clone, err := t.Clone(image, copied.Name)
	t.ok(err)
	t.ok(t.pool.Grow(ctx, clone, 256*mebibyte))
	t.ok(t.Write(copied))
	t.remove(copied, clone)
	t.ok(t.RemoveSnapshots(image))
	t.remove(image, id)
	same(t.T, "left", t.objects(), before)
}

// covers reports when an object map does not cover so many objects.
func (t *trial) covers(id string, want int64) {
	t.Helper()
	got, err := t.MapObjects(t.at, id)
	if got != want || err != nil {
		t.Errorf("object map: got %d objects, %v; want %d", got, err, want)
	}
}

// size reports when an image is not so large.
func (t *trial) size(id string, want int64) {
	t.Helper()
	header, err := t.pool.Header(t.Context(), id)
	if header.Layout.Bytes != want || err != nil {
		t.Errorf("size: got %d, %v; want %d", header.Layout.Bytes, err, want)
	}
}

// holds reports when HoldsData does not say so.
func (t *trial) holds(id string, want bool) {
	t.Helper()
	got, err := t.pool.HoldsData(t.Context(), id)
	if got != want || err != nil {
		t.Errorf("HoldsData: got %v, %v; want %v", got, err, want)
	}
}
