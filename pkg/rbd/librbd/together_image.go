package librbd

/*
#cgo LDFLAGS: -lrbd
#include <stdint.h>
#include <stdlib.h>
#include <rbd/librbd.h>

extern void rbdcsiAsked(uintptr_t member);

static void asked(void *member) { rbdcsiAsked((uintptr_t)member); }
static void resumed(void *member) { (void)member; }

static int watch(rbd_image_t image, uintptr_t member, uint64_t *handle) {
	return rbd_quiesce_watch(image, asked, resumed, (void *)member, handle);
}
*/
import "C"

import (
	"errors"
	"fmt"
	"runtime/cgo"
	"sync"
	"syscall"
	"unsafe"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// A member is an open image of which a snapshot is taken together with others. It
// does what go-ceph cannot: it has librbd ask before a snapshot is made (rbd_quiesce_watch,
// in librbd since 16.2). The question goes to everyone who watches an image in this way, the client
// that makes the snapshot included, so one handle is enough for both.
//
// Its methods are called one at a time, but for check, and what librbd calls itself.
type member struct {
	wanted rbd.SnapshotOf
	image  C.rbd_image_t
	self   cgo.Handle // what C is given instead of a pointer

	mu       sync.Mutex
	watch    C.uint64_t
	watching bool          // watch is one
	busy     bool          // a snapshot of ours is under way
	asked    chan struct{} // closed when librbd asks about it; nil when that is done
}

// result turns what a call returned into an error.
func result(call string, r C.int) error {
	if r >= 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", call, code(r))
}

// openHandle opens an image for calls that go-ceph lacks: rbd_open_by_id.
func (a at) openHandle(id string) (C.rbd_image_t, error) {
	name := C.CString(id)
	defer C.free(unsafe.Pointer(name))
	var image C.rbd_image_t
	//nolint:gocritic // what cgo makes of the call compares a value with itself
	if err := result("rbd_open_by_id", C.rbd_open_by_id(C.rados_ioctx_t(a.Pointer()), name, &image, nil)); err != nil {
		return nil, a.notOpened(id, err)
	}
	return image, nil
}

// openMember opens an image: rbd_open_by_id, rbd_get_features. It
// returns fault.Unsupported when the image has no exclusive lock.
func openMember(a at, wanted rbd.SnapshotOf) (*member, error) {
	image, err := a.openHandle(wanted.ID)
	if err != nil {
		return nil, err
	}
	m := &member{wanted: wanted, image: image}
	if err := m.checkFeatures(); err != nil {
		return nil, errors.Join(err, result("rbd_close", C.rbd_close(m.image)))
	}
	m.self = cgo.NewHandle(m)
	return m, nil
}

func (m *member) checkFeatures() error {
	var features C.uint64_t
	if err := result("rbd_get_features", C.rbd_get_features(m.image, &features)); err != nil {
		return err
	}
	if !rbd.Features(features).Has(rbd.ExclusiveLock) {
		return fmt.Errorf("%w: it has no exclusive-lock, so nothing keeps clients from writing", fault.Unsupported)
	}
	return nil
}

// close ends the watch and closes the image: rbd_quiesce_unwatch, rbd_close. After
// that librbd asks nothing any more. A member that was not opened needs none.
func (m *member) close() error {
	if m == nil {
		return nil
	}
	err := m.endWatch()
	err = errors.Join(err, result("rbd_close", C.rbd_close(m.image)))
	m.self.Delete()
	return err
}

// lock takes the exclusive lock, by a write of no bytes (rbd_write): librbd takes
// the lock before it looks how much there is to write (exclusive_lock::ImageDispatch::write),
// and gives it up when another client asks for it. rbd_lock_acquire would refuse
// the others (exclusive_lock::StandardPolicy), and their writes would fail. It
// waits until the present owner has written what it had under way, or is dead. When
// the owner gives the lock up and takes it back so quickly that librbd misses it, librbd asks again
// only after 30 seconds (rbd_request_timed_out_seconds); the other images do not wait for
// that, see longestHold.
//
// With the lock, no snapshot of another client's is under way, and not before that librbd is told
// that we want to be asked: who begins to watch while one is, misses the question,
// and the end of it, coming without a question, ends the process (QuiesceWatchers::notify in 16.2
// asserts m_blocked). So the lock is looked at again: if it was lost in between, watching
// ends at once, before a snapshot that was begun then can have ended.
func (m *member) lock() error {
	var nothing C.char
	if err := result("rbd_write", C.int(C.rbd_write(m.image, 0, 0, &nothing))); err != nil {
		return err
	}
	begun, err := m.beginWatch()
	if err != nil || !begun {
		return err
	}
	owner, err := m.owns()
	if err == nil && owner {
		return nil
	}
	if err == nil {
		err = errTakenBack
	}
	return errors.Join(err, m.endWatch())
}

// beginWatch begins to watch, and reports whether it was not begun before.
func (m *member) beginWatch() (begun bool, err error) {
	m.mu.Lock() // until the watch's number is known
	defer m.mu.Unlock()
	if m.watching {
		return false, nil
	}
	err = result("rbd_quiesce_watch", C.watch(m.image, C.uintptr_t(m.self), &m.watch))
	m.watching = err == nil
	return m.watching, err
}

// endWatch ends it, after the last question.
func (m *member) endWatch() error {
	m.mu.Lock()
	watching := m.watching
	m.watching = false
	m.mu.Unlock()
	if !watching {
		return nil
	}
	return result("rbd_quiesce_unwatch", C.rbd_quiesce_unwatch(m.image, m.watch))
}

// owns asks the cluster whether the image's lock is ours (rbd_is_exclusive_lock_owner,
// which asserts the lock at the OSD).
func (m *member) owns() (bool, error) {
	var owner C.int
	err := result("rbd_is_exclusive_lock_owner", C.rbd_is_exclusive_lock_owner(m.image, &owner))
	return owner != 0, err
}

// expect makes the next question of librbd's the one about our snapshot: the channel is closed
// when it comes, and it then waits for answer.
func (m *member) expect() (asked <-chan struct{}) {
	question := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy, m.asked = true, question
	return question
}

// create takes the snapshot (rbd_snap_create), after expect; the channel gets the outcome.
func (m *member) create() (created <-chan error) {
	outcome := make(chan error, 1)
	go func() {
		name := C.CString(m.wanted.Name)
		defer C.free(unsafe.Pointer(name))
		err := result("rbd_snap_create", C.rbd_snap_create(m.image, name))
		m.mu.Lock()
		m.busy, m.asked = false, nil
		m.mu.Unlock()
		outcome <- err
	}()
	return outcome
}

// answer lets librbd go on, or with refusal makes its snapshot fail (rbd_quiesce_complete).
func (m *member) answer(goOn bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.complete(goOn)
}

func (m *member) complete(goOn bool) {
	r := C.int(0)
	if !goOn {
		r = -C.int(syscall.EBUSY)
	}
	C.rbd_quiesce_complete(m.image, m.watch, r)
}

// rbdcsiAsked is called by librbd, in a thread of its own, before a snapshot of the
// image is made by whomever. It asks the next question when the last one was answered
// (QuiesceWatchers::notify_quiesce), and every question has to be answered once: a second answer
// would end the process, and without one the watch could not be ended. While no snapshot of ours
// is under way the others may go on, and are told so at once, as in librbd's own tests.
//
// While ours is, the first question may yet be about another client's snapshot.
// Then the one about ours comes later, and is refused: ours can only be made when
// the question that was answered with yes was about it.
//
//export rbdcsiAsked
func rbdcsiAsked(self C.uintptr_t) {
	m := cgo.Handle(self).Value().(*member)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.asked == nil {
		m.complete(!m.busy)
		return
	}
	close(m.asked)
	m.asked = nil
}
