package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

const mib = 1 << 20

var (
	kube   = volid.Pool{Cluster: "main", Pool: "kube"}
	other  = volid.Pool{Cluster: "main", Pool: "other"}
	nobody params.Credentials
	layout = rbd.Layout{
		Bytes: 64 * mib, ObjectBytes: 4 * mib,
		Features: rbd.Layering | rbd.ExclusiveLock | rbd.ObjectMap | rbd.FastDiff,
	}
)

func newCeph() *rbdtest.Ceph {
	ceph := rbdtest.New()
	ceph.AddCluster("main").AddUser("csi", "KEY").AddPool("kube", "team").AddPool("other")
	return ceph
}

// A driver is a process of the driver. What package volume does of a store's work is done here in
// the plainest way.
type driver struct {
	*Store
	ceph    *rbdtest.Ceph
	process *rbdtest.Process
}

func start(ceph *rbdtest.Ceph) *driver {
	d := &driver{ceph: ceph, process: ceph.Process()}
	d.Store = NewStore(d.process, func(ctx context.Context, of image.Image) error {
		found, err := of.Read(ctx)
		if err != nil || !found.Headed {
			return err
		}
		if empty, err := Emptied(ctx, found); err != nil || !empty {
			return err
		}
		err = found.Pool.Purge(ctx, found.ID)
		if errors.Is(err, fault.NotFound) {
			return nil
		}
		return err
	})
	return d
}

func of(name string) volid.Image { return volid.Image{Pool: kube, Name: name} }

func all(names ...string) (handles []volid.Image) {
	for _, name := range names {
		handles = append(handles, of(name))
	}
	return handles
}

func open(t *testing.T, ceph *rbdtest.Ceph, at volid.Pool) rbd.Pool {
	t.Helper()
	pool, err := ceph.Process().Pool(t.Context(), at, nobody)
	must(t, err)
	return pool
}

// addVolumes makes volumes of the driver.
func addVolumes(t *testing.T, ceph *rbdtest.Ceph, handles ...volid.Image) {
	t.Helper()
	for _, handle := range handles {
		pool, id := open(t, ceph, handle.Pool), rbd.NewID()
		must(t, errors.Join(
			pool.AddEntry(t.Context(), handle.Name, id),
			pool.CreateHeader(t.Context(), id, layout, map[string]string{
				image.VolumeKey: image.Written(image.VolumeMark{ID: id, State: image.Live}),
			}),
			pool.EnsureObjectMap(t.Context(), id, layout),
			pool.AddName(t.Context(), handle.Name, id),
		))
	}
}

// deleteVolume does what package volume does with a volume: one that has snapshots is retired.
func deleteVolume(ctx context.Context, ceph *rbdtest.Ceph, handle volid.Image) error {
	pool, err := ceph.Process().Pool(ctx, handle.Pool, nobody)
	if err != nil {
		return err
	}
	found, err := image.Look(ctx, pool, handle.Name)
	if err != nil {
		return err
	}
	mark := found.Marks.Volume
	mark.State = image.Retired
	_, err = found.Set(ctx, image.VolumeKey, image.Written(mark))
	err = errors.Join(err, pool.AddTrash(ctx, found.ID, found.Name),
		pool.RemoveName(ctx, found.Name, found.ID), pool.RemoveEntry(ctx, found.Name, found.ID))
	if err != nil {
		return err
	}
	return start(ceph).emptied(ctx, found)
}

// sweepTrash does what package volume does from time to time: it looks whether retired images
// have lost their last snapshot.
func sweepTrash(t *testing.T, ceph *rbdtest.Ceph) {
	t.Helper()
	pool := open(t, ceph, kube)
	trashed, err := pool.Trashed(t.Context())
	must(t, err)
	for _, one := range trashed {
		must(t, start(ceph).emptied(t.Context(), image.Image{Pool: pool, Name: one.Name, ID: one.ID}))
	}
}

func (d *driver) take(ctx context.Context, source, request string) (Snapshot, error) {
	return d.Create(ctx, CreateSpec{Source: of(source), Request: request}, nobody)
}

func taken(t *testing.T, ceph *rbdtest.Ceph, source, request string) Snapshot {
	t.Helper()
	made, err := start(ceph).take(t.Context(), source, request)
	must(t, err)
	return made
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want checks an error's kind, and that its text has a word that helps the user.
func want(t *testing.T, what string, err error, kind fault.Kind, word string) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), word) {
		t.Errorf("%s: error %v, want kind %v and %q in its text", what, err, kind, word)
	}
}

