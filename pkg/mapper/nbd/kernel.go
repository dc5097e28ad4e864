package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// kernel is where the kernel is asked.
type kernel struct{ sys, dev string }

// An entry is a device that the driver has mapped.
type entry struct {
	number   int
	target   mapper.Target
	readOnly bool
}

func (e entry) name() string { return "nbd" + strconv.Itoa(e.number) }
func (e entry) path() string { return "/dev/" + e.name() }

// entries returns the devices with a cookie of ours.
func (k kernel) entries() ([]entry, error) {
	paths, err := filepath.Glob(filepath.Join(k.sys, "block/nbd*/backend"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fault.Internal, err)
	}
	var entries []entry
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // disconnected just now
		}
		if err != nil {
			return nil, fmt.Errorf("read what sysfs says of nbd devices: %w: %w", fault.Unavailable, err)
		}
		number, errNumber := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(path)), "nbd"))
		one, ours := parseCookie(strings.TrimSuffix(string(content), "\n"))
		if ours && errNumber == nil {
			one.number = number
			entries = append(entries, one)
		}
	}
	return entries, nil
}

// find returns the device of an image, or nil.
func (k kernel) find(target mapper.Target) (*entry, error) {
	entries, err := k.entries()
	if err != nil {
		return nil, err
	}
	for _, one := range entries {
		if one.target.Same(target) {
			return &one, nil
		}
	}
	return nil, nil
}

// device returns an entry in the words of the port.
func (k kernel) device(e entry, client, dead string) mapper.Device {
	device := mapper.Device{
		Path: filepath.Join(k.dev, e.name()), Mapper: Name, Target: e.target, ReadOnly: e.readOnly, Client: client, Dead: dead,
	}
	if dead != "" {
		device.Client = ""
	}
	return device
}

// bytes returns how large a device is. The file counts in units of 512 bytes, whatever its blocks are.
func (k kernel) bytes(e entry) (int64, error) {
	content, err := os.ReadFile(filepath.Join(k.sys, "block", e.name(), "size"))
	if err != nil {
		return 0, fmt.Errorf("read the size of %s: %w: %w", e.path(), fault.Unavailable, err)
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the size of %s: %w: %w", e.path(), fault.Internal, err)
	}
	return sectors * 512, nil
}

// disconnect has the kernel end a device's service, unless somebody holds it. The kernel itself
// does not look whether it is mounted, so it is opened for this process alone (O_EXCL), by which
// mounts in all mount namespaces, LVM and multipath are seen, and kept open so that nobody mounts
// it meanwhile. What is in the page cache goes to rbd-nbd before.
//
// A dead one cannot be opened before the kernel has given up on it, and what it was to
// write is lost. The kernel then keeps it for as long as somebody holds it.
func (k kernel) disconnect(ctx context.Context, one entry, dead bool) error {
	if dead {
		return k.endService(one)
	}
	file, err := os.OpenFile(filepath.Join(k.dev, one.name()), os.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is held by a mount, perhaps of another mount namespace, or by a device on top of it%s: %w", one.path(), k.holders(one), fault.InUse)
	case err != nil:
		return fmt.Errorf("open %s to see whether somebody holds it: %w: %w", one.path(), fault.Unavailable, err)
	}
	defer func() { _ = file.Close() }()
	if err := flush(ctx, file); err != nil {
		return fmt.Errorf("write what is in the cache of %s: %w", one.path(), err)
	}
	return k.endService(one)
}

func (k kernel) endService(one entry) error {
	if err := netlinkDisconnect(one.number); err != nil {
		return fmt.Errorf("disconnect %s: %w: %w", one.path(), fault.Unavailable, err)
	}
	return nil
}

// flush syncs a device. It is given up on, and goes on, when ctx ends first.
func flush(ctx context.Context, file *os.File) error {
	duplicate, err := unix.Dup(int(file.Fd()))
	if err != nil {
		return fmt.Errorf("%w: %w", fault.Unavailable, err)
	}
	done := make(chan error, 1)
	go func() {
		done <- unix.Fsync(duplicate)
		_ = unix.Close(duplicate)
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%w: %w", fault.Unavailable, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the cluster did not answer: %w: %w", fault.Unknown, context.Cause(ctx))
	}
}

