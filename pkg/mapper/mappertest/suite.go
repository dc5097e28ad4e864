package mappertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// A Fixture is a mapper under test and what has to be done around it. Functions that are
// nil are things that cannot be done here; the tests that need them are skipped.
type Fixture struct {
	Mapper mapper.Mapper
	// Restart returns a mapper as the next process of the driver has it, on the same node.
	Restart func() mapper.Mapper
	// Image makes an image that is full of zeros and returns a request for it, to be
	// written to and without options. It is removed after the test.
	Image func(t *testing.T, bytes int64) mapper.Request
	// Resize makes the image larger.
	Resize func(t *testing.T, request mapper.Request, bytes int64)
	// Content reads the image from the cluster's side, not by way of the device.
	Content func(t *testing.T, request mapper.Request, offset, length int64) []byte
	// Kill makes the device dead.
	Kill func(t *testing.T, device mapper.Device)
	// Refusing makes an image as Image does. Once refuse returns, the cluster refuses what is written to its device.
	Refusing func(t *testing.T, bytes int64) (request mapper.Request, refuse func(device mapper.Device))
	// Hold holds a device as a mount does, until release.
	Hold func(t *testing.T, device mapper.Device) (release func())
	// Stranger is a user with a key of its own who may connect and not open the image.
	Stranger params.Credentials
}

// HoldDevice is Hold for a device of the kernel: it opens it exclusively.
func HoldDevice(t *testing.T, device mapper.Device) (release func()) {
	t.Helper()
	file, err := os.OpenFile(device.Path, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Suite tests what package mapper promises. Start is called for each test and registers
// what is to be cleaned up; it should also check that nothing is left behind then.
func Suite(t *testing.T, start func(t *testing.T) Fixture) {
	for _, one := range cases {
		t.Run(one.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), trialTimeout)
			defer cancel()
			one.run(&trial{T: t, Fixture: start(t), ctx: ctx})
		})
	}
}

// trialTimeout bounds one test; it is far more than one needs.
const trialTimeout = 2 * time.Minute

// mebibyte is the unit of the suite's sizes.
const mebibyte = 1 << 20

var cases = []struct {
	name string
	run  func(*trial)
}{
	{"check finds nothing missing", checkFindsNothingMissing},
	{"a mapped image is listed", mappedIsListed},
	{"map again keeps the device", mapAgainKeeps},
	{"map in the other mode is refused", otherModeRefused},
	{"maps at once make one device", mapsAtOnce},
	{"each device has its own client", ownClients},
	{"an unknown option is refused", unknownOption},
	{"an image that is gone is not found", goneIsNotFound},
	{"a wrong key is told", wrongKey},
	{"a missing permission is told", missingPermission},
	{"a request without time leaves nothing", withoutTime},
	{"unmap again succeeds", unmapAgain},
	{"after unmap the data is on the cluster", dataOnCluster},
	{"data is there when mapped again", dataAgain},
	{"a read-only device reads and does not write", readOnly},
	{"a held device is not unmapped", heldStays},
	{"a device grows while it is used", grows},
	{"the next process finds every device", restartFinds},
	{"a dead device is listed as dead", deadIsListed},
	{"map replaces a dead device", deadIsReplaced},
	{"unmap removes a dead device", deadIsRemoved},
	{"a write that the cluster refuses fails itself", refusedWriteFails},
}

// A trial is one test with its fixture.
type trial struct {
	*testing.T
	Fixture
	ctx context.Context
}

// mapped maps and unmaps at the end.
func (t *trial) mapped(request mapper.Request) mapper.Device {
	t.Helper()
	device, err := t.Mapper.Map(t.ctx, request)
	if err != nil {
		t.Fatalf("Map: got %v, want no error", err)
	}
	t.Cleanup(func() {
		if err := t.Mapper.Unmap(context.WithoutCancel(t.ctx), device); err != nil {
			t.Errorf("Unmap at the end: got %v, want no error", err)
		}
	})
	return device
}

// unmap unmaps now.
func (t *trial) unmap(device mapper.Device) {
	t.Helper()
	if err := t.Mapper.Unmap(t.ctx, device); err != nil {
		t.Fatalf("Unmap: got %v, want no error", err)
	}
}

