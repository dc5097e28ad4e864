package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

// TestReadCopies has two nodes begin at once to read a copy of a volume that is being written: its filesystem has a journal that
// has to be replayed before it can be read, and one of them does that.
func TestReadCopies(t *testing.T) {
	m := Start(t, shared.ForTest(t, ceph.Options{}))
	other, err := m.Driver.Node(t.Context(), "node-b")
	check(t, err)
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			v := m.made(t, kind, nil)
			v.write(t, m.Node)
			taken, err := m.Controller.TakeSnapshot(t.Context(), "snap-"+v.Name, v.Handle)
			check(t, err)
			copied := v.copied(t, taken)

			var wait sync.WaitGroup
			for _, node := range []*driver.Process{m.Node, other} {
				wait.Go(func() {
					if err := copied.upAgain(t.Context(), node); err != nil {
						t.Errorf("on %s: %v", node.Name, err)
					}
				})
			}
			wait.Wait()
			for _, node := range []*driver.Process{m.Node, other} {
				copied.read(t, node)
				if err := os.WriteFile(filepath.Join(node.TargetPath(copied.Name), "more"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
					t.Errorf("write on %s: got %v, want %v", node.Name, err, syscall.EROFS)
				}
				copied.down(t, node)
			}
			v.read(t, m.Node)
			v.down(t, m.Node)
			check(t, m.Controller.Delete(t.Context(), copied.Volume))
			check(t, m.Controller.DropSnapshot(t.Context(), taken))
			check(t, m.Controller.Delete(t.Context(), v.Volume))
		})
	}
	awaitEmpty(t, m)
}

// copied makes a volume of a snapshot that many nodes may read.
func (v *volume) copied(t *testing.T, of driver.Snapshot) *volume {
	t.Helper()
	use := &csi.VolumeCapability{
		AccessType: kinds[v.kind].GetAccessType(), AccessMode: mode(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY),
	}
	made, err := v.Controller.Create(t.Context(), driver.Claim{
		Volume: v.Name + "-copy", Name: "copy", Namespace: "shop", Bytes: gib, Parameters: v.Parameters(), Use: use, OfSnapshot: of.Handle,
	})
	check(t, err)
	return &volume{Machine: v.Machine, Volume: made, kind: v.kind, data: v.data}
}

// upAgain brings the volume to a pod on a node, and comes again where it is told to, as kubelet does.
func (v *volume) upAgain(ctx context.Context, node *driver.Process) error {
	id, err := node.ID(ctx)
	if err != nil {
		return err
	}
	attached, err := v.Controller.Attach(ctx, v.Volume, id)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; {
		err := node.Stage(ctx, v.Volume, attached)
		if err == nil {
			return node.Publish(ctx, v.Volume, attached, v.Name)
		}
		if status.Code(err) != codes.Aborted || time.Now().After(deadline) {
			return err
		}
	}
}
