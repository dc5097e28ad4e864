package fuse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// attachFile puts a loop device over a file of 1 MiB, and takes it off at the end.
func attachFile(t *testing.T, readOnly bool) (file string, device loop) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for loop devices")
	}
	if lack := lacksLoop(); lack != "" {
		t.Skip(lack)
	}
	// Not a link, because the kernel tells the path without links.
	directory, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(directory, "image")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	device, err = attach(t.Context(), file, markOf(file, t.Name()), readOnly)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := device.drop(); err != nil {
			t.Errorf("drop: got %v, want no error", err)
		}
	})
	return file, device
}

func TestAttach(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("read-only %t", readOnly), func(t *testing.T) {
			_, device := attachFile(t, readOnly)
			loops, err := readLoops()
			if got := (kernel{loops: loops}).marked(device.mark); err != nil || len(got) != 1 || got[0] != device {
				t.Errorf("readLoops: got %v, %v, want %s", got, err, device.name())
			}
			if got, err := device.bytes(); err != nil || got != 1<<20 {
				t.Errorf("size: got %d, %v, want %d", got, err, 1<<20)
			}
			for name, want := range map[string]string{
				"ro": fmt.Sprint(map[bool]int{true: 1}[readOnly]), "queue/logical_block_size": "512", "loop/dio": "1", "loop/autoclear": "0",
			} {
				got, err := os.ReadFile(device.sysfs(name))
				if err != nil || strings.TrimSpace(string(got)) != want {
					t.Errorf("%s: got %q, %v, want %s", name, got, err, want)
				}
			}
			if err := device.detach(t.Context()); err != nil {
				t.Errorf("detach: got %v, want no error", err)
			}
			if err := device.detach(t.Context()); err != nil {
				t.Errorf("detach again: got %v, want no error", err)
			}
			if device.attached() {
				t.Errorf("after detach: got it attached, want it gone")
			}
		})
	}
}

// A free device that someone sits on is passed over.
func TestAttachBesideTaken(t *testing.T) {
	attachFile(t, false) // skips
	free, err := freeLoop(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := free.ensureNode(); err != nil {
		t.Fatal(err)
	}
	holder, err := os.OpenFile(free.path(), os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Close() }()
	_, device := attachFile(t, false)
	if device.number == free.number {
		t.Errorf("attach: got %s, which is taken, want another", device.name())
	}
}

// What has the device open keeps it, and the device stays as it was.
func TestDetachOfHeld(t *testing.T) {
	tests := []struct {
		name  string
		flags int
	}{{"open", os.O_RDONLY}, {"held exclusively", os.O_RDONLY | unix.O_EXCL}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, device := attachFile(t, false)
			holder, err := os.OpenFile(device.path(), test.flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			err = device.detach(t.Context())
			if !fault.Is(err, fault.InUse) {
				t.Errorf("detach: got %v, want kind %q", err, fault.InUse)
			}
			if err := holder.Close(); err != nil {
				t.Fatal(err)
			}
			if !device.attached() {
				t.Errorf("after the holder went: got it detached, want it as it was")
			}
			if err := device.detach(t.Context()); err != nil {
				t.Errorf("detach after the holder went: got %v, want no error", err)
			}
		})
	}
}

