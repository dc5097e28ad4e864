//go:build cgo

package fuse_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/mappertest"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

func TestSuite(t *testing.T) {
	mappertest.Suite(t, func(t *testing.T) mappertest.Fixture {
		l := newLab(t)
		return l.fixture(l.mapper)
	})
}

// fixture is what the mappers' suite needs, with a mapper as each process of the driver has it.
func (l *lab) fixture(process func() *fuse.Mapper) mappertest.Fixture {
	return mappertest.Fixture{
		Mapper:   process(),
		Restart:  func() mapper.Mapper { return process() },
		Image:    l.image,
		Resize:   l.resize,
		Content:  l.content,
		Kill:     l.fence,
		Refusing: l.refusing,
		Hold:     mappertest.HoldDevice,
		Stranger: l.stranger,
	}
}

// status reads what a worker says of itself.
func status(t *testing.T, l *lab, request mapper.Request) fuse.Status {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(l.place(request), "mount", fuse.StatusFile))
	must(t, err)
	var status fuse.Status
	must(t, json.Unmarshal(content, &status))
	return status
}

// mapped maps an image, and unmaps it at the end if the test has not.
func (l *lab) mapped(t *testing.T, m *fuse.Mapper, request mapper.Request) mapper.Device {
	t.Helper()
	device, err := m.Map(t.Context(), request)
	must(t, err)
	t.Cleanup(func() {
		if err := m.Unmap(context.WithoutCancel(t.Context()), device); err != nil {
			t.Errorf("Unmap at the end: got %v, want no error", err)
		}
	})
	return device
}

// mounted mounts a device, and unmounts it at the end if the test has not.
func mounted(t *testing.T, device mapper.Device) (path string, unmount func()) {
	t.Helper()
	path = t.TempDir()
	run(t, "mount", device.Path, path)
	unmount = sync.OnceFunc(func() { must(t, syscall.Unmount(path, 0)) })
	t.Cleanup(unmount)
	return path, unmount
}

func kind(t *testing.T, what string, err error, want fault.Kind) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: got error %v, want kind %q", what, err, want)
	}
}

// A file system is made, filled, unmapped, mapped again by another process and still whole.
func TestExt4(t *testing.T) {
	l := newLab(t)
	request := l.image(t, 256<<20)
	m := l.mapper()
	device := l.mapped(t, m, request)
	run(t, "mkfs.ext4", "-q", device.Path)
	path, unmount := mounted(t, device)
	data := bytes.Repeat([]byte("some data to keep\n"), 1<<20)
	must(t, os.WriteFile(filepath.Join(path, "file"), data, 0o600))
	kind(t, "Unmap while mounted", m.Unmap(t.Context(), device), fault.InUse)
	unmount()
	must(t, m.Unmap(t.Context(), device))

	device = l.mapped(t, l.mapper(), request)
	run(t, "e2fsck", "-f", "-n", device.Path)
	path, unmount = mounted(t, device)
	if got, err := os.ReadFile(filepath.Join(path, "file")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("file after mapping again: got %d bytes, %v, want the %d written", len(got), err, len(data))
	}
	unmount()
}

