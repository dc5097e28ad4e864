package librbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// client returns a place as a client of its own sees it, with its own connection.
func (l *lab) client(t *testing.T) at {
	t.Helper()
	conn, err := rados.NewConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conn.ReadConfigFile(l.Conf()), conn.Connect()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Shutdown)
	io, err := conn.OpenIOContext(l.Pool())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(io.Destroy)
	return at{IOContext: io}
}

// group makes images and returns their IDs as the members of a group.
func group(t *testing.T, p *pool, prefix string, n int) []rbd.SnapshotOf {
	t.Helper()
	wanted := make([]rbd.SnapshotOf, n)
	for i := range wanted {
		wanted[i].ID = create(t, p, fmt.Sprintf("%s-%d", prefix, i), mapped())
	}
	return wanted
}

// called gives all snapshots a name.
func called(wanted []rbd.SnapshotOf, snapshot string) []rbd.SnapshotOf {
	for i := range wanted {
		wanted[i].Name = snapshot
	}
	return wanted
}

// A busy client is one that writes to images while a test runs.
type busy struct {
	stop    chan struct{}
	done    sync.WaitGroup
	err     atomic.Pointer[error]
	writes  atomic.Int64
	longest atomic.Int64 // nanoseconds that a write took at most
	began   atomic.Int64 // when the present one began
}

// counting starts a client that writes a number that grows to one image after
// the other, each write after the one before is done. Each image is opened by a client of its
// own, so that their locks are.
func (l *lab) counting(t *testing.T, wanted []rbd.SnapshotOf) *busy {
	t.Helper()
	images := make([]*cephrbd.Image, len(wanted))
	for i, one := range wanted {
		images[i] = opened(t, l.client(t), one.ID)
	}
	w := &busy{stop: make(chan struct{})}
	w.done.Go(func() {
		for number := uint64(1); ; number++ {
			for _, image := range images {
				if !w.write(image, number) {
					return
				}
			}
		}
	})
	t.Cleanup(func() { w.end(t) })
	return w
}

// opened opens an image until the test ends.
func opened(t *testing.T, a at, id string) *cephrbd.Image {
	t.Helper()
	image, err := cephrbd.OpenImageById(a.IOContext, id, cephrbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := image.Close(); err != nil {
			t.Error(err)
		}
	})
	return image
}

// write writes a number, and reports whether to go on.
func (w *busy) write(image *cephrbd.Image, number uint64) bool {
	select {
	case <-w.stop:
		return false
	default:
	}
	began := time.Now()
	w.began.Store(began.UnixNano())
	if _, err := image.WriteAt(binary.LittleEndian.AppendUint64(nil, number), 0); err != nil {
		w.err.Store(&err)
		return false
	}
	w.longest.Store(max(w.longest.Load(), int64(time.Since(began))))
	w.writes.Add(1)
	return true
}

// goesOn waits until the writer has written on, and returns how long a write took at
// most since the last call.
func (w *busy) goesOn(t *testing.T) time.Duration {
	t.Helper()
	before := w.writes.Load()
	until(t, func() bool { return w.writes.Load() > before+10 || w.err.Load() != nil },
		func() string { return "the writer hangs" })
	return time.Duration(w.longest.Swap(0))
}

// waits waits until a write has not been done for so long.
func (w *busy) waits(t *testing.T, long time.Duration) {
	t.Helper()
	until(t, func() bool { return time.Since(time.Unix(0, w.began.Load())) > long },
		func() string { return "the writer goes on, want it held up" })
}

// end stops the writer, which must not have met an error.
func (w *busy) end(t *testing.T) {
	t.Helper()
	select {
	case <-w.stop:
		return
	default:
	}
	close(w.stop)
	w.done.Wait()
	if err := w.err.Load(); err != nil {
		t.Errorf("a writer's write: got %v, want no error", *err)
	}
}

// numbers reads what the snapshots hold.
func numbers(t *testing.T, a at, wanted []rbd.SnapshotOf) []uint64 {
	t.Helper()
	found := make([]uint64, len(wanted))
	for i, one := range wanted {
		image, err := cephrbd.OpenImageByIdReadOnly(a.IOContext, one.ID, one.Name)
		if err != nil {
			t.Fatalf("open %s@%s: %v", one.ID, one.Name, err)
		}
		data := make([]byte, 8)
		_, err = image.ReadAt(data, 0)
		if err = errors.Join(err, image.Close()); err != nil {
			t.Fatal(err)
		}
		found[i] = binary.LittleEndian.Uint64(data)
	}
	return found
}

