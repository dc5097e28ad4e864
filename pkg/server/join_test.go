package server

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/step"
)

// The tests run in bubbles of package synctest: time is made up there, so
// hours pass at once, and a bubble fails if a goroutine is left in it.

const (
	createVolume = csi.Controller_CreateVolume_FullMethodName
	deleteVolume = csi.Controller_DeleteVolume_FullMethodName
	listVolumes  = csi.Controller_ListVolumes_FullMethodName
	unpublish    = csi.Controller_ControllerUnpublishVolume_FullMethodName
	nodeUnstage  = csi.Node_NodeUnstageVolume_FullMethodName
)

// A backend is the handler behind the chain. Each run of it waits until the
// test lets it go on.
type backend struct {
	server *Server
	mu     sync.Mutex
	runs   []*run
}

// A run is one call of the handler.
type run struct {
	req    any
	ctx    context.Context
	answer chan error // what the test lets it return
}

func newBackend(options Options) *backend {
	if options.Logger.GetSink() == nil {
		options.Logger, _ = newLog()
	}
	return &backend{server: New(options)}
}

func (b *backend) handle(ctx context.Context, req any) (any, error) {
	one := &run{req: req, ctx: ctx, answer: make(chan error, 1)}
	b.mu.Lock()
	b.runs = append(b.runs, one)
	b.mu.Unlock()
	if err := <-one.answer; err != nil {
		return nil, err
	}
	return one, nil
}

// A pending is a request on its way; its fields may be read when done is closed.
type pending struct {
	done chan struct{}
	resp any
	err  error
}

// ask sends a request and returns when everything that can happen has.
func (b *backend) ask(ctx context.Context, fullMethod string, req proto.Message) *pending {
	one := &pending{done: make(chan struct{})}
	go func() {
		one.resp, one.err = b.server.unary(ctx, req, &grpc.UnaryServerInfo{FullMethod: fullMethod}, b.handle)
		close(one.done)
	}()
	synctest.Wait()
	return one
}

// let makes the i-th run return err, and waits for what follows.
func (b *backend) let(i int, err error) {
	b.run(i).answer <- err
	synctest.Wait()
}

func (b *backend) run(i int) *run {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.runs[i]
}

func (b *backend) expectRuns(t *testing.T, want ...any) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var got []any
	for _, one := range b.runs {
		got = append(got, one.req)
	}
	if !slices.EqualFunc(got, want, func(a, b any) bool { return proto.Equal(a.(proto.Message), b.(proto.Message)) }) {
		t.Errorf("got runs %v, want %v", got, want)
	}
}

func (c *pending) isDone() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *pending) expect(t *testing.T, want codes.Code, text string) {
	t.Helper()
	if !c.isDone() {
		t.Errorf("got no answer, want %v", want)
		return
	}
	expectStatus(t, c.err, want, text)
}

func (c *pending) expectWaiting(t *testing.T) {
	t.Helper()
	if c.isDone() {
		t.Errorf("got the answer %v, %v, want the call to wait", c.resp, c.err)
	}
}

// limited returns a context with a deadline. It is not cancelled before.
func limited(t *testing.T, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func TestIdenticalRequestsRunOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{})
		first := b.ask(t.Context(), createVolume, createRequest("pvc-1", 1))
		second := b.ask(t.Context(), createVolume, createRequest("pvc-1", 1))
		b.expectRuns(t, createRequest("pvc-1", 1))
		b.let(0, nil)
		first.expect(t, codes.OK, "")
		second.expect(t, codes.OK, "")
		if first.resp != second.resp {
			t.Errorf("got %v and %v, want the same answer", first.resp, second.resp)
		}

		third := b.ask(t.Context(), createVolume, createRequest("pvc-1", 1))
		b.let(1, fmt.Errorf("image a: %w", fault.Exists))
		third.expect(t, codes.AlreadyExists, "image a")
	})
}

func TestDifferentRequestsQueueInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{})
		one, two, three := createRequest("pvc-1", 1), createRequest("pvc-1", 2), createRequest("pvc-1", 3)
		first := b.ask(t.Context(), createVolume, one)
		second := b.ask(t.Context(), createVolume, two)
		third := b.ask(t.Context(), createVolume, three)
		b.expectRuns(t, one)
		b.let(0, nil)
		first.expect(t, codes.OK, "")
		second.expectWaiting(t)
		b.expectRuns(t, one, two)
		b.let(1, fault.Exhausted)
		second.expect(t, codes.ResourceExhausted, "")
		b.expectRuns(t, one, two, three)
		b.let(2, nil)
		third.expect(t, codes.OK, "")
	})
}

func TestWhatQueuesByWhat(t *testing.T) {
	snapshot := &csi.CreateSnapshotRequest{SourceVolumeId: "v", Name: "s"}
	remove := &csi.DeleteVolumeRequest{VolumeId: "v"}
	for _, test := range []struct {
		name         string
		firstMethod  string
		first        proto.Message
		secondMethod string
		second       proto.Message
		wantWaits    bool
	}{
		{"same volume, two methods", deleteVolume, remove, unpublish, &csi.ControllerUnpublishVolumeRequest{VolumeId: "v"}, true},
		{"two volumes", deleteVolume, remove, deleteVolume, &csi.DeleteVolumeRequest{VolumeId: "w"}, false},
		{"two names", createVolume, createRequest("a", 1), createVolume, createRequest("b", 1), false},
		{"a name like a handle", createVolume, createRequest("v", 1), deleteVolume, remove, false},
		{"controller and node", deleteVolume, remove, nodeUnstage,
			&csi.NodeUnstageVolumeRequest{VolumeId: "v", StagingTargetPath: "/s"}, false},
		{"two snapshots of a volume", csi.Controller_CreateSnapshot_FullMethodName, snapshot,
			csi.Controller_CreateSnapshot_FullMethodName, &csi.CreateSnapshotRequest{SourceVolumeId: "v", Name: "t"}, true},
		{"the same snapshot of a volume joins", csi.Controller_CreateSnapshot_FullMethodName, snapshot,
			csi.Controller_CreateSnapshot_FullMethodName, &csi.CreateSnapshotRequest{SourceVolumeId: "v", Name: "s"}, true},
		{"snapshots of two volumes", csi.Controller_CreateSnapshot_FullMethodName, snapshot,
			csi.Controller_CreateSnapshot_FullMethodName, &csi.CreateSnapshotRequest{SourceVolumeId: "w", Name: "t"}, false},
		{"a snapshot of a volume that is expanded", csi.Controller_ControllerExpandVolume_FullMethodName,
			&csi.ControllerExpandVolumeRequest{VolumeId: "v", CapacityRange: &csi.CapacityRange{RequiredBytes: 1}},
			csi.Controller_CreateSnapshot_FullMethodName, snapshot, false},
		{"two restores of a snapshot", createVolume, restoreRequest("a", "s"), createVolume, restoreRequest("b", "s"), false},
		{"a restore of a snapshot that is deleted", csi.Controller_DeleteSnapshot_FullMethodName,
			&csi.DeleteSnapshotRequest{SnapshotId: "s"}, createVolume, restoreRequest("a", "s"), false},
		{"reading a snapshot that is deleted", csi.Controller_DeleteSnapshot_FullMethodName, &csi.DeleteSnapshotRequest{SnapshotId: "s"},
			csi.Controller_GetSnapshot_FullMethodName, &csi.GetSnapshotRequest{SnapshotId: "s"}, false},
		{"a group of other volumes", csi.GroupController_CreateVolumeGroupSnapshot_FullMethodName, groupRequest("g", "v"),
			csi.GroupController_CreateVolumeGroupSnapshot_FullMethodName, groupRequest("g", "w"), true},
		{"two groups of a volume", csi.GroupController_CreateVolumeGroupSnapshot_FullMethodName, groupRequest("g", "v"),
			csi.GroupController_CreateVolumeGroupSnapshot_FullMethodName, groupRequest("h", "v"), false},
		{"a group with other members", csi.GroupController_DeleteVolumeGroupSnapshot_FullMethodName,
			&csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: "g", SnapshotIds: []string{"s"}},
			csi.GroupController_DeleteVolumeGroupSnapshot_FullMethodName,
			&csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: "g", SnapshotIds: []string{"t"}}, true},
		{"reading a volume that is deleted", deleteVolume, remove,
			csi.Controller_ControllerGetVolume_FullMethodName, &csi.ControllerGetVolumeRequest{VolumeId: "v"}, false},
		{"secrets differ", deleteVolume, &csi.DeleteVolumeRequest{VolumeId: "v", Secrets: map[string]string{"userKey": "a"}},
			deleteVolume, &csi.DeleteVolumeRequest{VolumeId: "v", Secrets: map[string]string{"userKey": "b"}}, true},
		{"the same in another order joins and waits, too", deleteVolume,
			&csi.DeleteVolumeRequest{VolumeId: "v", Secrets: map[string]string{"a": "1", "b": "2"}},
			deleteVolume, &csi.DeleteVolumeRequest{VolumeId: "v", Secrets: map[string]string{"b": "2", "a": "1"}}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBackend(Options{})
				b.ask(t.Context(), test.firstMethod, test.first)
				b.ask(t.Context(), test.secondMethod, test.second)
				if got := len(b.runs) == 1; got != test.wantWaits {
					t.Errorf("second request: got waiting %v, want %v", got, test.wantWaits)
				}
				b.let(0, nil)
				if len(b.runs) == 2 {
					b.let(1, nil)
				}
			})
		})
	}
}

