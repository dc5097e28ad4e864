package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

const gibibyte = 1 << 30

// clusterName is the name of the cluster in handles.
const clusterName = "main"

// A plant is a Ceph, a controller on this machine, and guests with a node plug-in each.
type plant struct {
	ceph       *ceph.Cluster
	controller *driver.Process
	guests     []*Guest
	nodes      []*Node
	mapper     string
}

// newPlant brings up a plant whose volumes are mapped by one mapper, for a test which runs beside others.
func newPlant(t *testing.T, mapper string, guests int, flags ...string) *plant {
	t.Helper()
	needGuests(t)
	t.Parallel()
	return quietPlant(t, mapper, guests, flags...)
}

// quietPlant is newPlant for a test that measures, and therefore runs alone.
func quietPlant(t *testing.T, mapper string, guests int, flags ...string) *plant {
	t.Helper()
	needGuests(t)
	c := ceph.ForTest(t, ceph.Options{Address: machineAddress, ProposeInterval: 50 * time.Millisecond})
	p := &plant{ceph: c, mapper: mapper}
	_, err := c.AddUser(t.Context(), "csi", ceph.ProfileRBD(c.Pool()))
	must(t, err)
	files, err := c.ClusterDir(t.Context(), "csi")
	must(t, err)
	binary, err := driver.Binary(t.Context(), t.TempDir())
	must(t, err)
	folder, err := os.MkdirTemp("", "rbd-csi-")
	must(t, err)
	d, err := driver.New(driver.Options{Binary: binary, Clusters: map[string]string{clusterName: files}, Folder: folder, Verbosity: 4})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	p.controller, err = d.Controller(t.Context(), "controller")
	must(t, err)
	for i := range guests {
		number := guestNumber(t)
		g, err := Boot(t.Context(), GuestOptions{Number: number, Folder: c.Dir()})
		must(t, err)
		p.guests = append(p.guests, g)
		if slices.Contains(flags, workersSocket) {
			startWorkers(t, g, binary)
		}
		t.Cleanup(func() { must(t, p.guests[i].Kill()) }) // the one that runs then
		t.Log(g)
		node, err := StartNode(t.Context(), g, NodeOptions{
			Binary: binary, Name: fmt.Sprintf("node-%d", i+1), Clusters: filepath.Join(folder, "clusters"),
			Folder: filepath.Join(folder, "guests"), Flags: flags,
		})
		must(t, err)
		p.nodes = append(p.nodes, node)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("the log of %s ends with:\n%s", node.Name, node.Said())
			}
			must(t, node.Disconnect())
		})
	}
	return p
}

// workersSocket is where `rbd-csi workers` listens in a guest.
const workersSocket = "/run/workers/sock"

