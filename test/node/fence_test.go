package node

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

// watchTimeout is how long a silent client counts as watching here; Ceph's default is 30 s.
const watchTimeout = 3 * time.Second

// frozenFor is how long a client is frozen at most.
const frozenFor = 20 * time.Second

// fenceMachine returns a machine whose OSDs forget watchers soon.
func fenceMachine(t *testing.T) (m *Machine, other *driver.Process) {
	t.Helper()
	m = Start(t, ceph.ForTest(t, ceph.Options{Pools: []string{"kube"}, ProposeInterval: 50 * time.Millisecond}))
	_, err := m.Ceph.Ceph(t.Context(), "config", "set", "osd", "osd_client_watch_timeout", "3")
	check(t, err)
	other, err = m.Driver.Node(t.Context(), "node-b")
	check(t, err)
	return m, other
}

// TestFrozenClientIsFenced freezes the client of a mounted volume that is being written, detaches and moves the
// volume, and thaws the client: nothing of it may arrive any more.
func TestFrozenClientIsFenced(t *testing.T) {
	m, other := fenceMachine(t)
	for _, kind := range []string{"ext4", "block"} {
		for _, silent := range []bool{false, true} {
			name := kind + "/still watching"
			if silent {
				name = kind + "/not watching"
			}
			t.Run(name, func(t *testing.T) { m.frozen(t, other, kind, silent) })
		}
	}
	m.wantFences(t, 4)
	m.unfence(t)
	awaitEmpty(t, m)
}

// frozen is one round: a volume is taken from a node whose client is frozen, and goes back to it in the end.
func (m *Machine) frozen(t *testing.T, other *driver.Process, kind string, silent bool) {
	v := m.made(t, kind, nil)
	v.write(t, m.Node)
	client := v.client(t)
	thaw := v.freeze(t, m.Node)
	late := v.writeOver(t)
	if silent {
		v.awaitSilence(t)
	}
	began := time.Now()
	m.detachFrom(t, v, m.Node)
	t.Logf("the detach of a frozen node took %s", time.Since(began).Round(time.Millisecond))

	m.wantBlocklisted(t, client)
	if !silent {
		// Nobody else has the image open yet, and so nobody but the driver can have shut the client out.
		thaw()
		late.wantRefused(t)
	}
	v.up(t, other)
	v.read(t, other)
	v.write(t, other)
	if silent {
		thaw()
		late.wantRefused(t)
	}
	v.read(t, other)
	v.down(t, other)
	v.up(t, other) // without what the kernel remembers
	v.read(t, other)
	v.down(t, other)

	// The node that thawed cleans up by itself, and may have the volume again.
	v.wantDead(t, m.Node)
	check(t, m.Node.Unpublish(t.Context(), v.Volume, v.Name))
	check(t, m.Node.Unstage(t.Context(), v.Volume))
	v.up(t, m.Node)
	v.read(t, m.Node)
	v.down(t, m.Node)
	check(t, m.Controller.Delete(t.Context(), v.Volume))
}

// TestBlocklistedUnderAWriter shuts out the client of a running pod, as Ceph does with one that was silent while
// another wanted its lock. The next pod on the node gets a new device, with all that was synced.
func TestBlocklistedUnderAWriter(t *testing.T) {
	m := Start(t, shared.ForTest(t, ceph.Options{}))
	for _, kind := range []string{"ext4", "block"} {
		t.Run(kind, func(t *testing.T) { m.deviceDies(t, kind, m.blocklist) })
	}
	awaitEmpty(t, m)
}

// blocklist shuts out the client of a volume.
func (m *Machine) blocklist(t *testing.T, v *volume) {
	t.Helper()
	_, err := m.Ceph.Ceph(t.Context(), "osd", "blocklist", "add", v.client(t))
	check(t, err)
}

// killWorker kills the process that serves the node's only volume.
func (m *Machine) killWorker(t *testing.T, _ *volume) {
	t.Helper()
	workers, err := m.Node.Workers()
	check(t, err)
	if len(workers) != 1 {
		t.Fatalf("%s has the workers %v, want one", m.Node.Name, workers)
	}
	check(t, syscall.Kill(workers[0], syscall.SIGKILL))
}

// deviceDies is one round: the device of a volume dies under a writer, and the next pod on the node has a new one.
func (m *Machine) deviceDies(t *testing.T, kind string, die func(*testing.T, *volume)) {
	t.Helper()
	v := m.made(t, kind, nil)
	v.write(t, m.Node)
	failed := v.writeBehind(t)
	die(t, v)
	if err := <-failed; err == nil {
		t.Error("the writer ended without an error, want one of I/O")
	}
	v.wantDead(t, m.Node)
	check(t, m.Node.Unpublish(t.Context(), v.Volume, v.Name))
	check(t, m.Node.Publish(t.Context(), v.Volume, v.attached, v.Name))
	v.read(t, m.Node)
	v.down(t, m.Node)
	check(t, m.Controller.Delete(t.Context(), v.Volume))
}

