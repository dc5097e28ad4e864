// Package filesystemtest has a node in memory, the [Fake], and the [Suite] that
// it and the real node have to pass.
package filesystemtest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// A Fake is a node whose mount table is in memory, while the targets are real directories
// and files, because callers look at them.
//
// Its devices are regular files, as mappertest makes them: a filesystem is a line of text
// at the beginning of the file (see disk), so it goes where the file goes. It survives that the
// file is mapped and unmapped, it is seen by the Fake of another node, and a copy of the
// file is a clone with the same UUID. Devices that are no files are made with [Fake.Device].
//
// What is written into the directory where a filesystem is mounted is kept in it
// at Unmount and comes back with the next Mount. A bound directory begins as a
// copy of its source and gives back what it has at Unmount.
//
// The table outlives the driver: Kill in a [Fault] ends the process, [Fake.Restart] begins
// the next one on the same node. All methods may be called at once.
type Fake struct {
	mu      sync.Mutex
	devices map[string]*device
	mounts  []*mount
	// protected tells whether a device can only be read.
	protected func(path string) bool

	faults []*Fault
	killed bool
	hook   func(ctx context.Context, call Call)
	calls  []Call
}

var _ filesystem.Host = (*Fake)(nil)

// NewFake returns a node on which nothing is mounted.
func NewFake() *Fake {
	return &Fake{devices: map[string]*device{}, protected: func(string) bool { return false }}
}

// When says where in a call a [Fault] strikes.
type When int

const (
	// Before means that the call fails and nothing was done.
	Before When = iota
	// During means that mkfs was interrupted: the device shows a filesystem that cannot be
	// mounted. For methods other than Format it is After.
	During
	// After means that the call took effect and the answer was lost.
	After
)

// String returns the word for a subtest's name.
func (w When) String() string { return [...]string{"before", "during", "after"}[w] }

// Always is a number of times without end.
const Always = -1

// A Fault makes calls fail.
type Fault struct {
	Method string // as in filesystem.Host; "" for any
	About  string // the device or the path that the call is about; "" for any
	When   When
	// Err is what the call returns: nil stands for fault.Unavailable before, and
	// for fault.Unknown otherwise.
	Err error
	// Kill ends the process here: every later call fails and does nothing, until Restart.
	Kill  bool
	Skip  int // so many calls that match are let pass first
	Times int // how often it strikes; 0 means once
}

// A Call is one call of a method of filesystem.Host.
type Call struct {
	Method string
	About  string // the device for Probe, Format, Check, Uses and Grow, otherwise the path
	Err    error  // what it returned, in Calls only
}

// String returns METHOD and what the call is about.
func (c Call) String() string { return c.Method + " " + c.About }

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

// Restart begins the next process on this node. What is mounted stays.
func (f *Fake) Restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.killed = false
}

// OnCall sets a function that is called before each call, in the caller's goroutine and without a
// lock. It may wait.
func (f *Fake) OnCall(hook func(ctx context.Context, call Call)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Calls returns the calls that have ended since the start or the last Reset, in the order in which
// they ended. Calls of a killed process are not among them.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Reset forgets the calls. Faults and the hook stay.
func (f *Fake) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = nil
}

// do makes one call: hook, fault, effect, fault, record. The effect runs under the lock.
func (f *Fake) do(ctx context.Context, call Call, effect func(struck *Fault) error) error {
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
		err = effect(struck)
	}
	if struck != nil {
		err = struck.error(call)
	}
	call.Err = err
	f.calls = append(f.calls, call)
	return err
}

// strike returns the fault that hits a call, or nil.
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
	return fmt.Errorf("%s: injected %s: %w", call, one.When, fault.Unknown)
}

// dead is what calls of a killed process return. Nobody reads it in a real one.
func dead(call Call) error {
	return fmt.Errorf("%s: this process was killed: %w", call, fault.Unavailable)
}