// startWorkers runs it for as long as the guest.
func startWorkers(t *testing.T, g *Guest, binary string) {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		ended <- g.Run(context.WithoutCancel(t.Context()), io.Discard, Command{Arguments: []string{binary, "workers", "--socket", workersSocket}})
	}()
	for {
		if _, err := g.Output(t.Context(), "test", "-S", workersSocket); err == nil {
			return
		}
		select {
		case err := <-ended:
			t.Fatalf("rbd-csi workers: got %v, want that it runs", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// shell runs a script in a guest, with arguments from $1 on, and returns what it prints.
func (g *Guest) shell(t *testing.T, script string, arguments ...string) string {
	t.Helper()
	said, err := g.Output(context.WithoutCancel(t.Context()), append([]string{"sh", "-ec", script, "sh"}, arguments...)...)
	if err != nil {
		t.Fatalf("in guest %d: %s: %v: %s", g.number, script, err, said)
	}
	return strings.TrimSpace(said)
}

// uses are the ways in which a volume is used.
var uses = map[string]*csi.VolumeCapability{
	"ext4": driver.Filesystem("ext4"), "xfs": driver.Filesystem("xfs"), "block": driver.Block(),
}

// A volume is one of a plant.
type volume struct {
	*plant
	driver.Volume
	kind     string
	attached map[string]string
	sum      string // of its data
}

// parameters returns those of a class for the plant, with further ones.
func (p *plant) parameters(further map[string]string) map[string]string {
	all := map[string]string{"cluster": clusterName, "pool": p.ceph.Pool(), "mapper": p.mapper}
	maps.Copy(all, further)
	return all
}

func (p *plant) made(t *testing.T, kind string, parameters map[string]string) *volume {
	t.Helper()
	made, err := p.controller.Create(t.Context(), driver.Claim{
		Volume: fmt.Sprintf("pvc-%s-%d", kind, images.Add(1)), Name: "data-web-0", Namespace: "shop",
		Bytes: gibibyte, Parameters: p.parameters(parameters), Use: uses[kind],
	})
	must(t, err)
	return &volume{plant: p, Volume: made, kind: kind}
}

// attach attaches the volume to a node.
func (v *volume) attach(t *testing.T, n *Node) {
	t.Helper()
	id, err := n.ID(t.Context())
	must(t, err)
	v.attached, err = v.controller.Attach(t.Context(), v.Volume, id)
	must(t, err)
}

// show stages and publishes the volume on a node that it is attached to.
func (v *volume) show(t *testing.T, n *Node) {
	t.Helper()
	must(t, n.Stage(t.Context(), v.Volume, v.attached))
	must(t, n.Publish(t.Context(), v.Volume, v.attached, v.Name))
}

func (v *volume) up(t *testing.T, n *Node) {
	t.Helper()
	v.attach(t, n)
	v.show(t, n)
}

func (v *volume) down(t *testing.T, n *Node) {
	t.Helper()
	must(t, n.Unpublish(t.Context(), v.Volume, v.Name))
	must(t, n.Unstage(t.Context(), v.Volume))
	id, err := n.ID(t.Context())
	must(t, err)
	must(t, v.controller.Detach(t.Context(), v.Volume, id))
}

// file returns where the data is: a file in the filesystem, or the device itself.
func (v *volume) file(n *Node) string {
	if v.kind == "block" {
		return n.TargetPath(v.Name)
	}
	return filepath.Join(n.TargetPath(v.Name), "data")
}

// dataBytes is how much write writes, from the beginning of the file on.
const dataBytes = 8 * mebibyte

func (v *volume) write(t *testing.T, n *Node) {
	t.Helper()
	v.sum = n.guest.shell(t, `head -c "$2" /dev/urandom >/tmp/data; dd if=/tmp/data of="$1" bs=1M conv=fsync,notrunc status=none; sha256sum </tmp/data; rm /tmp/data`,
		v.file(n), fmt.Sprint(dataBytes))
}

// read checks that the data is there, as the device has it.
func (v *volume) read(t *testing.T, n *Node) {
	t.Helper()
	got := n.guest.shell(t, `echo 3 >/proc/sys/vm/drop_caches; head -c "$2" "$1" | sha256sum`, v.file(n), fmt.Sprint(dataBytes))
	if got != v.sum {
		t.Fatalf("on %s: read %s, want %s", n.Name, got, v.sum)
	}
}

// writing writes behind the data and syncs, over and over, until stop is called; it fails the test
// when a write does.
func (v *volume) writing(t *testing.T, n *Node) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var said bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		ended <- n.guest.Run(ctx, &said, Command{Arguments: []string{
			"sh", "-ec", `while :; do dd if=/dev/zero of="$1" bs=4k count=16 seek=2048 conv=fsync,notrunc status=none; echo written; done`, "sh", v.file(n),
		}})
	}()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(said.String(), "written") {
			t.Errorf("writing meanwhile: got %v and %q, want no end of it", err, said.String())
		}
	})
}

// mappedNow returns what is mapped in a guest, a word for each device: its mapper and the image.
func (p *plant) mappedNow(t *testing.T, n *Node) string {
	t.Helper()
	return n.guest.shell(t, `for d in /sys/bus/rbd/devices/*; do [ ! -e "$d" ] || echo "krbd:$(cat $d/name)"; done
		for b in /sys/block/nbd*/backend; do [ ! -e "$b" ] || echo "nbd:$(cat $b)"; done`)
}

// wantMapped checks that the volume is mapped once, by the mapper of the plant.
func (v *volume) wantMapped(t *testing.T, n *Node) {
	t.Helper()
	got := v.mappedNow(t, n)
	if strings.Count(got, "\n") != 0 || !strings.HasPrefix(got, v.mapper+":") {
		t.Errorf("on %s: got %q mapped, want one device of %s", n.Name, got, v.mapper)
	}
}

