package krbd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// kernel is where the kernel is asked and told.
type kernel struct {
	sys, dev  string
	mountinfo string
	release   func() string                             // as uname -r
	root      func() bool                               // whether this process is root's
	keyrings  func() error                              // whether there are keyrings
	node      func(path string, major, minor int) error // makes sure of a device node
	writable  func(path string) error                   // whether a file of sysfs may be written
}

// running is the kernel that runs here.
func running() kernel {
	return kernel{
		sys: "/sys", dev: "/dev", mountinfo: "/proc/self/mountinfo",
		release: release, node: ensureNode,
		root:     func() bool { return os.Geteuid() == 0 },
		keyrings: keyrings,
		writable: func(path string) error { return unix.Access(path, unix.W_OK) },
	}
}

func (k kernel) bus(file string) string { return filepath.Join(k.sys, "bus/rbd", file) }

// headSnapshot is what current_snap says of a mapping that is not of a snapshot
// (RBD_SNAP_HEAD_NAME in drivers/block/rbd.c).
const headSnapshot = "-"

// An entry is a mapping as sysfs shows it.
type entry struct {
	number       int
	major, minor int
	target       mapper.Target
	readOnly     bool
	client       string // address:port/nonce
	config       string // what was written to map it
}

func (e entry) name() string { return "rbd" + strconv.Itoa(e.number) }
func (e entry) path() string { return "/dev/" + e.name() }

// foreign reports that another hand than the driver's has mapped it.
func (e entry) foreign() bool { return e.target.Image.Cluster == "" }

// entries returns the mappings of images, in the order of their numbers.
func (k kernel) entries() ([]entry, error) {
	folders, err := os.ReadDir(k.bus("devices"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the module is not loaded, so nothing is mapped
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fault.Unavailable, err)
	}
	var entries []entry
	for _, folder := range folders {
		number, err := strconv.Atoi(folder.Name())
		if err != nil {
			continue
		}
		one, err := k.entry(number)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // it came or went just now
		}
		if err != nil {
			return nil, fmt.Errorf("read what sysfs says of rbd%d: %w: %w", number, fault.Unavailable, err)
		}
		if one != nil {
			entries = append(entries, *one)
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return a.number - b.number })
	return entries, nil
}

// entry reads a mapping, and returns nil for one of a snapshot.
func (k kernel) entry(number int) (*entry, error) {
	read := reading{folder: k.bus("devices/" + strconv.Itoa(number))}
	if snapshot := read.text("current_snap"); read.err == nil && snapshot != headSnapshot {
		return nil, nil
	}
	one := entry{
		number: number,
		major:  int(read.number("major")), minor: int(read.number("minor")),
		client: read.text("client_addr"),
		config: read.text("config_info"),
		target: mapper.Target{
			FSID: read.text("cluster_fsid"), PoolID: read.number("pool_id"), ImageID: read.text("image_id"),
			Image: volid.Image{
				Pool: volid.Pool{Pool: read.text("pool"), Namespace: read.text("pool_ns")},
				Name: read.text("name"),
			},
		},
	}
	one.target.Image.Cluster = clusterIn(one.config)
	block := reading{folder: filepath.Join(k.sys, "block", one.name()), err: read.err}
	one.readOnly = block.number("ro") == 1
	return &one, block.err
}

// reading reads files of a folder until one cannot be read.
type reading struct {
	folder string
	err    error
}

func (r *reading) text(file string) string {
	if r.err != nil {
		return ""
	}
	var content []byte
	content, r.err = os.ReadFile(filepath.Join(r.folder, file))
	return strings.TrimSuffix(string(content), "\n")
}

func (r *reading) number(file string) int64 {
	text := r.text(file)
	if r.err != nil {
		return 0
	}
	var number int64
	number, r.err = strconv.ParseInt(text, 10, 64)
	return number
}

// find returns the mappings of an image; more than one only by other hands.
func (k kernel) find(target mapper.Target) ([]entry, error) {
	return k.those(func(e entry) bool { return e.target.Same(target) })
}

