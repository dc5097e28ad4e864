package orphan

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// A made orphan, and how it is found.
type orphanCase struct {
	name string
	// make makes it in a world where pvc-0 is in order, and returns where it is to be found.
	make func(w *world) (where string)
	kind Kind
	what string // in the sentence
	do   string // in what is to be done
	// left says that a Watch leaves it to a person.
	left bool
}

func orphans() []orphanCase {
	return []orphanCase{
		{"volume without PersistentVolume", func(w *world) string {
			w.create("pvc-1")
			return at("pvc-1").String()
		}, Volume, "no PersistentVolume", "rbd-csi doctor remove main:kube/pvc-1", false},
		{"attached volume without PersistentVolume", func(w *world) string {
			w.create("pvc-1")
			w.attach("pvc-1", "node-a")
			return at("pvc-1").String()
		}, Volume, "attached to node-a", "remove", true},
		{"PersistentVolume without image", func(w *world) string {
			w.kube.know("pvc-1")
			return at("pvc-1").String()
		}, LostVolume, "pv-pvc-1", "kubectl delete pvc -n shop data; kubectl delete pv pv-pvc-1", true},
		{"PersistentVolume whose image is in the trash", func(w *world) string {
			w.create("pvc-1")
			w.kube.know("pvc-1")
			w.must(w.ceph.Trash(at("pvc-1")))
			return at("pvc-1").String()
		}, LostVolume, "pv-pvc-1", "rbd trash restore kube/v", true},
		{"snapshot without VolumeSnapshotContent", func(w *world) string {
			return w.take("pvc-0", "snap-1").String()
		}, Snapshot, "no VolumeSnapshotContent", "'main:kube/pvc-0@snap-1#v", true},
		{"VolumeSnapshotContent without snapshot", func(w *world) string {
			handle := volid.Snapshot{Image: at("pvc-0"), Name: "s", ImageID: w.find("pvc-0").ID}.String()
			w.kube.contents = append(w.kube.contents, Content{Name: "content-1", Handle: handle, Made: time.Now()})
			return handle
		}, LostSnapshot, "content-1", "kubectl delete volumesnapshotcontent content-1", true},
		{"name without header", func(w *world) string {
			_, err := w.driver("CreateHeader", 0).Create(w.Context(), specOf("pvc-1"), nobody)
			w.killed(err)
			return at("pvc-1").String()
		}, HalfMade, "nothing behind it", "remove", false},
		{"image without rbd_id", func(w *world) string {
			_, err := w.driver("AddName", 0).Create(w.Context(), specOf("pvc-1"), nobody)
			w.killed(err)
			return at("pvc-1").String()
		}, HalfMade, "rbd_id.pvc-1", "remove", false},
		{"rbd_id without header", func(w *world) string {
			w.create("pvc-1")
			w.must(w.open().RemoveHeader(w.Context(), w.find("pvc-1").ID))
			return at("pvc-1").String()
		}, HalfMade, "nothing behind it", "remove", false},
		{"clone that was never whole", func(w *world) string {
			spec, source := specOf("pvc-1"), at("pvc-0")
			spec.Source = &volume.Source{Volume: &source}
			_, err := w.driver("AddChild", 0).Create(w.Context(), spec, nobody)
			w.killed(err)
			return at("pvc-1").String()
		}, HalfMade, "never finished", "remove", false},
		{"half-made image whose deletion was interrupted", func(w *world) string {
			_, err := w.driver("CreateHeader", 0).Create(w.Context(), specOf("pvc-1"), nobody)
			w.killed(err)
			w.killed(w.driver("AddTrash", 0).Delete(w.Context(), at("pvc-1"), nobody))
			return at("pvc-1").String()
		}, HalfMade, "deletion was begun", "remove", false},
		{"deleted volume that has its name", func(w *world) string {
			w.create("pvc-1")
			w.killed(w.driver("AddTrash", 0).Delete(w.Context(), at("pvc-1"), nobody))
			return at("pvc-1").String()
		}, HalfMade, "restored", "rbd image-meta remove kube/pvc-1 rbd-csi.io/volume", true},
		{"announced snapshot", func(w *world) string {
			_, err := w.driver("TakeSnapshot", 0).Snapshots().Create(w.Context(), snapshot.CreateSpec{Source: at("pvc-0"), Request: "s"}, nobody)
			w.killed(err)
			return volid.Snapshot{Image: at("pvc-0"), Name: "s", ImageID: w.find("pvc-0").ID}.String()
		}, HalfMade, "announced", "remove", true},
		{"deleted volume that is not freed", func(w *world) string {
			w.create("pvc-1")
			w.delete("pvc-1")
			return at("pvc-1").String()
		}, Trash, "not freed", "rados -p kube listwatchers rbd_header.v", true},
		{"deleted volume without its last snapshot", func(w *world) string {
			w.create("pvc-1")
			handle := w.take("pvc-1", "s")
			w.delete("pvc-1")
			w.killed(w.driver("ChangeMeta", 1).Snapshots().Delete(w.Context(), handle, nobody))
			return at("pvc-1").String()
		}, Trash, "lost its last snapshot", "listwatchers", true},
		{"interrupted purge", func(w *world) string {
			w.must(w.open().AddTrash(w.Context(), rbd.NewID(), "pvc-1"))
			return at("pvc-1").String()
		}, Trash, "at its end", "listwatchers", true},
		{"name of a snapshot that is not there", func(w *world) string {
			w.setIndex("s/lost/", `{"id":"`+w.find("pvc-0").ID+`","image":"pvc-0","snapshot":"lost"}`)
			return "main:kube s/lost/"
		}, Index, "nothing behind it", "rados -p kube rmomapkey rbd_csi.index s/lost/", false},
		{"name of a group that is not there", func(w *world) string {
			w.setIndex("g/lost", `{"request":"lost","members":["v0"]}`)
			return "main:kube g/lost"
		}, Index, "nothing behind it", "rmomapkey", true},
		{"snapshot that the index lacks", func(w *world) string {
			w.contents(w.take("pvc-0", "s"))
			w.setIndex("s/s/", "")
			return "main:kube s/s/"
		}, Index, "lacks", "rados -p kube rm rbd_csi.index", true},
	}
}

