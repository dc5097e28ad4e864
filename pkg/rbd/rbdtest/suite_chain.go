package rbdtest

import (
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// chainCases are about the ends of snapshots that have clones.
func chainCases() []trialCase {
	return []trialCase{
		{"a removed snapshot stays for its clones", testTrashedSnapshot},
		{"the tools' way of removing", func(t *trial) {
			source := t.disk("a", mapped())
			s := t.snap(source, "s")
			copied := t.clone("b", source, s, mapped())
			t.ok(t.RemoveSnapshots(source.image))
			t.counts("while the clone lives", source, 1)
			t.drop(copied)
			t.counts("without the clone", source, 0)
			t.drop(source)
		}},
		{"the last clone of an image in the trash", func(t *trial) {
			source := t.disk("a", mapped())
			s := t.snap(source, "s")
			copied := t.clone("b", source, s, mapped())
			t.trash(source.image, source.id)
			t.unsnap(source, s)
			t.is("Purge", t.pool.Purge(t.Context(), source.id), fault.InUse)
			t.drop(copied)
			t.counts("without the clone", source, 0)
			t.ok(t.pool.Purge(t.Context(), source.id))
		}},
		{"a clone begins while its snapshot is removed", testBeginsMeanwhile},
		{"a clone ends while its snapshot is removed", testEndsMeanwhile},
		{"flatten", testFlatten},
		{"flatten what is none", func(t *trial) {
			ctx, d := t.Context(), t.disk("a", mapped())
			t.writes(d, 0, "data")
			t.ok(t.pool.Flatten(ctx, d.id))
			t.reads(d, 0, "data")
			t.drop(d)
			t.is("no image", t.pool.Flatten(ctx, d.id), fault.NotFound)
		}},
		{"flatten the last clone of a removed snapshot", func(t *trial) {
			source := t.disk("a", mapped())
			t.writes(source, 0, "data")
			s := t.snap(source, "s")
			copied := t.clone("b", source, s, mapped())
			t.unsnap(source, s)
			t.trash(copied.image, copied.id)
			t.ok(t.pool.Flatten(t.Context(), copied.id))
			t.counts("without a clone", source, 0)
			t.drop(source)
			t.holds(copied.id, true)
			t.ok(t.pool.Purge(t.Context(), copied.id))
		}},
		{"flatten another layout", testFlattenLayouts},
		{"flatten a clone with snapshots", testDeepFlatten},
		{"flatten a clone with snapshots, without deep-flatten", testShallowFlatten},
		{"a chain in any order", testChains},
	}
}

func testTrashedSnapshot(t *trial) {
	ctx, source := t.Context(), t.disk("a", mapped())
	t.writes(source, 0, "old")
	s := t.snap(source, "s")
	one, two := t.clone("b", source, s, mapped()), t.clone("c", source, s, mapped())
	for range 2 { // also from the trash
		t.unsnap(source, s)
		all := t.snapshots(source)
		if len(all) != 1 || all[0].ID != s.ID || all[0].Kind != rbd.TrashedSnapshot || all[0].Children != 2 || all[0].Bytes != s.Bytes {
			t.Errorf("removed with clones: got %+v, want %d in the trash with 2", all, s.ID)
		}
	}
	t.children(source, s, t.child(one.id), t.child(two.id))
	t.is("AddChild", t.pool.AddChild(ctx, source.id, s.ID, t.child(rbd.NewID())), fault.NotFound)
	t.is("AddChild of one it knows", t.pool.AddChild(ctx, source.id, s.ID, t.child(one.id)), fault.NotFound)

	// Its name is free.
	t.writes(source, 0, "new")
	again := t.snap(source, "s")
	t.counts("taken anew", source, 2)
	three := t.clone("d", source, again, mapped())
	t.reads(one, 0, "old")
	t.reads(three, 0, "new")

	t.drop(one)
	t.counts("one clone left", source, 2)
	t.drop(two)
	if all := t.snapshots(source); len(all) != 1 || all[0].ID != again.ID {
		t.Errorf("no clone left: got %+v, want %d alone", all, again.ID)
	}
	t.drop(three)
	t.counts("a snapshot that nobody removed", source, 1)
	t.unsnap(source, again)
	t.drop(source)
}

// testBeginsMeanwhile holds what clones made step by step rest upon: either the snapshot knows the
// clone and stays, or it refuses it.
func testBeginsMeanwhile(t *trial) {
	ctx, source := t.Context(), t.disk("a", mapped())
	for range 5 {
		s, child := t.snap(source, "s"), t.child(rbd.NewID())
		added, removed := make(chan error, 1), make(chan error, 1)
		go func() { added <- t.pool.AddChild(ctx, source.id, s.ID, child) }()
		go func() { removed <- t.pool.RemoveSnapshot(ctx, source.id, s.ID) }()
		t.ok(<-removed)
		if err := <-added; err != nil {
			t.is("AddChild", err, fault.NotFound)
			t.counts("the clone refused", source, 0)
			continue
		}
		t.children(source, s, child)
		if all := t.snapshots(source); len(all) != 1 || all[0].Kind != rbd.TrashedSnapshot {
			t.Errorf("the clone known: got %+v, want it in the trash", all)
		}
		t.ok(t.pool.RemoveChild(ctx, source.id, s.ID, child))
		t.unsnap(source, s)
		t.counts("removed again", source, 0)
	}
	t.drop(source)
}

// testEndsMeanwhile holds that one of the two takes the snapshot along.
func testEndsMeanwhile(t *trial) {
	ctx, source := t.Context(), t.disk("a", mapped())
	for range 3 {
		s := t.snap(source, "s")
		copied := t.clone("b", source, s, mapped())
		t.trash(copied.image, copied.id)
		purged, removed := make(chan error, 1), make(chan error, 1)
		go func() { purged <- t.pool.Purge(ctx, copied.id) }()
		go func() { removed <- t.pool.RemoveSnapshot(ctx, source.id, s.ID) }()
		t.ok(<-removed)
		t.ok(<-purged)
		t.counts("afterwards", source, 0)
	}
	t.drop(source)
}

func testFlatten(t *trial) {
	t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
		layout := mapped()
		layout.Bytes = 96 * mebibyte
		copied := t.clone("b", source, s, layout)
		t.writes(copied, 5*mebibyte, "own")
		t.writes(copied, 80*mebibyte, "own")
		for range 2 {
			t.ok(t.pool.Flatten(t.Context(), copied.id))
			header, err := t.pool.Header(t.Context(), copied.id)
			if header.HasParent || header.Layout != layout || err != nil {
				t.Errorf("header: got %+v, %v; want %+v without a parent", header, err, layout)
			}
		}
		t.children(source, s)
		t.unsnap(source, s)
		t.ok(t.Discard(source.image, 0, 64*mebibyte))
		t.reads(copied, 0, "begin")
		t.reads(copied, 5*mebibyte, "owndle")
		t.reads(copied, 20*mebibyte, "\x00\x00")
		t.reads(copied, 80*mebibyte, "own")
		t.covers(copied.id, 24)
		t.drop(copied)
	})
}

