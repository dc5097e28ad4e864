package krbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/mappertest"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

func TestSuite(t *testing.T) {
	mappertest.Suite(t, func(t *testing.T) mappertest.Fixture {
		b := newBus(t)
		t.Cleanup(func() {
			if left, _ := os.ReadDir(b.path("locks")); len(left) > 0 {
				t.Errorf("locks: got %v, want none left", left)
			}
		})
		return mappertest.Fixture{
			Mapper:  b.mapper(),
			Restart: func() mapper.Mapper { return b.mapper() },
			Image:   func(_ *testing.T, bytes int64) mapper.Request { return b.image(bytes) },
			Resize: func(_ *testing.T, request mapper.Request, bytes int64) {
				b.with(func() { b.images[request.Target.Image.Name].bytes = bytes })
			},
			Content: func(t *testing.T, request mapper.Request, offset, length int64) []byte {
				content, err := os.ReadFile(b.path("images/" + request.Target.ImageID))
				if err != nil {
					t.Fatal(err)
				}
				return content[offset : offset+length]
			},
			Kill:     func(_ *testing.T, device mapper.Device) { b.kill(device) },
			Refusing: func(_ *testing.T, bytes int64) (mapper.Request, func(mapper.Device)) { return b.image(bytes), b.kill },
			Hold:     func(_ *testing.T, device mapper.Device) (release func()) { return b.hold(device) },
			Stranger: params.Credentials{User: "stranger", Key: keyOf("another key")},
		}
	})
}

// What the kernel is told, word by word.
func TestLine(t *testing.T) {
	tests := []struct {
		name    string
		release string
		change  func(*mapper.Request)
		want    string // with TOKEN for the token
	}{
		{"ordinary", "6.1", nil,
			"10.0.0.1:3300 name=kube,key=rbd-csi:main:kube:TOKEN,noshare,ms_mode=prefer-crc,mount_timeout=16 kube pvc-ab0 -"},
		{"old kernel", "5.4", nil,
			"10.0.0.1:6789 name=kube,key=rbd-csi:main:kube:TOKEN,noshare,mount_timeout=16 kube pvc-ab0 -"},
		{"read-only in a namespace", "6.1", func(r *mapper.Request) { r.ReadOnly, r.Target.Image.Namespace = true, "team" },
			"10.0.0.1:3300 name=kube,key=rbd-csi:main:kube:TOKEN,noshare,ms_mode=prefer-crc,mount_timeout=16,_pool_ns=team,ro kube pvc-ab0 -"},
		{"options", "6.1", func(r *mapper.Request) {
			r.Options = []string{"ms_mode=legacy", "mount_timeout=5", "osd_request_timeout=30", "read_from_replica=localize", "crush_location=zone:a|host:b", "notrim"}
		}, "10.0.0.1:6789 name=kube,key=rbd-csi:main:kube:TOKEN,noshare,ms_mode=legacy,mount_timeout=5,osd_request_timeout=30,read_from_replica=localize,crush_location=zone:a|host:b,notrim kube pvc-ab0 -"},
		{"several monitors", "6.1", func(r *mapper.Request) {
			r.Access.Monitors = "10.0.0.3,10.0.0.2:3300;[v2:[fd00::1]:3300/0,v1:[fd00::1]:6789/0]"
		},
			"10.0.0.2:3300,10.0.0.3:3300,[fd00::1]:3300 name=kube,key=rbd-csi:main:kube:TOKEN,noshare,ms_mode=prefer-crc,mount_timeout=16 kube pvc-ab0 -"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBus(t)
			m := b.mapper()
			m.kernel.release = func() string { return test.release }
			request := b.image(1 << 20)
			if test.change != nil {
				test.change(&request)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second+500*time.Millisecond)
			defer cancel()
			if _, err := m.Map(ctx, request); err != nil {
				t.Fatal(err)
			}
			line := b.texts("add_single_major")[0]
			_, rest, _ := strings.Cut(line, "kube:")
			token, _, _ := strings.Cut(rest, ",")
			if got := strings.Replace(line, token, "TOKEN", 1); got != test.want || len(token) != 8 {
				t.Errorf("line: got %s with a token of %d\nwant %s", got, len(token), test.want)
			}
			if strings.Contains(line, request.Access.Key.Reveal()) {
				t.Errorf("line: got the key in %s, want it nowhere", line)
			}
		})
	}
}

