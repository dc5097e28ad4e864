package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Remains is what a driver has on the machine. All lists are sorted.
type Remains struct {
	Mounts   []string // mount points
	Loops    []string // attached loop devices with the files under them
	Workers  []string // process IDs of the workers
	Mappings []string // what is in the nodes' run directories
	Targets  []string // what is at staging and target paths
}

// Empty reports that there is nothing.
func (r Remains) Empty() bool {
	return len(r.Mounts)+len(r.Loops)+len(r.Workers)+len(r.Mappings)+len(r.Targets) == 0
}

// String names everything, or says "nothing".
func (r Remains) String() string {
	var parts []string
	for _, kind := range []struct {
		what string
		list []string
	}{
		{"mounts", r.Mounts}, {"loop devices", r.Loops}, {"workers", r.Workers},
		{"mappings", r.Mappings}, {"staging and target paths", r.Targets},
	} {
		if len(kind.list) > 0 {
			parts = append(parts, fmt.Sprintf("%d %s (%s)", len(kind.list), kind.what, strings.Join(kind.list, ", ")))
		}
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, "; ")
}

// Without returns what is not in other: what came since other was looked at.
func (r Remains) Without(other Remains) Remains {
	subtract := func(list, from []string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(one string) bool { return slices.Contains(from, one) })
	}
	return Remains{
		Mounts:   subtract(r.Mounts, other.Mounts),
		Loops:    subtract(r.Loops, other.Loops),
		Workers:  subtract(r.Workers, other.Workers),
		Mappings: subtract(r.Mappings, other.Mappings),
		Targets:  subtract(r.Targets, other.Targets),
	}
}

// Look returns what is there of the drivers in a folder, as the kernel tells it. Loops
// also holds the dead devices over a mapping that was unmounted lazily: of those the kernel no
// longer tells the folder, so they can be another driver's.
func Look(folder string) (Remains, error) {
	var r Remains
	mounts, err := mountsBelow(folder)
	if err != nil {
		return Remains{}, err
	}
	for _, mount := range mounts {
		r.Mounts = append(r.Mounts, mount.Mountpoint)
	}
	loops, err := loopsBelow(folder)
	if err != nil {
		return Remains{}, err
	}
	for device, file := range loops {
		r.Loops = append(r.Loops, device+" "+file)
	}
	workers, err := workersBelow(folder)
	if err != nil {
		return Remains{}, err
	}
	for pid := range workers {
		r.Workers = append(r.Workers, strconv.Itoa(pid))
	}
	r.Mappings = slices.DeleteFunc(entriesOf(filepath.Join(folder, "*", runFolder, "*")), func(path string) bool {
		return filepath.Base(path) == locksFolder
	})
	r.Mappings = append(r.Mappings, entriesOf(filepath.Join(folder, "*", runFolder, locksFolder, "*"))...)
	r.Targets = append(entriesOf(filepath.Join(folder, "*", "staging", "*")), entriesOf(filepath.Join(folder, "*", "pods", "*"))...)
	for _, list := range [][]string{r.Mounts, r.Loops, r.Workers, r.Mappings, r.Targets} {
		slices.Sort(list)
	}
	return r, nil
}

// entriesOf returns the paths that fit the pattern.
func entriesOf(pattern string) []string {
	entries, _ := filepath.Glob(pattern) // the only error is that of a wrong pattern
	return entries
}

// mountsBelow returns the mounts below a folder, in the order in which they were made.
func mountsBelow(folder string) ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(folder))
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	return mounts, nil
}

// loopsBelow returns the attached loop devices whose file is below a folder, or may be, and
// those files.
func loopsBelow(folder string) (map[string]string, error) {
	attached, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	loops := map[string]string{}
	for _, path := range attached {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // detached meanwhile
		}
		file := strings.TrimSuffix(string(content), "\n")
		device := "/dev/" + strings.Split(path, "/")[3]
		if isBelow(file, folder) || file == lostPath && mayBeBelow(device, folder) {
			loops[device] = file
		}
	}
	return loops, nil
}

// lostPath is how sysfs shows an image's path when its mount is in no mount namespace any more.
const lostPath = "/image"

