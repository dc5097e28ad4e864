package librbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/step"
)

// An advisory is a lock of the OSD class lock on the header of an image, by which the
// driver's processes keep out of each other's way. Nobody else looks at it.
type advisory struct {
	name string
	// lasts is after how long the OSD forgets the lock of a process that died.
	lasts time.Duration
}

// errLocked means that another call or process holds an advisory lock.
var errLocked = fmt.Errorf("%w: another process is at it", fault.Unavailable)

// lockWait is how long a call waits for a lock, and lockPoll how long between two attempts.
const (
	lockWait = 20 * time.Second
	lockPoll = 50 * time.Millisecond
)

// untilLocked calls again while another holds a lock, until ctx ends or lockWait is over.
func untilLocked(ctx context.Context, what string, call func() error) error {
	deadline := time.Now().Add(lockWait)
	for {
		err := call()
		if !errors.Is(err, errLocked) || time.Now().After(deadline) {
			return err
		}
		step.Set(ctx, "waiting for another process, to", what)
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// locked calls with the locks of images, which are in an order that all keep to. They are given back also
// when nobody waits for the call any more.
func (a at) locked(lock advisory, ids []string, call func() error) error {
	cookie := rbd.NewID()
	for i, id := range ids {
		if err := a.lock(lock, headerPrefix+id, cookie); err != nil {
			return errors.Join(err, a.unlock(lock, ids[:i], cookie))
		}
	}
	err := call()
	if unlocked := a.unlock(lock, ids, cookie); err == nil {
		return unlocked
	}
	return err
}

// lock takes the lock, or returns errLocked with who has it. It never makes a header.
func (a at) lock(lock advisory, object, cookie string) error {
	err := a.write(object, func(op *rados.WriteOp) {
		op.AssertExists()
		op.Exec("lock", "lock", lockRequest(lock.name, cookie, holder(), lock.lasts))
	})
	if !is(err, syscall.EBUSY) {
		return err
	}
	if lockers, asked := a.ListLockers(object, lock.name); asked == nil && len(lockers.Clients) > 0 {
		return fmt.Errorf("%w: %s at %s", errLocked, lockers.Clients[0], strings.Join(lockers.Addrs, " "))
	}
	return errLocked
}

// lockRequest is struct cls_lock_lock_op (src/cls/lock/cls_lock_ops.h): an exclusive
// lock with a cookie, so that two calls of one client are two lockers.
func lockRequest(name, cookie, description string, lasts time.Duration) []byte {
	const exclusive, noTag, noFlags = 1, "", 0
	return new(writer).versioned(1, func(w *writer) {
		w.text(name).u8(exclusive).text(cookie).text(noTag).text(description)
		w.u32(uint32(lasts / time.Second)).u32(uint32(lasts % time.Second)).u8(noFlags)
	}).bytes
}

// holder is what `rados lock info` shows of who has the lock.
func holder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "a host without a name"
	}
	return fmt.Sprintf("rbd-csi on %s, process %d", host, os.Getpid())
}

// unlock gives the locks back: struct cls_lock_unlock_op. ENOENT says that the call was too slow, or that the
// image was removed.
func (a at) unlock(lock advisory, ids []string, cookie string) error {
	var failed []error
	for _, id := range ids {
		err := a.writeAlways(headerPrefix+id, func(op *rados.WriteOp) {
			op.AssertExists()
			op.Exec("lock", "unlock", new(writer).versioned(1, func(w *writer) { w.text(lock.name).text(cookie) }).bytes)
		})
		if !is(err, syscall.ENOENT) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
