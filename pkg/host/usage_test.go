package host

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
)

// blockVolume stages a raw block volume, and returns a clock that only the test moves.
func blockVolume(t *testing.T, m *machine, spec StageSpec) (staged StageSpec, pass func(time.Duration)) {
	t.Helper()
	spec.Block, spec.Format = true, FormatSpec{}
	must(t, m.Stage(t.Context(), spec, nobody))
	var passed atomic.Int64
	begun := time.Now()
	m.used.now = func() time.Time { return begun.Add(time.Duration(passed.Load())) }
	m.used.wait = time.Minute
	return spec, func(more time.Duration) { passed.Add(int64(more)) }
}

// measured waits until no measurement is under way.
func (m *machine) measured() {
	m.used.mu.Lock()
	var all []chan struct{}
	for _, known := range m.used.images {
		if known.running != nil {
			all = append(all, known.running)
		}
	}
	m.used.mu.Unlock()
	for _, running := range all {
		<-running
	}
}

// comparisons counts how often the cluster was asked what is allocated.
func (m *machine) comparisons() (n int) {
	for _, method := range m.process.Methods() {
		if method == "Changed" {
			n++
		}
	}
	return n
}

func (m *machine) wantUsage(t *testing.T, what string, spec StageSpec, want filesystem.Usage) {
	t.Helper()
	got, err := m.Usage(t.Context(), spec.Handle, m.staging())
	if err != nil || got != want {
		t.Errorf("%s: usage %+v, error %v, want %+v", what, got, err, want)
	}
}

const object = 4 << 20

var (
	unknown = filesystem.Usage{Block: true, Total: gib}
	one     = filesystem.Usage{Block: true, Total: gib, Used: object, Available: gib - object}
	two     = filesystem.Usage{Block: true, Total: gib, Used: 2 * object, Available: gib - 2*object}
)

func TestUsedBytesOfABlockVolume(t *testing.T) {
	m := newRack(t).machine(t, "a")
	spec, pass := blockVolume(t, m, m.attached(t, "pvc-1"))
	must(t, m.ceph.WriteAt(spec.Handle, 0, "data"))
	m.wantUsage(t, "first", spec, one)
	must(t, m.ceph.WriteAt(spec.Handle, 100*object, "data"))
	pass(usageAge - time.Second)
	m.wantUsage(t, "a young figure", spec, one)
	if got := m.comparisons(); got != 1 {
		t.Errorf("asked %d times, want once", got)
	}
	pass(time.Second)
	answered := make(chan struct{})
	m.process.OnCall(func(_ context.Context, call rbdtest.Call) {
		if call.Method == "Changed" {
			<-answered
		}
	})
	m.wantUsage(t, "an old figure, while it is measured again", spec, one)
	close(answered)
	m.measured()
	m.wantUsage(t, "after that", spec, two)
	must(t, m.ceph.Discard(spec.Handle, 0, object))
	pass(usageAge)
	_, err := m.Usage(t.Context(), spec.Handle, m.staging())
	must(t, err)
	m.measured()
	m.wantUsage(t, "after a discard", spec, one)
}

func TestUsedBytesAreNotMeasuredWithoutFastDiff(t *testing.T) {
	m := newRack(t).machine(t, "a")
	plain := specOf("pvc-1")
	plain.Class.Features &^= params.FastDiff
	spec, pass := blockVolume(t, m, m.attachedAs(t, plain))
	must(t, m.ceph.WriteAt(spec.Handle, 0, "data"))
	for range 3 {
		m.wantUsage(t, "without fast-diff", spec, unknown)
		pass(time.Minute)
	}
	if got := m.comparisons(); got != 0 {
		t.Errorf("asked %d times, want never", got)
	}
}

func TestUsageDoesNotWaitLong(t *testing.T) {
	m := newRack(t).machine(t, "a")
	spec, _ := blockVolume(t, m, m.attached(t, "pvc-1"))
	m.used.wait = time.Millisecond
	goOn := make(chan struct{})
	m.process.OnCall(func(_ context.Context, call rbdtest.Call) {
		if call.Method == "Changed" {
			<-goOn
		}
	})
	must(t, m.ceph.WriteAt(spec.Handle, 0, "data"))
	for range 3 {
		m.wantUsage(t, "while the cluster does not answer", spec, unknown)
	}
	close(goOn)
	m.measured()
	m.wantUsage(t, "when it did", spec, one)
	if got := m.comparisons(); got != 1 {
		t.Errorf("asked %d times, want once", got)
	}
}

func TestAFigureThatCannotBeRenewed(t *testing.T) {
	m := newRack(t).machine(t, "a")
	spec, pass := blockVolume(t, m, m.attached(t, "pvc-1"))
	must(t, m.ceph.WriteAt(spec.Handle, 0, "data"))
	m.wantUsage(t, "first", spec, one)
	m.process.Fail(rbdtest.Fault{Method: "Changed", Err: fault.Denied, Times: 1000})
	for age := time.Duration(0); age < usageOldest; age += time.Minute {
		pass(time.Minute)
		m.wantUsage(t, fmt.Sprintf("after %s", age+time.Minute), spec, one)
		m.measured()
	}
	pass(time.Second)
	m.wantUsage(t, "when it is too old", spec, unknown)
	if got, most := m.comparisons(), int(usageOldest/usageAge)+1; got > most {
		t.Errorf("asked %d times in an hour, want at most %d", got, most)
	}
}

func TestExisting(t *testing.T) {
	if got := existing([]rbd.Extent{{Offset: 0, Bytes: 1, Exists: true}, {Offset: 1, Bytes: 2}, {Offset: 7, Bytes: 4, Exists: true}}); got != 5 {
		t.Errorf("got %d bytes, want the 5 that exist", got)
	}
}

// What takes long is asked for more seldom.
func TestASlowMeasurementIsNotRepeatedSoon(t *testing.T) {
	m := newRack(t).machine(t, "a")
	spec, pass := blockVolume(t, m, m.attached(t, "pvc-1"))
	m.process.OnCall(func(_ context.Context, call rbdtest.Call) {
		if call.Method == "Changed" {
			pass(time.Minute)
		}
	})
	for range 19 {
		_, err := m.Usage(t.Context(), spec.Handle, m.staging())
		must(t, err)
		m.measured()
		pass(time.Minute)
	}
	if got := m.comparisons(); got != 1 {
		t.Errorf("asked %d times in 20 minutes, want once", got)
	}
}

func TestFiguresOfOthersAreForgotten(t *testing.T) {
	u := newUsages()
	at := time.Now()
	u.now = func() time.Time { return at }
	measure := func(_ context.Context, of mapper.Target) (int64, error) { return of.PoolID, nil }
	for pool := range int64(3) {
		if got, known := u.of(t.Context(), mapper.Target{PoolID: pool, ImageID: "v"}, measure); got != pool || !known {
			t.Errorf("pool %d: %d bytes, known %t, want %d", pool, got, known, pool)
		}
	}
	at = at.Add(usageOldest + time.Second)
	u.of(t.Context(), mapper.Target{PoolID: 7, ImageID: "v"}, measure)
	u.mu.Lock()
	defer u.mu.Unlock()
	var left []int64
	for key := range u.images {
		left = append(left, key.poolID)
	}
	if !slices.Equal(left, []int64{7}) {
		t.Errorf("figures of images in pools %v are kept, want that of 7 only", left)
	}
}