func (t *trial) devices(of mapper.Mapper) []mapper.Device {
	t.Helper()
	devices, err := of.Devices(t.ctx)
	if err != nil {
		t.Fatalf("Devices: got %v, want no error", err)
	}
	return devices
}

// listed returns the one device of an image, or fails.
func (t *trial) listed(request mapper.Request) mapper.Device {
	t.Helper()
	var found []mapper.Device
	for _, device := range t.devices(t.Mapper) {
		if device.Target.Same(request.Target) {
			found = append(found, device)
		}
	}
	if len(found) != 1 {
		t.Fatalf("Devices: got %d of the image, want 1: %+v", len(found), found)
	}
	return found[0]
}

func (t *trial) nothingMapped() {
	t.Helper()
	if devices := t.devices(t.Mapper); len(devices) != 0 {
		t.Errorf("Devices: got %+v, want none", devices)
	}
}

// kind checks the kind of an error.
func (t *trial) kind(what string, err error, want fault.Kind) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: got error %v, want kind %q", what, err, want)
	}
}

// write writes through the device, without a sync.
func (t *trial) write(device mapper.Device, data []byte, offset int64) {
	t.Helper()
	if err := writeTo(device, data, offset, false); err != nil {
		t.Fatalf("write to the device: got %v, want no error", err)
	}
}