// setIndex changes a pair of the pool's index behind the driver's back; the index is built before.
func (w *world) setIndex(key, value string) {
	w.Helper()
	w.must(snapshot.Build(w.Context(), w.open()))
	change := rbd.Change{Set: map[string]string{key: value}}
	if value == "" {
		change = rbd.Change{Remove: []string{key}}
	}
	w.must(w.open().ChangeIndex(w.Context(), change))
}

// contents makes VolumeSnapshotContents of snapshots.
func (w *world) contents(handles ...volid.Snapshot) {
	for _, handle := range handles {
		w.kube.contents = append(w.kube.contents, Content{Name: "content-" + handle.Name, Handle: handle.String(), Made: time.Now()})
	}
}

// inOrder returns a world in which nothing is wrong: a volume and a snapshot that Kubernetes knows.
func inOrder(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.create("pvc-0")
	w.kube.know("pvc-0")
	w.contents(w.take("pvc-0", "snap-0"))
	return w
}

func TestEachKindIsFound(t *testing.T) {
	kinds := map[Kind]bool{}
	for _, one := range orphans() {
		kinds[one.kind] = true
		t.Run(one.name, func(t *testing.T) {
			w := inOrder(t)
			w.wantFound(w.look().Findings)
			where := one.make(w)
			before := w.dump()
			found := w.look().Findings
			w.wantFound(found, string(one.kind)+" "+where)
			for _, f := range found {
				if !strings.Contains(f.What, one.what) || !strings.Contains(f.Do, one.do) {
					t.Errorf("got what %q and do %q, want %q and %q in them", f.What, f.Do, one.what, one.do)
				}
			}
			if after := w.dump(); after != before {
				t.Errorf("a look has changed\n%s\nto\n%s", before, after)
			}
		})
	}
	for _, kind := range Kinds() {
		if !kinds[kind] {
			t.Errorf("no case is of kind %s", kind)
		}
	}
}

// TestWhatIsYoungIsNoOrphan holds that nothing counts before the grace, and that each finding is told once after it.
func TestWhatIsYoungIsNoOrphan(t *testing.T) {
	for _, one := range orphans() {
		t.Run(one.name, func(t *testing.T) {
			w := inOrder(t)
			w.ahead = 0
			one.make(w)
			for _, f := range w.look().Findings {
				if !f.Since.IsZero() {
					t.Errorf("got %v, since %v, want nothing that is younger than the grace", f, f.Since)
				}
			}
			watch, told := w.watch(w.checker, time.Minute)
			var counts map[Kind]int
			watch.Counted = func(c map[Kind]int) { counts = c }
			before := w.dump()
			for range 2 {
				w.must(watch.Once(t.Context()))
				w.ahead += 20 * time.Minute
			}
			if after := w.dump(); len(*told) > 0 || counts[one.kind] != 0 || before != after {
				t.Errorf("within the grace: told %v, counted %d, and Ceph changed: %t; want none", *told, counts[one.kind], before != after)
			}
			w.ahead, watch.Collect = 2*time.Hour, 0
			for range 2 {
				w.must(watch.Once(t.Context()))
			}
			if len(*told) != 1 || counts[one.kind] != 1 {
				t.Errorf("after the grace: told %v, counted %d, want one", *told, counts[one.kind])
			}
		})
	}
}