// ofOneMoment reports whether numbers written in order can be of one moment: they do not
// grow from one image to the next, and the last is at most one behind the first.
func ofOneMoment(numbers []uint64) bool {
	for i := 1; i < len(numbers); i++ {
		if numbers[i] > numbers[i-1] {
			return false
		}
	}
	return numbers[0]-numbers[len(numbers)-1] <= 1
}

// untouched waits until so many clients watch each of the images, and checks that they have no
// snapshots.
func untouched(t *testing.T, a at, wanted []rbd.SnapshotOf, watchers int) {
	t.Helper()
	unwatched(t, a, wanted, watchers)
	for _, one := range wanted {
		if has, err := a.hasSnapshot(one); has || err != nil {
			t.Errorf("snapshot %s of %s: got %t, %v; want none", one.Name, one.ID, has, err)
		}
	}
}

// unwatched waits until so many clients watch each of the images.
func unwatched(t *testing.T, a at, wanted []rbd.SnapshotOf, want int) {
	t.Helper()
	for _, one := range wanted {
		got := -1
		until(t, func() bool {
			acks, silent, err := a.NotifyWithTimeout(headerPrefix+one.ID, nil, 2*time.Second)
			got = len(acks) + len(silent)
			return err == nil && got == want
		}, func() string { return fmt.Sprintf("watchers of %s: got %d, want %d", one.ID, got, want) })
	}
}

// TestTogetherIsOneMoment takes snapshots of images that clients write to without a
// pause, and compares what is in them.
func TestTogetherIsOneMoment(t *testing.T) {
	l := newLab(t)
	p, a := l.open(t, l.place()), l.client(t)
	written := group(t, p, "written", 3)
	idle := group(t, p, "idle", 2)
	opened(t, l.client(t), idle[0].ID) // by a client that does nothing; the other one by none
	w := l.counting(t, written)
	all := slices.Concat(written[:2], idle, written[2:])
	goroutines, running := runtime.NumGoroutine(), threads(t)
	for round := range 10 {
		w.goesOn(t)
		began := time.Now()
		called(all, fmt.Sprintf("together-%d", round))
		if err := p.TakeSnapshots(t.Context(), all); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		got := numbers(t, a, all)
		t.Logf("taken in %s, writes waited for at most %s: %d", took, w.goesOn(t), got)
		if !ofOneMoment(append(got[:2:2], got[4])) || got[2] != 0 || got[3] != 0 {
			t.Errorf("numbers in the snapshots: got %d, want those of one moment and none in the idle images", got)
		}
	}
	w.end(t)
	unwatched(t, a, written, 1)
	unwatched(t, a, idle[1:], 0)
	until(t, func() bool { return runtime.NumGoroutine() <= goroutines },
		func() string { return fmt.Sprintf("goroutines: got %d, want %d", runtime.NumGoroutine(), goroutines) })
	t.Logf("threads: %d before, %d after", running, threads(t))
}

// TestTogetherApartIsNotOneMoment shows that the comparison above can tell.
func TestTogetherApartIsNotOneMoment(t *testing.T) {
	l := newLab(t)
	p, a := l.open(t, l.place()), l.client(t)
	written := group(t, p, "written", 3)
	w := l.counting(t, written)
	apart := 0
	for round := range 3 {
		w.goesOn(t)
		for _, one := range called(written, fmt.Sprint(round)) {
			takeAlone(t, a, one)
		}
		got := numbers(t, a, written)
		t.Logf("one after the other: %d", got)
		if !ofOneMoment(got) {
			apart++
		}
	}
	if apart == 0 {
		t.Error("got numbers of one moment each time, want others: the writer is too slow for the test above to mean anything")
	}
}

// takeAlone takes an ordinary snapshot.
func takeAlone(t *testing.T, a at, one rbd.SnapshotOf) {
	image, err := cephrbd.OpenImageById(a.IOContext, one.ID, cephrbd.NoSnapshot)
	if err != nil {
		t.Error(err)
		return
	}
	_, err = image.CreateSnapshot(one.Name)
	if err := errors.Join(err, image.Close()); err != nil {
		t.Error(err)
	}
}

