package host

import (
	"context"
	"fmt"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/step"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A PublishSpec asks for a staged volume at a path of one pod.
type PublishSpec struct {
	Handle   volid.Image
	Staged   string // the staging target path
	Path     string // the target path
	Block    bool
	ReadOnly bool
	// Sole refuses a second path on this node (SINGLE_NODE_SINGLE_WRITER).
	Sole       bool
	MountFlags []string
	// Stage is how the volume is staged, and As with which credentials, should its device have died; nil: then the
	// request fails.
	Stage *StageSpec
	As    params.Credentials
}

// Publish makes sure that the staged volume is seen at the target path. It asks the kernel only, unless the device is
// dead or its filesystem went read-only: then it stages the volume anew. fault.InUse means that the volume is not staged,
// that the path is occupied, or that the volume may be published once only and is.
func (h *Host) Publish(ctx context.Context, spec PublishSpec) error {
	staged, err := h.at(ctx, spec.Handle, stagedAt(spec.Staged, spec.Block))
	if fault.Is(err, fault.NotFound) {
		return fmt.Errorf("publish volume %s: stage it first: %w: %w", spec.Handle, fault.InUse, err)
	}
	if err != nil {
		return fmt.Errorf("publish volume %s: %w", spec.Handle, err)
	}
	if wrong := ailment(staged.device, staged.point); wrong != nil {
		if staged, err = h.revive(ctx, spec, staged, wrong); err != nil {
			return fmt.Errorf("publish volume %s: %w", spec.Handle, err)
		}
	}
	if spec.Sole {
		if err := h.soleUse(ctx, staged.device.Path, staged.point.Path, spec.Path); err != nil {
			return fmt.Errorf("publish volume %s: it is for one pod only: %w", spec.Handle, err)
		}
	}
	step.Set(ctx, "binding", spec.Path)
	err = h.files.Bind(ctx, filesystem.Bind{
		Source: staged.point.Path, Path: spec.Path, ReadOnly: spec.ReadOnly, Options: spec.MountFlags,
	})
	if err != nil {
		return fmt.Errorf("publish volume %s: %w", spec.Handle, err)
	}
	return nil
}

// soleUse returns fault.InUse when the device is seen anywhere but at the given paths.
func (h *Host) soleUse(ctx context.Context, device string, paths ...string) error {
	var known []string
	for _, path := range paths {
		// The kernel's name of a path differs from ours where a parent is a symbolic link.
		point, _, err := h.files.At(ctx, path)
		if err != nil {
			return err
		}
		known = append(known, point.Path)
	}
	uses, err := h.files.Uses(ctx, device)
	if err != nil {
		return err
	}
	for _, use := range uses {
		if !slices.Contains(known, use.Path) {
			return fmt.Errorf("device %s is mounted at %s: %w", device, use.Path, fault.InUse)
		}
	}
	return nil
}

// Unpublish makes sure that nothing is mounted at the target path and that the path is gone.
func (h *Host) Unpublish(ctx context.Context, handle volid.Image, path string) error {
	step.Set(ctx, "unmounting", path)
	if err := h.files.Unmount(ctx, path); err != nil {
		return fmt.Errorf("unpublish volume %s: %w", handle, err)
	}
	return nil
}

// ExpandOnNode makes the device, and the filesystem on it, as large as the image
// has become, and returns the size of the device in bytes. The volume may be in use. The path is
// the staging or a target path.
func (h *Host) ExpandOnNode(ctx context.Context, handle volid.Image, path string) (int64, error) {
	at, err := h.seenAt(ctx, handle, path)
	if err != nil {
		return 0, fmt.Errorf("expand: %w", err)
	}
	by, err := h.mapperOf(at.device)
	if err != nil {
		return 0, err
	}
	step.Set(ctx, "growing device", at.device.Path)
	bytes, err := by.Grow(ctx, at.device)
	if err != nil {
		return 0, fmt.Errorf("expand volume %s: %w", handle, err)
	}
	if at.point.Type == "" || at.point.ReadOnly && at.device.ReadOnly {
		return bytes, nil
	}
	step.Set(ctx, "growing filesystem on", at.device.Path)
	if err := h.files.Grow(ctx, at.device.Path, at.point.Path, filesystem.Type(at.point.Type)); err != nil {
		return 0, fmt.Errorf("expand volume %s: %w", handle, err)
	}
	return bytes, nil
}

// seen is a mount of a volume, and the device that it shows.
type seen struct {
	point  filesystem.Point
	device mapper.Device
}

// seenAt finds a volume at its target path, at its staging path, or, for a block
// volume, in its staging path.
func (h *Host) seenAt(ctx context.Context, handle volid.Image, path string) (seen, error) {
	at, err := h.at(ctx, handle, path)
	if fault.Is(err, fault.NotFound) {
		if block, errBlock := h.at(ctx, handle, stagedAt(path, true)); errBlock == nil {
			return block, nil
		}
	}
	return at, err
}

// at returns what is mounted at a path, if it is the volume; otherwise fault.NotFound.
func (h *Host) at(ctx context.Context, handle volid.Image, path string) (seen, error) {
	point, mounted, err := h.files.At(ctx, path)
	if err != nil {
		return seen{}, fmt.Errorf("look what is mounted at %s: %w", path, err)
	}
	if !mounted {
		return seen{}, fmt.Errorf("volume %s: nothing is mounted at %s: %w", handle, path, fault.NotFound)
	}
	devices, err := h.devices(ctx, func(t mapper.Target) bool { return t.Image == handle })
	if err != nil {
		return seen{}, err
	}
	for _, device := range devices {
		if device.Path == point.Device {
			return seen{point: point, device: device}, nil
		}
	}
	return seen{}, fmt.Errorf("volume %s: %s at %s is another: %w", handle, point.Device, path, fault.NotFound)
}
