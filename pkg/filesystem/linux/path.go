//go:build linux

package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

const (
	// folderMode is the mode of folders that are made as targets; what is mounted hides it.
	folderMode = 0o750
	// fileMode is the mode of files that are made as targets.
	fileMode = 0o640
)

// resolve returns a path as the mount table has it: symbolic links in its parent
// are followed, because the folder of kubelet may be one, and the last element is left alone,
// because whoever can write to a pod's folder could put a link there.
// fault.NotFound means that the parent does not exist.
//
// The parents of targets are kubelet's, on a disk of the node and not on a volume.
func resolve(path string) (string, error) {
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("parent of %s: %w", path, fault.NotFound)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return "", fmt.Errorf("parent of %s: %w: %w", path, fault.Invalid, err)
	case err != nil:
		return "", fmt.Errorf("parent of %s: %w: %w", path, fault.Unavailable, err)
	}
	return filepath.Join(parent, filepath.Base(path)), nil
}

// resolveMaking is resolve for a target: a parent that does not exist is made.
func resolveMaking(path string) (string, error) {
	resolved, err := resolve(path)
	if !errors.Is(err, fault.NotFound) {
		return resolved, err
	}
	if err := os.MkdirAll(filepath.Dir(path), folderMode); err != nil {
		return "", fmt.Errorf("make the parent of %s: %w: %w", path, fault.Unavailable, err)
	}
	return resolve(path)
}

// makeTarget makes sure that something can be mounted at a path: on a folder, or on a
// file if it is to show a file or a device. It says whether it had to make it, and
// returns fault.Invalid when something else is there.
func makeTarget(path string, folder bool) (made bool, err error) {
	if folder {
		err = unix.Mkdir(path, folderMode)
	} else {
		var file int
		// O_EXCL does not follow a symbolic link in the last element.
		if file, err = unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, fileMode); err == nil {
			unix.Close(file)
		}
	}
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("make target %s: %w: %w", path, fault.Unavailable, err)
	}
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return false, fmt.Errorf("look at target %s: %w: %w", path, fault.Unavailable, err)
	case info.Mode()&fs.ModeSymlink != 0:
		return false, fmt.Errorf("target %s is a symbolic link: %w", path, fault.Invalid)
	case folder && !info.IsDir():
		return false, fmt.Errorf("target %s is not a directory: %w", path, fault.Invalid)
	case !folder && !info.Mode().IsRegular():
		return false, fmt.Errorf("target %s is not a file: %w", path, fault.Invalid)
	}
	return false, nil
}

// removeMade takes a target away that makeTarget made, after nothing was mounted there.
// It is a kindness: if it does not work, Unmount will do it.
func removeMade(path string, made, folder bool) {
	switch {
	case !made:
	case folder:
		_ = unix.Rmdir(path)
	default:
		_ = unix.Unlink(path)
	}
}
