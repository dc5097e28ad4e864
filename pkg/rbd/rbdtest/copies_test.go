package rbdtest

import (
	"context"
	"slices"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// openCopies returns the pool kube, an image "n" in it and its ID.
func openCopies(t *testing.T, ceph *Ceph, process *Process) (rbd.Pool, volid.Image, string) {
	t.Helper()
	image := volid.Image{Pool: kube(), Name: "n"}
	id, err := ceph.Create(image, mapped())
	if err != nil {
		t.Fatal(err)
	}
	return open(t, process), image, id
}

func TestDumpOfCopies(t *testing.T) {
	ceph := newCeph()
	copies, image, id := openCopies(t, ceph, ceph.Process())
	clone, err := ceph.Clone(image, "m")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		copies.TakeSnapshot(t.Context(), id, "s"), copies.RemoveSnapshot(t.Context(), id, 1), copies.MakeIndex(t.Context()),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"main:kube rbd_children " + id + " 1 1//" + clone,
		"main:kube rbd_directory m " + clone,
		"main:kube rbd_directory n " + id,
		"main:kube rbd_header." + clone,
		"main:kube rbd_header." + id,
		"main:kube rbd_id.m",
		"main:kube rbd_id.n",
		"main:kube rbd_object_map." + clone,
		"main:kube rbd_object_map." + id,
		"main:kube rbd_snapshot " + id + " 1 00000000-0000-4000-8000-000000000001 2",
		"main:kube rbd_snapshot " + id + " 2 s 0",
	}
	same(t, "an empty index", ceph.Dump(), want)
	if err := copies.ChangeIndex(t.Context(), rbd.Change{Set: map[string]string{"k": "v"}}); err != nil {
		t.Fatal(err)
	}
	same(t, "an index with an entry", ceph.Dump(), append(want, "main:kube rbd_csi.index k v"))
}

// TestCallsOfCopies holds what the calls are about, what they cost, and that each can be struck.
func TestCallsOfCopies(t *testing.T) {
	ceph := newCeph()
	process := ceph.Process()
	copies, image, id := openCopies(t, ceph, process)
	if err := ceph.Snapshot(image, "s"); err != nil {
		t.Fatal(err)
	}
	clone, err := ceph.Clone(image, "m")
	if err != nil {
		t.Fatal(err)
	}
	parent := rbd.Parent{PoolID: 1, ID: id, Snapshot: 2, Overlap: mapped().Bytes}
	change := rbd.Change{Set: map[string]string{"b": "", "a": ""}, Remove: []string{"0"}}
	for _, one := range []struct {
		method, about string
		cost          int
		call          func(ctx context.Context) error
	}{
		{"TakeSnapshot", id, 33, func(ctx context.Context) error { return copies.TakeSnapshot(ctx, id, "t") }},
		{"TakeSnapshots", id, 35, func(ctx context.Context) error {
			return copies.TakeSnapshots(ctx, []rbd.SnapshotOf{{ID: id, Name: "u"}})
		}},
		{"AttachParent", clone, 2, func(ctx context.Context) error { return copies.AttachParent(ctx, clone, parent) }},
		{"AddChild", id, 1, func(ctx context.Context) error { return copies.AddChild(ctx, id, 1, rbd.Child{PoolID: 1, ID: "v"}) }},
		{"RemoveChild", id, 1, func(ctx context.Context) error {
			return copies.RemoveChild(ctx, id, 1, rbd.Child{PoolID: 1, ID: "v"})
		}},
		{"Children", id, 1, func(ctx context.Context) error { _, err := copies.Children(ctx, id, 1); return err }},
		{"Flatten", id, 1, func(ctx context.Context) error { return copies.Flatten(ctx, id) }},
		{"HoldsData", clone, 13 + 13, func(ctx context.Context) error { _, err := copies.HoldsData(ctx, clone); return err }},
		{"Grow", clone, 27 + 13, func(ctx context.Context) error { return copies.Grow(ctx, clone, 1) }},
		{"TakeSnapshot", clone, 33 + 13, func(ctx context.Context) error { return copies.TakeSnapshot(ctx, clone, "t") }},
		{"RemoveSnapshot", clone, 31 + 13, func(ctx context.Context) error { return copies.RemoveSnapshot(ctx, clone, 5) }},
		{"Flatten", clone, 46, func(ctx context.Context) error { return copies.Flatten(ctx, clone) }},
		{"Changed", id, 15, func(ctx context.Context) error {
			_, err := copies.Changed(ctx, id, rbd.Between{From: 1}, whole())
			return err
		}},
		{"Changed", id, 13, func(ctx context.Context) error {
			_, err := copies.Changed(ctx, id, rbd.Between{}, whole())
			return err
		}},
		{"RemoveSnapshot", id, 31, func(ctx context.Context) error { return copies.RemoveSnapshot(ctx, id, 1) }},
		{"RemoveSnapshot", id, 15, func(ctx context.Context) error { return copies.RemoveSnapshot(ctx, id, 1000) }},
		{"MakeIndex", "", 1, func(ctx context.Context) error { return copies.MakeIndex(ctx) }},
		{"ChangeIndex", "a", 1, func(ctx context.Context) error { return copies.ChangeIndex(ctx, change) }},
		{"Index", "k", 1, func(ctx context.Context) error { _, err := copies.Index(ctx, "k", 1); return err }},
		{"IndexValues", "k", 1, func(ctx context.Context) error { _, err := copies.IndexValues(ctx, "k", "l"); return err }},
	} {
		process.Reset()
		process.Fail(Fault{Method: one.method, About: one.about})
		if err := one.call(t.Context()); !fault.Is(err, fault.Unavailable) || process.Operations() != 0 {
			t.Errorf("%s, struck: got %v and %d operations, want %v and none", one.method, err, process.Operations(), fault.Unavailable)
		}
		if err := one.call(t.Context()); err != nil || process.Operations() != one.cost {
			t.Errorf("%s: got %v and %d operations, want %d", one.method, err, process.Operations(), one.cost)
		}
	}
}

