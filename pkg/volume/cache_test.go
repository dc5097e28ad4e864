package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// keeping is a process that keeps listings, with a clock that only the test moves.
func keeping(ceph *rbdtest.Ceph, age time.Duration) (d *driver, pass func(time.Duration)) {
	d = start(ceph)
	if d.cache = newCache(age); d.cache == nil {
		return d, nil
	}
	var passed atomic.Int64
	begun := time.Now()
	d.cache.now = func() time.Time { return begun.Add(time.Duration(passed.Load())) }
	return d, func(more time.Duration) { passed.Add(int64(more)) }
}

// settled waits until no reading is under way.
func (d *driver) settled() {
	d.cache.mu.Lock()
	defer d.cache.mu.Unlock()
	for _, kept := range d.cache.pools {
		kept.mu.Lock()
		under := kept.reading
		kept.mu.Unlock()
		if under != nil {
			<-under.done
		}
	}
}

// listed returns every volume as NAME, its size in GiB and its nodes, page by page.
func (d *driver) listed(t *testing.T, most int) []string {
	t.Helper()
	var all []string
	for token := ""; ; {
		page, next, err := d.List(t.Context(), token, most)
		must(t, err)
		for _, v := range page {
			all = append(all, strings.TrimSpace(fmt.Sprintf("%s %d %s", v.Handle.Name, v.Bytes/gib, strings.Join(v.Nodes, " "))))
		}
		if token = next; token == "" {
			return all
		}
	}
}

func wantListed(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: listed %q, want %q", what, got, want)
	}
}

// headers counts the headers that a process has read since the last Reset.
func headers(d *driver) (n int) {
	for _, method := range d.process.Methods() {
		if method == "Header" {
			n++
		}
	}
	return n
}

func TestOwnChangesAreListedAtOnce(t *testing.T) {
	d, _ := keeping(newCeph(), time.Hour)
	ctx := t.Context()
	for _, name := range []string{"a", "c"} {
		must(t, d.create(ctx, name))
	}
	wantListed(t, "first", d.listed(t, 0), "a 1", "c 1")
	handle := specOf("c").Handle
	for _, step := range []struct {
		name string
		do   func() error
		want []string
	}{
		{"create", func() error { return d.create(ctx, "b") }, []string{"a 1", "b 1", "c 1"}},
		{"attach", func() error {
			_, err := d.Attach(ctx, handle, AttachSpec{Node: "node-a", Mode: "single", Single: true}, nobody)
			return err
		}, []string{"a 1", "b 1", "c 1 node-a"}},
		{"expand", func() error {
			_, err := d.Expand(ctx, handle, ExpandSpec{To: func(int64, int64) (int64, error) { return 2 * gib, nil }}, nobody)
			return err
		}, []string{"a 1", "b 1", "c 2 node-a"}},
		{"detach", func() error { return d.Detach(ctx, handle, "node-a", nobody) }, []string{"a 1", "b 1", "c 2"}},
		{"delete", func() error { return d.delete(ctx, "a") }, []string{"b 1", "c 2"}},
	} {
		must(t, step.do())
		d.process.Reset()
		wantListed(t, step.name, d.listed(t, 0), step.want...)
		if got := headers(d); got > 1 {
			t.Errorf("%s: the list read %d headers, want that of the changed volume only", step.name, got)
		}
		wantListed(t, step.name+", in pages of one", d.listed(t, 1), step.want...)
	}
	d.process.Reset()
	d.listed(t, 0)
	if got := headers(d); got > 0 {
		t.Errorf("without a change the list read %d headers, want 0", got)
	}
}

func TestChangesOfOthersAreListedInTime(t *testing.T) {
	ceph := newCeph()
	d, pass := keeping(ceph, time.Minute)
	other := start(ceph)
	must(t, d.create(t.Context(), "a"))
	wantListed(t, "first", d.listed(t, 0), "a 1")
	must(t, other.create(t.Context(), "b"))
	wantListed(t, "at once", d.listed(t, 0), "a 1")
	pass(31 * time.Second)
	wantListed(t, "after half of the age, while it is read", d.listed(t, 0)[:1], "a 1")
	d.settled()
	wantListed(t, "after that", d.listed(t, 0), "a 1", "b 1")
	must(t, other.delete(t.Context(), "a"))
	pass(61 * time.Second)
	wantListed(t, "when it is too old", d.listed(t, 0), "b 1")
}

