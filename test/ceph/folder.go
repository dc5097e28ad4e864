package ceph

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// tempPattern names the folders below os.TempDir().
const tempPattern = "rbd-csi-ceph-"

// A folder is a cluster's folder, locked by this process.
type folder struct {
	path string
	lock *os.File
}

// takeFolder makes and locks the folder at path, or a new one if path is empty. What
// a killed cluster left there is removed first.
func takeFolder(path string) (*folder, error) {
	sweep()
	path, err := makeFolder(path)
	if err != nil {
		return nil, err
	}
	lock, err := lockFolder(path)
	if err != nil {
		os.RemoveAll(path)
		return nil, err
	}
	return &folder{path: path, lock: lock}, nil
}

func makeFolder(path string) (string, error) {
	if path == "" {
		path, err := os.MkdirTemp("", tempPattern)
		if err == nil {
			err = Options{Dir: path}.checkDir()
		}
		return path, err
	}
	if err := removeStale(path); err != nil {
		return "", err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(path)
	if err == nil && len(entries) > 0 {
		return "", fmt.Errorf("folder %s is not empty and not a cluster's: %w", path, fault.Exists)
	}
	return path, err
}

// lockFolder makes the lock file, with the number of this process in it. It gets its name when it
// is locked already, so that nobody takes a folder that is just being made for one that was left
// behind.
func lockFolder(path string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(path, "."+lockFile), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintln(file, os.Getpid())
	if err == nil {
		err = flock(file)
	}
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(path, lockFile))
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// interrupt ends a supervisor that does not take requests yet, because it is still bringing its
// cluster up, and waits until its folder is gone. As long as the lock is held, the number in it
// is that of the process that holds it.
func interrupt(ctx context.Context, path string) error {
	text, err := os.ReadFile(filepath.Join(path, lockFile))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("read the lock of %s: %w: %w", path, fault.Internal, err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("end the supervisor %d: %w", pid, err)
	}
	return poll(ctx, func() (bool, error) {
		err := removeStale(path)
		if errors.Is(err, fault.Exists) {
			return false, nil
		}
		_, left := os.Stat(path)
		return errors.Is(left, fs.ErrNotExist), err
	})
}

func flock(file *os.File) error {
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// removeStale removes the folder at path if it is a cluster's whose supervisor is gone.
// No folder, or one without a lock file, is left alone without error; a living cluster is
// fault.Exists.
func removeStale(path string) error {
	file, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	defer file.Close()
	if err := flock(file); err != nil {
		return fmt.Errorf("a cluster runs in %s: %w", path, fault.Exists)
	}
	if !stillAt(file, filepath.Join(path, lockFile)) {
		return nil
	}
	return removeFolder(path)
}

// stillAt reports whether path still names the open file. It does not when the cluster was
// taken down, and perhaps followed by another, between our opening the file and locking it.
func stillAt(file *os.File, path string) bool {
	ours, err := file.Stat()
	if err != nil {
		return false
	}
	theirs, err := os.Stat(path)
	return err == nil && os.SameFile(ours, theirs)
}

// sweep removes the temporary folders whose supervisor was killed. What belongs to
// others or still lives is passed over.
func sweep() {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), tempPattern+"*"))
	if err != nil {
		return
	}
	for _, path := range left {
		_ = removeStale(path)
	}
}

// remove removes the folder: the lock file last, so that a folder that is half removed can still be
// told for what it is and whoever waits for the lock file's end waits for all.
func (f *folder) remove() error {
	defer f.lock.Close()
	return removeFolder(f.path)
}

func removeFolder(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if entry.Name() != lockFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(path, entry.Name())))
		}
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(path)
}
