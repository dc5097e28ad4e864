package host

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/step"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A node that returns, after it was frozen or cut off, finds its devices dead: their clients were shut out when
// the volumes moved. Nothing that was written since can be saved, and nothing of it has reached the
// cluster. So each request that meets a dead device clears it away: the mount, by force the mapping, and then
// stages anew, if the node still has the right to. A filesystem that went read-only after an error is unmounted, checked and mounted
// anew likewise. What belongs to a pod is left to the kubelet: it has to end the pods that use the device.

// An Ailment is what is wrong with a volume on this node.
type Ailment struct {
	// Reason is one word for programs, Message a sentence for people.
	Reason, Message string
}

// Reasons of ailments.
const (
	DeviceDead         = "DeviceDead"         // no I/O comes back
	FilesystemReadOnly = "FilesystemReadOnly" // it went read-only, as ext4 does after an error
)

// ailment says what is wrong with a device, or with the filesystem on it as a mount shows it; nil: nothing.
func ailment(device mapper.Device, point filesystem.Point) *Ailment {
	switch {
	case device.Dead != "":
		return &Ailment{DeviceDead, fmt.Sprintf("device %s is dead (%s)", device.Path, device.Dead)}
	case point.Stopped:
		return &Ailment{FilesystemReadOnly, fmt.Sprintf("the filesystem at %s went read-only after an error", point.Path)}
	}
	return nil
}

// Health says what is wrong with the volume on this node; nil: nothing that the
// kernel knows. The paths are where it was staged and published; empty ones are not looked at. It asks no
// cluster and does no I/O on the device. fault.NotFound: the volume is not here.
func (h *Host) Health(ctx context.Context, handle volid.Image, paths ...string) ([]Ailment, error) {
	devices, err := h.devices(ctx, func(t mapper.Target) bool { return t.Image == handle })
	if err != nil {
		return nil, fmt.Errorf("health of volume %s: %w", handle, err)
	}
	if len(devices) == 0 {
		return nil, fmt.Errorf("health of volume %s: it is not mapped on this node: %w", handle, fault.NotFound)
	}
	for _, device := range devices {
		if wrong := ailment(device, filesystem.Point{}); wrong != nil {
			return []Ailment{wrong.with("delete the pods that use the volume, the next one gets a new device")}, nil
		}
	}
	for _, path := range paths {
		if path == "" {
			continue
		}
		seen, err := h.seenAt(ctx, handle, path)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("health of volume %s: %w", handle, err)
		}
		if wrong := ailment(seen.device, seen.point); wrong != nil {
			return []Ailment{wrong.with("delete the pods that use the volume, it is checked before the next one gets it")}, nil
		}
	}
	return nil, nil
}

// with is the ailment with what the user can do.
func (a Ailment) with(remedy string) Ailment {
	return Ailment{a.Reason, a.Message + ": " + remedy}
}

// An Ailing is a volume on this node that something is wrong with.
type Ailing struct {
	Ailment

	Volume volid.Image // zero for a dead device that lost its names
	// Paths are where it is mounted, for pods and for staging.
	Paths []string
}

// Ailing returns the volumes that pods or stages show on this node and that something is wrong with, beside an error of
// those that it could not look at. It does no I/O on devices. Of the clusters it asks what mappers ask to tell whether devices
// live: of krbd's devices four operations each.
func (h *Host) Ailing(ctx context.Context) ([]Ailing, error) {
	devices, err := h.devices(ctx, func(mapper.Target) bool { return true })
	if err != nil {
		return nil, fmt.Errorf("look for volumes that are not well: %w", err)
	}
	var all []Ailing
	var failed []error
	for _, device := range devices {
		one, err := h.ailing(ctx, device)
		if err != nil {
			failed = append(failed, fmt.Errorf("look whether volume %s is well: %w", device.Target.Image, err))
		}
		if one != nil {
			all = append(all, *one)
		}
	}
	return all, errors.Join(failed...)
}

func (h *Host) ailing(ctx context.Context, device mapper.Device) (*Ailing, error) {
	if device.Path == "" {
		return nil, nil // half made or half removed: nothing can show it
	}
	points, err := h.files.Uses(ctx, device.Path)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	// A device that no mount shows is nobody's trouble; the next stage clears it away.
	var found *Ailing
	for _, point := range points {
		wrong := ailment(device, point)
		if wrong == nil {
			continue
		}
		if found == nil {
			found = &Ailing{Ailment: *wrong, Volume: device.Target.Image}
		}
		found.Paths = append(found.Paths, point.Path)
	}
	return found, nil
}

// revive stages a volume anew that something is wrong with, for a pod that is about to get it. fault.Unavailable: other
// pods still have the old mount, or nobody said how the volume is staged.
func (h *Host) revive(ctx context.Context, spec PublishSpec, old seen, wrong *Ailment) (seen, error) {
	reason := fmt.Errorf("%s: %w", wrong.Message, fault.Unavailable)
	if spec.Stage == nil {
		return seen{}, fmt.Errorf("%w, stage it anew", reason)
	}
	if err := h.soleUse(ctx, old.device.Path, old.point.Path, spec.Path); err != nil {
		return seen{}, fmt.Errorf("%w, and pods that have to end first still have it: %w", reason, err)
	}
	klog.FromContext(ctx).Info("Staging anew", "volume", spec.Handle.String(), "device", old.device.Path, "reason", wrong.Message)
	for _, path := range []string{spec.Path, old.point.Path} {
		step.Set(ctx, "unmounting", path)
		if err := h.files.Unmount(ctx, path); err != nil {
			return seen{}, fmt.Errorf("%w: %w", reason, err)
		}
	}
	if err := h.Stage(ctx, *spec.Stage, spec.As); err != nil {
		return seen{}, fmt.Errorf("%s: %w", wrong.Message, err)
	}
	return h.at(ctx, spec.Handle, stagedAt(spec.Staged, spec.Block))
}
