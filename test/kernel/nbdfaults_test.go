package kernel

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
)

// TestNBDFaults lets go wrong what can, with a real rbd-nbd.
func TestNBDFaults(t *testing.T) {
	if !InGuest() {
		needNBD(t)
		g, environment := lab(t)
		inGuest(t, g, environment)
		return
	}
	b := newBench(t)
	for _, one := range []struct {
		name string
		run  func(*testing.T, *bench)
	}{
		{"nothing is lost when rbd-nbd is killed", killedServer},
		{"a device lives without its worker", killedWorker},
		{"a dead device that is mounted is told", deadAndMounted},
		{"a blocklisted client's device is dead", blocklistedClient},
		{"librbd limits the rate", limitedRate},
		{"a setting that librbd does not know is told", unknownSetting},
		{"the key is nowhere", keyOfNBDIsNowhere},
		{"a name that is another image's is not found", nameOfAnotherNBD},
		{"an unknown user is told", unknownUserNBD},
		{"silent monitors are told in time", silentMonitorsNBD},
		{"a mounted device is not unmapped", mountedNBD},
		{"no rbd-nbd is told", noServer},
		{"an old rbd-nbd is told", oldServer},
		{"no module is told", noModule},
	} {
		t.Run(one.name, func(t *testing.T) {
			t.Cleanup(func() { nothingOfNBD(t) })
			one.run(t, b)
		})
	}
}

func (b *bench) mappedByNBD(t *testing.T, request mapper.Request) mapper.Device {
	t.Helper()
	device, err := b.nbdMapper().Map(t.Context(), request)
	must(t, err)
	t.Cleanup(func() {
		if err := b.nbdMapper().Unmap(context.WithoutCancel(t.Context()), device); err != nil {
			t.Errorf("Unmap at the end: got %v, want no error", err)
		}
	})
	return device
}

// refusedByNBD wants Map to end with an error of the kind, with the words in it, in time.
func (b *bench) refusedByNBD(t *testing.T, request mapper.Request, limit time.Duration, kind fault.Kind, words ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	begun := time.Now()
	_, err := b.nbdMapper().Map(ctx, request)
	told(t, err, kind, words...)
	if took := time.Since(begun); took > limit+4*time.Second {
		t.Errorf("Map: took %s, want less than %s", took, limit)
	}
}

// told wants an error of the kind with the words in it.
func told(t *testing.T, err error, kind fault.Kind, words ...string) {
	t.Helper()
	t.Log(err)
	if !fault.Is(err, kind) {
		t.Errorf("got error %v, want kind %q", err, kind)
	}
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("got error %v, want %q in it", err, word)
		}
	}
}

// serverOf returns the process ID of a device's rbd-nbd, and workerOf that of its worker.
func serverOf(t *testing.T, device mapper.Device) int {
	t.Helper()
	return processNamed(t, device, "rbd-nbd")
}
func workerOf(t *testing.T, device mapper.Device) int {
	t.Helper()
	return processNamed(t, device, workerArgument)
}

func processNamed(t *testing.T, device mapper.Device, name string) int {
	t.Helper()
	for _, pid := range awaitProcesses(t, device, 2) {
		arguments, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		must(t, err)
		first, _, _ := strings.Cut(string(arguments), "\x00")
		if filepath.Base(first) == name || strings.HasSuffix(string(arguments), name+"\x00") {
			return pid
		}
	}
	t.Fatalf("%s: no process %s", device.Path, name)
	return 0
}

// direct writes one block of 4 KiB past the page cache.
func direct(t *testing.T, file *os.File, fill byte, offset int64) {
	t.Helper()
	memory, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	defer func() { must(t, unix.Munmap(memory)) }()
	copy(memory, bytes.Repeat([]byte{fill}, len(memory)))
	_, err = file.WriteAt(memory, offset)
	must(t, err)
}

