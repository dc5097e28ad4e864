//go:build linux

package linux

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/errand"
	"github.com/rbd-csi/rbd-csi/pkg/errand/errandtest"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem/filesystemtest"
)

// The test's program is also the one that reads devices.
const readerArgument = "device-reader"

var reader = errand.New("/proc/self/exe", readerArgument)

func TestMain(m *testing.M) { errandtest.Main(m, readerArgument, Serve) }

func newHost() *Host { return New(Options{Reader: reader}) }

// needRoot skips a test that cannot do without loop devices and mounts.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: it makes loop devices and mounts, which takes root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("skipped: it needs loop devices: %v", err)
	}
	for _, tool := range []string{"losetup", "blkid", "dd", "mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs", "xfs_growfs", "mount", "umount", "wipefs"} {
		if _, err := find(tool); err != nil {
			t.Skipf("skipped: %v", err)
		}
	}
}

// tool runs a command of the test's own and returns what it printed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := find(name)
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// loops makes loop devices over sparse files in a folder of the test.
type loops struct {
	folder string
	files  map[string]string // by device
}

func newLoops(t *testing.T) *loops { return &loops{folder: t.TempDir(), files: map[string]string{}} }

// device makes a loop device of so many bytes.
func (l *loops) device(t *testing.T, bytes int64) string {
	t.Helper()
	file, err := os.CreateTemp(l.folder, "backing")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(bytes); err != nil {
		t.Fatal(err)
	}
	return l.attach(t, file.Name())
}

// attach makes a loop device over a file, and takes it down at the end with all its mounts.
func (l *loops) attach(t *testing.T, file string, options ...string) string {
	t.Helper()
	device := tool(t, "losetup", append(options, "--find", "--show", file)...)
	l.files[device] = file
	ctx := context.WithoutCancel(t.Context())
	t.Cleanup(func() {
		points, err := newHost().Uses(ctx, device)
		if err != nil {
			t.Error(err)
		}
		for i := range points {
			tool(t, "umount", points[len(points)-1-i].Path)
		}
		tool(t, "losetup", "--detach", device)
		eventually(t, "loop device "+device+" is gone", func() bool {
			_, err := os.Stat("/sys/block/" + filepath.Base(device) + "/loop")
			return errors.Is(err, os.ErrNotExist)
		})
	})
	return device
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	const patience = 20 * time.Second
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after %v", what, patience)
		}
	}
}

// fixture is the real node for the suite.
func fixture(t *testing.T) filesystemtest.Fixture {
	l := newLoops(t)
	noGrow := ""
	if !mayResize() {
		noGrow = "the process lacks CAP_SYS_RESOURCE, which the kernel asks for"
	}
	return filesystemtest.Fixture{
		Host:       newHost(),
		Device:     l.device,
		NoExt4Grow: noGrow,
		Copy: func(t *testing.T, device string) string {
			file := filepath.Join(l.folder, "copy"+filepath.Base(device))
			tool(t, "dd", "if="+device, "of="+file, "bs=1M", "conv=sparse", "status=none")
			info, err := os.Stat(l.files[device])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, info.Size()); err != nil {
				t.Fatal(err)
			}
			return l.attach(t, file)
		},
		Resize: func(t *testing.T, device string, bytes int64) {
			if err := os.Truncate(l.files[device], bytes); err != nil {
				t.Fatal(err)
			}
			tool(t, "losetup", "--set-capacity", device)
		},
		// A loop device stays read-only when it is given another file.
		Protect: func(t *testing.T, device string) {
			tool(t, "blockdev", "--setro", device)
			t.Cleanup(func() { tool(t, "blockdev", "--setrw", device) })
		},
		// Behind the end of the backing file there is nothing to read: EIO.
		Spoil: func(t *testing.T, device string) {
			if err := os.Truncate(l.files[device], 4<<20); err != nil {
				t.Fatal(err)
			}
		},
		Hold: func(t *testing.T, path string) func() {
			file, err := os.CreateTemp(path, "held")
			if err != nil {
				t.Fatal(err)
			}
			return func() { file.Close() }
		},
	}
}

func TestSuite(t *testing.T) {
	needRoot(t)
	filesystemtest.Suite(t, fixture)
}

// formatted returns a host, and a new ext4 mounted at a path.
func mountedExt4(t *testing.T) (h *Host, device, path string) {
	t.Helper()
	needRoot(t)
	h, device, path = newHost(), newLoops(t).device(t, 64<<20), filepath.Join(t.TempDir(), "target")
	must(t, h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID, Zeroed: true}))
	must(t, h.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4}))
	return h, device, path
}

const someUUID = "0b5a1c52-77d3-4c56-8e0a-3f1f4a3b2c1d"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("got %v, want no error", err)
	}
}
