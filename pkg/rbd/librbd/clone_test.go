package librbd

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A cloning is how a clone is made in a test, by our steps and by `rbd clone`.
type cloning struct {
	name   string
	source rbd.Layout
	from   volid.Pool
	to     volid.Pool
	clone  rbd.Layout
	trash  bool // the source is in the trash when our clone is made
}

// cloneStep makes a clone in the steps and the order in which the driver does.
func cloneStep(t *testing.T, from, to *pool, source rbd.Header, snapshot rbd.Snapshot, name string, layout rbd.Layout) (id string) {
	t.Helper()
	ctx := t.Context()
	id = rbd.NewID()
	parent := rbd.Parent{
		PoolID: from.where.PoolID, Namespace: from.where.Namespace, ID: source.ID, Snapshot: snapshot.ID, Overlap: snapshot.Bytes,
	}
	child := rbd.Child{PoolID: to.where.PoolID, Namespace: to.where.Namespace, ID: id}
	for _, step := range []func() error{
		func() error { return to.AddEntry(ctx, name, id) },
		func() error { return to.CreateHeader(ctx, id, layout, map[string]string{rbd.MetaPrefix + "mark": "m"}) },
		func() error { return to.AttachParent(ctx, id, parent) },
		func() error { return to.AttachParent(ctx, id, parent) },
		func() error { return from.AddChild(ctx, source.ID, snapshot.ID, child) },
		func() error { return from.AddChild(ctx, source.ID, snapshot.ID, child) },
		func() error { return to.EnsureObjectMap(ctx, id, layout) },
		func() error { return to.AddName(ctx, name, id) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

// spec is an image as the command rbd wants it.
func (l *lab) spec(place volid.Pool, name string) string {
	return strings.TrimPrefix(volid.Image{Pool: place, Name: name}.String(), l.name+":")
}

// TestCloneIsAsLibrbdMakesIt compares a clone made step by step with one made by `rbd clone`:
// every byte of the header, the object map and what the parent knows, but for
// IDs and times, and then what the commands say of them.
func TestCloneIsAsLibrbdMakesIt(t *testing.T) {
	l := newLab(t)
	apart := mapped()
	apart.DataPool = l.DataPool()
	fine := mapped()
	fine.ObjectBytes = mebibyte
	large := mapped()
	large.Bytes = 300 * mebibyte
	here, team, other := l.place(), l.namespace(), l.other()
	for _, one := range []cloning{
		{"plain", mapped(), here, here, mapped(), false},
		{"data-pool", mapped(), here, here, apart, false},
		{"of-data-pool", apart, here, here, apart, false},
		{"other-pool", mapped(), here, other, mapped(), false},
		{"to-namespace", mapped(), here, team, mapped(), false},
		{"of-namespace", mapped(), team, here, mapped(), false},
		{"trashed", mapped(), here, here, mapped(), true},
		{"fine", mapped(), here, here, fine, false},
		{"larger", mapped(), here, here, large, false},
	} {
		t.Run(one.name, func(t *testing.T) { l.compareClones(t, one) })
	}
}

func (l *lab) compareClones(t *testing.T, one cloning) {
	from, to := l.open(t, one.from), l.open(t, one.to)
	source := volid.Image{Pool: one.from, Name: "source-" + one.name}
	sourceID := create(t, from, source.Name, one.source)
	for _, step := range []func() error{
		func() error { return l.WriteAt(source, 5*mebibyte, "written before") },
		func() error { return from.TakeSnapshot(t.Context(), sourceID, "s") },
		func() error { return l.WriteAt(source, 5*mebibyte, "written later") },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	theirs := l.libraryClone(t, one, source)
	theirID, err := to.FindName(t.Context(), theirs)
	if err != nil {
		t.Fatal(err)
	}
	before := snapshotOf(t, from, sourceID)
	if one.trash {
		if err := l.Trash(source); err != nil {
			t.Fatal(err)
		}
	}
	ours := "ours-" + one.name
	id := cloneStep(t, from, to, rbd.Header{ID: sourceID}, before, ours, one.clone)
	err = l.in(one.to, func(a at) error {
		sameOmap(t, a, headerPrefix, id, theirID)
		if one.clone.Bytes == one.source.Bytes { // else `rbd clone` is followed by a resize
			sameBytes(t, a, mapPrefix+id, id, mapPrefix+theirID, theirID)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if after := snapshotOf(t, from, sourceID); after.Children != 2 || before.Children != 1 {
		t.Errorf("children: got %d and then %d, want 1 and 2", before.Children, after.Children)
	}
	children, err := from.Children(t.Context(), sourceID, before.ID)
	if err != nil || !sameChildren(children, to, id, theirID) {
		t.Errorf("children: got %+v, %v; want %s and %s", children, err, id, theirID)
	}
	l.sameToCommands(t, one, source, ours, theirs)
	l.useClones(t, one, to, map[string]string{ours: id, theirs: theirID})
}

// sameChildren reports whether children are these images, in any order.
func sameChildren(children []rbd.Child, in *pool, ids ...string) bool {
	for _, id := range ids {
		if !slices.Contains(children, rbd.Child{PoolID: in.where.PoolID, Namespace: in.where.Namespace, ID: id}) {
			return false
		}
	}
	return len(children) == len(ids)
}

// snapshotOf returns the only snapshot of an image.
func snapshotOf(t *testing.T, p *pool, id string) rbd.Snapshot {
	t.Helper()
	header, err := p.Header(t.Context(), id)
	if err != nil || len(header.Snapshots) != 1 {
		t.Fatalf("got snapshots %+v, %v; want one", header.Snapshots, err)
	}
	return header.Snapshots[0]
}

// libraryClone makes a clone by the command, and makes it as large as ours.
func (l *lab) libraryClone(t *testing.T, one cloning, source volid.Image) string {
	t.Helper()
	name := "theirs-" + one.name
	args := []string{
		"clone", l.spec(source.Pool, source.Name) + "@s", l.spec(one.to, name), "--rbd-default-clone-format", "2",
		// The stripe unit would be the source's, which may be larger than the objects.
		"--object-size", fmt.Sprint(one.clone.ObjectBytes), "--stripe-unit", fmt.Sprint(one.clone.ObjectBytes), "--stripe-count", "1",
	}
	if one.clone.DataPool != "" {
		args = append(args, "--data-pool", one.clone.DataPool)
	}
	commands := [][]string{args}
	if one.clone.Bytes > one.source.Bytes {
		commands = append(commands, []string{"resize", "--no-progress", "--size", fmt.Sprint(one.clone.Bytes) + "B", l.spec(one.to, name)})
	}
	for _, command := range commands {
		if output, err := l.RBD(t.Context(), command...); err != nil {
			t.Fatalf("rbd %s: %s, %v", strings.Join(command, " "), output, err)
		}
	}
	// A clone of librbd begins with its source's metadata, ours with what it is given.
	id, err := l.open(t, one.to).FindName(t.Context(), name)
	if err == nil {
		err = l.in(one.to, func(a at) error { return a.RmOmapKeys(headerPrefix+id, []string{metaPrefix + rbd.MetaPrefix + "mark"}) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// sameToCommands compares what the commands say of both clones.
func (l *lab) sameToCommands(t *testing.T, one cloning, source volid.Image, ours, theirs string) {
	t.Helper()
	var infos []map[string]any
	for _, name := range []string{ours, theirs} {
		output, err := l.RBD(t.Context(), "info", "--format", "json", l.spec(one.to, name))
		info := map[string]any{}
		if err == nil {
			err = json.Unmarshal([]byte(output), &info)
		}
		if err != nil {
			t.Fatalf("rbd info %s: %s, %v", name, output, err)
		}
		for _, differs := range []string{"id", "name", "block_name_prefix", "create_timestamp", "access_timestamp", "modify_timestamp"} {
			delete(info, differs)
		}
		infos = append(infos, info)
	}
	if got, want := fmt.Sprint(infos[0]), fmt.Sprint(infos[1]); got != want {
		t.Errorf("rbd info: got %s, want %s", got, want)
	}
	if one.trash {
		return // the command finds a source by its name alone
	}
	output, err := l.RBD(t.Context(), "children", l.spec(source.Pool, source.Name)+"@s")
	for _, name := range []string{ours, theirs} {
		if err != nil || !strings.Contains(output, l.spec(one.to, name)+"\n") {
			t.Errorf("rbd children: got %q, %v; want %s in it", output, err, name)
		}
	}
}

// useClones reads, writes, flattens and removes each clone.
func (l *lab) useClones(t *testing.T, one cloning, to *pool, ids map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(ids)) {
		clone := volid.Image{Pool: one.to, Name: name}
		spec := l.spec(one.to, name)
		l.reads(t, clone, 5*mebibyte, "written before")
		if err := l.WriteAt(clone, 5*mebibyte+8, "anew"); err != nil {
			t.Fatal(err)
		}
		for _, command := range [][]string{
			{"object-map", "check", spec, "--no-progress"}, {"snap", "create", spec + "@own", "--no-progress"},
		} {
			if output, err := l.RBD(t.Context(), command...); err != nil {
				t.Errorf("rbd %s: %s, %v", strings.Join(command, " "), output, err)
			}
		}
		if err := to.Flatten(t.Context(), ids[name]); err != nil {
			t.Fatal(err)
		}
		l.reads(t, clone, 5*mebibyte, "written anew")
		header, err := to.Header(t.Context(), ids[name])
		if err != nil || header.HasParent {
			t.Errorf("flattened: got parent %+v, %v; want none", header.Parent, err)
		}
		info, err := l.RBD(t.Context(), "info", spec)
		if err != nil || strings.Contains(info, "clone") || strings.Contains(info, "operations") {
			t.Errorf("flattened: got %q, %v; want nothing of a clone", info, err)
		}
	}
}

// reads reports when an image holds another text.
func (l *lab) reads(t *testing.T, image volid.Image, offset int64, want string) {
	t.Helper()
	if got, err := l.ReadAt(image, offset, len(want)); got != want || err != nil {
		t.Errorf("read %s: got %q, %v; want %q", image.Name, got, err, want)
	}
}

// TestSnapshotsAreAsListed compares the snapshots in a header with what the command says,
// those in the trash included.
func TestSnapshotsAreAsListed(t *testing.T) {
	l := newLab(t)
	p, ctx := l.open(t, l.place()), t.Context()
	id := create(t, p, "source", mapped())
	for i, name := range []string{"one", "two", "three"} {
		if err := p.Grow(ctx, id, int64(200+i)*mebibyte); err != nil {
			t.Fatal(err)
		}
		if err := p.TakeSnapshot(ctx, id, name); err != nil {
			t.Fatal(err)
		}
	}
	header, err := p.Header(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	two := header.Snapshots[1]
	cloneStep(t, p, p, header, two, "clone", mapped())
	if err := p.RemoveSnapshot(ctx, id, two.ID); err != nil {
		t.Fatal(err)
	}
	if header, err = p.Header(ctx, id); err != nil {
		t.Fatal(err)
	}
	output, err := l.RBD(ctx, "snap", "ls", "--all", "--format", "json", l.spec(l.place(), "source"))
	if err != nil {
		t.Fatal(err)
	}
	var listed []struct {
		ID        uint64
		Name      string
		Size      int64
		Timestamp string
		Namespace struct{ Type string }
	}
	if err := json.Unmarshal([]byte(output), &listed); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]rbd.SnapshotKind{"user": rbd.UserSnapshot, "trash": rbd.TrashedSnapshot}
	if len(header.Snapshots) != 3 || len(listed) != 3 {
		t.Fatalf("got %+v, want 3 as in %s", header.Snapshots, output)
	}
	for i, got := range header.Snapshots {
		want := listed[i]
		if got.ID != want.ID || got.Name != want.Name || got.Bytes != want.Size || got.Kind != kinds[want.Namespace.Type] ||
			got.Time.Local().Format("Mon Jan _2 15:04:05 2006") != want.Timestamp {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if wantChildren := map[bool]int{true: 1}[want.Namespace.Type == "trash"]; got.Children != wantChildren {
			t.Errorf("%+v: want %d children", got, wantChildren)
		}
	}
}

// TestParentThatIsGone opens a clone whose parent does not exist: that is no missing image.
func TestParentThatIsGone(t *testing.T) {
	l := newLab(t)
	p, ctx := l.open(t, l.place()), t.Context()
	id := create(t, p, "orphan", mapped())
	err := p.AttachParent(ctx, id, rbd.Parent{PoolID: p.where.PoolID, ID: rbd.NewID(), Snapshot: 7, Overlap: mebibyte})
	if err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"Grow":           func() error { return p.Grow(ctx, id, 300*mebibyte) },
		"TakeSnapshot":   func() error { return p.TakeSnapshot(ctx, id, "s") },
		"RemoveSnapshot": func() error { return p.RemoveSnapshot(ctx, id, 7) },
		"Flatten":        func() error { return p.Flatten(ctx, id) },
		"HoldsData":      func() error { _, err := p.HoldsData(ctx, id); return err },
		"Changed":        func() error { _, err := p.Changed(ctx, id, rbd.Between{}, rbd.Extent{Bytes: 1}); return err },
	} {
		if err := call(); !fault.Is(err, fault.DataLoss) {
			t.Errorf("%s: got %v, want %v", name, err, fault.DataLoss)
		}
	}
}

// TestNamelessImage does not say that a snapshot is gone because librbd does not open the image.
func TestNamelessImage(t *testing.T) {
	l := newLab(t)
	p, ctx := l.open(t, l.place()), t.Context()
	source := create(t, p, "source", mapped())
	id := create(t, p, "nameless", mapped())
	for _, one := range []string{source, id} {
		if err := p.TakeSnapshot(ctx, one, "s"); err != nil {
			t.Fatal(err)
		}
	}
	parent := rbd.Parent{PoolID: p.where.PoolID, ID: source, Snapshot: snapshotOf(t, p, source).ID, Overlap: mebibyte}
	for _, step := range []func() error{
		func() error { return p.AttachParent(ctx, id, parent) },
		func() error { return p.RemoveEntry(ctx, "nameless", id) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.RemoveSnapshot(ctx, id, snapshotOf(t, p, id).ID); !fault.Is(err, fault.InUse) {
		t.Errorf("RemoveSnapshot: got %v, want %v", err, fault.InUse)
	}
	if err := p.Grow(ctx, id, 300*mebibyte); !fault.Is(err, fault.NotFound) {
		t.Errorf("Grow: got %v, want %v", err, fault.NotFound)
	}
}

// TestProtectedSnapshot leaves a snapshot alone that clones of format 1 may need.
func TestProtectedSnapshot(t *testing.T) {
	l := newLab(t)
	p, ctx := l.open(t, l.place()), t.Context()
	id := create(t, p, "source", mapped())
	if err := p.TakeSnapshot(ctx, id, "s"); err != nil {
		t.Fatal(err)
	}
	spec := l.spec(l.place(), "source") + "@s"
	if output, err := l.RBD(ctx, "snap", "protect", spec); err != nil {
		t.Fatal(output, err)
	}
	snapshot := snapshotOf(t, p, id)
	if err := p.RemoveSnapshot(ctx, id, snapshot.ID); !fault.Is(err, fault.InUse) {
		t.Errorf("protected: got %v, want %v", err, fault.InUse)
	}
	if got := snapshotOf(t, p, id); got != snapshot {
		t.Errorf("protected: got %+v, want %+v", got, snapshot)
	}
}

// TestOperationsOfCopies counts what the comments of rbd.Copies promise, with images that are
// empty, have an object map and no client.
func TestOperationsOfCopies(t *testing.T) {
	l := newLab(t)
	p, ctx := l.open(t, l.place()), t.Context()
	const batch = 10
	layout := mapped()
	var ids, clones []string
	for i := range batch {
		ids = append(ids, create(t, p, fmt.Sprint("source-", i), layout))
		clones = append(clones, rbd.NewID())
		err := p.AddEntry(ctx, fmt.Sprint("clone-", i), clones[i]) // librbd opens nothing that has no name
		if err == nil {
			err = p.CreateHeader(ctx, clones[i], layout, nil)
		}
		if err == nil {
			err = p.EnsureObjectMap(ctx, clones[i], layout)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	first, second := make([]uint64, batch), make([]uint64, batch)
	parent := func(i int) rbd.Parent {
		return rbd.Parent{PoolID: p.where.PoolID, ID: ids[i], Snapshot: first[i], Overlap: layout.Bytes}
	}
	child := func(i int) rbd.Child { return rbd.Child{PoolID: p.where.PoolID, ID: clones[i]} }
	changed := func(i int, between rbd.Between) error {
		_, err := p.Changed(ctx, ids[i], between, rbd.Extent{Bytes: layout.Bytes})
		return err
	}
	meta := map[string]string{"k": "v"}
	l.count(t, batch, []counted{
		{"TakeSnapshot", 34, func(i int) error { return p.TakeSnapshot(ctx, ids[i], "first") }},
		{"TakeSnapshot, another", 34, func(i int) error { return p.TakeSnapshot(ctx, ids[i], "second") }},
		{"Header", 1, func(i int) error {
			header, err := p.Header(ctx, ids[i])
			first[i], second[i] = header.Snapshots[0].ID, header.Snapshots[1].ID
			return err
		}},
		{"AttachParent", 1, func(i int) error { return p.AttachParent(ctx, clones[i], parent(i)) }},
		{"AttachParent again", 2, func(i int) error { return p.AttachParent(ctx, clones[i], parent(i)) }},
		{"AddChild", 1, func(i int) error { return p.AddChild(ctx, ids[i], first[i], child(i)) }},
		{"AddChild again", 1, func(i int) error { return p.AddChild(ctx, ids[i], first[i], child(i)) }},
		{"Children", 1, func(i int) error { _, err := p.Children(ctx, ids[i], first[i]); return err }},
		{"Changed, of all", 13, func(i int) error { return changed(i, rbd.Between{}) }},
		{"Changed, since a snapshot", 15, func(i int) error { return changed(i, rbd.Between{From: first[i]}) }},
		{"Changed, between two", 15, func(i int) error { return changed(i, rbd.Between{From: first[i], To: second[i]}) }},
		{"RemoveSnapshot", 32, func(i int) error { return p.RemoveSnapshot(ctx, ids[i], second[i]) }},
		{"RemoveSnapshot, none", 15, func(i int) error { return p.RemoveSnapshot(ctx, ids[i], second[i]) }},
		{"RemoveSnapshot with a clone", 30, func(i int) error { return p.RemoveSnapshot(ctx, ids[i], first[i]) }},
		{"RemoveSnapshot in the trash", 28, func(i int) error { return p.RemoveSnapshot(ctx, ids[i], first[i]) }},
		{"Flatten", 80, func(i int) error { return p.Flatten(ctx, clones[i]) }},
		{"Flatten again", 1, func(i int) error { return p.Flatten(ctx, clones[i]) }},
		{"MakeIndex", 1, func(i int) error { return p.MakeIndex(ctx) }},
		{"ChangeIndex", 1, func(i int) error { return p.ChangeIndex(ctx, rbd.Change{Set: meta}) }},
		{"Index", 1, func(i int) error { _, err := p.Index(ctx, "", 1000); return err }},
		{"IndexValues", 1, func(i int) error { _, err := p.IndexValues(ctx, "k"); return err }},
	})
}
