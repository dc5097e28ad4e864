//go:build linux

package linux

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

func TestStackIsTakenDown(t *testing.T) {
	h, device, path := mountedExt4(t)
	tool(t, "mount", "--bind", path, path)
	tool(t, "mount", "-t", "tmpfs", "tmpfs", path)
	point, found, err := h.At(t.Context(), path)
	if err != nil || !found || point.Type != "tmpfs" {
		t.Errorf("at a stack: got %+v, %t, %v, want the topmost, a tmpfs", point, found, err)
	}
	wantKind(t, h.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4}), fault.InUse)
	must(t, h.Unmount(t.Context(), path))
	if uses, err := h.Uses(t.Context(), device); err != nil || len(uses) != 0 || exists(path) {
		t.Errorf("after unmount: got uses %+v, %v, path there %t, want nothing", uses, err, exists(path))
	}
}

func TestBusyIsExplained(t *testing.T) {
	h, device, path := mountedExt4(t)
	file, err := os.Create(path + "/held")
	must(t, err)
	err = h.Unmount(t.Context(), path)
	wantKind(t, err, fault.InUse)
	self, _ := os.ReadFile("/proc/self/comm")
	if want := "held by " + strings.TrimSpace(string(self)) + "["; !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path+"/held") {
		t.Errorf("got %v, want it to say %q and name the file", err, want)
	}
	file.Close()
	below := path + "/below"
	must(t, h.Bind(t.Context(), filesystem.Bind{Source: path, Path: below}))
	err = h.Unmount(t.Context(), path)
	if !fault.Is(err, fault.InUse) || !strings.Contains(err.Error(), "mounted below it: "+below) {
		t.Errorf("got %v, want it in use and %s named", err, below)
	}
	must(t, h.Unmount(t.Context(), below))
	if _, err := h.Uses(t.Context(), device); err != nil {
		t.Error(err)
	}
	must(t, h.Unmount(t.Context(), path))
}

// TestBusyElsewhere has the holder in another mount namespace, as a container is. A mount of ours
// is its too, because the one that it lies in is shared.
func TestBusyElsewhere(t *testing.T) {
	needRoot(t)
	h, device, shared := newHost(), newLoops(t).device(t, 64<<20), t.TempDir()
	tool(t, "mount", "-t", "tmpfs", "tmpfs", shared)
	t.Cleanup(func() { tool(t, "umount", shared) })
	tool(t, "mount", "--make-shared", shared)
	path := shared + "/target"
	must(t, h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID, Zeroed: true}))
	must(t, h.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4}))

	holder := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "slave", "sh", "-c", `cd "$0" && echo there && exec sleep 1000`, path)
	out, err := holder.StdoutPipe()
	must(t, err)
	if err := holder.Start(); err != nil {
		t.Skipf("skipped: it needs unshare(1): %v", err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "there\n" {
		t.Fatalf("the holder said %q, %v", line, err)
	}
	eventually(t, "the umount is refused because of sleep", func() bool {
		err := h.Unmount(t.Context(), path)
		wantKind(t, err, fault.InUse)
		return strings.Contains(err.Error(), fmt.Sprintf("held by sleep[%d] (%s)", holder.Process.Pid, path))
	})
	must(t, holder.Process.Kill())
	_ = holder.Wait()
	must(t, h.Unmount(t.Context(), path))
}

func TestGoneReadOnly(t *testing.T) {
	h, device, path := mountedExt4(t)
	tool(t, "mount", "-o", "remount,abort", path)
	point, _, err := h.At(t.Context(), path)
	if err != nil || !point.ReadOnly {
		t.Errorf("at an aborted ext4: got %+v, %v, want it read-only", point, err)
	}
	err = h.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4})
	if !fault.Is(err, fault.InUse) || !strings.Contains(err.Error(), "gone read-only") {
		t.Errorf("got %v, want it in use because it has gone read-only", err)
	}
	must(t, h.Unmount(t.Context(), path))
}

func TestWriteProtectedDevice(t *testing.T) {
	needRoot(t)
	h, l := newHost(), newLoops(t)
	device, path := l.device(t, 64<<20), filepath.Join(t.TempDir(), "target")
	must(t, h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID, Zeroed: true}))
	protected := l.attach(t, l.files[device], "--read-only")
	mount := filesystem.Mount{Device: protected, Path: path, Type: filesystem.Ext4}
	wantKind(t, h.Mount(t.Context(), mount), fault.Invalid)
	if exists(path) {
		t.Errorf("%s was left behind by a mount that failed", path)
	}
	mount.ReadOnly = true
	must(t, h.Mount(t.Context(), mount))
	must(t, h.Unmount(t.Context(), path))
	wantSignature(t, h, protected, filesystem.Signature{Type: "ext4", UUID: someUUID})
}

