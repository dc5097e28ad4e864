package librbd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

// fullClone makes a clone of an image of so many objects, all with data.
func (l *lab) fullClone(t *testing.T, p *pool, objects int) (id string, clone volid.Image) {
	t.Helper()
	layout := mapped()
	layout.ObjectBytes, layout.Bytes = 64<<10, int64(objects)*64<<10
	source := volid.Image{Pool: p.where.Pool, Name: "full-" + rbd.NewID()}
	sourceID := create(t, p, source.Name, layout)
	if err := l.WriteAt(source, 0, strings.Repeat("x", int(layout.Bytes))); err != nil {
		t.Fatal(err)
	}
	if err := p.TakeSnapshot(t.Context(), sourceID, "s"); err != nil {
		t.Fatal(err)
	}
	clone = volid.Image{Pool: p.where.Pool, Name: "clone-" + rbd.NewID()}
	return cloneStep(t, p, p, rbd.Header{ID: sourceID}, snapshotOf(t, p, sourceID), clone.Name, layout), clone
}

// TestFlattenLeavesRoom looks how many operations on a clone's data objects the OSD
// had under way at a time.
func TestFlattenLeavesRoom(t *testing.T) {
	l := ownLab(t, ceph.Options{})
	for option, value := range map[string]string{"osd_op_history_size": "3000", "osd_op_history_duration": "600"} {
		l.run(t, "config", "set", "osd", option, value)
		until(t, func() bool { return l.run(t, "config", "show", "osd.0", option) == value }, func() string { return option + " is not set" })
	}
	p := l.open(t, l.place())
	id, _ := l.fullClone(t, p, 256)
	if err := p.Flatten(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	most, all := mostAtOnce(t, l.run(t, "tell", "osd.0", "dump_historic_ops"), dataPrefix+id)
	if most > flattenObjects || all < 256 {
		t.Errorf("got %d of %d operations at once, want at most %d of 256 or more", most, all, flattenObjects)
	}
}

// mostAtOnce reads what an OSD remembers of the operations on some objects.
func mostAtOnce(t *testing.T, output, objects string) (most, all int) {
	t.Helper()
	var dump struct {
		Ops []struct {
			Description string
			Initiated   string `json:"initiated_at"`
			Duration    float64
		}
	}
	if err := json.Unmarshal([]byte(output), &dump); err != nil {
		t.Fatal(err)
	}
	type edge struct {
		at   time.Time
		more int
	}
	var edges []edge
	for _, op := range dump.Ops {
		if !strings.Contains(op.Description, objects) {
			continue
		}
		began, err := time.Parse("2006-01-02T15:04:05.999999-0700", op.Initiated)
		if err != nil {
			t.Fatal(err)
		}
		ended := began.Add(time.Duration(op.Duration * float64(time.Second)))
		edges = append(edges, edge{began, 1}, edge{ended, -1})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(a.at.Compare(b.at), a.more-b.more) })
	now := 0
	for _, one := range edges {
		now += one.more
		most = max(most, now)
	}
	return most, len(edges) / 2
}

// TestFlattenGoesOn lets the callers of a flatten go: it goes on, who comes later waits
// for the same one, and slots and queues are empty in the end.
func TestFlattenGoesOn(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	id, _ := l.fullClone(t, p, 512)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- p.Flatten(ctx, id) }()
	until(t, func() bool { return l.flattening(t, p, id) }, func() string { return "the clone has no data yet" })
	cancel()
	if err := <-first; !fault.Is(err, fault.Unknown) {
		t.Fatalf("first: got %v, want %v", err, fault.Unknown)
	}
	if err := p.Flatten(ctx, id); !fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "being done") {
		t.Errorf("second, gone at once: got %v, want %v", err, fault.Unknown)
	}
	if err := p.Flatten(t.Context(), id); err != nil {
		t.Errorf("third: got %v, want it to wait for the end", err)
	}
	header, err := p.Header(t.Context(), id)
	if err != nil || header.HasParent {
		t.Errorf("flattened: got parent %+v, %v; want none", header.Parent, err)
	}
	until(t, func() bool { return len(p.slow.Load().bounds.slots) == 0 }, func() string { return "a slot is still held" })
	if left := len(p.clusters.flattens.images); left != 0 {
		t.Errorf("got %d calls remembered, want none", left)
	}
}

// flattening reports whether a clone has data objects.
func (l *lab) flattening(t *testing.T, p *pool, id string) bool {
	t.Helper()
	lines, err := l.Objects(p.where.Pool)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Contains(lines, dataPrefix+id)
}

// TestFlattenWaitsForASlot fills the slots: a caller whose time is up gets an error of its own.
func TestFlattenWaitsForASlot(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	id, _ := l.fullClone(t, p, 1)
	s, err := p.slowConnection(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range flattensAtOnce {
		s.bounds.slots <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Flatten(ctx, id); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no slot: got %v, want %v", err, fault.Unavailable)
	}
	<-s.bounds.slots
	if err := p.Flatten(t.Context(), id); err != nil {
		t.Errorf("a slot: got %v, want nil", err)
	}
}

// TestFlattenCopiesWhatIsMissing holds that a clone keeps its content although its object map says of an object that is not there that it is, as a client
// leaves it that was killed before its first write to the object. rbd_flatten of 16.2 alone makes zeroes of it.
func TestFlattenCopiesWhatIsMissing(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	id, clone := l.fullClone(t, p, 8)
	const written, missing, object = 2, 5, 64 << 10
	for _, n := range []int64{written, missing} {
		if err := l.WriteAt(clone, n*object, "y"); err != nil {
			t.Fatal(err)
		}
	}
	// The object as it was before the write.
	if output, err := l.Rados(t.Context(), "--pool", p.where.Pool.Pool, "rm", fmt.Sprintf("%s%s.%016x", dataPrefix, id, missing)); err != nil {
		t.Fatal(output, err)
	}
	want := strings.Repeat("x", written*object) + "y" + strings.Repeat("x", (8-written)*object-1)
	if got, err := l.ReadAt(clone, 0, len(want)); got != want || err != nil {
		t.Fatalf("before: the content is not what was written, %v", err)
	}
	if err := p.Flatten(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got, err := l.ReadAt(clone, 0, len(want)); got != want || err != nil {
		t.Errorf("flattened: the content is not what it was, %v; object %d begins with %q", err, missing, got[missing*object:][:1])
	}
}