func TestBadInput(t *testing.T) {
	tests := []struct {
		name   string
		change func(*mapper.Request)
		kind   fault.Kind
		text   string
	}{
		{"blank in the name", func(r *mapper.Request) { r.Target.Image.Name = "a b" }, fault.Unsupported, `"a b"`},
		{"newline in the name", func(r *mapper.Request) { r.Target.Image.Name = "a\nb" }, fault.Invalid, "image"},
		{"long name", func(r *mapper.Request) { r.Target.Image.Name = strings.Repeat("x", 97) }, fault.Unsupported, "97 bytes"},
		{"comma in the namespace", func(r *mapper.Request) { r.Target.Image.Namespace = "a,ro" }, fault.Unsupported, `"a,ro"`},
		{"no pool", func(r *mapper.Request) { r.Target.Image.Pool.Pool = "" }, fault.Invalid, "pool"},
		{"fsid is none", func(r *mapper.Request) { r.Target.FSID = "../x" }, fault.Invalid, "fsid"},
		{"image ID is none", func(r *mapper.Request) { r.Target.ImageID = "../x" }, fault.Invalid, "ID"},
		{"no user", func(r *mapper.Request) { r.Access.User = "" }, fault.Unauthenticated, "user"},
		{"an option in the user", func(r *mapper.Request) { r.Access.User = "a,share" }, fault.Unauthenticated, "a,share"},
		{"key is none", func(r *mapper.Request) { r.Access.Key = secret("not*base64") }, fault.Unauthenticated, "key"},
		{"no key", func(r *mapper.Request) { r.Access.Key = secret("") }, fault.Unauthenticated, "key"},
		{"no monitor", func(r *mapper.Request) { r.Access.Monitors = " , " }, fault.Invalid, "monitor"},
		{"monitor is none", func(r *mapper.Request) { r.Access.Monitors = "a b=c" }, fault.Invalid, "b=c"},
		{"port is none", func(r *mapper.Request) { r.Access.Monitors = "10.0.0.1:x" }, fault.Invalid, `"x"`},
		{"no monitor of the mode", func(r *mapper.Request) {
			r.Access.Monitors, r.Options = "v1:10.0.0.1:6789", []string{"ms_mode=secure"}
		}, fault.Invalid, "ms_mode=secure"},
		{"no ceph.conf", func(r *mapper.Request) { r.Access.Monitors, r.Access.Conf = "", "/nowhere/ceph.conf" }, fault.Unavailable, "main"},
		{"nothing says where", func(r *mapper.Request) { r.Access.Monitors = "" }, fault.Unavailable, "mon_host"},
		{"unknown option", func(r *mapper.Request) { r.Options = []string{"fast"} }, fault.Invalid, `"fast"`},
		{"the driver's option", func(r *mapper.Request) { r.Options = []string{"share"} }, fault.Invalid, `"share"`},
		{"a key in an option", func(r *mapper.Request) { r.Options = []string{"secret=x"} }, fault.Invalid, `"secret"`},
		{"two options in one", func(r *mapper.Request) { r.Options = []string{"queue_depth=1,share"} }, fault.Invalid, "queue_depth"},
		{"option twice", func(r *mapper.Request) { r.Options = []string{"notrim", "notrim"} }, fault.Invalid, "twice"},
		{"value too many", func(r *mapper.Request) { r.Options = []string{"notrim=1"} }, fault.Invalid, "no value"},
		{"value is missing", func(r *mapper.Request) { r.Options = []string{"queue_depth"} }, fault.Invalid, "a number"},
		{"value is none", func(r *mapper.Request) { r.Options = []string{"ms_mode=fast"} }, fault.Invalid, "prefer-crc"},
		{"location is none", func(r *mapper.Request) { r.Options = []string{"crush_location=zone"} }, fault.Invalid, "TYPE:NAME"},
		{"size is no power of two", func(r *mapper.Request) { r.Options = []string{"alloc_size=5000"} }, fault.Invalid, "power of two"},
		{"timeout of mount too small", func(r *mapper.Request) { r.Options = []string{"mount_timeout=0"} }, fault.Invalid, "seconds"},
		{"option newer than the kernel", func(r *mapper.Request) { r.Options = []string{"rxbounce"} }, fault.Unsupported, "wants Linux 5.17"},
		{"line too long", func(r *mapper.Request) {
			r.Options = []string{"crush_location=host:" + strings.Repeat("x", 4096)}
		}, fault.Unsupported, "4095"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBus(t)
			m := b.mapper()
			m.kernel.release = func() string { return "5.15.0" }
			request := b.image(1 << 20)
			test.change(&request)
			_, err := m.Map(t.Context(), request)
			wantKind(t, "Map", err, test.kind)
			wantText(t, "Map", err, test.text)
			if texts := b.texts("add_single_major"); len(texts) > 0 {
				t.Errorf("written: got %q, want nothing", texts)
			}
		})
	}
}