// findLine returns the mapping that was made by writing a line, or nil.
func (k kernel) findLine(line string) (*entry, error) {
	found, err := k.those(func(e entry) bool { return e.config == line })
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0], nil
}

func (k kernel) those(wanted func(entry) bool) ([]entry, error) {
	all, err := k.entries()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(e entry) bool { return !wanted(e) }), nil
}

// device returns an entry in the words of the port.
func (k kernel) device(e entry, dead string) mapper.Device {
	device := mapper.Device{
		Path: filepath.Join(k.dev, e.name()), Mapper: Name, Target: e.target,
		ReadOnly: e.readOnly, Client: e.client, Dead: dead,
	}
	if dead != "" {
		device.Client = ""
	}
	return device
}

// bytes returns how large a device is.
func (k kernel) bytes(e entry) (int64, error) {
	read := reading{folder: k.bus("devices/" + strconv.Itoa(e.number))}
	bytes := read.number("size")
	if read.err != nil {
		return 0, fmt.Errorf("read the size of %s: %w: %w", e.path(), fault.Unavailable, read.err)
	}
	return bytes, nil
}

// removal is the order to unmap a device. With force the kernel does not care whether it is
// open (Linux 4.9): requests that come later fail.
func (k kernel) removal(e entry, force bool) Order {
	text := strconv.Itoa(e.number)
	if force {
		text += " force"
	}
	return Order{Path: k.bus("remove_single_major"), Text: text}
}

// refresh is the order to read the image's header again.
func (k kernel) refresh(e entry) Order {
	return Order{Path: k.bus("devices/" + strconv.Itoa(e.number) + "/refresh"), Text: "1"}
}

// ensureNode makes sure that the device's path is the device. A pod's /dev can be a copy that
// knows nothing of devices that came later.
func (k kernel) ensureNode(e entry) error {
	if err := k.node(filepath.Join(k.dev, e.name()), e.major, e.minor); err != nil {
		return fmt.Errorf("%w: %w", fault.Unavailable, err)
	}
	return nil
}

func ensureNode(path string, major, minor int) error {
	device := unix.Mkdev(uint32(major), uint32(minor))
	err := unix.Mknod(path, unix.S_IFBLK|0o600, int(device))
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make the node %s: %w", path, err)
	}
	var found unix.Stat_t
	if err := unix.Lstat(path, &found); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if found.Mode&unix.S_IFMT != unix.S_IFBLK || found.Rdev != device {
		return fmt.Errorf("%s is something else than block device %d:%d: remove it, somebody wrote to the path when there was no device", path, major, minor)
	}
	return nil
}

// mounts returns where this process sees the device mounted.
func (k kernel) mounts(e entry) []string {
	file, err := os.Open(k.mountinfo)
	if err != nil {
		return nil
	}
	defer func() { _ = file.Close() }()
	infos, err := mountinfo.GetMountsFromReader(file, func(info *mountinfo.Info) (skip, stop bool) {
		return info.Major != e.major || info.Minor != e.minor, false
	})
	if err != nil {
		return nil
	}
	var at []string
	for _, info := range infos {
		at = append(at, info.Mountpoint)
	}
	return at
}

// busy says who holds a device, as far as it can be seen from here: mounts of this mount
// namespace, and devices on top of it, of LVM or multipath for instance.
func (k kernel) busy(e entry) error {
	var by []string
	for _, at := range k.mounts(e) {
		by = append(by, "the mount at "+at)
	}
	holders, _ := os.ReadDir(filepath.Join(k.sys, "block", e.name(), "holders"))
	for _, holder := range holders {
		by = append(by, "the device "+k.holder(holder.Name()))
	}
	if len(by) == 0 {
		by = []string{"a process, or a mount of another mount namespace"}
	}
	return fmt.Errorf("%s is held by %s: %w", e.path(), strings.Join(by, ", "), fault.InUse)
}

// holder adds the name that a device-mapper device was given.
func (k kernel) holder(name string) string {
	given, err := os.ReadFile(filepath.Join(k.sys, "block", name, "dm/name"))
	if err != nil {
		return name
	}
	return name + " (" + strings.TrimSpace(string(given)) + ")"
}
