package rbdtest

import (
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A disk is an image that a case made.
type disk struct {
	image volid.Image
	id    string
}

// disk makes an image.
func (t *trial) disk(suffix string, layout rbd.Layout) disk {
	t.Helper()
	image := t.image(suffix)
	return disk{image, t.make(image, layout, nil)}
}

// drop removes images.
func (t *trial) drop(disks ...disk) {
	t.Helper()
	for _, d := range disks {
		t.remove(d.image, d.id)
	}
}

// snap takes a snapshot and returns it as the header has it.
func (t *trial) snap(d disk, name string) rbd.Snapshot {
	t.Helper()
	t.ok(t.pool.TakeSnapshot(t.Context(), d.id, name))
	all := t.snapshots(d)
	at := slices.IndexFunc(all, func(s rbd.Snapshot) bool { return s.Name == name && s.Kind == rbd.UserSnapshot })
	if at < 0 {
		t.Fatalf("snapshots: got %+v, want %s among them", all, name)
	}
	return all[at]
}

// snapshots returns the snapshots in an image's header.
func (t *trial) snapshots(d disk) []rbd.Snapshot {
	t.Helper()
	header, err := t.pool.Header(t.Context(), d.id)
	t.ok(err)
	return header.Snapshots
}

// counts reports when an image does not have so many snapshots, those in the trash included.
func (t *trial) counts(what string, d disk, want int) {
	t.Helper()
	if got := t.snapshots(d); len(got) != want {
		t.Errorf("%s: got snapshots %+v, want %d", what, got, want)
	}
}

// unsnap removes a snapshot.
func (t *trial) unsnap(d disk, s rbd.Snapshot) {
	t.Helper()
	t.ok(t.pool.RemoveSnapshot(t.Context(), d.id, s.ID))
}

// parent returns a snapshot here as a parent.
func (t *trial) parent(d disk, s rbd.Snapshot) rbd.Parent {
	where := t.pool.Where()
	return rbd.Parent{PoolID: where.PoolID, Namespace: t.at.Namespace, ID: d.id, Snapshot: s.ID, Overlap: s.Bytes}
}

// child returns an image here as a child.
func (t *trial) child(id string) rbd.Child {
	return rbd.Child{PoolID: t.pool.Where().PoolID, Namespace: t.at.Namespace, ID: id}
}

// clone makes a clone of a snapshot here, in the steps in which the driver does.
func (t *trial) clone(suffix string, of disk, s rbd.Snapshot, layout rbd.Layout) disk {
	t.Helper()
	return t.cloneIn(t, suffix, of, s, layout)
}

// cloneIn is clone into the place of another trial.
func (t *trial) cloneIn(there *trial, suffix string, of disk, s rbd.Snapshot, layout rbd.Layout) disk {
	t.Helper()
	ctx, made := t.Context(), disk{there.image(suffix), rbd.NewID()}
	t.ok(there.pool.AddEntry(ctx, made.image.Name, made.id))
	t.ok(there.pool.CreateHeader(ctx, made.id, layout, nil))
	t.ok(there.pool.AttachParent(ctx, made.id, t.parent(of, s)))
	t.ok(t.pool.AddChild(ctx, of.id, s.ID, there.child(made.id)))
	if layout.Features.Has(rbd.ObjectMap) {
		t.ok(there.pool.EnsureObjectMap(ctx, made.id, layout))
	}
	t.ok(there.pool.AddName(ctx, made.image.Name, made.id))
	return made
}

// children reports when a snapshot does not know these clones.
func (t *trial) children(of disk, s rbd.Snapshot, want ...rbd.Child) {
	t.Helper()
	got, err := t.pool.Children(t.Context(), of.id, s.ID)
	slices.SortFunc(got, compareChildren)
	slices.SortFunc(want, compareChildren)
	if !slices.Equal(got, want) || err != nil {
		t.Errorf("children: got %+v, %v; want %+v", got, err, want)
	}
	for _, shown := range t.snapshots(of) {
		if shown.ID == s.ID && shown.Children != len(want) {
			t.Errorf("snapshot in the header: got %+v, want %d children", shown, len(want))
		}
	}
}

// writes writes a text into an image.
func (t *trial) writes(d disk, offset int64, text string) {
	t.Helper()
	t.ok(t.WriteAt(d.image, offset, text))
}

// reads reports when an image does not have a text there.
func (t *trial) reads(d disk, offset int64, want string) {
	t.Helper()
	got, err := t.ReadAt(d.image, offset, len(want))
	if got != want || err != nil {
		t.Errorf("%s at %d: got %q, %v; want %q", d.image.Name, offset, got, err, want)
	}
}