// holders names the devices on top of one.
func (k kernel) holders(one entry) string {
	found, err := os.ReadDir(filepath.Join(k.sys, "block", one.name(), "holders"))
	if err != nil || len(found) == 0 {
		return ""
	}
	names := make([]string, len(found))
	for i, holder := range found {
		names[i] = holder.Name()
	}
	return " (" + strings.Join(names, ", ") + ")"
}

const (
	// probeTimeout is how long a device may take to answer whether it lives.
	probeTimeout = 2 * time.Second
	// maxLeft bounds the probes that a cluster which does not answer can take.
	maxLeft = 64
)

// probe reads the first block past the page cache, and says why a device is dead, or nothing, and
// whether it has answered in time. It reads in a child: a read that waits for the cluster can
// be given up on, but not interrupted.
func (m *Mapper) probe(ctx context.Context, one entry) (dead string, answered bool) {
	if m.left.Load() >= maxLeft {
		return "", false
	}
	// It is killed when ctx ends, and not waited for: see below.
	command := exec.CommandContext(context.WithoutCancel(ctx), "dd", "if="+filepath.Join(m.kernel.dev, one.name()), "of=/dev/null", "bs=4096", "count=1", "iflag=direct", "status=none")
	if command.Start() != nil {
		return "", false
	}
	ended := make(chan error, 1)
	m.left.Add(1)
	go func() {
		defer m.left.Add(-1)
		ended <- command.Wait()
	}()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	select {
	case err := <-ended:
		var status *exec.ExitError
		if errors.As(err, &status) && status.Exited() {
			return "reading it ends with an error; its client may be blocklisted, or its image gone", true
		}
		return "", true
	case <-ctx.Done():
		_ = command.Process.Kill()
		return "", false
	}
}

// cookiePrefix begins the cookies of the driver.
const cookiePrefix = "rbd-csi:"

func cookie(target mapper.Target, readOnly bool) string {
	mode := map[bool]string{true: "ro", false: "rw"}[readOnly]
	return fmt.Sprintf("%s%s:%s:%d:%s:%s", cookiePrefix, mode, target.FSID, target.PoolID, target.ImageID, target.Image)
}

// parseCookie reads what cookie wrote. What others wrote is not ours.
func parseCookie(text string) (e entry, ours bool) {
	rest, ours := strings.CutPrefix(text, cookiePrefix)
	parts := strings.SplitN(rest, ":", 5)
	if !ours || len(parts) != 5 {
		return entry{}, false
	}
	pool, err := strconv.ParseInt(parts[2], 10, 64)
	if err != nil {
		return entry{}, false
	}
	image, err := volid.ParseImage(parts[4])
	if err != nil {
		return entry{}, false
	}
	return entry{
		target:   mapper.Target{Image: image, FSID: parts[1], PoolID: pool, ImageID: parts[3]},
		readOnly: parts[0] == "ro",
	}, true
}

// check says with fault.Unsupported what this node lacks.
func (k kernel) check(ctx context.Context, root bool) error {
	var lacks []string
	if !root {
		lacks = append(lacks, "it needs to run as root")
	}
	if _, err := os.Stat(filepath.Join(k.sys, "module/nbd")); err != nil {
		if _, err := os.Stat(filepath.Join(k.sys, "block/nbd0")); err != nil {
			lacks = append(lacks, "the kernel has no nbd (modprobe nbd, and CONFIG_BLK_DEV_NBD in the kernel)")
		}
	}
	if release, old := before(5, 14); old {
		lacks = append(lacks, fmt.Sprintf("the kernel is %s and 5.14 is needed, which keeps the cookie of a device", release))
	}
	help, err := exec.CommandContext(ctx, bin, "--help").CombinedOutput()
	switch {
	case err != nil && len(help) == 0:
		lacks = append(lacks, fmt.Sprintf("%s does not run (install the package rbd-nbd): %v", bin, err))
	case !strings.Contains(string(help), "--reattach-timeout") || !strings.Contains(string(help), "--cookie"):
		lacks = append(lacks, bin+" is older than Ceph 16: it lacks --cookie and --reattach-timeout")
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", strings.Join(lacks, "; "), fault.Unsupported)
}

// before reports whether the running Linux is older than a release; one whose name cannot be read is not.
func before(major, minor int) (release string, old bool) {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return "", false
	}
	release = unix.ByteSliceToString(name.Release[:])
	var isMajor, isMinor int
	if _, err := fmt.Sscanf(release, "%d.%d", &isMajor, &isMinor); err != nil {
		return release, false
	}
	return release, isMajor < major || isMajor == major && isMinor < minor
}
