package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/test/driver"
)

// An asker asks as sidecars and kubelet do.
type asker struct {
	random *rand.Rand // which controller is asked first
	twice  bool       // each request to the controllers comes a second time, from two sides at once
}

// ask repeats a request to the controllers until one answers. A sidecar's next leader may ask
// the other controller, and where two of them think that they lead, both are asked at once.
func (w *world) ask(ctx context.Context, a asker, what string, do func(context.Context, *driver.Process) error) error {
	first := a.random.IntN(2)
	turn := func(offset int) func() *mortal {
		next := first + offset
		return func() *mortal {
			next++
			return w.controllers[next%len(w.controllers)]
		}
	}
	if !a.twice {
		return a.repeat(ctx, what, turn(0), do)
	}
	second := make(chan error, 1)
	go func() { second <- a.repeat(ctx, what, turn(1), do) }()
	return errors.Join(a.repeat(ctx, what, turn(0), do), <-second)
}

const (
	// requestTimeout is what a sidecar allows a request, or less: 15 s is external-attacher's default.
	requestTimeout = 15 * time.Second
	firstBackoff   = 20 * time.Millisecond
	longestBackoff = time.Second
)

// repeat repeats a request, as sidecars and kubelet do, until it is answered with OK. An
// answer that they would take for final is one that must not be.
func (a asker) repeat(ctx context.Context, what string, whom func() *mortal, do func(context.Context, *driver.Process) error) error {
	for backoff := firstBackoff; ; backoff = min(backoff*2, longestBackoff) {
		p := whom()
		begun := time.Now()
		try, cancel := context.WithTimeout(ctx, requestTimeout)
		err := do(try, p.Process)
		cancel()
		if err == nil {
			p.tell(time.Since(begun))
			return nil
		}
		if !driver.StillGoing(err) && !goesOnAnyway(what, err) {
			return fmt.Errorf("%s: %w", what, err)
		}
		again := time.NewTimer(backoff)
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: given up; the last answer: %w", what, err)
		}
	}
}

// goesOnAnyway reports that a volume cannot be taken down this moment, because a tool that
// was killed together with its node has not ended yet. kubelet repeats taking down whatever the answer is.
func goesOnAnyway(what string, err error) bool {
	return strings.HasPrefix(what, unstaging) && status.Code(err) == codes.FailedPrecondition
}

// unstaging begins the name of requests to unstage.
const unstaging = "unstage"

// tell tells the killer of an answer. It must not wait for it.
func (m *mortal) tell(took time.Duration) {
	select {
	case m.answered <- took:
	default:
	}
}
