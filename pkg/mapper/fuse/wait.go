package fuse

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

var errTimeout = errors.New("timed out")

// bounded gives a context a deadline if it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, defaultTimeout)
}

// poll looks until done or ctx is, and then returns errTimeout. It looks at least once.
func poll(ctx context.Context, look func() (done bool, err error)) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		if done, err := look(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return errTimeout
		case <-ticker.C:
		}
	}
}

// leftBehind counts the calls whose callers have gone and which still wait in the kernel.
type leftBehind struct{ count atomic.Int64 }

// maxLeftBehind bounds the threads that a cluster which does not answer can take.
const maxLeftBehind = 64

// wait runs do in a goroutine and waits for it until ctx is done. The call goes on after
// that: it holds the mapping's lock, so that nobody works beside it, and what it leaves
// undone the next request finishes. With maxLeftBehind of them nothing more is begun.
func wait[T any](ctx context.Context, left *leftBehind, what string, do func() (T, error)) (T, error) {
	var none T
	if left.count.Load() >= maxLeftBehind {
		return none, fmt.Errorf("%s: %d earlier calls still wait in the kernel: %w", what, maxLeftBehind, fault.Unavailable)
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := do()
		done <- result{value, err}
	}()

	// The call has the same deadline and knows better what it waits for.
	patience, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(lastWord, cancel) })
	defer stop()
	defer cancel()
	select {
	case r := <-done:
		if r.err != nil {
			return none, fmt.Errorf("%s: %w", what, r.err)
		}
		return r.value, nil
	case <-patience.Done():
	}
	left.count.Add(1)
	go func() {
		<-done
		left.count.Add(-1)
	}()
	return none, fmt.Errorf("%s: %w: %w", what, fault.Unknown, ctx.Err())
}

// lastWord is how long after its deadline a call may still say what it waited for.
const lastWord = 100 * time.Millisecond
