// Package sanity runs csi-sanity against the driver in memory.
package sanity

import (
	"slices"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/memory"
	"github.com/rbd-csi/rbd-csi/test/sanity/conformance"
)

func TestInMemory(t *testing.T) {
	driver := memory.Start(t)
	conformance.Run(t, conformance.Options{
		Controller: driver.Endpoint,
		Node:       driver.Endpoint,
		Parameters: map[string]string{"cluster": memory.Pool.Cluster, "pool": memory.Pool.Pool},
		Directory:  t.TempDir(),
		Bytes:      1 << 30,
	})
	driver.AwaitPurge(t)
	left, err := driver.Ceph.Objects(memory.Pool)
	left = slices.DeleteFunc(left, func(line string) bool { return line == builtIndex })
	if err != nil || len(left) > 0 {
		t.Errorf("left in the pool: %v, error %v, want nothing", left, err)
	}
}

// builtIndex stays in a pool that had a snapshot once: it says that the index of snapshots
// lacks nothing, even when it is empty.
const builtIndex = "rbd_csi.index complete 1"
