package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

var group = volid.Group{Pool: kube, Name: "g"}

func (d *driver) group(ctx context.Context, sources ...string) (Group, error) {
	return d.CreateGroup(ctx, GroupSpec{Request: "g", Sources: all(sources...)}, nobody)
}

func grouped(t *testing.T, ceph *rbdtest.Ceph, sources ...string) Group {
	t.Helper()
	made, err := start(ceph).group(t.Context(), sources...)
	must(t, err)
	return made
}

func three(t *testing.T, ceph *rbdtest.Ceph) { addVolumes(t, ceph, all("a", "b", "c")...) }

// wantGroup checks that exactly the group of these volumes is there: for each a snapshot, a mark
// and an entry, and the group's own entry.
func wantGroup(t *testing.T, ceph *rbdtest.Ceph, sources ...string) Group {
	t.Helper()
	found, err := start(ceph).GetGroup(t.Context(), group, nil, nobody)
	must(t, err)
	var names []string
	for _, one := range found.Snapshots {
		names = append(names, one.Source.Name)
		if one.Group != group || one.Handle.Name != "g" || one.Bytes != layout.Bytes {
			t.Errorf("member %+v, want one of group %s, of %d bytes", one, group, layout.Bytes)
		}
	}
	if !slices.Equal(names, sources) || found.Handle != group || time.Since(found.Time) > time.Hour {
		t.Errorf("group %+v, want one of %v", found, sources)
	}
	if lines := left(ceph); len(lines) != 3*len(sources)+1 {
		t.Errorf("left:\n%s\nwant %d lines", strings.Join(lines, "\n"), 3*len(sources)+1)
	}
	return found
}

func handlesOf(made Group) (handles []volid.Snapshot) {
	for _, one := range made.Snapshots {
		handles = append(handles, one.Handle)
	}
	return handles
}

func TestOperationsOfAGroup(t *testing.T) {
	ceph := newCeph()
	three(t, ceph)
	taken(t, ceph, "a", "earlier")
	d, ctx := start(ceph), t.Context()
	for _, step := range []struct {
		name string
		most int
		do   func() error
	}{
		{"create", 3*(35+5) + 2, func() error { _, err := d.group(ctx, "c", "a", "b"); return err }},
		{"create again, in another order", 3*2 + 1, func() error { _, err := d.group(ctx, "a", "b", "c"); return err }},
		{"get", 3 + 1, func() error { _, err := d.GetGroup(ctx, group, nil, nobody); return err }},
		{"delete", 3*(31+4) + 3, func() error { return d.DeleteGroup(ctx, group, nil, nobody) }},
		{"delete again", 1, func() error { return d.DeleteGroup(ctx, group, nil, nobody) }},
	} {
		d.process.Reset()
		must(t, step.do())
		if got := d.process.Operations(); got > step.most {
			t.Errorf("%s: %d operations (%v), want at most %d", step.name, got, d.process.Methods(), step.most)
		}
	}
}