func testFlattenLayouts(t *trial) {
	small, striped := mapped(), mapped()
	small.ObjectBytes = mebibyte
	striped.StripeUnit, striped.StripeCount = 64<<10, 4
	for _, layout := range []rbd.Layout{small, striped, plain()} {
		t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
			copied := t.clone("b", source, s, layout)
			t.ok(t.pool.Flatten(t.Context(), copied.id))
			t.children(source, s)
			t.reads(copied, 0, "begin")
			t.reads(copied, 5*mebibyte, "middle")
			t.drop(copied)
		})
	}
}

// testDeepFlatten holds that with deep-flatten a clone's snapshots are parted too, and that clones
// of these go on reading what they read before.
func testDeepFlatten(t *trial) {
	t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
		middle := t.clone("b", source, s, mapped())
		middleSnap := t.snap(middle, "m")
		t.writes(middle, 5*mebibyte, "own")
		last := t.clone("c", middle, middleSnap, mapped())
		t.ok(t.pool.Flatten(t.Context(), middle.id))
		t.children(source, s)
		t.children(middle, middleSnap, t.child(last.id))
		t.reads(last, 5*mebibyte, "middle")
		t.reads(middle, 5*mebibyte, "owndle")
		t.unsnap(middle, middleSnap)
		t.drop(last)
		t.counts("without a clone", middle, 0)
		t.drop(middle)
	})
}

