package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// kinds are the ways in which a volume is used.
var kinds = map[string]*csi.VolumeCapability{
	"ext4":  filesystem("ext4"),
	"xfs":   filesystem("xfs"),
	"block": {AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}, AccessMode: mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)},
}

func filesystem(kind string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: kind}},
		AccessMode: mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER),
	}
}

func mode(m csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability_AccessMode {
	return &csi.VolumeCapability_AccessMode{Mode: m}
}

// A volume is one in use at a machine.
type volume struct {
	*Machine
	driver.Volume
	kind     string
	attached map[string]string
	data     []byte
}

// made makes, attaches, stages and publishes a volume.
func (m *Machine) made(t *testing.T, kind string, parameters map[string]string) *volume {
	t.Helper()
	all := m.Parameters()
	maps.Copy(all, parameters)
	name := fmt.Sprintf("pvc-%s-%d", kind, time.Now().UnixNano())
	made, err := m.Controller.Create(t.Context(), driver.Claim{
		Volume: name, Name: "data-web-0", Namespace: "shop", Bytes: gib, Parameters: all, Use: kinds[kind],
	})
	check(t, err)
	v := &volume{Machine: m, Volume: made, kind: kind}
	v.up(t, m.Node)
	return v
}

// up brings the volume to a pod on a node.
func (v *volume) up(t *testing.T, node *driver.Process) {
	t.Helper()
	id, err := node.ID(t.Context())
	check(t, err)
	v.attached, err = v.Controller.Attach(t.Context(), v.Volume, id)
	check(t, err)
	check(t, node.Stage(t.Context(), v.Volume, v.attached))
	check(t, node.Publish(t.Context(), v.Volume, v.attached, v.Name))
}

// down takes the volume from the pod and the node.
func (v *volume) down(t *testing.T, node *driver.Process) {
	t.Helper()
	check(t, v.downOnce(t.Context(), node))
}

// downOnce is down for a cluster that may not answer.
func (v *volume) downOnce(ctx context.Context, node *driver.Process) error {
	if err := node.Unpublish(ctx, v.Volume, v.Name); err != nil {
		return err
	}
	if err := node.Unstage(ctx, v.Volume); err != nil {
		return err
	}
	id, err := node.ID(ctx)
	if err != nil {
		return err
	}
	return v.Controller.Detach(ctx, v.Volume, id)
}

// file returns where the data is: a file in the filesystem, or the device itself.
func (v *volume) file(node *driver.Process) string {
	if v.kind == "block" {
		return node.TargetPath(v.Name)
	}
	return filepath.Join(node.TargetPath(v.Name), "data")
}

// write writes data that read will look for, and syncs it.
func (v *volume) write(t *testing.T, node *driver.Process) {
	t.Helper()
	v.data = make([]byte, 8*mib)
	_, _ = rand.Read(v.data)
	file, err := os.OpenFile(v.file(node), os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	_, err = file.Write(v.data)
	check(t, errors.Join(err, file.Sync(), file.Close()))
}

// read checks that the data is there.
func (v *volume) read(t *testing.T, node *driver.Process) {
	t.Helper()
	file, err := os.Open(v.file(node))
	check(t, err)
	defer file.Close()
	got := make([]byte, len(v.data))
	if _, err := io.ReadFull(file, got); err != nil || !bytes.Equal(got, v.data) {
		t.Fatalf("on %s: read %x, error %v, want %x", node.Name, sha256.Sum256(got), err, sha256.Sum256(v.data))
	}
}

// TestLife takes a volume of each kind through what happens in a StatefulSet's life.
func TestLife(t *testing.T) {
	m := Start(t, shared.ForTest(t, ceph.Options{}))
	other, err := m.Driver.Node(t.Context(), "node-b")
	check(t, err)
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			v := m.made(t, kind, nil)
			v.write(t, m.Node)

			check(t, m.Node.Kill())
			check(t, m.Node.Start(t.Context()))
			v.read(t, m.Node)
			check(t, m.Node.Stage(t.Context(), v.Volume, v.attached))
			check(t, m.Node.Publish(t.Context(), v.Volume, v.attached, v.Name))

			v.refusedElsewhere(t, other)
			v.grow(t, 2*gib)
			v.read(t, m.Node)
			v.down(t, m.Node)

			v.up(t, other)
			v.read(t, other)
			v.wantSize(t, other, 2*gib)
			v.down(t, other)
			check(t, m.Controller.Delete(t.Context(), v.Volume))
		})
	}
	awaitEmpty(t, m)
}