func TestMountOptions(t *testing.T) {
	h, device, path := mountedExt4(t)
	must(t, h.Unmount(t.Context(), path))
	mount := filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4}
	for _, option := range []string{"bind", "remount", "loop", "noatime,bind", "offset=1", "x-mount.mkdir", "X-mount.owner=0", "helper=x"} {
		mount.Options = []string{option}
		wantKind(t, h.Mount(t.Context(), mount), fault.Invalid)
	}
	mount.Options = []string{"nonsense"}
	wantKind(t, h.Mount(t.Context(), mount), fault.Invalid)
	mount.Options = []string{"noatime,nosuid", "commit=30"}
	must(t, h.Mount(t.Context(), mount))
	mounts, err := readTable(tableFile)
	must(t, err)
	if info := mounts.top(path); info.Options != "rw,nosuid,noatime" || !strings.Contains(info.VFSOptions, "commit=30") {
		t.Errorf("got options %s and %s, want noatime, nosuid and commit=30", info.Options, info.VFSOptions)
	}
	bound := filepath.Join(t.TempDir(), "bound")
	must(t, h.Bind(t.Context(), filesystem.Bind{Source: path, Path: bound, ReadOnly: true, Options: []string{"noexec"}}))
	mounts, err = readTable(tableFile)
	must(t, err)
	if info := mounts.top(bound); info.Options != "ro,nosuid,noexec,noatime" {
		t.Errorf("got options %s of the bind, want what it had before, noexec and ro", info.Options)
	}
	must(t, h.Unmount(t.Context(), bound))
	must(t, h.Unmount(t.Context(), path))
}

// TestInterruptedBind has a bind of which only the first of two steps was done.
func TestInterruptedBind(t *testing.T) {
	h, device, path := mountedExt4(t)
	bound := filepath.Join(t.TempDir(), "bound")
	must(t, os.Mkdir(bound, 0o700))
	tool(t, "mount", "--bind", path, bound)
	must(t, h.Bind(t.Context(), filesystem.Bind{Source: path, Path: bound, ReadOnly: true}))
	point, _, err := h.At(t.Context(), bound)
	if want := (filesystem.Point{Path: bound, Device: device, Type: "ext4", ReadOnly: true}); err != nil || point != want {
		t.Errorf("got %+v, %v, want %+v", point, err, want)
	}
	if err := os.WriteFile(bound+"/file", nil, 0o600); err == nil {
		t.Error("a file was written through a read-only bind")
	}
	must(t, h.Unmount(t.Context(), bound))
	must(t, h.Unmount(t.Context(), path))
}

func TestBindPartOfAVolume(t *testing.T) {
	h, device, path := mountedExt4(t)
	must(t, os.MkdirAll(path+"/a/b", 0o700))
	must(t, os.WriteFile(path+"/a/file", []byte("content"), 0o600))
	folder := t.TempDir()
	for source, target := range map[string]string{path + "/a/b": folder + "/folder", path + "/a/file": folder + "/file"} {
		bind := filesystem.Bind{Source: source, Path: target}
		must(t, h.Bind(t.Context(), bind))
		must(t, h.Bind(t.Context(), bind))
		wantKind(t, h.Bind(t.Context(), filesystem.Bind{Source: path, Path: target}), fault.InUse)
	}
	if uses, err := h.Uses(t.Context(), device); err != nil || len(uses) != 3 {
		t.Errorf("got uses %+v, %v, want three", uses, err)
	}
	wantKind(t, h.Mount(t.Context(), filesystem.Mount{Device: device, Path: folder + "/folder", Type: filesystem.Ext4}), fault.InUse)
	for _, target := range []string{folder + "/folder", folder + "/file", path} {
		must(t, h.Unmount(t.Context(), target))
	}
}

// TestDeviceOnAnotherDev has device nodes on a tmpfs, as containers have them in /dev.
func TestDeviceOnAnotherDev(t *testing.T) {
	needRoot(t)
	h, device, folder := newHost(), newLoops(t).device(t, 64<<20), t.TempDir()
	tool(t, "mount", "-t", "tmpfs", "tmpfs", folder)
	defer tool(t, "umount", folder)
	node, err := nodeNumber(device)
	must(t, err)
	own := folder + "/node"
	tool(t, "mknod", own, "b", node.String()[:strings.Index(node.String(), ":")], node.String()[strings.Index(node.String(), ":")+1:])
	path := filepath.Join(t.TempDir(), "target")
	must(t, h.Bind(t.Context(), filesystem.Bind{Source: own, Path: path}))
	must(t, h.Bind(t.Context(), filesystem.Bind{Source: device, Path: path}))
	if uses, err := h.Uses(t.Context(), device); err != nil || len(uses) != 1 || uses[0] != (filesystem.Point{Path: path, Device: device}) {
		t.Errorf("got uses %+v, %v, want the one at %s", uses, err, path)
	}
	must(t, h.Unmount(t.Context(), path))
}