// left returns what exists of snapshots and the index: the marks, too. An index that is whole and empty
// is nothing.
func left(ceph *rbdtest.Ceph) []string {
	var lines []string
	for _, line := range ceph.Dump() {
		isSnapshot := strings.Contains(line, "rbd_snapshot") || strings.Contains(line, "metadata_"+image.SnapshotKey(""))
		isEntry := strings.Contains(line, "rbd_csi.index") && !strings.HasSuffix(line, "complete 1")
		if isSnapshot || isEntry {
			lines = append(lines, line)
		}
	}
	return lines
}

func wantNoneLeft(t *testing.T, ceph *rbdtest.Ceph) {
	t.Helper()
	if lines := left(ceph); len(lines) > 0 {
		t.Errorf("left:\n%s\nwant nothing", strings.Join(lines, "\n"))
	}
}

// index returns the pairs of a pool's index.
func index(t *testing.T, ceph *rbdtest.Ceph, at volid.Pool) map[string]string {
	t.Helper()
	pairs := map[string]string{}
	for _, line := range ceph.Dump() {
		if pair, found := strings.CutPrefix(line, at.String()+" rbd_csi.index "); found {
			key, value, _ := strings.Cut(pair, " ")
			pairs[key] = value
		}
	}
	return pairs
}

// failing runs a request with each way in which its calls can fail, one call at a time, and
// repeats it from another process.
func failing(t *testing.T, before func(*testing.T, *rbdtest.Ceph), request func(context.Context, *driver) error, check func(*testing.T, *rbdtest.Ceph)) {
	for _, how := range []rbdtest.Fault{
		{When: rbdtest.Before}, {When: rbdtest.After}, {When: rbdtest.Late},
		{When: rbdtest.Before, Kill: true}, {When: rbdtest.After, Kill: true},
	} {
		t.Run(fmt.Sprintf("%s/kill=%t", how.When, how.Kill), func(t *testing.T) {
			for skip := 0; ; skip++ {
				ceph := newCeph()
				before(t, ceph)
				first := start(ceph)
				how.Skip = skip
				first.process.Fail(how)
				err := request(t.Context(), first)
				ceph.Land()
				if err == nil {
					if skip < 2 {
						t.Fatalf("the request made only %d calls", skip)
					}
					return
				}
				second := start(ceph)
				if err := request(t.Context(), second); err != nil {
					t.Fatalf("repeated after call %d (%v) failed: %v", skip+1, first.process.Methods(), err)
				}
				check(t, ceph)
				if t.Failed() {
					t.Fatalf("after call %d (%v) had failed", skip+1, first.process.Methods())
				}
			}
		})
	}
}

func TestOperationsOfASnapshot(t *testing.T) {
	ceph := newCeph()
	addVolumes(t, ceph, of("v"))
	d, ctx := start(ceph), t.Context()
	_, err := d.take(ctx, "v", "first")
	must(t, err)
	var made Snapshot
	for _, step := range []struct {
		name string
		most int
		do   func() error
	}{
		{"create", 38, func() (err error) { made, err = d.take(ctx, "v", "s"); return err }},
		{"create again", 2, func() error { _, err := d.take(ctx, "v", "s"); return err }},
		{"get", 1, func() error { _, err := d.Get(ctx, made.Handle, nobody); return err }},
		{"delete", 35, func() error { return d.Delete(ctx, made.Handle, nobody) }},
		{"delete again", 1, func() error { return d.Delete(ctx, made.Handle, nobody) }},
	} {
		d.process.Reset()
		must(t, step.do())
		if got := d.process.Operations(); got > step.most {
			t.Errorf("%s: %d operations (%v), want at most %d", step.name, got, d.process.Methods(), step.most)
		}
	}
}

