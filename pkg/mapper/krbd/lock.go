package krbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A lock keeps others from mapping and unmapping one image: a lock by flock(2) on a file with
// the image's identity as its name. A child that writes has the file open too, so the image
// stays locked while it waits in the kernel, also when the driver was killed.
type lock struct {
	file *os.File
	kept bool // by a child that was left behind, which lets it go
}

// tick is how often a lock is tried that another process has.
const tick = 10 * time.Millisecond

// lockName is fault.Invalid for a target that is no image's identity.
func lockName(target mapper.Target) (string, error) {
	isUUID := target.FSID != "" && strings.Trim(target.FSID, "0123456789abcdef-") == ""
	if !isUUID || target.PoolID < 0 {
		return "", fmt.Errorf("fsid %q, pool %d are not an image's: %w", target.FSID, target.PoolID, fault.Invalid)
	}
	if err := volid.CheckImageID(target.ImageID); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s.%d.%s", target.FSID, target.PoolID, target.ImageID), nil
}

// lock waits until nobody else works on the image.
func (m *Mapper) lock(ctx context.Context, target mapper.Target) (*lock, error) {
	name, err := lockName(target)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.options.Directory, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of locks: %w: %w", fault.Unavailable, err)
	}
	path := filepath.Join(m.options.Directory, name)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		file, err := tryLock(path)
		switch {
		case err != nil:
			return nil, fmt.Errorf("lock the image: %w: %w", fault.Unavailable, err)
		case file != nil:
			return &lock{file: file}, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another request for the image still waits in the kernel: %w: %w", fault.Unavailable, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// tryLock returns the locked file, and nil if another has it, or had it and has removed it.
func tryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		var mine, theirs fs.FileInfo
		if mine, err = file.Stat(); err == nil {
			theirs, err = os.Stat(path)
		}
		if err == nil && os.SameFile(mine, theirs) {
			return file, nil
		}
	}
	_ = file.Close()
	if err == nil || errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return nil, err
}

// get returns the file for a child; no lock has none.
func (l *lock) get() *os.File {
	if l == nil {
		return nil
	}
	return l.file
}

// release gives the lock up at the end of a call, unless a child keeps it.
func (l *lock) release() {
	if !l.kept {
		l.letGo()
	}
}

// keep says that a child keeps the lock.
func (l *lock) keep() {
	if l != nil {
		l.kept = true
	}
}

// letGo removes the file, so that none stays of an image that is gone, and then unlocks it.
func (l *lock) letGo() {
	if l != nil {
		_ = os.Remove(l.file.Name())
		_ = l.file.Close()
	}
}
