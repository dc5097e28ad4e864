package volume

import (
	"reflect"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
)

// TestSilent has a node that lives, one that is lost, and those that use nothing.
func TestSilent(t *testing.T) {
	const client = "10.0.0.1:0/7"
	tests := []struct {
		name string
		do   func(f *fencing, staged rbdtest.Client)
		want bool
	}{
		{"a client that lives", func(*fencing, rbdtest.Client) {}, false},
		{"a client that is lost", func(f *fencing, _ rbdtest.Client) { f.ceph.Lose(client) }, true},
		{"unstaged", func(f *fencing, staged rbdtest.Client) {
			staged.Close()
			must(f.T, image.Release(f.Context(), f.ceph.Process(), specOf("pvc-1").Handle, "a"))
		}, true},
		{"detached after it was lost", func(f *fencing, _ rbdtest.Client) {
			f.ceph.Lose(client)
			must(f.T, f.detach("a"))
		}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFencing(t)
			test.do(f, f.stage("a", "single", client))
			before := f.look().Marks.Attachments.Generation
			got, err := f.start().Silent(t.Context(), specOf("pvc-1").Handle, "a")
			if err != nil || got != test.want {
				t.Errorf("got %t, %v, want %t", got, err, test.want)
			}
			if after := f.look().Marks.Attachments.Generation; after != before {
				t.Errorf("the record's generation went from %d to %d, want nothing changed", before, after)
			}
		})
	}
}

// TestSilentReaders holds that nothing is concluded from a reader's silence: it does not watch while it lives.
func TestSilentReaders(t *testing.T) {
	const client = "10.0.0.1:0/7"
	f := newFencing(t)
	right, err := f.start().Attach(t.Context(), specOf("pvc-1").Handle, AttachSpec{Node: "a", Mode: "readers", ReadOnly: true}, nobody)
	must(t, err)
	silent := func() (bool, error) { return f.start().Silent(t.Context(), specOf("pvc-1").Handle, "a") }
	claim := image.Claim{Node: "a", Generation: right.Generation, Client: client, Boot: "boot"}
	_, err = f.look().Claim(t.Context(), claim)
	must(t, err)
	if got, err := silent(); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a reader: got %t, %v, want %v", got, err, fault.Unsupported)
	}
	claim.Replays = true
	_, err = f.look().Claim(t.Context(), claim)
	must(t, err)
	if got, err := silent(); err != nil || !got {
		t.Errorf("one that replayed a journal and is lost: got %t, %v, want it silent", got, err)
	}
	must(t, image.Release(t.Context(), f.ceph.Process(), specOf("pvc-1").Handle, "a"))
	if got, err := silent(); err != nil || !got {
		t.Errorf("unstaged: got %t, %v, want it silent", got, err)
	}
}

// TestSilentBesideOthers holds that the clients of other nodes are no sign of life of this one, and that a client
// whose node is not known is.
func TestSilentBesideOthers(t *testing.T) {
	f := newFencing(t)
	f.stage("a", "shared", "10.0.0.1:0/7")
	f.stage("b", "shared", "10.0.0.2:0/7")
	f.ceph.Lose("10.0.0.1:0/7")
	if got, err := f.start().Silent(t.Context(), specOf("pvc-1").Handle, "a"); err != nil || !got {
		t.Errorf("beside another node: got %t, %v, want it silent", got, err)
	}
	if got, err := f.start().Silent(t.Context(), specOf("pvc-1").Handle, "b"); err != nil || got {
		t.Errorf("the other node: got %t, %v, want it alive", got, err)
	}
	if got, err := f.start().Silent(t.Context(), specOf("pvc-2").Handle, "a"); err != nil || !got {
		t.Errorf("no volume: got %t, %v, want it silent", got, err)
	}

	unknown := newFencing(t)
	unknown.attach("a", "single")
	_, err := unknown.ceph.OpenAs(specOf("pvc-1").Handle, "10.0.0.3:0/9")
	must(t, err)
	if got, err := unknown.start().Silent(t.Context(), specOf("pvc-1").Handle, "a"); err != nil || got {
		t.Errorf("a client that nobody recorded: got %t, %v, want it taken for a sign of life", got, err)
	}
}

// TestFenceNode shuts lost nodes out before their volumes are detached.
func TestFenceNode(t *testing.T) {
	const client = "10.0.0.1:0/7"
	handle := specOf("pvc-1").Handle
	tests := []struct {
		name   string
		do     func(f *fencing, staged rbdtest.Client)
		node   string
		fenced []string
	}{
		{"a node that was lost", func(f *fencing, _ rbdtest.Client) { f.ceph.Lose(client) }, "a", []string{client}},
		{"one that was shut out before", func(f *fencing, _ rbdtest.Client) { must(f.T, f.start().FenceNode(f.Context(), handle, "a")) }, "a", []string{client}},
		{"one that has unstaged it", func(f *fencing, staged rbdtest.Client) {
			staged.Close()
			must(f.T, image.Release(f.Context(), f.ceph.Process(), handle, "a"))
		}, "a", nil},
		{"one that is beside another", func(f *fencing, _ rbdtest.Client) { f.stage("b", "shared", "10.0.0.2:0/7") }, "b", []string{"10.0.0.2:0/7"}},
		{"one that it is not attached to", func(*fencing, rbdtest.Client) {}, "c", nil},
		{"no volume", func(f *fencing, staged rbdtest.Client) {
			staged.Close()
			must(f.T, image.Release(f.Context(), f.ceph.Process(), handle, "a"))
			must(f.T, f.detach("a"))
			must(f.T, f.start().delete(f.Context(), "pvc-1"))
		}, "a", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFencing(t)
			test.do(f, f.stage("a", "shared", client))
			must(t, f.start().FenceNode(t.Context(), handle, test.node))
			f.wantFenced(test.fenced...)
		})
	}
}

// TestFenceNodeLeavesTheRecord has a node that comes back before its volume is detached, and one that does not.
func TestFenceNodeLeavesTheRecord(t *testing.T) {
	f := newFencing(t)
	handle := specOf("pvc-1").Handle
	client := f.stage("a", "single", "10.0.0.1:0/7")
	before := f.look().Marks.Attachments
	d := f.start()
	must(t, d.FenceNode(t.Context(), handle, "a"))
	if got := d.process.Operations(); got != 4 {
		t.Errorf("%d operations (%v), want 4", got, d.process.Methods())
	}
	if client.Write("late") == nil {
		t.Error("the fenced client wrote")
	}
	if after := f.look().Marks.Attachments; !reflect.DeepEqual(after, before) {
		t.Errorf("the record went from %+v to %+v, want it as it was", before, after)
	}
	opened, err := f.ceph.OpenAs(handle, "10.0.0.1:0/8")
	must(t, err)
	_, err = f.look().Claim(t.Context(), image.Claim{Node: "a", Generation: before.Generation, Client: "10.0.0.1:0/8", Boot: "boot-a"})
	must(t, err)
	must(t, opened.Write("staged anew"))
	f.ceph.Lose("10.0.0.1:0/8")
	must(t, f.detach("a"))
	f.wantFenced("10.0.0.1:0/7", "10.0.0.1:0/8")
	must(t, f.stage("b", "single", "10.0.0.2:0/7").Write("elsewhere"))
}
