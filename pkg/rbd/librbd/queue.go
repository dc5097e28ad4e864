package librbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// An imageKey is an image, whoever looks at it.
type imageKey struct {
	fsid      string
	pool      int64
	namespace string
	id        string
}

func (p *pool) imageKey(id string) imageKey {
	return imageKey{p.where.FSID, p.where.PoolID, p.where.Namespace, id}
}

// queues let one caller at a time do something to an image. The zero queues are
// ready; an image that nobody asks for takes no memory.
type queues struct {
	mu     sync.Mutex
	images map[imageKey]*queue
}

// A queue is that of one image.
type queue struct {
	turn  chan struct{} // holds one value while someone has the image
	users int           // who has it and who wait
}

// enter waits for the image until ctx ends. The caller calls done when it is ready.
func (q *queues) enter(ctx context.Context, image imageKey) (done func(), err error) {
	one := q.join(image)
	select {
	case one.turn <- struct{}{}:
		return func() {
			<-one.turn
			q.quit(image, one)
		}, nil
	case <-ctx.Done():
	}
	q.quit(image, one)
	return nil, fmt.Errorf("wait for another call on the image: %w: %w", unsent(ctx), ctx.Err())
}

// unsent is the kind of an error for a caller whose context ended before anything was done.
func unsent(ctx context.Context) fault.Kind {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fault.Canceled
	}
	return fault.Unavailable
}

// doAlone is do for one caller at a time of an image. A call whose caller has gone
// keeps others out until it ends.
func doAlone(ctx context.Context, p *pool, q *queues, id, what string, call func(at) error) error {
	leave, err := q.enter(ctx, p.imageKey(id))
	if err != nil {
		return fmt.Errorf("%s in %s: %w", what, p.where, err)
	}
	leave = sync.OnceFunc(leave)
	var began atomic.Bool
	err = do(ctx, p, what, func(a at) error {
		began.Store(true)
		defer leave()
		return call(a)
	})
	if !began.Load() {
		leave()
	}
	return err
}

func (q *queues) join(image imageKey) *queue {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.images == nil {
		q.images = map[imageKey]*queue{}
	}
	one, found := q.images[image]
	if !found {
		one = &queue{turn: make(chan struct{}, 1)}
		q.images[image] = one
	}
	one.users++
	return one
}

func (q *queues) quit(image imageKey, one *queue) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(q.images, image)
	}
}

// flights let those who want the same of an image wait for one call, also after
// everyone who waited for it has gone. The zero flights are ready.
type flights struct {
	mu     sync.Mutex
	images map[imageKey]*flight
}

// A flight is a call under way.
type flight struct {
	done chan struct{} // closed when it has ended
	err  error         // set before done is closed
}

// join returns the call that is under way for an image, or a new one, and then the
// function by which the caller ends it. Only the first call of that function counts.
func (f *flights) join(image imageKey) (one *flight, end func(error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if one, found := f.images[image]; found {
		return one, nil
	}
	if f.images == nil {
		f.images = map[imageKey]*flight{}
	}
	one = &flight{done: make(chan struct{})}
	f.images[image] = one
	var once sync.Once
	return one, func(err error) {
		once.Do(func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.images, image)
			one.err = err
			close(one.done)
		})
	}
}