// What the kernel refuses, by its number and its words.
func TestRefused(t *testing.T) {
	tests := []struct {
		name  string
		errno unix.Errno
		said  []string
		kind  fault.Kind
		texts []string
	}{
		{"feature", unix.ENXIO, []string{"rbd: image other: image uses unsupported features: 0x8", "rbd: image pvc-ab0: image uses unsupported features: 0x440"},
			fault.Unsupported, []string{"journaling (no Linux has it)", "non-primary", "it has layering", "exclusive-lock (since Linux 4.9)"}},
		{"feature with a version", unix.ENXIO, []string{"rbd: image pvc-ab0: image uses unsupported features: 0x8"},
			fault.Unsupported, []string{"object-map (since Linux 5.3)", "6.1.0-test"}},
		{"feature without a word", unix.ENXIO, nil, fault.Unsupported, []string{"has a feature that the kernel lacks", "deep-flatten"}},
		{"option", unix.EINVAL, []string{"libceph: Unknown parameter 'rxbounce'"}, fault.Unsupported, []string{"Unknown parameter 'rxbounce'"}},
		{"image", unix.ENOENT, nil, fault.NotFound, []string{"gone"}},
		{"key", unix.EACCES, nil, fault.Unauthenticated, nil},
		{"capability", unix.EPERM, nil, fault.Denied, nil},
		{"monitors", unix.ETIMEDOUT, []string{"libceph: mon0 (1)10.0.0.1:6789 socket closed"}, fault.Unavailable, []string{"ms_mode", "socket closed"}},
		{"lock", unix.EROFS, nil, fault.InUse, []string{"exclusively"}},
		{"blocklist", unix.ESHUTDOWN, nil, fault.Unavailable, []string{"blocklist"}},
		{"anything else", unix.ENOMEM, nil, fault.Unavailable, []string{"cannot allocate memory"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBus(t)
			request := b.image(1 << 20)
			b.with(func() { b.images["pvc-ab0"].errno, b.images["pvc-ab0"].said = test.errno, test.said })
			_, err := b.mapper().Map(t.Context(), request)
			wantKind(t, "Map", err, test.kind)
			wantText(t, "Map", err, test.texts...)
			if err != nil && strings.Contains(err.Error(), "image other") {
				t.Errorf("Map: got %v, want nothing about another image", err)
			}
		})
	}
}

