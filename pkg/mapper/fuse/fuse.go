// Package fuse maps RBD images on kernels that have neither krbd nor nbd: a file
// served from librbd through FUSE, under a loop device.
//
//	filesystem -> /dev/loopN -> DIRECTORY/FSID.POOLID.IMAGEID/mount/image -> worker -> librbd
//
// Each image is served by a worker, a process of its own that outlives the
// driver's (see [Launch] and package worker). The driver keeps no record of them.
// What is mapped it reads from the kernel: the mounts from mountinfo, whose
// source field names the image, the mode and the client's address; the loop
// devices from sysfs; which workers live from the locks that they hold. So a
// restarted driver finds everything again, and any step that a killed one left
// undone is finished, or undone, by the next call for that image.
//
// The package needs Linux 5.8 (LOOP_CONFIGURE) and root. It contains no C.
package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
)

// Name is the mapper's name in a StorageClass.
const Name = "fuse"

// DefaultDirectory is where mappings live unless [Options] say otherwise.
const DefaultDirectory = "/run/rbd-csi/fuse"

// Options of a Mapper.
type Options struct {
	// Directory holds a folder for each mapping; it is made when it is needed. Its
	// file system must support locks and vanish at a reboot, as a tmpfs does.
	Directory string
	// Launch starts workers.
	Launch Launch
	// Kill ends the worker of a mapping's folder at once, where it is in a PID namespace
	// that cannot be seen from here. Nil means that workers are in this one: then it is
	// KillWorker.
	Kill func(ctx context.Context, directory string) error
}

// A Mapper is the [mapper.Mapper] of this package. All methods may be called at
// once, and also from several processes that share the directory, even for one image.
type Mapper struct {
	options Options
	asking  asking
	left    leftBehind
}

var _ mapper.Mapper = (*Mapper)(nil)

// New returns a Mapper. It touches nothing.
func New(options Options) *Mapper {
	if options.Directory == "" {
		options.Directory = DefaultDirectory
	}
	if options.Kill == nil {
		options.Kill = func(_ context.Context, directory string) error { return KillWorker(directory) }
	}
	return &Mapper{options: options}
}

// Name returns [Name].
func (m *Mapper) Name() string { return Name }

// How long things may take whose caller sets no limit.
const (
	defaultTimeout = time.Minute
	// undoTimeout bounds the removal of what a failed Map has made.
	undoTimeout = 20 * time.Second
	// askTimeout is how long a worker may take to tell its status, which it does from memory.
	askTimeout = 2 * time.Second
)