func writeTo(device mapper.Device, data []byte, offset int64, sync bool) error {
	file, err := os.OpenFile(device.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, offset)
	if err == nil && sync {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

func readFrom(device mapper.Device, offset, length int64) ([]byte, error) {
	file, err := os.Open(device.Path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	data := make([]byte, length)
	_, err = file.ReadAt(data, offset)
	return data, err
}

// reads checks what the device reads.
func (t *trial) reads(device mapper.Device, want []byte, offset int64) {
	t.Helper()
	got, err := readFrom(device, offset, int64(len(want)))
	if err != nil {
		t.Fatalf("read from the device: got %v, want no error", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("read from the device: got %.40q..., want %.40q...", got, want)
	}
}

// pattern is data that differs from block to block.
func pattern(seed string, length int) []byte {
	var data []byte
	for block := 0; len(data) < length; block++ {
		data = fmt.Appendf(data, "%s %d\n", seed, block)
	}
	return data[:length]
}

func checkFindsNothingMissing(t *trial) {
	if err := t.Mapper.Check(t.ctx); err != nil {
		t.Errorf("Check: got %v, want no error", err)
	}
	if t.Mapper.Name() == "" {
		t.Errorf("Name: got nothing, want a word")
	}
}

func mappedIsListed(t *trial) {
	request := t.Image(t.T, 8*mebibyte)
	device := t.mapped(request)
	want := mapper.Device{
		Path: device.Path, Mapper: t.Mapper.Name(), Target: request.Target, Client: device.Client,
	}
	if device != want {
		t.Errorf("Map: got %+v, want %+v", device, want)
	}
	if listed := t.listed(request); listed != device {
		t.Errorf("Devices: got %+v, want what Map returned, %+v", listed, device)
	}
	t.reads(device, make([]byte, mebibyte), 7*mebibyte)
	t.unmap(device)
	t.nothingMapped()
}

func mapAgainKeeps(t *trial) {
	request := t.Image(t.T, 8*mebibyte)
	first := t.mapped(request)
	second, err := t.Mapper.Map(t.ctx, request)
	if err != nil || second != first {
		t.Errorf("Map again: got %+v, %v, want %+v", second, err, first)
	}
	t.listed(request)
}

func otherModeRefused(t *trial) {
	for _, readOnlyFirst := range []bool{false, true} {
		request := t.Image(t.T, 8*mebibyte)
		request.ReadOnly = readOnlyFirst
		device := t.mapped(request)
		request.ReadOnly = !readOnlyFirst
		_, err := t.Mapper.Map(t.ctx, request)
		t.kind(fmt.Sprintf("Map with ReadOnly %t", request.ReadOnly), err, fault.InUse)
		if listed := t.listed(request); listed != device {
			t.Errorf("Devices: got %+v, want the device as it was, %+v", listed, device)
		}
	}
}

// mapsAtOnce lets two processes map one image, slowly enough to meet.
func mapsAtOnce(t *trial) {
	request := t.Image(t.T, 8*mebibyte)
	type result struct {
		device mapper.Device
		err    error
	}
	results := make(chan result)
	for i := range 6 {
		of := t.Mapper
		if i%2 == 1 {
			of = t.Restart()
		}
		go func() {
			device, err := of.Map(t.ctx, request)
			results <- result{device, err}
		}()
	}
	var first result
	for i := range 6 {
		r := <-results
		if i == 0 {
			first = r
		}
		if r.err != nil || r.device != first.device {
			t.Errorf("Map at once: got %+v, %v, want %+v", r.device, r.err, first.device)
		}
	}
	t.unmap(t.listed(request))
	t.nothingMapped()
}

func ownClients(t *trial) {
	owner := make(map[string]string)
	for range 3 {
		device := t.mapped(t.Image(t.T, 8*mebibyte))
		if !strings.Contains(device.Client, "/") {
			t.Errorf("Client: got %q, want ADDRESS:PORT/NONCE", device.Client)
		}
		for _, key := range []string{device.Client, device.Path} {
			if other, taken := owner[key]; taken {
				t.Errorf("%s belongs to images %s and %s, want one", key, other, device.Target.ImageID)
			}
			owner[key] = device.Target.ImageID
		}
	}
}

func unknownOption(t *trial) {
	request := t.Image(t.T, 8*mebibyte)
	request.Options = []string{"no_such_option"}
	_, err := t.Mapper.Map(t.ctx, request)
	t.kind("Map with an unknown option", err, fault.Invalid)
	if err != nil && !strings.Contains(err.Error(), "no_such_option") {
		t.Errorf("Map with an unknown option: got %v, want its name in it", err)
	}
	t.nothingMapped()
}

func goneIsNotFound(t *trial) {
	request := t.Image(t.T, 8*mebibyte)
	request.Target.ImageID = "0123456789abcd"
	_, err := t.Mapper.Map(t.ctx, request)
	t.kind("Map of an ID that is not there", err, fault.NotFound)
	t.nothingMapped()
}

func wrongKey(t *trial) {
	if !t.Stranger.Given() {
		t.Skip("this mapper has no keys here")
	}
	request := t.Image(t.T, 8*mebibyte)
	request.Access.Key = t.Stranger.Key
	_, err := t.Mapper.Map(t.ctx, request)
	t.kind("Map with a wrong key", err, fault.Unauthenticated)
	t.nothingMapped()
}

func missingPermission(t *trial) {
	if !t.Stranger.Given() {
		t.Skip("this mapper has no users here")
	}
	request := t.Image(t.T, 8*mebibyte)
	request.Access.Credentials = t.Stranger
	_, err := t.Mapper.Map(t.ctx, request)
	t.kind("Map as a user without permission", err, fault.Denied)
	t.nothingMapped()
}

// withoutTime gives up at once: the work may go on for a moment and has to be undone then.
func withoutTime(t *trial) {
	request := t.Image(t.T, 8*mebibyte)
	ctx, cancel := context.WithCancel(t.ctx)
	cancel()
	if _, err := t.Mapper.Map(ctx, request); err == nil {
		t.Errorf("Map with a context that is done: got no error, want one")
	}
	for len(t.devices(t.Mapper)) > 0 {
		select {
		case <-t.ctx.Done():
			t.Fatalf("Devices: got %+v for ever, want none", t.devices(t.Mapper))
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.mapped(request)
}

func unmapAgain(t *trial) {
	request := t.Image(t.T, 8*mebibyte)
	never := mapper.Device{Mapper: t.Mapper.Name(), Target: request.Target}
	if err := t.Mapper.Unmap(t.ctx, never); err != nil {
		t.Errorf("Unmap of what was never mapped: got %v, want no error", err)
	}
	device := t.mapped(request)
	t.unmap(device)
	t.unmap(device)
	t.nothingMapped()
}

func dataOnCluster(t *trial) {
	request := t.Image(t.T, 16*mebibyte)
	device := t.mapped(request)
	want := pattern("unmap", 3*mebibyte)
	t.write(device, want, 5*mebibyte)
	t.unmap(device)
	if got := t.Content(t.T, request, 5*mebibyte, int64(len(want))); !bytes.Equal(got, want) {
		t.Errorf("image after Unmap: got %.40q..., want %.40q...", got, want)
	}
}

func dataAgain(t *trial) {
	request := t.Image(t.T, 16*mebibyte)
	want := pattern("again", mebibyte)
	for round := range 3 {
		device := t.mapped(request)
		if round > 0 {
			t.reads(device, want, 2*mebibyte)
		}
		t.write(device, want, 2*mebibyte)
		t.unmap(device)
	}
}

func readOnly(t *trial) {
	request := t.Image(t.T, 8*mebibyte)
	data := pattern("read-only", mebibyte)
	device := t.mapped(request)
	t.write(device, data, 0)
	t.unmap(device)

	request.ReadOnly = true
	device = t.mapped(request)
	if !device.ReadOnly || !t.listed(request).ReadOnly {
		t.Errorf("ReadOnly: got %t from Map and %t from Devices, want true", device.ReadOnly, t.listed(request).ReadOnly)
	}
	t.reads(device, data, 0)
	info, err := os.Stat(device.Path)
	if err != nil || info.Mode()&os.ModeDevice == 0 {
		t.Logf("%s is no device, so nothing can refuse a write", device.Path)
		return
	}
	if err := writeTo(device, []byte("x"), 0, true); err == nil {
		t.Errorf("write to a read-only device: got no error, want one")
	}
	t.unmap(device)
	if got := t.Content(t.T, request, 0, mebibyte); !bytes.Equal(got, data) {
		t.Errorf("image: got %.40q..., want it as it was, %.40q...", got, data)
	}
}

func heldStays(t *trial) {
	if t.Hold == nil {
		t.Skip("nothing can hold a device here")
	}
	request := t.Image(t.T, 32*mebibyte)
	device := t.mapped(request)
	release := t.Hold(t.T, device)
	err := t.Mapper.Unmap(t.ctx, device)
	t.kind("Unmap of a held device", err, fault.InUse)
	if listed := t.listed(request); listed != device {
		t.Errorf("Devices: got %+v, want the device as it was, %+v", listed, device)
	}
	release()
	t.write(device, pattern("after", 4096), 0)
	t.unmap(device)
	t.nothingMapped()
}

// grows resizes the image under a device that is written all the time.
func grows(t *trial) {
	request := t.Image(t.T, 8*mebibyte)
	device := t.mapped(request)
	ctx, stop := context.WithCancel(t.ctx)
	writing := make(chan error, 1)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			err = writeTo(device, pattern("busy", 64<<10), 0, true)
		}
		writing <- err
	}()
	for _, size := range []int64{8 * mebibyte, 24 * mebibyte, 40 * mebibyte} {
		t.growsTo(request, device, size)
	}
	stop()
	if err := <-writing; err != nil {
		t.Errorf("writing while it grew: got %v, want no error", err)
	}
}

func (t *trial) growsTo(request mapper.Request, device mapper.Device, size int64) {
	t.Helper()
	t.Resize(t.T, request, size)
	got, err := t.Mapper.Grow(t.ctx, device)
	if err != nil || got != size {
		t.Errorf("Grow: got %d, %v, want %d", got, err, size)
	}
	file, err := os.Open(device.Path)
	if err != nil {
		t.Fatalf("open the device: got %v, want no error", err)
	}
	defer func() { _ = file.Close() }()
	if end, err := file.Seek(0, io.SeekEnd); err != nil || end != size {
		t.Errorf("size of the device: got %d, %v, want %d", end, err, size)
	}
	data := pattern("end", mebibyte)
	t.write(device, data, size-mebibyte)
	t.reads(device, data, size-mebibyte)
}

func restartFinds(t *trial) {
	request := t.Image(t.T, 8*mebibyte)
	device := t.mapped(request)
	data := pattern("restart", mebibyte)
	t.write(device, data, 0)
	t.Mapper = t.Restart()
	if listed := t.listed(request); listed != device {
		t.Errorf("Devices of the next process: got %+v, want %+v", listed, device)
	}
	again, err := t.Mapper.Map(t.ctx, request)
	if err != nil || again != device {
		t.Errorf("Map by the next process: got %+v, %v, want %+v", again, err, device)
	}
	t.reads(device, data, 0)
	t.Mapper = t.Restart()
	t.unmap(device)
	t.nothingMapped()
}

// killed returns the dead device of an image that has synced data.
func (t *trial) killed(data []byte) (request mapper.Request, device mapper.Device) {
	t.Helper()
	if t.Kill == nil {
		t.Skip("no device can be killed here")
	}
	request = t.Image(t.T, 8*mebibyte)
	device = t.mapped(request)
	if err := writeTo(device, data, 0, true); err != nil {
		t.Fatalf("write to the device: got %v, want no error", err)
	}
	t.Kill(t.T, device)
	return request, device
}

func deadIsListed(t *trial) {
	request, device := t.killed(pattern("dead", mebibyte))
	listed := t.listed(request)
	if listed.Dead == "" || listed.Client != "" {
		t.Errorf("Devices: got Dead %q and Client %q, want a reason and nothing", listed.Dead, listed.Client)
	}
	if listed.Path != device.Path || listed.Target != device.Target || listed.Mapper != device.Mapper {
		t.Errorf("Devices: got %+v, want the same device as %+v", listed, device)
	}
	// Beyond what was written, so that no cache can answer.
	if err := writeTo(device, []byte("x"), 4*mebibyte, true); err == nil {
		t.Errorf("write to a dead device: got no error, want one")
	}
	if data, err := readFrom(device, 6*mebibyte, mebibyte); err == nil {
		t.Errorf("read from a dead device: got %d bytes and no error, want one", len(data))
	}
}

func deadIsReplaced(t *trial) {
	data := pattern("replaced", mebibyte)
	request, dead := t.killed(data)
	device := t.mapped(request)
	if device.Dead != "" || device.Client == "" || device.Client == dead.Client {
		t.Errorf("Map: got Dead %q and Client %q, want a living device with another client than %q", device.Dead, device.Client, dead.Client)
	}
	if listed := t.listed(request); listed != device {
		t.Errorf("Devices: got %+v, want what Map returned, %+v", listed, device)
	}
	t.reads(device, data, 0)
	t.write(device, data, 2*mebibyte)
}

func deadIsRemoved(t *trial) {
	data := pattern("removed", mebibyte)
	request, _ := t.killed(data)
	t.unmap(t.listed(request))
	t.nothingMapped()
	t.reads(t.mapped(request), data, 0)
}

// refusedWriteFails writes past the page cache, which has the device itself say of each write when it is done.
// An error that came only with a sync would be too late: a write can fail before the sync begins, and
// then nothing need be left for the sync to fail with.
func refusedWriteFails(t *trial) {
	request, refuse := t.Refusing(t.T, 8*mebibyte)
	device := t.mapped(request)
	// The sync lets librbd's caches begin to work (rbd_cache_writethrough_until_flush).
	if err := errors.Join(writeTo(device, []byte("synced"), 0, true), writeDirectly(device, 4096)); err != nil {
		t.Fatalf("write to the device: got %v, want no error", err)
	}
	refuse(device)
	if err := writeDirectly(device, 4096); err == nil {
		t.Errorf("write that the cluster refuses: got no error, want one")
	}
}

// writeDirectly writes some bytes at the device's beginning, past the page cache.
func writeDirectly(device mapper.Device, bytes int) error {
	fd, err := unix.Open(device.Path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// Of whole pages, as such a write wants it.
	block, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err == nil {
		_, err = unix.Pwrite(fd, block, 0)
		err = errors.Join(err, unix.Munmap(block))
	}
	return errors.Join(err, unix.Close(fd))
}