func restoreRequest(name, snapshot string) *csi.CreateVolumeRequest {
	req := createRequest(name, 1)
	req.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snapshot},
	}}
	return req
}

func groupRequest(name string, volumes ...string) *csi.CreateVolumeGroupSnapshotRequest {
	return &csi.CreateVolumeGroupSnapshotRequest{Name: name, SourceVolumeIds: volumes}
}

func TestSecretsThatDifferDoNotJoin(t *testing.T) {
	with := func(key string) *csi.DeleteVolumeRequest {
		return &csi.DeleteVolumeRequest{VolumeId: "v", Secrets: map[string]string{"userKey": key}}
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{})
		wrong := b.ask(t.Context(), deleteVolume, with("wrong"))
		right := b.ask(t.Context(), deleteVolume, with("right"))
		b.let(0, fault.Unauthenticated)
		wrong.expect(t, codes.Unauthenticated, "")
		right.expectWaiting(t)
		b.let(1, nil)
		right.expect(t, codes.OK, "")
	})
}

func TestARepeatDoesNotOvertake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{})
		one, two := createRequest("pvc-1", 1), createRequest("pvc-1", 2)
		b.ask(t.Context(), createVolume, one)
		b.ask(t.Context(), createVolume, two)
		repeat := b.ask(t.Context(), createVolume, one)
		again := b.ask(t.Context(), createVolume, one) // joins what waits
		b.let(0, nil)
		repeat.expectWaiting(t)
		b.let(1, nil)
		b.expectRuns(t, one, two, one)
		b.let(2, nil)
		repeat.expect(t, codes.OK, "")
		again.expect(t, codes.OK, "")
	})
}

func TestWorkGoesOnAfterItsCallerLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logger, logs := newLog()
		b := newBackend(Options{Logger: logger})
		begun := time.Now()
		first := b.ask(limited(t, 10*time.Second), createVolume, createRequest("pvc-1", 1))
		time.Sleep(2 * time.Second)
		step.Set(b.run(0).ctx, "connecting to cluster", "a")
		<-first.done
		if got, want := time.Since(begun), 9500*time.Millisecond; got != want {
			t.Errorf("caller let go after %v, want %v", got, want)
		}
		first.expect(t, codes.DeadlineExceeded, "CreateVolume pvc-1: running since 2000-01-01T00:00:00Z, "+
			"connecting to cluster a since 2000-01-01T00:00:02Z: outcome unknown")

		time.Sleep(time.Minute)
		if err := b.run(0).ctx.Err(); err != nil {
			t.Errorf("got the work's context ended by %v, want it to go on", err)
		}
		repeat := b.ask(limited(t, 10*time.Second), createVolume, createRequest("pvc-1", 1))
		b.expectRuns(t, createRequest("pvc-1", 1))
		<-repeat.done
		if got, want := repeat.err.Error(), first.err.Error(); got != want {
			t.Errorf("second failure: got %q, want the first's text %q", got, want)
		}
		last := b.ask(t.Context(), createVolume, createRequest("pvc-1", 1))
		b.let(0, nil)
		last.expect(t, codes.OK, "")

		abandoned := b.ask(limited(t, time.Second), createVolume, createRequest("pvc-2", 1))
		<-abandoned.done
		b.let(1, fmt.Errorf("image b: %w", fault.Exhausted))
		if got := logs.lines("Failed after its callers left"); len(got) != 1 {
			t.Errorf("got %d lines about the abandoned failure, want 1:\n%s", len(got), logs)
		}
	})
}

func TestWorkThatNobodyWaitsForIsNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{})
		one, two, three := createRequest("pvc-1", 1), createRequest("pvc-1", 2), createRequest("pvc-1", 3)
		b.ask(t.Context(), createVolume, one)
		dropped := b.ask(limited(t, 10*time.Second), createVolume, two)
		b.ask(limited(t, 10*time.Second), createVolume, three)
		kept := b.ask(t.Context(), createVolume, three)
		<-dropped.done
		dropped.expect(t, codes.DeadlineExceeded, "CreateVolume pvc-1: waiting since 2000-01-01T00:00:00Z "+
			"behind CreateVolume pvc-1 (running since 2000-01-01T00:00:00Z): outcome unknown")
		synctest.Wait()
		b.let(0, nil)
		b.expectRuns(t, one, three)
		b.let(1, nil)
		kept.expect(t, codes.OK, "")
	})
}

func TestCallerThatCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{})
		ctx, cancel := context.WithCancel(t.Context())
		gone := b.ask(ctx, createVolume, createRequest("pvc-1", 1))
		cancel()
		synctest.Wait()
		gone.expect(t, codes.Canceled, "caller left")
		if err := b.run(0).ctx.Err(); err != nil {
			t.Errorf("got the work's context ended by %v, want it to go on", err)
		}
		b.let(0, nil)
	})
}

func TestWorkHasABoundOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{WorkTimeout: time.Minute})
		endless := b.ask(t.Context(), createVolume, createRequest("pvc-1", 1))
		queued := b.ask(t.Context(), createVolume, createRequest("pvc-1", 2))
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := b.run(0).ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("work's context: got %v, want %v", err, context.DeadlineExceeded)
		}
		endless.expect(t, codes.DeadlineExceeded, "CreateVolume pvc-1: running since")
		queued.expect(t, codes.DeadlineExceeded, "CreateVolume pvc-1: waiting since")
		b.let(0, b.run(0).ctx.Err())
		b.expectRuns(t, createRequest("pvc-1", 1))
	})
}

func TestTooManyWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{MaxWorks: 2})
		abandoned := b.ask(limited(t, time.Second), createVolume, createRequest("pvc-1", 1))
		<-abandoned.done
		b.ask(t.Context(), createVolume, createRequest("pvc-1", 2)) // waits, which counts
		refused := b.ask(t.Context(), createVolume, createRequest("pvc-2", 1))
		refused.expect(t, codes.Unavailable, "CreateVolume pvc-2: 2 requests are running or waiting, "+
			"the oldest is CreateVolume pvc-1 (running since 2000-01-01T00:00:00Z): unavailable")
		joined := b.ask(t.Context(), createVolume, createRequest("pvc-1", 2))
		joined.expectWaiting(t)
		reading := b.ask(t.Context(), listVolumes, &csi.ListVolumesRequest{})
		reading.expectWaiting(t)

		b.let(0, nil)
		accepted := b.ask(t.Context(), createVolume, createRequest("pvc-2", 1))
		accepted.expectWaiting(t)
		for i := 1; i < 4; i++ {
			b.let(i, nil)
		}
		accepted.expect(t, codes.OK, "")
	})
}

