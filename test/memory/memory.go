// Package memory runs the driver in memory: services, policy and server are the
// real ones, Ceph and the node's kernel are the fakes that pass the same suites as
// the real adapters. It takes milliseconds and needs nothing.
package memory

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/klog/v2/ktesting"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/controller"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem/filesystemtest"
	"github.com/rbd-csi/rbd-csi/pkg/group"
	"github.com/rbd-csi/rbd-csi/pkg/host"
	"github.com/rbd-csi/rbd-csi/pkg/identity"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/mappertest"
	"github.com/rbd-csi/rbd-csi/pkg/metadata"
	"github.com/rbd-csi/rbd-csi/pkg/node"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/server"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// Pool is where a Driver's volumes are.
var Pool = volid.Pool{Cluster: "main", Pool: "kube"}

// A Driver serves CSI on a socket.
type Driver struct {
	Endpoint string
	Ceph     *rbdtest.Ceph
	Files    *filesystemtest.Fake
	Devices  *mappertest.Fake

	Store *volume.Store

	purger    *volume.Purger
	flattener *volume.Flattener
}

// Start starts a driver, controller and node in one, and stops it with the test.
// Its cluster "main" has the user csi with the key KEY and the pool kube.
func Start(t *testing.T) *Driver {
	dir := t.TempDir()
	d := &Driver{Endpoint: "unix:" + filepath.Join(dir, "csi.sock"), Ceph: rbdtest.New(), Files: filesystemtest.NewFake()}
	d.Ceph.AddCluster(Pool.Cluster).AddUser("csi", "KEY").AddPool(Pool.Pool)
	name := volid.Node{Name: "worker-1"}
	d.Store = d.store(t)
	csi := server.New(server.Options{
		Driver:   "rbd-csi.io",
		Logger:   ktesting.NewLogger(t, ktesting.NewConfig()),
		Identity: &identity.Service{Name: "rbd-csi.io", Version: "test"},
		Controller: &controller.Service{
			Store:          d.Store,
			DefaultCluster: func(context.Context) (string, error) { return Pool.Cluster, nil },
			PublishedNodes: true,
		},
		GroupController:  &group.Service{Snapshots: d.Store.Snapshots()},
		SnapshotMetadata: &metadata.Service{Snapshots: d.Store.Snapshots()},
		Node:             &node.Service{Node: name, Host: d.host(t, name)},
	})
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error)
	go func() { stopped <- csi.Serve(ctx, filepath.Join(dir, "csi.sock")) }()
	t.Cleanup(func() {
		stop()
		if err := <-stopped; err != nil {
			t.Errorf("stop the driver: %v", err)
		}
	})
	return d
}

// store returns a store whose deleted volumes are purged, and whose deep clones are flattened.
func (d *Driver) store(t *testing.T) *volume.Store {
	d.purger = volume.NewPurger(volume.PurgeOptions{})
	d.flattener = volume.NewFlattener(volume.FlattenOptions{})
	store := volume.NewStore(d.Ceph.Process(), volume.Options{Removed: d.purger.Add, Deep: d.flattener.Add})
	go d.purger.Run(t.Context(), store)
	go d.flattener.Run(t.Context(), store)
	return store
}

func (d *Driver) host(t *testing.T, name volid.Node) *host.Host {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "node"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.Devices = mappertest.NewFake(dir, filepath.Join(dir, "node"), d.size)
	d.Devices.Held(func(path string) bool {
		uses, err := d.Files.Uses(context.Background(), path)
		return err != nil || len(uses) > 0
	})
	return host.New(host.Options{
		Node: name.String(), Boot: "boot", Clusters: d.Ceph.Process(),
		Access: func(name string, as params.Credentials) (cluster.Access, error) {
			return cluster.Access{Cluster: name, Credentials: as}, nil
		},
		Mappers: []mapper.Mapper{d.Devices},
		Files:   d.Files,
	})
}

// AwaitPurge waits until the space of all deleted volumes is free.
func (d *Driver) AwaitPurge(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); d.purger.Waiting() > 0; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%d deleted volumes are not purged after 10 s", d.purger.Waiting())
		}
	}
}

// size returns how large an image is, for the mapper.
func (d *Driver) size(ctx context.Context, target mapper.Target) (int64, error) {
	pool, err := d.Ceph.Process().Pool(ctx, target.Image.Pool, params.Credentials{})
	if err != nil {
		return 0, err
	}
	header, err := pool.Header(ctx, target.ImageID)
	if fault.Is(err, fault.NotFound) {
		return 0, err
	}
	return header.Layout.Bytes, err
}
