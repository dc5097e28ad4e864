package krbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/errand"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// An Order is one write to a file of sysfs.
type Order struct {
	Path string
	Text string
	// KeyName and Key are put into the keyring before, unless KeyName is empty.
	KeyName string
	Key     []byte
	// NetworkNamespace is entered before, unless it is empty.
	NetworkNamespace string
}

// A Result is what came of the Order with that index.
type Result struct {
	Index int
	Path  string
	Step  string // what failed: one of the steps below
	Errno unix.Errno
	// Kernel is what the kernel has logged of rbd and libceph meanwhile, if it failed. Lines
	// about other images that were mapped at the same time can be among them.
	Kernel []string
}

// The steps of an order.
const (
	stepNamespace = "enter the network namespace"
	stepKey       = "put the key into the kernel's keyring"
	stepWrite     = "write"
)

// A Work is a process that carries orders out, all at the same time.
type Work = errand.Work[Result]

// Start has a process carry orders out, which keeps the lock's file open until it has the last result; nil: there
// is none. It is a seam for tests; the real one is that of [Command].
type Start func(orders []Order, held *os.File) (Work, error)

// Command returns a Start that runs a program, which has to call [Serve]:
//
//	Command("/proc/self/exe", "krbd")
func Command(path string, arguments ...string) Start {
	program := errand.New(path, arguments...)
	return func(orders []Order, held *os.File) (Work, error) {
		return errand.Start[Order, Result](program, orders, held)
	}
}

// errGivenUp is in the error of a call that ended without all results.
var errGivenUp = errors.New("no answer in time")

const (
	// killTime is how long a killed child may take to end before it is left behind. The waits of
	// rbd and libceph for the cluster end by a kill, and then the kernel undoes what it began.
	killTime = time.Second
	// maxLeft bounds the processes that a cluster which does not answer can take.
	maxLeft = 64
)

// write has orders carried out and returns the results that there are when ctx ends. If some are
// missing the error is errGivenUp, with fault.Unavailable if the process has ended, so that nothing goes on,
// and otherwise fault.Unknown: then the lock stays with the process, and late is
// called, before the lock is released, when it has ended.
func (m *Mapper) write(ctx context.Context, held *lock, orders []Order, late func()) ([]Result, error) {
	if m.left.Load() >= maxLeft {
		return nil, fmt.Errorf("%d earlier requests still wait in the kernel: %w", maxLeft, fault.Unavailable)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", fault.Unavailable, err)
	}
	work, err := m.options.Start(orders, held.get())
	if err != nil {
		return nil, err
	}
	results, ended := collect(ctx.Done(), work.Results, nil)
	if !ended {
		work.Kill()
		timer := time.NewTimer(killTime)
		defer timer.Stop()
		results, ended = collectUntil(timer.C, work.Results, results)
	}
	switch {
	case !ended:
		m.leave(work, held, late)
		return results, fmt.Errorf("the kernel still waits for the cluster: %w: %w: %w", fault.Unknown, errGivenUp, context.Cause(ctx))
	case len(results) < len(orders) && ctx.Err() != nil:
		return results, fmt.Errorf("the cluster did not answer: %w: %w: %w", fault.Unavailable, errGivenUp, context.Cause(ctx))
	case len(results) < len(orders):
		return results, fmt.Errorf("the process that writes to sysfs ended without an answer: %w", fault.Unavailable)
	}
	return results, nil
}

// one is write for a single order.
func (m *Mapper) one(ctx context.Context, held *lock, order Order, late func()) (Result, error) {
	results, err := m.write(ctx, held, []Order{order}, late)
	if len(results) == 1 && (err == nil || !errors.Is(err, fault.Unknown)) {
		return results[0], nil
	}
	if err == nil {
		err = fmt.Errorf("%d results of one order: %w", len(results), fault.Internal)
	}
	return Result{}, err
}

// collect gathers results until the process has ended, or until given up.
func collect(giveUp <-chan struct{}, from <-chan Result, results []Result) ([]Result, bool) {
	for {
		select {
		case result, more := <-from:
			if !more {
				return results, true
			}
			results = append(results, result)
		case <-giveUp:
			return results, false
		}
	}
}

func collectUntil(giveUp <-chan time.Time, from <-chan Result, results []Result) ([]Result, bool) {
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		select {
		case <-giveUp:
			close(stop)
		case <-done:
		}
	}()
	defer close(done)
	return collect(stop, from, results)
}

// leave lets a process go on that does not end, and waits for it in the background.
func (m *Mapper) leave(work Work, held *lock, late func()) {
	m.left.Add(1)
	held.keep()
	go func() {
		defer m.left.Add(-1)
		defer held.letGo()
		// What the results say comes too late; it is the channel's end that is waited for.
		collect(nil, work.Results, nil)
		if late != nil {
			late()
		}
	}()
}
