package snapshot

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// The cases here were found by the random test of package volume.

// wantNoSnapshot checks that there is no snapshot, no mark of one and no name of one.
func wantNoSnapshot(t *testing.T, ceph *rbdtest.Ceph) {
	t.Helper()
	for _, line := range left(ceph) {
		if strings.Contains(line, "rbd_snapshot") || strings.Contains(line, "metadata_rbd-csi.io/snapshot/") || strings.Contains(line, "rbd_csi.index s/") {
			t.Errorf("left: %s, want nothing of the snapshot", line)
		}
	}
}

// TestADeleteMeetsASnapshotThatIsBeingTaken has a process take a snapshot when a delete has looked
// for it and is about to remove its mark.
func TestADeleteMeetsASnapshotThatIsBeingTaken(t *testing.T) {
	ceph := newCeph()
	addVolumes(t, ceph, of("a"))
	killed, d := start(ceph), start(ceph)
	killed.process.Fail(rbdtest.Fault{Method: "TakeSnapshot", Kill: true})
	if _, err := killed.take(t.Context(), "a", "s"); err == nil {
		t.Fatal("the create was not killed")
	}
	pool := open(t, ceph, kube)
	id, err := pool.FindName(t.Context(), "a")
	must(t, err)
	met := false
	d.process.OnCall(func(ctx context.Context, call rbdtest.Call) {
		if call.Method == "ChangeMeta" && !met {
			met = true
			must(t, pool.TakeSnapshot(ctx, id, "s"))
		}
	})
	must(t, d.Delete(t.Context(), volid.Snapshot{Image: of("a"), Name: "s", ImageID: id}, nobody))
	wantNoSnapshot(t, ceph)
}

// TestASnapshotThatIsWithdrawnIsNotUsed has a process take a snapshot whose mark was removed, and a third one
// ask for a snapshot of that name before the first removes its own.
func TestASnapshotThatIsWithdrawnIsNotUsed(t *testing.T) {
	ceph := newCeph()
	addVolumes(t, ceph, of("a"))
	first, second, third := start(ceph), start(ceph), start(ceph)
	begun, taken, withdrawing, answered := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	removing := false
	first.process.OnCall(func(ctx context.Context, call rbdtest.Call) {
		switch {
		case call.Method == "TakeSnapshot" && !removing:
			removing = true
			made, err := second.take(ctx, "a", "s")
			must(t, err)
			must(t, second.Delete(ctx, made.Handle, nobody))
			close(begun)
			<-taken // the third has looked at the volume
		case call.Method == "RemoveSnapshot":
			close(withdrawing)
			<-answered
		}
	})
	looked := false
	third.process.OnCall(func(_ context.Context, call rbdtest.Call) {
		if call.Method == "ChangeMeta" && !looked {
			looked = true
			close(taken)
			<-withdrawing
		}
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = first.take(context.WithoutCancel(t.Context()), "a", "s") // nobody waits for it
	}()
	<-begun
	made, err := third.take(t.Context(), "a", "s")
	before := left(ceph)
	close(answered)
	<-ended
	must(t, err)
	for _, line := range before { // with the snapshot's ID: another one would be of another moment
		if strings.Contains(line, " rbd_snapshot ") && !slices.Contains(left(ceph), line) {
			t.Errorf("the snapshot that was answered, %s, has gone; left:\n%s", line, strings.Join(left(ceph), "\n"))
		}
	}
	must(t, start(ceph).Delete(t.Context(), made.Handle, nobody))
	wantNoSnapshot(t, ceph)
}

// TestTheSnapshotOfADeletedVolumeIsAnswered repeats the request for a snapshot that was taken when its
// volume is deleted. A final answer is given only when it is certain that there is none.
func TestTheSnapshotOfADeletedVolumeIsAnswered(t *testing.T) {
	for name, test := range map[string]struct {
		fault rbdtest.Fault
		kind  fault.Kind
	}{
		"the index is not read":    {rbdtest.Fault{Method: "IndexValues"}, fault.Unavailable},
		"the image is not read":    {rbdtest.Fault{Method: "Header"}, fault.Unavailable},
		"the index was removed":    {rbdtest.Fault{Method: "none"}, -1},
		"the index is not rebuilt": {rbdtest.Fault{Method: "MakeIndex"}, fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			ceph := newCeph()
			addVolumes(t, ceph, of("a"))
			killed := start(ceph)
			killed.process.Fail(rbdtest.Fault{Method: "TakeSnapshot", When: rbdtest.After, Kill: true})
			if _, err := killed.take(t.Context(), "a", "s"); err == nil {
				t.Fatal("the create was not killed")
			}
			must(t, deleteVolume(t.Context(), ceph, of("a")))
			if strings.Contains(name, "rebuilt") || strings.Contains(name, "removed") {
				must(t, ceph.RemoveIndex(kube))
			}
			d := start(ceph)
			d.process.Fail(test.fault)
			if _, err := d.take(t.Context(), "a", "s"); test.kind >= 0 && fault.Of(err) != test.kind {
				t.Errorf("create: %v, want kind %v", err, test.kind)
			}
			made, err := d.take(t.Context(), "a", "s")
			must(t, err)
			must(t, d.Delete(t.Context(), made.Handle, nobody))
			wantNoSnapshot(t, ceph)
		})
	}
}

// TestTheIndexIsRemovedWhileItIsBuilt removes it before each call that uses it. What is not there then is no
// answer about the volume.
func TestTheIndexIsRemovedWhileItIsBuilt(t *testing.T) {
	for stop := 0; ; stop++ {
		ceph := newCeph()
		addVolumes(t, ceph, of("a"))
		d := start(ceph)
		calls, met := 0, false
		d.process.OnCall(func(context.Context, rbdtest.Call) {
			if calls++; calls == stop+1 {
				met = true
				must(t, ceph.RemoveIndex(kube))
			}
		})
		if _, err := d.take(t.Context(), "a", "s"); err != nil {
			t.Errorf("removed before call %d (%v): %v", stop+1, d.process.Methods(), err)
		}
		if !met {
			return
		}
	}
}

// TestAGroupIsFinishedWhileAnotherGivesUp has a process prove its group when another one, which found it unfinished
// and a volume gone, is about to give it up.
func TestAGroupIsFinishedWhileAnotherGivesUp(t *testing.T) {
	ceph := newCeph()
	addVolumes(t, ceph, all("a", "b")...)
	first, second := start(ceph), start(ceph)
	taken, gone, proven := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	proving := false
	first.process.OnCall(func(_ context.Context, call rbdtest.Call) {
		switch {
		case call.Method == "TakeSnapshots":
			proving = true
		case call.Method == "ChangeMeta" && proving:
			proving = false
			close(taken)
			<-gone
		}
	})
	go func() {
		_, err := first.group(context.WithoutCancel(t.Context()), "a", "b")
		proven <- err
	}()
	<-taken
	must(t, deleteVolume(t.Context(), ceph, of("b")))
	met := false
	second.process.OnCall(func(_ context.Context, call rbdtest.Call) {
		if call.Method == "ChangeIndex" && !met {
			met = true
			close(gone)
			must(t, <-proven)
		}
	})
	if _, err := second.group(t.Context(), "a", "b"); err != nil || !met {
		t.Errorf("create: %v (met %t), want the group that the other process has made", err, met)
	}
	must(t, start(ceph).DeleteGroup(t.Context(), group, nil, nobody))
	wantNoSnapshot(t, ceph)
}
