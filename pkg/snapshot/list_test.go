package snapshot

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A lister is List or ListOf.
type lister func(ctx context.Context, token string, most int) ([]Snapshot, string, error)

// pages reads all pages of a list and returns "IMAGE@SNAPSHOT" of each row.
func pages(t *testing.T, list lister, most int) (rows []string) {
	t.Helper()
	for token := ""; ; {
		page, next, err := list(t.Context(), token, most)
		must(t, err)
		if most > 0 && len(page) > most {
			t.Fatalf("page of %d rows, want at most %d", len(page), most)
		}
		for _, one := range page {
			rows = append(rows, one.Source.Name+"@"+one.Handle.Name)
		}
		if token = next; token == "" {
			return rows
		}
	}
}

func listOf(s *Store, name string) lister {
	return func(ctx context.Context, token string, most int) ([]Snapshot, string, error) {
		return s.ListOf(ctx, of(name), token, most)
	}
}

// TestAList has everything in it that a list can meet.
func TestAList(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	inNamespace := volid.Image{Pool: volid.Pool{Cluster: "main", Pool: "kube", Namespace: "team"}, Name: "n"}
	elsewhere := volid.Image{Pool: other, Name: "o"}
	addVolumes(t, ceph, append(all("a", "b", "c", "gone"), inNamespace, elsewhere)...)
	for _, request := range []string{"s3", "s1", "s5"} {
		taken(t, ceph, "a", request)
	}
	taken(t, ceph, "b", "s2")
	taken(t, ceph, "gone", "s4")
	must(t, deleteVolume(ctx, ceph, of("gone")))
	_, err := start(ceph).CreateGroup(ctx, GroupSpec{Request: "s2g", Sources: all("a", "b")}, nobody)
	must(t, err)
	for _, source := range []volid.Image{inNamespace, elsewhere} {
		_, err := start(ceph).Create(ctx, CreateSpec{Source: source, Request: "x"}, nobody)
		must(t, err)
	}
	must(t, ceph.Snapshot(of("a"), "hand"))
	leaveBehind(t, ceph)

	s := start(ceph).Store
	all := []string{"a@s1", "b@s2", "a@s2g", "b@s2g", "a@s3", "gone@s4", "a@s5", "n@x", "o@x"}
	lists := map[string]struct {
		list lister
		want []string
	}{
		"all":              {s.List, all},
		"of a":             {listOf(s, "a"), []string{"a@s1", "a@s2g", "a@s3", "a@s5"}},
		"of b":             {listOf(s, "b"), []string{"b@s2", "b@s2g"}},
		"of a deleted one": {listOf(s, "gone"), []string{"gone@s4"}},
		"of none":          {listOf(s, "none"), nil},
	}
	for name, test := range lists {
		for _, most := range []int{0, 1, 2, 3, 100} {
			got := pages(t, test.list, most)
			// The order of the members of one group is that of their IDs.
			if i := slices.Index(got, "b@s2g"); i >= 0 && i+1 < len(got) && got[i+1] == "a@s2g" {
				got[i], got[i+1] = got[i+1], got[i]
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%s in pages of %d: %v, want %v", name, most, got, test.want)
			}
		}
	}
	page, _, err := s.ListOf(ctx, of("b"), "", 1)
	must(t, err)
	if got, err := s.Get(ctx, page[0].Handle, nobody); err != nil || got != page[0] {
		t.Errorf("row %v, want what Get says, %v (error %v)", page[0], got, err)
	}
	nowhere := volid.Image{Pool: volid.Pool{Cluster: "main", Pool: "none"}, Name: "a"}
	if page, _, err := s.ListOf(ctx, nowhere, "", 0); err != nil || len(page) > 0 {
		t.Errorf("of a pool that is not there: %v, error %v, want nothing", page, err)
	}
}

