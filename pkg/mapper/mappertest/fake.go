// Package mappertest has what tests of and with mappers share: [Suite], which is the
// contract of package mapper as tests, and [Fake], a mapper whose devices are regular
// files.
package mappertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
)

// Name is the name of a [Fake].
const Name = "fake"

// Sizes tells how large an image is, in bytes, or returns fault.NotFound.
type Sizes func(ctx context.Context, target mapper.Target) (int64, error)

// A Fake is one node. An image is a file in a store that the fakes of several nodes can
// share; a mapped one has a hard link to it as its device. So what is written through
// Device.Path is the image's content, stays when it is unmapped, and is seen by
// other nodes. The path of a dead device cannot be opened (ELOOP).
//
// The table of what is mapped outlives the driver: Kill in a [Fault] ends the process,
// [Fake.Restart] begins the next one on the same node. All methods may be called at once.
type Fake struct {
	store string
	node  string
	sizes Sizes

	mu     sync.Mutex
	mapped []mapper.Device
	nonces int
	held   func(path string) bool

	faults []*Fault
	killed bool
	hook   func(ctx context.Context, call Call)
	calls  []Call
}

var _ mapper.Mapper = (*Fake)(nil)

// NewFake returns a node on which nothing is mapped. Both directories have to exist and be
// on one file system: store holds the images, node the devices of this node alone. The
// names of fakes that share a store differ in node, and so do their clients' addresses.
func NewFake(store, node string, sizes Sizes) *Fake {
	return &Fake{store: store, node: node, sizes: sizes, held: func(string) bool { return false }}
}

// File returns the path of an image's content, mapped or not. It exists once the image
// was mapped.
func (f *Fake) File(target mapper.Target) string {
	return filepath.Join(f.store, fmt.Sprintf("%s.%d.%s", target.FSID, target.PoolID, target.ImageID))
}

// Held sets what tells whether something holds a device, which keeps it from being unmapped:
// for instance whether a fake of the file system has it mounted.
func (f *Fake) Held(held func(path string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = held
}

// ReadOnly reports whether a device is mapped so that it can only be read.
func (f *Fake) ReadOnly(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.mapped, func(d mapper.Device) bool { return d.Path == path && d.ReadOnly })
}

// Die makes the device of an image dead, as when its client was blocklisted. It reports
// whether there was one.
func (f *Fake) Die(target mapper.Target, why string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	device := f.find(target)
	if device == nil {
		return false
	}
	device.Dead, device.Client = why, ""
	_ = os.Remove(device.Path)
	_ = os.Symlink(filepath.Base(device.Path), device.Path)
	return true
}

// Name returns [Name].
func (f *Fake) Name() string { return Name }

// Check always succeeds, but for faults.
func (f *Fake) Check(ctx context.Context) error {
	return f.do(ctx, Call{Method: "Check"}, func() error { return nil })
}

// Map makes a link to the image's file.
func (f *Fake) Map(ctx context.Context, request mapper.Request) (mapper.Device, error) {
	var device mapper.Device
	err := f.do(ctx, about("Map", request.Target), func() (err error) {
		device, err = f.mapImage(ctx, request)
		return err
	})
	if err != nil {
		return mapper.Device{}, err
	}
	return device, nil
}

func (f *Fake) mapImage(ctx context.Context, request mapper.Request) (mapper.Device, error) {
	if len(request.Options) > 0 {
		return mapper.Device{}, fmt.Errorf("map %s: unknown option %q: %w", request.Target.Image, request.Options[0], fault.Invalid)
	}
	if old := f.find(request.Target); old != nil {
		switch {
		case old.Dead != "":
			if err := f.remove(request.Target); err != nil {
				return mapper.Device{}, err
			}
		case old.ReadOnly != request.ReadOnly:
			return mapper.Device{}, fmt.Errorf("map %s: mapped in the other mode: %w", request.Target.Image, fault.InUse)
		default:
			return *old, nil
		}
	}
	if err := f.resize(ctx, request.Target); err != nil {
		return mapper.Device{}, err
	}
	return f.add(request)
}