// TestTogetherWaitsForTheLast lets one image be late: the snapshots of the others wait, and
// so does who writes to them.
func TestTogetherWaitsForTheLast(t *testing.T) {
	l := newLab(t)
	p, a := l.open(t, l.place()), l.client(t)
	wanted := called(group(t, p, "written", 3), "new")
	w := l.counting(t, wanted)
	members := make([]*member, len(wanted))
	for i := range wanted {
		members[i] = l.another(t, wanted[i])
	}
	w.goesOn(t)
	r := newRound(len(members))
	taken := make(chan error, len(members))
	for _, m := range members[:2] {
		go func() { taken <- m.take(r) }()
	}
	w.waits(t, 300*time.Millisecond)
	go func() { taken <- members[2].take(r) }()
	r.err = r.gather(t.Context(), a, wanted, members)
	close(r.decided)
	for range members {
		if err := <-taken; err != nil {
			t.Error(err)
		}
	}
	if got := numbers(t, a, wanted); !ofOneMoment(got) {
		t.Errorf("numbers in the snapshots: got %d, want those of one moment", got)
	}
	w.goesOn(t)
}

// TestTogetherChecks looks at members at the moment.
func TestTogetherChecks(t *testing.T) {
	l := newLab(t)
	p, a := l.open(t, l.place()), l.client(t)
	wanted := called(group(t, p, "image", 1), "new")
	m := l.another(t, wanted[0])
	if err := m.check(a); !errors.Is(err, errTakenBack) {
		t.Errorf("without the lock: got %v, want %v", err, errTakenBack)
	}
	if err := m.lock(); err != nil {
		t.Fatal(err)
	}
	if err := m.check(a); err != nil {
		t.Errorf("with the lock: got %v, want none", err)
	}
	takeAlone(t, a, wanted[0])
	if err := m.check(a); !fault.Is(err, fault.Exists) {
		t.Errorf("with such a snapshot: got %v, want %v", err, fault.Exists)
	}
}

// TestTogetherBlocklisted puts the driver's client into the blocklist at the worst moment,
// as a client does that breaks its lock.
func TestTogetherBlocklisted(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	wanted := called(group(t, p, "image", 2), "new")
	w := l.counting(t, wanted[:1])
	release := l.another(t, rbd.SnapshotOf{ID: wanted[1].ID, Name: "keeps"}).occupy(t)
	w.goesOn(t)
	old := p.session.Load()
	result := make(chan error, 1)
	go func() { result <- p.TakeSnapshots(t.Context(), wanted) }()
	w.waits(t, 300*time.Millisecond)
	client := clientAddress(t, l, old)
	l.run(t, "osd", "blocklist", "add", client)
	defer l.run(t, "osd", "blocklist", "rm", client)
	release()
	if err := <-result; err != nil {
		t.Errorf("got %v, want the snapshots taken by a new client", err)
	}
	if p.session.Load() == old {
		t.Error("got the old connection, want a new one")
	}
	w.goesOn(t)
}

// TestTogetherUnderLoad takes snapshots of many images at all of which clients write as
// fast as they can, and so take the locks back at once.
func TestTogetherUnderLoad(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	wanted := group(t, p, "loaded", 8)
	var writers []*busy
	for i := range wanted {
		writers = append(writers, l.counting(t, wanted[i:i+1]))
	}
	for round := range 3 {
		began := time.Now()
		if err := p.TakeSnapshots(t.Context(), called(wanted, fmt.Sprint(round))); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		var longest time.Duration
		for _, w := range writers {
			longest = max(longest, w.goesOn(t))
		}
		t.Logf("taken in %s, writes waited for at most %s", took, longest)
	}
}

// TestTogetherByTwo has two processes take snapshots of the same images again and again.
func TestTogetherByTwo(t *testing.T) {
	l := newLab(t)
	one, other, a := l.open(t, l.place()), l.open(t, l.place()), l.client(t)
	wanted := group(t, one, "image", 3)
	w := l.counting(t, wanted)
	var both sync.WaitGroup
	for process, p := range map[string]*pool{"one": one, "other": other} {
		both.Go(func() {
			for round := range 5 {
				began := time.Now()
				mine := called(slices.Clone(wanted), fmt.Sprintf("%s-%d", process, round))
				err := p.TakeSnapshots(t.Context(), mine)
				t.Logf("%s: %s, %v", mine[0].Name, time.Since(began), err)
				switch {
				case err == nil:
					if got := numbers(t, a, mine); !ofOneMoment(got) {
						t.Errorf("numbers in the snapshots: got %d, want those of one moment", got)
					}
				case !fault.Is(err, fault.Superseded):
					t.Errorf("got %v, want none or %v", err, fault.Superseded)
				}
			}
		})
	}
	both.Wait()
	w.goesOn(t)
}

