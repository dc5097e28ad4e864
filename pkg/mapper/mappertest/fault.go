package mappertest

import (
	"context"
	"fmt"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
)

// When says where in a call a [Fault] strikes.
type When int

const (
	// Before means that the call fails and nothing was done.
	Before When = iota
	// After means that the call took effect and the answer was lost.
	After
)

// String returns the word for a subtest's name.
func (w When) String() string { return [...]string{"before", "after"}[w] }

// Always is a number of times without end.
const Always = -1

// A Fault makes calls fail.
type Fault struct {
	Method string // as in mapper.Mapper, for instance Map; "" for any
	About  string // the ID of the image that the call is about; "" for any
	When   When
	// Err is what the call returns: nil stands for fault.Unavailable before, and
	// for fault.Unknown after.
	Err error
	// Kill ends the process here: every later call fails and does nothing, until Restart.
	Kill  bool
	Skip  int // so many calls that match are let pass first
	Times int // how often it strikes; 0 means once
}

// A Call is one call of a method of mapper.Mapper.
type Call struct {
	Method string
	About  string // the ID of the image; "" for Check and Devices
	Err    error  // what it returned, in Calls only
}

// String returns METHOD and what the call is about.
func (c Call) String() string { return c.Method + " " + c.About }

func about(method string, target mapper.Target) Call {
	return Call{Method: method, About: target.ImageID}
}

// Fail adds a fault. When several match one call, the first added strikes.
func (f *Fake) Fail(one Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if one.Times == 0 {
		one.Times = 1
	}
	f.faults = append(f.faults, &one)
}

// Heal forgets all faults that were not used up. A killed process stays dead.
func (f *Fake) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// Killed reports whether a fault ended the process.
func (f *Fake) Killed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.killed
}

// Restart begins the next process on this node. What is mapped stays.
func (f *Fake) Restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.killed = false
}

// OnCall sets a function that is called before each call, in the caller's goroutine and
// without a lock. It may wait.
func (f *Fake) OnCall(hook func(ctx context.Context, call Call)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Calls returns the calls that have ended since the start or the last Reset, in the order
// in which they ended. Calls of a killed process are not among them.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Count returns how many calls of a method are among Calls.
func (f *Fake) Count(method string) int {
	count := 0
	for _, call := range f.Calls() {
		if call.Method == method {
			count++
		}
	}
	return count
}

// Reset forgets the calls. Faults and the hook stay.
func (f *Fake) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = nil
}

// do makes one call: hook, fault, effect, fault, record. The effect runs under the lock.
func (f *Fake) do(ctx context.Context, call Call, effect func() error) error {
	f.mu.Lock()
	hook := f.hook
	f.mu.Unlock()
	if hook != nil {
		hook(ctx, call)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s was not begun: %w", call, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.killed {
		return dead(call)
	}
	struck := f.strike(call)
	f.killed = struck != nil && struck.Kill
	var err error
	if struck == nil || struck.When != Before {
		err = effect()
	}
	if struck != nil {
		err = struck.error(call)
	}
	call.Err = err
	f.calls = append(f.calls, call)
	return err
}

// strike returns the fault that hits a call, or nil; the caller holds f.mu.
func (f *Fake) strike(call Call) *Fault {
	for _, one := range f.faults {
		matches := (one.Method == "" || one.Method == call.Method) && (one.About == "" || one.About == call.About)
		switch {
		case !matches || one.Times == 0:
		case one.Skip > 0:
			one.Skip--
		default:
			if one.Times > 0 {
				one.Times--
			}
			return one
		}
	}
	return nil
}

// error returns what a call that was struck answers.
func (one *Fault) error(call Call) error {
	switch {
	case one.Kill:
		return dead(call)
	case one.Err != nil:
		return fmt.Errorf("%s: injected %s: %w", call, one.When, one.Err)
	case one.When == Before:
		return fmt.Errorf("%s: injected before: %w", call, fault.Unavailable)
	}
	return fmt.Errorf("%s: injected after: %w", call, fault.Unknown)
}

// dead is what calls of a killed process return. Nobody reads it in a real one.
func dead(call Call) error {
	return fmt.Errorf("%s: this process was killed: %w", call, fault.Unavailable)
}
