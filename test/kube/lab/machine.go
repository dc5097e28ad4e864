package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/test/driver"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

// runDirectory is where the driver has its mappings, on the node itself.
const runDirectory = "/run/rbd-csi"

// A machine is what the lab has changed on the machine outside of the build folder.
type machine struct {
	// Mounted says that we mounted a tmpfs at the run directory.
	Mounted bool
	// MadeFolders were not there before. Containerd makes what a pod wants to see of the node.
	MadeFolders []string
	// Before is what looked like a driver's before: loop devices without a name, which another one has lost.
	Before driver.Remains
}

func machineFile(places kube.Places) string {
	return filepath.Join(places.Build, "lab", "machine.json")
}

// prepareMachine makes of /run/rbd-csi what a node with systemd has without us: a directory on a tmpfs, whose mounts
// are shared. It is written down first, for Down.
func (l *Lab) prepareMachine() error {
	m, err := readMachine(l.places)
	if err != nil {
		return err
	}
	for _, folder := range []string{runDirectory, "/lib/modules", "/etc/selinux"} {
		if !exists(folder) && !slices.Contains(m.MadeFolders, folder) {
			m.MadeFolders = append(m.MadeFolders, folder)
		}
	}
	shared, err := isSharedTmpfs(runDirectory)
	if err != nil {
		return err
	}
	if !shared {
		m.Mounted = true
		if m.Before, err = driver.Look(runDirectory); err != nil {
			return err
		}
	}
	if err := m.write(l.places); err != nil || shared {
		return err
	}
	return mountShared(runDirectory)
}

// mountShared mounts a tmpfs, and shares what is mounted below it with containers that ask for that.
func mountShared(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("rbd-csi", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", path, err)
	}
	if err := unix.Mount("", path, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share the mounts of %s: %w", path, err)
	}
	return nil
}

// isSharedTmpfs says whether the path is, or will be, on a tmpfs whose mounts are shared.
func isSharedTmpfs(path string) (bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil || len(mounts) == 0 {
		return false, err
	}
	inner := slices.MaxFunc(mounts, func(a, b *mountinfo.Info) int { return len(a.Mountpoint) - len(b.Mountpoint) })
	return inner.FSType == "tmpfs" && strings.Contains(inner.Optional, "shared:"), nil
}

func readMachine(places kube.Places) (machine, error) {
	var m machine
	text, err := os.ReadFile(machineFile(places))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	return m, err
}

func (m machine) write(places kube.Places) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(machineFile(places), append(text, '\n'), 0o644)
}

// sweep takes by force what the driver could not unmount any more, because Kubernetes was gone: it has to come before Ceph
// goes, because a worker whose cluster is gone waits for it.
func sweep(places kube.Places, say *progress.Narrator) error {
	left, err := mappings(places)
	if err != nil || len(left) == 0 {
		return err
	}
	say.Line("by force: %s", strings.Join(left, ", "))
	// That is the run directory's own mount, too.
	return driver.Sweep(runDirectory)
}

// restoreMachine undoes what was changed. The pods and their processes are gone.
func restoreMachine(places kube.Places) error {
	m, err := readMachine(places)
	if err != nil {
		return err
	}
	if m.Mounted {
		// EINVAL: nothing is mounted there any more.
		if err := unix.Unmount(runDirectory, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", runDirectory, err)
		}
	}
	for _, folder := range m.MadeFolders {
		// What is in use by others stays.
		if err := unix.Rmdir(folder); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) {
			return &fs.PathError{Op: "rmdir", Path: folder, Err: err}
		}
	}
	return os.RemoveAll(filepath.Dir(machineFile(places)))
}

// mappings lists what the driver has on this machine: mounts, loop devices and workers.
func mappings(places kube.Places) ([]string, error) {
	// Without that file nothing was prepared here: the nodes are in guests, and so is what the driver has.
	if !exists(machineFile(places)) {
		return nil, nil
	}
	m, err := readMachine(places)
	if err != nil {
		return nil, err
	}
	remains, err := driver.Look(runDirectory)
	if err != nil {
		return nil, err
	}
	remains = remains.Without(m.Before)
	var left []string
	for _, mount := range remains.Mounts {
		if mount != runDirectory {
			left = append(left, "mount "+mount)
		}
	}
	for _, loop := range remains.Loops {
		left = append(left, "loop device "+loop)
	}
	for _, worker := range remains.Workers {
		left = append(left, "worker "+worker)
	}
	return left, nil
}