// Whether a reading saw a change that was made meanwhile cannot be told.
func TestAChangeDuringAReadingStaysNoted(t *testing.T) {
	d, pass := keeping(newCeph(), time.Minute)
	must(t, d.create(t.Context(), "a"))
	d.listed(t, 0)
	kept := d.cache.pools[kube]
	pool, err := d.clusters.Pool(t.Context(), kube, nobody)
	must(t, err)
	d.cache.change(specOf("before").Handle)
	var once sync.Once
	d.process.OnCall(func(context.Context, rbdtest.Call) {
		once.Do(func() { d.cache.change(specOf("meanwhile").Handle) })
	})
	pass(2 * time.Minute)
	must(t, kept.await(t.Context(), kept.refresh(t.Context(), pool, d.cache)))
	kept.mu.Lock()
	defer kept.mu.Unlock()
	if got := slices.Collect(maps.Keys(kept.changed)); !slices.Equal(got, []string{"meanwhile"}) {
		t.Errorf("noted after the reading: %q, want only what changed meanwhile", got)
	}
}

// What is read again while all rows are being read must be read once more afterwards.
func TestARowIsNotOverwrittenByAnOlderReading(t *testing.T) {
	d, pass := keeping(newCeph(), time.Minute)
	must(t, d.create(t.Context(), "a"))
	d.listed(t, 0)
	pass(45 * time.Second) // old enough to be read again, and young enough to be told
	kept := d.cache.pools[kube]
	old := slices.Clone(kept.rows)
	kept.reading = &reading{changes: kept.changes, done: make(chan struct{})}
	_, err := d.Attach(t.Context(), specOf("a").Handle, AttachSpec{Node: "node-a", Mode: "single", Single: true}, nobody)
	must(t, err)
	wantListed(t, "while it is read", d.listed(t, 0), "a 1 node-a")
	kept.mu.Lock()
	kept.rows, kept.read, kept.reading = old, d.cache.now(), nil // the reading ends with the row as it was before
	kept.mu.Unlock()
	wantListed(t, "after that", d.listed(t, 0), "a 1 node-a")
}

func TestOneReadingAtATime(t *testing.T) {
	d, _ := keeping(newCeph(), time.Minute)
	for at := range 40 {
		must(t, d.create(t.Context(), fmt.Sprintf("pvc-%02d", at)))
	}
	d.process.Reset()
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() { d.listed(t, 7) })
	}
	callers.Wait()
	if got := headers(d); got != 40 {
		t.Errorf("8 listings of 40 volumes read %d headers, want 40", got)
	}
}

func TestAReadingOutlivesItsCaller(t *testing.T) {
	d, _ := keeping(newCeph(), time.Minute)
	must(t, d.create(t.Context(), "a"))
	ctx, leave := context.WithCancel(t.Context())
	reading, goOn := make(chan struct{}), make(chan struct{})
	d.process.OnCall(func(_ context.Context, call rbdtest.Call) {
		if call.Method == "Header" {
			close(reading)
			<-goOn
		}
	})
	failed := make(chan error)
	go func() {
		_, _, err := d.List(ctx, "", 0)
		failed <- err
	}()
	<-reading
	leave()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("list of a caller that left: error %v, want %v", err, context.Canceled)
	}
	d.process.OnCall(nil)
	close(goOn)
	d.settled()
	d.process.Reset()
	wantListed(t, "the next caller", d.listed(t, 0), "a 1")
	if got := headers(d); got != 0 {
		t.Errorf("the next caller read %d headers, want 0", got)
	}
}

func TestAFailedReading(t *testing.T) {
	d, pass := keeping(newCeph(), time.Minute)
	must(t, d.create(t.Context(), "a"))
	d.process.Fail(rbdtest.Fault{Method: "Header"})
	if _, _, err := d.List(t.Context(), "", 0); !fault.Is(err, fault.Unavailable) {
		t.Errorf("list: error %v, want kind %v", err, fault.Unavailable)
	}
	wantListed(t, "the next", d.listed(t, 0), "a 1")
	pass(45 * time.Second)
	d.process.Fail(rbdtest.Fault{Method: "Header"})
	wantListed(t, "while a new reading fails", d.listed(t, 0), "a 1")
	d.settled()
}

