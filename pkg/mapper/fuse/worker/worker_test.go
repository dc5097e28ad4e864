package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// memory is an image in memory. Calls wait while it is silent, and fail with its error.
type memory struct {
	mutex   sync.Mutex
	data    []byte
	err     error
	zeroed  []int64 // the lengths of calls of Zero
	flushes int
	closes  int

	silent atomic.Pointer[chan struct{}]
}

// answer waits and returns the error that a call is to give.
func (m *memory) answer() error {
	if silent := m.silent.Load(); silent != nil {
		<-*silent
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.err
}

func (m *memory) silence() (end func()) {
	silent := make(chan struct{})
	m.silent.Store(&silent)
	return func() { m.silent.Store(nil); close(silent) }
}

func (m *memory) fail(err error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.err = err
}

func (m *memory) count(what *int) int {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return *what
}

func (m *memory) ReadAt(data []byte, offset int64) (int, error) {
	if err := m.answer(); err != nil {
		return 0, err
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return copy(data, m.data[min(offset, int64(len(m.data))):]), nil
}

func (m *memory) WriteAt(data []byte, offset int64) (int, error) {
	if err := m.answer(); err != nil {
		return 0, err
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return copy(m.data[offset:], data), nil
}

func (m *memory) Zero(offset, length int64) error {
	if err := m.answer(); err != nil {
		return err
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.zeroed = append(m.zeroed, length)
	if m.data != nil {
		clear(m.data[offset : offset+length])
	}
	return nil
}

func (m *memory) Flush() error {
	err := m.answer()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.flushes++
	return err
}

func (m *memory) Size() (int64, error) {
	err := m.answer()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return int64(len(m.data)), err
}

func (m *memory) Probe() error { return m.answer() }

func (m *memory) Close() error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.closes++
	return m.err
}

const testClient = "10.0.0.1:0/42"

// mount serves an image in memory and returns the mount point. It is unmounted at the end.
func mount(t *testing.T, image *memory, readOnly bool) (path string, s *served) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	order := fuse.Order{
		Target: mapper.Target{
			Image: volid.Image{Pool: volid.Pool{Cluster: "a", Pool: "kube"}, Name: "x"}, FSID: "f", PoolID: 2, ImageID: "i",
		},
		Credentials: params.Credentials{User: "kube", Key: params.NewSecret("AQD0aGVsbG8=")},
		ReadOnly:    readOnly, Directory: t.TempDir(),
	}
	must(t, os.Mkdir(order.MountPoint(), 0o700))
	s, err := serve(order, opened{image, testClient}, &events{})
	must(t, err)
	t.Cleanup(func() {
		must(t, unix.Unmount(order.MountPoint(), unix.MNT_DETACH))
		_ = s.wait()
		if got := image.count(&image.closes); got != 1 {
			t.Errorf("image was closed %d times, want once", got)
		}
	})
	return order.MountPoint(), s
}

// A child of the process does not hold the FUSE connection: a device whose worker died would
// live on in it, and never answer.
func TestChildrenHaveNoConnection(t *testing.T) {
	mount(t, &memory{data: make([]byte, 4096)}, false)
	own, err := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", os.Getpid())).Output()
	must(t, err)
	if !strings.Contains(string(own), "/dev/fuse") {
		t.Fatalf("descriptors: got %s, want /dev/fuse among them", own)
	}
	child, err := exec.Command("ls", "-l", "/proc/self/fd").Output()
	must(t, err)
	if strings.Contains(string(child), "/dev/fuse") {
		t.Errorf("descriptors of a child: got %s, want no /dev/fuse", child)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wants(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func open(t *testing.T, mount string, flags int) *os.File {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(mount, fuse.ImageFile), flags, 0)
	must(t, err)
	t.Cleanup(func() { _ = file.Close() })
	return file
}

func control(mount, text string) error {
	file, err := os.OpenFile(filepath.Join(mount, fuse.ControlFile), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	_ = file.Close()
	return err
}

func status(t *testing.T, mount string) fuse.Status {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(mount, fuse.StatusFile))
	must(t, err)
	var status fuse.Status
	must(t, json.Unmarshal(content, &status))
	return status
}

func TestImageFile(t *testing.T) {
	image := &memory{data: make([]byte, 4<<20)}
	path, _ := mount(t, image, false)
	file := open(t, path, os.O_RDWR)
	want := bytes.Repeat([]byte("0123456789"), 200_000)
	_, err := file.WriteAt(want, 1000)
	must(t, err)
	got := make([]byte, len(want))
	if _, err := file.ReadAt(got, 1000); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: got %.20q, %v, want %.20q", got, err, want)
	}
	if n, err := file.ReadAt(got, 4<<20-10); n != 10 || err == nil {
		t.Errorf("read across the end: got %d bytes, %v, want 10 and the end", n, err)
	}
	before := image.count(&image.flushes)
	must(t, file.Sync())
	if after := image.count(&image.flushes); after != before+1 {
		t.Errorf("fsync: got %d flushes, want 1", after-before)
	}
	image.mutex.Lock()
	image.data = append(image.data, make([]byte, 1<<20)...)
	image.mutex.Unlock()
	if info, err := os.Stat(file.Name()); err != nil || info.Size() != 5<<20 {
		t.Errorf("size after the image grew: got %d, %v, want %d", info.Size(), err, 5<<20)
	}
	wants(t, "truncate", file.Truncate(0), unix.EPERM)
}

func TestMountIsListed(t *testing.T) {
	path, _ := mount(t, &memory{data: make([]byte, 4096)}, false)
	entries, err := os.ReadDir(path)
	must(t, err)
	var got []string
	for _, entry := range entries {
		got = append(got, entry.Name()+" "+entry.Type().String())
	}
	if want := "[control ---------- image ---------- status ----------]"; fmt.Sprint(got) != want {
		t.Errorf("ReadDir: got %v, want %s", got, want)
	}
	_, err = os.Stat(filepath.Join(path, "other"))
	wants(t, "stat of another file", err, unix.ENOENT)
	var stat unix.Statfs_t
	must(t, unix.Statfs(path, &stat))
	if stat.Bsize != discardGranularity {
		t.Errorf("f_bsize: got %d, want %d", stat.Bsize, discardGranularity)
	}
}

func TestFallocate(t *testing.T) {
	const hole, keep, zero = unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE
	tests := []struct {
		name           string
		mode           uint32
		offset, length int64
		err            error
	}{
		{"a hole", hole | keep, 1000, 5000, nil},
		{"zeros", zero | keep, 1, 1, nil},
		{"beyond the end", hole | keep, 60_000, 10_000, nil},
		{"all of it", hole | keep, 0, 65536, nil},
		{"allocate", 0, 0, 4096, unix.EOPNOTSUPP},
		{"collapse", unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, unix.EOPNOTSUPP},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			image := &memory{data: bytes.Repeat([]byte{1}, 65536)}
			want := bytes.Clone(image.data)
			if test.err == nil {
				clear(want[test.offset:min(test.offset+test.length, int64(len(want)))])
			}
			path, _ := mount(t, image, false)
			err := unix.Fallocate(int(open(t, path, os.O_RDWR).Fd()), test.mode, test.offset, test.length)
			wants(t, "fallocate", err, test.err)
			if !bytes.Equal(image.data, want) {
				t.Errorf("data differs: got %d zeros, want %d", bytes.Count(image.data, []byte{0}), bytes.Count(want, []byte{0}))
			}
		})
	}
}

// What the kernel asks at once is more than librbd takes.
func TestZeroInPieces(t *testing.T) {
	image := &memory{}
	d := &disk{image: image, log: &events{}}
	d.size.Store(5 << 30)
	must(t, d.zero(512, 4<<30))
	want := []int64{maxZero, maxZero, maxZero, maxZero}
	if fmt.Sprint(image.zeroed) != fmt.Sprint(want) {
		t.Errorf("pieces: got %v, want %v", image.zeroed, want)
	}
	image.zeroed = nil
	must(t, d.zero(4<<30, 4<<30))
	if fmt.Sprint(image.zeroed) != fmt.Sprint([]int64{1 << 30}) {
		t.Errorf("pieces up to the end: got %v, want one of %d", image.zeroed, 1<<30)
	}
}

func TestReadOnly(t *testing.T) {
	path, _ := mount(t, &memory{data: make([]byte, 4096)}, true)
	_, err := os.OpenFile(filepath.Join(path, fuse.ImageFile), os.O_RDWR, 0)
	wants(t, "open to write", err, unix.EROFS)
	if _, err := open(t, path, os.O_RDONLY).Read(make([]byte, 10)); err != nil {
		t.Errorf("read: got %v, want no error", err)
	}
	if !status(t, path).ReadOnly {
		t.Errorf("status: got that it is not read-only")
	}
}

// coded is an error as go-ceph makes them.
type coded int

func (c coded) Error() string  { return fmt.Sprintf("rbd: ret=%d", int(c)) }
func (c coded) ErrorCode() int { return int(c) }

func TestErrors(t *testing.T) {
	tests := []struct {
		name    string
		err     error
		io      error
		control error
		dead    bool
	}{
		{"no space", coded(-28), unix.ENOSPC, unix.EIO, false},
		{"quota", coded(-122), unix.ENOSPC, unix.EIO, false},
		{"any other", coded(-5), unix.EIO, unix.EIO, false},
		{"not permitted", coded(-1), unix.EIO, unix.EIO, false},
		{"no number", errors.New("odd"), unix.EIO, unix.EIO, false},
		{"blocklisted", coded(-108), unix.EIO, unix.ESHUTDOWN, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			image := &memory{data: make([]byte, 65536)}
			path, _ := mount(t, image, false)
			file := open(t, path, os.O_RDWR)
			image.fail(test.err)
			defer image.fail(nil)
			_, err := file.WriteAt([]byte("x"), 0)
			wants(t, "write", err, test.io)
			_, err = file.ReadAt(make([]byte, 1), 0)
			wants(t, "read", err, test.io)
			wants(t, "fsync", file.Sync(), test.io)
			wants(t, "probe", control(path, "probe 1s"), test.control)
			got := status(t, path)
			if (got.Dead != "") != test.dead || test.dead && !strings.Contains(got.Dead, testClient) {
				t.Errorf("Dead: got %q, want a text %t", got.Dead, test.dead)
			}
			if len(got.Events) == 0 {
				t.Errorf("Events: got none, want the error")
			}
		})
	}
}