func TestSupersededOnDemand(t *testing.T) {
	for _, one := range []struct {
		when  When
		taken int
	}{{Before, 0}, {After, 2}} {
		ceph := newCeph()
		process := ceph.Process()
		copies, _, first := openCopies(t, ceph, process)
		second, err := ceph.Create(volid.Image{Pool: kube(), Name: "second"}, mapped())
		if err != nil {
			t.Fatal(err)
		}
		process.Fail(Fault{Method: "TakeSnapshots", When: one.when, Err: fault.Superseded})
		err = copies.TakeSnapshots(t.Context(), []rbd.SnapshotOf{{ID: first, Name: "g"}, {ID: second, Name: "g"}})
		if !fault.Is(err, fault.Superseded) {
			t.Errorf("%v: got %v, want %v", one.when, err, fault.Superseded)
		}
		taken := 0
		for _, id := range []string{first, second} {
			header, err := open(t, process).Header(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			taken += len(header.Snapshots)
		}
		if taken != one.taken {
			t.Errorf("%v: got %d snapshots, want %d", one.when, taken, one.taken)
		}
	}
}

// TestSnapshotIDs holds that snapshots are numbered by the pool that has the data.
func TestSnapshotIDs(t *testing.T) {
	ceph := newCeph()
	apart := mapped()
	apart.DataPool = "ec"
	var ids []uint64
	for i, layout := range []rbd.Layout{mapped(), apart, mapped(), apart} {
		image := volid.Image{Pool: kube(), Name: string(rune('a' + i))}
		id, err := ceph.Create(image, layout)
		if err != nil {
			t.Fatal(err)
		}
		if err := ceph.Snapshot(image, "s"); err != nil {
			t.Fatal(err)
		}
		header, err := open(t, ceph.Process()).Header(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, header.Snapshots[0].ID)
	}
	if want := []uint64{1, 1, 2, 2}; !slices.Equal(ids, want) {
		t.Errorf("got %v, want %v", ids, want)
	}
}

func TestFullPoolTakesNoSnapshot(t *testing.T) {
	ceph := newCeph()
	copies, image, id := openCopies(t, ceph, ceph.Process())
	if err := ceph.Snapshot(image, "s"); err != nil {
		t.Fatal(err)
	}
	ceph.clusters["main"].SetFull("kube", true)
	if err := copies.TakeSnapshot(t.Context(), id, "t"); !fault.Is(err, fault.Exhausted) {
		t.Errorf("TakeSnapshot: got %v, want %v", err, fault.Exhausted)
	}
	if err := copies.RemoveSnapshot(t.Context(), id, 1); err != nil {
		t.Errorf("RemoveSnapshot: got %v, want nil", err)
	}
}

// TestDiscardOfAPart holds that a piece of a data object becomes zeroes, and that no object is
// made for that.
func TestDiscardOfAPart(t *testing.T) {
	ceph := newCeph()
	_, image, _ := openCopies(t, ceph, ceph.Process())
	before := ceph.Dump()
	if err := ceph.Discard(image, 1, 2); err != nil {
		t.Fatal(err)
	}
	same(t, "nothing there", ceph.Dump(), before)
	for _, err := range []error{ceph.WriteAt(image, 4*mebibyte-2, "text"), ceph.Discard(image, 4*mebibyte-1, 2)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ceph.ReadAt(image, 4*mebibyte-2, 4); got != "t\x00\x00t" || err != nil {
		t.Errorf("got %q, %v; want the two bytes in the middle gone", got, err)
	}
}
