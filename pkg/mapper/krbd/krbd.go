// Package krbd maps RBD images with the kernel's own client, by its files below
// /sys/bus/rbd (Documentation/ABI/testing/sysfs-bus-rbd in Linux).
//
//	filesystem -> /dev/rbdN -> rbd and libceph in the kernel
//
// The kernel is the only record. A device is found by what sysfs says of it: cluster_fsid,
// pool_id, image_id and current_snap, never by its number, which is given again, and never by
// the image's name, which can change under it. Each mapping is a client of its own (noshare), so
// that one can be fenced alone, and so that one which was blocklisted spoils no other.
//
// What is written to sysfs can wait for a cluster that does not answer, so it is written
// by a child process (see [Start]) that can be killed, and left behind where a kill is not
// enough. The key goes to the child by a pipe, from there into the keyring of its
// thread by add_key(2), and is gone with it: it is in no file, argument or log, and not in sysfs,
// where the option secret= would be shown.
//
// libceph keeps the network namespace of whoever maps for all of the device's life. In
// Kubernetes the pod has hostNetwork, or Options.NetworkNamespace names the host's.
//
// The package needs Linux 4.19 and root. It contains no C.
package krbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
)

// Name is the mapper's name in a StorageClass.
const Name = "krbd"

// DefaultDirectory is where locks are unless [Options] say otherwise.
const DefaultDirectory = "/run/rbd-csi/krbd"

// Options of a Mapper.
type Options struct {
	// Directory holds a file for each image that is just being mapped or unmapped, on which
	// whoever does it holds a lock. It is made when it is needed. All processes that map on one
	// node share it. Empty means [DefaultDirectory].
	Directory string
	// Start starts the process that writes; see [Command].
	Start Start
	// NetworkNamespace is the path of the network namespace in which the kernel's clients are to
	// live, for instance /proc/1/ns/net; empty: this process's own.
	NetworkNamespace string
}

// A Mapper is the [mapper.Mapper] of this package. All methods may be called at once, also from
// several processes that share the directory, even for one image.
type Mapper struct {
	options Options
	kernel  kernel
	left    atomic.Int64 // children that were given up on
}

var (
	_ mapper.Mapper    = (*Mapper)(nil)
	_ mapper.Finder    = (*Mapper)(nil)
	_ mapper.Selective = (*Mapper)(nil)
)

// New returns a Mapper. It touches nothing.
func New(options Options) *Mapper {
	if options.Directory == "" {
		options.Directory = DefaultDirectory
	}
	return &Mapper{options: options, kernel: running()}
}

// Name returns [Name].
func (m *Mapper) Name() string { return Name }

// How long things may take.
const (
	// defaultTimeout bounds a call whose caller sets no limit.
	defaultTimeout = time.Minute
	// undoTimeout bounds the removal of what a failed Map has made.
	undoTimeout = 20 * time.Second
	// probeTimeout is how long devices may take to answer whether they live, when all are listed. One
	// that does not is not taken for dead.
	probeTimeout = 2 * time.Second
	// probeOneTimeout is the same for the one that a request is about. On a busy node the process that
	// asks needs some of it to begin.
	probeOneTimeout = 5 * time.Second
)

// bounded gives a context a deadline if it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, defaultTimeout)
}

// Map makes sure that the image is a device; see [mapper.Mapper]. Beside the kinds named there
// it returns fault.Unavailable when the cluster did not answer before ctx's deadline, and
// fault.Unknown when the kernel did not even let go of the request: then the device is
// taken down as soon as it does.
//
// Options are map options of the kernel, as `rbd map -o` takes them, of the list at
// [CheckOptions]. They count when the image is mapped; a device that is mapped already
// keeps its own.
//
// The kernel maps by name. If the image's name is another image's by now, that one is mapped for
// a moment, and fault.NotFound is returned.
func (m *Mapper) Map(ctx context.Context, request mapper.Request) (mapper.Device, error) {
	device, err := m.mapImage(ctx, request)
	if err != nil {
		return mapper.Device{}, fmt.Errorf("map %s: %w", request.Target.Image, err)
	}
	return device, nil
}

