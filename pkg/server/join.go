package server

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/step"
)

// The caller is answered a tenth of its remaining time before its deadline,
// and at most maxHeadStart. A client whose deadline has passed makes up its own
// "context deadline exceeded" and never sees an answer that says what hangs.
const (
	headStart    = 10
	maxHeadStart = 500 * time.Millisecond
)

// joined runs a request by the class of its method (see there).
//
// A working request that equals the last one in its queue joins it: it waits
// as long as its own deadline lets it and gets the same answer. If another
// request came in between, the repeat queues behind that: joining over its head
// would leave the volume in the state that was asked for before, not last.
//
// Work that has begun is not interrupted when its callers leave; what they
// asked for is likely to be asked for again, and then joins it. Work that has
// not begun is dropped when nobody waits for it any more, because it would
// come too late: an unpublish that its caller gave up must not follow upon the
// publish that the caller decided for afterwards.
//
// A caller that leaves gets an error of kind Unknown that names the request,
// the step it is at, and since when. It holds moments and not durations, so
// that a repeated failure has the same text and Kubernetes counts one event up
// instead of recording many.
func (t *works) joined(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if methods[info.FullMethod].class == instant {
		return call(ctx, req, handler, t.figures)
	}
	asked, err := t.newWork(ctx, req, info.FullMethod, handler)
	if err != nil {
		return nil, err
	}
	if methods[info.FullMethod].class == streaming {
		return t.stream(asked)
	}
	running, err := t.enter(asked)
	if err != nil {
		return nil, err
	}
	if running != asked {
		klog.FromContext(ctx).V(look).Info("Joined")
	}
	return t.wait(ctx, running)
}

// newWork makes a work of a request, to be entered.
func (t *works) newWork(ctx context.Context, req any, fullMethod string, handler grpc.UnaryHandler) (*work, error) {
	w := &work{
		method: fullMethod,
		title:  title(fullMethod, req),
		share:  t.share(req),
		asked:  time.Now(),
		done:   make(chan struct{}),
		ctx:    ctx,
	}
	if row := methods[fullMethod]; row.class == working {
		var err error
		if w.print, err = t.prints.of(fullMethod, req); err != nil {
			return nil, err
		}
		w.ctx = context.WithoutCancel(ctx)
		w.queue = queue{service: path.Dir(fullMethod), field: row.queue, value: fieldText(req, row.queue)}
	}
	w.ctx, w.step = step.Watch(w.ctx)
	w.run = func(ctx context.Context) (any, error) { return call(ctx, req, handler, t.figures) }
	return w, nil
}

// stream runs a work whose answer is a stream, here and now. Its context ends as early as
// the caller of another request would be let go, so that the service still can say
// what it was at.
func (t *works) stream(w *work) (any, error) {
	t.mu.Lock()
	err := t.admit(w)
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	ctx, cancel := t.patience(w.ctx)
	defer cancel()
	defer context.AfterFunc(t.ended, cancel)()
	resp, err := w.run(ctx)
	t.finish(w, resp, err)
	return resp, err
}

// wait waits for w's answer as long as the caller can.
func (t *works) wait(ctx context.Context, w *work) (any, error) {
	patience, cancel := t.patience(ctx)
	defer cancel()
	select {
	case <-w.done:
		return w.resp, w.err
	case <-patience.Done():
		return t.leave(patience, w)
	}
}

// patience returns ctx with the moment when the caller has to be answered.
func (t *works) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithTimeout(ctx, t.timeout)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/headStart, maxHeadStart)))
}

// goneError is what a caller hears that leaves before w's answer is there.
func goneError(ctx context.Context, w *work, state string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s: %s, its caller left: %w", w.title, state, fault.Canceled)
	}
	return fmt.Errorf("%s: %s: %w", w.title, state, fault.Unknown)
}

// fieldText returns a string field of a request by its name in csi.proto.
func fieldText(req any, name string) string {
	message := req.(proto.Message).ProtoReflect()
	return message.Get(message.Descriptor().Fields().ByName(protoreflect.Name(name))).String()
}
