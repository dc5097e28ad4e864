package snapshot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A delta is a call of Changed.
type delta struct {
	bytes   int64
	extents []rbd.Extent
	sends   int
}

func (d *driver) changed(ctx context.Context, from *Snapshot, to Snapshot, offset int64) (delta, error) {
	spec := ChangedSpec{To: to.Handle, Offset: offset}
	if from != nil {
		spec.From = &from.Handle
	}
	var got delta
	err := d.Changed(ctx, spec, nobody, func(bytes int64, extents []rbd.Extent) error {
		got.bytes, got.extents, got.sends = bytes, append(got.extents, extents...), got.sends+1
		return nil
	})
	return got, err
}

// A history is a volume with snapshots, and what was in it at each.
type history struct {
	snapshots []Snapshot
	contents  []string
}

// write makes a history by random writes and discards.
func write(t *testing.T, ceph *rbdtest.Ceph, layout rbd.Layout, name string) history {
	t.Helper()
	var h history
	random := rand.New(rand.NewPCG(1, 2))
	const most = 20000
	for i := range 5 {
		for range 20 {
			offset := random.Int64N(layout.Bytes - most)
			length := random.Int64N(most) + 1
			if random.IntN(3) == 0 {
				must(t, ceph.Discard(of(name), offset, length))
				continue
			}
			text := make([]byte, length)
			for at := range text {
				text[at] = byte(random.IntN(256))
			}
			must(t, ceph.WriteAt(of(name), offset, string(text)))
		}
		h.snapshots = append(h.snapshots, taken(t, ceph, name, fmt.Sprint("s", i)))
		content, err := ceph.ReadAt(of(name), 0, int(layout.Bytes))
		must(t, err)
		h.contents = append(h.contents, content)
	}
	return h
}

// TestADeviceIsRebuilt makes a copy of a device from what was allocated at its first snapshot and what
// changed between the others.
func TestADeviceIsRebuilt(t *testing.T) {
	for name, layout := range map[string]rbd.Layout{
		// One with more data objects than are asked about at once.
		"small objects": {Bytes: 66*mib + 512, ObjectBytes: 4096, Features: rbd.Layering | rbd.ObjectMap | rbd.FastDiff},
		"striped":       {Bytes: 5 * mib, ObjectBytes: 16384, StripeUnit: 4096, StripeCount: 3, Features: rbd.Layering | rbd.StripingV2},
	} {
		t.Run(name, func(t *testing.T) {
			ceph := newCeph()
			_, err := ceph.Create(of("parent"), layout)
			must(t, err)
			must(t, ceph.WriteAt(of("parent"), 100_000, "what shows through from a parent"))
			_, err = ceph.Clone(of("parent"), "v")
			must(t, err)
			h := write(t, ceph, layout, "v")
			for _, first := range []int{0, 3} {
				device := make([]byte, layout.Bytes)
				for i := first; i < len(h.snapshots); i++ {
					var from *Snapshot
					if i > first {
						from = &h.snapshots[i-1]
					}
					got, err := start(ceph).changed(t.Context(), from, h.snapshots[i], 0)
					must(t, err)
					apply(t, device, got, h.contents[i], from != nil)
					if string(device) != h.contents[i] {
						t.Fatalf("from snapshot %d on, the device differs from snapshot %d", first, i)
					}
				}
			}
			skipped, err := start(ceph).changed(t.Context(), &h.snapshots[0], h.snapshots[4], 0)
			must(t, err)
			device := []byte(h.contents[0])
			if apply(t, device, skipped, h.contents[4], true); string(device) != h.contents[4] {
				t.Error("by one delta over four, the device differs from the last snapshot")
			}
		})
	}
}

// apply copies the extents, and checks that they are what they say.
func apply(t *testing.T, device []byte, got delta, content string, isDelta bool) {
	t.Helper()
	if got.bytes != int64(len(device)) {
		t.Fatalf("volume of %d bytes, want %d", got.bytes, len(device))
	}
	at := int64(0)
	for _, one := range got.extents {
		end := one.Offset + one.Bytes
		if one.Offset < at || one.Bytes <= 0 || end > got.bytes {
			t.Fatalf("extent %+v after %d, want them in order and in the volume", one, at)
		}
		if !one.Exists && !isDelta {
			t.Fatalf("extent %+v of what is allocated, want only what exists", one)
		}
		if at = end; one.Exists {
			copy(device[one.Offset:end], content[one.Offset:end])
			continue
		}
		clear(device[one.Offset:end])
	}
}