// mayBeBelow reports whether a device was attached by a path below the folder, of which the
// kernel keeps the first 63 bytes. It tells only if the worker answers: one that
// was killed can be anybody's.
func mayBeBelow(device, folder string) bool {
	file, err := os.Open(device)
	if err != nil {
		return !errors.Is(err, unix.ENXIO)
	}
	defer func() { _ = file.Close() }()
	info, err := unix.IoctlLoopGetStatus64(int(file.Fd()))
	if err != nil {
		return !errors.Is(err, unix.ENXIO)
	}
	name := unix.ByteSliceToString(info.File_name[:])
	return isBelow(name, folder) || strings.HasPrefix(folder+"/", name)
}

// workersBelow returns the processes that have a file of a run directory open: a worker
// keeps its lock open for as long as it lives. The value is that file.
func workersBelow(folder string) (map[int]string, error) {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	workers := map[int]string{}
	for _, link := range links {
		file, err := os.Readlink(link)
		if err != nil || !isBelow(file, folder) || !strings.Contains(file, "/"+runFolder+"/") {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err == nil && isWorker(pid) {
			workers[pid] = file
		}
	}
	return workers, nil
}

// Workers returns the process IDs of the node's workers of the mapper fuse.
func (p *Process) Workers() ([]int, error) {
	workers, err := workersBelow(p.folder)
	return slices.Sorted(maps.Keys(workers)), err
}

// isWorker tells a worker from a node process that has a mapping's folder open for a moment.
func isWorker(pid int) bool {
	arguments, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.HasSuffix(string(arguments), "\x00fuse\x00")
}

func isBelow(path, folder string) bool { return strings.HasPrefix(path, folder+"/") }

// Sweep takes away by force what a driver has in a folder, and the folder. The
// processes of the driver must have ended. It begins with the connections to the
// workers: then nothing waits for a cluster that may be gone.
func Sweep(folder string) error {
	mounts, err := mountsBelow(folder)
	if err != nil {
		return err
	}
	slices.Reverse(mounts)
	for _, mount := range mounts {
		if strings.HasPrefix(mount.FSType, "fuse") {
			_ = unix.Unmount(mount.Mountpoint, unix.MNT_FORCE) // EBUSY: the loop device goes below
		}
	}
	for _, mount := range mounts {
		if strings.HasPrefix(mount.FSType, "fuse") {
			continue
		}
		if err := unix.Unmount(mount.Mountpoint, 0); err != nil {
			_ = unix.Unmount(mount.Mountpoint, unix.MNT_DETACH)
		}
	}
	if err := detachLoops(folder); err != nil {
		return err
	}
	for _, mount := range mounts {
		_ = unix.Unmount(mount.Mountpoint, unix.MNT_DETACH) // EINVAL: gone already
	}
	if err := endWorkers(folder); err != nil {
		return err
	}
	// Nothing may be mounted where files are removed.
	if mounts, err = mountsBelow(folder); err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("sweep: %s stays mounted", mounts[0].Mountpoint)
	}
	if err := os.RemoveAll(folder); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	return nil
}

func detachLoops(folder string) error {
	loops, err := loopsBelow(folder)
	if err != nil {
		return err
	}
	for device, backing := range loops {
		if !isBelow(backing, folder) {
			continue
		}
		file, err := os.Open(device)
		if err == nil {
			err = unix.IoctlSetInt(int(file.Fd()), unix.LOOP_CLR_FD, 0)
			_ = file.Close()
		}
		if err != nil && !errors.Is(err, unix.ENXIO) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sweep: detach %s: %w", device, err)
		}
	}
	return nil
}

// patience is how long a worker may take to close its image after it was unmounted.
const patience = 5 * time.Second

// endWorkers waits for the workers to end, and kills those that do not. A descriptor stands for each
// from the beginning, so that a process ID that is given away anew is no danger.
func endWorkers(folder string) error {
	workers, err := workersBelow(folder)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for pid := range workers {
		process, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sweep: worker %d: %w", pid, err)
		}
		if !isWorker(pid) || awaitEnd(process, time.Until(deadline)) {
			_ = unix.Close(process)
			continue
		}
		_ = unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0)
		gone := awaitEnd(process, patience)
		_ = unix.Close(process)
		if !gone {
			return fmt.Errorf("sweep: worker %d does not end", pid)
		}
	}
	return nil
}

// awaitEnd reports whether the process ends in time.
func awaitEnd(process int, within time.Duration) bool {
	ready := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
	for deadline := time.Now().Add(within); ; {
		n, err := unix.Poll(ready, int(max(0, time.Until(deadline).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}