func openDirect(t *testing.T, device mapper.Device) *os.File {
	t.Helper()
	file, err := os.OpenFile(device.Path, os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	t.Cleanup(func() { must(t, file.Close()) })
	return file
}

func killedServer(t *testing.T, b *bench) {
	request := b.image(t, 64*mebibyte)
	device := b.mappedByNBD(t, request)
	file, err := os.OpenFile(device.Path, os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	const blocks, killAt = 60, 20
	for i := range blocks {
		if i == killAt {
			must(t, syscall.Kill(serverOf(t, device), syscall.SIGKILL))
		}
		direct(t, file, byte(i+1), int64(i)*4096)
	}
	must(t, file.Close())
	devices, err := b.nbdMapper().Devices(t.Context())
	must(t, err)
	if len(devices) != 1 || devices[0].Path != device.Path || devices[0].Dead != "" || devices[0].Client == device.Client || devices[0].Client == "" {
		t.Errorf("Devices: got %+v, want %s with another client than %s", devices, device.Path, device.Client)
	}
	must(t, b.nbdMapper().Unmap(t.Context(), device))
	whole := b.rbd(t, "export", "--no-progress", b.pool+"/"+request.Target.Image.Name, "-")
	for i := range blocks {
		if got := whole[i*4096 : (i+1)*4096]; got != strings.Repeat(string([]byte{byte(i + 1)}), 4096) {
			t.Fatalf("block %d: got %x..., want all of %x", i, got[:8], i+1)
		}
	}
}

func killedWorker(t *testing.T, b *bench) {
	device := b.mappedByNBD(t, b.image(t, 8*mebibyte))
	must(t, syscall.Kill(workerOf(t, device), syscall.SIGKILL))
	awaitProcesses(t, device, 1)
	direct(t, openDirect(t, device), 'x', 0)
	devices, err := b.nbdMapper().Devices(t.Context())
	must(t, err)
	if len(devices) != 1 || devices[0] != device {
		t.Errorf("Devices: got %+v, want %+v", devices, device)
	}
}

// deadAndMounted is what host meets before it has unmounted.
func deadAndMounted(t *testing.T, b *bench) {
	request := b.image(t, 64*mebibyte)
	device, err := b.nbdMapper().Map(t.Context(), request)
	must(t, err)
	must(t, run("mkfs.ext4", "-q", device.Path))
	at := t.TempDir()
	must(t, unix.Mount(device.Path, at, "ext4", 0, ""))
	for _, pid := range processesOf(t, device) {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	awaitProcesses(t, device, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	told(t, b.nbdMapper().Unmap(ctx, device), fault.InUse, "somebody still holds it")
	must(t, unix.Unmount(at, unix.MNT_DETACH))
	must(t, b.nbdMapper().Unmap(t.Context(), device))
	b.mappedByNBD(t, request)
}

func blocklistedClient(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	device := b.mappedByNBD(t, request)
	file, err := os.OpenFile(device.Path, os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	direct(t, file, 'x', 0)
	must(t, file.Close())
	b.ceph(t, "osd", "blocklist", "add", device.Client)
	// The OSDs learn of it a moment later.
	for dead := false; !dead; {
		devices, err := b.nbdMapper().Devices(t.Context())
		must(t, err)
		if len(devices) != 1 {
			t.Fatalf("Devices: got %+v, want one", devices)
		}
		dead = devices[0].Dead != ""
	}
	again, err := b.nbdMapper().Map(t.Context(), request)
	if err != nil || again.Client == device.Client {
		t.Errorf("Map: got %+v, %v, want another client than %s", again, err, device.Client)
	}
}

// limitedRate asks for 50 writes a second and makes three times as many.
func limitedRate(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	request.Options = []string{"rbd_qos_iops_limit=50"}
	file := openDirect(t, b.mappedByNBD(t, request))
	const writes = 150
	begun := time.Now()
	for i := range writes {
		direct(t, file, 'x', int64(i)*4096)
	}
	rate := float64(writes) / time.Since(begun).Seconds()
	t.Logf("%.0f writes a second", rate)
	if rate > 75 { // one second's worth can be saved up
		t.Errorf("rate: got %.0f writes a second, want about 50", rate)
	}
}

func unknownSetting(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	request.Options = []string{"rbd_qos_no_such=1"}
	b.refusedByNBD(t, request, time.Minute, fault.Invalid, "rbd_qos_no_such")
}

func keyOfNBDIsNowhere(t *testing.T, b *bench) {
	device := b.mappedByNBD(t, b.image(t, 8*mebibyte))
	for _, pid := range awaitProcesses(t, device, 2) {
		for _, file := range []string{"cmdline", "environ"} {
			content, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + file)
			must(t, err)
			if bytes.Contains(content, []byte(b.access.Key.Reveal())) {
				t.Errorf("/proc/%d/%s: got the key in it", pid, file)
			}
		}
	}
	files, err := filepath.Glob("/run/rbd-csi/nbd/*/*")
	must(t, err)
	for _, file := range files {
		if content, err := os.ReadFile(file); err == nil && bytes.Contains(content, []byte(b.access.Key.Reveal())) {
			t.Errorf("%s: got the key in it", file)
		}
	}
	if len(files) == 0 {
		t.Error("files of the mapping: got none")
	}
}

func nameOfAnotherNBD(t *testing.T, b *bench) {
	first, second := b.image(t, 8*mebibyte), b.image(t, 8*mebibyte)
	first.Target.Image.Name = second.Target.Image.Name
	b.refusedByNBD(t, first, time.Minute, fault.NotFound, second.Target.ImageID)
}

func unknownUserNBD(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	request.Access.User = "nobody"
	b.refusedByNBD(t, request, time.Minute, fault.Unauthenticated)
}

func silentMonitorsNBD(t *testing.T, b *bench) {
	request := b.image(t, 8*mebibyte)
	request.Access.Monitors = "10.77.0.99"
	b.refusedByNBD(t, request, 4*time.Second, fault.Unavailable, "did not answer")
}

func mountedNBD(t *testing.T, b *bench) {
	device := b.mappedByNBD(t, b.image(t, 64*mebibyte))
	must(t, run("mkfs.ext4", "-q", device.Path))
	at := t.TempDir()
	must(t, unix.Mount(device.Path, at, "ext4", 0, ""))
	err := b.nbdMapper().Unmap(t.Context(), device)
	must(t, unix.Unmount(at, 0))
	told(t, err, fault.InUse, device.Path, "mount")
}

func noServer(t *testing.T, b *bench) {
	t.Setenv("PATH", t.TempDir())
	told(t, b.nbdMapper().Check(t.Context()), fault.Unsupported, "install the package rbd-nbd")
}

// oldServer has in its place a program that helps as that of Ceph 15 does.
func oldServer(t *testing.T, b *bench) {
	folder := t.TempDir()
	must(t, os.WriteFile(filepath.Join(folder, "rbd-nbd"), []byte("#!/bin/sh\necho Usage: rbd-nbd map --try-netlink\n"), 0o755))
	t.Setenv("PATH", folder+":"+os.Getenv("PATH"))
	told(t, b.nbdMapper().Check(t.Context()), fault.Unsupported, "older than Ceph 16")
}

func noModule(t *testing.T, b *bench) {
	must(t, run("rmmod", "nbd"))
	t.Cleanup(func() { must(t, run("modprobe", "nbd")) })
	told(t, b.nbdMapper().Check(t.Context()), fault.Unsupported, "modprobe nbd")
}
