package rbd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/step"
)

// hang starts a call that runs until free is called, and returns its result.
func hang(ctx context.Context, calls *rbd.Calls, what string) (result chan error, free func()) {
	started, release := make(chan struct{}), make(chan struct{})
	result = make(chan error, 1)
	go func() {
		_, err := rbd.Do(ctx, calls, what, func() (int, error) {
			close(started)
			<-release
			return 0, nil
		})
		result <- err
	}()
	<-started
	return result, sync.OnceFunc(func() { close(release) })
}

// until polls a condition.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: did not happen", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func one() (int, error) { return 1, nil }

func TestDoReturnsWhatTheCallReturns(t *testing.T) {
	calls := rbd.NewCalls("main", 1)
	failure := errors.New("broken")
	value, err := rbd.Do(t.Context(), calls, "count", func() (int, error) { return 7, failure })
	if value != 7 || !errors.Is(err, failure) {
		t.Errorf("got %d, %v; want 7, %v", value, err, failure)
	}
	if value, err := rbd.Do(t.Context(), calls, "count", one); value != 1 || err != nil {
		t.Errorf("again: got %d, %v; want 1", value, err)
	}
}

func TestDoCatchesPanics(t *testing.T) {
	calls := rbd.NewCalls("main", 1)
	_, err := rbd.Do(t.Context(), calls, "count", func() (int, error) { panic("oh") })
	if err == nil || fault.Of(err) != fault.Internal || !strings.Contains(err.Error(), "oh") {
		t.Errorf("got %v, want %v that says oh", err, fault.Internal)
	}
	if _, err := rbd.Do(t.Context(), calls, "count", one); err != nil {
		t.Errorf("the slot was not given back: %v", err)
	}
}

func TestDoTellsTheStep(t *testing.T) {
	ctx, watcher := step.Watch(t.Context())
	_, err := rbd.Do(ctx, rbd.NewCalls("main", 1), "read the header of v1", one)
	if what, _ := watcher.Latest(); what != "read the header of v1" || err != nil {
		t.Errorf("got step %q, %v; want the call's", what, err)
	}
}

func TestDoLetsTheCallerGo(t *testing.T) {
	calls := rbd.NewCalls("main", 2)
	ctx, cancel := context.WithCancel(t.Context())
	result, free := hang(ctx, calls, "write the name")
	defer free()
	cancel()
	err := <-result
	if !fault.Is(err, fault.Unknown) {
		t.Fatalf("got %v, want %v", err, fault.Unknown)
	}
	for _, part := range []string{"write the name", "cluster main", "since"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got %q, want %q in it", err, part)
		}
	}
	if hanging := calls.Hanging(); len(hanging) != 1 || !strings.Contains(hanging[0], "write the name") {
		t.Errorf("got %q hanging, want the one call", hanging)
	}
	if _, err := rbd.Do(t.Context(), calls, "count", one); err != nil {
		t.Errorf("with a slot free: %v", err)
	}
	free()
	until(t, "nothing hangs", func() bool { return len(calls.Hanging()) == 0 })
}

func TestDoRefusesWhenAllSlotsHang(t *testing.T) {
	calls := rbd.NewCalls("main", 2)
	ctx, cancel := context.WithCancel(t.Context())
	first, freeFirst := hang(ctx, calls, "the oldest")
	second, freeSecond := hang(ctx, calls, "the second")
	defer freeFirst()
	defer freeSecond()
	waiting := make(chan error, 1)
	watched, watcher := step.Watch(t.Context())
	go func() {
		_, err := rbd.Do(watched, calls, "the third", one)
		waiting <- err
	}()
	until(t, "the third waits", func() bool { what, _ := watcher.Latest(); return strings.Contains(what, "waiting") })
	cancel()
	<-first
	<-second
	_, err := rbd.Do(t.Context(), calls, "the fourth", one)
	for name, err := range map[string]error{"who waited": <-waiting, "who came later": err} {
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "the oldest") || !strings.Contains(err.Error(), "since") {
			t.Errorf("%s: got %v, want %v that names the oldest call", name, err, fault.Unavailable)
		}
	}
	freeFirst()
	until(t, "a slot is free", func() bool {
		_, err := rbd.Do(t.Context(), calls, "the fifth", one)
		return err == nil
	})
	// Calls that came back do not count any more: behind live ones there is a queue.
	freeSecond()
	until(t, "nothing hangs", func() bool { return len(calls.Hanging()) == 0 })
	_, freeThird := hang(t.Context(), calls, "live")
	defer freeThird()
	_, freeFourth := hang(t.Context(), calls, "live")
	defer freeFourth()
	short, cancelShort := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancelShort()
	if _, err = rbd.Do(short, calls, "the sixth", one); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("behind live calls: got %v, want to wait until %v", err, context.DeadlineExceeded)
	}
}

func TestDoWaitsForLiveCalls(t *testing.T) {
	calls := rbd.NewCalls("main", 1)
	result, free := hang(t.Context(), calls, "slow")
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	ran := false
	_, err := rbd.Do(short, calls, "impatient", func() (int, error) { ran = true; return 0, nil })
	if !fault.Is(err, fault.Unavailable) || ran {
		t.Errorf("impatient: got %v, ran %v; want %v and not run", err, ran, fault.Unavailable)
	}
	canceled, cancelNow := context.WithCancel(t.Context())
	cancelNow()
	if _, err := rbd.Do(canceled, calls, "gone", one); !fault.Is(err, fault.Canceled) {
		t.Errorf("gone: got %v, want %v", err, fault.Canceled)
	}
	patient := make(chan error, 1)
	watched, watcher := step.Watch(t.Context())
	go func() {
		_, err := rbd.Do(watched, calls, "patient", one)
		patient <- err
	}()
	until(t, "patient waits", func() bool { what, _ := watcher.Latest(); return strings.Contains(what, "waiting") })
	free()
	if err := <-patient; err != nil {
		t.Errorf("patient: %v", err)
	}
	if err := <-result; err != nil {
		t.Errorf("slow: %v", err)
	}
}

// TestDoNeverExceedsItsSlots runs many calls with callers who leave at any time.
func TestDoNeverExceedsItsSlots(t *testing.T) {
	const slots, callers = 4, 400
	calls := rbd.NewCalls("main", slots)
	var now, most atomic.Int64
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*100*time.Microsecond)
			defer cancel()
			_, err := rbd.Do(ctx, calls, fmt.Sprint("call ", i), func() (int, error) {
				running := now.Add(1)
				defer now.Add(-1)
				for old := most.Load(); running > old && !most.CompareAndSwap(old, running); old = most.Load() {
				}
				time.Sleep(50 * time.Microsecond) // the work
				return 0, nil
			})
			if err != nil && !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Unknown) {
				t.Errorf("got %v, want nil, %v or %v", err, fault.Unavailable, fault.Unknown)
			}
		})
	}
	group.Wait()
	until(t, "all return", func() bool { return len(calls.Hanging()) == 0 && now.Load() == 0 })
	if most.Load() > slots {
		t.Errorf("got %d at once, want at most %d", most.Load(), slots)
	}
	// Every slot came back.
	var results []chan error
	for range slots {
		result, free := hang(t.Context(), calls, "again")
		defer free()
		results = append(results, result)
	}
	if len(results) != slots {
		t.Errorf("got %d slots, want %d", len(results), slots)
	}
}
