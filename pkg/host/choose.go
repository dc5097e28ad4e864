package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A choice is the mapper for one volume, and what is mapped of the volume already.
type choice struct {
	mapper.Mapper
	reason     string
	passedOver []error         // why those before it were not chosen
	mapped     []mapper.Device // by it, dead ones included
}

// A Mapping tells how a volume was mapped.
type Mapping struct {
	Volume     volid.Image
	Mapper     string   // its name
	Reason     string   // why it was this one
	PassedOver []string // of those that come before it, in order, why each was not chosen
}

func (c choice) of(volume volid.Image) Mapping {
	return Mapping{Volume: volume, Mapper: c.Name(), Reason: c.reason, PassedOver: texts(c.passedOver)}
}

// choose returns the mapper that is to map the image.
//
// An image that is mapped stays with the mapper that did it, whatever the class says and whatever
// the node is able to by now: a module that was loaded since would otherwise have "auto" map the
// image a second time under a filesystem that is mounted. Otherwise it is the mapper of that
// name, or for "auto" the first that works here and opens such an image.
func (h *Host) choose(ctx context.Context, found image.Image, spec StageSpec) (choice, error) {
	mapped, err := h.mappedNow(ctx, targetOf(found))
	if err != nil {
		return choice{}, err
	}
	var chosen choice
	if len(mapped) > 0 {
		chosen, err = h.staysWith(mapped)
	} else {
		chosen, err = h.firstOf(ctx, found, spec)
	}
	if err != nil {
		return choice{}, err
	}
	klog.FromContext(ctx).V(2).Info("Mapper chosen", "volume", found.String(), "mapper", chosen.Name(),
		"reason", chosen.reason, "passedOver", strings.Join(texts(chosen.passedOver), "; "))
	return chosen, nil
}

// staysWith returns the mapper of what is mapped; two mappers at once are fault.InUse.
func (h *Host) staysWith(mapped []mapper.Device) (choice, error) {
	by, err := h.mapperOf(mapped[0])
	if err != nil {
		return choice{}, err
	}
	for _, device := range mapped {
		if device.Mapper != by.Name() {
			return choice{}, mappedTwice(mapped[0], device)
		}
	}
	return choice{Mapper: by, reason: "the volume is mapped with it", mapped: mapped}, nil
}

func mappedTwice(one, other mapper.Device) error {
	return fmt.Errorf("it is mapped twice, by %s at %s and by %s at %s; nothing is mounted of it anew until one of them is unmapped: %w",
		one.Mapper, one.Path, other.Mapper, other.Path, fault.InUse)
}

// firstOf returns the first mapper that was asked for and works.
func (h *Host) firstOf(ctx context.Context, found image.Image, spec StageSpec) (choice, error) {
	chosen := choice{reason: "the volume names it"}
	if spec.Mapper == params.Auto {
		chosen.reason = "it is the first that works here"
	}
	for _, m := range h.mappers {
		if string(spec.Mapper) != m.Name() && spec.Mapper != params.Auto {
			continue
		}
		err := lack(ctx, m, found, spec.ReadOnly)
		if err == nil {
			chosen.Mapper = m
			return chosen, nil
		}
		chosen.passedOver = append(chosen.passedOver, fmt.Errorf("mapper %s: %w", m.Name(), err))
	}
	if len(chosen.passedOver) == 0 {
		return choice{}, fmt.Errorf("this node has no mapper %q: %w", spec.Mapper, fault.Unsupported)
	}
	return choice{}, errors.Join(chosen.passedOver...)
}

// lack says why a mapper cannot map the image here, or returns nil.
func lack(ctx context.Context, m mapper.Mapper, found image.Image, readOnly bool) error {
	if err := m.Check(ctx); err != nil {
		return err
	}
	if selective, ok := m.(mapper.Selective); ok {
		return selective.CheckFeatures(uint64(found.Header.Layout.Features), readOnly)
	}
	return nil
}

func texts(errs []error) []string {
	all := make([]string, len(errs))
	for i, err := range errs {
		all[i] = err.Error()
	}
	return all
}

// mappedNow returns the devices of an image, of all mappers.
func (h *Host) mappedNow(ctx context.Context, target mapper.Target) ([]mapper.Device, error) {
	return h.devices(ctx, target.Same)
}

// alone makes sure that no other mapper has the image too: another process of the driver can have
// chosen another one at the same moment. Each of the two looks after it has mapped, so at least one
// of them sees the other; it takes back what it has just made.
func (h *Host) alone(ctx context.Context, by choice, device mapper.Device) error {
	for _, m := range h.mappers {
		if m.Name() == by.Name() {
			continue
		}
		others, err := devicesOf(ctx, m, device.Target.Same)
		if err == nil && len(others) > 0 {
			err = mappedTwice(device, others[0])
		}
		if err != nil {
			return h.unmapNew(ctx, by, device, err)
		}
	}
	return nil
}

// unmapNew unmaps a device, unless it was there before.
func (h *Host) unmapNew(ctx context.Context, by choice, device mapper.Device, cause error) error {
	if slices.Contains(by.mapped, device) {
		return cause
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTime)
	defer cancel()
	if err := by.Unmap(ctx, device); err != nil {
		return fmt.Errorf("%w (and %s stays mapped: %w)", cause, device.Path, err)
	}
	return cause
}

// devices returns the devices of all mappers whose images are wanted. It asks the kernel, and of the
// clusters at most whether these devices live.
func (h *Host) devices(ctx context.Context, wanted func(mapper.Target) bool) ([]mapper.Device, error) {
	var all []mapper.Device
	for _, m := range h.mappers {
		devices, err := devicesOf(ctx, m, wanted)
		if err != nil {
			return nil, fmt.Errorf("list devices of mapper %s: %w", m.Name(), err)
		}
		all = append(all, devices...)
	}
	return all, nil
}

func devicesOf(ctx context.Context, m mapper.Mapper, wanted func(mapper.Target) bool) ([]mapper.Device, error) {
	if finder, ok := m.(mapper.Finder); ok {
		return finder.Find(ctx, wanted)
	}
	devices, err := m.Devices(ctx)
	return slices.DeleteFunc(devices, func(d mapper.Device) bool { return !wanted(d.Target) }), err
}
