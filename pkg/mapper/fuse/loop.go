package fuse

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A loop is a loop device that was seen with a mark. The kernel gives its number to others
// when it is detached, so whoever does something to it looks again, once it is
// open and can no longer change hands: see open.
type loop struct {
	number int
	mark   mark
}

// A mark says over whose image a loop device is. The path of its file does not: sysfs shows
// it as it is in the mount namespace of whoever attached the device, and as "/image" when
// that namespace has gone, as a pod's does. The kernel has no field for a mark, so it is a
// size limit, so large that it limits nothing: sysfs shows it to everyone, without a
// question to the worker, for as long as the device is attached. It is a decimal number, as in
// /sys/block/loopN/loop/sizelimit.
type mark string

// markBit is in every mark and larger than any image.
const markBit = 1 << 62

// markOf returns the mark of devices over the image in a worker's mount: the mount has the
// source, which no other worker's has.
func markOf(image, source string) mark {
	sum := sha256.Sum256([]byte(image + "\n" + source))
	return mark(strconv.FormatUint(markBit|binary.BigEndian.Uint64(sum[:])%markBit, 10))
}

func (m mark) number() uint64 {
	number, _ := strconv.ParseUint(string(m), 10, 64)
	return number
}

// loopMajor is the device number of loop devices (LOOP_MAJOR in linux/major.h).
const loopMajor = 7

// sectorSize is the logical block size of our loop devices. krbd and rbd-nbd have 512
// too, and a file system made on one way of mapping must mount on the others: xfs
// refuses a device whose blocks are larger than those it was made on.
const sectorSize = 512

func (l loop) name() string             { return "loop" + strconv.Itoa(l.number) }
func (l loop) path() string             { return "/dev/" + l.name() }
func (l loop) sysfs(file string) string { return filepath.Join("/sys/block", l.name(), file) }

// readLoops returns the numbers of attached loop devices by their marks.
func readLoops() (map[mark][]int, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/sizelimit")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w: %w", fault.Unavailable, err)
	}
	loops := make(map[mark][]int)
	for _, file := range files {
		name := filepath.Base(filepath.Dir(filepath.Dir(file)))
		number, err := strconv.Atoi(strings.TrimPrefix(name, "loop"))
		if err != nil {
			continue
		}
		seen := loop{number: number}.seen()
		loops[seen] = append(loops[seen], number)
	}
	return loops, nil
}

// seen returns the mark that the device has now; it is empty or 0 where it is not ours.
func (l loop) seen() mark {
	content, err := os.ReadFile(l.sysfs("loop/sizelimit"))
	if err != nil {
		return ""
	}
	return mark(strings.TrimSpace(string(content)))
}

// attached reports whether the device is still the one that was seen.
func (l loop) attached() bool { return l.seen() == l.mark }

var errDetached = errors.New("detached")

// open opens the device, or returns errDetached if it is another one's by now or just
// being taken off it. While it is open it stays, but for a LOOP_CLR_FD.
func (l loop) open(flags int) (*os.File, error) {
	if !l.attached() {
		return nil, errDetached
	}
	// Another pod can have made the device, and this one's /dev know nothing of it.
	if err := l.ensureNode(); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(l.path(), os.O_RDONLY|flags, 0)
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, fs.ErrNotExist):
		return nil, errDetached
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%s is held by another mount namespace, swap or a process: %w", l.path(), fault.InUse)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w: %w", l.path(), fault.Unavailable, err)
	}
	// LOOP_GET_STATUS64 would ask the worker for the file's attributes, and wait if it is stopped.
	if !l.attached() {
		_ = file.Close()
		return nil, errDetached
	}
	return file, nil
}