func TestWhatIsKeptIsBounded(t *testing.T) {
	d, pass := keeping(newCeph(), time.Minute)
	must(t, d.create(t.Context(), "a"))
	changes := func() int {
		kept := d.cache.pools[kube]
		kept.mu.Lock()
		defer kept.mu.Unlock()
		return len(kept.changed) + len(kept.rows)
	}
	d.listed(t, 0)
	for at := range 10 * MostListed {
		d.cache.change(volid.Image{Pool: kube, Name: fmt.Sprint(at)})
	}
	if got := changes(); got > 2*MostListed {
		t.Errorf("after many changes %d rows and changes are kept, want at most %d", got, 2*MostListed)
	}
	wantListed(t, "after that", d.listed(t, 0), "a 1")
	pass(2 * time.Minute)
	d.cache.change(specOf("a").Handle)
	if got := changes(); got != 0 {
		t.Errorf("when nobody lists %d rows and changes are kept, want 0", got)
	}
	d.cache.keep(nil)
	if got := len(d.cache.pools); got != 0 {
		t.Errorf("of pools that are not there %d are kept, want 0", got)
	}
}

func TestALargePoolIsNotKept(t *testing.T) {
	d, _ := keeping(newCeph(), time.Minute)
	must(t, d.create(t.Context(), "a"))
	d.listed(t, 0)
	d.cache.pools[kube].tooLarge = true
	must(t, d.create(t.Context(), "b"))
	wantListed(t, "list", d.listed(t, 0), "a 1", "b 1")
}

// A page of a listing that reads the cluster has its rows in order, however long each takes.
func TestRowsAreReadAtOnceAndInOrder(t *testing.T) {
	d := start(newCeph())
	var want []string
	for at := range 3 * readAtOnce {
		name := fmt.Sprintf("pvc-%02d", at)
		must(t, d.create(t.Context(), name))
		want = append(want, name+" 1")
	}
	var under atomic.Int64
	full := make(chan struct{})
	d.process.OnCall(func(_ context.Context, call rbdtest.Call) {
		if call.Method != "Header" {
			return
		}
		if under.Add(1) == readAtOnce {
			close(full)
		}
		<-full // the first ones are all read together, or the test does not end
	})
	wantListed(t, "one page", d.listed(t, 0), want...)
}

func TestWhatIsNoVolumeIsNotListed(t *testing.T) {
	for _, state := range []string{image.Copying, image.Retired, image.Condemned} {
		for _, age := range []time.Duration{0, time.Hour} {
			ceph := newCeph()
			d, _ := keeping(ceph, age)
			must(t, d.create(t.Context(), "a"))
			must(t, d.create(t.Context(), "b"))
			wantListed(t, "both", d.listed(t, 0), "a 1", "b 1")
			found, err := image.Find(t.Context(), d.clusters, specOf("a").Handle, nobody)
			must(t, err)
			mark := found.Marks.Volume
			mark.State = state
			_, err = found.Set(t.Context(), image.VolumeKey, image.Written(mark))
			must(t, err)
			d.cache.change(specOf("a").Handle)
			wantListed(t, fmt.Sprintf("one is %s, kept for %s", state, age), d.listed(t, 0), "b 1")
		}
	}
}

func TestListingsAreKeptOnlyWhenAskedTo(t *testing.T) {
	for _, age := range []time.Duration{0, time.Hour} {
		process := newCeph().Process()
		store := NewStore(process, Options{PublishedNodes: age})
		_, err := store.Create(t.Context(), specOf("a"), nobody)
		must(t, err)
		for range 2 {
			process.Reset()
			_, _, err = store.List(t.Context(), "", 0)
			must(t, err)
		}
		read := slices.Contains(process.Methods(), "Header")
		if want := age > 0; store.PublishedNodes() != want || read == want {
			t.Errorf("age %s: published nodes %t, headers read by the second list: %t, want %t and %t", age, store.PublishedNodes(), read, want, !want)
		}
	}
}