// TestTogetherOutcomes reads what librbd says of a snapshot.
func TestTogetherOutcomes(t *testing.T) {
	refusal, missing := error(code(-int(syscall.EBUSY))), error(code(-int(syscall.ENOENT)))
	for _, test := range []struct {
		name string
		got  error
		want error
	}{
		{"allowed and made", allowed(nil), nil},
		{"allowed and refused", allowed(refusal), fault.Superseded},
		{"allowed and gone", allowed(missing), missing},
		{"withheld and refused", withheld(refusal, errTakenBack), errTakenBack},
		{"withheld and made", withheld(nil, errTakenBack), fault.Superseded},
		{"withheld and gone", withheld(missing, errTakenBack), missing},
		{"not asked and made", unasked(nil), fault.Superseded},
	} {
		if !errors.Is(test.got, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, test.got, test.want)
		}
		if errors.Is(test.got, errTakenBack) != (test.want == errTakenBack) {
			t.Errorf("%s: got %v, which says that no snapshot is there", test.name, test.got)
		}
	}
}

// TestTogetherRoundIsOver looks at a decided round just when the wait for it ends too.
func TestTogetherRoundIsOver(t *testing.T) {
	r := newRound(1)
	if r.over(0) {
		t.Error("undecided: got over, want not")
	}
	close(r.decided)
	for range 100_000 {
		if !r.over(0) {
			t.Fatal("decided: got not over, want over")
		}
	}
}

// TestTogetherRefuses asks for what cannot be had: nothing may be taken, nothing be left.
func TestTogetherRefuses(t *testing.T) {
	l := newLab(t)
	p, a := l.open(t, l.place()), l.client(t)
	good := called(group(t, p, "good", 2), "new")
	w := l.counting(t, good)
	bare := mapped()
	bare.Features = rbd.Layering
	kept := group(t, p, "kept", 1)[0]
	if err := opened(t, l.client(t), kept.ID).LockAcquire(cephrbd.LockModeExclusive); err != nil {
		t.Fatal(err)
	}
	had := group(t, p, "had", 1)[0]
	takeAlone(t, a, rbd.SnapshotOf{ID: had.ID, Name: "new"})
	for _, test := range []struct {
		name  string
		added []rbd.SnapshotOf
		want  fault.Kind
	}{
		{"no such image", []rbd.SnapshotOf{{ID: rbd.NewID(), Name: "new"}}, fault.NotFound},
		{"no exclusive lock", []rbd.SnapshotOf{{ID: create(t, p, "bare", bare), Name: "new"}}, fault.Unsupported},
		{"an image twice", []rbd.SnapshotOf{{ID: good[0].ID, Name: "other"}}, fault.Invalid},
		{"a lock that is kept", []rbd.SnapshotOf{{ID: kept.ID, Name: "new"}}, fault.InUse},
		{"a name that is taken", []rbd.SnapshotOf{{ID: had.ID, Name: "new"}}, fault.Exists},
		{"too many", make([]rbd.SnapshotOf, mostTogether), fault.OutOfRange},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := p.TakeSnapshots(t.Context(), slices.Concat(good, test.added))
			if !fault.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			untouched(t, a, good, 1)
			w.goesOn(t)
		})
	}
	if err := p.TakeSnapshots(t.Context(), nil); err != nil {
		t.Errorf("of no image: got %v, want none", err)
	}
}

