package kernel

import (
	"testing"

	"github.com/rbd-csi/rbd-csi/test/sanity/conformance"
)

// TestKRBDSanity runs csi-sanity on this machine against a node in a guest, with krbd.
func TestKRBDSanity(t *testing.T) {
	p := newPlant(t, "krbd", 1)
	n := p.nodes[0]
	must(t, folders{n.guest}.Mkdir("/run/sanity"))
	conformance.Run(t, conformance.Options{
		Controller: "unix:" + p.controller.Socket(),
		Node:       "unix:" + n.Socket(),
		Parameters: p.parameters(nil),
		Directory:  "/run/sanity",
		Bytes:      gibibyte,
		On:         folders{n.guest},
	})
	if got := p.mappedNow(t, n); got != "" {
		t.Errorf("on %s: got %q mapped, want nothing", n.Name, got)
	}
}
