// Package node tests the driver as it runs in production, short of Kubernetes: its
// own processes on a real Ceph, with real devices, filesystems and mounts. Its
// tests need root and Ceph's packages, and skip with the reason where these are missing.
package node

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

// ClusterName is the name of the test cluster in volume handles.
const ClusterName = "main"

// A Machine is a Ceph, and the driver on it: a controller and a node.
type Machine struct {
	Ceph       *ceph.Cluster
	User       string // of the cluster's keyring
	Driver     *driver.Driver
	Controller *driver.Process
	Node       *driver.Process
}

// Pool returns where the driver's volumes are.
func (m *Machine) Pool() volid.Pool { return volid.Pool{Cluster: ClusterName, Pool: m.Ceph.Pool()} }

// Parameters returns those of a StorageClass for the pool.
func (m *Machine) Parameters() map[string]string {
	return map[string]string{"cluster": ClusterName, "pool": m.Ceph.Pool(), "mapper": "fuse"}
}

// Start starts the driver on a cluster, and takes it down with the test. A test
// fails if the driver leaves anything on this machine. Flags are for both processes.
func Start(t *testing.T, cluster *ceph.Cluster, flags ...string) *Machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root, and this test runs as another user")
	}
	ctx := t.Context()
	folder, err := os.MkdirTemp("/run", "rbd-csi-test-")
	check(t, err)
	binary, err := driver.Binary(ctx, t.TempDir())
	check(t, err)
	m := &Machine{Ceph: cluster, User: "csi-" + cluster.Pool()}
	pools := cluster.Pools()
	if cluster.DataPool() != "" {
		pools = append(slices.Clone(pools), cluster.DataPool())
	}
	_, err = cluster.AddUser(ctx, m.User, ceph.ProfileRBD(pools...))
	check(t, err)
	files, err := cluster.ClusterDir(ctx, m.User)
	check(t, err)
	m.Driver, err = driver.New(driver.Options{
		Binary: binary, Clusters: map[string]string{ClusterName: files}, Folder: folder, Verbosity: 4,
	})
	check(t, err)
	t.Cleanup(func() { m.down(t, folder) })
	m.Controller, err = m.Driver.Controller(ctx, "controller", flags...)
	check(t, err)
	m.Node, err = m.Driver.Node(ctx, "node-a", flags...)
	check(t, err)
	return m
}

// down looks what is left on this machine, and takes everything down.
func (m *Machine) down(t *testing.T, folder string) {
	left, err := driver.Look(folder)
	if err != nil {
		t.Errorf("look what is left: %v", err)
	}
	if !left.Empty() {
		t.Errorf("left on this machine:\n%s", left)
	}
	if t.Failed() {
		for _, p := range []*driver.Process{m.Controller, m.Node} {
			if p != nil {
				t.Logf("the last lines of %s:\n%s", p.Name, tail(p.Log(), 60))
			}
		}
	}
	if err := m.Driver.Close(); err != nil {
		t.Errorf("take the driver down: %v", err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tail(path string, lines int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Tools do past the driver what people do, with Ceph's own commands.
type Tools struct {
	Ceph    *ceph.Cluster
	Context context.Context
}

// Create makes an image as a person would.
func (tools Tools) Create(image volid.Image, layout rbd.Layout) (string, error) {
	var features []string
	for name, bit := range map[string]rbd.Features{
		"layering": rbd.Layering, "exclusive-lock": rbd.ExclusiveLock, "object-map": rbd.ObjectMap,
	} {
		if layout.Features.Has(bit) {
			features = append(features, name)
		}
	}
	spec := image.Pool.Pool + "/" + image.Name
	_, err := tools.Ceph.RBD(tools.Context, "create", spec, "--size", strconv.FormatInt(layout.Bytes>>20, 10),
		"--image-feature", strings.Join(features, ","))
	return "", err
}

// containers are the objects of a pool that hold entries of many images, and stay when
// those have gone.
var containers = []string{"rbd_directory", "rbd_info", "rbd_trash", "rbd_csi.index", "rbd_csi.clients"}

// Objects returns all objects of images in the pool, and what its directory and its trash hold.
func (tools Tools) Objects(at volid.Pool) ([]string, error) {
	var all []string
	for _, command := range []struct {
		tool func(context.Context, ...string) (string, error)
		args []string
	}{
		{tools.Ceph.Rados, []string{"-p", at.Pool, "ls"}},
		{tools.Ceph.RBD, []string{"ls", at.Pool}},
		{tools.Ceph.RBD, []string{"trash", "ls", "-a", at.Pool}},
	} {
		output, err := command.tool(tools.Context, command.args...)
		if err != nil {
			return nil, err
		}
		for line := range strings.FieldsSeq(output) {
			if slices.Contains(containers, line) {
				continue
			}
			all = append(all, fmt.Sprintf("%s: %s", command.args[0], line))
		}
	}
	slices.Sort(all)
	return all, nil
}