// TestSharesAreBoundedApart holds that what waits for one share takes no room from another, neither for works nor for
// requests that only read, and that nothing of a share is kept when its works have ended.
func TestSharesAreBoundedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := func(request any) string {
			name, _, _ := strings.Cut(fieldText(request, "name"), "-")
			return name
		}
		b := newBackend(Options{MaxWorks: 2, Share: share})
		for _, name := range []string{"a-1", "b-1", "a-2"} {
			b.ask(t.Context(), createVolume, createRequest(name, 1)).expectWaiting(t)
			time.Sleep(time.Second)
		}
		refused := b.ask(t.Context(), createVolume, createRequest("a-3", 1))
		refused.expect(t, codes.Unavailable, "CreateVolume a-3: 2 requests are running or waiting, the oldest is CreateVolume a-1 (")
		b.ask(t.Context(), createVolume, createRequest("b-2", 1)).expectWaiting(t)
		refused = b.ask(t.Context(), createVolume, createRequest("b-3", 1))
		refused.expect(t, codes.Unavailable, "the oldest is CreateVolume b-1 (")
		for i := range 4 {
			b.let(i, nil)
		}
		synctest.Wait()
		if left := b.server.works.queued; left.all != 0 || len(left.of) != 0 {
			t.Errorf("works are counted that have ended: %+v", left)
		}
	})
}

func TestRefusalNamesTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 10
		b := newBackend(Options{MaxWorks: many})
		for i := range many {
			b.ask(t.Context(), createVolume, createRequest(fmt.Sprintf("pvc-%d", i), 1))
			time.Sleep(time.Second)
		}
		refused := b.ask(t.Context(), createVolume, createRequest("pvc-x", 1))
		refused.expect(t, codes.Unavailable, "the oldest is CreateVolume pvc-0 (")
		for i := range many {
			b.let(i, nil)
		}
	})
}

func TestReadingRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{MaxWorks: 2})
		first := b.ask(limited(t, 10*time.Second), listVolumes, &csi.ListVolumesRequest{})
		second := b.ask(t.Context(), listVolumes, &csi.ListVolumesRequest{})
		b.expectRuns(t, &csi.ListVolumesRequest{}, &csi.ListVolumesRequest{})
		b.let(1, nil)
		second.expect(t, codes.OK, "")
		first.expectWaiting(t)

		step.Set(b.run(0).ctx, "listing pool rbd of cluster a")
		<-first.done
		first.expect(t, codes.DeadlineExceeded, "ListVolumes: running since 2000-01-01T00:00:00Z, listing pool rbd of cluster a since")
		time.Sleep(time.Second)
		synctest.Wait()
		if b.run(0).ctx.Err() == nil {
			t.Error("got the context of an abandoned read alive, want it ended")
		}
		// The handler has not come back and counts.
		b.ask(t.Context(), listVolumes, &csi.ListVolumesRequest{})
		refused := b.ask(t.Context(), listVolumes, &csi.ListVolumesRequest{})
		refused.expect(t, codes.Unavailable, "2 requests are running")
		b.let(0, nil)
		b.let(2, nil)
	})
}

