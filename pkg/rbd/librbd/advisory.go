package librbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/step"
)

// An advisory is a lock of the OSD class lock on the header of an image, or several that are
// taken as one, by which the driver's processes keep out of each other's way. Nobody else looks at it.
type advisory struct {
	names []string
	// lasts is after how long the OSD forgets the lock of a process that died.
	lasts time.Duration
}

// The flags of struct cls_lock_lock_op (src/cls/lock/cls_lock_types.h).
const (
	lockNew     = 0      // EEXIST where the same locker has it
	lockRenewed = 1 << 0 // LOCK_FLAG_MAY_RENEW
)

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

// lockedLong is locked for one image and a call that may take longer than the lock lasts: the lock is
// renewed until the call ends. It cannot be had again once the header is gone, and needs not to be.
func (a at) lockedLong(lock advisory, id string, call func() error) error {
	cookie := rbd.NewID()
	if err := a.lock(lock, headerPrefix+id, cookie); err != nil {
		return err
	}
	stop := a.renewing(lock, headerPrefix+id, cookie)
	err := call()
	stop()
	return cmp.Or(err, a.unlock(lock, []string{id}, cookie))
}

// renewing renews a lock until stop is called, which waits for the last renewal.
func (a at) renewing(lock advisory, object, cookie string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var renewal sync.WaitGroup
	renewal.Go(func() {
		tick := time.NewTicker(lock.lasts / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// One that fails is repeated with the next tick, and the call cannot be called off.
			_ = a.writeAlways(object, lock.ask(cookie, lockRenewed))
		}
	})
	return func() {
		cancel()
		renewal.Wait()
	}
}

// lock takes the lock, or returns errLocked with who has it. It never makes a header. It works in a full pool, where
// images can still be removed.
func (a at) lock(lock advisory, object, cookie string) error {
	err := a.writeAlways(object, lock.ask(cookie, lockNew))
	if !is(err, syscall.EBUSY) {
		return err
	}
	for _, name := range lock.names {
		if lockers, asked := a.ListLockers(object, name); asked == nil && len(lockers.Clients) > 0 {
			return fmt.Errorf("%w: %s at %s", errLocked, lockers.Clients[0], strings.Join(lockers.Addrs, " "))
		}
	}
	return errLocked
}

// ask is the operation that takes or renews the lock, all of it or nothing.
func (l advisory) ask(cookie string, flags uint8) func(*writeOp) {
	return func(op *writeOp) {
		op.assertExists()
		for _, name := range l.names {
			op.exec("lock", "lock", lockRequest(name, cookie, holder(), l.lasts, flags))
		}
	}
}

// lockRequest is struct cls_lock_lock_op (src/cls/lock/cls_lock_ops.h): an exclusive
// lock with a cookie, so that two calls of one client are two lockers.
func lockRequest(name, cookie, description string, lasts time.Duration, flags uint8) []byte {
	const exclusive, noTag = 1, ""
	return new(writer).versioned(1, func(w *writer) {
		w.text(name).u8(exclusive).text(cookie).text(noTag).text(description)
		w.u32(uint32(lasts / time.Second)).u32(uint32(lasts % time.Second)).u8(flags)
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
// image was removed; what is left then of locks that were taken as one is over at the same time.
func (a at) unlock(lock advisory, ids []string, cookie string) error {
	var failed []error
	for _, id := range ids {
		err := a.writeAlways(headerPrefix+id, func(op *writeOp) {
			op.assertExists()
			for _, name := range lock.names {
				op.exec("lock", "unlock", new(writer).versioned(1, func(w *writer) { w.text(name).text(cookie) }).bytes)
			}
		})
		if !is(err, syscall.ENOENT) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