// attach puts a loop device over a file. Another process can take the free
// device in between; then the next free one is asked for.
//
// Direct I/O lets the kernel keep many requests in flight and caches nothing twice.
func attach(ctx context.Context, file string, as mark, readOnly bool) (loop, error) {
	mode := os.O_RDWR
	config := unix.LoopConfig{Size: sectorSize}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	config.Info.Sizelimit = as.number()
	if readOnly {
		mode = os.O_RDONLY
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	// losetup shows this name where sysfs does not show the path.
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
	backing, err := os.OpenFile(file, mode, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return loop{}, fmt.Errorf("attach a loop device: the worker has just ended: %w", fault.Superseded)
	}
	if err != nil {
		return loop{}, fmt.Errorf("attach a loop device: %w: %w", fault.Unavailable, err)
	}
	defer func() { _ = backing.Close() }()
	config.Fd = uint32(backing.Fd())

	for try := 0; ctx.Err() == nil; try++ {
		device, err := configureFree(&config, mode, try < maxFreeTries)
		if !errors.Is(err, unix.EBUSY) {
			device.mark = as
			return device, err
		}
	}
	return loop{}, fmt.Errorf("attach a loop device: each was taken by someone else: %w: %w", fault.Unavailable, ctx.Err())
}

// maxFreeTries is how often a free device is asked for before new ones are made. The kernel
// offers the same one again while someone has it open exclusively and does not use it.
const maxFreeTries = 3

// configureFree takes a free loop device; EBUSY if someone was faster.
func configureFree(config *unix.LoopConfig, mode int, existing bool) (loop, error) {
	device, err := freeLoop(existing)
	if err != nil {
		return loop{}, err
	}
	if err := device.ensureNode(); err != nil {
		return loop{}, err
	}
	file, err := os.OpenFile(device.path(), mode, 0)
	if err != nil {
		return loop{}, fmt.Errorf("open %s: %w: %w", device.path(), fault.Unavailable, err)
	}
	defer func() { _ = file.Close() }()
	err = unix.IoctlLoopConfigure(int(file.Fd()), config)
	switch {
	case err == nil:
		return device, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY):
		return loop{}, fmt.Errorf("attach %s: LOOP_CONFIGURE wants Linux 5.8: %w: %w", device.path(), fault.Unsupported, err)
	}
	return loop{}, fmt.Errorf("attach %s: %w: %w", device.path(), fault.Unavailable, err)
}

// freeLoop asks the kernel for a free device, of which it makes one if all are taken, or
// always for a new one.
func freeLoop(existing bool) (loop, error) {
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return loop{}, fmt.Errorf("ask for a free loop device: %w: %w", fault.Unsupported, err)
	}
	defer func() { _ = control.Close() }()
	var number int
	if existing {
		number, err = unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	} else {
		number, err = addLoop(control)
	}
	if err != nil {
		return loop{}, fmt.Errorf("ask for a free loop device: %w: %w", fault.Unavailable, err)
	}
	return loop{number: number}, nil
}

// addLoop makes a loop device; the ioctl returns its number, which unix.IoctlSetInt drops.
func addLoop(control *os.File) (int, error) {
	whichever := -1
	number, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.LOOP_CTL_ADD, uintptr(whichever))
	if errno != 0 {
		return 0, errno
	}
	return int(number), nil
}

// ensureNode makes the node in /dev if there is none, as in a container whose /dev is
// no devtmpfs. It refuses to use anything else that stands there.
func (l loop) ensureNode() error {
	device := unix.Mkdev(loopMajor, uint32(l.number))
	err := unix.Mknod(l.path(), unix.S_IFBLK|0o660, int(device))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make %s: %w: %w", l.path(), fault.Unavailable, err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(l.path(), &stat); err != nil {
		return fmt.Errorf("make %s: %w: %w", l.path(), fault.Unavailable, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFBLK || stat.Rdev != device {
		return fmt.Errorf("%s is not block device %d:%d: %w", l.path(), loopMajor, l.number, fault.Unavailable)
	}
	return nil
}

// EnsureLoopNode makes the node of a loop device if there is none: another pod, with another
// /dev, can have been the first to use it. It returns EINVAL for a path that is no loop device's.
func EnsureLoopNode(path string) error {
	text, found := strings.CutPrefix(path, "/dev/loop")
	number, err := strconv.ParseUint(text, 10, 20) // as many bits as a minor number has
	if !found || err != nil {
		return fmt.Errorf("%q is no loop device: %w", path, unix.EINVAL)
	}
	return loop{number: int(number)}.ensureNode()
}

// holders returns fault.InUse, with their names, if mounts or other block devices hold
// the device.
func (l loop) holders() error {
	points, err := l.mountPoints()
	if err != nil {
		return err
	}
	if len(points) > 0 {
		return fmt.Errorf("%s is mounted at %s: %w", l.path(), strings.Join(points, ", "), fault.InUse)
	}
	entries, err := os.ReadDir(l.sysfs("holders"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list holders of %s: %w: %w", l.path(), fault.Unavailable, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is under %s: %w", l.path(), entries[0].Name(), fault.InUse)
	}
	return nil
}

func (l loop) mountPoints() ([]string, error) {
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		return info.Major != loopMajor || info.Minor != l.number, false
	})
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w: %w", fault.Unavailable, err)
	}
	points := make([]string, len(infos))
	for i, info := range infos {
		points[i] = info.Mountpoint
	}
	return points, nil
}

