package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A place is the folder of one mapping. Its name holds the image's identity, because
// that must be known when nobody can be asked any more:
//
//	FSID.POOLID.IMAGEID/         flock(2)ed by whoever changes the mapping
//	FSID.POOLID.IMAGEID/worker   empty; fcntl(2)-locked by the worker while it lives
//	FSID.POOLID.IMAGEID/mount    the worker's FUSE mount, with the files
//	                             image, status and control
//
// There is one folder for both modes, so that one lock keeps an image from
// being mapped in both.
type place struct {
	path   string
	target mapper.Target // without the image's names
}

// Names in a mapping's folder.
const (
	workerFile  = "worker"
	mountFolder = "mount"
)

// Names in a worker's mount.
const (
	ImageFile   = "image"   // the image's data
	StatusFile  = "status"  // read: a Status
	ControlFile = "control" // written: a Control
)

// tick is how often something is looked at that the kernel offers no way to wait for
// with a deadline.
const tick = 20 * time.Millisecond

var errNoFolder = errors.New("no such mapping")

// folderOf returns the folder's name, or fault.Invalid for a target that is no image's identity.
func folderOf(target mapper.Target) (string, error) {
	isUUID := target.FSID != "" && strings.Trim(target.FSID, "0123456789abcdef-") == ""
	if !isUUID || target.PoolID < 0 {
		return "", fmt.Errorf("fsid %q, pool %d are not an image's: %w", target.FSID, target.PoolID, fault.Invalid)
	}
	if err := volid.CheckImageID(target.ImageID); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s.%d.%s", target.FSID, target.PoolID, target.ImageID), nil
}

// targetOf reads what folderOf wrote.
func targetOf(folder string) (mapper.Target, bool) {
	parts := strings.Split(folder, ".")
	if len(parts) != 3 {
		return mapper.Target{}, false
	}
	pool, err := strconv.ParseInt(parts[1], 10, 64)
	target := mapper.Target{FSID: parts[0], PoolID: pool, ImageID: parts[2]}
	if err != nil {
		return mapper.Target{}, false
	}
	again, err := folderOf(target)
	return target, err == nil && again == folder
}

// place returns where an image is mapped. The path has no symbolic links, because it
// is compared with those of mountinfo and sysfs.
func (m *Mapper) place(target mapper.Target) (place, error) {
	folder, err := folderOf(target)
	if err != nil {
		return place{}, err
	}
	directory, err := m.directory()
	if errors.Is(err, fs.ErrNotExist) {
		directory, err = m.options.Directory, nil
	}
	return place{path: filepath.Join(directory, folder), target: target}, err
}

// places returns the places of all mappings, whole or not.
func (m *Mapper) places() ([]place, error) {
	directory, err := m.directory()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(directory)
	if err != nil {
		return nil, fmt.Errorf("list mappings: %w: %w", fault.Unavailable, err)
	}
	var places []place
	for _, entry := range entries {
		if target, ok := targetOf(entry.Name()); ok {
			places = append(places, place{filepath.Join(directory, entry.Name()), target})
		}
	}
	return places, nil
}

func (m *Mapper) directory() (string, error) {
	absolute, err := filepath.Abs(m.options.Directory)
	if err != nil {
		return "", fmt.Errorf("directory of mappings: %w: %w", fault.Unavailable, err)
	}
	real, err := filepath.EvalSymlinks(absolute)
	if err != nil {
		return "", fmt.Errorf("directory of mappings: %w: %w", fault.Unavailable, err)
	}
	return real, nil
}

func (p place) mount() string           { return filepath.Join(p.path, mountFolder) }
func (p place) file(name string) string { return filepath.Join(p.mount(), name) }

// lock waits until nobody else changes this mapping. With create it makes the folder;
// without, it returns errNoFolder if there is none. A process that is killed gives
// its lock up.
func (p place) lock(ctx context.Context, create bool) (unlock func(), err error) {
	var folder *os.File
	err = poll(ctx, func() (bool, error) {
		if create {
			if err := os.Mkdir(p.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return false, err
			}
		}
		folder, err = lockFolder(p.path)
		return folder != nil, err
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errNoFolder
	case errors.Is(err, errTimeout):
		return nil, fmt.Errorf("another request still works on the mapping %s: %w", p.path, fault.Unavailable)
	case err != nil:
		return nil, fmt.Errorf("lock the mapping: %w: %w", fault.Unavailable, err)
	}
	return func() { _ = folder.Close() }, nil
}

// lockFolder returns the open folder if it could be locked. It returns nil if someone
// else has it, and also if it was removed in between: then the lock is on a folder
// that nobody will find again.
func lockFolder(path string) (*os.File, error) {
	folder, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		var mine, theirs fs.FileInfo
		if mine, err = folder.Stat(); err == nil {
			theirs, err = os.Stat(path)
		}
		if err == nil && os.SameFile(mine, theirs) {
			return folder, nil
		}
	}
	_ = folder.Close()
	if err == nil || errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return nil, err
}