func (m *Mapper) mapImage(ctx context.Context, request mapper.Request) (mapper.Device, error) {
	if err := m.checkRequest(request); err != nil {
		return mapper.Device{}, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	held, err := m.lock(ctx, request.Target)
	if err != nil {
		return mapper.Device{}, err
	}
	defer held.release()
	kept, err := m.keep(ctx, held, request)
	if err != nil || kept != nil {
		return m.shown(kept, err)
	}
	added, err := m.add(ctx, held, request)
	if err == nil {
		err = m.kernel.ensureNode(*added)
	}
	if err != nil && added != nil {
		err = errors.Join(err, m.undo(ctx, held, *added))
	}
	return m.shown(added, err)
}

func (m *Mapper) shown(found *entry, err error) (mapper.Device, error) {
	if err != nil {
		return mapper.Device{}, err
	}
	return m.kernel.device(*found, ""), nil
}

// keep returns what is mapped already and can be used. What is dead it removes, and what somebody
// else has mapped is fault.InUse.
func (m *Mapper) keep(ctx context.Context, held *lock, request mapper.Request) (*entry, error) {
	found, err := m.kernel.find(request.Target)
	if err != nil {
		return nil, err
	}
	for _, one := range found {
		if one.foreign() {
			return nil, fmt.Errorf("somebody else has mapped it at %s and has to unmap it: rbd device unmap %s: %w", one.path(), one.path(), fault.InUse)
		}
		dead, err := m.probe(ctx, held, one)
		switch {
		case err != nil:
			return nil, err
		case dead != "":
			if err := m.remove(ctx, held, one, dead); err != nil {
				return nil, fmt.Errorf("remove the dead %s: %w", one.path(), err)
			}
		case one.readOnly != request.ReadOnly:
			return nil, fmt.Errorf("it is mapped %s at %s: %w", modeOf(one.readOnly), one.path(), fault.InUse)
		default:
			return &one, m.kernel.ensureNode(one)
		}
	}
	return nil, nil
}

func modeOf(readOnly bool) string {
	if readOnly {
		return "read-only"
	}
	return "to be written"
}

// add maps. It returns an entry together with an error when there is something to undo.
func (m *Mapper) add(ctx context.Context, held *lock, request mapper.Request) (*entry, error) {
	line, order, err := m.order(ctx, request)
	if err != nil {
		return nil, err
	}
	result, err := m.one(ctx, held, order, func() { m.undoLine(held, line) })
	if errors.Is(err, fault.Unknown) {
		return nil, err // the kernel is still at it, and undoLine follows
	}
	if err == nil {
		err = m.addError(result, request)
	}
	added, findErr := m.kernel.findLine(line)
	if err = errors.Join(err, findErr); err != nil {
		return added, err
	}
	switch {
	case added == nil:
		return nil, fmt.Errorf("the kernel has mapped it and shows no device: %w", fault.Unavailable)
	case added.target.FSID != request.Target.FSID:
		return added, fmt.Errorf("the monitors are those of cluster %s, not of %s: %w", added.target.FSID, request.Target.FSID, fault.Unavailable)
	case !added.target.Same(request.Target):
		return added, fmt.Errorf("the name is that of another image now, %s, and not of %s: %w", added.target.ImageID, request.Target.ImageID, fault.NotFound)
	}
	return added, nil
}

// undo removes what a failed Map has added, whether or not the caller still waits.
func (m *Mapper) undo(ctx context.Context, held *lock, added entry) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := m.remove(ctx, held, added, ""); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

// undoLine removes what a child has added that was given up on and has ended now.
func (m *Mapper) undoLine(held *lock, line string) {
	added, err := m.kernel.findLine(line)
	if err == nil && added != nil {
		err = m.undo(context.Background(), held, *added)
	}
	if err != nil {
		klog.Background().Error(err, "What was mapped too late is left; the next request for the image finds it")
	}
}

// Devices lists the devices of all images that are mapped here, no matter by whom; see
// [mapper.Mapper]. Mapped snapshots are left out. Of a device that somebody else has mapped the
// cluster's name is not known.
//
// Whether a device is dead no file of sysfs says. The kernel is asked to read the image's header
// again (the file refresh), which the cluster answers at once, to a blocklisted client too. All
// devices are asked at the same time; one that does not answer within two seconds is not taken for dead.
func (m *Mapper) Devices(ctx context.Context) ([]mapper.Device, error) {
	return m.Find(ctx, func(mapper.Target) bool { return true })
}

// Find lists those of Devices whose images are wanted, and asks the cluster about these alone. On
// a node with many devices that makes the difference between four operations and
// four times as many as there are devices.
func (m *Mapper) Find(ctx context.Context, wanted func(mapper.Target) bool) ([]mapper.Device, error) {
	entries, err := m.kernel.those(func(e entry) bool { return wanted(e.target) })
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	dead, err := m.probeAll(ctx, entries)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	devices := make([]mapper.Device, len(entries))
	for i, one := range entries {
		devices[i] = m.kernel.device(one, dead[i])
	}
	return devices, nil
}

// Unmap makes sure that the device is gone; see [mapper.Mapper]. The device is known by its
// Target. One that was dead when it was listed and has been replaced by a living one since is
// gone: then nothing is done. A dead one is removed by force unless this
// process sees a mount of it. What somebody else has mapped stays.
//
// When it returns fault.Unknown the kernel still works on it, and another call waits for that.
func (m *Mapper) Unmap(ctx context.Context, device mapper.Device) error {
	if err := m.unmap(ctx, device); err != nil {
		return fmt.Errorf("unmap %s: %w", device.Target.Image, err)
	}
	return nil
}

func (m *Mapper) unmap(ctx context.Context, device mapper.Device) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	held, err := m.lock(ctx, device.Target)
	if err != nil {
		return err
	}
	defer held.release()
	found, err := m.kernel.find(device.Target)
	if err != nil {
		return err
	}
	for _, one := range found {
		if one.foreign() {
			continue
		}
		dead := ""
		if device.Dead != "" {
			if dead, err = m.probe(ctx, held, one); err != nil || dead == "" {
				return err
			}
		}
		if err := m.remove(ctx, held, one, dead); err != nil {
			return err
		}
	}
	return nil
}

