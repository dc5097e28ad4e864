// Package progress tells a user what long work does, and how far it is.
package progress

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// A Narrator tells what is done, and when. It may be used by several goroutines.
type Narrator struct {
	who   string
	mu    sync.Mutex
	out   io.Writer
	begun time.Time
}

// NewNarrator returns a Narrator whose lines begin with who tells them, and with the time from now. Out may be nil.
func NewNarrator(out io.Writer, who string) *Narrator {
	if out == nil {
		out = io.Discard
	}
	return &Narrator{who: who, out: out, begun: time.Now()}
}

// Line tells that something was done.
func (n *Narrator) Line(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	// Nobody may read it any more, and what is done goes on nevertheless.
	_, _ = fmt.Fprintf(n.out, "%-5s %5.1f s  %s\n", n.who+":", time.Since(n.begun).Seconds(), fmt.Sprintf(format, args...))
}

// sayEvery is how often a long step says that it goes on.
const sayEvery = 15 * time.Second

// A Step is a part of the work that takes long enough to be told about.
type Step struct {
	who    string
	begun  time.Time
	out    io.Writer
	counts func() string
	done   chan struct{}
	said   sync.WaitGroup
}

// Begin says that a step begins and how long it usually takes, and from then on how far it is, until its End. Counts says what was done so
// far, as ", 3 of something"; it is called by another goroutine, and may be nil.
func Begin(out io.Writer, who, what string, usual time.Duration, counts func() string) *Step {
	if counts == nil {
		counts = func() string { return "" }
	}
	s := &Step{who: who, begun: time.Now(), out: out, counts: counts, done: make(chan struct{})}
	fmt.Fprintf(out, "%s: %s (cold: about %s on two cores)\n", who, what, usual)
	s.said.Go(s.sayOn)
	return s
}

func (s *Step) sayOn() {
	ticker := time.NewTicker(sayEvery)
	defer ticker.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-ticker.C:
			fmt.Fprintf(s.out, "%s:   %3.0f s%s\n", s.who, time.Since(s.begun).Seconds(), s.counts())
		}
	}
}

// End says how long the step took. A failure is for the caller to tell.
func (s *Step) End(err error) {
	close(s.done)
	s.said.Wait()
	if err == nil {
		fmt.Fprintf(s.out, "%s:   done in %.1f s%s\n", s.who, time.Since(s.begun).Seconds(), s.counts())
	}
}