func TestControlIsChecked(t *testing.T) {
	path, _ := mount(t, &memory{data: make([]byte, 4096)}, false)
	for _, text := range []string{"", "close", "close soon", "open 1s", "1s", "grow 1s", "grow 1s /dev/null", "grow 1s /etc/passwd"} {
		if err := control(path, text); text != "" && !errors.Is(err, unix.EINVAL) {
			t.Errorf("control %q: got %v, want %v", text, err, unix.EINVAL)
		}
	}
	if got := status(t, path); got.Closed {
		t.Errorf("status: got %+v, want it open", got)
	}
}

// After close the image takes nothing any more, and the worker ends although it is mounted.
func TestClose(t *testing.T) {
	image := &memory{data: make([]byte, 65536)}
	path, s := mount(t, image, false)
	file := open(t, path, os.O_RDWR)
	before := image.count(&image.flushes)
	channel, err := os.OpenFile(filepath.Join(path, fuse.ControlFile), os.O_WRONLY, 0)
	must(t, err)
	_, err = channel.WriteString("close 5s")
	must(t, err)
	if flushes, closes := image.count(&image.flushes)-before, image.count(&image.closes); flushes != 1 || closes != 1 {
		t.Errorf("close: got %d flushes and %d closes, want one of each", flushes, closes)
	}
	if got := status(t, path); !got.Closed {
		t.Errorf("status: got %+v, want it closed", got)
	}
	_, err = file.WriteAt([]byte("x"), 0)
	wants(t, "write after close", err, unix.EIO)
	select {
	case <-s.ended:
		t.Errorf("the worker ended before the control file was closed")
	default:
	}
	must(t, channel.Close())
	must(t, s.wait())
}