// A stream is sent in the goroutine of its request, so it is let go by its context alone.
func TestStreamingRequests(t *testing.T) {
	const allocated = csi.SnapshotMetadata_GetMetadataAllocated_FullMethodName
	wanted := &csi.GetMetadataAllocatedRequest{SnapshotId: "s"}
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{MaxWorks: 2, WorkTimeout: time.Minute})
		hurried := b.ask(limited(t, 10*time.Second), allocated, wanted)
		patient := b.ask(t.Context(), allocated, wanted)
		b.expectRuns(t, wanted, wanted)
		refused := b.ask(t.Context(), listVolumes, &csi.ListVolumesRequest{})
		refused.expect(t, codes.Unavailable, "the oldest is GetMetadataAllocated s (")
		b.ask(t.Context(), allocated, wanted).expect(t, codes.Unavailable, "2 requests are running")

		time.Sleep(9500 * time.Millisecond)
		synctest.Wait()
		hurried.expectWaiting(t)
		if err := b.run(0).ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("context of a stream before its caller's deadline: got %v, want %v", err, context.DeadlineExceeded)
		}
		b.let(0, fmt.Errorf("compare snapshots: %w", b.run(0).ctx.Err()))
		hurried.expect(t, codes.DeadlineExceeded, "compare snapshots")

		time.Sleep(time.Minute)
		synctest.Wait()
		if err := b.run(1).ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("context of a stream without deadline: got %v, want %v", err, context.DeadlineExceeded)
		}
		b.let(1, nil)
		patient.expect(t, codes.OK, "")
		if err := b.server.works.drained(t.Context()); err != nil {
			t.Errorf("afterwards: got %v, want nothing left", err)
		}
	})
}

func TestPanicInWorkReachesAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		release := make(chan struct{})
		handler := func(context.Context, any) (any, error) {
			<-release
			panic("boom")
		}
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() {
				_, err := s.unary(t.Context(), createRequest("pvc-1", 1), &grpc.UnaryServerInfo{FullMethod: createVolume}, handler)
				expectStatus(t, err, codes.Internal, "panicked")
			})
		}
		synctest.Wait()
		close(release)
		group.Wait()
		if got := s.works.snapshot(); got.running != 0 || got.waiting != 0 {
			t.Errorf("got %+v, want nothing left", got)
		}
	})
}

// TestThousandTimedOutRequests is a cluster that does not answer: callers time
// out and repeat, and when it answers again nothing may be left of them.
func TestThousandTimedOutRequests(t *testing.T) {
	before := runtime.NumGoroutine()
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{MaxWorks: 100})
		var group sync.WaitGroup
		var mu sync.Mutex
		got := map[codes.Code]int{}
		for i := range 1000 {
			group.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				// 200 volumes with 5 repeats each, two sizes among them.
				req := createRequest(fmt.Sprintf("pvc-%d", i%200), int64(i%2))
				_, err := b.server.unary(ctx, req, &grpc.UnaryServerInfo{FullMethod: createVolume}, b.handle)
				mu.Lock()
				defer mu.Unlock()
				got[status.Code(err)]++
			})
		}
		group.Wait()
		if n := got[codes.DeadlineExceeded] + got[codes.Unavailable]; n != 1000 || got[codes.DeadlineExceeded] < 100 {
			t.Errorf("got answers %v, want 1000 that are DeadlineExceeded (at least 100) or Unavailable", got)
		}
		if n := len(b.runs); n != 100 {
			t.Errorf("got %d runs, want 100", n)
		}
		for _, one := range b.runs {
			one.answer <- nil
		}
		synctest.Wait()
		if len(b.server.works.queues) != 0 || b.server.works.queued.all != 0 {
			t.Errorf("got %d queues and %d works left, want none", len(b.server.works.queues), b.server.works.queued.all)
		}
	})
	// A goroutine that has ended is counted until the scheduler has seen it.
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("got %d goroutines, want %d as before", runtime.NumGoroutine(), before)
		}
	}
}

func TestDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(Options{})
		if err := b.server.works.drained(t.Context()); err != nil {
			t.Errorf("nothing runs: got %v, want no error", err)
		}
		abandoned := b.ask(limited(t, time.Second), createVolume, createRequest("pvc-1", 1))
		<-abandoned.done
		err := b.server.works.drained(limited(t, time.Minute))
		if !fault.Is(err, fault.Unknown) {
			t.Errorf("something runs: got %v, want kind %v", err, fault.Unknown)
		}
		drained := make(chan error, 1)
		go func() { drained <- b.server.works.drained(limited(t, time.Minute)) }()
		synctest.Wait()
		b.let(0, nil)
		select {
		case err := <-drained:
			if err != nil {
				t.Errorf("it has ended: got %v, want no error", err)
			}
		default:
			t.Error("it has ended: got no answer, want one at once")
		}
	})
}