func TestEachStepOfASnapshotFails(t *testing.T) {
	volumes := func(t *testing.T, ceph *rbdtest.Ceph) { addVolumes(t, ceph, all("a", "b")...) }
	t.Run("create", func(t *testing.T) {
		failing(t, volumes, func(ctx context.Context, d *driver) error {
			_, err := d.take(ctx, "a", "s")
			return err
		}, func(t *testing.T, ceph *rbdtest.Ceph) {
			if lines := left(ceph); len(lines) != 3 {
				t.Errorf("left:\n%s\nwant a snapshot, a mark and an entry", strings.Join(lines, "\n"))
			}
			_, err := start(ceph).take(t.Context(), "b", "s")
			want(t, "the name for another volume", err, fault.Exists, "main:kube/a")
		})
	})
	t.Run("create and delete", func(t *testing.T) {
		failing(t, volumes, func(ctx context.Context, d *driver) error {
			made, err := d.take(ctx, "a", "s")
			if err != nil {
				return err
			}
			return d.Delete(ctx, made.Handle, nobody)
		}, wantNoneLeft)
	})
	t.Run("delete the last of a deleted volume", func(t *testing.T) {
		var made Snapshot
		failing(t, func(t *testing.T, ceph *rbdtest.Ceph) {
			volumes(t, ceph)
			made = taken(t, ceph, "a", "s")
			must(t, deleteVolume(t.Context(), ceph, of("a")))
		}, func(ctx context.Context, d *driver) error { return d.Delete(ctx, made.Handle, nobody) },
			func(t *testing.T, ceph *rbdtest.Ceph) {
				wantNoneLeft(t, ceph)
				sweepTrash(t, ceph)
				for _, line := range ceph.Dump() {
					if strings.Contains(line, made.Handle.ImageID) {
						t.Errorf("left: %s, want nothing of the deleted volume", line)
					}
				}
			})
	})
}

func TestNamesAreUnique(t *testing.T) {
	ceph := newCeph()
	ctx := t.Context()
	addVolumes(t, ceph, all("a", "b")...)
	d := start(ceph)
	first := taken(t, ceph, "a", "s")
	again, err := d.take(ctx, "a", "s")
	if err != nil || again != first {
		t.Errorf("create again: %v, error %v, want %v", again, err, first)
	}
	_, err = d.take(ctx, "b", "s")
	want(t, "a name that another volume's snapshot has", err, fault.Exists, first.Handle.ImageID)

	must(t, deleteVolume(ctx, ceph, of("a")))
	again, err = d.take(ctx, "a", "s")
	if err != nil || again != first {
		t.Errorf("create again of a deleted volume: %v, error %v, want %v", again, err, first)
	}
	must(t, d.Delete(ctx, first.Handle, nobody))
	if _, err = d.take(ctx, "b", "s"); err != nil {
		t.Errorf("a name that is free again: %v", err)
	}
	must(t, ceph.Snapshot(of("b"), "foreign"))
	_, err = d.take(ctx, "b", "foreign")
	want(t, "a name that somebody else's snapshot has", err, fault.Exists, "not made by this driver")
}

// TestTheIndexIsRebuilt removes the index by hand. Each request that needs it makes it
// from the images, those in the trash included.
func TestTheIndexIsRebuilt(t *testing.T) {
	for name, use := range map[string]func(ctx context.Context, d *driver, made string) error{
		"create": func(ctx context.Context, d *driver, made string) error {
			_, err := d.take(ctx, "c", "new-"+made)
			return err
		},
		"list": func(ctx context.Context, d *driver, _ string) error { _, _, err := d.List(ctx, "", 0); return err },
		"list of": func(ctx context.Context, d *driver, _ string) error {
			_, _, err := d.ListOf(ctx, of("gone"), "", 0)
			return err
		},
		"get group": func(ctx context.Context, d *driver, _ string) error {
			_, err := d.GetGroup(ctx, volid.Group{Pool: kube, Name: "g"}, nil, nobody)
			return err
		},
		"create group": func(ctx context.Context, d *driver, made string) error {
			_, err := d.CreateGroup(ctx, GroupSpec{Request: "new-" + made, Sources: all("b", "c")}, nobody)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ceph, ctx := newCeph(), t.Context()
			addVolumes(t, ceph, all("a", "b", "c", "gone")...)
			taken(t, ceph, "a", "s")
			taken(t, ceph, "gone", "of-a-deleted-volume")
			must(t, deleteVolume(ctx, ceph, of("gone")))
			_, err := start(ceph).CreateGroup(ctx, GroupSpec{Request: "g", Sources: all("a", "b")}, nobody)
			must(t, err)
			before := index(t, ceph, kube)
			for _, made := range []string{"nothing", "a-part"} {
				must(t, ceph.RemoveIndex(kube))
				if made == "a-part" {
					must(t, open(t, ceph, kube).MakeIndex(ctx))
				}
				must(t, use(ctx, start(ceph), made))
				after := index(t, ceph, kube)
				maps.DeleteFunc(after, func(key, _ string) bool { return strings.Contains(key, "new") })
				if !maps.Equal(before, after) {
					t.Errorf("where there was %s, the index is\n%v\nwant\n%v", made, after, before)
				}
			}
		})
	}
}