func TestEachStepOfAGroupFails(t *testing.T) {
	create := func(ctx context.Context, d *driver) error { _, err := d.group(ctx, "a", "b", "c"); return err }
	wantAll := func(t *testing.T, ceph *rbdtest.Ceph) { wantGroup(t, ceph, "a", "b", "c") }
	t.Run("create", func(t *testing.T) { failing(t, three, create, wantAll) })
	t.Run("create over an interrupted one", func(t *testing.T) {
		failing(t, func(t *testing.T, ceph *rbdtest.Ceph) {
			three(t, ceph)
			killed := start(ceph)
			killed.process.Fail(rbdtest.Fault{Method: "TakeSnapshots", When: rbdtest.After, Kill: true})
			if _, err := killed.group(t.Context(), "a", "b", "c"); err == nil {
				t.Fatal("the create was not killed")
			}
		}, create, wantAll)
	})
	t.Run("create over one of other volumes", func(t *testing.T) {
		failing(t, func(t *testing.T, ceph *rbdtest.Ceph) {
			three(t, ceph)
			addVolumes(t, ceph, of("d"))
			killed := start(ceph)
			killed.process.Fail(rbdtest.Fault{Method: "TakeSnapshots", When: rbdtest.After, Kill: true})
			if _, err := killed.group(t.Context(), "a", "d"); err == nil {
				t.Fatal("the create was not killed")
			}
		}, create, wantAll)
	})
	for name, given := range map[string]bool{"delete by the index": false, "delete by what is given": true} {
		t.Run(name, func(t *testing.T) {
			var members []volid.Snapshot
			failing(t, func(t *testing.T, ceph *rbdtest.Ceph) {
				three(t, ceph)
				made := grouped(t, ceph, "a", "b", "c")
				if members = nil; given {
					members = handlesOf(made)
				}
			}, func(ctx context.Context, d *driver) error { return d.DeleteGroup(ctx, group, members, nobody) }, wantNoneLeft)
		})
	}
	t.Run("create and delete", func(t *testing.T) {
		failing(t, three, func(ctx context.Context, d *driver) error {
			_, err := d.group(ctx, "a", "b", "c")
			if err != nil && !fault.Is(err, fault.Exists) { // a part of it may be deleted already
				return err
			}
			return d.DeleteGroup(ctx, group, nil, nobody)
		}, wantNoneLeft)
	})
	t.Run("a volume is deleted after a create was interrupted", func(t *testing.T) {
		failing(t, three, func(ctx context.Context, d *driver) error {
			_, err := d.group(ctx, "a", "b", "c")
			return err
		}, func(t *testing.T, ceph *rbdtest.Ceph) {
			must(t, deleteVolume(t.Context(), ceph, of("b")))
			wantGroup(t, ceph, "a", "b", "c")
			if _, err := start(ceph).group(t.Context(), "a", "b", "c"); err != nil {
				t.Errorf("create again: %v", err)
			}
			must(t, start(ceph).DeleteGroup(t.Context(), group, nil, nobody))
			sweepTrash(t, ceph)
			wantNoneLeft(t, ceph)
		})
	})
}

// TestNothingIsLeftOfAGroupWhoseVolumeWent interrupts a create everywhere, deletes a volume, and repeats.
func TestNothingIsLeftOfAGroupWhoseVolumeWent(t *testing.T) {
	for skip := 0; ; skip++ {
		ceph := newCeph()
		three(t, ceph)
		killed := start(ceph)
		killed.process.Fail(rbdtest.Fault{When: rbdtest.After, Kill: true, Skip: skip})
		if _, err := killed.group(t.Context(), "a", "b", "c"); err == nil {
			return
		}
		must(t, deleteVolume(t.Context(), ceph, of("b")))
		whole := slices.ContainsFunc(left(ceph), func(line string) bool { return strings.Contains(line, `"whole":true`) })
		_, err := start(ceph).group(t.Context(), "a", "b", "c")
		if whole && err == nil {
			continue
		}
		if !fault.Is(err, fault.NotFound) {
			t.Fatalf("killed in call %d: error %v, want kind %v", skip+1, err, fault.NotFound)
		}
		sweepTrash(t, ceph)
		if wantNoneLeft(t, ceph); t.Failed() {
			t.Fatalf("killed in call %d (%v)", skip+1, killed.process.Methods())
		}
	}
}

func TestAFailedAttemptLeavesNoSnapshots(t *testing.T) {
	for name, test := range map[string]struct {
		err, want fault.Kind
		when      rbdtest.When
		word      string
	}{
		"writers keep their locks":       {fault.Superseded, fault.Unavailable, rbdtest.Before, "pause the writers"},
		"writers take their locks back":  {fault.Superseded, fault.Unavailable, rbdtest.After, "pause the writers"},
		"the pool is full":               {fault.Exhausted, fault.Exhausted, rbdtest.Before, "take the snapshots"},
		"nobody knows whether they were": {fault.Unknown, fault.Unknown, rbdtest.After, "take the snapshots"},
	} {
		t.Run(name, func(t *testing.T) {
			ceph := newCeph()
			three(t, ceph)
			d := start(ceph)
			d.process.Fail(rbdtest.Fault{Method: "TakeSnapshots", When: test.when, Err: test.err})
			_, err := d.group(t.Context(), "a", "b", "c")
			want(t, "create", err, test.want, test.word)
			for _, line := range left(ceph) {
				if strings.Contains(line, "rbd_snapshot") {
					t.Errorf("left: %s, want no snapshots", line)
				}
			}
			if calls := d.process.Methods(); slices.Index(calls, "TakeSnapshots") != lastIndex(calls, "TakeSnapshots") {
				t.Errorf("calls %v, want one attempt", calls)
			}
			_, err = start(ceph).GetGroup(t.Context(), group, nil, nobody)
			want(t, "get", err, fault.NotFound, "@g")
			if page, _, err := start(ceph).List(t.Context(), "", 0); err != nil || len(page) > 0 {
				t.Errorf("list %v, error %v, want nothing", page, err)
			}
			grouped(t, ceph, "a", "b", "c")
			wantGroup(t, ceph, "a", "b", "c")
		})
	}
}

