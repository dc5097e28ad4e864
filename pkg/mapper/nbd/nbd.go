// Package nbd maps RBD images with rbd-nbd, Ceph's own server of network block devices: librbd in
// a process of its own, and the kernel's nbd in front of it.
//
//	filesystem -> /dev/nbdN -> nbd in the kernel -> rbd-nbd, librbd
//
// The kernel keeps a text with each device, the cookie by which another rbd-nbd may take the device
// over (the file backend in sysfs, Linux 5.14). The package chooses it, and writes into it
// which image is mapped and how, so the kernel is the record of what is mapped:
//
//	rbd-csi:MODE:FSID:POOLID:IMAGEID:HANDLE
//
// Each rbd-nbd is the child of a worker, which is this package's [Serve] in a process of its own. It
// lives where a restart of the driver does not reach it (see [Launch]). When its rbd-nbd dies
// before its time, by a kill for instance, the worker starts another one, which takes the device
// over with what was asked of it meanwhile: whoever reads and writes waits, and loses nothing. When
// both have died the device is dead.
//
// The key goes to rbd-nbd in a file that is in its memory alone (memfd_create(2)), as does the
// configuration: it is in no file of the node, argument, environment or log.
//
// The package needs Linux 5.14, rbd-nbd of Ceph 16 or newer, and root. It contains no C.
package nbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
)

// Name is the mapper's name in a StorageClass.
const Name = "nbd"

// DefaultDirectory is where mappings live unless [Options] say otherwise.
const DefaultDirectory = "/run/rbd-csi/nbd"

// Options of a Mapper.
type Options struct {
	// Directory holds a folder for each mapping, and locks. It is on a tmpfs, made when it is
	// needed, and the same for all processes that map on one node. Empty means [DefaultDirectory].
	Directory string
	// Launch starts workers.
	Launch Launch
	// Ready reports with fault.Unsupported that Launch can start no workers of this mapper, because
	// whoever starts them is too old; nil: it can.
	Ready func(ctx context.Context) error
	// Bytes tells how large an image is now.
	Bytes func(ctx context.Context, target mapper.Target) (int64, error)
}

// A Mapper is the [mapper.Mapper] of this package. All methods may be called at once, also from
// several processes that share the directory, even for one image.
type Mapper struct {
	options Options
	kernel  kernel
	left    atomic.Int64 // probes that were given up on
}

var (
	_ mapper.Mapper = (*Mapper)(nil)
	_ mapper.Finder = (*Mapper)(nil)
)

// New returns a Mapper. It touches nothing.
func New(options Options) *Mapper {
	if options.Directory == "" {
		options.Directory = DefaultDirectory
	}
	return &Mapper{options: options, kernel: kernel{sys: "/sys", dev: "/dev"}}
}

// Name returns [Name].
func (m *Mapper) Name() string { return Name }

// How long things may take.
const (
	// defaultTimeout bounds a call whose caller sets no limit.
	defaultTimeout = time.Minute
	// undoTimeout bounds taking down what a failed Map has made.
	undoTimeout = 20 * time.Second
	// tick is how often something is looked at that offers no way to wait for it.
	tick = 10 * time.Millisecond
)

// bounded gives a context a deadline if it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, defaultTimeout)
}

