package rbd

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/step"
)

// Calls bounds the calls that are under way into one cluster. librados and
// librbd cannot be interrupted: a call into a cluster that does not answer
// returns when the cluster does. So each call runs in a goroutine of its own and
// holds one of a number of slots until it returns, and a caller whose context
// ends is let go before that. Calls that nobody waits for any more are thereby
// bounded, too: when they hold all slots, further calls are refused at once.
//
// All methods may be called at once.
type Calls struct {
	cluster string
	slots   int

	mu      sync.Mutex
	running map[*running]struct{}
	left    int       // how many of them nobody waits for
	waiting list.List // of *waiter, first come first served
}

// running is a call under way.
type running struct {
	what  string
	since time.Time
	left  bool
}

// A waiter gets its running call, or an error, exactly once.
type waiter struct {
	call    *running
	granted chan error // buffered
}

// NewCalls returns Calls with so many slots, at least one, for the named cluster.
func NewCalls(cluster string, slots int) *Calls {
	return &Calls{cluster: cluster, slots: max(slots, 1), running: map[*running]struct{}{}}
}

// Do runs call in a goroutine and returns what it returns. What is the step's name
// for errors and for package step, a phrase like "read the header of v1". When ctx
// ends first, Do returns
//
//   - fault.Unavailable or fault.Canceled while it waits for a slot: nothing was
//     sent,
//   - fault.Unknown while the call runs: it may be applied, now or later, and
//     goes on without a caller.
//
// It returns fault.Unavailable at once when all slots are held by calls that
// nobody waits for. The error then names the oldest of them. A panic in call is an
// error without a kind, which counts as a defect.
func Do[T any](ctx context.Context, calls *Calls, what string, call func() (T, error)) (T, error) {
	var none T
	entered, err := calls.enter(ctx, what)
	if err != nil {
		return none, err
	}
	step.Set(ctx, what)
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		defer calls.leave(entered)
		value, err := guarded(call)
		done <- result{value, err}
	}()
	select {
	case got := <-done:
		return got.value, got.err
	case <-ctx.Done():
		return none, calls.abandon(ctx, entered)
	}
}

// guarded turns a panic into an error: in a goroutine of ours nobody else would,
// and one request would end the process.
func guarded[T any](call func() (T, error)) (value T, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("panic: %v\n%s", cause, debug.Stack())
		}
	}()
	return call()
}

// enter takes a slot, waiting for one until ctx ends.
func (c *Calls) enter(ctx context.Context, what string) (*running, error) {
	if err := ctx.Err(); err != nil {
		return nil, c.notSent(what, err)
	}
	c.mu.Lock()
	entered := &running{what: what, since: time.Now()}
	if len(c.running) < c.slots && c.waiting.Len() == 0 {
		c.running[entered] = struct{}{}
		c.mu.Unlock()
		return entered, nil
	}
	if c.left >= c.slots {
		defer c.mu.Unlock()
		return nil, c.stuck(what)
	}
	place := c.waiting.PushBack(&waiter{call: entered, granted: make(chan error, 1)})
	c.mu.Unlock()

	step.Set(ctx, "waiting for one of the", fmt.Sprint(c.slots), "calls at a time to cluster", c.cluster)
	return c.wait(ctx, place)
}

// wait waits for a slot in the queue.
func (c *Calls) wait(ctx context.Context, place *list.Element) (*running, error) {
	waits := place.Value.(*waiter)
	select {
	case err := <-waits.granted:
		if err != nil {
			return nil, err
		}
		return waits.call, nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting.Remove(place)
	select {
	case err := <-waits.granted:
		if err == nil { // granted at the same moment: pass it on
			c.release(waits.call)
		}
	default:
	}
	return nil, c.notSent(waits.call.what, ctx.Err())
}

// leave gives the slot of a call that has returned to the next in the queue.
func (c *Calls) leave(entered *running) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release(entered)
}

func (c *Calls) release(entered *running) {
	delete(c.running, entered)
	if entered.left {
		c.left--
	}
	next := c.waiting.Front()
	if next == nil {
		return
	}
	waits := c.waiting.Remove(next).(*waiter)
	waits.call.since = time.Now()
	c.running[waits.call] = struct{}{}
	waits.granted <- nil
}

// abandon notes that nobody waits for a call any more. When that was the last
// one with a caller, those who wait for a slot are sent away.
func (c *Calls) abandon(ctx context.Context, entered *running) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, still := c.running[entered]; still {
		entered.left = true
		c.left++
	}
	for c.left >= c.slots && c.waiting.Len() > 0 {
		waits := c.waiting.Remove(c.waiting.Front()).(*waiter)
		waits.granted <- c.stuck(waits.call.what)
	}
	return fmt.Errorf("%s: no answer from cluster %s since %s: %w: %w",
		entered.what, c.cluster, moment(entered.since), fault.Unknown, ctx.Err())
}

// notSent is the error of a caller whose context ended before anything was done.
func (c *Calls) notSent(what string, cause error) error {
	kind := fault.Unavailable
	if errors.Is(cause, context.Canceled) {
		kind = fault.Canceled
	}
	return fmt.Errorf("%s: not sent to cluster %s: %w: %w", what, c.cluster, kind, cause)
}

// stuck is the error for who comes when all slots are held by calls left behind.
func (c *Calls) stuck(what string) error {
	oldest := &running{since: time.Now()}
	for one := range c.running {
		if !one.since.After(oldest.since) {
			oldest = one
		}
	}
	return fmt.Errorf("%s: not sent: cluster %s does not answer, all %d calls to it hang, the oldest (%s) since %s: %w",
		what, c.cluster, c.slots, oldest.what, moment(oldest.since), fault.Unavailable)
}

// Hanging describes the calls that nobody waits for any more, oldest first, for
// people who look why a cluster is not used.
func (c *Calls) Hanging() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines []string
	for one := range c.running {
		if one.left {
			lines = append(lines, one.since.UTC().Format(stamp)+" "+one.what)
		}
	}
	slices.Sort(lines)
	return lines
}

// stamp is a time in a form that sorts.
const stamp = "2006-01-02T15:04:05.000000000Z"

func moment(at time.Time) string {
	return fmt.Sprintf("%s (%s)", at.UTC().Format(time.RFC3339), time.Since(at).Round(time.Millisecond))
}
