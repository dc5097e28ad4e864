// Package onceph runs csi-sanity against the driver's own processes on a real Ceph,
// with real mounts. It needs root and Ceph's packages.
package onceph

import (
	"os"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/node"
	"github.com/rbd-csi/rbd-csi/test/sanity/conformance"
)

func TestMain(m *testing.M) { os.Exit(ceph.Main(m)) }

func TestOnCeph(t *testing.T) {
	m := node.Start(t, ceph.ForTest(t, ceph.Options{}))
	conformance.Run(t, conformance.Options{
		Controller: "unix:" + m.Controller.Socket(),
		Node:       "unix:" + m.Node.Socket(),
		Parameters: m.Parameters(),
		Directory:  t.TempDir(),
		Bytes:      1 << 30,
	})
}
