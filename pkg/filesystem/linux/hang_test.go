//go:build linux

package linux

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// A cluster serves one file, which a loop device makes a block device. When it is stopped,
// nothing that reads or writes the device ever ends, as with an RBD image whose cluster is gone.
type cluster struct {
	fusefs.Inode
	backing *os.File

	mu   sync.Mutex
	open chan struct{} // closed while the cluster runs
}

func newCluster(t *testing.T, bytes int64) *cluster {
	t.Helper()
	backing, err := os.CreateTemp(t.TempDir(), "image")
	must(t, err)
	must(t, backing.Truncate(bytes))
	t.Cleanup(func() { backing.Close() })
	c := &cluster{backing: backing, open: make(chan struct{})}
	close(c.open)
	return c
}

// stop lets nothing through any more.
func (c *cluster) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = make(chan struct{})
}

// start lets everything through that waits.
func (c *cluster) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.open:
	default:
		close(c.open)
	}
}

func (c *cluster) wait() {
	c.mu.Lock()
	open := c.open
	c.mu.Unlock()
	<-open
}

type image struct {
	fusefs.Inode
	cluster *cluster
}

func (i *image) Getattr(_ context.Context, _ fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	info, err := i.cluster.backing.Stat()
	if err != nil {
		return fusefs.ToErrno(err)
	}
	out.Mode, out.Size = 0o600, uint64(info.Size())
	return 0
}

func (i *image) Open(context.Context, uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (i *image) Read(_ context.Context, _ fusefs.FileHandle, into []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	i.cluster.wait()
	n, _ := i.cluster.backing.ReadAt(into, offset)
	return fuse.ReadResultData(into[:n]), 0
}

func (i *image) Write(_ context.Context, _ fusefs.FileHandle, data []byte, offset int64) (uint32, syscall.Errno) {
	i.cluster.wait()
	n, err := i.cluster.backing.WriteAt(data, offset)
	return uint32(n), fusefs.ToErrno(err)
}

func (i *image) Fsync(context.Context, fusefs.FileHandle, uint32) syscall.Errno {
	i.cluster.wait()
	return 0
}

func (c *cluster) OnAdd(ctx context.Context) {
	c.AddChild("image", c.NewPersistentInode(ctx, &image{cluster: c}, fusefs.StableAttr{Mode: fuse.S_IFREG}), true)
}

// device mounts the cluster's file and makes a device of it.
func (c *cluster) device(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	server, err := fusefs.Mount(folder, c, &fusefs.Options{MountOptions: fuse.MountOptions{DirectMount: true}})
	if err != nil {
		t.Skipf("skipped: it needs FUSE: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount the cluster's file: %v", err)
		}
	})
	keepFromChildren(t, "/dev/fuse")
	device := newLoops(t).attach(t, folder+"/image", "--direct-io=on")
	t.Cleanup(c.start)
	return device
}

// keepFromChildren marks the descriptors of a file as not inherited. go-fuse opens /dev/fuse without
// that mark, and a child that hangs with its copy would keep the connection alive after the test's end.
func keepFromChildren(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, entry := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && target == path {
			descriptor, err := strconv.Atoi(entry.Name())
			must(t, err)
			syscall.CloseOnExec(descriptor)
		}
	}
}

// soon returns a context that ends soon.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// inTime runs a call with a context that ends soon, and checks that the call ends with it.
func inTime(t *testing.T, what string, want fault.Kind, call func(ctx context.Context) error) {
	t.Helper()
	begun := time.Now()
	err := call(soon(t))
	if !fault.Is(err, want) {
		t.Errorf("%s: got %v, want one of kind %q", what, err, want)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("%s: took %v, want about 0.4 s", what, took)
	}
}

func (h *Host) stuck() int { _, stuck := h.children.count(); return stuck }

