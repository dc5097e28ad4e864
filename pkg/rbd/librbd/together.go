package librbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// Snapshots of one moment, without groups of RBD.
//
// A client writes to an image with exclusive-lock only while it owns the lock, and gives it
// up only after its writes are done. So, if all locks are ours at one moment, and each
// stays ours until its image's snapshot is made, the snapshots are of that moment. The lock
// itself cannot be held: its owner has to give it up when another client asks. But it
// does so only after what it has under way: exclusive_lock::PreReleaseRequest waits for all
// operations (ImageCtx::cancel_async_requests) before anything else, and `snap create`
// is one that cannot be canceled. And `snap create` begins by asking everyone who
// watches the image whether it may (SnapshotCreateRequest::send_notify_quiesce); only then
// it blocks writes, takes an ID, and adds the snapshot. So:
//
//   - take the lock of each image, then begin its snapshot: it runs in this process, under
//     the lock, if the lock is still there, and else is passed on to the client that took it
//     back (Operations.cc, C_InvokeAsyncRequest),
//   - librbd asks us about the snapshot; look whether the lock is ours. If not, refuse
//     and repeat with this image. If it is, it stays so until we answer and the snapshot is made,
//   - when all have got so far, that is the moment: answer all of them with yes. When that
//     takes too long, with no: then nothing is made.
//
// All this is seen with 16.2, and what was read of later releases' sources has the same order. Should a
// release not take the lock for a write of no bytes any more, the locks of busy images
// are not had and nothing is taken; the snapshots cannot be of different moments for that.
// krbd and librbd before 16.2 do not know the question and give up the lock all the same.
//
// Writers wait about as long as for one ordinary snapshot: most of it is a
// proposal of the monitors for the snapshots' IDs, which all images wait for at once. Two things
// make it longer. A client that died less than 30 seconds ago still counts among those
// asked. And a client that freezes its filesystem when asked (rbd-nbd --quiesce) may have to
// write for that, which it cannot before the snapshot is made or librbd has waited for 50 seconds
// (rbd_quiesce_notification_attempts); then that snapshot fails.
//
// When this process is killed meanwhile, others wait for its locks until they
// are broken after 30 seconds (osd_client_watch_timeout), and nothing is made.

const (
	// mostTogether bounds the threads that wait in librbd.
	mostTogether = 64
	// longestHold is how long writers are held up at most while the other images' locks are
	// taken. It is far less than librbd waits for an answer.
	longestHold = 5 * time.Second
	// rounds is how often all is tried, tries how often one image's lock is taken in a round.
	rounds, tries = 4, 20
)

// errTakenBack means that another client took an image's lock before its snapshot
// was under way, and that no snapshot was made.
var errTakenBack = fmt.Errorf("%w: other clients took the exclusive lock back", fault.Superseded)

// TakeSnapshots implements rbd.Pool. Calls of one process for a pool come one after the
// other: two at once would ask each other whether they may.
func (p *pool) TakeSnapshots(ctx context.Context, wanted []rbd.SnapshotOf) error {
	what := fmt.Sprintf("take %d snapshots of one moment", len(wanted))
	if err := checkWanted(wanted); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	const all = "" // no image has this ID
	return untilLocked(ctx, what, func() error {
		return doAlone(ctx, p, &p.clusters.together, all, what, func(a at) error {
			return a.locked(takeLock, sortedIDs(wanted), func() error { return takeTogether(ctx, a, wanted) })
		})
	})
}

// sortedIDs is the order in which all processes lock images.
func sortedIDs(wanted []rbd.SnapshotOf) []string {
	var ids []string
	for _, one := range wanted {
		ids = append(ids, one.ID)
	}
	slices.Sort(ids)
	return ids
}

func checkWanted(wanted []rbd.SnapshotOf) error {
	if len(wanted) > mostTogether {
		return fmt.Errorf("%w: at most %d", fault.OutOfRange, mostTogether)
	}
	for i, one := range wanted {
		same := func(other rbd.SnapshotOf) bool { return other.ID == one.ID }
		if slices.ContainsFunc(wanted[:i], same) {
			return fmt.Errorf("%w: image %s is named twice", fault.Invalid, one.ID)
		}
	}
	return nil
}

// takeTogether opens the images and tries until all snapshots are taken. It looks
// at ctx because nobody waits for it any more when that has ended.
func takeTogether(ctx context.Context, a at, wanted []rbd.SnapshotOf) (err error) {
	if err := a.announce(); err != nil {
		return err
	}
	members := make([]*member, len(wanted))
	defer func() {
		closed := first(each(wanted, func(i int) error { return members[i].close() }))
		err = cmp.Or(err, closed)
	}()
	err = first(each(wanted, func(i int) (err error) {
		members[i], err = openMember(a, wanted[i])
		return err
	}))
	for attempt := 1; err == nil; attempt++ {
		err = takeOnce(ctx, a, wanted, members)
		if !errors.Is(err, errTakenBack) || attempt == rounds {
			return err
		}
		//nolint:gosec // two processes are to wait differently long, nothing more
		err = pause(ctx, rand.N(time.Duration(attempt)*400*time.Millisecond))
	}
	return err
}

// each does something for all at once and returns their errors, in the same order.
func each(wanted []rbd.SnapshotOf, do func(i int) error) []error {
	errs := make([]error, len(wanted))
	var group sync.WaitGroup
	for i := range wanted {
		group.Go(func() { errs[i] = named(wanted[i], do(i)) })
	}
	group.Wait()
	return errs
}

// first returns the first error that is one.
func first(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// named adds to an error of which image it is, and its kind.
func named(wanted rbd.SnapshotOf, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("image %s: %w", wanted.ID, classified(err))
}

// pause waits, or returns why not.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