// detach writes the device's cache out, flushes it and takes it off its file. It opens
// the device exclusively, which finds the holders that are not seen from here: a mount in
// another mount namespace, or one that was detached lazily. A process that merely has
// the device open is found by the device staying; then it is left as it was.
func (l loop) detach(ctx context.Context) error {
	file, err := l.open(unix.O_EXCL)
	switch {
	case errors.Is(err, errDetached):
		return l.awaitDetached(ctx)
	case err != nil:
		return err
	}
	if err = file.Sync(); err == nil {
		err = unix.IoctlSetInt(int(file.Fd()), unix.LOOP_CLR_FD, 0)
	}
	_ = file.Close()
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w: %w", l.path(), fault.Unavailable, err)
	}
	return l.awaitDetached(ctx)
}

// detachTimeout is how long others may have the device open for a moment, as udev does.
const detachTimeout = 2 * time.Second

func (l loop) awaitDetached(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	if poll(ctx, func() (bool, error) { return !l.attached(), nil }) == nil {
		return nil
	}
	if kept, err := l.keep(); err != nil || !kept {
		return err
	}
	return fmt.Errorf("%s is open in another process: %w", l.path(), fault.InUse)
}

// keep makes sure that the device stays over its file, and reports whether it is. A
// LOOP_CLR_FD that waits for others to close the device (autoclear) is taken back: while it is
// open here they cannot be the last. One that is being carried out cannot be.
func (l loop) keep() (bool, error) {
	file, err := l.open(0)
	switch {
	case errors.Is(err, errDetached):
		return false, nil
	case err != nil:
		return false, err
	}
	defer func() { _ = file.Close() }()
	info, err := unix.IoctlLoopGetStatus64(int(file.Fd()))
	if err == nil && info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0 {
		info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopSetStatus64(int(file.Fd()), info)
	}
	switch {
	case errors.Is(err, unix.ENXIO):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("keep %s: %w: %w", l.path(), fault.Unavailable, err)
	}
	return true, nil
}

// drop takes a dead device off its file. If someone still has it open, the kernel does so
// when the last one closes it; all they get until then is errors.
func (l loop) drop() error {
	file, err := l.open(0)
	switch {
	case errors.Is(err, errDetached):
		return nil
	case err != nil:
		return err
	}
	err = unix.IoctlSetInt(int(file.Fd()), unix.LOOP_CLR_FD, 0)
	_ = file.Close()
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w: %w", l.path(), fault.Unavailable, err)
	}
	return nil
}

// refreshSize makes the kernel learn the file's size. FUSE drops the size in an answer that
// crossed with a write (fuse_change_attributes), and a read beyond the size it has would
// give nothing; so this repeats until the inode has it, which SEEK_END tells.
func refreshSize(ctx context.Context, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	return poll(ctx, func() (bool, error) {
		told, err := file.Stat()
		if err != nil {
			return false, err
		}
		known, err := unix.Seek(int(file.Fd()), 0, unix.SEEK_END)
		return known >= told.Size(), err
	})
}

// bytes returns the size of the device.
func (l loop) bytes() (int64, error) {
	content, err := os.ReadFile(l.sysfs("size"))
	if err != nil {
		return 0, fmt.Errorf("read the size of %s: %w: %w", l.path(), fault.Unavailable, err)
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the size of %s: %w: %w", l.path(), fault.Internal, err)
	}
	return sectors * 512, nil // sysfs counts in 512 bytes, whatever the block size
}
