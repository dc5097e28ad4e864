package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A place is the folder of one mapping:
//
//	FSID.POOLID.IMAGEID.lock        locked by whoever changes the mapping
//	FSID.POOLID.IMAGEID/process     locked by the worker and its rbd-nbd while either lives
//	FSID.POOLID.IMAGEID/client      the client's address, once it is sure that it has the right image
//	FSID.POOLID.IMAGEID/asok, log   of rbd-nbd
//
// Locks are by flock(2): they end with their last process, however that ends.
type place struct{ path string }

// Names in a mapping's folder.
const (
	processFile = "process"
	clientFile  = "client"
	socketFile  = "asok"
	logFile     = "log"
)

// place is fault.Invalid for a target that is no image's identity.
func (m *Mapper) place(target mapper.Target) (place, error) {
	isUUID := target.FSID != "" && strings.Trim(target.FSID, "0123456789abcdef-") == ""
	if !isUUID || target.PoolID < 0 {
		return place{}, fmt.Errorf("fsid %q, pool %d are not an image's: %w", target.FSID, target.PoolID, fault.Invalid)
	}
	if err := volid.CheckImageID(target.ImageID); err != nil {
		return place{}, err
	}
	return place{filepath.Join(m.options.Directory, fmt.Sprintf("%s.%d.%s", target.FSID, target.PoolID, target.ImageID))}, nil
}

func (p place) file(name string) string { return filepath.Join(p.path, name) }

func (p place) make() error {
	if err := os.MkdirAll(p.path, 0o700); err != nil {
		return fmt.Errorf("make the mapping's folder: %w: %w", fault.Unavailable, err)
	}
	return nil
}

// remove removes the folder of a mapping that is gone.
func (p place) remove() error {
	if err := os.RemoveAll(p.path); err != nil {
		return fmt.Errorf("remove the mapping's folder: %w: %w", fault.Unavailable, err)
	}
	return nil
}

// client returns the address of the client that serves the image, or nothing if that is not sure.
func (p place) client() string {
	content, err := os.ReadFile(p.file(clientFile))
	if err != nil {
		return ""
	}
	return string(content)
}

// record writes the client's address, in one step.
func (p place) record(client string) error {
	fresh := p.file(clientFile + ".new")
	if err := os.WriteFile(fresh, []byte(client), 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, p.file(clientFile))
}

// served reports whether a worker or an rbd-nbd lives.
func (p place) served() (bool, error) {
	file, err := os.Open(p.file(processFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }()
	err = unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// mayBeServed is served where not to know means yes.
func (p place) mayBeServed() bool {
	served, err := p.served()
	return served || err != nil
}

// awaitEnd waits until neither a worker nor an rbd-nbd lives.
func (p place) awaitEnd(ctx context.Context) error {
	return await(ctx, "end of rbd-nbd", func() (bool, error) {
		served, err := p.served()
		return !served, err
	})
}

// lock waits until nobody else works on the mapping.
func (p place) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(p.path), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of mappings: %w: %w", fault.Unavailable, err)
	}
	var file *os.File
	err = await(ctx, "another request for the image", func() (bool, error) {
		file, err = tryLock(p.path + ".lock")
		return file != nil, err
	})
	if err != nil {
		return nil, err
	}
	return func() {
		_ = os.Remove(file.Name()) // before it is unlocked: who waits then takes a new one
		_ = file.Close()
	}, nil
}

// tryLock returns the locked file, and nil if another has it, or had it and has removed it.
func tryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the image: %w: %w", fault.Unavailable, err)
	}
	if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		mine, errMine := file.Stat()
		theirs, errTheirs := os.Stat(path)
		if errMine == nil && errTheirs == nil && os.SameFile(mine, theirs) {
			return file, nil
		}
	}
	_ = file.Close()
	return nil, nil
}