func TestKeyRefused(t *testing.T) {
	for errno, want := range map[unix.Errno]fault.Kind{
		unix.EINVAL: fault.Unsupported, unix.ENODEV: fault.Unsupported, unix.EPERM: fault.Unsupported, unix.EDQUOT: fault.Unavailable,
	} {
		wantKind(t, "key refused by "+errno.Error(), keyError(Result{Step: stepKey, Errno: errno}), want)
	}
}

// A name that is another image's by now: nothing stays mapped.
func TestNameOfAnother(t *testing.T) {
	b := newBus(t)
	request := b.image(1 << 20)
	b.with(func() { b.images["pvc-ab0"].id = "cd1" })
	_, err := b.mapper().Map(t.Context(), request)
	wantKind(t, "Map", err, fault.NotFound)
	wantText(t, "Map", err, "cd1")
	if got := b.texts("remove_single_major"); !slices.Equal(got, []string{"0"}) {
		t.Errorf("removed: got %q, want 0", got)
	}
}

// Monitors of another cluster: nothing stays mapped.
func TestAnotherCluster(t *testing.T) {
	b := newBus(t)
	request := b.image(1 << 20)
	request.Target.FSID = "99999999-2222-3333-4444-555555555555"
	_, err := b.mapper().Map(t.Context(), request)
	wantKind(t, "Map", err, fault.Unavailable)
	wantText(t, "Map", err, testFSID)
	if got := len(devices(t, b.mapper())); got != 0 {
		t.Errorf("Devices: got %d, want none", got)
	}
}

// A path that is no device, because somebody wrote to it: nothing stays mapped.
func TestNodeIsAFile(t *testing.T) {
	b := newBus(t)
	m := b.mapper()
	m.kernel.node = ensureNode // the bus's devices are files
	_, err := m.Map(t.Context(), b.image(1<<20))
	if os.Geteuid() == 0 {
		wantText(t, "Map", err, "something else than block device 252:0")
	}
	wantKind(t, "Map", err, fault.Unavailable)
	if got := len(devices(t, m)); got != 0 {
		t.Errorf("Devices: got %d, want none", got)
	}
}

// Mappings of others are listed as far as they are known, and snapshots are not.
func TestMappingsOfOthers(t *testing.T) {
	b := newBus(t)
	request := b.image(1 << 20)
	mapped(t, b.mapper(), request)
	b.file("sys/bus/rbd/devices/0/config_info", "10.0.0.1:6789 name=admin,secret=x kube pvc-ab0 -")
	got := devices(t, b.mapper())
	if len(got) != 1 || got[0].Target.Image.Cluster != "" || !got[0].Target.Same(request.Target) {
		t.Errorf("Devices: got %+v, want the image without a cluster's name", got)
	}
	b.file("sys/bus/rbd/devices/0/current_snap", "monday")
	if got := devices(t, b.mapper()); len(got) != 0 {
		t.Errorf("Devices: got %+v, want none of a snapshot", got)
	}
	b.check(os.Remove(b.path("sys/bus/rbd/devices/0/pool_id")))
	b.file("sys/bus/rbd/devices/0/current_snap", "-")
	if got := devices(t, b.mapper()); len(got) != 0 {
		t.Errorf("Devices: got %+v, want none that is just going", got)
	}
}

func TestBusy(t *testing.T) {
	b := newBus(t)
	m := b.mapper()
	request := b.image(1 << 20)
	device := mapped(t, m, request)
	b.hold(device)
	wantText(t, "Unmap", m.Unmap(t.Context(), device), "a process, or a mount of another mount namespace")

	b.file("mountinfo", "36 35 252:0 / /mnt/web rw - ext4 /dev/rbd0 rw")
	b.check(os.MkdirAll(b.path("sys/block/rbd0/holders/dm-3"), 0o755))
	b.check(os.MkdirAll(b.path("sys/block/dm-3/dm"), 0o755))
	b.file("sys/block/dm-3/dm/name", "vg-lv")
	err := m.Unmap(t.Context(), device)
	wantKind(t, "Unmap", err, fault.InUse)
	wantText(t, "Unmap", err, "/mnt/web", "dm-3 (vg-lv)")

	// Dead and mounted here: whoever mounted it unmounts it first.
	b.kill(device)
	device.Dead = "by the test"
	wantKind(t, "Unmap of a dead device that is mounted", m.Unmap(t.Context(), device), fault.InUse)
	b.file("mountinfo", "")
	if err := m.Unmap(t.Context(), device); err != nil {
		t.Errorf("Unmap of a dead device that is held: got %v, want no error", err)
	}
	if got := b.texts("remove_single_major"); got[len(got)-1] != "0 force" {
		t.Errorf("removed: got %q, want 0 force at last", got)
	}
}

