package host

import (
	"context"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/step"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A node that returns, after it was frozen or cut off, finds its devices dead: their clients were shut out when
// the volumes moved. Nothing that was written since can be saved, and nothing of it has reached the
// cluster. So each request that meets a dead device clears it away: the mount, by force the mapping, and then
// stages anew, if the node still has the right to. What belongs to a pod is left to the kubelet: it
// has to end the pods that use the device.

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
		if device.Dead != "" {
			return []Ailment{{DeviceDead, fmt.Sprintf("device %s is dead (%s): delete the pods that use the volume, the next one gets a new device", device.Path, device.Dead)}}, nil
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
		if seen.point.Stopped {
			return []Ailment{{FilesystemReadOnly, fmt.Sprintf("the filesystem at %s went read-only after an error: delete the pods that use the volume, it is checked before the next one gets it", path)}}, nil
		}
	}
	return nil, nil
}

// revive stages a volume anew whose device is dead, for a pod that is about to get it. fault.Unavailable: other
// pods still have the dead device, or nobody said how the volume is staged.
func (h *Host) revive(ctx context.Context, spec PublishSpec, dead seen) (seen, error) {
	reason := fmt.Errorf("device %s is dead (%s): %w", dead.device.Path, dead.device.Dead, fault.Unavailable)
	if spec.Stage == nil {
		return seen{}, fmt.Errorf("%w, stage it anew", reason)
	}
	if err := h.soleUse(ctx, dead.device.Path, dead.point.Path, spec.Path); err != nil {
		return seen{}, fmt.Errorf("%w, and pods that have to end first still have it: %w", reason, err)
	}
	klog.FromContext(ctx).Info("Staging anew", "volume", spec.Handle.String(), "device", dead.device.Path, "reason", dead.device.Dead)
	step.Set(ctx, "unmounting dead device at", spec.Path)
	if err := h.files.Unmount(ctx, spec.Path); err != nil {
		return seen{}, fmt.Errorf("%w: %w", reason, err)
	}
	if err := h.Stage(ctx, *spec.Stage, spec.As); err != nil {
		return seen{}, fmt.Errorf("device %s is dead (%s): %w", dead.device.Path, dead.device.Dead, err)
	}
	return h.at(ctx, spec.Handle, stagedAt(spec.Staged, spec.Block))
}
