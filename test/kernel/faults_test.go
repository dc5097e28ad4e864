package kernel

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/krbd"
)

// TestKRBDFaults lets go wrong what can, on a real kernel: each error has the kind and the words
// that help, comes in time, and nothing stays mapped.
func TestKRBDFaults(t *testing.T) {
	if !InGuest() {
		g, environment := lab(t)
		inGuest(t, g, environment)
		return
	}
	b := newBench(t)
	for _, one := range []struct {
		name string
		run  func(*testing.T, *bench)
	}{
		{"a feature that the kernel lacks is named", lackedFeature},
		{"an unknown user is told", unknownUser},
		{"silent monitors are told in time", silentMonitors},
		{"ports of the other protocol are told in time", otherPorts},
		{"a frozen monitor is told in time", frozenMonitor},
		{"a frozen OSD is told in time", frozenOSD},
		{"a namespace's image is mapped", namespaced},
		{"every option is taken", everyOption},
		{"the key is in no file of sysfs and in no keyring", keyIsNowhere},
		{"a renamed image keeps its device", renamed},
		{"a name that is another image's is not found", nameOfAnother},
		{"a mount is named", mountIsNamed},
		{"a dead device goes by force", deadByForce},
		{"one that is fenced leaves the others alone", fencedAlone},
		{"a plain file at the device's path is told", plainFile},
		{"an image held exclusively is in use", heldExclusively},
		{"a mount of another namespace is told", mountedElsewhere},
		{"a device on top is named", heldByAnotherDevice},
		{"no module is told", noModuleOfRBD},
	} {
		t.Run(one.name, func(t *testing.T) {
			t.Cleanup(func() { nothingMapped(t) })
			one.run(t, b)
		})
	}
}

// refused maps, wants an error of the kind with the words in it, and wants it before the deadline.
func (b *bench) refused(t *testing.T, request mapper.Request, limit time.Duration, kind fault.Kind, words ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	begun := time.Now()
	_, err := b.mapper().Map(ctx, request)
	took := time.Since(begun)
	t.Logf("after %.2f s: %v", took.Seconds(), err)
	if !fault.Is(err, kind) {
		t.Errorf("Map: got error %v, want kind %q", err, kind)
	}
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("Map: got error %v, want %q in it", err, word)
		}
	}
	if took > limit+time.Second {
		t.Errorf("Map: took %s, want less than %s", took, limit+time.Second)
	}
}

func (b *bench) mapped(t *testing.T, request mapper.Request) mapper.Device {
	t.Helper()
	device, err := b.mapper().Map(t.Context(), request)
	must(t, err)
	t.Cleanup(func() {
		if err := b.mapper().Unmap(context.WithoutCancel(t.Context()), device); err != nil {
			t.Errorf("Unmap at the end: got %v, want no error", err)
		}
	})
	return device
}

const mebibyte = 1 << 20

func lackedFeature(t *testing.T, b *bench) {
	request := b.imageWith(t, 8*mebibyte, features+",journaling")
	b.refused(t, request, time.Minute, fault.Unsupported, "journaling (no Linux has it)")
}

func unknownUser(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	request.Access.User = "nobody"
	b.refused(t, request, time.Minute, fault.Unauthenticated)
}

func silentMonitors(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	request.Access.Monitors = "10.77.0.99"
	b.refused(t, request, 4*time.Second, fault.Unavailable, "did not answer")
}

func otherPorts(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	swapped := strings.NewReplacer("v1:", "v2:", "v2:", "v1:").Replace(b.access.Monitors)
	request.Access.Monitors = swapped
	b.refused(t, request, 4*time.Second, fault.Unavailable, "ms_mode")
}

func frozenMonitor(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	must(t, b.Freeze(t.Context(), "mon.a"))
	b.refused(t, request, 4*time.Second, fault.Unavailable)
	must(t, b.Thaw(t.Context(), "mon.a"))
	b.mapped(t, request)
}

func frozenOSD(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	must(t, b.Freeze(t.Context(), "osd.0"))
	b.refused(t, request, 4*time.Second, fault.Unavailable)
	must(t, b.Thaw(t.Context(), "osd.0"))
	// Its placement groups wait for a lease that ran out, unless it is told to begin anew.
	b.ceph(t, "osd", "down", "0")
	b.mapped(t, request)
}