// leaveBehind puts into the index what has no snapshot behind it.
func leaveBehind(t *testing.T, ceph *rbdtest.Ceph) {
	t.Helper()
	for name, f := range map[string]rbdtest.Fault{
		"claimed":   {Method: "ChangeMeta", Kill: true},
		"announced": {Method: "TakeSnapshot", Kill: true},
	} {
		killed := start(ceph)
		killed.process.Fail(f)
		if _, err := killed.take(t.Context(), "c", "s0-"+name); err == nil {
			t.Fatal("the create was not killed")
		}
	}
	killed := start(ceph)
	killed.process.Fail(rbdtest.Fault{Method: "TakeSnapshots", When: rbdtest.After, Kill: true})
	if _, err := killed.CreateGroup(t.Context(), GroupSpec{Request: "s0-group", Sources: all("b", "c")}, nobody); err == nil {
		t.Fatal("the create was not killed")
	}
	must(t, open(t, ceph, kube).ChangeIndex(t.Context(), rbd.Change{Set: map[string]string{
		"s/s0-broken/": "{", "s/s0-gone/": entry{ID: "vgone", Image: "a", Snapshot: "s1"}.String(),
		"f/x": "deep", "s/s0-moved/": index(t, ceph, kube)["s/s1/"],
	}}))
}

func TestATokenOutlivesItsSnapshot(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	addVolumes(t, ceph, all("a", "b")...)
	for i := range 6 {
		taken(t, ceph, []string{"a", "b"}[i%2], fmt.Sprint("s", i))
	}
	s := start(ceph)
	page, next, err := s.List(ctx, "", 3)
	must(t, err)
	must(t, s.Delete(ctx, page[2].Handle, nobody))
	page, _, err = s.List(ctx, next, 2)
	if err != nil || len(page) != 2 || page[0].Handle.Name != "s3" {
		t.Errorf("page %v, error %v, want s3 and s4", page, err)
	}
	_, next, err = s.ListOf(ctx, of("b"), "", 1)
	must(t, err)
	must(t, deleteVolume(ctx, ceph, of("b")))
	page, _, err = s.ListOf(ctx, of("b"), next, 5)
	if err != nil || len(page) != 2 || page[0].Handle.Name != "s3" {
		t.Errorf("page %v, error %v, want s3 and s5, which the volume had before it was deleted", page, err)
	}
	must(t, ceph.RemoveIndex(kube))
	page, _, err = s.List(ctx, "main:kube@s/s4/", 5)
	if err != nil || len(page) != 1 || page[0].Handle.Name != "s5" {
		t.Errorf("page %v, error %v, want s5, by the index made anew", page, err)
	}
	page, _, err = s.List(ctx, "main:earlier@s/s4/", 1)
	if err != nil || len(page) != 1 || page[0].Handle.Name != "s0" {
		t.Errorf("page %v, error %v, want s0, the first behind a pool that has gone", page, err)
	}
}

func TestTokensThatNoListGave(t *testing.T) {
	ceph := newCeph()
	addVolumes(t, ceph, of("a"))
	d := start(ceph)
	for _, token := range []string{
		"1", "main:kube", "main:kube@", "main:kube@s/", "main:kube@s//", "main:kube@s/x", "main:kube@g/x", "main:kube@f/vx", "main:kube@complete",
		"main:kube@s/x/a.b", "main:kube@s/x/123456789012345", "kube@s/x/", "main:kube/a/b@s/x/", "MAIN:kube@s/x/", " main:kube@s/x/",
		"main:kube@s/" + strings.Repeat("x", 129) + "/",
	} {
		_, _, err := d.List(t.Context(), token, 1)
		want(t, "List", err, fault.Superseded, token)
		_, _, err = d.ListOf(t.Context(), of("a"), token, 1)
		want(t, "ListOf", err, fault.Superseded, token)
	}
	_, _, err := d.ListOf(t.Context(), of("a"), "main:other@s/x/", 1)
	want(t, "ListOf with another pool's token", err, fault.Superseded, "main:other")
	for _, name := range []string{"s", "a/b@c", strings.Repeat("ü", 64)} {
		taken(t, ceph, "a", name)
	}
	if got := pages(t, d.List, 1); len(got) != 3 {
		t.Errorf("list %v, want three, whose names stand in tokens", got)
	}
}