func TestAStaleNameIsTakenOver(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	addVolumes(t, ceph, all("a", "b")...)
	killed := start(ceph)
	killed.process.Fail(rbdtest.Fault{Method: "ChangeMeta", Kill: true})
	if _, err := killed.take(ctx, "a", "s"); err == nil {
		t.Fatal("the create was not killed")
	}
	made := taken(t, ceph, "b", "s")
	want := map[string]string{"complete": "1", "s/s/": entry{ID: made.Handle.ImageID, Image: "b", Snapshot: "s"}.String()}
	if got := index(t, ceph, kube); !maps.Equal(got, want) {
		t.Errorf("index %v, want %v", got, want)
	}
}

// TestANameIsNotLostWithTheIndex removes the index by hand, and the next request that builds it anew asks
// for a name that a snapshot of another volume has, whichever of the two is found first.
func TestANameIsNotLostWithTheIndex(t *testing.T) {
	for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
		ceph := newCeph()
		addVolumes(t, ceph, of("a"), of("b"))
		d := start(ceph)
		made, err := d.Create(t.Context(), CreateSpec{Source: of(names[0]), Request: "s"}, nobody)
		must(t, err)
		must(t, ceph.RemoveIndex(kube))
		_, err = d.Create(t.Context(), CreateSpec{Source: of(names[1]), Request: "s"}, nobody)
		if fault.Of(err) != fault.Exists {
			t.Errorf("of %s, when that of %s has the name: got %v, want %v", names[1], names[0], err, fault.Exists)
		}
		page, _, err := d.List(t.Context(), "", 0)
		if err != nil || len(page) != 1 || page[0].Handle != made.Handle {
			t.Errorf("list: got %v, %v; want %s alone", page, err, made.Handle)
		}
	}
}

// TestASnapshotThatAClientRefuses has librbd answer that a client of the image refused: whoever takes a
// group snapshot does so. That passes, so it must not be an answer that Kubernetes takes for final.
func TestASnapshotThatAClientRefuses(t *testing.T) {
	ceph := newCeph()
	addVolumes(t, ceph, of("a"))
	d := start(ceph)
	d.process.Fail(rbdtest.Fault{Method: "TakeSnapshot", Err: fault.InUse})
	spec := CreateSpec{Source: of("a"), Request: "s"}
	if _, err := d.Create(t.Context(), spec, nobody); fault.Of(err) != fault.Unavailable {
		t.Errorf("refused: got kind %v (%v), want %v", fault.Of(err), err, fault.Unavailable)
	}
	if _, err := d.Create(t.Context(), spec, nobody); err != nil {
		t.Errorf("again: got %v, want nil", err)
	}
}

func TestTooManySnapshots(t *testing.T) {
	ceph := newCeph()
	addVolumes(t, ceph, of("v"))
	for i := range mostSnapshots {
		must(t, ceph.Snapshot(of("v"), fmt.Sprintf("hand-%d", i)))
	}
	_, err := start(ceph).take(t.Context(), "v", "s")
	want(t, "one more", err, fault.Exhausted, "hand-0, hand-1")
	_, err = start(ceph).CreateGroup(t.Context(), GroupSpec{Request: "g", Sources: all("v")}, nobody)
	want(t, "one more in a group", err, fault.Exhausted, "hand-0, hand-1")
	if slices.ContainsFunc(left(ceph), func(line string) bool { return strings.Contains(line, image.SnapshotKey("")) }) {
		t.Errorf("left:\n%s\nwant no marks", strings.Join(left(ceph), "\n"))
	}
}

// TestAHalfRemovedSnapshotGoes kills a delete when the snapshot is in the trash's namespace and not removed: librbd does the
// one after the other.
func TestAHalfRemovedSnapshotGoes(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	addVolumes(t, ceph, of("v"))
	made := taken(t, ceph, "v", "s")
	killed := start(ceph)
	must(t, addChild(killed, made))
	killed.process.Fail(rbdtest.Fault{Method: "RemoveSnapshot", When: rbdtest.After, Kill: true})
	if err := killed.Delete(ctx, made.Handle, nobody); err == nil {
		t.Fatal("the delete was not killed")
	}
	found, err := start(ceph).open(ctx, made.Handle, nobody)
	must(t, err)
	half := found.Header.Snapshots[0]
	must(t, found.Pool.RemoveChild(ctx, found.ID, half.ID, childOf(found)))
	if lines := left(ceph); half.Kind != rbd.TrashedSnapshot || len(lines) == 0 {
		t.Fatalf("before the repeat: got kind %d and %v, want a snapshot in the trash", half.Kind, lines)
	}
	must(t, start(ceph).Delete(ctx, made.Handle, nobody))
	wantNoneLeft(t, ceph)
}
