package volume

import (
	"context"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
)

// The states here are what a killed process leaves; another process meets them.

func TestANameWithoutAHeaderIsNotBuiltOn(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	ctx := t.Context()
	must(t, d.create(ctx, "pvc-1"))
	found, err := image.Find(ctx, d.clusters, specOf("pvc-1").Handle, nobody)
	must(t, err)
	must(t, found.Pool.RemoveHeader(ctx, found.ID))
	must(t, d.create(ctx, "pvc-1"))
	again, err := image.Find(ctx, d.clusters, specOf("pvc-1").Handle, nobody)
	must(t, err)
	if again.ID == found.ID {
		t.Errorf("the new volume has the ID %s of the old one, whose data may be left, want another", again.ID)
	}
	purgeAll(t, ceph)
	wantOne(t, ceph, "pvc-1")
}

// TestAClaimThatCannotBeUndone holds that a request comes again when its name is still claimed: the answer that
// no volume can be made is final, and nobody would ask for the name again.
func TestAClaimThatCannotBeUndone(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	spec := specOf("pvc-1")
	spec.Class.DataPool = "missing"
	d.process.Fail(rbdtest.Fault{Method: "ReserveHeader"})
	_, err := d.Create(t.Context(), spec, nobody)
	if fault.Of(err) != fault.Unavailable {
		t.Errorf("create: %v, want kind %v", err, fault.Unavailable)
	}
	_, err = d.Create(t.Context(), spec, nobody)
	want(t, "create again", err, fault.Invalid, "missing")
	purgeAll(t, ceph)
	wantNothing(t, ceph)
}

// TestANameOfAPurgedImage has a process sleep until its volume has been made by another, deleted and purged, give
// that the name, and be killed before it looks again.
func TestANameOfAPurgedImage(t *testing.T) {
	ceph := newCeph()
	d, late := start(ceph), start(ceph)
	met := false
	late.process.OnCall(func(ctx context.Context, call rbdtest.Call) {
		if call.Method == "AddName" && !met {
			met = true
			must(t, d.create(ctx, "pvc-1"))
			must(t, d.delete(ctx, "pvc-1"))
			purgeAll(t, ceph)
		}
	})
	late.process.Fail(rbdtest.Fault{Method: "AddName", When: rbdtest.After, Kill: true})
	if err := late.create(t.Context(), "pvc-1"); err == nil {
		t.Fatal("the create was not killed")
	}
	must(t, d.create(t.Context(), "pvc-1"))
	purgeAll(t, ceph)
	wantOne(t, ceph, "pvc-1")
}

func TestCreateMeetsATombstone(t *testing.T) {
	// Between claim and header, another process begins to delete the half-made image and is killed.
	ceph := newCeph()
	d, other := start(ceph), start(ceph)
	other.process.Fail(rbdtest.Fault{Method: "ReserveHeader", When: rbdtest.After, Kill: true})
	met := false
	d.process.OnCall(func(ctx context.Context, call rbdtest.Call) {
		if call.Method == "CreateHeader" && !met {
			met = true
			if err := other.delete(ctx, "pvc-1"); err == nil {
				t.Error("the delete was not killed")
			}
		}
	})
	must(t, d.create(t.Context(), "pvc-1"))
	purgeAll(t, ceph)
	wantOne(t, ceph, "pvc-1")
}

func TestWhatIsHalfMadeOrHalfGoneIsNoVolume(t *testing.T) {
	use := AttachSpec{Node: "a", Mode: "w", Single: true}
	for name, test := range map[string]struct {
		fault   rbdtest.Fault
		request func(ctx context.Context, d *driver) error
	}{
		"not named yet": {
			rbdtest.Fault{Method: "AddName", Kill: true},
			func(ctx context.Context, d *driver) error { return d.create(ctx, "pvc-1") },
		},
		"condemned and still named": {
			rbdtest.Fault{Method: "AddTrash", Kill: true},
			func(ctx context.Context, d *driver) error {
				if err := d.create(ctx, "pvc-1"); err != nil {
					return err
				}
				return d.delete(ctx, "pvc-1")
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ceph := newCeph()
			killed := start(ceph)
			killed.process.Fail(test.fault)
			if err := test.request(t.Context(), killed); err == nil {
				t.Fatal("the request was not killed")
			}
			_, err := start(ceph).Attach(t.Context(), specOf("pvc-1").Handle, use, nobody)
			want(t, "attach", err, fault.NotFound, "pvc-1")
			must(t, start(ceph).delete(t.Context(), "pvc-1"))
			purgeAll(t, ceph)
			wantNothing(t, ceph)
		})
	}
}

func TestEveryAttachAndDetachRaisesTheGeneration(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	ctx := t.Context()
	must(t, d.create(ctx, "pvc-1"))
	handle := specOf("pvc-1").Handle
	last := uint64(0)
	raised := func(what string) {
		t.Helper()
		found, err := image.Find(ctx, d.clusters, handle, nobody)
		must(t, err)
		if now := found.Marks.Attachments.Generation; now <= last {
			t.Errorf("generation %d after %s, want more than %d", now, what, last)
		} else {
			last = now
		}
	}
	for range 2 {
		_, err := d.Attach(ctx, handle, AttachSpec{Node: "a", Mode: "w", Single: true}, nobody)
		must(t, err)
		raised("attach")
		must(t, d.Detach(ctx, handle, "a", nobody))
		raised("detach")
	}
}

// TestASlowCreateSparesTheSnapshots has a process sleep until its volume has been made by another, a snapshot was taken
// of it, and it was deleted. The image is kept for the snapshot, and is not the sleeper's to remove.
func TestASlowCreateSparesTheSnapshots(t *testing.T) {
	ceph := newCeph()
	d, late := start(ceph), start(ceph)
	var taken snapshot.Snapshot
	met := false
	late.process.OnCall(func(ctx context.Context, call rbdtest.Call) {
		if call.Method == "AddName" && !met {
			met = true
			must(t, d.create(ctx, "pvc-1"))
			var err error
			taken, err = d.take(ctx, "pvc-1", "snap-1")
			must(t, err)
			must(t, d.delete(ctx, "pvc-1"))
		}
	})
	must(t, late.create(t.Context(), "pvc-1"))
	purgeAll(t, ceph)
	must(t, d.restore(t.Context(), taken, "pvc-2"))
	cleared(func(*testing.T, *rbdtest.Ceph) {}, "pvc-1", "pvc-2", "pvc-1@snap-1")(t, ceph)
}