// remove takes a device down, by force if it is dead and no mount of it is seen. Whoever still
// holds a dead device in secret gets errors, and got them before.
func (m *Mapper) remove(ctx context.Context, held *lock, one entry, dead string) error {
	result, err := m.one(ctx, held, m.kernel.removal(one, false), nil)
	if err != nil {
		return err
	}
	if result.Errno != unix.EBUSY {
		return removeError(result, one)
	}
	if dead == "" {
		if dead, err = m.probe(ctx, held, one); err != nil {
			return errors.Join(m.kernel.busy(one), err)
		}
	}
	if dead == "" || len(m.kernel.mounts(one)) > 0 {
		return m.kernel.busy(one)
	}
	result, err = m.one(ctx, held, m.kernel.removal(one, true), nil)
	if err != nil {
		return err
	}
	return removeError(result, one)
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
	found, err := m.kernel.find(device.Target)
	if err != nil {
		return 0, err
	}
	if len(found) == 0 {
		return 0, fmt.Errorf("it is not mapped: %w", fault.NotFound)
	}
	// The lock is for those who make and remove devices. Growing one does neither.
	result, err := m.one(ctx, nil, m.kernel.refresh(found[0]), nil)
	if err != nil {
		return 0, err
	}
	if err := refreshError(result, found[0]); err != nil {
		return 0, err
	}
	return m.kernel.bytes(found[0])
}

// probe says why a device is dead, or nothing. It is Unavailable when the device does not answer.
func (m *Mapper) probe(ctx context.Context, held *lock, one entry) (dead string, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeOneTimeout)
	defer cancel()
	result, err := m.one(ctx, held, m.kernel.refresh(one), nil)
	if err != nil {
		return "", fmt.Errorf("%s does not answer: %w", one.path(), err)
	}
	return deadBy(result), nil
}

// probeAll says of each why it is dead, or nothing.
func (m *Mapper) probeAll(ctx context.Context, entries []entry) ([]string, error) {
	dead := make([]string, len(entries))
	if len(entries) == 0 {
		return dead, nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	orders := make([]Order, len(entries))
	for i, one := range entries {
		orders[i] = m.kernel.refresh(one)
	}
	results, err := m.write(ctx, nil, orders, nil)
	if err != nil && !errors.Is(err, errGivenUp) {
		return nil, err
	}
	for _, result := range results {
		dead[result.Index] = deadBy(result)
	}
	return dead, nil
}

// deadBy reads the outcome of a refresh. ESHUTDOWN is the kernel's number for "blocklisted"
// (EBLOCKLISTED in include/linux/ceph/rados.h), ENOENT says that the image is gone.
func deadBy(result Result) string {
	switch result.Errno {
	case unix.ESHUTDOWN:
		return "its client was blocklisted"
	case unix.ENOENT:
		if _, err := os.Stat(result.Path); err == nil {
			return "its image is gone"
		}
	}
	return ""
}