// An error of close is told once, and the image is closed nevertheless.
func TestCloseFails(t *testing.T) {
	image := &memory{data: make([]byte, 65536)}
	path, _ := mount(t, image, false)
	image.fail(coded(-5))
	wants(t, "close", control(path, "close 5s"), unix.EIO)
	image.fail(nil)
}

// While the cluster is silent nothing waits for longer than it was told to, except I/O.
func TestSilence(t *testing.T) {
	image := &memory{data: make([]byte, 65536)}
	path, s := mount(t, image, false)
	file := open(t, path, os.O_RDWR)
	end := image.silence()
	written := make(chan error, 1)
	go func() {
		_, err := file.WriteAt([]byte("late"), 0)
		written <- err
	}()
	for _, command := range []string{"probe", "flush", "close"} {
		for range 3 {
			wants(t, command, control(path, command+" 20ms"), unix.ETIMEDOUT)
		}
	}
	if got := status(t, path); got.Closed || got.Dead != "" {
		t.Errorf("status: got Closed %t, Dead %q, want neither", got.Closed, got.Dead)
	}
	end()
	must(t, <-written)
	must(t, s.disk.closing.take(time.Minute, func() error { return nil })) // wait for the close that was begun
	if got := status(t, path); !got.Closed {
		t.Errorf("status after the cluster answered: got %+v, want it closed", got)
	}
	if string(image.data[:4]) != "late" {
		t.Errorf("image: got %q, want %q", image.data[:4], "late")
	}
}