func namespaced(t *testing.T, b *bench) {
	b.rbd(t, "namespace", "create", b.pool+"/team")
	b.rbd(t, "create", b.pool+"/team/one", "--size", "8M", "--image-feature", features)
	request := b.requestFor(t, "team", "one")
	device := b.mapped(t, request)
	if device.Target != request.Target {
		t.Errorf("Map: got %+v, want %+v", device.Target, request.Target)
	}
	request.Target.Image.Namespace = "other"
	request.Target.ImageID = "0123456789ab"
	b.refused(t, request, time.Minute, fault.NotFound)
}

func everyOption(t *testing.T, b *bench) {
	for _, options := range [][]string{
		{"ms_mode=legacy", "nocrc", "tcp_nodelay", "cephx_sign_messages", "osdkeepalive=5", "osd_idle_ttl=60"},
		{"ms_mode=crc", "queue_depth=256", "lock_on_read", "alloc_size=4096", "abort_on_full", "crc"},
		{"ms_mode=secure", "exclusive", "notrim", "rxbounce", "lock_timeout=5", "notcp_nodelay"},
		{"ms_mode=prefer-secure", "osd_request_timeout=30", "mount_timeout=10", "compression_hint=compressible"},
		{"ms_mode=prefer-crc", "read_from_replica=localize", "crush_location=zone:a|host:b"},
		{"cephx_require_signatures", "nocephx_sign_messages", "nocephx_require_signatures"},
	} {
		request := b.image(t, 8*mebibyte)
		request.Options = options
		device, err := b.mapper().Map(t.Context(), request)
		if err != nil {
			t.Errorf("Map with %q: got %v, want no error", options, err)
			continue
		}
		must(t, b.mapper().Unmap(t.Context(), device))
	}
}

func keyIsNowhere(t *testing.T, b *bench) {
	device := b.mapped(t, b.image(t, 8*mebibyte))
	folder := filepath.Join("/sys/bus/rbd/devices", strings.TrimPrefix(device.Path, "/dev/rbd"))
	config, err := os.ReadFile(filepath.Join(folder, "config_info"))
	must(t, err)
	keys, err := os.ReadFile("/proc/keys")
	must(t, err)
	if strings.Contains(string(config), b.access.Key.Reveal()) || !strings.Contains(string(config), "key=rbd-csi:main:krbd:") {
		t.Errorf("config_info: got %s, want a key's name and no key", config)
	}
	if strings.Contains(string(keys), "rbd-csi:") {
		t.Errorf("/proc/keys: got\n%s\nwant none of ours", keys)
	}
}

func renamed(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	device := b.mapped(t, request)
	old, other := b.pool+"/"+request.Target.Image.Name, b.pool+"/renamed"
	b.rbd(t, "rename", old, other)
	again, err := b.mapper().Map(t.Context(), request)
	if err != nil || again != device {
		t.Errorf("Map after a rename: got %+v, %v, want %+v", again, err, device)
	}
	b.rbd(t, "rename", other, old)
}

func nameOfAnother(t *testing.T, b *bench) {
	first, second := b.image(t, 8*mebibyte), b.image(t, 8*mebibyte)
	first.Target.Image.Name = second.Target.Image.Name
	b.refused(t, first, time.Minute, fault.NotFound, second.Target.ImageID)
}

func mountIsNamed(t *testing.T, b *bench) {
	device := b.mapped(t, b.image(t, 64*mebibyte))
	must(t, run("mkfs.ext4", "-q", device.Path))
	at := t.TempDir()
	must(t, unix.Mount(device.Path, at, "ext4", 0, ""))
	err := b.mapper().Unmap(t.Context(), device)
	must(t, unix.Unmount(at, 0))
	if !fault.Is(err, fault.InUse) || !strings.Contains(err.Error(), at) {
		t.Errorf("Unmap: got %v, want kind %q and %s in it", err, fault.InUse, at)
	}
}

// deadByForce holds a dead device as a mount in a namespace does that cannot be seen.
func deadByForce(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	device := b.mapped(t, request)
	file, err := os.OpenFile(device.Path, os.O_RDWR|unix.O_EXCL, 0)
	must(t, err)
	b.fence(t, device)
	must(t, b.mapper().Unmap(t.Context(), device))
	if _, err := file.ReadAt(make([]byte, 4096), 0); err == nil {
		t.Errorf("read by who held it: got no error, want one")
	}
	_ = file.Close()
	b.mapped(t, request)
}