func TestProbeOfDeadDevice(t *testing.T) {
	needRoot(t)
	cluster, h := newCluster(t, 64<<20), newHost()
	device := cluster.device(t)
	wantSignature(t, h, device, filesystem.Signature{})
	cluster.stop()
	probe := func(ctx context.Context) error { _, err := h.Probe(ctx, device); return err }
	inTime(t, "the first probe", fault.Unknown, probe)
	if h.stuck() != 1 {
		t.Fatalf("got %d children that hang, want 1", h.stuck())
	}
	begun := time.Now()
	for range 20 {
		err := probe(soon(t))
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "hangs in the kernel since") {
			t.Fatalf("got %v, want it unavailable and to tell what hangs", err)
		}
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("20 more probes took %v, want them refused at once", took)
	}
	cluster.start()
	eventually(t, "no child is left", func() bool { running, stuck := h.children.count(); return running == 0 && stuck == 0 })
	wantSignature(t, h, device, filesystem.Signature{})
}

func TestUnmountOfDeadDevice(t *testing.T) {
	needRoot(t)
	cluster, h := newCluster(t, 64<<20), newHost()
	device, path := cluster.device(t), filepath.Join(t.TempDir(), "target")
	must(t, h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID, Zeroed: true}))
	must(t, h.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4}))
	must(t, os.WriteFile(path+"/file", []byte("in the page cache"), 0o600))
	cluster.stop()

	unmount := func(ctx context.Context) error { return h.Unmount(ctx, path) }
	inTime(t, "the first unmount", fault.Unknown, unmount)
	// The kernel has taken the mount off the table and still writes: it is not done.
	inTime(t, "the second unmount", fault.Unavailable, unmount)
	// Everything else on the node goes on.
	_, _, err := h.At(soon(t), path)
	must(t, err)
	other := filepath.Join(t.TempDir(), "other")
	must(t, os.Mkdir(other, 0o700))
	must(t, h.Unmount(t.Context(), other))

	cluster.start()
	eventually(t, "the umount that hung has ended", func() bool { return h.stuck() == 0 })
	must(t, h.Unmount(t.Context(), path))
	if exists(path) {
		t.Errorf("%s is still there", path)
	}
	must(t, h.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4}))
	if got, err := os.ReadFile(path + "/file"); err != nil || string(got) != "in the page cache" {
		t.Errorf("what was written before: got %q, %v", got, err)
	}
	must(t, h.Unmount(t.Context(), path))
}

func TestFrozenFilesystem(t *testing.T) {
	h, _, path := mountedExt4(t)
	tool(t, "fsfreeze", "--freeze", path)
	thawed := false
	thaw := func() {
		if !thawed {
			tool(t, "fsfreeze", "--unfreeze", path)
		}
		thawed = true
	}
	t.Cleanup(thaw)
	touch := func(ctx context.Context) error {
		_, err := h.children.run(ctx, command{tool: "touch", about: path, args: []string{path + "/file"}})
		return err
	}
	inTime(t, "touch", fault.Unknown, touch)
	inTime(t, "touch again", fault.Unavailable, touch)
	if _, err := h.Usage(soon(t), path); err != nil {
		t.Errorf("usage of a frozen filesystem: got %v, want no error", err)
	}
	inTime(t, "unmount", fault.InUse, func(ctx context.Context) error { return h.Unmount(ctx, path) })
	thaw()
	eventually(t, "touch has ended", func() bool { running, _ := h.children.count(); return running == 0 })
	must(t, h.Unmount(t.Context(), path))
}

func TestChildrenAreBounded(t *testing.T) {
	needRoot(t)
	cluster, h := newCluster(t, 64<<20), New(Options{Children: 2, Reader: reader})
	device := cluster.device(t)
	cluster.stop()
	for _, about := range []string{"one", "two"} {
		_, err := h.children.run(soon(t), command{tool: "dd", about: about, args: []string{"if=" + device, "of=/dev/null", "iflag=direct", "count=1"}})
		wantKind(t, err, fault.Unknown)
	}
	inTime(t, "a third child", fault.Unavailable, func(ctx context.Context) error {
		_, err := h.children.run(ctx, command{tool: "true"})
		return err
	})
	inTime(t, "unmount", fault.Unavailable, func(ctx context.Context) error { return h.Unmount(ctx, t.TempDir()) })
	cluster.start()
	eventually(t, "no child is left", func() bool { running, stuck := h.children.count(); return running == 0 && stuck == 0 })
}
