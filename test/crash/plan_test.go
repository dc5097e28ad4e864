package crash

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/driver"
)

// TestWrong sees that each kind of difference is told.
func TestWrong(t *testing.T) {
	kept := map[string]*life{
		"a": {staged: true, volume: driver.Volume{Handle: "lab:rbd/a"}},
		"b": {volume: driver.Volume{Handle: "lab:rbd/b"}},
	}
	right := func() contents {
		return contents{
			images: map[string]string{"a": "1", "b": "2"},
			listed: []string{"lab:rbd/a", "lab:rbd/b"},
			objects: []string{
				"rbd_directory", "rbd_info", "rbd_trash", "rbd_id.a", "rbd_header.1", "rbd_object_map.1", "rbd_data.1.0",
				"rbd_id.b", "rbd_header.2", "rbd_object_map.2",
			},
		}
	}
	cases := []struct {
		name string
		make func(*contents)
		want string
	}{
		{"nothing", func(*contents) {}, ""},
		{"a lost image", func(c *contents) { delete(c.images, "b") }, "rbd ls: b is missing"},
		{"a left image", func(c *contents) { c.images["c"] = "3" }, "rbd ls: c is too many"},
		{"a left image in the trash", func(c *contents) { c.trash = "3 c\n" }, "rbd trash ls: 3 c"},
		{"a volume that is not listed", func(c *contents) { c.listed = c.listed[1:] }, "ListVolumes: lab:rbd/a is missing"},
		{"a left header", func(c *contents) { c.objects = append(c.objects, "rbd_header.3") }, "rados ls: rbd_header.3 is too many"},
		{"a lost object map", func(c *contents) { c.objects = c.objects[:len(c.objects)-1] }, "rados ls: rbd_object_map.2 is missing"},
		{"data that nobody wrote", func(c *contents) { c.objects = append(c.objects, "rbd_data.2.0") }, "rados ls: rbd_data.2.0 is too many"},
		{"data of a longer ID", func(c *contents) { c.objects = append(c.objects, "rbd_data.11.0") }, "rados ls: rbd_data.11.0 is too many"},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			c := right()
			test.make(&c)
			got := c.wrong(kept)
			if test.want == "" && len(got) > 0 || test.want != "" && !strings.Contains(strings.Join(got, "\n"), test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestPlan sees that a seed gives the same plan, that another gives another, and that all kinds of lives
// are in one of the usual size.
func TestPlan(t *testing.T) {
	names := func(seed uint64) (names []string) {
		for _, l := range plan(seed, 50, 10) {
			names = append(names, l.claim.Volume)
		}
		return names
	}
	if !slices.Equal(names(1), names(1)) || slices.Equal(names(1), names(2)) {
		t.Errorf("names of seeds 1, 1 and 2: got %q, %q and %q, want two equal and one different",
			names(1)[0], names(1)[0], names(2)[0])
	}
	var staged, moved, givenUp, kept, twice int
	for _, l := range plan(1, 200, 40) {
		for count, is := range map[*int]bool{&twice: l.twice, &kept: l.kept, &staged: l.staged, &moved: l.staged && l.moved, &givenUp: l.staged && l.giveUp} {
			if is {
				*count++
			}
		}
	}
	if staged != 40 || moved < 10 || givenUp < 5 || kept < 20 || twice < 20 {
		t.Errorf("of 200: got %d staged, %d moved, %d given up, %d kept, %d twice; want 40 and some of each", staged, moved, givenUp, kept, twice)
	}
}

// TestPlanOfCopies sees that a seed gives the same requests, that none waits for a later one, and that
// all kinds of histories are in a plan of the usual size.
func TestPlanOfCopies(t *testing.T) {
	planned := func(seed uint64) *planner {
		p := newPlanner(seed, 3, 6)
		p.plan(300)
		p.deleteAllBut(8)
		return p
	}
	names := func(p *planner) (names []string) {
		for _, r := range p.requests {
			names = append(names, r.String())
		}
		return names
	}
	p := planned(1)
	if !slices.Equal(names(p), names(planned(1))) || slices.Equal(names(p), names(planned(2))) {
		t.Error("plans of seeds 1, 1 and 2: want two equal and one different")
	}
	count := map[string]int{}
	for _, r := range p.requests {
		for _, earlier := range r.after {
			if earlier.number >= r.number {
				t.Errorf("%s waits for %s, want an earlier one", r, earlier)
			}
		}
		kind, _, _ := strings.Cut(r.what, "-")
		count[kind]++
	}
	for _, kind := range []string{
		"create pvc", "write pvc", "take snapshot", "restore pvc", "clone pvc", "take groupsnapshot",
		"delete pvc", "delete snapshot", "delete groupsnapshot", "remove the indices", "list",
	} {
		if count[kind] == 0 {
			t.Errorf("requests of each kind: got %v, want some to %s", count, kind)
		}
	}
	if len(p.volumes) == 0 || len(p.snapshots) == 0 || len(p.groups) == 0 {
		t.Errorf("what stays: got %d volumes, %d snapshots, %d groups, want some of each", len(p.volumes), len(p.snapshots), len(p.groups))
	}
	p.deleteRest()
	if len(p.volumes)+len(p.snapshots)+len(p.groups) > 0 {
		t.Errorf("what stays in the end: got %d volumes, %d snapshots, %d groups, want none", len(p.volumes), len(p.snapshots), len(p.groups))
	}
}

// TestOrders sees that things go before what was made of them, that chains are deep, and that copies are
// larger than their sources and elsewhere.
func TestOrders(t *testing.T) {
	p := newPlanner(1, 3, 6)
	var snapshotOutlives, copyOutlives, deep, larger, elsewhere int
	for range 300 {
		p.step()
		for _, one := range p.allSnapshots() {
			if !slices.Contains(p.volumes, one.sources[0]) {
				snapshotOutlives++
			}
		}
		for _, volume := range p.volumes {
			if volume.depth >= 3 {
				deep++
			}
			if volume.source == nil {
				continue
			}
			if !slices.Contains(p.volumes, volume.source) && !slices.Contains(p.allSnapshots(), volume.source) {
				copyOutlives++
			}
			if volume.content.bytes > volume.source.content.bytes {
				larger++
			}
			if volume.place != volume.source.place {
				elsewhere++
			}
		}
	}
	if snapshotOutlives == 0 || copyOutlives == 0 || deep == 0 || larger == 0 || elsewhere == 0 {
		t.Errorf("got %d snapshots that outlive their volumes, %d copies their sources, %d deep chains, %d larger copies, %d elsewhere; want some of each",
			snapshotOutlives, copyOutlives, deep, larger, elsewhere)
	}
}

// TestHoldings sees that each kind of thing that is left is told.
func TestHoldings(t *testing.T) {
	cases := []struct {
		name string
		make func(*holdings)
		want string
	}{
		{"nothing", func(*holdings) {}, ""},
		{"an image", func(h *holdings) { h.images = "a\n" }, "rbd ls rbd/tenant: a is left"},
		{"one in the trash", func(h *holdings) { h.trash = "1 a\n" }, "rbd trash ls --all rbd/tenant: 1 a is left"},
		{"a group", func(h *holdings) { h.groups = "g\n" }, "rbd group ls rbd/tenant: g is left"},
		{"a name", func(h *holdings) { h.keys = append(h.keys, "s/a/") }, "index of rbd/tenant: s/a/ is left"},
		{"a header", func(h *holdings) { h.objects = append(h.objects, "rbd_header.1") }, "rados ls rbd/tenant: rbd_header.1 is left"},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			h := holdings{
				at: place{"rbd", "tenant"}, keys: []string{"complete"},
				objects: []string{"rbd_directory", "rbd_info", "rbd_trash", "rbd_csi.index", "rbd_csi.clients"},
			}
			test.make(&h)
			if got := strings.Join(h.wrong(), "\n"); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestContent sees that a content is a value, and that its checksum and its diff tell contents apart.
func TestContent(t *testing.T) {
	empty := content{bytes: smallBytes}
	one := empty.with(0, 1)
	two := one.with(1<<20, 2)
	for name, pair := range map[string][2]content{
		"a block":         {empty, one},
		"another block":   {one, one.with(0, 2)},
		"a second block":  {one, two},
		"a larger volume": {one, one.grown(largeBytes)},
		"another place":   {one, empty.with(1<<20, 1)},
	} {
		if pair[0].sum() == pair[1].sum() {
			t.Errorf("%s: got one checksum, want two", name)
		}
		if bytes.Equal(pair[0].diff(), pair[1].diff()) {
			t.Errorf("%s: got one diff, want two", name)
		}
	}
	if len(empty.blocks) != 0 || len(one.blocks) != 1 {
		t.Errorf("blocks of contents that others were made of: got %d and %d, want 0 and 1", len(empty.blocks), len(one.blocks))
	}
	// The header, two records with a block each, and the end.
	want := len("rbd diff v1\n") + 1 + 8 + 2*(1+8+8+blockBytes) + 1
	if got := two.diff(); len(got) != want || binary.LittleEndian.Uint64(got[len("rbd diff v1\ns"):]) != smallBytes {
		t.Errorf("diff of two blocks: got %d bytes, want %d with the size", len(got), want)
	}
}