// refusedElsewhere tries to use the volume on a second node meanwhile.
func (v *volume) refusedElsewhere(t *testing.T, other *driver.Process) {
	t.Helper()
	id, err := other.ID(t.Context())
	check(t, err)
	if _, err = v.Controller.Attach(t.Context(), v.Volume, id); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("attach to a second node: %v, want FailedPrecondition", err)
	}
	if err := other.Stage(t.Context(), v.Volume, v.attached); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("stage on a node that it is not attached to: %v, want FailedPrecondition", err)
	}
	check(t, os.Remove(other.StagingPath(v.Volume)))
	id, err = v.Node.ID(t.Context())
	check(t, err)
	if err := v.Controller.Detach(t.Context(), v.Volume, id); status.Code(err) != codes.Aborted {
		t.Errorf("detach while it is mapped: %v, want Aborted", err)
	}
	// The detach has ended the attachment for new mappings; the mapped volume goes on until the next one comes.
	v.read(t, v.Node)
}

// grow makes the volume larger while it is written.
func (v *volume) grow(t *testing.T, to int64) {
	t.Helper()
	stop := v.writing(t)
	got, err := v.Controller.Expand(t.Context(), v.Volume, to)
	if err != nil || got != to {
		t.Errorf("expand: %d bytes, error %v, want %d", got, err, to)
	}
	err = v.Node.ExpandOnNode(t.Context(), v.Volume, v.Name, to)
	stop()
	if status.Code(err) == codes.FailedPrecondition && strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
		t.Logf("skipped: growing a mounted ext4, because this machine does not give CAP_SYS_RESOURCE; the next stage grows it")
		return
	}
	check(t, err)
	v.wantSize(t, v.Node, to)
}

// wantSize checks how large the volume is where a pod sees it.
func (v *volume) wantSize(t *testing.T, node *driver.Process, bytes int64) {
	t.Helper()
	stats, err := node.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{
		VolumeId: v.Handle, VolumePath: node.TargetPath(v.Name),
	})
	check(t, err)
	if total := stats.GetUsage()[0].GetTotal(); total < bytes*9/10 || total > bytes {
		t.Errorf("on %s: a total of %d bytes, want about %d", node.Name, total, bytes)
	}
}

// writing writes behind the data until stop is called, and fails the test when a write does.
func (v *volume) writing(t *testing.T) (stop func()) {
	t.Helper()
	file, err := os.OpenFile(v.file(v.Node), os.O_RDWR, 0)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var writes atomic.Int64
	ended := make(chan error)
	go func() {
		defer close(ended)
		block := make([]byte, 4096)
		for ctx.Err() == nil {
			if _, err := file.WriteAt(block, int64(len(v.data))+writes.Load()%64*4096); err != nil {
				ended <- err
				return
			}
			if err := file.Sync(); err != nil {
				ended <- err
				return
			}
			writes.Add(1)
		}
	}()
	return func() {
		cancel()
		if err := <-ended; err != nil || writes.Load() == 0 {
			t.Errorf("writing while it grew: %d writes, error %v, want no error", writes.Load(), err)
		}
		check(t, file.Close())
	}
}

// awaitEmpty waits until the pool has no image and no trash: the settling time is 30 s.
func awaitEmpty(t *testing.T, m *Machine) {
	t.Helper()
	tools := Tools{Ceph: m.Ceph, Context: t.Context()}
	var left []string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		var err error
		left, err = tools.Objects(m.Pool())
		check(t, err)
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("left in the pool after 30 s: %v, want nothing", left)
}

func TestLayouts(t *testing.T) {
	m := Start(t, shared.ForTest(t, ceph.Options{DataPool: "ec"}))
	for name, parameters := range map[string]map[string]string{
		"erasure-coded data pool": {"dataPool": m.Ceph.DataPool()},
		"striped":                 {"objectSize": "1Mi", "stripeUnit": "64Ki", "stripeCount": "4"},
		"prefix":                  {"imageNamePrefix": "prod-"},
	} {
		t.Run(name, func(t *testing.T) {
			v := m.made(t, "ext4", parameters)
			v.write(t, m.Node)
			v.down(t, m.Node)
			v.up(t, m.Node)
			v.read(t, m.Node)
			v.down(t, m.Node)
			check(t, m.Controller.Delete(t.Context(), v.Volume))
		})
	}
	awaitEmpty(t, m)
}