// TestChangedGoesOn interrupts a caller behind each extent; it goes on with the end of
// the last one.
func TestChangedGoesOn(t *testing.T) {
	for name, test := range map[string]struct {
		layout rbd.Layout
		sends  int
	}{
		"of two pieces": {rbd.Layout{Bytes: 80 * mib, ObjectBytes: 4096, Features: rbd.Layering | rbd.ObjectMap | rbd.FastDiff}, 2},
		"striped":       {rbd.Layout{Bytes: 5 * mib, ObjectBytes: 16384, StripeUnit: 4096, StripeCount: 3, Features: rbd.Layering | rbd.StripingV2}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			ceph := newCeph()
			_, err := ceph.Create(of("v"), test.layout)
			must(t, err)
			h := write(t, ceph, test.layout, "v")
			d, ctx := start(ceph), t.Context()
			for _, from := range []*Snapshot{nil, &h.snapshots[1]} {
				whole, err := d.changed(ctx, from, h.snapshots[3], 0)
				must(t, err)
				if whole.sends != test.sends {
					t.Errorf("%d sends, want %d, one for each piece", whole.sends, test.sends)
				}
				for i, one := range whole.extents {
					rest, err := d.changed(ctx, from, h.snapshots[3], one.Offset+one.Bytes)
					must(t, err)
					if !slices.Equal(rest.extents, whole.extents[i+1:]) {
						t.Fatalf("behind extent %d: %v, want %v", i, rest.extents, whole.extents[i+1:])
					}
				}
				inside, err := d.changed(ctx, from, h.snapshots[3], whole.extents[0].Offset+1)
				must(t, err)
				if inside.extents[0].Offset != whole.extents[0].Offset {
					t.Errorf("one byte behind %d: %v, want the whole data object", whole.extents[0].Offset, inside.extents[0])
				}
			}
			end, err := d.changed(ctx, nil, h.snapshots[3], test.layout.Bytes)
			if err != nil || len(end.extents) > 0 || end.sends != 1 || end.bytes != test.layout.Bytes {
				t.Errorf("at the end: %+v, error %v, want one send with nothing", end, err)
			}
		})
	}
}

func TestWhatCannotBeCompared(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	addVolumes(t, ceph, all("a", "b")...)
	s1, s2, b1 := taken(t, ceph, "a", "s1"), taken(t, ceph, "a", "s2"), taken(t, ceph, "b", "b1")
	gone := s1
	gone.Handle.Name = "gone"
	elsewhere := s1
	elsewhere.Handle.Pool = other
	d := start(ceph)
	for name, test := range map[string]struct {
		from   *Snapshot
		to     Snapshot
		offset int64
		kind   fault.Kind
		word   string
	}{
		"of different volumes":    {&b1, s2, 0, fault.Invalid, "of another volume"},
		"of different pools":      {&elsewhere, s2, 0, fault.Invalid, "of another volume"},
		"in the wrong order":      {&s2, s1, 0, fault.Invalid, "is not older"},
		"with itself":             {&s1, s1, 0, fault.Invalid, "is not older"},
		"before the beginning":    {&s1, s2, -1, fault.OutOfRange, "offset -1"},
		"behind the end":          {nil, s2, layout.Bytes + 1, fault.OutOfRange, "has 67108864 bytes"},
		"from one that is gone":   {&gone, s2, 0, fault.NotFound, "base snapshot"},
		"to one that is gone":     {nil, gone, 0, fault.NotFound, "@gone"},
		"of a pool without image": {nil, elsewhere, 0, fault.NotFound, "main:other/a@s1"},
	} {
		_, err := d.changed(ctx, test.from, test.to, test.offset)
		want(t, name, err, test.kind, test.word)
	}
	d.process.Reset()
	if got, err := d.changed(ctx, &s1, s2, 0); err != nil || got.sends != 1 || len(got.extents) > 0 {
		t.Errorf("between snapshots that are alike: %+v, error %v, want one send with nothing", got, err)
	}
	if got := d.process.Operations(); got > 1+15 {
		t.Errorf("%d operations (%v), want at most 16", got, d.process.Methods())
	}
}

