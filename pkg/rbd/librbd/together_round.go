package librbd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// A round is one attempt to get all members to the same moment.
type round struct {
	ready   chan struct{} // one for each member whose snapshot waits for the answer, under our lock
	failed  chan error    // one for each member that will not get there
	decided chan struct{} // closed when err is set
	err     error         // why nothing is taken; nil: now
}

func newRound(members int) *round {
	return &round{
		ready: make(chan struct{}, members), failed: make(chan error, members),
		decided: make(chan struct{}),
	}
}

// takeOnce is one round. With errTakenBack nothing was taken.
func takeOnce(ctx context.Context, a at, wanted []rbd.SnapshotOf, members []*member) error {
	r := newRound(len(members))
	outcome := make(chan []error)
	go func() { outcome <- each(wanted, func(i int) error { return members[i].take(r) }) }()
	r.err = r.gather(ctx, a, wanted, members)
	close(r.decided)
	for _, err := range <-outcome {
		if err != nil && !errors.Is(err, errTakenBack) {
			return err
		}
	}
	return r.err
}

// gather waits until all members are ready, and then looks once more whether that is the
// moment. Those who are ready first hold up writers, so it does not wait long, and not
// always as long: another process may want the same images, and have the lock of one while we
// have that of another. Who gives up first leaves it to the other.
func (r *round) gather(ctx context.Context, a at, wanted []rbd.SnapshotOf, members []*member) error {
	var tooLong <-chan time.Time
	for range members {
		select {
		case <-r.ready:
		case err := <-r.failed:
			return err
		case <-tooLong:
			return fmt.Errorf("not all at once within %s: %w", longestHold, errTakenBack)
		case <-ctx.Done():
			return ctx.Err()
		}
		if tooLong == nil {
			//nolint:gosec // two processes are to wait differently long, nothing more
			timer := time.NewTimer(longestHold/2 + rand.N(longestHold/2))
			defer timer.Stop()
			tooLong = timer.C
		}
	}
	return first(each(wanted, func(i int) error { return members[i].check(a) }))
}

// check looks whether the lock is ours and nobody has made a snapshot of that name
// meanwhile: librbd would take that one for ours (C_InvokeAsyncRequest is told to
// pass over EEXIST).
func (m *member) check(a at) error {
	owner, err := m.owns()
	if err == nil && !owner {
		err = errTakenBack
	}
	if err != nil {
		return err
	}
	exists, err := a.hasSnapshot(m.wanted)
	if err == nil && exists {
		err = fmt.Errorf("snapshot %s: %w", m.wanted.Name, fault.Exists)
	}
	return err
}

// hasSnapshot looks for a snapshot in the header as it is now. What librbd remembers of the
// image may be older.
func (a at) hasSnapshot(wanted rbd.SnapshotOf) (bool, error) {
	header, err := a.header(wanted.ID)
	return slices.ContainsFunc(header.Snapshots, func(one rbd.Snapshot) bool {
		return one.Kind == rbd.UserSnapshot && one.Name == wanted.Name
	}), err
}

// take gets a member to the moment and its snapshot taken. It tries again while
// other clients take the lock back.
func (m *member) take(r *round) error {
	var err error
	for attempt := range tries {
		err = m.try(r)
		if !errors.Is(err, errTakenBack) || r.over(time.Duration(attempt)*time.Millisecond) {
			break
		}
	}
	if err != nil {
		r.failed <- named(m.wanted, err)
	}
	return err
}

// over waits, and reports whether the round was decided before or meanwhile. A member that
// took a decided round for one that goes on would be ready in it a second time.
func (r *round) over(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.decided:
	case <-timer.C:
	}
	return closed(r.decided)
}

// try takes the lock and then the snapshot.
func (m *member) try(r *round) error {
	if err := m.lock(); err != nil {
		return err
	}
	if r.over(0) {
		return r.err
	}
	return m.snapshot(r)
}

// snapshot begins to take the snapshot, and if that is under our lock, waits for
// the moment. With errTakenBack, or the round's error, none was taken.
func (m *member) snapshot(r *round) error {
	asked := m.expect()
	created := m.create()
	select {
	case <-asked:
	case err := <-created:
		if closed(asked) {
			m.answer(false)
		}
		return unasked(err)
	}
	if owner, err := m.owns(); err != nil || !owner {
		m.answer(false)
		return errors.Join(err, withheld(<-created, errTakenBack))
	}
	r.ready <- struct{}{}
	select {
	case <-r.decided:
	case err := <-created: // librbd has waited too long, or is no client any more
		m.answer(false)
		return unasked(err)
	}
	m.answer(r.err == nil)
	if r.err != nil {
		return withheld(<-created, r.err)
	}
	return allowed(<-created)
}

// closed reports whether a channel without values is closed.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// allowed is the error for a snapshot that was asked about and allowed. If it was
// refused all the same, the question was about another client's, and ours came after it.
func allowed(outcome error) error {
	if is(outcome, syscall.EBUSY) {
		return fmt.Errorf("%w: another client took a snapshot", fault.Superseded)
	}
	return outcome
}

// withheld is the error for a snapshot that was refused because of the given error.
func withheld(outcome, because error) error {
	if is(outcome, syscall.EBUSY) {
		return because
	}
	return unasked(outcome)
}

// unasked is the error for a snapshot that ended without our leave. If it is there, its
// moment is any: made by another client that took the lock back and does not ask, or takes no
// for an answer, or under the same name by someone else.
func unasked(outcome error) error {
	if outcome != nil {
		return outcome
	}
	return fmt.Errorf("%w: another client made the snapshot at another moment", fault.Superseded)
}
