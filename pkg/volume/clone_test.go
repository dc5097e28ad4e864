package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// take takes a snapshot of a volume.
func (d *driver) take(ctx context.Context, source, name string) (snapshot.Snapshot, error) {
	return d.Snapshots().Create(ctx, snapshot.CreateSpec{Source: specOf(source).Handle, Request: name}, nobody)
}

// drop removes a snapshot by what its creation says.
func (d *driver) drop(ctx context.Context, source, name string) error {
	values, err := d.snapshotHandles(ctx)
	if err != nil {
		return err
	}
	handle, known := values[source+"@"+name]
	if !known {
		return nil
	}
	return d.Snapshots().Delete(ctx, handle, nobody)
}

// snapshotHandles returns the handles of all snapshots that stand in the marks of images.
func (d *driver) snapshotHandles(ctx context.Context) (map[string]volid.Snapshot, error) {
	pool, err := d.ceph.Process().Pool(ctx, kube, nobody)
	if err != nil {
		return nil, err
	}
	var all []image.Image
	entries, err := pool.Entries(ctx, "", 1000)
	for _, one := range entries {
		all = append(all, image.Image{Pool: pool, Name: one.Name, ID: one.ID})
	}
	trashed, trashErr := pool.Trashed(ctx)
	for _, one := range trashed {
		all = append(all, image.Image{Pool: pool, Name: one.Name, ID: one.ID})
	}
	handles := map[string]volid.Snapshot{}
	for _, one := range all {
		found, readErr := one.Read(ctx)
		err = errors.Join(err, readErr)
		for name, mark := range found.Marks.Snapshots {
			handles[mark.Image+"@"+name] = volid.Snapshot{Image: volid.Image{Pool: kube, Name: mark.Image}, Name: name, ImageID: found.ID}
		}
	}
	return handles, errors.Join(err, trashErr)
}

// restore makes a volume of a snapshot, and copy one of a volume.
func (d *driver) restore(ctx context.Context, of snapshot.Snapshot, name string) error {
	spec := specOf(name)
	spec.Source = &Source{Snapshot: &of.Handle}
	_, err := d.Create(ctx, spec, nobody)
	return err
}

func (d *driver) copy(ctx context.Context, source, name string) error {
	spec, of := specOf(name), specOf(source).Handle
	spec.Source = &Source{Volume: &of}
	_, err := d.Create(ctx, spec, nobody)
	return err
}