// another opens an image as the driver does, in a client of its own.
func (l *lab) another(t *testing.T, wanted rbd.SnapshotOf) *member {
	t.Helper()
	m, err := openMember(l.client(t), wanted)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// occupy begins a snapshot that keeps the image's lock until it is released; none is made.
func (m *member) occupy(t *testing.T) (release func()) {
	t.Helper()
	if err := m.lock(); err != nil {
		t.Fatal(err)
	}
	asked := m.expect()
	created := m.create()
	<-asked
	release = sync.OnceFunc(func() {
		m.answer(false)
		if err := <-created; !is(err, syscall.EBUSY) {
			t.Errorf("the snapshot that kept the lock: got %v, want it refused", err)
		}
	})
	t.Cleanup(release) // or the image could not be closed
	return release
}

// TestTogetherTakenBack lets another client take the lock back in the worst moment.
func TestTogetherTakenBack(t *testing.T) {
	l := newLab(t)
	p, a := l.open(t, l.place()), l.client(t)
	wanted := called(group(t, p, "image", 1), "new")
	m := l.another(t, wanted[0])
	if err := m.lock(); err != nil {
		t.Fatal(err)
	}
	other := opened(t, l.client(t), wanted[0].ID)
	if _, err := other.WriteAt([]byte("taken back"), 0); err != nil {
		t.Fatal(err)
	}
	if owner, err := m.owns(); owner || err != nil {
		t.Fatalf("our lock: got %t, %v; want it lost", owner, err)
	}
	r := newRound(1)
	r.err = errors.New("the round is over")
	close(r.decided)
	if err := m.snapshot(r); !errors.Is(err, errTakenBack) || !fault.Is(err, fault.Superseded) {
		t.Errorf("without the lock: got %v, want %v", err, errTakenBack)
	}
	if len(r.ready) > 0 {
		t.Error("without the lock: got ready, want not")
	}
	if has, err := a.hasSnapshot(wanted[0]); has || err != nil {
		t.Errorf("snapshot: got %t, %v; want none", has, err)
	}
	if _, err := other.WriteAt([]byte("and goes on"), 0); err != nil {
		t.Error(err)
	}
	if err := takeOnce(t.Context(), a, wanted, []*member{m}); err != nil {
		t.Errorf("once more: got %v, want none", err)
	}
}

// TestTogetherMeetsAnother takes a snapshot while another client takes one, about which
// librbd asks first: the answer to that must not let ours go on.
func TestTogetherMeetsAnother(t *testing.T) {
	l := newLab(t)
	p, a := l.open(t, l.place()), l.client(t)
	wanted := called(group(t, p, "image", 1), "ours")
	m := l.another(t, wanted[0])
	if err := m.lock(); err != nil {
		t.Fatal(err)
	}
	theirs := rbd.SnapshotOf{ID: wanted[0].ID, Name: "theirs"}
	asked := m.expect()
	var group sync.WaitGroup
	group.Go(func() { takeAlone(t, a, theirs) })
	<-asked
	created := m.create()
	m.answer(true)
	group.Wait()
	if err := allowed(<-created); !fault.Is(err, fault.Superseded) {
		t.Errorf("ours: got %v, want %v", err, fault.Superseded)
	}
	for snapshot, want := range map[rbd.SnapshotOf]bool{theirs: true, wanted[0]: false} {
		if has, err := a.hasSnapshot(snapshot); has != want || err != nil {
			t.Errorf("snapshot %s: got %t, %v; want %t", snapshot.Name, has, err, want)
		}
	}
}

// TestTogetherHoldsNobodyForLong takes snapshots while one image's lock cannot be had.
func TestTogetherHoldsNobodyForLong(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	wanted := called(group(t, p, "image", 2), "new")
	w := l.counting(t, wanted[:1])
	release := l.another(t, rbd.SnapshotOf{ID: wanted[1].ID, Name: "keeps"}).occupy(t)
	w.goesOn(t)
	result := make(chan error, 1)
	go func() { result <- p.TakeSnapshots(t.Context(), wanted) }()
	until(t, func() bool { return time.Duration(w.longest.Load()) > longestHold/2 },
		func() string { return "writer: got no pause, want one" })
	if got := w.goesOn(t); got > longestHold+time.Second {
		t.Errorf("writer: got held up for %s, want at most about %s", got, longestHold)
	}
	release()
	if err := <-result; err != nil {
		t.Errorf("when the lock is free: got %v, want none", err)
	}
}

// TestTogetherCanceled lets the caller go while an image's lock cannot be had.
func TestTogetherCanceled(t *testing.T) {
	l := newLab(t)
	p, a := l.open(t, l.place()), l.client(t)
	wanted := called(group(t, p, "image", 2), "new")
	w := l.counting(t, wanted[:1])
	release := l.another(t, rbd.SnapshotOf{ID: wanted[1].ID, Name: "keeps"}).occupy(t)
	w.goesOn(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- p.TakeSnapshots(ctx, wanted) }()
	w.waits(t, 300*time.Millisecond)
	began := time.Now()
	cancel()
	if err := <-result; !fault.Is(err, fault.Unknown) {
		t.Errorf("got %v, want %v", err, fault.Unknown)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("canceled: got back after %s, want at once", took)
	}
	if got := w.goesOn(t); got > longestHold/2 {
		t.Errorf("writer: got held up for %s, want no longer than the caller waits", got)
	}
	release()
	untouched(t, a, wanted, 1)
}
