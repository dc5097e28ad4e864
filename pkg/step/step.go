// Package step tells, from outside, what a running request is doing right now.
//
// The layers that do the work say where they are:
//
//	step.Set(ctx, "connecting to cluster", cluster)
//
// and whoever waits for them reads it with the [Watcher] that was put into the
// context. So a request that hangs can be answered with the step it hangs in
// and since when, instead of "operation already exists". The package asks
// nobody and knows nobody; without a watcher Set costs a lookup in the context.
package step

import (
	"context"
	"strings"
	"sync/atomic"
	"time"
)

type contextKey struct{}

// A Watcher sees the latest step set under its context. Its methods may be
// called at any time from any goroutine.
type Watcher struct {
	latest atomic.Pointer[place]
}

// A place is one step and the moment it was entered. It is never changed.
type place struct {
	what  string
	since time.Time
}

// Watch returns a context whose steps the returned Watcher sees. A watcher
// further up in ctx does not see them any more.
func Watch(ctx context.Context) (context.Context, *Watcher) {
	watcher := &Watcher{}
	return context.WithValue(ctx, contextKey{}, watcher), watcher
}

// Set says what is being done from now on, as a phrase like "connecting to
// cluster a"; the words are put together with spaces. Name what the reader of
// an error would look for (the step, the cluster, the image), never a secret.
//
// Setting the same phrase again keeps the time of the first: a loop of
// attempts counts as one step. Set may be called from several goroutines of a
// request; the latest call counts. Without a watcher in ctx it does nothing
// and allocates nothing.
func Set(ctx context.Context, words ...string) {
	watcher, ok := ctx.Value(contextKey{}).(*Watcher)
	if !ok {
		return
	}
	what := strings.Join(words, " ")
	if latest := watcher.latest.Load(); latest != nil && latest.what == what {
		return
	}
	watcher.latest.Store(&place{what: what, since: time.Now()})
}

// Latest returns the latest step and when it was entered, or an empty string
// and the zero time if none was set yet. A nil Watcher has seen none.
func (w *Watcher) Latest() (what string, since time.Time) {
	if w == nil {
		return "", time.Time{}
	}
	latest := w.latest.Load()
	if latest == nil {
		return "", time.Time{}
	}
	return latest.what, latest.since
}
