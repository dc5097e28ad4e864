package server

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/step"
)

// A queue is what works wait for each other by: the value of the method's
// queue field. Handles of volumes and names of volumes to be made are kept
// apart by the field. Controller and node are kept apart by the service: where
// one process serves both, a detach that a dead cluster holds up must not hold
// up an unmount. The zero queue is that of reading requests: they do not wait.
type queue struct{ service, field, value string }

// A work is one run of a service's handler, with the callers who wait for it.
type work struct {
	method string // as in gRPC
	title  string // for people, like "CreateVolume pvc-1"
	queue  queue
	share  string // see Options.Share
	print  fingerprint
	asked  time.Time
	ctx    context.Context
	step   *step.Watcher
	run    func(context.Context) (any, error)

	// Guarded by the works.
	begun   time.Time // zero while it waits for its turn
	callers int

	// done is closed when resp and err are there; they do not change then.
	done chan struct{}
	resp any
	err  error
}

// works holds the works that run or wait, and bounds their number. Each queue
// with works in it has one goroutine, each running reading request has one,
// and nothing else does; drained waits for them.
type works struct {
	limit   int // of each share, see Options
	share   func(request any) string
	timeout time.Duration
	figures *metrics
	prints  *fingerprinter
	ended   context.Context // ends when all works have to
	end     context.CancelFunc

	mu     sync.Mutex
	queues map[queue][]*work // the first of each runs
	queued tally
	reads  map[*work]struct{}
	read   tally
	idle   chan struct{} // if not nil, closed when nothing is left
}

func newWorks(limit int, share func(any) string, timeout time.Duration, figures *metrics) *works {
	t := &works{
		limit:   limit,
		share:   share,
		timeout: timeout,
		figures: figures,
		prints:  newFingerprinter(),
		queues:  map[queue][]*work{},
		queued:  tally{of: map[string]int{}},
		reads:   map[*work]struct{}{},
		read:    tally{of: map[string]int{}},
	}
	t.ended, t.end = context.WithCancel(context.Background())
	return t
}

// enter returns the work whose answer the caller of asked waits for: an equal
// one that is the last in its queue, or asked itself, which then runs or
// queues. The caller owes wait or leave.
func (t *works) enter(asked *work) (*work, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	asked.callers = 1
	if asked.queue == (queue{}) {
		return asked, t.look(asked)
	}
	waiting := t.queues[asked.queue]
	if n := len(waiting); n > 0 && waiting[n-1].print == asked.print {
		waiting[n-1].callers++
		t.figures.joined.WithLabelValues(asked.method).Inc()
		return waiting[n-1], nil
	}
	if count := t.queued.of[asked.share]; count >= t.limit {
		return nil, t.refuse(asked, count)
	}
	t.queued.add(asked.share, 1)
	t.queues[asked.queue] = append(waiting, asked)
	if len(waiting) == 0 {
		asked.begun = time.Now()
		go t.serve(asked)
	}
	return asked, nil
}

// look starts a reading request.
func (t *works) look(asked *work) error {
	if err := t.admit(asked); err != nil {
		return err
	}
	go t.serve(asked)
	return nil
}

// admit counts a request that only reads among those that run, if there is room.
func (t *works) admit(asked *work) error {
	if count := t.read.of[asked.share]; count >= t.limit {
		return t.refuse(asked, count)
	}
	t.read.add(asked.share, 1)
	t.reads[asked] = struct{}{}
	asked.begun = time.Now()
	return nil
}

// refuse says why there is no room, and what has been there longest.
func (t *works) refuse(asked *work, count int) error {
	t.figures.refused.WithLabelValues(asked.method).Inc()
	ofShare := func(w *work) bool { return w.share == asked.share }
	return fmt.Errorf("%s: %d requests are running or waiting, the oldest is %s: %w",
		asked.title, count, t.oldest(ofShare), fault.Unavailable)
}

// serve runs w and then what waits behind it, one after the other.
func (t *works) serve(w *work) {
	for w != nil {
		ctx, cancel := context.WithTimeout(w.ctx, t.timeout)
		stop := context.AfterFunc(t.ended, cancel)
		resp, err := w.run(ctx)
		stop()
		cancel()
		w = t.finish(w, resp, err)
	}
}