// TestOthersAreLeftAlone has images of others in all states in which they can look like ours.
func TestOthersAreLeftAlone(t *testing.T) {
	w := inOrder(t)
	ctx, opened := t.Context(), w.open()
	layout := w.find("pvc-0").Header.Layout
	id, err := w.ceph.Create(at("by-hand"), layout)
	w.must(err)
	_, err = w.ceph.Clone(at("pvc-0"), "clone-by-hand") // begins with the marks of pvc-0
	w.must(err)
	w.must(w.ceph.Snapshot(at("pvc-0"), "snapshot-by-hand"))
	w.must(opened.AddEntry(ctx, "half-made-by-hand", "10aa"))
	_, err = w.ceph.Create(at("trashed-by-hand"), layout)
	w.must(err)
	w.must(w.ceph.Trash(at("trashed-by-hand")))
	w.must(opened.AddTrash(ctx, "10bb", "half-purged-by-hand"))
	w.must(w.ceph.SetMeta(at("by-hand"), image.VolumeKey, image.Written(image.VolumeMark{ID: "v0123456789abc", State: image.Condemned})))
	w.kube.volumes = append(w.kube.volumes, Persistent{Name: "static", Handle: at("by-hand").String(), Made: time.Now()})
	w.wantFound(w.look().Findings)

	w.kube.volumes = w.kube.volumes[:1] // the static PersistentVolume is deleted
	w.wantFound(w.look().Findings)
	before := w.dump()
	watch, _ := w.watch(w.checker, time.Minute)
	w.must(watch.Once(ctx))
	for _, name := range []string{"by-hand", "clone-by-hand", "half-made-by-hand"} {
		w.want("remove "+name, w.checker.Remove(ctx, at(name).String()), fault.InUse, name)
	}
	byHand := volid.Snapshot{Image: at("pvc-0"), Name: "snapshot-by-hand", ImageID: w.find("pvc-0").ID}
	w.want("may it be removed", Spare(ctx, w.find("by-hand")), fault.InUse, "did not make")
	w.want("remove a snapshot", w.checker.Remove(ctx, byHand.String()), fault.NotFound, "driver has made no such")
	if after := w.dump(); after != before {
		t.Errorf("image %s or another was touched:\n%s\nwant\n%s", id, after, before)
	}
}