func fencedAlone(t *testing.T, b *bench) {
	fenced, other := b.image(t, 8*mebibyte), b.image(t, 8*mebibyte)
	device, living := b.mapped(t, fenced), b.mapped(t, other)
	b.fence(t, device)
	third := b.mapped(t, b.image(t, 8*mebibyte))
	for _, one := range []mapper.Device{living, third} {
		file, err := os.OpenFile(one.Path, os.O_WRONLY|unix.O_SYNC, 0)
		must(t, err)
		_, err = file.WriteAt([]byte("x"), 0)
		if err = errors.Join(err, file.Close()); err != nil {
			t.Errorf("write to another device: got %v, want no error", err)
		}
	}
	devices, err := b.mapper().Devices(t.Context())
	must(t, err)
	dead := slices.DeleteFunc(devices, func(d mapper.Device) bool { return d.Dead == "" })
	if len(dead) != 1 || !dead[0].Target.Same(fenced.Target) {
		t.Errorf("dead devices: got %+v, want the fenced one", dead)
	}
}

// plainFile writes to a device that is not there, as a careless script does.
func plainFile(t *testing.T, b *bench) {
	must(t, os.WriteFile("/dev/rbd0", []byte("oh"), 0o600))
	t.Cleanup(func() { _ = os.Remove("/dev/rbd0") })
	request := b.image(t, 8*mebibyte)
	b.refused(t, request, time.Minute, fault.Unavailable, "/dev/rbd0 is something else than block device")
	nothingMapped(t)
	must(t, os.Remove("/dev/rbd0"))
	b.mapped(t, request)
}

// heldExclusively maps past the driver, as another node would.
func heldExclusively(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	request.Options = []string{"exclusive"}
	device := b.mapped(t, request)
	config, err := os.ReadFile(filepath.Join("/sys/bus/rbd/devices", strings.TrimPrefix(device.Path, "/dev/rbd"), "config_info"))
	must(t, err)
	fields := strings.Fields(string(config))
	_, name, _ := strings.Cut(fields[1], "key=")
	name, _, _ = strings.Cut(name, ",")
	key, err := base64.StdEncoding.DecodeString(b.access.Key.Reveal())
	must(t, err)
	work, err := krbd.Command("/proc/self/exe", writerArgument)([]krbd.Order{{
		Path: "/sys/bus/rbd/add_single_major", Text: fmt.Sprintf("%s %s,mount_timeout=5 %s", fields[0], fields[1], strings.Join(fields[2:], " ")),
		KeyName: name, Key: key,
	}}, nil)
	must(t, err)
	if got := <-work.Results; got.Errno != unix.EROFS {
		t.Errorf("a second mapping: got %+v, want EROFS", got)
	}
}

// mountedElsewhere mounts where this process cannot see it, as a pod's mount namespace does.
func mountedElsewhere(t *testing.T, b *bench) {
	device := b.mapped(t, b.image(t, 64*mebibyte))
	must(t, run("mkfs.ext4", "-q", device.Path))
	holder := exec.Command("unshare", "-m", "sh", "-ec", `mount "$1" /mnt; echo mounted; read end`, "sh", device.Path)
	input, err := holder.StdinPipe()
	must(t, err)
	output, err := holder.StdoutPipe()
	must(t, err)
	must(t, holder.Start())
	_, err = bufio.NewReader(output).ReadString('\n')
	must(t, err)
	told(t, b.mapper().Unmap(t.Context(), device), fault.InUse, device.Path, "a mount of another mount namespace")
	must(t, input.Close())
	_ = holder.Wait() // read ends with an error
}

// heldByAnotherDevice puts a device of the device mapper on top, as LVM and multipath do.
func heldByAnotherDevice(t *testing.T, b *bench) {
	if _, err := exec.LookPath("dmsetup"); err != nil {
		t.Skip("dmsetup is not installed (test/setup.sh kernel)")
	}
	device := b.mapped(t, b.image(t, 8*mebibyte))
	must(t, run("modprobe", "dm-mod"))
	must(t, run("dmsetup", "create", "--noudevsync", "vg-lv", "--table", "0 16384 linear "+device.Path+" 0"))
	err := b.mapper().Unmap(t.Context(), device)
	must(t, run("dmsetup", "remove", "--noudevsync", "vg-lv"))
	told(t, err, fault.InUse, device.Path, "dm-", "vg-lv")
}

func noModuleOfRBD(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	must(t, run("rmmod", "rbd"))
	told(t, b.mapper().Check(t.Context()), fault.Unsupported, "modprobe rbd")
	_, err := b.mapper().Map(t.Context(), request)
	must(t, run("modprobe", "rbd"))
	told(t, err, fault.Unsupported, "modprobe rbd")
	b.mapped(t, request)
}