// await looks until it is so, or ctx ends.
func await(ctx context.Context, what string, so func() (bool, error)) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		if done, err := so(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not in time: %w: %w", what, fault.Unavailable, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// Map makes sure that the image is a device; see [mapper.Mapper]. Options are those of
// [CheckOptions]; they count when the image is mapped.
//
// rbd-nbd maps by name. If the image's name is another image's by now, that one is mapped for
// a moment, and fault.NotFound is returned.
func (m *Mapper) Map(ctx context.Context, request mapper.Request) (mapper.Device, error) {
	device, err := m.mapImage(ctx, request)
	if err != nil {
		return mapper.Device{}, fmt.Errorf("map %s: %w", request.Target.Image, err)
	}
	return device, nil
}

func (m *Mapper) mapImage(ctx context.Context, request mapper.Request) (mapper.Device, error) {
	if err := request.Target.Image.Check(); err != nil {
		return mapper.Device{}, err
	}
	if err := CheckOptions(request.Options); err != nil {
		return mapper.Device{}, err
	}
	if request.Access.User == "" {
		return mapper.Device{}, fmt.Errorf("no user is named: %w", fault.Unauthenticated)
	}
	at, err := m.place(request.Target)
	if err != nil {
		return mapper.Device{}, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	unlock, err := at.lock(ctx)
	if err != nil {
		return mapper.Device{}, err
	}
	defer unlock()
	kept, err := m.keep(ctx, at, request)
	if err != nil || kept != nil {
		return m.shown(at, kept, err)
	}
	return m.start(ctx, at, request)
}

func (m *Mapper) shown(at place, found *entry, err error) (mapper.Device, error) {
	if err != nil {
		return mapper.Device{}, err
	}
	return m.kernel.device(*found, at.client(), ""), nil
}

// keep returns what is mapped already and can be used. What is dead or half made it takes down.
func (m *Mapper) keep(ctx context.Context, at place, request mapper.Request) (*entry, error) {
	found, err := m.kernel.find(request.Target)
	if err != nil {
		return nil, err
	}
	if found == nil {
		// A worker whose caller was killed is about to end, or to show its device.
		return nil, at.awaitEnd(ctx)
	}
	if m.dead(ctx, at, *found) != "" || at.client() == "" {
		return nil, m.takeDown(ctx, at, *found)
	}
	if found.readOnly != request.ReadOnly {
		mode := map[bool]string{true: "read-only", false: "to be written"}[found.readOnly]
		return nil, fmt.Errorf("it is mapped %s at %s: %w", mode, found.path(), fault.InUse)
	}
	return found, nil
}

// start has a worker map the image.
func (m *Mapper) start(ctx context.Context, at place, request mapper.Request) (mapper.Device, error) {
	order, err := newOrder(ctx, at, request)
	if err != nil {
		return mapper.Device{}, err
	}
	if err := at.make(); err != nil {
		return mapper.Device{}, err
	}
	err = m.options.Launch(ctx, order)
	var found *entry
	if err == nil {
		if found, err = m.kernel.find(request.Target); err == nil && found == nil {
			err = fmt.Errorf("rbd-nbd has mapped it and the kernel shows no device: %w", fault.Unavailable)
		}
	}
	if err != nil {
		err = errors.Join(err, m.undo(ctx, at, request.Target))
	}
	return m.shown(at, found, err)
}

// undo takes down what a failed Map has left, whether or not the caller still waits.
func (m *Mapper) undo(ctx context.Context, at place, target mapper.Target) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	found, err := m.kernel.find(target)
	if err == nil && found != nil {
		err = m.takeDown(ctx, at, *found)
	}
	if err == nil {
		err = at.awaitEnd(ctx)
	}
	if err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return at.remove()
}

// Devices lists what the driver has mapped this way; see [mapper.Mapper].
//
// A device is dead when no rbd-nbd serves it and nobody is left to start one, and when
// reading its first block ends with an error, as after its client was blocklisted. One that does
// not answer within two seconds is not taken for dead.
func (m *Mapper) Devices(ctx context.Context) ([]mapper.Device, error) {
	return m.Find(ctx, func(mapper.Target) bool { return true })
}

// Find lists those of Devices whose images are wanted, and looks at these alone.
func (m *Mapper) Find(ctx context.Context, wanted func(mapper.Target) bool) ([]mapper.Device, error) {
	entries, err := m.kernel.entries()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	found := make([]*mapper.Device, len(entries))
	var all sync.WaitGroup
	for i, one := range entries {
		at, err := m.place(one.target)
		if err != nil || !wanted(one.target) {
			continue
		}
		all.Go(func() {
			device := m.kernel.device(one, at.client(), m.dead(ctx, at, one))
			found[i] = &device
		})
	}
	all.Wait()
	var devices []mapper.Device
	for _, device := range found {
		if device != nil {
			devices = append(devices, *device)
		}
	}
	return devices, nil
}

// dead says why a device is dead, or nothing. Who asks in the moment in which the processes are killed
// finds them there, and no answer; so where there is none it looks for them once more.
func (m *Mapper) dead(ctx context.Context, at place, one entry) string {
	const gone = "its rbd-nbd is gone"
	if !at.mayBeServed() {
		return gone
	}
	dead, answered := m.probe(ctx, one)
	if !answered && !at.mayBeServed() {
		return gone
	}
	return dead
}

// Unmap makes sure that the device is gone; see [mapper.Mapper]. The device is known by its
// Target. One that was dead when it was listed and has been replaced by a living one since is
// gone: then nothing is done.
func (m *Mapper) Unmap(ctx context.Context, device mapper.Device) error {
	if err := m.unmap(ctx, device); err != nil {
		return fmt.Errorf("unmap %s: %w", device.Target.Image, err)
	}
	return nil
}

func (m *Mapper) unmap(ctx context.Context, device mapper.Device) error {
	at, err := m.place(device.Target)
	if err != nil {
		return err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	unlock, err := at.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	found, err := m.kernel.find(device.Target)
	if err != nil {
		return err
	}
	if found != nil {
		if device.Dead != "" && m.dead(ctx, at, *found) == "" {
			return nil
		}
		if err := m.takeDown(ctx, at, *found); err != nil {
			return err
		}
	}
	if err := at.awaitEnd(ctx); err != nil {
		return err
	}
	return at.remove()
}

// takeDown disconnects a device that nobody holds, and waits until its rbd-nbd has closed the image:
// then what was written is on the cluster.
func (m *Mapper) takeDown(ctx context.Context, at place, one entry) error {
	dead := m.dead(ctx, at, one) != ""
	if err := m.kernel.disconnect(ctx, one, dead); err != nil {
		return err
	}
	gone := func() (bool, error) {
		found, err := m.kernel.find(one.target)
		return found == nil || found.number != one.number, err
	}
	if err := await(ctx, "disconnect "+one.path(), gone); err != nil && dead {
		return fmt.Errorf("%s is dead, and somebody still holds it: %w: %w", one.path(), fault.InUse, err)
	} else if err != nil {
		return err
	}
	return at.awaitEnd(ctx)
}

// Grow makes the device as large as its image; see [mapper.Mapper]. It returns fault.NotFound
// for a device that is not mapped and fault.Unavailable for a dead one.
func (m *Mapper) Grow(ctx context.Context, device mapper.Device) (int64, error) {
	bytes, err := m.grow(ctx, device)
	if err != nil {
		return 0, fmt.Errorf("grow %s: %w", device.Target.Image, err)
	}
	return bytes, nil
}

func (m *Mapper) grow(ctx context.Context, device mapper.Device) (int64, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	at, err := m.place(device.Target)
	if err != nil {
		return 0, err
	}
	found, err := m.kernel.find(device.Target)
	switch {
	case err != nil:
		return 0, err
	case found == nil:
		return 0, fmt.Errorf("it is not mapped: %w", fault.NotFound)
	}
	if dead := m.dead(ctx, at, *found); dead != "" {
		return 0, fmt.Errorf("%s is dead, %s: %w", found.path(), dead, fault.Unavailable)
	}
	wanted, err := m.options.Bytes(ctx, device.Target)
	if err != nil {
		return 0, err
	}
	bytes, err := m.kernel.bytes(*found)
	if err != nil || bytes >= wanted {
		return bytes, err
	}
	// librbd in rbd-nbd has been told of the new size before `rbd resize` ended, and looks for it before
	// the next request: nothing is sent to it that it would take for behind the end.
	if err := netlinkResize(found.number, cookie(found.target, found.readOnly), wanted); err != nil {
		return 0, fmt.Errorf("tell the kernel the size of %s: %w: %w", found.path(), fault.Unavailable, err)
	}
	return m.kernel.bytes(*found)
}

// bin is Ceph's program.
const bin = "rbd-nbd"

// Check reports what this node lacks with fault.Unsupported; see [mapper.Mapper].
func (m *Mapper) Check(ctx context.Context) error {
	if err := m.kernel.check(ctx, os.Geteuid() == 0); err != nil || m.options.Ready == nil {
		return err
	}
	return m.options.Ready(ctx)
}