// testShallowFlatten holds what is surprising without deep-flatten: the image has no
// parent any more, its snapshot has, and the parent's snapshot knows the clone until
// that snapshot is removed.
func testShallowFlatten(t *trial) {
	t.cloned(mapped(), func(t *trial, source disk, s rbd.Snapshot) {
		layout := mapped()
		layout.Features &^= rbd.DeepFlatten
		copied := t.clone("b", source, s, layout)
		held := t.snap(copied, "m")
		t.ok(t.pool.Flatten(t.Context(), copied.id))
		if header, err := t.pool.Header(t.Context(), copied.id); header.HasParent || err != nil {
			t.Errorf("header: got parent %+v, %v; want none", header.Parent, err)
		}
		t.children(source, s, t.child(copied.id))
		t.reads(copied, 5*mebibyte, "middle")
		last := t.clone("c", copied, held, mapped())
		t.reads(last, 5*mebibyte, "middle")
		t.drop(last)
		t.unsnap(copied, held)
		t.children(source, s)
		t.drop(copied)
	})
}

// testChains makes a clone of a clone of a clone, and removes the four images in
// several orders. Snapshots are removed with their image.
func testChains(t *trial) {
	before := t.objects()
	for _, order := range []string{"abcd", "dcba", "bdac", "cadb"} {
		var chain []disk
		var snaps []rbd.Snapshot
		for i, suffix := range []string{"a", "b", "c", "d"} {
			if i == 0 {
				chain = append(chain, t.disk(suffix, mapped()))
			} else {
				chain = append(chain, t.clone(suffix, chain[i-1], snaps[i-1], mapped()))
			}
			t.writes(chain[i], int64(4*i)*mebibyte, suffix)
			snaps = append(snaps, t.snap(chain[i], "s"))
		}
		t.reads(chain[3], 0, "a\x00")
		t.reads(chain[3], 4*mebibyte, "b\x00")
		alive := "abcd"
		for _, suffix := range order {
			i := strings.IndexRune("abcd", suffix)
			t.trash(chain[i].image, chain[i].id)
			t.unsnap(chain[i], snaps[i])
			alive = strings.Replace(alive, string(suffix), "", 1)
			t.purgeTrashed(chain, alive)
			if strings.Contains(alive, "d") {
				t.reads(chain[3], 0, "a\x00")
				t.reads(chain[3], 8*mebibyte, "c\x00")
			}
		}
		same(t.T, order+", left", t.objects(), before)
	}
}

// purgeTrashed purges what can be of a chain, again while something went: an image
// can go once all that were made of it, one after the other, have gone.
func (t *trial) purgeTrashed(chain []disk, alive string) {
	t.Helper()
	for i, d := range slices.Backward(chain) {
		if strings.Contains(alive, string("abcd"[i])) {
			continue
		}
		err := t.pool.Purge(t.Context(), d.id)
		kept := strings.ContainsAny(alive, "abcd"[i:])
		switch {
		case kept:
			t.is("Purge of "+d.image.Name+" with "+alive+" alive", err, fault.InUse)
		case err != nil && !fault.Is(err, fault.NotFound):
			t.Errorf("Purge of %s with %q alive: got %v, want nil, or %v when it went before", d.image.Name, alive, err, fault.NotFound)
		}
	}
}