func lastIndex(all []string, one string) int {
	for i, text := range slices.Backward(all) {
		if text == one {
			return i
		}
	}
	return -1
}

func TestWhatIsNoGroup(t *testing.T) {
	ceph := newCeph()
	three(t, ceph)
	inNamespace := volid.Image{Pool: volid.Pool{Cluster: "main", Pool: "kube", Namespace: "team"}, Name: "a"}
	addVolumes(t, ceph, inNamespace, volid.Image{Pool: other, Name: "b"})
	unlocked := layout
	unlocked.Features = rbd.Layering
	_, err := ceph.Create(of("unlocked"), unlocked)
	must(t, err)
	var many []volid.Image
	for i := range MostMembers + 1 {
		many = append(many, of(fmt.Sprint("v", i)))
	}
	must(t, ceph.Snapshot(of("c"), "g"))
	before := ceph.Dump()
	for name, test := range map[string]struct {
		sources []volid.Image
		kind    fault.Kind
		word    string
	}{
		"nothing":                  {nil, fault.Invalid, "0 volumes"},
		"too many":                 {many, fault.Invalid, "65 volumes"},
		"one twice":                {all("a", "b", "a"), fault.Invalid, "main:kube/a is named twice"},
		"of two pools":             {append(all("a"), volid.Image{Pool: other, Name: "b"}), fault.Invalid, "main:other/b are in different pools"},
		"of two namespaces":        {append(all("a"), inNamespace), fault.Invalid, "different pools"},
		"of two clusters":          {append(all("a"), volid.Image{Pool: volid.Pool{Cluster: "second", Pool: "kube"}, Name: "a"}), fault.Invalid, "different pools"},
		"not there":                {all("a", "missing"), fault.NotFound, "main:kube/missing"},
		"without exclusive-lock":   {all("a", "unlocked"), fault.Unsupported, "main:kube/unlocked"},
		"somebody else's":          {all("a", "c"), fault.Exists, "not made by this driver"},
		"of a pool that is no one": {[]volid.Image{{Pool: volid.Pool{Cluster: "main", Pool: "none"}, Name: "a"}}, fault.NotFound, "none"},
	} {
		_, err := start(ceph).CreateGroup(t.Context(), GroupSpec{Request: "g", Sources: test.sources}, nobody)
		want(t, name, err, test.kind, test.word)
	}
	_, err = start(ceph).CreateGroup(t.Context(), GroupSpec{Sources: all("a")}, nobody)
	want(t, "without a name", err, fault.Invalid, "empty")
	after := slices.DeleteFunc(ceph.Dump(), func(line string) bool { return strings.HasSuffix(line, "rbd_csi.index complete 1") })
	if !slices.Equal(before, after) {
		t.Errorf("after\n%s\nwant what was there before\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

func TestTheNameOfAGroupIsTaken(t *testing.T) {
	ctx := t.Context()
	for name, test := range map[string]struct {
		before  func(ceph *rbdtest.Ceph) error
		sources []string
		word    string
	}{
		"by fewer volumes": {func(ceph *rbdtest.Ceph) error { _, err := start(ceph).group(ctx, "a", "b"); return err }, []string{"a", "b", "c"}, "main:kube/a"},
		"by more volumes":  {func(ceph *rbdtest.Ceph) error { _, err := start(ceph).group(ctx, "a", "b", "c"); return err }, []string{"a", "b"}, "main:kube/c"},
		"by others":        {func(ceph *rbdtest.Ceph) error { _, err := start(ceph).group(ctx, "a", "b"); return err }, []string{"c"}, "main:kube/b"},
		"by a deleted volume of that name": {func(ceph *rbdtest.Ceph) error {
			_, err := start(ceph).group(ctx, "a", "b")
			err = errors.Join(err, deleteVolume(ctx, ceph, of("a")))
			addVolumes(t, ceph, of("a"))
			return err
		}, []string{"a", "b"}, "main:kube/a"},
		"by an ordinary snapshot": {func(ceph *rbdtest.Ceph) error { _, err := start(ceph).take(ctx, "b", "g"); return err }, []string{"a", "b"}, "main:kube/b"},
		"a member was deleted": {func(ceph *rbdtest.Ceph) error {
			made, err := start(ceph).group(ctx, "a", "b")
			return errors.Join(err, start(ceph).Delete(ctx, made.Snapshots[0].Handle, nobody))
		}, []string{"a", "b"}, "the snapshot of volume main:kube/a in it was deleted"},
	} {
		t.Run(name, func(t *testing.T) {
			ceph := newCeph()
			three(t, ceph)
			must(t, test.before(ceph))
			before := left(ceph)
			_, err := start(ceph).group(ctx, test.sources...)
			want(t, "create", err, fault.Exists, test.word)
			if after := left(ceph); !slices.Equal(after, before) {
				t.Errorf("left:\n%s\nwant\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
		})
	}
	t.Run("an ordinary snapshot by a group", func(t *testing.T) {
		ceph := newCeph()
		three(t, ceph)
		grouped(t, ceph, "a", "b")
		_, err := start(ceph).take(ctx, "a", "g")
		want(t, "create", err, fault.Exists, "group snapshot g")
	})
}

func TestAGroupWithoutAMember(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	three(t, ceph)
	made := grouped(t, ceph, "a", "b", "c")
	must(t, start(ceph).Delete(ctx, made.Snapshots[1].Handle, nobody))
	_, err := start(ceph).GetGroup(ctx, group, handlesOf(made), nobody)
	want(t, "get", err, fault.NotFound, "@g")
	must(t, start(ceph).DeleteGroup(ctx, group, handlesOf(made), nobody))
	wantNoneLeft(t, ceph)
	must(t, start(ceph).DeleteGroup(ctx, group, handlesOf(made), nobody))
	_, err = start(ceph).GetGroup(ctx, group, nil, nobody)
	want(t, "get a deleted one", err, fault.NotFound, "@g")
}

func TestAGroupThatTheIndexDoesNotKnow(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	three(t, ceph)
	made := grouped(t, ceph, "a", "b")
	must(t, open(t, ceph, kube).ChangeIndex(ctx, rbd.Change{Remove: []string{"g/g"}}))
	_, err := start(ceph).GetGroup(ctx, group, nil, nobody)
	want(t, "get without members", err, fault.NotFound, "@g")
	found, err := start(ceph).GetGroup(ctx, group, handlesOf(made), nobody)
	if err != nil || !slices.Equal(found.Snapshots, made.Snapshots) {
		t.Errorf("get by members: %v, error %v, want %v", found, err, made)
	}
	_, err = start(ceph).GetGroup(ctx, group, handlesOf(made)[:1], nobody)
	want(t, "get by one member", err, fault.NotFound, "@g")
	must(t, start(ceph).DeleteGroup(ctx, group, handlesOf(made), nobody))
	wantNoneLeft(t, ceph)
}

func TestSnapshotsOfOthersAreNotDeletedWithAGroup(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	three(t, ceph)
	made := grouped(t, ceph, "a", "b")
	ordinary := taken(t, ceph, "c", "s").Handle
	must(t, ceph.Snapshot(of("c"), "hand"))
	foreign := ordinary
	foreign.Name = "hand"
	elsewhere := made.Snapshots[0].Handle
	elsewhere.Pool = other
	before := left(ceph)
	for name, one := range map[string]volid.Snapshot{"ordinary": ordinary, "foreign": foreign, "of another pool": elsewhere} {
		given := append(handlesOf(made), one)
		want(t, "delete with one that is "+name, start(ceph).DeleteGroup(ctx, group, given, nobody), fault.Invalid, one.String())
		_, err := start(ceph).GetGroup(ctx, group, given, nobody)
		want(t, "get with one that is "+name, err, fault.Invalid, one.String())
	}
	if after := left(ceph); !slices.Equal(after, before) {
		t.Errorf("left:\n%s\nwant\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	gone := ordinary
	gone.Name = "gone"
	must(t, start(ceph).DeleteGroup(ctx, group, append(handlesOf(made), gone), nobody))
}

// TestTwoProcessesAtAGroup stops one process before each of its calls, lets another do a whole
// request, and lets the first go on. What is called whole must be of one TakeSnapshots.
func TestTwoProcessesAtAGroup(t *testing.T) {
	create := func(ctx context.Context, d *driver) error { _, err := d.group(ctx, "a", "b", "c"); return err }
	fewer := func(ctx context.Context, d *driver) error { _, err := d.group(ctx, "a", "b"); return err }
	remove := func(ctx context.Context, d *driver) error { return d.DeleteGroup(ctx, group, nil, nobody) }
	killedBefore := func(method string) func(context.Context, *driver) error {
		return func(ctx context.Context, d *driver) error {
			d.process.Fail(rbdtest.Fault{Method: method, Kill: true})
			_ = create(ctx, d)
			return nil
		}
	}
	killedAfter := func(ctx context.Context, d *driver) error {
		d.process.Fail(rbdtest.Fault{Method: "TakeSnapshots", When: rbdtest.After, Kill: true})
		_ = create(ctx, d)
		return nil
	}
	for name, test := range map[string]struct {
		exists        bool
		first, second func(context.Context, *driver) error
	}{
		"create, create":                     {false, create, create},
		"create, create is killed":           {false, create, killedAfter},
		"create, create is killed early":     {false, create, killedBefore("TakeSnapshots")},
		"create, create of fewer":            {false, create, fewer},
		"create of fewer, create":            {false, fewer, create},
		"create, delete":                     {false, create, remove},
		"create, create and delete":          {false, create, func(ctx context.Context, d *driver) error { return errors.Join(create(ctx, d), remove(ctx, d)) }},
		"delete, create":                     {true, remove, create},
		"delete, delete":                     {true, remove, remove},
		"delete, delete and create of fewer": {true, remove, func(ctx context.Context, d *driver) error { return errors.Join(remove(ctx, d), fewer(ctx, d)) }},
	} {
		t.Run(name, func(t *testing.T) {
			for stop := 0; ; stop++ {
				ceph, ctx := newCeph(), t.Context()
				three(t, ceph)
				first, second := start(ceph), start(ceph)
				if test.exists {
					must(t, create(ctx, first))
				}
				calls, met := 0, false
				first.process.OnCall(func(ctx context.Context, _ rbdtest.Call) {
					if calls++; calls == stop+1 {
						met = true
						if err := test.second(ctx, second); err != nil && !racing(err) {
							t.Errorf("stop %d: second: %v", stop, err)
						}
					}
				})
				err := test.first(ctx, first)
				if !met {
					return
				}
				if err != nil && !racing(err) {
					t.Errorf("stop %d: first: %v (calls %v)", stop, err, first.process.Methods())
				}
				wantMarked(t, ceph)
				wantOneMoment(t, ceph)
				must(t, remove(ctx, start(ceph)))
				wantNoneLeft(t, ceph)
				must(t, create(ctx, start(ceph)))
				if wantGroup(t, ceph, "a", "b", "c"); t.Failed() {
					t.Fatalf("stop %d (calls %v)", stop, first.process.Methods())
				}
			}
		})
	}
}

// racing reports whether a request may fail so while another one is at the same group.
func racing(err error) bool {
	return fault.Is(err, fault.Superseded) || fault.Is(err, fault.Exists)
}

// wantMarked checks that no snapshot is left without a mark: nobody would ever remove it.
func wantMarked(t *testing.T, ceph *rbdtest.Ceph) {
	t.Helper()
	marks := map[string]bool{}
	lines := left(ceph)
	for _, line := range lines {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "metadata_"+image.SnapshotKey("g") {
			marks[strings.TrimPrefix(fields[1], "rbd_header.")] = true
		}
	}
	for _, line := range lines {
		if fields := strings.Fields(line); fields[1] == "rbd_snapshot" && !marks[fields[2]] {
			t.Errorf("snapshot %s of image %s has no mark, marked are %v", fields[4], fields[2], slices.Sorted(maps.Keys(marks)))
		}
	}
}

// TestASlowProcessLeavesAWholeGroupAlone stops a process before each of its calls, lets another one
// answer a request, and lets the first go on: the snapshots stay the same.
func TestASlowProcessLeavesAWholeGroupAlone(t *testing.T) {
	for stop := 0; ; stop++ {
		ceph := newCeph()
		three(t, ceph)
		slow := start(ceph)
		var before []string
		calls := 0
		slow.process.OnCall(func(ctx context.Context, call rbdtest.Call) {
			if calls++; calls == stop+1 {
				grouped(t, ceph, "a", "b", "c")
				before = left(ceph)
			}
		})
		made, err := slow.group(t.Context(), "a", "b", "c")
		if before == nil {
			return
		}
		if after := left(ceph); err != nil || len(made.Snapshots) != 3 || !slices.Equal(before, after) {
			t.Fatalf("stop %d (calls %v): error %v, left:\n%s\nwant\n%s", stop, slow.process.Methods(), err, strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	}
}

// wantOneMoment checks that snapshots of a group that is called whole were taken together: the
// IDs of such ones follow each other.
func wantOneMoment(t *testing.T, ceph *rbdtest.Ceph) {
	t.Helper()
	lines := left(ceph)
	if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, `"whole":true`) }) {
		return
	}
	var ids []int
	for _, line := range lines {
		if fields := strings.Fields(line); fields[1] == "rbd_snapshot" {
			id, err := strconv.Atoi(fields[3])
			must(t, err)
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 && slices.Max(ids)-slices.Min(ids) > 2 {
		t.Errorf("a group that is marked whole has the snapshots %v, want some that were taken at once", ids)
	}
}

// TestAnOvertakenAttemptIsNotWhole lets a process take the snapshots and stop before it records them;
// another one takes them anew and is killed between two of its own.
func TestAnOvertakenAttemptIsNotWhole(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	three(t, ceph)
	slow := start(ceph)
	after := false
	slow.process.OnCall(func(ctx context.Context, call rbdtest.Call) {
		if slices.Contains(slow.process.Methods(), "TakeSnapshots") && !after {
			after = true
			killed := start(ceph)
			killed.process.Fail(rbdtest.Fault{Method: "RemoveSnapshot", When: rbdtest.After, Kill: true})
			if _, err := killed.group(ctx, "a", "b", "c"); err == nil {
				t.Error("the second create was not killed")
			}
			slow.process.Fail(rbdtest.Fault{Method: "FindName", Kill: true}) // no second look
		}
	})
	if _, err := slow.group(ctx, "a", "b", "c"); err == nil {
		t.Error("the overtaken create succeeded, want a failure")
	}
	wantOneMoment(t, ceph)
	grouped(t, ceph, "a", "b", "c")
	wantGroup(t, ceph, "a", "b", "c")
}

// TestSnapshotsOfAnotherAttemptAreNotWhole is the same where the other process's snapshots are all
// there, but of different moments.
func TestSnapshotsOfAnotherAttemptAreNotWhole(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	three(t, ceph)
	slow := start(ceph)
	after := false
	slow.process.OnCall(func(ctx context.Context, call rbdtest.Call) {
		if slices.Contains(slow.process.Methods(), "TakeSnapshots") && !after {
			after = true
			killed := start(ceph)
			killed.process.Fail(rbdtest.Fault{Method: "TakeSnapshots", Kill: true})
			if _, err := killed.group(ctx, "a", "b", "c"); err == nil {
				t.Error("the second create was not killed")
			}
			for _, name := range []string{"a", "b", "c"} {
				must(t, ceph.Snapshot(of(name), "g"))
			}
			slow.process.Fail(rbdtest.Fault{Method: "FindName", Kill: true}) // no second look
		}
	})
	if _, err := slow.group(ctx, "a", "b", "c"); err == nil {
		t.Error("the overtaken create succeeded, want a failure")
	}
	for _, line := range left(ceph) {
		if strings.Contains(line, `"whole":true`) {
			t.Errorf("marked whole: %s, want none", line)
		}
	}
	d := start(ceph)
	_, err := d.group(ctx, "a", "b", "c")
	must(t, err)
	if calls := d.process.Methods(); slices.Index(calls, "TakeSnapshots") != lastIndex(calls, "TakeSnapshots") {
		t.Errorf("calls %v, want one attempt: what was left is removed first", calls)
	}
	wantGroup(t, ceph, "a", "b", "c")
}