// wantNothing checks that nothing of the volume is on the node.
func (v *volume) wantNothing(t *testing.T, n *Node) {
	t.Helper()
	if got := v.mappedNow(t, n); got != "" {
		t.Errorf("on %s: got %q mapped, want nothing", n.Name, got)
	}
	if got := n.guest.shell(t, `ls `+nodeFolder+`/staging `+nodeFolder+`/pods; grep -c `+nodeFolder+` /proc/self/mountinfo || :`); strings.TrimSpace(strings.ReplaceAll(strings.ReplaceAll(got, nodeFolder+"/staging:", ""), nodeFolder+"/pods:", "")) != "0" {
		t.Errorf("on %s: got %q, want no staging path, pod or mount", n.Name, got)
	}
}

// wantSize checks how large the volume is where a pod sees it.
func (v *volume) wantSize(t *testing.T, n *Node, size int64) {
	t.Helper()
	stats, err := n.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: v.Handle, VolumePath: n.TargetPath(v.Name)})
	must(t, err)
	if total := stats.GetUsage()[0].GetTotal(); total < size*9/10 || total > size {
		t.Errorf("on %s: a total of %d bytes, want about %d", n.Name, total, size)
	}
}

// TestNBDNode does the same with rbd-nbd, whose workers are not the plug-in's children.
func TestNBDNode(t *testing.T) { //nolint:tparallel // the subtests share guests, one after the other
	needNBD(t)
	testNode(t, newPlant(t, "nbd", 1, "--workers", workersSocket))
}

// TestKRBDNode takes volumes through what happens in a StatefulSet's life, with krbd.
func TestKRBDNode(t *testing.T) { //nolint:tparallel // the subtests share guests, one after the other
	testNode(t, newPlant(t, "krbd", 1))
}

func testNode(t *testing.T, p *plant) {
	t.Helper()
	for _, kind := range []string{"ext4", "xfs", "block"} {
		t.Run(kind, func(t *testing.T) { live(t, p, kind) })
	}
	t.Run("read-only", func(t *testing.T) { readers(t, p) })
}

func live(t *testing.T, p *plant, kind string) {
	n, v := p.nodes[0], p.made(t, kind, nil)
	v.up(t, n)
	v.wantMapped(t, n)
	v.write(t, n)

	stop := v.writing(t, n)
	defer stop()
	must(t, n.Kill(t.Context()))
	v.read(t, n)
	must(t, n.Start(t.Context()))
	v.show(t, n) // once more, as kubelet does
	v.wantMapped(t, n)
	if p.mapper == "nbd" && kind == "ext4" {
		n.guest.shell(t, "kill -9 $(pidof rbd-nbd)")
		v.read(t, n)
	}
	if err := n.Unstage(t.Context(), v.Volume); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), n.TargetPath(v.Name)) {
		t.Errorf("unstage while it is published: got %v, want FailedPrecondition and the target path", err)
	}

	got, err := p.controller.Expand(t.Context(), v.Volume, 2*gibibyte)
	if err != nil || got != 2*gibibyte {
		t.Errorf("expand: got %d, %v, want %d", got, err, 2*gibibyte)
	}
	must(t, n.ExpandOnNode(t.Context(), v.Volume, v.Name, 2*gibibyte))
	stop()
	v.wantSize(t, n, 2*gibibyte)
	v.read(t, n)

	v.down(t, n)
	v.wantNothing(t, n)
	v.up(t, n)
	v.read(t, n)
	v.wantSize(t, n, 2*gibibyte)
	v.down(t, n)
	v.wantNothing(t, n)
	must(t, p.controller.Delete(t.Context(), v.Volume))
}

// readers fills a volume, and then only reads it.
func readers(t *testing.T, p *plant) {
	n, v := p.nodes[0], p.made(t, "ext4", nil)
	v.up(t, n)
	v.write(t, n)
	v.down(t, n)
	v.Use = &csi.VolumeCapability{
		AccessType: v.capability().GetAccessType(),
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY},
	}
	v.up(t, n)
	v.read(t, n)
	if said, err := n.guest.Output(t.Context(), "touch", v.file(n)); err == nil || !strings.Contains(said, "Read-only") {
		t.Errorf("touch: got %q, %v, want a read-only filesystem", said, err)
	}
	if got := n.guest.shell(t, `blockdev --getro $(findmnt -no SOURCE "$1")`, n.TargetPath(v.Name)); got != "1" {
		t.Errorf("blockdev --getro: got %s, want 1", got)
	}
	v.down(t, n)
	v.wantNothing(t, n)
	must(t, p.controller.Delete(t.Context(), v.Volume))
}

func (v *volume) capability() *csi.VolumeCapability { return uses[v.kind] }