// What is removed and trimmed frees its objects.
func TestDiscardFreesObjects(t *testing.T) {
	l := newLab(t)
	request := l.image(t, 4<<30) // more than the kernel asks to discard at once
	device := l.mapped(t, l.mapper(), request)
	run(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0", device.Path)
	path, unmount := mounted(t, device)
	run(t, "fstrim", path)
	before := l.objects(t, request)
	file := filepath.Join(path, "file")
	must(t, os.WriteFile(file, bytes.Repeat([]byte("x"), 64<<20), 0o600))
	run(t, "sync", "-f", path)
	full := l.objects(t, request)
	if full < before+16 {
		t.Errorf("objects after writing 64 MiB: got %d, want 16 more than %d", full, before)
	}
	must(t, os.Remove(file))
	run(t, "sync", "-f", path)
	run(t, "fstrim", path)
	// A few are left: the file system now uses more of its own blocks.
	if after := l.objects(t, request); after > full-12 {
		t.Errorf("objects after fstrim: got %d of %d, want about %d as before", after, full, before)
	}
	unmount()
}

// A write of zeros reads as zeros, every byte and no more, also where a clone's parent has data.
func TestZeroesAreExact(t *testing.T) {
	l := newLab(t)
	parent := l.image(t, 32<<20)
	m := l.mapper()
	ones := bytes.Repeat([]byte{1}, 32<<20)
	device := l.mapped(t, m, parent)
	must(t, os.WriteFile(device.Path, ones, 0))
	must(t, m.Unmap(t.Context(), device))

	device = l.mapped(t, m, l.clone(t, parent))
	// -z writes zeros, without it the range is discarded; the kernel sends both alike.
	run(t, "blkdiscard", "-z", "-o", "1536", "-l", "5120", device.Path)
	run(t, "blkdiscard", "-o", "8388608", "-l", "4194304", device.Path)
	run(t, "blkdiscard", "-o", "16777728", "-l", "6291456", device.Path)
	want := slices.Clone(ones)
	clear(want[1536 : 1536+5120])
	clear(want[8388608 : 8388608+4194304])
	clear(want[16777728 : 16777728+6291456])
	got, err := os.ReadFile(device.Path)
	must(t, err)
	if i := slices.IndexFunc(indices(len(want)), func(i int) bool { return got[i] != want[i] }); i >= 0 {
		t.Errorf("byte %d after writing zeros: got %d, want %d", i, got[i], want[i])
	}
}

func indices(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// clone makes a clone of an image and removes it after the test.
func (l *lab) clone(t *testing.T, parent mapper.Request) mapper.Request {
	t.Helper()
	image, err := rbd.OpenImage(l.ioctx, parent.Target.Image.Name, rbd.NoSnapshot)
	must(t, err)
	defer func() { must(t, image.Close()) }()
	_, err = image.CreateSnapshot("origin")
	must(t, err)
	t.Cleanup(func() {
		image, err := rbd.OpenImage(l.ioctx, parent.Target.Image.Name, rbd.NoSnapshot)
		must(t, err)
		must(t, image.GetSnapshot("origin").Remove())
		must(t, image.Close())
	})
	options := rbd.NewRbdImageOptions()
	defer options.Destroy()
	must(t, options.SetUint64(rbd.ImageOptionCloneFormat, 2))
	name := parent.Target.Image.Name + " clone"
	must(t, rbd.CloneImage(l.ioctx, parent.Target.Image.Name, "origin", l.ioctx, name, options))
	t.Cleanup(func() { l.removeImage(t, name) })
	return l.request(t, name)
}

// A mounted and busy file system grows.
func TestGrowMounted(t *testing.T) {
	tests := []struct {
		kind       string
		make, grow []string
		capability int
	}{
		{"ext4", []string{"mkfs.ext4", "-q"}, []string{"resize2fs"}, unix.CAP_SYS_RESOURCE},
		{"xfs", []string{"mkfs.xfs", "-q"}, []string{"xfs_growfs"}, unix.CAP_SYS_ADMIN},
	}
	for _, test := range tests {
		t.Run(test.kind, func(t *testing.T) {
			if !capable(t, test.capability) {
				t.Skipf("growing a mounted %s needs capability %d of capability.h", test.kind, test.capability)
			}
			l := newLab(t)
			request := l.image(t, 400<<20)
			m := l.mapper()
			device := l.mapped(t, m, request)
			run(t, test.make[0], append(test.make[1:], device.Path)...)
			path, unmount := mounted(t, device)
			stop := busy(t, filepath.Join(path, "busy"))
			l.resize(t, request, 1<<30)
			if got, err := m.Grow(t.Context(), device); err != nil || got != 1<<30 {
				t.Errorf("Grow: got %d, %v, want %d", got, err, 1<<30)
			}
			run(t, test.grow[0], device.Path)
			stop()
			must(t, os.WriteFile(filepath.Join(path, "large"), make([]byte, 600<<20), 0o600))
			unmount()
		})
	}
}

// busy writes a file again and again until stop.
func busy(t *testing.T, path string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; ctx.Err() == nil && err == nil; i++ {
			err = os.WriteFile(path, bytes.Repeat([]byte{byte(i)}, 1<<20), 0o600)
		}
		done <- err
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("writing %s all the time: got %v, want no error", path, err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// capable reports whether this process has a capability.
func capable(t *testing.T, capability int) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, unix.Capget(&header, &data[0]))
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// Synced files outlive the worker.
func TestKilledWorker(t *testing.T) {
	l := newLab(t)
	request := l.image(t, 256<<20)
	m := l.mapper()
	device := l.mapped(t, m, request)
	run(t, "mkfs.ext4", "-q", device.Path)
	path, unmount := mounted(t, device)
	data := bytes.Repeat([]byte("synced"), 1<<20)
	must(t, os.WriteFile(filepath.Join(path, "file"), data, 0o600))
	run(t, "sync", "-f", path)
	l.kill(t, request)

	dead := l.only(t, m)
	if dead.Dead == "" || dead.Path != device.Path {
		t.Errorf("Devices: got %+v, want %s with a reason why it is dead", dead, device.Path)
	}
	_, err := m.Map(t.Context(), request)
	kind(t, "Map while the dead device is mounted", err, fault.InUse)
	kind(t, "Unmap while mounted", m.Unmap(t.Context(), dead), fault.InUse)
	unmount()
	must(t, m.Unmap(t.Context(), dead))

	device = l.mapped(t, m, request)
	path, unmount = mounted(t, device)
	if got, err := os.ReadFile(filepath.Join(path, "file")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("synced file: got %d bytes, %v, want %d", len(got), err, len(data))
	}
	unmount()
}

func (l *lab) only(t *testing.T, m *fuse.Mapper) mapper.Device {
	t.Helper()
	devices, err := m.Devices(t.Context())
	must(t, err)
	if len(devices) != 1 {
		t.Fatalf("Devices: got %+v, want one", devices)
	}
	return devices[0]
}

// Unmapping a device that was dead when it was listed leaves its living successor alone.
func TestUnmapOfReplaced(t *testing.T) {
	l := newLab(t)
	request := l.image(t, 8<<20)
	m := l.mapper()
	l.fence(t, l.mapped(t, m, request))
	dead := l.only(t, m)
	device := l.mapped(t, m, request)
	must(t, m.Unmap(t.Context(), dead))
	if got := l.only(t, m); got != device {
		t.Errorf("Devices: got %+v, want the successor %+v", got, device)
	}
}

// A dead device is taken down although a process has it open and will not let go.
func TestUnmapOfDeadAndOpen(t *testing.T) {
	l := newLab(t)
	request := l.image(t, 8<<20)
	m := l.mapper()
	device := l.mapped(t, m, request)
	file, err := os.OpenFile(device.Path, os.O_RDWR, 0)
	must(t, err)
	defer func() { must(t, file.Close()) }()
	l.fence(t, device)
	must(t, m.Unmap(t.Context(), device))
	if devices, err := m.Devices(t.Context()); err != nil || len(devices) > 0 {
		t.Errorf("Devices: got %+v, %v, want none", devices, err)
	}
	if again := l.mapped(t, m, request); again.Path == device.Path {
		t.Errorf("Map: got %s, which still is in the hands of a process, want another", again.Path)
	}
}

// The device's client is the image's watcher, in the form that blocklists it; then the
// device is dead, with data that was flushed on the cluster.
func TestBlocklisted(t *testing.T) {
	for _, idle := range []bool{false, true} {
		t.Run(fmt.Sprintf("idle %t", idle), func(t *testing.T) {
			l := newLab(t)
			request := l.image(t, 8<<20)
			m := l.mapper()
			device := l.mapped(t, m, request)
			if watchers := l.watchers(t, request.Target.Image.Name); !slices.Equal(watchers, []string{device.Client}) {
				t.Errorf("Client: got %s, want the watcher %s", device.Client, watchers)
			}
			must(t, os.WriteFile(device.Path, []byte("flushed"), 0))
			run(t, "sync", device.Path)
			l.ceph(t, "osd", "blocklist", "add", device.Client)
			if !idle {
				l.seesDeath(t, m, device)
			}
			again := l.mapped(t, m, request)
			if again.Client == device.Client || again.Dead != "" {
				t.Errorf("Map: got %+v, want a living device with another client", again)
			}
			if got := l.content(t, request, 0, 7); string(got) != "flushed" {
				t.Errorf("image: got %q, want %q", got, "flushed")
			}
			must(t, os.WriteFile(again.Path, []byte("again"), 0))
		})
	}
}

// seesDeath writes to a device whose client was blocklisted.
func (l *lab) seesDeath(t *testing.T, m *fuse.Mapper, device mapper.Device) {
	t.Helper()
	file, err := os.OpenFile(device.Path, os.O_WRONLY|syscall.O_SYNC, 0)
	must(t, err)
	defer func() { _ = file.Close() }()
	if _, err := file.WriteAt([]byte("too late"), 4<<20); err == nil {
		t.Errorf("write of a blocklisted client: got no error, want one")
	}
	if got, err := os.ReadFile(device.Path); err == nil {
		t.Errorf("read of a blocklisted client: got %d bytes, want an error", len(got))
	}
	if dead := l.only(t, m); !strings.Contains(dead.Dead, "blocklisted") || dead.Client != "" {
		t.Errorf("Devices: got Dead %q, Client %q, want that it was blocklisted, and no client", dead.Dead, dead.Client)
	}
}

// A worker that is stopped is neither alive nor dead: nobody waits for it for long, and
// nothing is taken from it.
func TestStoppedWorker(t *testing.T) {
	l := newLab(t)
	request := l.image(t, 8<<20)
	m := l.mapper()
	device := l.mapped(t, m, request)
	pid := status(t, l, request).PID
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	defer func() { must(t, syscall.Kill(pid, syscall.SIGCONT)) }()
	if got := l.only(t, m); got != device {
		t.Errorf("Devices: got %+v, want %+v", got, device)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	kind(t, "Unmap", m.Unmap(ctx, device), fault.Unavailable)
	_, err := m.Map(t.Context(), request)
	kind(t, "Map", err, fault.Unavailable)
}

// Signals that end a service leave the device alone.
func TestSignalsAreIgnored(t *testing.T) {
	l := newLab(t)
	request := l.image(t, 8<<20)
	device := l.mapped(t, l.mapper(), request)
	pid := status(t, l, request).PID
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE} {
		must(t, syscall.Kill(pid, signal))
	}
	must(t, os.WriteFile(device.Path, []byte("still here"), 0))
	if got := status(t, l, request); got.PID != pid || got.Dead != "" {
		t.Errorf("status: got %+v, want process %d alive", got, pid)
	}
}

// The key is in no place where another process could find it.
func TestKeyIsHidden(t *testing.T) {
	l := newLab(t)
	request := l.image(t, 8<<20)
	device := l.mapped(t, l.mapper(), request)
	key := l.user.Key.Reveal()
	pid := status(t, l, request).PID
	files := []string{"/proc/mounts", device.Path}
	for _, name := range []string{"cmdline", "environ", "comm"} {
		files = append(files, fmt.Sprintf("/proc/%d/%s", pid, name))
	}
	must(t, filepath.WalkDir(l.directory, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() && entry.Name() != fuse.ControlFile {
			files = append(files, path)
		}
		return err
	}))
	if len(files) < 8 {
		t.Errorf("files to look at: got %q, want more", files)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		must(t, err)
		if bytes.Contains(content, []byte(key)) {
			t.Errorf("%s: the key is in it", file)
		}
	}
}

// Errors of the worker come back with their kind, in time, and leave nothing.
func TestRefused(t *testing.T) {
	l := newLab(t)
	image := l.image(t, 8<<20)
	unreachable := filepath.Join(t.TempDir(), "ceph.conf")
	must(t, os.WriteFile(unreachable, []byte("[global]\nmon host = 127.0.0.1:1\n"), 0o600))
	tests := []struct {
		name   string
		change func(request *mapper.Request)
		want   fault.Kind
	}{
		{"unknown user", func(r *mapper.Request) { r.Access.User = "nobody" }, fault.Unauthenticated},
		{"no user", func(r *mapper.Request) { r.Access.User = "" }, fault.Unauthenticated},
		{"no monitor", func(r *mapper.Request) { r.Access.Conf = unreachable }, fault.Unavailable},
		{"no ceph.conf", func(r *mapper.Request) { r.Access.Conf = "/nonexistent" }, fault.Unavailable},
		{"another cluster", func(r *mapper.Request) { r.Target.FSID = "00000000-0000-0000-0000-000000000000" }, fault.Invalid},
		{"a pool that is gone", func(r *mapper.Request) { r.Target.PoolID = 4711 }, fault.NotFound},
		{"another namespace", func(r *mapper.Request) { r.Target.Image.Namespace = "other" }, fault.NotFound},
		{"a setting that librbd does not know", func(r *mapper.Request) { r.Options = []string{"rbd_cache_of_gold=1"} }, fault.Invalid},
		{"a value that librbd does not take", func(r *mapper.Request) { r.Options = []string{"rbd_cache_size=many"} }, fault.Invalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			request, m := image, l.mapper()
			test.change(&request)
			const limit = 4 * time.Second
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			begun := time.Now()
			_, err := m.Map(ctx, request)
			kind(t, "Map", err, test.want)
			if took := time.Since(begun); took > limit+time.Second {
				t.Errorf("Map: took %s, want at most about %s", took, limit)
			}
			if devices, err := m.Devices(t.Context()); err != nil || len(devices) > 0 {
				t.Errorf("Devices: got %+v, %v, want none", devices, err)
			}
		})
	}
}

// With the addresses of monitors no ceph.conf is needed, or it may say others.
func TestMonitorsInTheOrder(t *testing.T) {
	l := newLab(t)
	stale := filepath.Join(t.TempDir(), "ceph.conf")
	must(t, os.WriteFile(stale, []byte("[global]\nmon host = 127.0.0.1:1\n"), 0o600))
	for _, conf := range []string{"", stale} {
		request := l.image(t, 8<<20)
		request.Access.Conf, request.Access.Monitors = conf, strings.Join(l.Monitors(), ",")
		mapAndUse(t, l.mapper(), request)
	}
}

// An option that librbd knows is taken.
func TestOption(t *testing.T) {
	l := newLab(t)
	request := l.image(t, 8<<20)
	request.Options = []string{"rbd_cache=false"}
	device := l.mapped(t, l.mapper(), request)
	must(t, os.WriteFile(device.Path, []byte("uncached"), 0))
}

// alone is the option that gives a test a cluster of its own, because it stops daemons.
var alone = ceph.Options{Conf: map[string]string{"osd_heartbeat_grace": "120"}}

// The directory's path may have links in it, as /var/run is one.
func TestLinkedDirectory(t *testing.T) {
	l := newLab(t)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(filepath.Dir(l.directory), link))
	m := fuse.New(fuse.Options{Directory: filepath.Join(link, "run"), Launch: launch})
	mapAndUse(t, m, l.image(t, 8<<20))
}

