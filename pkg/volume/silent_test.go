package volume

import (
	"testing"

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
