//go:build linux

package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// tableFile is the mount table of the namespace that this process is in. Reading it
// waits for no device: the kernel fills it from what it has in memory.
const tableFile = "/proc/self/mountinfo"

// readAttempts is how often the mount table is read to get two equal readings.
const readAttempts = 10

// A table is the mounts of a namespace, in the order in which they were made.
type table []*mountinfo.Info

// readTable reads the mount table until two readings agree. Before Linux 5.8 a mount
// could be missing from a reading during which another was taken down.
func readTable(path string) (table, error) {
	last, err := os.ReadFile(path)
	for range readAttempts {
		if err != nil {
			return nil, fmt.Errorf("read %s: %w: %w", path, fault.Unavailable, err)
		}
		var next []byte
		next, err = os.ReadFile(path)
		if err == nil && bytes.Equal(last, next) {
			return parseTable(next)
		}
		last = next
	}
	return nil, fmt.Errorf("read %s: it changes all the time: %w", path, fault.Unavailable)
}

func parseTable(text []byte) (table, error) {
	infos, err := mountinfo.GetMountsFromReader(bytes.NewReader(text), nil)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w: %w", fault.Internal, err)
	}
	return infos, nil
}

// on returns the mounts at exactly this path, the topmost last.
//
// Of mounts at one path each is mounted on the one below it, which is its parent.
// That order, and not the order in the table, says which is seen: a mount that is
// propagated from elsewhere can be put below one that is there already.
func (t table) on(path string) []*mountinfo.Info {
	var stack []*mountinfo.Info
	for _, info := range t {
		if info.Mountpoint == path {
			stack = append(stack, info)
		}
	}
	depth := map[int]int{}
	for range stack {
		for _, info := range stack {
			if below, found := depth[info.Parent]; found && info.Parent != info.ID {
				depth[info.ID] = below + 1
			} else {
				depth[info.ID] = max(depth[info.ID], 0)
			}
		}
	}
	slices.SortStableFunc(stack, func(a, b *mountinfo.Info) int { return depth[a.ID] - depth[b.ID] })
	return stack
}

// top returns the mount that is seen at exactly this path, or nil.
func (t table) top(path string) *mountinfo.Info {
	stack := t.on(path)
	if len(stack) == 0 {
		return nil
	}
	return stack[len(stack)-1]
}

// below returns the paths of the mounts further down in a path.
func (t table) below(path string) []string {
	var paths []string
	for _, info := range t {
		if strings.HasPrefix(info.Mountpoint, path+"/") {
			paths = append(paths, info.Mountpoint)
		}
	}
	return paths
}

// holding returns the mount that a path without symbolic links lies in.
func (t table) holding(path string) *mountinfo.Info {
	for ; ; path = filepath.Dir(path) {
		if info := t.top(path); info != nil || path == "/" {
			return info
		}
	}
}

// rooted says which part of which filesystem is seen at a path: two paths with the same
// answer show the same thing.
func (t table) rooted(path string) (number, string) {
	info := t.holding(path)
	if info == nil {
		return number{}, ""
	}
	rest := strings.TrimPrefix(path, info.Mountpoint)
	return numberOf(info), filepath.Join(info.Root, rest)
}

// A number is the number of a device, as in st_rdev.
type number struct{ major, minor uint32 }

func (n number) String() string { return fmt.Sprintf("%d:%d", n.major, n.minor) }

func numberOf(info *mountinfo.Info) number {
	return number{uint32(info.Major), uint32(info.Minor)}
}

// stopped are the options by which a filesystem shows that it takes no more writes: it was
// mounted read-only or made so after errors (ro), or, for ext4 since Linux 6.15, it stopped itself.
var stopped = []string{"ro", "emergency_ro", "shutdown"}

// readOnly reports whether nothing can be written through this mount, be it that
// it is read-only or that its whole filesystem is.
func readOnly(info *mountinfo.Info) bool {
	return readOnlyHere(info) || slices.ContainsFunc(strings.Split(info.VFSOptions, ","), func(option string) bool {
		return slices.Contains(stopped, option)
	})
}

// readOnlyHere reports whether this mount is read-only, whatever its filesystem is.
func readOnlyHere(info *mountinfo.Info) bool {
	return slices.Contains(strings.Split(info.Options, ","), "ro")
}

