package orphan

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// TestCollectRemovesWhatPolicyAllows holds which orphans a Watch removes, and that it leaves all else as it is.
func TestCollectRemovesWhatPolicyAllows(t *testing.T) {
	for _, one := range orphans() {
		t.Run(one.name, func(t *testing.T) {
			w := inOrder(t)
			where := one.make(w)
			before := w.dump()
			watch, _ := w.watch(w.checker, time.Minute)
			w.must(watch.Once(t.Context()))
			w.ahead += 2 * time.Hour // what has no age is an orphan when it was seen for so long
			w.must(watch.Once(t.Context()))
			left := strings.Contains(before, "\n") && before == w.dump()
			if left != one.left {
				t.Errorf("left as it was: %t, want %t; now there is\n%s", left, one.left, w.dump())
			}
			w.purge()
			for _, f := range w.look().Findings {
				if !one.left && f.Where == where {
					t.Errorf("got %v after it was removed", f)
				}
			}
			if _, err := w.driver("", 0).Get(t.Context(), at("pvc-0"), nobody); err != nil {
				t.Errorf("the volume in order: got %v", err)
			}
		})
	}
}

// purge frees what is condemned in the trash.
func (w *world) purge() {
	w.Helper()
	opened := w.open()
	trashed, err := opened.Trashed(w.Context())
	w.must(err)
	for _, entry := range trashed {
		found, err := image.Image{Pool: opened, Name: entry.Name, ID: entry.ID}.Read(w.Context())
		w.must(err)
		if !found.Marks.Condemned() {
			continue
		}
		if !found.Header.Whole {
			w.must(opened.RemoveHeader(w.Context(), entry.ID))
		}
		if err := opened.Purge(w.Context(), entry.ID); err != nil && !fault.Is(err, fault.InUse) {
			w.Fatal(err)
		}
	}
}