// A driver that is killed while it waits for a detached device leaves it about to go.
func TestKeep(t *testing.T) {
	_, device := attachFile(t, false)
	holder, err := os.Open(device.path())
	if err != nil {
		t.Fatal(err)
	}
	if err := device.drop(); err != nil {
		t.Fatal(err)
	}
	if kept, err := device.keep(); !kept || err != nil {
		t.Errorf("keep: got %t, %v, want true", kept, err)
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	if !device.attached() {
		t.Errorf("after keep and close: got it detached, want it as it was")
	}
	if err := device.drop(); err != nil {
		t.Fatal(err)
	}
	if kept, err := device.keep(); kept || err != nil {
		t.Errorf("keep of what is gone: got %t, %v, want false", kept, err)
	}
}

// A device that a pod has attached is found when the pod is gone, and its mount namespace.
func TestAttachedInAnotherNamespace(t *testing.T) {
	file, first := attachFile(t, false)
	if err := first.detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := onItsOwnThread(func() error {
		return errors.Join(
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount(filepath.Dir(file), filepath.Dir(file), "", unix.MS_BIND, ""),
			func() error { _, err := attach(t.Context(), file, first.mark, false); return err }(),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	found, err := readLoops()
	got := (kernel{loops: found}).marked(first.mark)
	if err != nil || len(got) != 1 {
		t.Fatalf("devices over the file: got %v, %v, want one", got, err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for path := ""; path != "/image"; {
		content, err := os.ReadFile(got[0].sysfs("loop/backing_file"))
		if path = strings.TrimSpace(string(content)); err != nil || time.Now().After(deadline) {
			t.Fatalf("backing_file: got %q, %v, want the kernel to have lost the path", path, err)
		}
	}
	if err := got[0].detach(t.Context()); err != nil {
		t.Errorf("detach: got %v, want no error", err)
	}
	if got[0].attached() {
		t.Errorf("after detach: got it attached, want it gone")
	}
}

// onItsOwnThread runs a function on a thread that ends after it, and with it what the thread alone
// had. The first thread of a process would not end.
func onItsOwnThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good, but for the first thread
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- onItsOwnThread(do)
			return
		}
		done <- do()
	}()
	return <-done
}

// The number of a device that was detached can be someone else's by now.
func TestOthersAreLeftAlone(t *testing.T) {
	file, device := attachFile(t, false)
	mine := loop{device.number, markOf(file, "another time")}
	if kept, err := mine.keep(); kept || err != nil {
		t.Errorf("keep: got %t, %v, want false", kept, err)
	}
	if err := mine.detach(t.Context()); err != nil {
		t.Errorf("detach: got %v, want no error", err)
	}
	if err := mine.drop(); err != nil {
		t.Errorf("drop: got %v, want no error", err)
	}
	if !device.attached() {
		t.Errorf("of the other: got it detached, want it as it was")
	}
}

// The node in /dev is made where there is none, and nothing else is taken for it.
func TestEnsureNode(t *testing.T) {
	attachFile(t, false) // skips
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = control.Close() }()
	// A number so high that nobody is offered this device while its node is away.
	device := loop{number: 7000 + os.Getpid()%1000}
	if err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, device.number); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, device.number) }()
	if err := os.Remove(device.path()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(device.path()) }() // the kernel removes what it made itself
	if err := device.ensureNode(); err != nil {
		t.Errorf("ensureNode: got %v, want no error", err)
	}
	info, err := os.Stat(device.path())
	if err != nil || info.Mode()&os.ModeDevice == 0 {
		t.Fatalf("%s: got %v, %v, want a device", device.path(), info, err)
	}
	// A number that no node here has: it stands for a file that was put in the way.
	other := loop{number: 1<<19 + os.Getpid()%1000}
	if err := os.WriteFile(other.path(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(other.path()) }()
	if err := other.ensureNode(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("ensureNode of a file: got %v, want kind %q", err, fault.Unavailable)
	}
}

func TestCheck(t *testing.T) {
	err := New(Options{}).Check(t.Context())
	if os.Geteuid() != 0 {
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "root") {
			t.Errorf("Check without root: got %v, want kind %q and the reason", err, fault.Unsupported)
		}
		return
	}
	if err != nil && !fault.Is(err, fault.Unsupported) {
		t.Errorf("Check: got %v, want nothing or kind %q", err, fault.Unsupported)
	}
	missing := lacksDevice(filepath.Join(t.TempDir(), "fuse"), "fuse")
	if !strings.Contains(missing, "modprobe fuse") {
		t.Errorf("a device that is missing: got %q, want what to do about it", missing)
	}
	if lack := lacksKernel(); lack != "" {
		t.Errorf("this kernel: got %q, want that it is new enough", lack)
	}
}