// add makes the device with the lowest free number, as kernels do.
func (f *Fake) add(request mapper.Request) (mapper.Device, error) {
	var path string
	for number := 0; ; number++ {
		path = filepath.Join(f.node, fmt.Sprintf("fake%d", number))
		if !slices.ContainsFunc(f.mapped, func(d mapper.Device) bool { return d.Path == path }) {
			break
		}
	}
	if err := os.Link(f.File(request.Target), path); err != nil {
		return mapper.Device{}, fmt.Errorf("map %s: %w: %w", request.Target.Image, fault.Unavailable, err)
	}
	f.nonces++
	device := mapper.Device{
		Path: path, Mapper: Name, Target: request.Target, ReadOnly: request.ReadOnly,
		Client: fmt.Sprintf("%s:0/%d", f.address(), f.nonces),
	}
	f.mapped = append(f.mapped, device)
	return device, nil
}

// address is one for each node, in 127.0.0.0/8.
func (f *Fake) address() string {
	sum := uint32(1)
	for _, b := range []byte(f.node) {
		sum = sum*31 + uint32(b)
	}
	return fmt.Sprintf("127.%d.%d.%d", sum>>16&255, sum>>8&255, sum&255)
}

// resize makes the image's file as large as the image.
func (f *Fake) resize(ctx context.Context, target mapper.Target) error {
	bytes, err := f.sizes(ctx, target)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(f.File(target), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(file.Truncate(bytes), file.Close())
	}
	if err != nil {
		return fmt.Errorf("image %s: %w: %w", target.Image, fault.Unavailable, err)
	}
	return nil
}

// Devices lists what is mapped, in the order in which it was.
func (f *Fake) Devices(ctx context.Context) ([]mapper.Device, error) {
	var devices []mapper.Device
	err := f.do(ctx, Call{Method: "Devices"}, func() error {
		devices = slices.Clone(f.mapped)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return devices, nil
}

// Unmap removes the link.
func (f *Fake) Unmap(ctx context.Context, device mapper.Device) error {
	return f.do(ctx, about("Unmap", device.Target), func() error { return f.remove(device.Target) })
}

func (f *Fake) remove(target mapper.Target) error {
	device := f.find(target)
	if device == nil {
		return nil
	}
	if f.held(device.Path) {
		return fmt.Errorf("unmap %s: something holds %s: %w", target.Image, device.Path, fault.InUse)
	}
	if err := os.Remove(device.Path); err != nil {
		return fmt.Errorf("unmap %s: %w: %w", target.Image, fault.Unavailable, err)
	}
	f.mapped = slices.DeleteFunc(f.mapped, func(d mapper.Device) bool { return d.Target.Same(target) })
	return nil
}

// Grow makes the image's file as large as the image has become.
func (f *Fake) Grow(ctx context.Context, device mapper.Device) (int64, error) {
	var bytes int64
	err := f.do(ctx, about("Grow", device.Target), func() error {
		found := f.find(device.Target)
		switch {
		case found == nil:
			return fmt.Errorf("grow %s: not mapped: %w", device.Target.Image, fault.NotFound)
		case found.Dead != "":
			return fmt.Errorf("grow %s: %s: %w", device.Target.Image, found.Dead, fault.Unavailable)
		}
		if err := f.resize(ctx, device.Target); err != nil {
			return err
		}
		info, err := os.Stat(found.Path)
		if err != nil {
			return fmt.Errorf("grow %s: %w: %w", device.Target.Image, fault.Unavailable, err)
		}
		bytes = info.Size()
		return nil
	})
	if err != nil {
		return 0, err
	}
	return bytes, nil
}

// find returns the image's device or nil; the caller holds f.mu.
func (f *Fake) find(target mapper.Target) *mapper.Device {
	for i := range f.mapped {
		if f.mapped[i].Target.Same(target) {
			return &f.mapped[i]
		}
	}
	return nil
}