func TestChangedEnds(t *testing.T) {
	full := errors.New("the caller is full")
	large := rbd.Layout{Bytes: 200 * mib, ObjectBytes: 4096, Features: rbd.Layering | rbd.ObjectMap | rbd.FastDiff}
	for name, test := range map[string]struct {
		// during happens in the first send.
		during func(cancel func(), d *driver, made []Snapshot) error
		is     error
	}{
		"with its context": {func(cancel func(), d *driver, made []Snapshot) error { cancel(); return nil }, context.Canceled},
		"with its caller":  {func(cancel func(), d *driver, made []Snapshot) error { return full }, full},
		"with the target": {func(cancel func(), d *driver, made []Snapshot) error {
			return d.Delete(context.Background(), made[1].Handle, nobody)
		}, fault.NotFound},
		"with the base": {func(cancel func(), d *driver, made []Snapshot) error {
			return d.Delete(context.Background(), made[0].Handle, nobody)
		}, fault.NotFound},
		"with a base that has clones, of which librbd can tell nothing": {func(cancel func(), d *driver, made []Snapshot) error {
			d.process.Fail(rbdtest.Fault{Method: "Changed", Err: fault.Unsupported})
			if err := addChild(d, made[0]); err != nil {
				return err
			}
			return d.Delete(context.Background(), made[0].Handle, nobody)
		}, fault.NotFound},
		"with Ceph": {func(cancel func(), d *driver, made []Snapshot) error {
			d.process.Fail(rbdtest.Fault{Method: "Changed"})
			return nil
		}, fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			ceph := newCeph()
			_, err := ceph.Create(of("v"), large)
			must(t, err)
			made := []Snapshot{taken(t, ceph, "v", "s0")}
			for at := int64(0); at < large.Bytes; at += 50 * mib {
				must(t, ceph.WriteAt(of("v"), at, "data"))
			}
			made = append(made, taken(t, ceph, "v", "s1"))
			d := start(ceph)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			sends := 0
			err = d.Changed(ctx, ChangedSpec{From: &made[0].Handle, To: made[1].Handle}, nobody,
				func(int64, []rbd.Extent) error {
					if sends++; sends > 1 {
						t.Errorf("%d sends, want one", sends)
					}
					return test.during(cancel, d, made)
				})
			kind, isKind := test.is.(fault.Kind)
			if isKind && !fault.Is(err, kind) || !errors.Is(err, test.is) {
				t.Errorf("error %v, want %v", err, test.is)
			}
		})
	}
}

// addChild makes a snapshot know a clone, so that it goes to the trash when it is deleted.
func addChild(d *driver, made Snapshot) error {
	parent, err := d.Parent(context.Background(), made.Handle, nobody)
	if err != nil {
		return err
	}
	return parent.Image.Pool.AddChild(context.Background(), parent.Image.ID, parent.ID, childOf(parent.Image))
}

// childOf is what addChild adds.
func childOf(parent image.Image) rbd.Child {
	return rbd.Child{PoolID: parent.Where().PoolID, ID: "vclone"}
}

func TestChangedOfADeletedVolume(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	addVolumes(t, ceph, of("v"))
	must(t, ceph.WriteAt(of("v"), 5*mib, "data"))
	made := taken(t, ceph, "v", "s")
	must(t, deleteVolume(ctx, ceph, of("v")))
	addVolumes(t, ceph, volid.Image{Pool: kube, Name: "v"})
	got, err := start(ceph).changed(ctx, nil, made, 0)
	if want := []rbd.Extent{{Offset: 4 * mib, Bytes: 4 * mib, Exists: true}}; err != nil || !slices.Equal(got.extents, want) {
		t.Errorf("extents %v, error %v, want %v", got.extents, err, want)
	}
}