// TestRaces changes the world in the middle of a look.
func TestRaces(t *testing.T) {
	for name, test := range map[string]struct {
		before func(w *world)
		listed func(w *world) // after the first list of Kubernetes, before the pools
		walked func(w *world) // after the pools, before the second list
	}{
		"a volume is made": {
			listed: func(w *world) { w.create("pvc-1") },
			walked: func(w *world) { w.kube.know("pvc-1") },
		},
		"a PersistentVolume is deleted, its image stays": {
			listed: func(w *world) { w.kube.forget() },
		},
		"a volume is deleted with its PersistentVolume": {
			before: func(w *world) { w.create("pvc-1"); w.kube.know("pvc-1") },
			listed: func(w *world) { w.delete("pvc-1") },
			walked: func(w *world) { w.kube.volumes = w.kube.volumes[:1] },
		},
		"a volume is being deleted": {
			before: func(w *world) { w.kube.know("pvc-1"); w.kube.volumes[1].Going = true },
		},
		"a volume begins to be deleted": {
			before: func(w *world) { w.kube.know("pvc-1") },
			walked: func(w *world) { w.kube.volumes[1].Going = true },
		},
		"a volume is deleted after it was seen": {
			before: func(w *world) { w.create("pvc-1") },
			walked: func(w *world) { w.delete("pvc-1") },
		},
		"a PersistentVolume was made just now": {
			before: func(w *world) { w.kube.know("pvc-1"); w.kube.volumes[1].Made = time.Now().Add(w.ahead) },
		},
		"a snapshot is taken": {
			listed: func(w *world) { w.contents(w.take("pvc-0", "s")) },
		},
		"a snapshot is taken while its content has no handle": {
			before: func(w *world) {
				w.kube.contents = append(w.kube.contents, Content{Name: "pending", Made: time.Now()})
				w.take("pvc-0", "s")
			},
		},
		"a snapshot is taken while a group has no handles": {
			before: func(w *world) {
				w.kube.contents = append(w.kube.contents, Content{Name: "pending", Made: time.Now(), Group: true})
				w.take("pvc-0", "s")
			},
		},
		"a snapshot of a group has no content of its own yet": {
			before: func(w *world) {
				w.kube.contents = append(w.kube.contents, Content{Name: "group", Handle: w.take("pvc-0", "s").String(), Made: time.Now(), Group: true})
			},
		},
		"a snapshot that only a group names is gone": {
			before: func(w *world) {
				gone := w.kube.contents[0]
				gone.Handle += "0"
				gone.Group = true
				w.kube.contents = append(w.kube.contents, gone)
			},
		},
		"a half-made volume is finished": {
			before: func(w *world) {
				_, err := w.driver("CreateHeader", 0).Create(w.Context(), specOf("pvc-1"), nobody)
				w.killed(err)
			},
			walked: func(w *world) { w.create("pvc-1"); w.kube.know("pvc-1") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := inOrder(t)
			if test.before != nil {
				test.before(w)
			}
			w.process.OnCall(func(_ context.Context, call rbdtest.Call) {
				if call.Method == "Pools" && test.listed != nil {
					test.listed(w)
				}
			})
			w.kube.before = func(times int) {
				if times == 2 && test.walked != nil {
					test.walked(w)
				}
			}
			report := w.look()
			w.wantFound(remaining(report.Findings))
			if notes := strings.Join(report.Notes, "\n"); strings.Contains(notes, "not looked through") {
				t.Errorf("got notes %q, want nothing left out", notes)
			}
		})
	}
}

// TestOtherDriversCount holds that what another driver's object names is no orphan, as when the doctor is told a wrong
// name of the driver, and that nobody looks for what other drivers have elsewhere.
func TestOtherDriversCount(t *testing.T) {
	w := inOrder(t)
	for i := range w.kube.volumes {
		w.kube.volumes[i].Other = true
	}
	for i := range w.kube.contents {
		w.kube.contents[i].Other = true
	}
	w.kube.volumes = append(w.kube.volumes, Persistent{Name: "elsewhere", Handle: "vol-0123", Made: time.Now(), Other: true})
	w.kube.contents = append(w.kube.contents,
		Content{Name: "elsewhere", Handle: "snap-0123", Made: time.Now(), Other: true}, Content{Name: "pending", Made: time.Now(), Other: true})
	w.wantFound(w.look().Findings)
	w.want("remove", w.checker.Remove(t.Context(), at("pvc-0").String()), fault.InUse, "pv-pvc-0")
}

// TestNotesOfALook holds that what was not compared is said, and is not taken for lost.
func TestNotesOfALook(t *testing.T) {
	w := inOrder(t)
	w.create("pvc-1")
	w.checker.Kubernetes = nil
	report := w.look()
	w.wantFound(report.Findings)
	if notes := strings.Join(report.Notes, "\n"); !strings.Contains(notes, "Kubernetes was not asked") {
		t.Errorf("got notes %q, want that Kubernetes was not asked", notes)
	}

	w = inOrder(t)
	w.process.Fail(rbdtest.Fault{Method: "Entries", Times: rbdtest.Always})
	w.process.Fail(rbdtest.Fault{Method: "FindName", Times: rbdtest.Always})
	report, err := w.checker.Look(t.Context())
	w.must(err)
	w.wantFound(report.Findings)
	if notes := strings.Join(report.Notes, "\n"); !report.Incomplete || !strings.Contains(notes, "pool main:kube was not looked through") {
		t.Errorf("got notes %q, incomplete %t, want the pool in them", notes, report.Incomplete)
	}

	w = inOrder(t)
	w.kube.err = errNoAnswer
	if _, err := w.checker.Look(t.Context()); err == nil {
		t.Error("Kubernetes does not answer: got no error")
	}
}

// TestMarksThatCannotBeRead holds that such an image is told and takes part in nothing.
func TestMarksThatCannotBeRead(t *testing.T) {
	w := inOrder(t)
	w.must(w.ceph.SetMeta(at("pvc-0"), image.VolumeKey, "{"))
	report := w.look()
	w.wantFound(report.Findings)
	if notes := strings.Join(report.Notes, "\n"); !strings.Contains(notes, "pvc-0") {
		t.Errorf("got notes %q, want the image in them", notes)
	}
}
