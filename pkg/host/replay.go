package host

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/step"
)

// replay brings a filesystem that is only read into the state in which it can be.
//
// A snapshot that was taken while a pod wrote has a journal, and the copy that is made of it cannot be mounted before that is
// replayed, which writes. The readers map it read-only, so one of them does this first, for all:
//
//	Map        writable; nothing is written yet
//	Claim      as the one who replays: it waits while others read, and who comes to read waits for it
//	Users      nobody else has the image open who is in no record
//	Check      replays what ext4 has to
//	Mount      replays what xfs has to
//	Unmount    and unmap, and Release
//
// Killed at any point, the next stage on this node begins with endReplay (see leftWritable). When the node is lost, its attachment goes, with it
// its client is shut out, and then another may.
func (h *Host) replay(ctx context.Context, spec StageSpec, as params.Credentials) error {
	spec.ReadOnly = false
	found, err := image.Find(ctx, h.clusters, spec.Handle, as)
	if err != nil {
		return err
	}
	if !found.Header.Layout.Features.Has(rbd.ExclusiveLock) {
		return fmt.Errorf("image %s lacks the feature exclusive-lock, without which its journal is not replayed; add it with `rbd feature enable`: %w",
			found, fault.InUse)
	}
	chosen, err := h.choose(ctx, found, spec)
	if err != nil {
		return err
	}
	device, err := h.mapImage(ctx, chosen, found, spec, as)
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Replaying the journal of a filesystem that is to be read", "volume", found.String(), "device", device.Path)
	err = h.write(ctx, found, device, spec)
	return errors.Join(err, h.endReplay(ctx, chosen.Mapper, device, spec))
}

// write replays the journal through a writable device.
func (h *Host) write(ctx context.Context, found image.Image, device mapper.Device, spec StageSpec) error {
	claim := image.Claim{Node: h.node, Generation: spec.Generation, Client: device.Client, Boot: h.boot, Replays: true}
	if _, err := found.Claim(ctx, claim); err != nil {
		return err
	}
	if err := onlyUser(ctx, found, device.Client); err != nil {
		return err
	}
	step.Set(ctx, "replaying the journal on", device.Path)
	if err := h.files.Check(ctx, device.Path, spec.Format.Type); err != nil {
		return err
	}
	return h.files.Mount(ctx, filesystem.Mount{Device: device.Path, Path: spec.Path, Type: spec.Format.Type, Options: mountOptions(spec)})
}

// onlyUser returns fault.InUse when somebody who is in no record has the image open: its filesystem may be mounted there.
func onlyUser(ctx context.Context, found image.Image, client string) error {
	users, err := found.Pool.Users(ctx, found.ID)
	if err != nil {
		return fmt.Errorf("look who uses volume %s: %w", found, err)
	}
	for _, user := range users {
		if user.Client != client && !user.Control {
			return fmt.Errorf("volume %s is in use by client %s, which may have its filesystem mounted: %w", found, user.Client, fault.InUse)
		}
	}
	return nil
}

// endReplay takes down what replay has made, wherever it stopped.
func (h *Host) endReplay(ctx context.Context, by mapper.Mapper, device mapper.Device, spec StageSpec) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTime)
	defer cancel()
	if err := h.files.Unmount(ctx, spec.Path); err != nil {
		return err
	}
	if err := by.Unmap(ctx, device); err != nil {
		return err
	}
	return image.Release(ctx, h.clusters, spec.Handle, h.node)
}

// leftWritable returns the device that a replay on this node left which was killed: a node that only reads has no other that is writable.
func (c choice) leftWritable(spec StageSpec) (mapper.Device, bool) {
	for _, device := range c.mapped {
		if spec.ReadOnly && !device.ReadOnly && device.Dead == "" {
			return device, true
		}
	}
	return mapper.Device{}, false
}
