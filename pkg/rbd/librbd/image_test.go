package librbd

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

const mebibyte = 1 << 20

func mapped() rbd.Layout {
	return rbd.Layout{
		Bytes: 100*mebibyte + 512, ObjectBytes: 4 * mebibyte,
		Features: rbd.Layering | rbd.ExclusiveLock | rbd.ObjectMap | rbd.FastDiff | rbd.DeepFlatten,
	}
}

// create makes an image in the order in which the driver does.
func create(t *testing.T, p *pool, name string, layout rbd.Layout) (id string) {
	t.Helper()
	id = rbd.NewID()
	steps := []func() error{
		func() error { return p.AddEntry(t.Context(), name, id) },
		func() error {
			return p.CreateHeader(t.Context(), id, layout, map[string]string{rbd.MetaPrefix + "mark": "m"})
		},
		func() error { return p.EnsureObjectMap(t.Context(), id, layout) },
		func() error { return p.AddName(t.Context(), name, id) },
	}
	if !layout.Features.Has(rbd.ObjectMap) {
		steps = slices.Delete(steps, 2, 3)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

// TestHeaderIsAsLibrbdMakesIt compares every byte of an image made step by step
// with one made by `rbd create`, but for IDs and times.
func TestHeaderIsAsLibrbdMakesIt(t *testing.T) {
	l := newLab(t)
	striped := mapped()
	striped.StripeUnit, striped.StripeCount = 64<<10, 4
	apart := mapped()
	apart.DataPool = l.DataPool()
	bare := rbd.Layout{Bytes: 1, ObjectBytes: 4096, Features: rbd.Layering}
	for name, layout := range map[string]rbd.Layout{"mapped": mapped(), "striped": striped, "apart": apart, "bare": bare} {
		for _, place := range []volid.Pool{l.place(), l.namespace()} {
			p := l.open(t, place)
			ours := create(t, p, "ours-"+name, layout)
			theirs, err := l.Create(volid.Image{Pool: place, Name: "theirs-" + name}, layout)
			if err != nil {
				t.Fatal(err)
			}
			err = l.in(place, func(a at) error {
				sameOmap(t, a, headerPrefix, ours, theirs)
				sameBytes(t, a, idPrefix+"ours-"+name, ours, idPrefix+"theirs-"+name, theirs)
				if layout.Features.Has(rbd.ObjectMap) {
					sameBytes(t, a, mapPrefix+ours, ours, mapPrefix+theirs, theirs)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// sameOmap compares the omaps of two objects.
func sameOmap(t *testing.T, a at, prefix, ours, theirs string) {
	t.Helper()
	got, err := a.GetOmapValues(prefix+ours, "", "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	want, err := a.GetOmapValues(prefix+theirs, "", "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	delete(got, metaPrefix+rbd.MetaPrefix+"mark")
	for _, omap := range []map[string][]byte{got, want} {
		for key := range omap {
			if strings.HasSuffix(key, "_timestamp") {
				omap[key] = nil
			}
		}
	}
	prefixKey := "object_prefix"
	want[prefixKey] = relabelled(want[prefixKey], theirs, ours)
	if !maps.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("omap of %s: got %q, want %q", prefix, got, want)
	}
}

// relabelled replaces an ID in a text with its length in front.
func relabelled(encoded []byte, from, to string) []byte {
	text := (&reader{bytes: encoded}).text()
	return new(writer).text(strings.Replace(text, from, to, 1)).bytes
}

func sameBytes(t *testing.T, a at, ours, oursID, theirs, theirsID string) {
	t.Helper()
	content := func(object string) []byte {
		data := make([]byte, 1<<16)
		n, err := a.Read(object, data, 0)
		if err != nil {
			t.Fatal(err)
		}
		return data[:n]
	}
	got, want := content(ours), content(theirs)
	if strings.HasPrefix(ours, idPrefix) {
		want = relabelled(want, theirsID, oursID)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got %x, want %x", ours, got, want)
	}
}

// TestCommandsTakeOurImages lets the commands of Ceph work on an image made step by step.
func TestCommandsTakeOurImages(t *testing.T) {
	l := newLab(t)
	for name, place := range map[string]volid.Pool{"pool": l.place(), "namespace": l.namespace()} {
		p := l.open(t, place)
		layout := mapped()
		layout.DataPool = l.DataPool()
		id := create(t, p, name, layout)
		spec := strings.TrimPrefix(volid.Image{Pool: place, Name: name}.String(), l.name+":")
		for _, one := range []struct {
			args []string
			want string
		}{
			{[]string{"ls", strings.TrimSuffix(spec, "/"+name)}, name},
			{[]string{"info", spec}, "id: " + id},
			{[]string{"info", spec}, "data_pool: " + l.DataPool()},
			{[]string{"info", spec}, "features: layering, exclusive-lock, object-map, fast-diff, deep-flatten, data-pool"},
			{[]string{"image-meta", "get", spec, rbd.MetaPrefix + "mark"}, "m"},
			{[]string{"bench", "--io-type", "write", "--io-size", "4096", "--io-total", "65536", spec}, "ops/sec"},
			{[]string{"object-map", "check", spec, "--no-progress"}, ""},
			{[]string{"snap", "create", spec + "@s", "--no-progress"}, ""},
			{[]string{"resize", "--size", "200M", spec, "--no-progress"}, ""},
			{[]string{"du", spec}, "200 MiB"},
			{[]string{"object-map", "check", spec, "--no-progress"}, ""},
			{[]string{"clone", spec + "@s", spec + "-clone", "--rbd-default-clone-format", "2"}, ""},
			{[]string{"flatten", spec + "-clone", "--no-progress"}, ""},
			{[]string{"rm", spec + "-clone", "--no-progress"}, ""},
			{[]string{"snap", "rollback", spec + "@s", "--no-progress"}, ""},
			{[]string{"info", spec}, "flags: \n"},
			{[]string{"rename", spec, spec + "-renamed"}, ""},
			{[]string{"snap", "purge", spec + "-renamed", "--no-progress"}, ""},
			{[]string{"rm", spec + "-renamed", "--no-progress"}, ""},
		} {
			output, err := l.RBD(t.Context(), one.args...)
			if err != nil || !strings.Contains(output, one.want) {
				t.Errorf("rbd %s: got %q, %v; want %q in it", strings.Join(one.args, " "), output, err, one.want)
			}
		}
		left, err := l.Objects(place)
		if err != nil {
			t.Fatal(err)
		}
		// Data that only snapshots held is removed by the OSDs in their own time.
		left = slices.DeleteFunc(left, func(line string) bool { return strings.HasPrefix(line, dataPrefix) })
		if len(left) > 0 {
			t.Errorf("left: got %q, want nothing", left)
		}
	}
}

// TestPoolThatWasNeverInitialised makes images and snapshots in a pool that was
// only created: `rbd pool init` was not run, and no librbd has validated it.
func TestPoolThatWasNeverInitialised(t *testing.T) {
	l := newLab(t)
	raw := l.Pool() + "-raw"
	l.run(t, "osd", "pool", "create", raw, "8")
	t.Cleanup(func() { _ = l.RemovePool(context.WithoutCancel(t.Context()), raw) })
	place := volid.Pool{Cluster: l.name, Pool: raw}
	image := volid.Image{Pool: place, Name: "a"}
	id := create(t, l.open(t, place), image.Name, mapped())
	if err := l.Snapshot(image, "s"); err != nil {
		t.Error(err)
	}
	if err := l.RemoveSnapshots(image); err != nil {
		t.Error(err)
	}
	if _, err := l.RBD(t.Context(), "rm", raw+"/a", "--no-progress"); err != nil {
		t.Errorf("rm of %s: %v", id, err)
	}
}

// TestErrorOfAStep holds that the error of one step of an operation is what the
// whole operation returns, wherever it stands, and that nothing is done then.
func TestErrorOfAStep(t *testing.T) {
	l := newLab(t)
	err := l.in(l.place(), func(a at) error {
		object := headerPrefix + "x"
		for name, fails := range map[string]func(*writeOp){
			"exec": func(op *writeOp) {
				op.exec("cmpomap", "cmp_vals", expectation(prefixed(metaPrefix, map[string]string{"k": "v"})))
			},
			"compare":   func(op *writeOp) { op.compare([]byte("x"), 0) },
			"no method": func(op *writeOp) { op.exec(class, "no_such_method", nil) },
		} {
			err := a.write(object, func(op *writeOp) {
				op.create()
				op.setOmap(map[string][]byte{"before": {1}})
				fails(op)
				op.setOmap(map[string][]byte{"after": {1}})
			})
			if err == nil || number(err) == 0 {
				t.Errorf("%s: got %v, want an error with a number", name, err)
			}
			if _, err := a.Stat(object); number(err) == 0 {
				t.Errorf("%s: got the object made, want nothing done", name)
				_ = a.Delete(object)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOperations counts what the comments in package rbd and DESIGN's budgets
// promise, with images that are empty, have an object map and no client.
func TestOperations(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	const batch = 20
	var ids, names []string
	for range batch {
		ids, names = append(ids, rbd.NewID()), append(names, "ops-"+rbd.NewID())
	}
	layout, ctx := mapped(), t.Context()
	if err := p.AddEntry(ctx, "first", rbd.NewID()); err != nil { // makes rbd_directory
		t.Fatal(err)
	}
	l.count(t, batch, []counted{
		{"Pool", 0, func(int) error {
			_, err := p.clusters.Pool(ctx, l.place(), params.Credentials{})
			return err
		}},
		{"AddEntry", 1, func(i int) error { return p.AddEntry(ctx, names[i], ids[i]) }},
		{"CreateHeader", 1, func(i int) error {
			return p.CreateHeader(ctx, ids[i], layout, map[string]string{rbd.MetaPrefix + "a": "b"})
		}},
		{"EnsureObjectMap", 1, func(i int) error { return p.EnsureObjectMap(ctx, ids[i], layout) }},
		{"AddName", 1, func(i int) error { return p.AddName(ctx, names[i], ids[i]) }},
		{"FindEntry", 1, func(i int) error { _, err := p.FindEntry(ctx, names[i]); return err }},
		{"FindName", 1, func(i int) error { _, err := p.FindName(ctx, names[i]); return err }},
		{"Entries", 1, func(i int) error { _, err := p.Entries(ctx, "", 1000); return err }},
		{"Header", 1, func(i int) error { _, err := p.Header(ctx, ids[i]); return err }},
		{"ChangeMeta", 1, func(i int) error {
			return p.ChangeMeta(ctx, ids[i], rbd.Change{Expect: map[string]string{rbd.MetaPrefix + "a": "b"}, Set: map[string]string{rbd.MetaPrefix + "c": "d"}})
		}},
		{"HoldsData", 13, func(i int) error { _, err := p.HoldsData(ctx, ids[i]); return err }},
		{"Grow", 29, func(i int) error { return p.Grow(ctx, ids[i], 200*mebibyte) }},
		{"Grow, large enough", 15, func(i int) error { return p.Grow(ctx, ids[i], 200*mebibyte) }},
		{"AddTrash", 1, func(i int) error { return p.AddTrash(ctx, ids[i], names[i]) }},
		{"AddTrash again", 2, func(i int) error { return p.AddTrash(ctx, ids[i], names[i]) }},
		{"RemoveName", 1, func(i int) error { return p.RemoveName(ctx, names[i], ids[i]) }},
		{"RemoveEntry", 1, func(i int) error { return p.RemoveEntry(ctx, names[i], ids[i]) }},
		{"Trashed", 1, func(i int) error { _, err := p.Trashed(ctx); return err }},
		{"Purge", 31, func(i int) error { return p.Purge(ctx, ids[i]) }},
		{"ReserveHeader", 1, func(i int) error { return p.ReserveHeader(ctx, ids[i], nil) }},
		{"RemoveHeader", 1, func(i int) error { return p.RemoveHeader(ctx, ids[i]) }},
		{"RemoveObjectMap", 1, func(i int) error { return p.RemoveObjectMap(ctx, ids[i]) }},
		{"Capacity", 0, func(i int) error { _, err := p.Capacity(ctx, ""); return err }},
	})
}

// A counted method costs at most so many operations.
type counted struct {
	method string
	most   float64
	call   func(i int) error
}

// pings is what an average may exceed its bound by: an image that is open is watched, and at each tick of the connection
// (see attentive) the watch is an operation too.
const pings = 0.25

// count calls each method for a batch and reports those that cost more.
func (l *lab) count(t *testing.T, batch int, methods []counted) {
	t.Helper()
	ctx := t.Context()
	for _, one := range methods {
		before, err := l.OpCount(ctx)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for i := range batch {
			if err := one.call(i); err != nil {
				t.Fatalf("%s: %v", one.method, err)
			}
		}
		each := time.Since(began) / time.Duration(batch)
		after, err := l.OpCount(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got := float64(after-before) / float64(batch)
		t.Logf("%-32s %5.2f operations  %s", one.method, got, each.Round(10*time.Microsecond))
		if got > one.most+pings {
			t.Errorf("%s: got %.2f operations, want at most %.0f", one.method, got, one.most)
		}
	}
}