// TestCollectNeverTakesWhatMayHoldData has volumes without a PersistentVolume that somebody may have used.
func TestCollectNeverTakesWhatMayHoldData(t *testing.T) {
	for name, use := range map[string]func(w *world){
		"data":     func(w *world) { w.must(w.ceph.Write(at("pvc-1"))) },
		"attached": func(w *world) { w.attach("pvc-1", "node-a") },
		"was attached": func(w *world) {
			w.attach("pvc-1", "node-a")
			w.must(w.driver("", 0).Detach(w.Context(), at("pvc-1"), "node-a", nobody))
		},
		"formatted": func(w *world) {
			_, err := w.find("pvc-1").RecordFormat(w.Context(), image.Format{Type: "ext4", UUID: "u"})
			w.must(err)
		},
		"snapshot": func(w *world) { w.contents(w.take("pvc-1", "s")) },
		"had a snapshot": func(w *world) {
			w.must(w.driver("", 0).Snapshots().Delete(w.Context(), w.take("pvc-1", "s"), nobody))
		},
		"snapshot of a person": func(w *world) { w.must(w.ceph.Snapshot(at("pvc-1"), "s")) },
		"open": func(w *world) {
			_, err := w.ceph.Open(at("pvc-1"))
			w.must(err)
		},
		"clone": func(w *world) {
			w.delete("pvc-1")
			spec, source := specOf("pvc-1"), at("pvc-0")
			spec.Source = &volume.Source{Volume: &source}
			_, err := w.driver("", 0).Create(w.Context(), spec, nobody)
			w.must(err)
		},
		"flattened clone": func(w *world) {
			w.delete("pvc-1")
			spec, source := specOf("pvc-1"), at("pvc-0")
			spec.Source = &volume.Source{Volume: &source}
			_, err := w.driver("", 0).Create(w.Context(), spec, nobody)
			w.must(err)
			w.must(w.open().Flatten(w.Context(), w.find("pvc-1").ID))
		},
		"PersistentVolume since": func(w *world) {
			w.kube.before = func(times int) {
				if times == 3 { // when it is asked for once more before anything is removed
					w.kube.know("pvc-1")
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := inOrder(t)
			w.create("pvc-1")
			use(w)
			id, before := w.find("pvc-1").ID, w.dump()
			watch, _ := w.watch(w.checker, time.Minute)
			w.must(watch.Once(t.Context()))
			if found, err := image.FindIn(t.Context(), w.open(), "pvc-1"); err != nil || found.ID != id || w.dump() != before {
				t.Errorf("got image %s, %v, and\n%s\nwant %s and\n%s", found.ID, err, w.dump(), id, before)
			}
		})
	}
}

// TestCollectAndAnAttachMeet has a node attach, or a snapshot be announced, after the volume was found to be empty.
func TestCollectAndAnAttachMeet(t *testing.T) {
	for name, use := range map[string]func(w *world){
		"attach":   func(w *world) { w.attach("pvc-1", "node-a") },
		"snapshot": func(w *world) { w.take("pvc-1", "s") },
	} {
		t.Run(name, func(t *testing.T) {
			w := inOrder(t)
			w.create("pvc-1")
			looked, met := false, false
			w.process.OnCall(func(_ context.Context, call rbdtest.Call) {
				if looked && !met { // whatever comes next
					met = true
					use(w)
				}
				looked = looked || call.Method == "HoldsData"
			})
			watch, _ := w.watch(w.checker, time.Minute)
			w.must(watch.Once(t.Context()))
			if !met {
				t.Fatal("nothing was to be removed")
			}
			if _, err := image.FindIn(t.Context(), w.open(), "pvc-1"); err != nil {
				t.Errorf("got %v, want the volume", err)
			}
		})
	}
}

// TestCollectLeavesALaterVolumeOfTheName has the volume be deleted and made anew before it is removed.
func TestCollectLeavesALaterVolumeOfTheName(t *testing.T) {
	w := inOrder(t)
	w.create("pvc-1")
	w.kube.before = func(times int) {
		if times == 3 {
			w.delete("pvc-1")
			w.create("pvc-1")
		}
	}
	watch, _ := w.watch(w.checker, time.Minute)
	w.must(watch.Once(t.Context()))
	if _, err := image.FindIn(t.Context(), w.open(), "pvc-1"); err != nil {
		t.Errorf("got %v, want the later volume", err)
	}
}

// TestTwoCollectors has several controllers remove the same orphans at once, while the volumes are asked for again.
func TestTwoCollectors(t *testing.T) {
	w := inOrder(t)
	w.create("pvc-1", "pvc-2")
	_, err := w.driver("CreateHeader", 0).Create(t.Context(), specOf("pvc-3"), nobody)
	w.killed(err)
	w.setIndex("s/lost/", `{"id":"`+w.find("pvc-0").ID+`","image":"pvc-0","snapshot":"lost"}`)
	var all []*Watch
	for range 3 {
		watch, _ := w.watch(w.another(w.ceph.Process()), time.Minute)
		w.must(watch.Once(t.Context())) // remembers what has no age; one of them has removed the volumes
		all = append(all, watch)
		w.create("pvc-1", "pvc-2")
	}
	w.ahead += 2 * time.Hour
	var running sync.WaitGroup
	for _, watch := range all {
		running.Go(func() {
			if err := watch.Once(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	w.wantFound(remaining(w.look().Findings))
	w.create("pvc-1", "pvc-2", "pvc-3")
	w.kube.know("pvc-1", "pvc-2", "pvc-3")
	w.wantFound(remaining(w.look().Findings))
}

// remaining leaves out what waits in the trash to be freed.
func remaining(all []Finding) (rest []Finding) {
	for _, one := range all {
		if one.Kind != Trash {
			rest = append(rest, one)
		}
	}
	return rest
}

// TestNothingIsCollectedByDefault holds that a Watch without an age removes nothing.
func TestNothingIsCollectedByDefault(t *testing.T) {
	w := inOrder(t)
	w.create("pvc-1")
	before := w.dump()
	watch, told := w.watch(w.checker, 0)
	w.must(watch.Once(t.Context()))
	if len(*told) != 1 || w.dump() != before {
		t.Errorf("told %v, and Ceph changed: %t, want the volume told and nothing changed", *told, w.dump() != before)
	}
}

// TestForgottenNameComesBack has a snapshot of the name be taken while its stale entry is removed.
func TestForgottenNameComesBack(t *testing.T) {
	w := inOrder(t)
	value := `{"id":"` + w.find("pvc-0").ID + `","image":"pvc-0","snapshot":"lost"}`
	w.setIndex("s/lost/", value)
	met := false
	w.process.OnCall(func(_ context.Context, call rbdtest.Call) {
		if call.Method == "ChangeIndex" && !met {
			met = true
			w.contents(w.take("pvc-0", "lost"))
		}
	})
	watch, _ := w.watch(w.checker, time.Minute)
	w.must(watch.Once(t.Context()))
	w.ahead += 2 * time.Hour
	w.must(watch.Once(t.Context()))
	if !met {
		t.Fatal("the entry was not removed")
	}
	w.wantFound(w.look().Findings)
}

func TestRemove(t *testing.T) {
	w := inOrder(t)
	ctx := t.Context()
	w.create("pvc-1", "pvc-2")
	w.must(w.ceph.Write(at("pvc-1")))
	handle := w.take("pvc-2", "s")
	w.must(w.checker.Remove(ctx, at("pvc-1").String()))
	w.want("remove again", w.checker.Remove(ctx, at("pvc-1").String()), fault.NotFound, "no image")
	w.must(w.checker.Remove(ctx, at("pvc-2").String()))
	w.wantFound(remaining(w.look().Findings), "snapshot "+handle.String())
	w.must(w.checker.Remove(ctx, handle.String()))
	w.want("remove the snapshot again", w.checker.Remove(ctx, handle.String()), fault.NotFound, "no such")
	w.wantFound(remaining(w.look().Findings))
	for _, one := range orphans() {
		if one.kind != HalfMade {
			continue
		}
		t.Run(one.name, func(t *testing.T) {
			w := inOrder(t)
			w.must(w.checker.Remove(t.Context(), one.make(w)))
			w.purge()
			w.wantFound(w.look().Findings)
		})
	}
}

func TestRemoveRefuses(t *testing.T) {
	for _, one := range []struct {
		name string
		make func(w *world) (handle string)
		kind fault.Kind
		says string
	}{
		{"what a PersistentVolume has", func(w *world) string { return at("pvc-0").String() }, fault.InUse, "PersistentVolume pv-pvc-0 of claim shop/data"},
		{"what a PersistentVolume has since", func(w *world) string {
			w.create("pvc-1")
			w.kube.before = func(int) { w.kube.know("pvc-1") }
			return at("pvc-1").String()
		}, fault.InUse, "pv-pvc-1"},
		{"what is attached", func(w *world) string {
			w.create("pvc-1")
			w.attach("pvc-1", "node-a")
			return at("pvc-1").String()
		}, fault.InUse, "node-a"},
		{"what is open", func(w *world) string {
			w.create("pvc-1")
			_, err := w.ceph.OpenAs(at("pvc-1"), "10.0.0.9:0/7")
			w.must(err)
			return at("pvc-1").String()
		}, fault.InUse, "10.0.0.9:0/7"},
		{"what is young", func(w *world) string {
			w.create("pvc-1")
			w.ahead = 0
			return at("pvc-1").String()
		}, fault.InUse, "less than 1h"},
		{"what others made", func(w *world) string {
			_, err := w.ceph.Create(at("by-hand"), w.find("pvc-0").Header.Layout)
			w.must(err)
			return at("by-hand").String()
		}, fault.InUse, "not made by this driver"},
		{"a snapshot that a content has", func(w *world) string { return w.kube.contents[0].Handle }, fault.InUse, "content-snap-0"},
		{"a snapshot that a content may wait for", func(w *world) string {
			w.kube.contents = append(w.kube.contents, Content{Name: "pending", Made: time.Now()})
			return w.take("pvc-0", "s").String()
		}, fault.InUse, "pending"},
		{"a snapshot that a group has", func(w *world) string {
			handle := w.take("pvc-0", "s").String()
			w.kube.contents = append(w.kube.contents, Content{Name: "group-0", Handle: handle, Made: time.Now(), Group: true})
			return handle
		}, fault.InUse, "VolumeGroupSnapshotContent group-0"},
		{"a young snapshot", func(w *world) string {
			w.ahead = 0
			return w.take("pvc-0", "s").String()
		}, fault.InUse, "less than 1h"},
		{"what is no handle", func(w *world) string { return "pvc-0" }, fault.Invalid, "CLUSTER:POOL"},
		{"without Kubernetes", func(w *world) string {
			w.create("pvc-1")
			w.checker.Kubernetes = nil
			return at("pvc-1").String()
		}, fault.Unsupported, "in a pod"},
		{"when Kubernetes does not answer", func(w *world) string {
			w.create("pvc-1")
			w.kube.err = errNoAnswer
			return at("pvc-1").String()
		}, fault.Internal, "no answer"},
	} {
		t.Run(one.name, func(t *testing.T) {
			w := inOrder(t)
			handle := one.make(w)
			before := w.dump()
			w.want("remove", w.checker.Remove(t.Context(), handle), one.kind, one.says)
			if after := w.dump(); after != before {
				t.Errorf("it was touched:\n%s\nwant\n%s", after, before)
			}
		})
	}
}

// TestIndexIsNotDisturbed takes and deletes snapshots between the looks at the index and at the images.
func TestIndexIsNotDisturbed(t *testing.T) {
	for name, change := range map[string]func(w *world, s volid.Snapshot){
		"one is taken":          func(w *world, _ volid.Snapshot) { w.contents(w.take("pvc-0", "new")) },
		"one is deleted":        func(w *world, s volid.Snapshot) { w.must(w.driver("", 0).Snapshots().Delete(w.Context(), s, nobody)) },
		"the index is removed":  func(w *world, _ volid.Snapshot) { w.must(w.ceph.RemoveIndex(pool)) },
		"the volume is deleted": func(w *world, _ volid.Snapshot) { w.delete("pvc-0"); w.kube.forget() },
		"the index is made again": func(w *world, _ volid.Snapshot) {
			w.must(w.ceph.RemoveIndex(pool))
			w.must(snapshot.Build(w.Context(), w.open()))
		},
	} {
		for _, method := range []string{"Entries", "Trashed"} {
			t.Run(name+" before "+method, func(t *testing.T) {
				w := inOrder(t)
				taken := w.take("pvc-0", "s")
				w.contents(taken)
				met := false
				w.process.OnCall(func(_ context.Context, call rbdtest.Call) {
					if call.Method == method && call.Place == pool && !met {
						met = true
						change(w, taken)
					}
				})
				report := w.look()
				for _, one := range report.Findings {
					if one.Kind == Index {
						t.Errorf("got %v, want nothing about the index", one)
					}
				}
			})
		}
	}
}

// TestIndexThatIsNotBuilt holds that an index which will be built when it is needed is not compared.
func TestIndexThatIsNotBuilt(t *testing.T) {
	w := inOrder(t)
	w.must(w.ceph.RemoveIndex(pool))
	w.wantFound(w.look().Findings)
	w.must(w.open().MakeIndex(t.Context()))
	w.wantFound(w.look().Findings)
}