// One that was dead and has been replaced is gone.
func TestUnmapOfAReplacedOne(t *testing.T) {
	b := newBus(t)
	m := b.mapper()
	device := mapped(t, m, b.image(1<<20))
	device.Dead = "an hour ago"
	if err := m.Unmap(t.Context(), device); err != nil || len(devices(t, m)) != 1 {
		t.Errorf("Unmap: got %v and %d devices, want no error and the living one", err, len(devices(t, m)))
	}
}

func TestGrow(t *testing.T) {
	b := newBus(t)
	m := b.mapper()
	request := b.image(1 << 20)
	device := mapper.Device{Mapper: Name, Target: request.Target}
	_, err := m.Grow(t.Context(), device)
	wantKind(t, "Grow of what is not mapped", err, fault.NotFound)
	device = mapped(t, m, request)
	b.kill(device)
	_, err = m.Grow(t.Context(), device)
	wantKind(t, "Grow of a dead device", err, fault.Unavailable)
	wantText(t, "Grow of a dead device", err, "blocklisted")
}

// A cluster that does not answer: the request is, within its deadline. What comes of it later is undone.
func TestStuck(t *testing.T) {
	tests := []struct {
		name     string
		killable bool
		kind     fault.Kind
	}{
		{"ends by a kill", true, fault.Unavailable},
		{"does not end", false, fault.Unknown},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBus(t)
			m, other := b.mapper(), b.mapper()
			request := b.image(1 << 20)
			b.stuck, b.killable = "add_single_major", test.killable
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := m.Map(ctx, request)
			wantKind(t, "Map", err, test.kind)
			if !test.killable {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				_, err := other.Map(ctx, request)
				wantKind(t, "Map while the kernel works on it", err, fault.Unavailable)
				wantText(t, "Map while the kernel works on it", err, "another request")
			}
			b.with(func() { b.stuck = "" })
			close(b.thaw)
			device := mapped(t, other, request) // waits for the lock
			if got := b.texts("remove_single_major"); (len(got) == 1) == test.killable {
				t.Errorf("removed: got %q, want what came too late and nothing else", got)
			}
			if err := other.Unmap(t.Context(), device); err != nil || m.left.Load() != 0 {
				t.Errorf("Unmap: got %v and %d left behind, want none", err, m.left.Load())
			}
		})
	}
}

// A device that is there while the kernel has not let go of the request that made it: it is
// not touched before the kernel has, and then it is removed.
func TestStuckWithDevice(t *testing.T) {
	b := newBus(t)
	m := b.mapper()
	request := b.image(1 << 20)
	b.stuck, b.after = "add_single_major", true
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := m.Map(ctx, request)
	wantKind(t, "Map", err, fault.Unknown)
	if got := b.texts("remove_single_major"); len(got) > 0 {
		t.Errorf("removed meanwhile: got %q, want nothing", got)
	}
	b.with(func() { b.stuck = "" })
	close(b.thaw)
	held, err := m.lock(t.Context(), request.Target) // waits until it is undone
	if err != nil {
		t.Fatal(err)
	}
	defer held.release()
	if got := b.texts("remove_single_major"); len(got) != 1 {
		t.Errorf("removed afterwards: got %q, want one", got)
	}
}