// While no OSD answers, nobody waits beyond his deadline.
func TestSilentCluster(t *testing.T) {
	needRoot(t)
	l := newLabOn(t, ceph.ForTest(t, alone))
	request, other := l.image(t, 8<<20), l.image(t, 8<<20)
	m := l.mapper()
	device := l.mapped(t, m, request)
	must(t, l.Freeze(t.Context(), "osd.0"))
	defer func() { must(t, l.Thaw(context.WithoutCancel(t.Context()), "osd.0")) }()
	calls := []struct {
		name string
		call func(ctx context.Context) error
	}{
		{"Map of another image", func(ctx context.Context) error { _, err := m.Map(ctx, other); return err }},
		{"Map again", func(ctx context.Context) error { _, err := m.Map(ctx, request); return err }},
	}
	for _, one := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		begun := time.Now()
		kind(t, one.name, one.call(ctx), fault.Unavailable)
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("%s: took %s, want about 2 s", one.name, took)
		}
		cancel()
	}
	if got := l.only(t, m); got != device {
		t.Errorf("Devices: got %+v, want %+v alone", got, device)
	}
}

// Data that was written and not synced reaches the cluster, or Unmap says that it has not.
func TestUnmapWhileSilent(t *testing.T) {
	needRoot(t)
	l := newLabOn(t, ceph.ForTest(t, alone))
	request := l.image(t, 8<<20)
	m := l.mapper()
	device := l.mapped(t, m, request)
	data := bytes.Repeat([]byte("late"), 1<<20)
	file, err := os.OpenFile(device.Path, os.O_WRONLY|syscall.O_DIRECT, 0)
	must(t, err)
	must(t, l.Freeze(t.Context(), "osd.0"))
	written := make(chan error, 1)
	go func() {
		_, err := file.Write(aligned(data))
		written <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := m.Unmap(ctx, device); err == nil {
		t.Errorf("Unmap while the cluster is silent: got no error, want one")
	}
	must(t, l.Thaw(t.Context(), "osd.0"))
	must(t, <-written)
	must(t, file.Close())
	eventually(t, "unmap", func() error { return m.Unmap(t.Context(), device) })
	if got := l.content(t, request, 0, int64(len(data))); !bytes.Equal(got, data) {
		t.Errorf("image: got %.20q..., want %.20q...", got, data)
	}
}

// aligned returns a copy of data as O_DIRECT wants it.
func aligned(data []byte) []byte {
	memory, err := syscall.Mmap(-1, 0, len(data), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	copy(memory, data)
	return memory
}
