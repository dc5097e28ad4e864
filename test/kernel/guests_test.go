package kernel

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestTwoNodes takes a volume for one writer between two nodes, of which one dies.
func TestTwoNodes(t *testing.T) { //nolint:tparallel // the subtests share guests, one after the other
	p := newPlant(t, "krbd", 2)
	v := p.made(t, "ext4", nil)
	a, b := p.nodes[0], p.nodes[1]
	v.up(t, a)
	v.write(t, a)
	t.Run("a second mount is impossible", func(t *testing.T) { v.refusedOn(t, b) })
	t.Run("a rebooted guest stages again", func(t *testing.T) { v.afterReboot(t, a) })
	t.Run("the volume moves", func(t *testing.T) {
		v.down(t, a)
		v.wantNothing(t, a)
		v.up(t, b)
		v.read(t, b)
		v.down(t, b)
		v.wantNothing(t, b)
		must(t, p.controller.Delete(t.Context(), v.Volume))
	})
}

// refusedOn asks for a volume that is in use elsewhere, as Kubernetes does, and as it does not.
func (v *volume) refusedOn(t *testing.T, other *Node) {
	id, err := other.ID(t.Context())
	must(t, err)
	_, err = v.controller.Attach(t.Context(), v.Volume, id)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), v.nodes[0].Name) {
		t.Errorf("attach to a second node: got %v, want FailedPrecondition and the first node's name", err)
	}
	if err := other.Stage(t.Context(), v.Volume, v.attached); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("stage with the first node's context: got %v, want FailedPrecondition", err)
	}
	must(t, folders{other.guest}.RemoveEmpty(t.Context(), other.StagingPath(v.Volume)))
	v.wantMounted(t, other, false)
	v.wantMounted(t, v.nodes[0], true)
	v.read(t, v.nodes[0])
	if got := v.mappedNow(t, other); got != "" {
		t.Errorf("on %s: got %q mapped, want nothing", other.Name, got)
	}
}

func (v *volume) wantMounted(t *testing.T, n *Node, want bool) {
	t.Helper()
	got := n.guest.shell(t, `findmnt -rno SOURCE | grep -c ^/dev/rbd || :`) != "0"
	if got != want {
		t.Errorf("on %s: mounted: got %t, want %t", n.Name, got, want)
	}
}

// afterReboot ends a guest as a power failure does and boots it again. The kubelet then stages and
// publishes by the attachment that still stands.
func (v *volume) afterReboot(t *testing.T, n *Node) {
	boot := n.guest.shell(t, "cat /proc/sys/kernel/random/boot_id")
	must(t, n.guest.Kill())
	g, err := Boot(t.Context(), GuestOptions{Number: n.guest.number, Folder: v.ceph.Dir()})
	must(t, err)
	for i, other := range v.nodes {
		if other == n {
			v.guests[i] = g
		}
	}
	n.On(g)
	if again := g.shell(t, "cat /proc/sys/kernel/random/boot_id"); again == boot {
		t.Errorf("boot ID: got %s again, want another one", again)
	}
	must(t, n.Start(t.Context()))
	v.show(t, n)
	v.read(t, n)
	v.wantMapped(t, n)
	v.write(t, n)
}