// A device that does not answer is not dead, and keeps the others from nothing.
func TestSilentDevice(t *testing.T) {
	b := newBus(t)
	m := b.mapper()
	silent, dead := b.image(1<<20), b.image(1<<20)
	mapped(t, m, silent)
	b.kill(mapped(t, m, dead))
	b.with(func() { b.stuck, b.killable = "devices/0/refresh", true })
	got := devices(t, m)
	if len(got) != 2 || got[0].Dead != "" || got[1].Dead == "" {
		t.Errorf("Devices: got %+v, want the second one dead alone", got)
	}
	_, err := m.Map(t.Context(), silent)
	wantKind(t, "Map of one that does not answer", err, fault.Unavailable)
	wantText(t, "Map of one that does not answer", err, "does not answer")
}

// Only what is wanted is asked.
func TestFind(t *testing.T) {
	b := newBus(t)
	m := b.mapper()
	mapped(t, m, b.image(1<<20))
	request := b.image(1 << 20)
	want := mapped(t, m, request)
	got, err := m.Find(t.Context(), request.Target.Same)
	if err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("Find: got %+v, %v, want %+v", got, err, want)
	}
	if asked := len(b.texts("refresh")); asked != 1 {
		t.Errorf("devices asked: got %d, want 1", asked)
	}
}

func TestTooManyLeft(t *testing.T) {
	b := newBus(t)
	m := b.mapper()
	m.left.Store(maxLeft)
	_, err := m.Map(t.Context(), b.image(1<<20))
	wantKind(t, "Map", err, fault.Unavailable)
	wantText(t, "Map", err, "64 earlier requests")
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name   string
		change func(*kernel, *bus)
		want   []string // empty: nothing lacks
	}{
		{"whole", func(*kernel, *bus) {}, nil},
		{"no root", func(k *kernel, _ *bus) { k.root = func() bool { return false } }, []string{"root"}},
		{"old", func(k *kernel, _ *bus) { k.release = func() string { return "4.18.0-1" } }, []string{"4.18.0-1", "4.19 is needed"}},
		{"a version of its own kind", func(k *kernel, _ *bus) { k.release = func() string { return "mine" } }, nil},
		{"no module", func(_ *kernel, b *bus) { b.check(os.RemoveAll(b.path("sys/bus/rbd"))) }, []string{"modprobe rbd"}},
		{"no add_single_major", func(_ *kernel, b *bus) { b.check(os.Remove(b.path("sys/bus/rbd/add_single_major"))) }, []string{"3.14"}},
		{"read-only", func(k *kernel, _ *bus) { k.writable = func(string) error { return unix.EROFS } }, []string{"privileged"}},
		{"no exclusive-lock", func(_ *kernel, b *bus) { b.file("sys/bus/rbd/supported_features", "0x3") }, []string{"exclusive-lock (since Linux 4.9)"}},
		{"features are not told", func(_ *kernel, b *bus) { b.file("sys/bus/rbd/supported_features", "many") }, []string{"layering"}},
		{"no keyrings", func(k *kernel, _ *bus) { k.keyrings = func() error { return unix.ENOSYS } }, []string{"CONFIG_KEYS"}},
		{"keyrings forbidden", func(k *kernel, _ *bus) { k.keyrings = func() error { return unix.EPERM } }, []string{"privileged"}},
		{"everything", func(k *kernel, b *bus) {
			k.root = func() bool { return false }
			k.release = func() string { return "3.10" }
			b.check(os.RemoveAll(b.path("sys/bus/rbd")))
		}, []string{"root", "3.10", "modprobe"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBus(t)
			m := b.mapper()
			test.change(&m.kernel, b)
			err := m.Check(t.Context())
			if len(test.want) == 0 {
				if err != nil {
					t.Errorf("Check: got %v, want no error", err)
				}
				return
			}
			wantKind(t, "Check", err, fault.Unsupported)
			wantText(t, "Check", err, test.want...)
		})
	}
}