func TestWhatAListCosts(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	const volumes, each = 20, 5
	for i := range volumes {
		name := fmt.Sprintf("v%02d", i)
		addVolumes(t, ceph, of(name))
		for j := range each {
			taken(t, ceph, name, fmt.Sprintf("%s-%d", name, j))
		}
	}
	d := start(ceph)
	const pools = 3 // kube, its namespace, and other
	first, next, err := d.List(ctx, "", 10)
	must(t, err)
	if got, most := d.process.Operations(), 2+2+3; len(first) != 10 || got > most {
		t.Errorf("first page of %d rows: %d operations (%v), want 10 rows and at most %d", len(first), got, d.process.Methods(), most)
	}
	d.process.Reset()
	_, _, err = d.List(ctx, next, 10)
	must(t, err)
	if got, most := d.process.Operations(), 2+1+3; got > most {
		t.Errorf("second page: %d operations (%v), want at most %d", got, d.process.Methods(), most)
	}
	_, _, err = d.List(ctx, "", 0)
	must(t, err)
	d.process.Reset()
	_, _, err = d.List(ctx, "", 0)
	must(t, err)
	if got, most := d.process.Operations(), 2+volumes+pools+2; got > most {
		t.Errorf("everything: %d operations (%v), want at most %d", got, d.process.Methods(), most)
	}
	d.process.Reset()
	_, _, err = d.ListOf(ctx, of("v03"), "", 0)
	must(t, err)
	if got := d.process.Operations(); got != 2 {
		t.Errorf("of a volume: %d operations (%v), want 2", got, d.process.Methods())
	}
}

// TestAPoolOfOthersIsLeftAlone lists pools that the driver has no volumes in.
func TestAPoolOfOthersIsLeftAlone(t *testing.T) {
	ceph, ctx := newCeph(), t.Context()
	for i := range 3 {
		_, err := ceph.Create(of(fmt.Sprint("by-hand-", i)), layout)
		must(t, err)
	}
	d := start(ceph)
	for _, list := range map[string]lister{"all": d.List, "of one that is there": listOf(d.Store, "by-hand-1"), "of one that is not": listOf(d.Store, "none")} {
		if page, next, err := list(ctx, "", 0); err != nil || len(page) > 0 || next != "" {
			t.Errorf("page %v, error %v, want nothing", page, err)
		}
	}
	_, err := d.GetGroup(ctx, group, nil, nobody)
	want(t, "get a group", err, fault.NotFound, "@g")
	must(t, d.DeleteGroup(ctx, group, nil, nobody))
	calls := d.process.Methods()
	for _, made := range []string{"MakeIndex", "ChangeIndex"} {
		if slices.Contains(calls, made) {
			t.Errorf("calls %v, want no %s", calls, made)
		}
	}
	d.process.Reset()
	_, _, err = d.List(ctx, "", 0)
	must(t, err)
	if calls := d.process.Methods(); slices.Contains(calls, "Entries") {
		t.Errorf("calls of a second list %v, want no Entries", calls)
	}
	// The first volume of the driver in such a pool.
	addVolumes(t, ceph, of("a"))
	taken(t, ceph, "a", "s")
	if got := pages(t, d.List, 0); !slices.Equal(got, []string{"a@s"}) {
		t.Errorf("list %v, want the first snapshot at once", got)
	}
}

func TestAVolumeThatCannotBeReadIsLeftOut(t *testing.T) {
	ceph := newCeph()
	addVolumes(t, ceph, all("a", "b")...)
	taken(t, ceph, "a", "s1")
	taken(t, ceph, "b", "s2")
	must(t, ceph.SetMeta(of("a"), image.VolumeKey, "edited"))
	if got := pages(t, start(ceph).List, 0); !slices.Equal(got, []string{"b@s2"}) {
		t.Errorf("list %v, want that of b alone", got)
	}
}

func TestAListFailsWithItsCluster(t *testing.T) {
	ceph := newCeph()
	addVolumes(t, ceph, of("a"))
	taken(t, ceph, "a", "s1")
	for _, method := range []string{"Names", "Pools", "Pool", "IndexValues", "Index", "Header"} {
		d := start(ceph)
		d.process.Fail(rbdtest.Fault{Method: method})
		_, _, err := d.List(t.Context(), "", 0)
		want(t, method, err, fault.Unavailable, method)
	}
}