// client returns the client that has the volume's image open.
func (v *volume) client(t *testing.T) string {
	t.Helper()
	text := v.status(t)
	_, after, found := strings.Cut(text, "watcher=")
	client, _, _ := strings.Cut(after, " ")
	if !found || strings.Count(text, "watcher=") != 1 {
		t.Fatalf("rbd status says %s, want one watcher", text)
	}
	return client
}

// status is what `rbd status` says of the volume's image.
func (v *volume) status(t *testing.T) string {
	t.Helper()
	text, err := v.Ceph.RBD(t.Context(), "status", v.Ceph.Pool()+"/"+v.Handle[strings.LastIndexByte(v.Handle, '/')+1:])
	check(t, err)
	return text
}

// writeBehind writes behind the data until a write fails.
func (v *volume) writeBehind(t *testing.T) <-chan error {
	t.Helper()
	file, err := os.OpenFile(v.file(v.Node), os.O_RDWR, 0)
	check(t, err)
	ended := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		begun := sync.OnceFunc(func() { close(began) })
		defer begun()
		block := bytes.Repeat([]byte{0xBB}, 64<<10)
		for {
			_, err := file.WriteAt(block, int64(len(v.data)))
			if err = errors.Join(err, file.Sync()); err != nil {
				ended <- errors.Join(err, file.Close())
				return
			}
			begun()
		}
	}()
	<-began
	return ended
}

// wantDead waits until the node says that the volume's device is dead, and looks that nothing hangs on it.
func (v *volume) wantDead(t *testing.T, node *driver.Process) {
	t.Helper()
	var health *csi.NodeGetVolumeHealthResponse
	for deadline := time.Now().Add(30 * time.Second); len(health.GetVolumeHealth().GetHealthStatuses()) == 0; {
		var err error
		health, err = node.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{
			VolumeId: v.Handle, StagingTargetPath: node.StagingPath(v.Volume), VolumePublishPath: node.TargetPath(v.Name),
		})
		check(t, err)
		if time.Now().After(deadline) {
			t.Fatal("30 s after its client was shut out the device counts as healthy")
		}
	}
	status := health.GetVolumeHealth().GetHealthStatuses()[0]
	if status.GetStatus() != csi.VolumeHealthErrorType_INACCESSIBLE || !slices.Contains([]string{"DeviceDead", "FilesystemReadOnly"}, status.GetReason()) {
		t.Errorf("health %v, want INACCESSIBLE and why", status)
	}
	began := time.Now()
	_, err := node.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: v.Handle, VolumePath: node.TargetPath(v.Name)})
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stats of a dead device took %s, error %v", took, err)
	}
}

// TestStageAfterTheFence freezes a node's service before it stages. When it thaws, the volume has moved: it finds
// its generation gone.
func TestStageAfterTheFence(t *testing.T) {
	m, other := fenceMachine(t)
	m.staleStage(t, other, "ext4")
	m.wantFences(t, 0)
	awaitEmpty(t, m)
}

// staleStage is one round of it.
func (m *Machine) staleStage(t *testing.T, other *driver.Process, kind string) {
	t.Helper()
	v := m.made(t, kind, nil)
	v.write(t, m.Node)
	v.down(t, m.Node)
	id, err := m.Node.ID(t.Context())
	check(t, err)
	stale, err := m.Controller.Attach(t.Context(), v.Volume, id)
	check(t, err)
	check(t, syscall.Kill(m.Node.PID(), syscall.SIGSTOP))
	thaw := sync.OnceValue(func() error { return syscall.Kill(m.Node.PID(), syscall.SIGCONT) })
	t.Cleanup(func() { _ = thaw() })
	staged := make(chan error, 1)
	go func() { staged <- m.Node.Stage(t.Context(), v.Volume, stale) }()
	m.detachFrom(t, v, m.Node)
	v.up(t, other)
	v.write(t, other)
	check(t, thaw())
	if err := <-staged; status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a stage that comes after the detach: %v, want FailedPrecondition", err)
	}
	check(t, os.Remove(m.Node.StagingPath(v.Volume)))
	v.read(t, other)
	v.down(t, other)
	check(t, m.Controller.Delete(t.Context(), v.Volume))
}

// freeze stops the workers of a node, which are the clients of its volumes.
func (v *volume) freeze(t *testing.T, node *driver.Process) (thaw func()) {
	t.Helper()
	workers, err := node.Workers()
	check(t, err)
	if len(workers) != 1 {
		t.Fatalf("%s has the workers %v, want one", node.Name, workers)
	}
	check(t, syscall.Kill(workers[0], syscall.SIGSTOP))
	awaitStopped(t, workers[0])
	resume := sync.OnceFunc(func() { _ = syscall.Kill(workers[0], syscall.SIGCONT) })
	// A sync of anyone on this machine waits for what the frozen client has not written.
	limit := time.AfterFunc(frozenFor, func() {
		t.Errorf("the client was not thawed after %s", frozenFor)
		resume()
	})
	thaw = func() {
		limit.Stop()
		resume()
	}
	t.Cleanup(thaw)
	return thaw
}