// make makes what the worker needs in the locked folder.
func (p place) make() error {
	err := os.Mkdir(p.mount(), 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		var file *os.File
		if file, err = os.OpenFile(filepath.Join(p.path, workerFile), os.O_CREATE|os.O_RDWR, 0o600); err == nil {
			err = file.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("make the folder of the mapping: %w: %w", fault.Unavailable, err)
	}
	return nil
}

// remove removes the locked folder, in which nothing is mounted any more. It goes by
// names, so that a mistake here can never remove anything else.
func (p place) remove() error {
	for _, path := range []string{p.mount(), filepath.Join(p.path, workerFile), p.path} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the folder of the mapping: %w: %w", fault.Unavailable, err)
		}
	}
	return nil
}

// abort ends the FUSE connection, so that all that waits for the worker gets an error.
// The mount stays while its file is under a loop device: EBUSY is the usual answer.
func (p place) abort() error {
	err := unix.Unmount(p.mount(), unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EBUSY) || isNotMounted(err) {
		return nil
	}
	return fmt.Errorf("abort %s: %w: %w", p.mount(), fault.Unavailable, err)
}

// unmount takes the FUSE mount down, when nothing can be lost any more: the image is closed
// or dead. So it does not matter who still has a file of it open.
func (p place) unmount() error {
	for {
		err := unix.Unmount(p.mount(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if isNotMounted(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w: %w", p.mount(), fault.Unavailable, err)
		}
	}
}

// isNotMounted: EINVAL is umount(2)'s word for "not a mount point".
func isNotMounted(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)
}

// worker returns whether a worker of this mapping lives, as its lock tells, and its
// process ID, which is 0 if it is in a PID namespace that cannot be seen from here.
func (p place) worker() (alive bool, pid int, err error) {
	file, err := os.Open(filepath.Join(p.path, workerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, err
	}
	defer func() { _ = file.Close() }()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(file.Fd(), unix.F_GETLK, &lock); err != nil {
		return false, 0, err
	}
	return lock.Type != unix.F_UNLCK, int(lock.Pid), nil
}

// LockWorker is called by a worker before it does anything, with its order's Directory.
// The lock is held until the process ends, and tells the driver that it lives. It returns
// fault.Superseded while another worker has it: one that a driver started just before it
// was killed, which nobody could see yet.
func LockWorker(directory string) error {
	file, err := os.OpenFile(filepath.Join(directory, workerFile), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("lock the worker's file: %w: %w", fault.Unavailable, err)
	}
	// Locks of fcntl(2) go when the process closes the file, so it stays open. They are
	// used because F_GETLK tells who holds one.
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		return fmt.Errorf("lock the worker's file: %w: %w", fault.Unavailable, err)
	}
	_ = file.Close()
	unix.CloseOnExec(fd)
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock); err != nil {
		return fmt.Errorf("another worker is at %s: %w: %w", directory, fault.Superseded, err)
	}
	return nil
}

// awaitWorker waits until the worker's process is gone.
func (p place) awaitWorker(ctx context.Context) error {
	pid := 0
	err := poll(ctx, func() (bool, error) {
		alive, now, err := p.worker()
		pid = now
		return !alive, err
	})
	if errors.Is(err, errTimeout) {
		return fmt.Errorf("%s does not end: %w", workerProcess(pid), fault.Unavailable)
	}
	return err
}

// workerProcess says which process is meant.
func workerProcess(pid int) string {
	if pid == 0 {
		return "the worker process, in another pod,"
	}
	return "worker process " + strconv.Itoa(pid)
}

// gracePeriod is what a worker gets to close its image after its connection was aborted.
const gracePeriod = 2 * time.Second

// endWorker waits for a worker whose connection was aborted, and kills it if it does not end.
func (m *Mapper) endWorker(ctx context.Context, at place) error {
	grace, cancel := context.WithTimeout(ctx, gracePeriod)
	defer cancel()
	if at.awaitWorker(grace) == nil {
		return nil
	}
	if err := m.options.Kill(ctx, at.path); err != nil {
		return fmt.Errorf("kill the worker: %w", err)
	}
	return at.awaitWorker(ctx)
}

// KillWorker kills the worker of a mapping's folder and nobody else: the process that
// pidfd_open finds is the worker if the lock is held by that number before and after. It
// does nothing when there is none, or none in this PID namespace.
func KillWorker(directory string) error {
	target, ok := targetOf(filepath.Base(directory))
	if !ok {
		return fmt.Errorf("%s is no mapping's folder: %w", directory, fault.Invalid)
	}
	p := place{directory, target}
	alive, pid, err := p.worker()
	if err != nil || !alive || pid == 0 {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has just ended
	}
	defer func() { _ = unix.Close(fd) }()
	if alive, again, err := p.worker(); err != nil || !alive || again != pid {
		return err
	}
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	return nil
}