// Map makes sure that the image is a device; see [mapper.Mapper]. Beside the kinds
// named there it returns fault.Unavailable when the cluster or a worker did not
// answer before ctx's deadline. The error then names the step that hung.
//
// Options are settings of librbd, KEY=VALUE, with the keys listed at [CheckOptions].
// They count when the image is mapped; a device that is mapped already keeps its own.
func (m *Mapper) Map(ctx context.Context, request mapper.Request) (mapper.Device, error) {
	if err := checkRequest(request); err != nil {
		return mapper.Device{}, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	return wait(ctx, &m.left, fmt.Sprintf("map %s", request.Target.Image), func() (mapper.Device, error) {
		return m.mapImage(ctx, request)
	})
}

func checkRequest(request mapper.Request) error {
	if err := request.Target.Image.Check(); err != nil {
		return err
	}
	if _, err := folderOf(request.Target); err != nil {
		return err
	}
	return CheckOptions(request.Options)
}

func (m *Mapper) mapImage(ctx context.Context, request mapper.Request) (mapper.Device, error) {
	// Before its links are resolved.
	if err := os.MkdirAll(m.options.Directory, 0o700); err != nil {
		return mapper.Device{}, fmt.Errorf("make the directory of mappings: %w: %w", fault.Unavailable, err)
	}
	at, err := m.place(request.Target)
	if err != nil {
		return mapper.Device{}, err
	}
	unlock, err := at.lock(ctx, true)
	if err != nil {
		return mapper.Device{}, err
	}
	defer unlock()

	// A worker of a killed driver can come and go beside us: then look again.
	for {
		device, err := m.mapLocked(ctx, at, request)
		if !fault.Is(err, fault.Superseded) || ctx.Err() != nil {
			return device, err
		}
	}
}

func (m *Mapper) mapLocked(ctx context.Context, at place, request mapper.Request) (mapper.Device, error) {
	found, err := m.served(ctx, at, request)
	if err != nil {
		return mapper.Device{}, err
	}
	return m.attached(ctx, at, found)
}

// served returns a mapping with a worker at work, perhaps without a loop device.
func (m *Mapper) served(ctx context.Context, at place, request mapper.Request) (state, error) {
	found, err := m.lookSettled(ctx, at)
	if err != nil {
		return state{}, err
	}
	usable, err := m.usable(ctx, found, request.ReadOnly)
	if err != nil || usable {
		return found, err
	}
	return m.serveAnew(ctx, at, found, request)
}

// usable reports whether a running worker can be kept. What it says no to may be removed.
func (m *Mapper) usable(ctx context.Context, found state, readOnly bool) (bool, error) {
	switch {
	case !found.serving():
		return false, found.unanswered()
	case found.source.readOnly != readOnly && len(found.loops) == 0:
		return false, nil // left by a Map that was killed
	case found.source.readOnly != readOnly:
		return false, fmt.Errorf("image %s is mapped %s: %w", found.source.image, modeOf(found.source.readOnly), fault.InUse)
	}
	// A client that was blocklisted while it had nothing to do learns of it here.
	err := found.at.control(ctx, Probe)
	if errors.Is(err, errDead) {
		return false, nil
	}
	return err == nil, err
}

// serveAnew removes what is left of an earlier mapping and starts a worker.
func (m *Mapper) serveAnew(ctx context.Context, at place, found state, request mapper.Request) (state, error) {
	if err := m.takeDown(ctx, found); err != nil {
		return state{}, err
	}
	if err := at.make(); err != nil {
		return state{}, err
	}
	err := m.launch(ctx, at, request)
	if fault.Is(err, fault.Superseded) {
		return state{}, err
	}
	if err == nil {
		found, err = m.launched(ctx, at)
	}
	if err != nil {
		return state{}, errors.Join(err, m.undo(ctx, at))
	}
	return found, nil
}

func (m *Mapper) launch(ctx context.Context, at place, request mapper.Request) error {
	order, err := order(ctx, at, request)
	if err != nil {
		return err
	}
	return m.options.Launch(ctx, order)
}

// launched returns the mapping of a worker that has just said that it serves.
func (m *Mapper) launched(ctx context.Context, at place) (state, error) {
	found, err := m.look(ctx, at)
	switch {
	case err != nil:
		return state{}, err
	case found.alive && !found.mounted:
		// Nobody can have seen it, and it would never end by itself.
		err = fmt.Errorf("the worker serves and its mount is not seen here: mount %s with Bidirectional propagation in both pods: %w",
			m.options.Directory, fault.Unsupported)
		return state{}, errors.Join(err, m.options.Kill(ctx, at.path))
	case !found.serving():
		return state{}, fmt.Errorf("the worker is ready but %s: %w", found.dead(), fault.Unavailable)
	}
	return found, nil
}

// attached returns the mapping's device, with a loop device attached if there was none.
func (m *Mapper) attached(ctx context.Context, at place, found state) (mapper.Device, error) {
	for _, one := range found.loops {
		kept, err := one.keep()
		if err != nil {
			return mapper.Device{}, err
		}
		if kept {
			found.loops = []loop{one}
			return found.device(), m.wake(ctx, at, one)
		}
	}
	device, err := attach(ctx, at.file(ImageFile), found.mark, found.source.readOnly)
	if fault.Is(err, fault.Superseded) {
		return mapper.Device{}, err
	}
	if err != nil {
		return mapper.Device{}, errors.Join(err, m.undo(ctx, at))
	}
	found.loops = []loop{device}
	return found.device(), nil
}

// wake gives a device a size that has none because a driver was killed while it was attached.
func (m *Mapper) wake(ctx context.Context, at place, device loop) error {
	size, err := device.bytes()
	if err != nil || size > 0 {
		return err
	}
	return at.control(ctx, Grow, device.path())
}

// undo removes a mapping that could not be made, whether or not the caller still waits.
func (m *Mapper) undo(ctx context.Context, at place) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	found, err := m.lookSettled(ctx, at)
	if err == nil {
		err = m.takeDown(ctx, found)
	}
	if err == nil {
		err = at.remove()
	}
	if err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

// Devices lists the mappings in the directory. What was left half made or half
// removed by a driver that was killed is listed as dead, with an empty Path if it
// has no loop device, so that the caller can see it and have it unmapped.
//
// It reads mountinfo, sysfs and locks, and asks each worker for its status, which
// the worker answers from memory. A worker that does not answer within two
// seconds, because it is stopped for instance, is not taken for dead.
func (m *Mapper) Devices(ctx context.Context) ([]mapper.Device, error) {
	places, err := m.places()
	if err != nil {
		return nil, err
	}
	kernel, err := readKernel()
	if err != nil {
		return nil, err
	}
	devices := make([]mapper.Device, len(places))
	var all sync.WaitGroup
	for i, at := range places {
		all.Go(func() { devices[i] = m.lookIn(ctx, kernel, at).device() })
	}
	all.Wait()
	return devices, nil
}

// Unmap makes sure that the device is gone; see [mapper.Mapper]. The device is known
// by its Target. One that was dead when it was listed and has been replaced by a
// living one since is gone: then nothing is done.
//
// When it returns fault.Unavailable or fault.Unknown the device may still be there,
// or be half removed. Repeating finishes the work.
func (m *Mapper) Unmap(ctx context.Context, device mapper.Device) error {
	if _, err := folderOf(device.Target); err != nil {
		return err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	_, err := wait(ctx, &m.left, fmt.Sprintf("unmap %s", device.Target.Image), func() (struct{}, error) {
		return struct{}{}, m.unmap(ctx, device)
	})
	return err
}

func (m *Mapper) unmap(ctx context.Context, device mapper.Device) error {
	at, err := m.place(device.Target)
	if err != nil {
		return err
	}
	unlock, err := at.lock(ctx, false)
	if errors.Is(err, errNoFolder) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()

	found, err := m.lookSettled(ctx, at)
	if err != nil {
		return err
	}
	if device.Dead != "" && found.dead() == "" {
		return nil
	}
	if err := m.takeDown(ctx, found); err != nil {
		return err
	}
	return at.remove()
}

// takeDown removes all of a mapping but its folder: gently while its worker serves, so
// that what was written is on the cluster, and by force otherwise.
func (m *Mapper) takeDown(ctx context.Context, found state) error {
	if err := found.unanswered(); err != nil {
		return err
	}
	for _, one := range found.loops {
		if err := one.holders(); err != nil {
			return err
		}
	}
	if found.serving() {
		err := m.closeGently(ctx, found)
		if !errors.Is(err, errDead) {
			return err
		}
	}
	return m.closeByForce(ctx, found)
}

// closeGently takes a working mapping down. The flush before the loop device is
// detached finds out, in a way that can be given up on, whether the cluster answers:
// a thread that waits in the kernel for a block device cannot be.
func (m *Mapper) closeGently(ctx context.Context, found state) error {
	if err := found.at.control(ctx, Flush); err != nil {
		return err
	}
	for _, one := range found.loops {
		if err := one.detach(ctx); err != nil {
			return err
		}
	}
	if err := found.at.control(ctx, Close); err != nil {
		return err
	}
	if err := found.at.unmount(); err != nil {
		return err
	}
	return found.at.awaitWorker(ctx)
}

// closeByForce takes a dead mapping down. First the FUSE connection is aborted: then
// nothing that the kernel still has to do for the device waits for the worker.
func (m *Mapper) closeByForce(ctx context.Context, found state) error {
	if err := found.at.abort(); err != nil {
		return err
	}
	for _, one := range found.loops {
		if err := one.drop(); err != nil {
			return err
		}
	}
	if err := found.at.unmount(); err != nil {
		return err
	}
	return m.endWorker(ctx, found.at)
}

// Grow makes the device as large as its image; see [mapper.Mapper]. It returns
// fault.NotFound for a device that is not mapped and fault.Unavailable for a dead one.
// While the cluster does not answer the size is the one that was last known.
func (m *Mapper) Grow(ctx context.Context, device mapper.Device) (int64, error) {
	if _, err := folderOf(device.Target); err != nil {
		return 0, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	return wait(ctx, &m.left, fmt.Sprintf("grow %s", device.Target.Image), func() (int64, error) {
		return m.grow(ctx, device)
	})
}

func (m *Mapper) grow(ctx context.Context, device mapper.Device) (int64, error) {
	at, err := m.place(device.Target)
	if err != nil {
		return 0, err
	}
	unlock, err := at.lock(ctx, false)
	if errors.Is(err, errNoFolder) {
		return 0, fmt.Errorf("image %s is not mapped: %w", device.Target.Image, fault.NotFound)
	}
	if err != nil {
		return 0, err
	}
	defer unlock()

	found, err := m.lookSettled(ctx, at)
	if err != nil {
		return 0, err
	}
	if err := found.unanswered(); err != nil {
		return 0, err
	}
	if why := found.dead(); why != "" {
		return 0, fmt.Errorf("image %s: %s: %w", device.Target.Image, why, fault.Unavailable)
	}
	if err := refreshSize(ctx, at.file(ImageFile)); err != nil {
		return 0, fmt.Errorf("read the size of the image: %w: %w", fault.Unavailable, err)
	}
	if err := at.control(ctx, Grow, found.loops[0].path()); err != nil {
		return 0, err
	}
	return found.loops[0].bytes()
}
