package rbdtest

import (
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// headerCases are about rbd_header.ID as a whole.
func headerCases() []trialCase {
	return []trialCase{
		{"layouts are read back", testLayouts},
		{"creating is exclusive", func(t *trial) {
			ctx, id := t.Context(), rbd.NewID()
			first := map[string]string{rbd.MetaPrefix + "mark": "first"}
			t.ok(t.pool.CreateHeader(ctx, id, plain(), first))
			t.is("CreateHeader", t.pool.CreateHeader(ctx, id, mapped(), nil), fault.Exists)
			t.is("ReserveHeader", t.pool.ReserveHeader(ctx, id, nil), fault.Exists)
			t.header(id, rbd.Header{ID: id, Whole: true, Layout: plain(), DataPoolID: -1, Meta: first})
			t.ok(t.pool.RemoveHeader(ctx, id))
		}},
		{"a reserved header stays bare", func(t *trial) {
			ctx, id := t.Context(), rbd.NewID()
			meta := map[string]string{rbd.MetaPrefix + "mark": "condemned"}
			t.ok(t.pool.ReserveHeader(ctx, id, meta))
			t.is("CreateHeader", t.pool.CreateHeader(ctx, id, plain(), nil), fault.Exists)
			t.is("ReserveHeader", t.pool.ReserveHeader(ctx, id, nil), fault.Exists)
			t.header(id, rbd.Header{ID: id, DataPoolID: -1, Meta: meta})
			t.ok(t.pool.RemoveHeader(ctx, id))
		}},
		{"removing", func(t *trial) {
			ctx, id := t.Context(), rbd.NewID()
			_, err := t.pool.Header(ctx, id)
			t.is("Header before", err, fault.NotFound)
			t.ok(t.pool.RemoveHeader(ctx, id))
			t.ok(t.pool.CreateHeader(ctx, id, plain(), nil))
			t.ok(t.pool.RemoveHeader(ctx, id))
			_, err = t.pool.Header(ctx, id)
			t.is("Header after", err, fault.NotFound)
		}},
		{"unfit data pools", func(t *trial) {
			ctx, id, layout := t.Context(), rbd.NewID(), plain()
			layout.DataPool = t.BadDataPool
			t.is("without overwrites", t.pool.CreateHeader(ctx, id, layout, nil), fault.Unsupported)
			t.is("again", t.pool.CreateHeader(ctx, id, layout, nil), fault.Unsupported)
			layout.DataPool = "no-such-pool"
			t.is("missing", t.pool.CreateHeader(ctx, id, layout, nil), fault.NotFound)
			_, err := t.pool.Header(ctx, id)
			t.is("Header", err, fault.NotFound)
		}},
		{"what librbd made", func(t *trial) {
			image := t.image("a")
			id, err := t.Create(image, mapped())
			t.ok(err)
			t.header(id, rbd.Header{ID: id, Whole: true, Layout: mapped(), DataPoolID: -1})
			t.ok(t.Snapshot(image, "s"))
			t.header(id, rbd.Header{ID: id, Whole: true, Layout: mapped(), DataPoolID: -1, HasSnaps: true})
			t.ok(t.RemoveSnapshots(image))
			t.header(id, rbd.Header{ID: id, Whole: true, Layout: mapped(), DataPoolID: -1, HasSnaps: true})
			t.remove(image, id)
		}},
	}
}

// testLayouts also holds the rule which bits and stripes an adapter derives.
func testLayouts(t *trial) {
	striped := mapped()
	striped.StripeUnit, striped.StripeCount = 64<<10, 4
	stripedRead := striped
	stripedRead.Features |= rbd.StripingV2
	usual := plain()
	usual.StripeUnit, usual.StripeCount = usual.ObjectBytes, 1
	apart := mapped()
	apart.DataPool = t.DataPool
	apartRead := mapped()
	apartRead.Features |= rbd.DataPool
	own := plain()
	own.DataPool = t.at.Pool
	odd := rbd.Layout{Bytes: 12345, ObjectBytes: 1 << 12, Features: rbd.Layering | rbd.ExclusiveLock}
	vast := plain()
	vast.Bytes = rbd.MostBytes(vast)
	for _, one := range []struct {
		name        string
		layout      rbd.Layout
		read        rbd.Layout
		hasDataPool bool
	}{
		{"plain", plain(), plain(), false},
		{"object map", mapped(), mapped(), false},
		{"striped", striped, stripedRead, false},
		{"striped as usual", usual, plain(), false},
		{"data pool", apart, apartRead, true},
		{"its own pool for data", own, plain(), false},
		{"odd size", odd, odd, false},
		{"vast", vast, vast, false},
	} {
		id := rbd.NewID()
		t.ok(t.pool.CreateHeader(t.Context(), id, one.layout, map[string]string{rbd.MetaPrefix + "k": one.name}))
		got, err := t.pool.Header(t.Context(), id)
		t.ok(err)
		if got.Layout != one.read || !got.Whole || got.Meta[rbd.MetaPrefix+"k"] != one.name || got.HasParent || got.HasSnaps {
			t.Errorf("%s: got %+v, want layout %+v", one.name, got, one.read)
		}
		if (got.DataPoolID >= 0) != one.hasDataPool || got.DataPoolID == t.pool.Where().PoolID {
			t.Errorf("%s: got data pool %d, want one: %v", one.name, got.DataPoolID, one.hasDataPool)
		}
		t.ok(t.pool.RemoveHeader(t.Context(), id))
	}
}

// metaCases are about metadata.
func metaCases() []trialCase {
	return []trialCase{
		{"compare and change", testChanges},
		{"no header no change", func(t *trial) {
			id, set := rbd.NewID(), rbd.Change{Set: map[string]string{rbd.MetaPrefix + "k": "v"}}
			t.is("ChangeMeta", t.pool.ChangeMeta(t.Context(), id, set), fault.NotFound)
			_, err := t.pool.Header(t.Context(), id)
			t.is("Header", err, fault.NotFound)
		}},
		{"only our keys are shown", func(t *trial) {
			image, key := t.image("a"), rbd.MetaPrefix+"k"
			id, err := t.Create(image, plain())
			t.ok(err)
			t.ok(t.SetMeta(image, "conf_rbd_cache", "false"))
			t.ok(t.SetMeta(image, key, "by hand"))
			t.header(id, rbd.Header{ID: id, Whole: true, Layout: plain(), DataPoolID: -1, Meta: map[string]string{key: "by hand"}})
			t.ok(t.pool.ChangeMeta(t.Context(), id, rbd.Change{Expect: map[string]string{key: "by hand"}, Remove: []string{key}}))
			t.header(id, rbd.Header{ID: id, Whole: true, Layout: plain(), DataPoolID: -1})
			t.remove(image, id)
		}},
		// Surprising at first: metadata is copied from the source as it is now, so
		// that the marks of one volume stand on another until they are overwritten.
		{"a clone inherits", func(t *trial) {
			source, copied, key := t.image("a"), t.image("b"), rbd.MetaPrefix+"mark"
			id := t.make(source, mapped(), map[string]string{key: "the source's"})
			cloneID, err := t.Clone(source, copied.Name)
			t.ok(err)
			t.header(cloneID, rbd.Header{
				ID: cloneID, Whole: true, Layout: mapped(), DataPoolID: -1, HasParent: true,
				Meta: map[string]string{key: "the source's"},
			})
			t.remove(copied, cloneID)
			t.ok(t.RemoveSnapshots(source))
			t.remove(source, id)
		}},
		{"one of many wins", func(t *trial) {
			id, key, wins := rbd.NewID(), rbd.MetaPrefix+"owner", atomic.Int64{}
			t.ok(t.pool.CreateHeader(t.Context(), id, plain(), nil))
			var group sync.WaitGroup
			for i := range 8 {
				group.Go(func() {
					err := t.pool.ChangeMeta(t.Context(), id, rbd.Change{
						Expect: map[string]string{key: ""}, Set: map[string]string{key: strconv.Itoa(i)},
					})
					if err == nil {
						wins.Add(1)
					} else {
						t.is("a loser", err, fault.Superseded)
					}
				})
			}
			group.Wait()
			if wins.Load() != 1 {
				t.Errorf("got %d that won, want 1", wins.Load())
			}
			t.ok(t.pool.RemoveHeader(t.Context(), id))
		}},
	}
}

func testChanges(t *trial) {
	const a, b, c = rbd.MetaPrefix + "a", rbd.MetaPrefix + "b", rbd.MetaPrefix + "c"
	type values = map[string]string
	for _, one := range []struct {
		name   string
		before values
		change rbd.Change
		kind   fault.Kind // Internal: none
		after  values
	}{
		{"set", values{a: "1"}, rbd.Change{Set: values{b: "2"}}, fault.Internal, values{a: "1", b: "2"}},
		{"overwrite", values{a: "1"}, rbd.Change{Set: values{a: "2"}}, fault.Internal, values{a: "2"}},
		{"remove", values{a: "1", b: "2"}, rbd.Change{Remove: []string{b, c}}, fault.Internal, values{a: "1"}},
		{"nothing", values{a: "1"}, rbd.Change{}, fault.Internal, values{a: "1"}},
		{"expected", values{a: "1"}, rbd.Change{Expect: values{a: "1"}, Set: values{a: "2"}}, fault.Internal, values{a: "2"}},
		{"not expected", values{a: "1"}, rbd.Change{Expect: values{a: "0"}, Set: values{a: "2"}}, fault.Superseded, values{a: "1"}},
		{"a part is not the whole", values{a: "12"}, rbd.Change{Expect: values{a: "1"}, Set: values{a: "2"}}, fault.Superseded, values{a: "12"}},
		{"one of two", values{a: "1", b: "2"}, rbd.Change{Expect: values{a: "1", b: "0"}, Set: values{a: "9"}, Remove: []string{b}}, fault.Superseded, values{a: "1", b: "2"}},
		{"both", values{a: "1", b: "2"}, rbd.Change{Expect: values{a: "1", b: "2"}, Set: values{c: "9"}, Remove: []string{b}}, fault.Internal, values{a: "1", c: "9"}},
		{"absence expected", values{a: "1"}, rbd.Change{Expect: values{b: ""}, Set: values{b: "2"}}, fault.Internal, values{a: "1", b: "2"}},
		{"absence expected and there", values{a: "1"}, rbd.Change{Expect: values{a: ""}, Set: values{b: "2"}}, fault.Superseded, values{a: "1"}},
		{"value expected and absent", values{}, rbd.Change{Expect: values{a: "1"}, Set: values{b: "2"}}, fault.Superseded, values{}},
		{"empty counts as absent", values{a: ""}, rbd.Change{Expect: values{a: ""}, Set: values{a: "2"}}, fault.Internal, values{a: "2"}},
		{"expectation alone", values{a: "1"}, rbd.Change{Expect: values{a: "1"}}, fault.Internal, values{a: "1"}},
		{"not a text", values{a: "\x00\xff\n"}, rbd.Change{Expect: values{a: "\x00\xff\n"}, Set: values{b: "\xfe\x00"}}, fault.Internal, values{a: "\x00\xff\n", b: "\xfe\x00"}},
	} {
		id := rbd.NewID()
		t.ok(t.pool.CreateHeader(t.Context(), id, plain(), one.before))
		err := t.pool.ChangeMeta(t.Context(), id, one.change)
		if one.kind == fault.Internal && err != nil || one.kind != fault.Internal && !fault.Is(err, one.kind) {
			t.Errorf("%s: got %v, want %v", one.name, err, one.kind)
		}
		t.header(id, rbd.Header{ID: id, Whole: true, Layout: plain(), DataPoolID: -1, Meta: one.after})
		t.ok(t.pool.RemoveHeader(t.Context(), id))
	}
}

// header reports when a header is not as wanted. Meta nil and empty are the same.
func (t *trial) header(id string, want rbd.Header) {
	t.Helper()
	got, err := t.pool.Header(t.Context(), id)
	t.ok(err)
	gotMeta, wantMeta := got.Meta, want.Meta
	got.Meta, want.Meta = nil, nil
	if got.ID != want.ID || got.Whole != want.Whole || got.Layout != want.Layout || got.DataPoolID != want.DataPoolID ||
		got.HasParent != want.HasParent || got.HasSnaps != want.HasSnaps {
		t.Errorf("header: got %+v, want %+v", got, want)
	}
	if made := !got.Created.IsZero(); made != want.Whole || made && time.Since(got.Created).Abs() > time.Hour {
		t.Errorf("header: got %v as the time when it was made, whole: %t, want the present time for what is whole and none otherwise", got.Created, want.Whole)
	}
	if !maps.Equal(gotMeta, wantMeta) {
		t.Errorf("metadata: got %q, want %q", gotMeta, wantMeta)
	}
}
