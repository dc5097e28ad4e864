package volume

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
)

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

func TestImagesOfOthersAreLeftAlone(t *testing.T) {
	spec := specOf("pvc-1")
	source := specOf("source")
	for name, make := range map[string]func(t *testing.T, ceph *rbdtest.Ceph){
		"made by rbd": func(t *testing.T, ceph *rbdtest.Ceph) {
			_, err := ceph.Create(spec.Handle, spec.layout(gib))
			must(t, err)
		},
		"a clone with inherited marks": func(t *testing.T, ceph *rbdtest.Ceph) {
			must(t, start(ceph).create(t.Context(), source.Handle.Name))
			_, err := ceph.Clone(source.Handle, spec.Handle.Name)
			must(t, err)
		},
		"being made: directory entry only": func(t *testing.T, ceph *rbdtest.Ceph) {
			pool, err := ceph.Process().Pool(t.Context(), kube, nobody)
			must(t, err)
			must(t, pool.AddEntry(t.Context(), spec.Handle.Name, "10643c98"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			ceph := newCeph()
			make(t, ceph)
			before := ceph.Dump()
			d := start(ceph)
			want(t, "create", d.create(t.Context(), "pvc-1"), fault.Exists, "not made by this driver")
			if err := d.delete(t.Context(), "pvc-1"); !fault.Is(err, fault.InUse) {
				t.Errorf("delete: error %v, want kind %v", err, fault.InUse)
			}
			purgeAll(t, ceph)
			if after := ceph.Dump(); !slices.Equal(before, after) {
				t.Errorf("left:\n%s\nwant as before:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
		})
	}
}

func TestCreateComparesWithWhatIsThere(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	must(t, d.create(t.Context(), "pvc-1"))
	for name, test := range map[string]struct {
		change func(s *CreateSpec)
		word   string
	}{
		"another size":    {func(s *CreateSpec) { s.Fits = func(int64) bool { return false } }, "bytes"},
		"another class":   {func(s *CreateSpec) { s.Class.ImageNamePrefix = "other-" }, "parameters"},
		"another request": {func(s *CreateSpec) { s.Request = "vc-1" }, "request"},
	} {
		spec := specOf("pvc-1")
		test.change(&spec)
		_, err := d.Create(t.Context(), spec, nobody)
		want(t, name, err, fault.Exists, test.word)
	}
	wantOne(t, ceph, "pvc-1")
}

func TestCreateUndoesItsClaimWhenTheFailureIsFinal(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	spec := specOf("pvc-1")
	spec.Class.DataPool = "nowhere"
	_, err := d.Create(t.Context(), spec, nobody)
	want(t, "create", err, fault.Invalid, "nowhere")
	purgeAll(t, ceph)
	wantNothing(t, ceph)
}

func TestMarksThatCannotBeReadStopEverything(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	must(t, d.create(t.Context(), "pvc-1"))
	handle := specOf("pvc-1").Handle
	must(t, ceph.SetMeta(handle, image.AttachmentsKey, "not JSON"))
	want(t, "delete", d.delete(t.Context(), "pvc-1"), fault.InUse, "image-meta")
	_, err := d.Attach(t.Context(), handle, AttachSpec{Node: "a"}, nobody)
	want(t, "attach", err, fault.InUse, "image-meta")
}

func TestAttachAdmits(t *testing.T) {
	single := AttachSpec{Node: "a", Mode: "SINGLE_NODE_WRITER", Single: true}
	reader := AttachSpec{Node: "a", Mode: "MULTI_NODE_READER_ONLY", ReadOnly: true}
	on := func(s AttachSpec, node string) AttachSpec { s.Node = node; return s }
	for name, test := range map[string]struct {
		first, second AttachSpec
		kind          fault.Kind
		word          string // "" for success
	}{
		"the same again":           {first: single, second: single},
		"a second writer":          {single, on(single, "b"), fault.InUse, "node a"},
		"a reader beside a writer": {single, on(reader, "b"), fault.InUse, "node a"},
		"a writer beside a reader": {reader, on(single, "b"), fault.InUse, "node a"},
		"two readers":              {first: reader, second: on(reader, "b")},
		"another mode on the node": {single, reader, fault.Exists, "SINGLE_NODE_WRITER"},
	} {
		t.Run(name, func(t *testing.T) {
			ceph := newCeph()
			d := start(ceph)
			must(t, d.create(t.Context(), "pvc-1"))
			handle := specOf("pvc-1").Handle
			_, err := d.Attach(t.Context(), handle, test.first, nobody)
			must(t, err)
			_, err = start(ceph).Attach(t.Context(), handle, test.second, nobody)
			if test.word == "" {
				must(t, err)
				return
			}
			want(t, "second attach", err, test.kind, test.word)
		})
	}
}

func TestAWriterNeedsTheExclusiveLock(t *testing.T) {
	ceph := newCeph()
	spec := specOf("foo")
	spec.Class.Features = params.Layering
	_, err := ceph.Create(spec.Handle, spec.layout(gib))
	must(t, err)
	_, err = start(ceph).Attach(t.Context(), spec.Handle, AttachSpec{Node: "a", Mode: "w", Single: true}, nobody)
	want(t, "attach", err, fault.InUse, "exclusive-lock")
}

// TestDetachAndTheFrozenNode plays a node that is frozen between its request to
// stage and its first write, while the controller detaches and attaches elsewhere.
func TestDetachAndTheFrozenNode(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	ctx := t.Context()
	must(t, d.create(ctx, "pvc-1"))
	handle := specOf("pvc-1").Handle
	right, err := d.Attach(ctx, handle, AttachSpec{Node: "a", Mode: "w", Single: true}, nobody)
	must(t, err)
	claim := image.Claim{Node: "a", Generation: right.Generation, Client: "1.2.3.4:0/7", Boot: "boot"}
	frozen, err := image.Find(ctx, d.clusters, handle, nobody)
	must(t, err)

	must(t, d.Detach(ctx, handle, "a", nobody))
	other, err := d.Attach(ctx, handle, AttachSpec{Node: "b", Mode: "w", Single: true}, nobody)
	must(t, err)
	if other.Generation <= right.Generation {
		t.Errorf("generation %d after %d, want it to grow", other.Generation, right.Generation)
	}

	_, err = frozen.Claim(ctx, claim)
	want(t, "claim with what was read before", err, fault.Superseded, "")
	thawed, err := image.Find(ctx, d.clusters, handle, nobody)
	must(t, err)
	_, err = thawed.Claim(ctx, claim)
	want(t, "claim after looking again", err, fault.InUse, "not attached")
}

func TestDeleteOfAnAttachedVolume(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	ctx := t.Context()
	must(t, d.create(ctx, "pvc-1"))
	handle := specOf("pvc-1").Handle
	_, err := d.Attach(ctx, handle, AttachSpec{Node: "a", Mode: "w", Single: true}, nobody)
	must(t, err)
	want(t, "delete", d.delete(ctx, "pvc-1"), fault.InUse, "attached to [a]")
	must(t, d.Detach(ctx, handle, "", nobody))
	must(t, d.delete(ctx, "pvc-1"))
}

func TestDeleteAndAttachExclude(t *testing.T) {
	// Attach stops before its compare-and-set, and delete gets through meanwhile.
	ceph := newCeph()
	d, other := start(ceph), start(ceph)
	must(t, d.create(t.Context(), "pvc-1"))
	d.process.OnCall(func(ctx context.Context, call rbdtest.Call) {
		if call.Method == "ChangeMeta" {
			must(t, other.delete(ctx, "pvc-1"))
		}
	})
	_, err := d.Attach(t.Context(), specOf("pvc-1").Handle, AttachSpec{Node: "a", Mode: "w"}, nobody)
	want(t, "attach", err, fault.NotFound, "pvc-1")
	purgeAll(t, ceph)
	wantNothing(t, ceph)
}

func TestListPages(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	var all []string
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		must(t, d.create(t.Context(), name))
		all = append(all, specOf(name).Handle.String())
	}
	foreign := specOf("bb")
	_, err := ceph.Create(foreign.Handle, foreign.layout(gib))
	must(t, err)
	for most := range 7 {
		var got []string
		for token := ""; ; {
			page, next, err := d.List(t.Context(), token, most)
			must(t, err)
			for _, v := range page {
				got = append(got, v.Handle.String())
			}
			if token = next; token == "" {
				break
			}
			if len(page) != most {
				t.Errorf("page of %d, want %d", len(page), most)
			}
		}
		if !slices.Equal(got, all) {
			t.Errorf("pages of %d: %v, want %v", most, got, all)
		}
	}
	if _, _, err := d.List(t.Context(), "no handle", 0); !fault.Is(err, fault.Superseded) {
		t.Errorf("bad token: error %v, want kind %v", err, fault.Superseded)
	}
}

func TestExpand(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	must(t, d.create(t.Context(), "pvc-1"))
	handle := specOf("pvc-1").Handle
	to := func(n int64) ExpandSpec { return ExpandSpec{To: func(int64, int64) (int64, error) { return n, nil }} }
	for _, test := range []struct{ to, want int64 }{{2 * gib, 2 * gib}, {2 * gib, 2 * gib}, {gib, 2 * gib}} {
		got, err := d.Expand(t.Context(), handle, to(test.to), nobody)
		if err != nil || got.Bytes != test.want {
			t.Errorf("expand to %d: %d bytes, error %v, want %d", test.to, got.Bytes, err, test.want)
		}
	}
	refuse := errors.New("no")
	_, err := d.Expand(t.Context(), handle, ExpandSpec{To: func(int64, int64) (int64, error) { return 0, refuse }}, nobody)
	if !errors.Is(err, refuse) {
		t.Errorf("refused expand: error %v, want %v", err, refuse)
	}
	_, err = d.Expand(t.Context(), specOf("pvc-2").Handle, to(gib), nobody)
	want(t, "expand what is not there", err, fault.NotFound, "pvc-2")
}
