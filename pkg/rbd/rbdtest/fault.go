package rbdtest

import (
	"errors"
	"fmt"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// When says where in a call a [Fault] strikes.
type When int

const (
	// Before means that the call fails and nothing was done.
	Before When = iota
	// After means that the call took effect and the answer was lost.
	After
	// Late means that the call fails now and takes effect at [Ceph.Land], as an
	// operation that was sent, given up on, and reached its OSD in the end.
	Late
)

// String returns the word for a subtest's name.
func (w When) String() string { return [...]string{"before", "after", "late"}[w] }

// Always is a number of times without end.
const Always = -1

// A Fault makes calls of one process fail.
type Fault struct {
	Method string // as in rbd.Pool or rbd.Clusters, for instance AddName; "" for any
	About  string // the image's name or ID that the call is about; "" for any
	When   When
	// Err is what the call returns: nil stands for fault.Unavailable before, and
	// fault.Unknown otherwise.
	Err error
	// Kill ends the process here: this call and every later one of the process
	// fails, and later ones do nothing. Another process goes on.
	Kill  bool
	Skip  int // so many calls that match are let pass first
	Times int // how often it strikes; 0 means once
}

// Fail adds a fault. When several match one call, the first added strikes.
func (p *Process) Fail(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.Times == 0 {
		f.Times = 1
	}
	p.faults = append(p.faults, &f)
}

// Heal forgets all faults that were not used up. A killed process stays dead.
func (p *Process) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = nil
}

// Killed reports whether a fault ended the process.
func (p *Process) Killed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.killed
}

// strike returns the fault that hits a call, or nil; the caller holds p.mu.
func (p *Process) strike(call Call) *Fault {
	for _, f := range p.faults {
		matches := (f.Method == "" || f.Method == call.Method) && (f.About == "" || f.About == call.About)
		switch {
		case !matches || f.Times == 0:
		case f.Skip > 0:
			f.Skip--
		default:
			if f.Times > 0 {
				f.Times--
			}
			return f
		}
	}
	return nil
}

// error returns what a call that was struck answers.
func (f *Fault) error(call Call) error {
	switch {
	case f.Kill:
		return killed(call)
	case f.Err != nil:
		return fmt.Errorf("%s %s: injected %s: %w", call.Method, call.About, f.When, f.Err)
	case f.When == Before:
		return fmt.Errorf("%s %s: injected: %w", call.Method, call.About, fault.Unavailable)
	}
	return fmt.Errorf("%s %s: injected %s: %w", call.Method, call.About, f.When, fault.Unknown)
}

// killed is what the calls of a dead process return. Nobody reads it in a real
// one; the kind is the one that lets a test's policy code give up.
func killed(call Call) error {
	return fmt.Errorf("%s %s: %w: %w", call.Method, call.About, fault.Unavailable, errors.New("this process was killed"))
}

// Land lets every operation that a Late fault held back take effect, in the
// order in which they were sent. What fails now fails silently.
func (c *Ceph) Land() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, effect := range c.late {
		effect()
	}
	c.late = nil
}