// awaitStopped waits until no thread of a process runs any more.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		threads, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
		check(t, err)
		running := slices.DeleteFunc(threads, func(path string) bool {
			stat, err := os.ReadFile(path)
			return err != nil || strings.Contains(string(stat), ") T ")
		})
		if len(running) == 0 {
			return
		}
	}
	t.Fatalf("process %d does not stop", pid)
}

// awaitSilence waits until the frozen client counts as gone.
func (v *volume) awaitSilence(t *testing.T) {
	t.Helper()
	var text string
	for deadline := time.Now().Add(20 * watchTimeout); time.Now().Before(deadline); {
		text = v.status(t)
		if strings.Contains(text, "Watchers: none") {
			return
		}
	}
	t.Fatalf("the frozen client still watches: %s", text)
}

// detachFrom detaches as the attacher does: again and again, until it is told that it is done. The node may be frozen.
func (m *Machine) detachFrom(t *testing.T, v *volume, node *driver.Process) {
	t.Helper()
	id := volid.Node{Name: node.Name}.String()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		err := m.Controller.Detach(t.Context(), v.Volume, id)
		if err == nil {
			return
		}
		if status.Code(err) != codes.Aborted || time.Now().After(deadline) {
			t.Fatalf("detach: %v, want Aborted for a while and then success", err)
		}
	}
}

// A lateWriter writes until a write fails.
type lateWriter struct {
	wrote atomic.Int64
	ended chan error
}

// writeOver begins to write over the data of the volume, each write synced. The client is frozen, so none
// reaches the cluster before it thaws.
func (v *volume) writeOver(t *testing.T) *lateWriter {
	t.Helper()
	file, err := os.OpenFile(v.file(v.Node), os.O_RDWR, 0)
	check(t, err)
	w := &lateWriter{ended: make(chan error, 1)}
	go func() {
		block := bytes.Repeat([]byte{0xAA}, 64<<10)
		for err == nil {
			_, err = file.WriteAt(block, w.wrote.Load()%128*int64(len(block)))
			if err = errors.Join(err, file.Sync()); err == nil {
				w.wrote.Add(1)
			}
		}
		w.ended <- errors.Join(err, file.Close())
	}()
	return w
}

// wantRefused waits for the first write to fail.
func (w *lateWriter) wantRefused(t *testing.T) {
	t.Helper()
	select {
	case err := <-w.ended:
		if w.wrote.Load() > 0 || !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.EROFS) {
			t.Errorf("the writer ended with %v after %d writes, want an error of I/O at the first", err, w.wrote.Load())
		}
	case <-time.After(30 * time.Second):
		t.Errorf("30 s after the client thawed the writer goes on, after %d writes", w.wrote.Load())
	}
}

// wantFences looks at what `rbd-csi fences` lists.
func (m *Machine) wantFences(t *testing.T, want int) {
	t.Helper()
	list, err := m.command(t, m.Driver.Folder("clusters"), "fences")
	if got := strings.Count(list, "127.0.0.1:0/"); got != want || err != nil {
		t.Errorf("rbd-csi fences lists %d, error %v, want %d:\n%s", got, err, want, list)
	}
}

// wantBlocklisted looks that a client is shut out for more than a year.
func (m *Machine) wantBlocklisted(t *testing.T, client string) {
	t.Helper()
	list, err := m.Ceph.Ceph(t.Context(), "osd", "blocklist", "ls")
	check(t, err)
	_, after, found := strings.Cut(list, client+" ")
	until, _, _ := strings.Cut(after, ".")
	if end, err := time.Parse("2006-01-02T15:04:05", until); !found || err != nil || time.Until(end) < 365*24*time.Hour {
		t.Errorf("after detach the blocklist has %q, want %s for more than a year", list, client)
	}
}

// unfence removes all fences of node-a, as if it had been started anew.
func (m *Machine) unfence(t *testing.T) {
	t.Helper()
	const booted = "--booted=node-a=another-boot"
	if output, err := m.command(t, m.Driver.Folder("clusters"), "fences", "remove", booted); err == nil || !strings.Contains(output, "permission denied") {
		t.Errorf("remove as the driver's user: %v, %s, want permission denied", err, output)
	}
	m.wantFences(t, 4)
	admin, err := m.Ceph.ClusterDir(t.Context(), "admin")
	check(t, err)
	folder := t.TempDir()
	check(t, os.Symlink(admin, filepath.Join(folder, ClusterName)))
	output, err := m.command(t, folder, "fences", "remove", booted)
	if err != nil {
		t.Errorf("remove as administrator: %v, %s", err, output)
	}
	m.wantFences(t, 0)
	if left, err := m.Ceph.Ceph(t.Context(), "osd", "blocklist", "ls"); err != nil || strings.Contains(left, "127.0.0.1:0/") {
		t.Errorf("the blocklist has %s, error %v, want no entry", left, err)
	}
}

// command runs the driver's binary.
func (m *Machine) command(t *testing.T, clusters string, arguments ...string) (string, error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), m.Controller.Command()[0], append(arguments, "--clusters", clusters)...)
	output, err := command.CombinedOutput()
	return string(output), err
}