// Without the module nothing is mapped, and mapping says what to load.
func TestNoModule(t *testing.T) {
	b := newBus(t)
	m := b.mapper()
	request := b.image(1 << 20)
	b.check(os.RemoveAll(b.path("sys/bus/rbd")))
	if got := devices(t, m); len(got) != 0 {
		t.Errorf("Devices: got %+v, want none", got)
	}
	b.with(func() { b.images["pvc-ab0"].errno = unix.ENOENT })
	_, err := m.Map(t.Context(), request)
	wantKind(t, "Map", err, fault.Unsupported)
	wantText(t, "Map", err, "modprobe rbd")
}

func TestMonitorsOfConf(t *testing.T) {
	tests := []struct{ name, conf, want string }{
		{"ordinary", "[global]\nmon_host = 10.0.0.1\n", "10.0.0.1"},
		{"blanks", "[global]\nmon host=[v2:10.0.0.1:3300,v1:10.0.0.1:6789] # here\n", "[v2:10.0.0.1:3300,v1:10.0.0.1:6789]"},
		{"user's own", "[client.kube]\nmon-host = b\n[global]\nmon_host = a\n[client]\nmon_host = c", "b"},
		{"continued", "[global]\nmon_host = a, \\\n  b\n", "a, b"},
		{"semicolons", "[global]\n; mon_host = c\nmon_host = \"a;b\"\n", "a;b"},
		{"of another section", "[osd]\nmon_host = a\n", ""},
		{"none", "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ceph.conf")
			if err := os.WriteFile(path, []byte(test.conf), 0o600); err != nil {
				t.Fatal(err)
			}
			request := newBus(t).image(1)
			request.Access.Monitors, request.Access.Conf = "", path
			got, err := monHost(request)
			if got != test.want || (err == nil) != (test.want != "") {
				t.Errorf("monHost: got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestParseMonHost(t *testing.T) {
	tests := []struct {
		text string
		want []endpoint
	}{
		{"10.0.0.1", []endpoint{{"10.0.0.1", 6789, 3300}}},
		{"a.b-c:6789, d:3300", []endpoint{{"a.b-c", 6789, 0}, {"d", 0, 3300}}},
		{"[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0],[v2:10.0.0.2:3300/0]", []endpoint{{"10.0.0.1", 0, 3300}, {"10.0.0.1", 6789, 0}, {"10.0.0.2", 0, 3300}}},
		{"[v2:[fd00::1]:3300,v1:[fd00::1]:6789] [fd00::2]:6789 fd00::3 [fd00::4]", []endpoint{
			{"fd00::1", 0, 3300}, {"fd00::1", 6789, 0}, {"fd00::2", 6789, 0}, {"fd00::3", 6789, 3300}, {"fd00::4", 6789, 3300}}},
		{"v1:mon v2:mon any:mon:7000", []endpoint{{"mon", 6789, 0}, {"mon", 0, 3300}, {"mon", 7000, 7000}}},
	}
	for _, test := range tests {
		t.Run(test.text, func(t *testing.T) {
			if got, err := parseMonHost(test.text); err != nil || !slices.Equal(got, test.want) {
				t.Errorf("parseMonHost: got %v, %v, want %v", got, err, test.want)
			}
		})
	}
}

func FuzzParseMonHost(f *testing.F) {
	for _, seed := range []string{"a", "[v2:a:1,v1:b:2]", "[::1]:3", "[[", "v1:", "a:b:c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		endpoints, err := parseMonHost(text)
		if (err == nil) != (len(endpoints) > 0) {
			t.Errorf("parseMonHost: got %v, %v, want one of both", endpoints, err)
		}
		for _, one := range endpoints {
			if strings.ContainsAny(one.host, ", \t\n[]") || one.v1 == 0 && one.v2 == 0 && !strings.Contains(text, ":0") {
				t.Errorf("endpoint: got %+v from %q", one, text)
			}
		}
	})
}

func TestFeatureNames(t *testing.T) {
	for bits, want := range map[features]string{
		0:            "none",
		1 << 6:       "journaling (no Linux has it)",
		1<<2 | 1<<63: "exclusive-lock (since Linux 4.9), 0x8000000000000000",
	} {
		if got := bits.String(); got != want {
			t.Errorf("features %#x: got %q, want %q", uint64(bits), got, want)
		}
	}
}

func TestLogLine(t *testing.T) {
	for record, want := range map[string]string{
		"6,1,2,-;rbd: image x: y\n SUBSYSTEM=block\n":                "rbd: image x: y",
		"6,1,2,-;libceph: mon0 closed":                               "libceph: mon0 closed",
		"6,1,2,-;libceph: mon0 (2)10.0.0.1:3300 session established": "",
		"6,1,2,-;EXT4-fs (rbd0): mounted":                            "",
	} {
		if line, ours := logLine(record); ours != (want != "") || ours && line != want {
			t.Errorf("logLine(%q): got %q, %t, want %q", record, line, ours, want)
		}
	}
}

func TestNoWriter(t *testing.T) {
	b := newBus(t)
	m := b.mapper()
	m.options.Start = func([]Order, *os.File) (Work, error) { return Work{}, fmt.Errorf("start: %w", fault.Unavailable) }
	_, err := m.Map(t.Context(), b.image(1<<20))
	wantKind(t, "Map", err, fault.Unavailable)
	m.options.Start = func([]Order, *os.File) (Work, error) {
		results := make(chan Result)
		close(results)
		return Work{Results: results, Kill: func() {}}, nil
	}
	_, err = m.Map(t.Context(), b.image(1<<20))
	wantKind(t, "Map by a writer that dies", err, fault.Unavailable)
	if errors.Is(err, errGivenUp) {
		t.Errorf("Map by a writer that dies: got %v, want no word of time", err)
	}
}

// What somebody else has mapped is neither used nor unmapped, alive or dead.
func TestMappingOfAnotherHandIsLeftAlone(t *testing.T) {
	b := newBus(t)
	m, request := b.mapper(), b.image(1<<20)
	device := mapped(t, m, request)
	b.file("sys/bus/rbd/devices/0/config_info", "10.0.0.1:6789 name=admin,secret=x kube pvc-ab0 -")
	for _, dead := range []bool{false, true} {
		if dead {
			b.kill(device)
		}
		_, err := m.Map(t.Context(), request)
		wantKind(t, "Map", err, fault.InUse)
		wantText(t, "Map", err, "/dev/rbd0", "somebody else")
		if err := m.Unmap(t.Context(), device); err != nil {
			t.Errorf("Unmap: got %v, want no error", err)
		}
		if got := len(devices(t, m)); got != 1 {
			t.Errorf("Devices: got %d, want it left there", got)
		}
	}
}

func TestCheckFeatures(t *testing.T) {
	const all = 1<<0 | 1<<2 | 1<<3 | 1<<4 | 1<<5
	tests := []struct {
		name, supported string
		image           uint64
		readOnly        bool
		want            string // empty: nothing lacks
	}{
		{"all", "0x1bf", all, false, ""},
		{"Linux 4.19", "0x185", all, false, "object-map (since Linux 5.3), fast-diff (since Linux 5.3), deep-flatten (since Linux 5.1)"},
		{"only read", "0x185", all, true, ""},
		{"data-pool, only read", "0x5", all | 1<<7, true, "data-pool (since Linux 4.11)"},
		{"journaling", "0x1bf", all | 1<<6, false, "journaling (no Linux has it)"},
		{"not told", "many", all, false, ""}, // Check says it
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBus(t)
			b.file("sys/bus/rbd/supported_features", test.supported)
			err := b.mapper().CheckFeatures(test.image, test.readOnly)
			if test.want == "" {
				if err != nil {
					t.Errorf("CheckFeatures: got %v, want no error", err)
				}
				return
			}
			wantKind(t, "CheckFeatures", err, fault.Unsupported)
			wantText(t, "CheckFeatures", err, test.want, "Linux 6.1.0-test")
		})
	}
}