// steps runs steps until one fails.
func steps(all ...func() error) error {
	for _, step := range all {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// made makes volumes, of which the first has data.
func made(names ...string) func(context.Context, *driver) error {
	return func(ctx context.Context, d *driver) error {
		for _, name := range names {
			if err := d.create(ctx, name); err != nil {
				return err
			}
		}
		return d.ceph.WriteAt(specOf(names[0]).Handle, 0, "data")
	}
}

// wantData checks what is in a volume.
func wantData(names ...string) func(*testing.T, *rbdtest.Ceph) {
	return func(t *testing.T, ceph *rbdtest.Ceph) {
		t.Helper()
		for _, name := range names {
			if _, err := start(ceph).Get(t.Context(), specOf(name).Handle, nobody); err != nil {
				t.Errorf("Get: %v", err)
			}
			if text, err := ceph.ReadAt(specOf(name).Handle, 0, 4); text != "data" || err != nil {
				t.Errorf("%s holds %q, error %v; want data", name, text, err)
			}
		}
	}
}

// cleared removes volumes and snapshots and checks that nothing is left.
func cleared(then func(*testing.T, *rbdtest.Ceph), gone ...string) func(*testing.T, *rbdtest.Ceph) {
	return func(t *testing.T, ceph *rbdtest.Ceph) {
		t.Helper()
		then(t, ceph)
		d := start(ceph)
		for _, name := range gone {
			source, snapshot, is := strings.Cut(name, "@")
			var err error
			if is {
				err = d.drop(t.Context(), source, snapshot)
			} else {
				err = d.delete(t.Context(), name)
			}
			if err != nil {
				t.Errorf("delete %s: %v", name, err)
			}
		}
		for range 3 { // parents go with their last clone, each in its turn
			purgeAll(t, ceph)
		}
		wantNothing(t, ceph)
	}
}

// TestEachStepOfACopyFails is TestEachStepFails for snapshots, restores and clones. At
// the end everything is removed, in the order given, and nothing may be left.
func TestEachStepOfACopyFails(t *testing.T) {
	snapshotted := func(ctx context.Context, d *driver) error {
		return steps(func() error { return made("a")(ctx, d) }, func() error { _, err := d.take(ctx, "a", "s"); return err })
	}
	restored := func(ctx context.Context, d *driver) error {
		of, err := d.take(ctx, "a", "s")
		if err != nil {
			return err
		}
		return d.restore(ctx, of, "b")
	}
	for name, test := range map[string]struct {
		before, request func(context.Context, *driver) error
		want            func(*testing.T, *rbdtest.Ceph)
	}{
		"take":     {made("a"), func(ctx context.Context, d *driver) error { _, err := d.take(ctx, "a", "s"); return err }, cleared(wantData("a"), "a@s", "a")},
		"restore":  {snapshotted, restored, cleared(wantData("a", "b"), "a", "b", "a@s")},
		"restored": {snapshotted, restored, cleared(wantData("a", "b"), "a@s", "a", "b")},
		"clone":    {made("a"), func(ctx context.Context, d *driver) error { return d.copy(ctx, "a", "b") }, cleared(wantData("a", "b"), "a", "b")},
		"cloned":   {made("a"), func(ctx context.Context, d *driver) error { return d.copy(ctx, "a", "b") }, cleared(wantData("a", "b"), "b", "a")},
		"drop": {snapshotted, func(ctx context.Context, d *driver) error { return d.drop(ctx, "a", "s") },
			cleared(wantData("a"), "a")},
		"drop with a clone": {
			func(ctx context.Context, d *driver) error {
				return steps(func() error { return made("a")(ctx, d) }, func() error { return restored(ctx, d) })
			},
			func(ctx context.Context, d *driver) error { return d.drop(ctx, "a", "s") }, cleared(wantData("a", "b"), "a", "b"),
		},
		"delete with a snapshot": {snapshotted, func(ctx context.Context, d *driver) error { return d.delete(ctx, "a") },
			cleared(func(*testing.T, *rbdtest.Ceph) {}, "a@s")},
		"delete the clone's source": {
			func(ctx context.Context, d *driver) error {
				return steps(func() error { return made("a")(ctx, d) }, func() error { return d.copy(ctx, "a", "b") })
			},
			func(ctx context.Context, d *driver) error { return d.delete(ctx, "a") }, cleared(wantData("b"), "b"),
		},
		"drop the last snapshot of a deleted volume": {
			func(ctx context.Context, d *driver) error {
				return steps(func() error { return snapshotted(ctx, d) }, func() error { return d.delete(ctx, "a") })
			},
			func(ctx context.Context, d *driver) error { return d.drop(ctx, "a", "s") }, cleared(func(*testing.T, *rbdtest.Ceph) {}),
		},
		"restore of a deleted volume": {
			func(ctx context.Context, d *driver) error {
				return steps(func() error { return snapshotted(ctx, d) }, func() error { return d.delete(ctx, "a") })
			},
			func(ctx context.Context, d *driver) error {
				handles, err := d.snapshotHandles(ctx)
				if err != nil {
					return err
				}
				return d.restore(ctx, snapshot.Snapshot{Handle: handles["a@s"]}, "b")
			}, cleared(wantData("b"), "a@s", "b"),
		},
	} {
		t.Run(name, func(t *testing.T) { eachStepFails(t, test.before, test.request, test.want) })
	}
}

// TestTwoProcessesCopy is TestTwoProcesses for copies: whatever the second does in
// the middle of the first's request, both ends in order and nothing is left.
func TestTwoProcessesCopy(t *testing.T) {
	type request func(ctx context.Context, d *driver) error
	take := func(ctx context.Context, d *driver) error { _, err := d.take(ctx, "a", "s"); return err }
	clone := func(ctx context.Context, d *driver) error { return d.copy(ctx, "a", "b") }
	restore := func(ctx context.Context, d *driver) error {
		handles, err := d.snapshotHandles(ctx)
		if err != nil {
			return err
		}
		if handle, there := handles["a@s"]; there {
			return d.restore(ctx, snapshot.Snapshot{Handle: handle}, "b")
		}
		return nil
	}
	drop := func(ctx context.Context, d *driver) error { return d.drop(ctx, "a", "s") }
	remove := func(name string) request {
		return func(ctx context.Context, d *driver) error { return d.delete(ctx, name) }
	}
	both := func(one, two request) request {
		return func(ctx context.Context, d *driver) error { return errors.Join(one(ctx, d), two(ctx, d)) }
	}
	for name, test := range map[string]struct {
		before, first, second request
	}{
		"take, take":             {made("a"), take, take},
		"take, take drop":        {made("a"), take, both(take, drop)},
		"take, delete":           {made("a"), take, remove("a")},
		"take, take delete":      {made("a"), take, both(take, remove("a"))},
		"delete, take":           {made("a"), remove("a"), take},
		"drop, drop":             {both(made("a"), take), drop, drop},
		"drop, restore":          {both(made("a"), take), drop, restore},
		"restore, drop":          {both(made("a"), take), restore, drop},
		"restore, restore":       {both(made("a"), take), restore, restore},
		"restore, delete source": {both(made("a"), take), restore, both(remove("a"), drop)},
		"restore, delete clone":  {both(made("a"), take), restore, both(restore, remove("b"))},
		"clone, clone":           {made("a"), clone, clone},
		"clone, delete source":   {made("a"), clone, remove("a")},
		"clone, clone delete":    {made("a"), clone, both(clone, remove("b"))},
		"clone, all deleted":     {made("a"), clone, both(both(clone, remove("b")), remove("a"))},
		"delete source, clone":   {made("a"), remove("a"), clone},
		"delete clone, delete":   {both(made("a"), clone), remove("b"), remove("a")},
	} {
		t.Run(name, func(t *testing.T) {
			for stop := 0; ; stop++ {
				ceph := newCeph()
				first, second := start(ceph), start(ceph)
				if err := test.before(t.Context(), first); err != nil {
					t.Fatal(err)
				}
				calls, met := 0, false
				first.process.OnCall(func(ctx context.Context, _ rbdtest.Call) {
					if calls++; calls == stop+1 {
						met = true
						acceptable(t, stop, "second", test.second(ctx, second))
						purgeAll(t, ceph)
					}
				})
				err := test.first(t.Context(), first)
				if !met {
					return
				}
				acceptable(t, stop, "first", err)
				t.Cleanup(func() {
					if t.Failed() {
						t.Logf("stop %d, calls of the first: %v", stop, first.process.Methods())
					}
				})
				cleared(func(t *testing.T, ceph *rbdtest.Ceph) {
					if _, err := start(ceph).Get(t.Context(), specOf("b").Handle, nobody); err == nil {
						wantData("b")(t, ceph)
					}
				}, "a", "a@s", "b")(t, ceph)
			}
		})
	}
}

// TestTwoProcessesMakeOneCopy has a second process make the same copy at each step of the first. Both are
// answered, and the volume is there: what one was told of must not be taken away by the other.
func TestTwoProcessesMakeOneCopy(t *testing.T) {
	for name, request := range map[string]func(context.Context, *driver, snapshot.Snapshot) error{
		"clone":   func(ctx context.Context, d *driver, _ snapshot.Snapshot) error { return d.copy(ctx, "a", "b") },
		"restore": func(ctx context.Context, d *driver, of snapshot.Snapshot) error { return d.restore(ctx, of, "b") },
	} {
		t.Run(name, func(t *testing.T) {
			for stop, met := 0, true; met; stop++ {
				ceph := newCeph()
				first, second := start(ceph), start(ceph)
				must(t, made("a")(t.Context(), first))
				of, err := first.take(t.Context(), "a", "s")
				must(t, err)
				calls := 0
				met = false
				first.process.OnCall(func(ctx context.Context, _ rbdtest.Call) {
					if calls++; calls == stop+1 {
						met = true
						must(t, request(ctx, second, of))
					}
				})
				if err := request(t.Context(), first, of); err != nil {
					t.Errorf("stop %d: got %v, want nil", stop, err)
				}
				purgeAll(t, ceph)
				wantData("a", "b")(t, ceph)
			}
		})
	}
}

// TestASnapshotForACloneTakenTooLate has two processes make one clone of a volume. One of them takes its
// snapshot when the other has removed its own and is about to say, or has said, that there is none any more.
func TestASnapshotForACloneTakenTooLate(t *testing.T) {
	for name, killed := range map[string]bool{"and goes on": false, "and is killed": true} {
		t.Run(name, func(t *testing.T) {
			ceph := newCeph()
			first, late := start(ceph), start(ceph)
			must(t, made("a")(t.Context(), first))
			begun, taken, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
			goOn := make(chan struct{})
			late.process.OnCall(func(_ context.Context, call rbdtest.Call) {
				switch call.Method {
				case "TakeSnapshot":
					close(begun)
					<-goOn
				case "AttachParent":
					close(taken)
					<-done
				}
			})
			if killed {
				late.process.Fail(rbdtest.Fault{Method: "TakeSnapshot", When: rbdtest.After, Kill: true})
			}
			ended := make(chan error, 1)
			go func() { ended <- late.copy(context.WithoutCancel(t.Context()), "a", "b") }()
			<-begun
			removed := false
			first.process.OnCall(func(_ context.Context, call rbdtest.Call) {
				if removed && call.Method == "ChangeMeta" && !killed {
					close(goOn)
					<-taken
					removed = false
				}
				removed = removed || call.Method == "RemoveSnapshot"
			})
			acceptable(t, 0, "first", first.copy(t.Context(), "a", "b"))
			if killed {
				close(goOn)
			}
			close(done)
			if err := <-ended; !killed {
				acceptable(t, 0, "late", err)
			}
			wantData("b")(t, ceph)
			must(t, first.delete(t.Context(), "b"))
			purgeAll(t, ceph)
			for _, line := range ceph.Dump() {
				if strings.Contains(line, "rbd_snapshot") {
					t.Errorf("the clone has gone, and of its source there is %s", line)
				}
			}
			must(t, first.delete(t.Context(), "a"))
			purgeAll(t, ceph)
			wantNothing(t, ceph)
		})
	}
}

// TestTheSourceGoesBeforeTheCopyIsMade kills the making of a clone and of a restored volume at each call,
// deletes the source, and repeats the request. It is answered with the volume, or finally without: then
// nobody asks for it again, also not to delete it, and nothing may be left of it.
func TestTheSourceGoesBeforeTheCopyIsMade(t *testing.T) {
	for name, copied := range map[string]bool{"clone": true, "restore": false} {
		t.Run(name, func(t *testing.T) {
			for skip := 0; ; skip++ {
				ceph := newCeph()
				killed := start(ceph)
				must(t, made("a")(t.Context(), killed))
				of, err := killed.take(t.Context(), "a", "s")
				must(t, err)
				request := func(d *driver) error {
					if copied {
						return d.copy(t.Context(), "a", "b")
					}
					return d.restore(t.Context(), of, "b")
				}
				killed.process.Reset()
				killed.process.Fail(rbdtest.Fault{When: rbdtest.After, Kill: true, Skip: skip})
				if request(killed) == nil {
					break
				}
				d := start(ceph)
				must(t, d.drop(t.Context(), "a", "s"))
				must(t, d.delete(t.Context(), "a"))
				err = request(d)
				if acceptable(t, skip, "repeated", err); err == nil {
					wantData("b")(t, ceph)
					must(t, d.delete(t.Context(), "b"))
				}
				for range 3 {
					purgeAll(t, ceph)
				}
				if wantNothing(t, ceph); t.Failed() {
					t.Fatalf("killed in call %d (%v), repeated: %v", skip+1, killed.process.Methods(), err)
				}
			}
		})
	}
}

// acceptable reports an error that a request may not have when another is at the same volume.
func acceptable(t *testing.T, stop int, who string, err error) {
	t.Helper()
	if err != nil && !fault.Is(err, fault.Superseded) && !fault.Is(err, fault.NotFound) {
		t.Errorf("stop %d: %s: %v", stop, who, err)
	}
}

// TestCopyRefuses holds what a copy is checked for before anything is made.
func TestCopyRefuses(t *testing.T) {
	ceph := newCeph()
	ceph.AddCluster("other").AddUser("csi", "KEY").AddPool("kube")
	d := start(ceph)
	must(t, made("a")(t.Context(), d))
	of, err := d.take(t.Context(), "a", "s")
	must(t, err)
	before := ceph.Dump()
	elsewhere := volid.Pool{Cluster: "other", Pool: "kube"}
	missing := specOf("missing").Handle
	for name, test := range map[string]struct {
		change func(*CreateSpec)
		kind   fault.Kind
		hint   string
	}{
		"another cluster": {func(s *CreateSpec) { s.Handle.Pool, s.Class.Pool = elsewhere, elsewhere }, fault.Invalid, "another cluster"},
		"no such snapshot": {func(s *CreateSpec) {
			gone := of.Handle
			gone.Name = "gone"
			s.Source.Snapshot = &gone
		}, fault.NotFound, "gone"},
		"no such volume": {func(s *CreateSpec) { s.Source = &Source{Volume: &missing} }, fault.NotFound, "missing"},
		"smaller": {func(s *CreateSpec) {
			s.Size = func(content int64) (int64, error) { return 0, fault.OutOfRange }
		}, fault.OutOfRange, ""},
		"without layering": {func(s *CreateSpec) { s.Class.Features = 0 }, fault.Invalid, "layering"},
		"another name's source": {func(s *CreateSpec) {
			*s = specOf("a")
			s.Source = &Source{Snapshot: &of.Handle}
		}, fault.Exists, "source"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := specOf("b")
			spec.Source = &Source{Snapshot: &of.Handle}
			test.change(&spec)
			_, err := d.Create(t.Context(), spec, nobody)
			want(t, "create", err, test.kind, test.hint)
			if after := ceph.Dump(); strings.Join(after, "\n") != strings.Join(before, "\n") {
				t.Errorf("changed something:\n%s\nwas\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
		})
	}
}

// TestOperationsOfACopy holds what copies cost; the librbd parts are as measured.
func TestOperationsOfACopy(t *testing.T) {
	d := start(newCeph())
	must(t, made("a", "warm")(t.Context(), d))
	_, err := d.take(t.Context(), "warm", "index is there")
	must(t, err)
	var of snapshot.Snapshot
	for _, step := range []struct {
		name string
		most int
		do   func() error
	}{
		{"snapshot", 38, func() error { of, err = d.take(t.Context(), "a", "s"); return err }},
		{"snapshot again", 2, func() error { _, err := d.take(t.Context(), "a", "s"); return err }},
		{"restore", 47, func() error { return d.restore(t.Context(), of, "b") }},
		{"restore again", 4, func() error { return d.restore(t.Context(), of, "b") }},
		{"clone", 98, func() error { return d.copy(t.Context(), "a", "c") }},
		{"clone again", 5, func() error { return d.copy(t.Context(), "a", "c") }},
		{"drop", 64, func() error { return d.drop(t.Context(), "a", "s") }},
	} {
		d.process.Reset()
		must(t, step.do())
		if got := d.process.Operations(); got > step.most {
			t.Errorf("%s: %d operations (%v), want at most %d", step.name, got, d.process.Methods(), step.most)
		} else {
			t.Logf("%s: %d operations: %v", step.name, got, d.process.Methods())
		}
	}
}

// TestDeepClonesAreFlattened makes clones of clones beyond what a node can use.
func TestDeepClonesAreFlattened(t *testing.T) {
	ceph, d := cloneChain(t, 6)
	if got := len(d.deep); got != 4 {
		t.Fatalf("%d clones were told of, want those of depth 3 to 6", got)
	}
	flattener := NewFlattener(FlattenOptions{})
	again := start(ceph).Store
	must(t, flattener.Sweep(t.Context(), again))
	if len(flattener.queue) != 4 {
		t.Fatalf("%d clones in the index, want 4", len(flattener.queue))
	}
	for len(flattener.queue) > 0 {
		deep := <-flattener.queue
		must(t, again.flatten(t.Context(), deep))
	}
	wantData("v0", "v3", "v6")(t, ceph)
	for i := range 7 {
		must(t, d.delete(t.Context(), fmt.Sprintf("v%d", i)))
	}
	for range 3 {
		purgeAll(t, ceph)
	}
	wantNothing(t, ceph)
}

// cloneChain makes v0, and so many clones: v1 of v0, v2 of v1 and so on. From v3 on they are to be flattened.
func cloneChain(t *testing.T, clones int) (*rbdtest.Ceph, *driver) {
	t.Helper()
	ceph := newCeph()
	d := start(ceph)
	must(t, made("v0")(t.Context(), d))
	for i := range clones {
		must(t, d.copy(t.Context(), fmt.Sprintf("v%d", i), fmt.Sprintf("v%d", i+1)))
	}
	return ceph, d
}

// TestFlattenWasKilled has a flatten that was killed after all was copied: the parent has forgotten the clone, which still names
// it. That the parent is gone as well then loses nothing, and is ended by the next flatten.
func TestFlattenWasKilled(t *testing.T) {
	for _, gone := range []string{"nothing", "the snapshot", "the parent"} {
		t.Run(gone, func(t *testing.T) {
			ceph, d := cloneChain(t, 3)
			deep := d.deep[0]
			pool, err := ceph.Process().Pool(t.Context(), kube, nobody)
			must(t, err)
			before, err := pool.Header(t.Context(), deep.ID)
			must(t, err)
			must(t, ceph.CopyUp(specOf("v3").Handle))
			child := rbd.Child{PoolID: pool.Where().PoolID, ID: deep.ID}
			must(t, pool.RemoveChild(t.Context(), before.Parent.ID, before.Parent.Snapshot, child))
			if gone != "nothing" {
				must(t, pool.RemoveSnapshot(t.Context(), before.Parent.ID, before.Parent.Snapshot))
			}
			if gone == "the parent" {
				must(t, d.delete(t.Context(), "v2"))
				purgeAll(t, ceph)
			}
			must(t, start(ceph).flatten(t.Context(), deep))
			if after, err := pool.Header(t.Context(), deep.ID); after.HasParent || err != nil {
				t.Errorf("the clone's parent: got %+v, %v; want none", after.Parent, err)
			}
			wantData("v3")(t, ceph)
		})
	}
}

// TestFlattenWithoutItsParent has a clone whose parent went although the clone needs it: that is told, and the clone stays in the index.
func TestFlattenWithoutItsParent(t *testing.T) {
	ceph, d := cloneChain(t, 3)
	deep := d.deep[0]
	header, err := deep.Pool.Header(t.Context(), deep.ID)
	must(t, err)
	child := rbd.Child{PoolID: deep.Pool.Where().PoolID, ID: deep.ID}
	must(t, deep.Pool.RemoveChild(t.Context(), header.Parent.ID, header.Parent.Snapshot, child))
	must(t, deep.Pool.RemoveSnapshot(t.Context(), header.Parent.ID, header.Parent.Snapshot))
	found, err := image.Find(t.Context(), ceph.Process(), specOf("v3").Handle, nobody)
	must(t, err)
	mark := found.Marks.Volume
	mark.Source.Image = "another" // so that it is not known to be copied
	_, err = found.Change(t.Context(), map[string]string{image.VolumeKey: image.Written(mark)})
	must(t, err)
	want(t, "flatten", d.flatten(t.Context(), deep), fault.DataLoss, "v3")
	flattener := NewFlattener(FlattenOptions{})
	must(t, flattener.Sweep(t.Context(), start(ceph).Store))
	if len(flattener.queue) != 1 {
		t.Errorf("%d clones wait to be flattened, want the one", len(flattener.queue))
	}
}

// TestFlattenOfTheHalfMade has a clone that its parent does not know yet: it needs the parent.
func TestFlattenOfTheHalfMade(t *testing.T) {
	ceph, d := cloneChain(t, 3)
	deep := d.deep[0]
	found, err := image.Find(t.Context(), ceph.Process(), specOf("v3").Handle, nobody)
	must(t, err)
	mark := found.Marks.Volume
	mark.State = image.Copying
	found, err = found.Change(t.Context(), map[string]string{image.VolumeKey: image.Written(mark)})
	must(t, err)
	found.Marks.Volume = mark
	if copied, err := d.copied(t.Context(), found); copied || err != nil {
		t.Errorf("known to its parent: got copied %t, %v; want not", copied, err)
	}
	parent := found.Header.Parent
	must(t, found.Pool.RemoveChild(t.Context(), parent.ID, parent.Snapshot, childOf(found)))
	if copied, err := d.copied(t.Context(), found); copied || err != nil {
		t.Errorf("half made: got copied %t, %v; want not", copied, err)
	}
	must(t, d.flatten(t.Context(), deep)) // which needs the parent, and has it
	mark.State = image.Live
	_, err = found.Change(t.Context(), map[string]string{image.VolumeKey: image.Written(mark)})
	must(t, err)
	wantData("v3")(t, ceph)
}

// TestDeepClonesAreFoundWithoutTheIndex removes the index by hand: when somebody has built it
// anew, it names the clones that wait to be flattened, and no others.
func TestDeepClonesAreFoundWithoutTheIndex(t *testing.T) {
	ceph, d := cloneChain(t, 4)
	must(t, d.flatten(t.Context(), d.deep[0]))
	must(t, ceph.RemoveIndex(kube))
	_, _, err := start(ceph).Snapshots().List(t.Context(), "", 0)
	must(t, err)
	flattener := NewFlattener(FlattenOptions{})
	must(t, flattener.Sweep(t.Context(), start(ceph).Store))
	if len(flattener.queue) != 1 {
		t.Fatalf("%d clones found, want v4 alone", len(flattener.queue))
	}
	if deep := <-flattener.queue; deep.Name != "v4" || deep.ID != d.deep[1].ID {
		t.Errorf("found %s, ID %s, want v4, ID %s", deep.Name, deep.ID, d.deep[1].ID)
	}
}

// TestAsManySnapshotsAsAnImageCanHave holds that the limit is told before it hurts.
func TestAsManySnapshotsAsAnImageCanHave(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	must(t, made("a")(t.Context(), d))
	for range 500 {
		must(t, ceph.Snapshot(specOf("a").Handle, "by-hand-"+rbd.NewID()))
	}
	_, err := d.take(t.Context(), "a", "s")
	want(t, "take", err, fault.Exhausted, "by-hand-")
}

// TestIntentsOfDeletedVolumes holds that a snapshot that was announced and never taken
// keeps the image of a deleted volume for a while, and not for ever.
func TestIntentsOfDeletedVolumes(t *testing.T) {
	ceph := newCeph()
	killed := start(ceph)
	must(t, made("a")(t.Context(), killed))
	killed.process.Fail(rbdtest.Fault{Method: "TakeSnapshot", Kill: true})
	if _, err := killed.take(t.Context(), "a", "s"); err == nil {
		t.Fatal("take: no error, want the process killed")
	}
	d := start(ceph)
	must(t, d.delete(t.Context(), "a"))
	purgeAll(t, ceph)
	pool, err := ceph.Process().Pool(t.Context(), kube, nobody)
	must(t, err)
	trashed, err := pool.Trashed(t.Context())
	must(t, err)
	if len(trashed) != 1 {
		t.Fatalf("trash %v, want the image: its snapshot may yet be taken", trashed)
	}
	left, err := image.Image{Pool: pool, Name: "a", ID: trashed[0].ID}.Read(t.Context())
	must(t, err)
	must(t, d.Snapshots().DropIntent(t.Context(), left, "s", 0))
	purgeAll(t, ceph)
	wantNothing(t, ceph)
}

// TestNoSnapshotOfACloneStaysWithItsSource stops one process at each call of a clone, has another make the
// same clone, and kills the first at each call after that. The repeated request leaves nothing with the source.
func TestNoSnapshotOfACloneStaysWithItsSource(t *testing.T) {
	for stop, met := 0, true; met; stop++ {
		met = false
		for kill := stop; ; kill++ {
			ceph := newCeph()
			first, second := start(ceph), start(ceph)
			must(t, made("a")(t.Context(), first))
			first.process.Fail(rbdtest.Fault{When: rbdtest.After, Kill: true, Skip: kill})
			calls := 0
			first.process.OnCall(func(ctx context.Context, _ rbdtest.Call) {
				if calls++; calls == stop+1 {
					met = true
					acceptable(t, stop, "second", second.copy(ctx, "a", "b"))
				}
			})
			err := first.copy(t.Context(), "a", "b")
			must(t, start(ceph).copy(t.Context(), "a", "b"))
			pool, openErr := ceph.Process().Pool(t.Context(), kube, nobody)
			must(t, openErr)
			source, lookErr := image.Look(t.Context(), pool, "a")
			must(t, lookErr)
			for _, left := range source.Header.Snapshots {
				if left.Kind == rbd.UserSnapshot {
					t.Errorf("stop %d, kill %d: snapshot %s is left; calls %v", stop, kill, left.Name, first.process.Methods())
				}
			}
			if !first.process.Killed() {
				must(t, err)
				break
			}
		}
	}
}