func TestStatus(t *testing.T) {
	path, _ := mount(t, &memory{data: make([]byte, 65536)}, false)
	got := status(t, path)
	want := fuse.Status{
		Version: got.Version, PID: os.Getpid(), Image: "a:kube/x", FSID: "f", PoolID: 2, ImageID: "i", User: "kube",
		Client: testClient, Bytes: 65536,
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("status: got %+v, want %+v", got, want)
	}
	// In pieces it is one status, and writing to it is refused.
	content, err := os.ReadFile(filepath.Join(path, fuse.StatusFile))
	must(t, err)
	file, err := os.Open(filepath.Join(path, fuse.StatusFile))
	must(t, err)
	defer func() { must(t, file.Close()) }()
	var pieces []byte
	for piece := make([]byte, 7); ; {
		n, err := file.Read(piece)
		pieces = append(pieces, piece[:n]...)
		if err != nil {
			break
		}
	}
	if !bytes.Equal(pieces, content) {
		t.Errorf("status in pieces: got %s, want %s", pieces, content)
	}
	_, err = os.OpenFile(filepath.Join(path, fuse.StatusFile), os.O_WRONLY, 0)
	wants(t, "open status to write", err, unix.EPERM)
}

func TestEventsAreBounded(t *testing.T) {
	var log events
	for i := range 3 * maxEvents {
		log.add(fmt.Sprint("event ", i))
	}
	all := log.all()
	if last := fmt.Sprint("event ", 3*maxEvents-1); len(all) != maxEvents || !strings.HasSuffix(all[maxEvents-1], last) {
		t.Errorf("events: got %d, the last %q, want %d and %q", len(all), all[len(all)-1], maxEvents, last)
	}
}

// Opening that hangs is given up on, and the error says where it hung.
func TestOpenWithin(t *testing.T) {
	order := fuse.Order{Target: mapper.Target{Image: volid.Image{Pool: volid.Pool{Cluster: "a"}}}}
	stuck := make(chan struct{})
	defer close(stuck)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := openWithin(ctx, order, func(_ fuse.Order, at *step) (opened, error) {
		at.set("open image x")
		<-stuck
		return opened{}, nil
	})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "open image x: no answer from cluster a for") {
		t.Errorf("got %v, want kind %q and the step", err, fault.Unavailable)
	}
	_, err = openWithin(t.Context(), order, func(fuse.Order, *step) (opened, error) { return opened{}, fault.NotFound })
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v, want the opener's error", err)
	}
}

// Calls take turns, and those that cannot have theirs in time give up.
func TestTurn(t *testing.T) {
	var turn turn
	stuck, begun := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- turn.take(time.Minute, func() error { close(begun); <-stuck; return unix.EIO })
	}()
	<-begun
	ran := false
	wants(t, "second", turn.take(20*time.Millisecond, func() error { ran = true; return nil }), unix.ETIMEDOUT)
	if ran {
		t.Errorf("second: ran beside the first, want that it waits")
	}
	close(stuck)
	wants(t, "first", <-first, unix.EIO)
	must(t, turn.take(time.Minute, func() error { return nil }))
}