// finish hands w's answer to its callers and returns the work whose turn it is.
func (t *works) finish(w *work, resp any, err error) (next *work) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.resp, w.err = resp, err
	close(w.done)
	w.logIfAbandoned()
	if w.queue == (queue{}) {
		delete(t.reads, w)
		t.read.add(w.share, -1)
	} else {
		t.queued.add(w.share, -1)
		next = t.advance(w.queue)
	}
	t.noticeIdle()
	return next
}

// advance takes the first work from its queue and lets the next one begin.
func (t *works) advance(q queue) *work {
	waiting := t.queues[q][1:]
	if len(waiting) == 0 {
		delete(t.queues, q)
		return nil
	}
	t.queues[q] = waiting
	waiting[0].begun = time.Now()
	return waiting[0]
}

// leave lets a caller go without an answer, unless there is one after all.
func (t *works) leave(ctx context.Context, w *work) (any, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-w.done:
		return w.resp, w.err
	default:
	}
	w.callers--
	if !w.begun.IsZero() {
		return nil, goneError(ctx, w, w.state())
	}
	err := goneError(ctx, w, fmt.Sprintf("%s behind %s", w.state(), t.queues[w.queue][0]))
	if w.callers == 0 {
		t.queued.add(w.share, -1)
		t.queues[w.queue] = slices.DeleteFunc(t.queues[w.queue], func(other *work) bool { return other == w })
	}
	return nil, err
}

// drained waits until nothing runs, or until ctx ends. Then the error, of kind
// Unknown, names the oldest work.
func (t *works) drained(ctx context.Context) error {
	t.mu.Lock()
	idle := make(chan struct{})
	t.idle = idle
	t.noticeIdle()
	t.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	oldest := t.oldest(func(*work) bool { return true })
	if oldest == nil {
		return nil
	}
	return fmt.Errorf("stop with %d requests left, the oldest is %s: %w",
		t.queued.all+t.read.all, oldest, fault.Unknown)
}

func (t *works) noticeIdle() {
	if t.idle != nil && t.queued.all == 0 && t.read.all == 0 {
		close(t.idle)
		t.idle = nil
	}
}

// A tally counts works.
type tally struct {
	all int
	of  map[string]int // by share; those without any have no entry
}

func (t *tally) add(share string, n int) {
	t.all += n
	if t.of[share] += n; t.of[share] == 0 {
		delete(t.of, share)
	}
}

// oldest returns which of the wanted has been running longest, or nil.
func (t *works) oldest(wanted func(*work) bool) *work {
	var oldest *work
	consider := func(w *work) {
		if !wanted(w) {
			return
		}
		if oldest == nil || w.begun.Before(oldest.begun) {
			oldest = w
		}
	}
	for _, waiting := range t.queues {
		consider(waiting[0])
	}
	for w := range t.reads {
		consider(w)
	}
	return oldest
}

// String names w and tells its state.
func (w *work) String() string { return fmt.Sprintf("%s (%s)", w.title, w.state()) }

// state says for people what w is at: "running since 2026-01-02T03:04:05Z,
// connecting to cluster a since 2026-01-02T03:04:06Z".
func (w *work) state() string {
	if w.begun.IsZero() {
		return "waiting since " + moment(w.asked)
	}
	text := "running since " + moment(w.begun)
	if what, since := w.step.Latest(); what != "" {
		text += ", " + what + " since " + moment(since)
	}
	return text
}

// logIfAbandoned writes the line about a work that no request writes any more.
func (w *work) logIfAbandoned() {
	if w.callers > 0 || w.queue == (queue{}) {
		return
	}
	log := klog.FromContext(w.ctx).WithValues("took", time.Since(w.begun).Round(time.Millisecond).String())
	if w.err != nil {
		log.Error(w.err, "Failed after its callers left", "code", codeOf(w.err).String())
		return
	}
	log.V(change).Info("Done after its callers left")
}

func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// A snapshot is what the metrics tell of the works.
type snapshot struct {
	limit, running, waiting, abandoned int
	oldest                             time.Duration
}

func (t *works) snapshot() snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := snapshot{limit: t.limit, running: len(t.queues), waiting: t.queued.all - len(t.queues)}
	for _, waiting := range t.queues {
		if waiting[0].callers == 0 {
			s.abandoned++
		}
		s.oldest = max(s.oldest, time.Since(waiting[0].begun))
	}
	return s
}