// point translates a line of the table.
func point(info *mountinfo.Info) filesystem.Point {
	p := filesystem.Point{Path: info.Mountpoint, ReadOnly: readOnly(info), Stopped: readOnly(info) && !readOnlyHere(info)}
	if node, found := boundNode(info); found {
		p.Device = nodePath(node, filepath.Join("/dev", filepath.Base(info.Root)))
		return p
	}
	p.Type = info.FSType
	p.Device = nodePath(numberOf(info), info.Source)
	return p
}

// boundNode returns the device whose node is bound at this mount.
//
// Such a mount shows one file of devtmpfs (or of the tmpfs that container run-times
// use as /dev): its root in the table is /loop3, for instance, and its numbers are
// devtmpfs's own. Only the node itself tells which device it is. Asking it waits for
// nothing, since both filesystems are in memory, and opens nothing.
func boundNode(info *mountinfo.Info) (number, bool) {
	if info.Root == "/" || !slices.Contains([]string{"devtmpfs", "tmpfs", "ramfs"}, info.FSType) {
		return number{}, false
	}
	node, err := nodeNumber(info.Mountpoint)
	return node, err == nil
}

// nodeNumber returns the device that a node stands for, and fault.Invalid when the path is something
// else. It must be called only for paths in filesystems that cannot hang.
func nodeNumber(path string) (number, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return number{}, fmt.Errorf("look at device %s: %w: %w", path, fault.Unavailable, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFBLK {
		return number{}, fmt.Errorf("%s is not a block device: %w", path, fault.Invalid)
	}
	return number{unix.Major(stat.Rdev), unix.Minor(stat.Rdev)}, nil
}

// nodePath returns the usual path of a block device, from DEVNAME in its uevent file in
// sysfs, or otherwise when the kernel does not know the device (any more).
func nodePath(of number, otherwise string) string {
	text, err := os.ReadFile("/sys/dev/block/" + of.String() + "/uevent")
	if err != nil {
		return otherwise
	}
	for line := range strings.Lines(string(text)) {
		if name, found := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); found {
			return "/dev/" + name
		}
	}
	return otherwise
}

// deviceSize returns the size of a block device in bytes, from /sys/dev/block/M:N/size,
// which counts in 512 bytes whatever the device's block size is.
func deviceSize(of number) (int64, error) {
	text, err := os.ReadFile("/sys/dev/block/" + of.String() + "/size")
	if err != nil {
		return 0, fmt.Errorf("read the size of device %s: %w: %w", of, fault.Unavailable, err)
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the size of device %s: %w: %w", of, fault.Internal, err)
	}
	return sectors * 512, nil
}

// At implements filesystem.Host.
func (h *Host) At(ctx context.Context, path string) (filesystem.Point, bool, error) {
	if err := begin(ctx, path); err != nil {
		return filesystem.Point{}, false, err
	}
	info, err := h.at(path)
	if err != nil || info == nil {
		return filesystem.Point{}, false, err
	}
	return point(info), true, nil
}

// at returns the topmost mount at a path, or nil.
func (h *Host) at(path string) (*mountinfo.Info, error) {
	resolved, err := resolve(path)
	if errors.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	mounts, err := readTable(tableFile)
	if err != nil {
		return nil, err
	}
	return mounts.top(resolved), nil
}

// Uses implements filesystem.Host.
func (h *Host) Uses(ctx context.Context, device string) ([]filesystem.Point, error) {
	if err := begin(ctx, device); err != nil {
		return nil, err
	}
	node, err := nodeNumber(device)
	if err != nil {
		return nil, err
	}
	mounts, err := readTable(tableFile)
	if err != nil {
		return nil, err
	}
	return mounts.uses(node), nil
}

// uses returns every mount of a device: of its filesystem, of a part of that, and of its node.
func (t table) uses(device number) []filesystem.Point {
	var points []filesystem.Point
	for _, info := range t {
		if numberOf(info) == device {
			points = append(points, point(info))
		} else if bound, found := boundNode(info); found && bound == device && t.top(info.Mountpoint) == info {
			points = append(points, point(info))
		}
	}
	return points
}

// begin returns an error when a method need not begin: its context has ended or its path is not one.
func begin(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: nothing was begun: %w", path, err)
	}
	return plain(path)
}
