//go:build linux

package linux

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// growComplaints are of resize2fs 1.47 and xfs_growfs 6.1.
var growComplaints = [...]complaint{
	{"Read-only file system", fault.InUse},
	{"must be mounted", fault.InUse},
	{"is not a mounted", fault.NotFound},
	{"No space left", fault.Exhausted},
}

// Grow implements filesystem.Host. Both tools compare the sizes themselves and do nothing when
// there is nothing to do. resize2fs asks every loop device that is mounted on the node before that, and
// so would wait for another volume's device that hangs: it is started only when there is something to do.
func (h *Host) Grow(ctx context.Context, device, path string, kind filesystem.Type) error {
	if path == "" {
		return h.growUnmounted(ctx, device, kind)
	}
	if err := firstOf(begin(ctx, path), plain(device), mountable(kind)); err != nil {
		return fmt.Errorf("grow: %w", err)
	}
	if err := h.growable(device, path, kind); err != nil {
		return fmt.Errorf("grow: %w", err)
	}
	if kind == filesystem.Ext4 {
		if full, err := h.fillsDevice(ctx, device); full || err != nil {
			return err
		}
	}
	grow := command{tool: "resize2fs", about: device, args: []string{device}}
	if kind == filesystem.XFS {
		grow = command{tool: "xfs_growfs", about: path, args: []string{"-d", path}}
	}
	r, err := h.children.run(ctx, grow)
	switch {
	case err != nil:
		return err
	case r.code != 0 && r.says(grow, "Permission denied to resize") && !mayResize():
		return fmt.Errorf("the driver lacks the capability CAP_SYS_RESOURCE, without which no mounted ext4 can grow: %w",
			r.failed(grow, fault.Unsupported))
	case r.code != 0:
		return r.failed(grow, r.kind(grow, growComplaints[:]))
	}
	klog.FromContext(ctx).V(2).Info("Grew filesystem", "device", device, "path", path, "said", shorten(oneLine(string(r.out))))
	return nil
}

// fillsDevice reports whether an ext4 is as large as its device, to a block.
func (h *Host) fillsDevice(ctx context.Context, device string) (bool, error) {
	size, err := h.sizeOf(device)
	if err != nil {
		return false, err
	}
	seen, err := h.read(ctx, device, Piece{0, frontSize})
	if err != nil {
		return false, err
	}
	blocks, blockSize := extSize(seen.Front)
	return blocks > 0 && blocks == size/blockSize, nil
}

// growUnmounted grows an ext4 that is not mounted. resize2fs wants it checked whole since it
// was last mounted.
func (h *Host) growUnmounted(ctx context.Context, device string, kind filesystem.Type) error {
	if err := firstOf(begin(ctx, device), plain(device)); err != nil {
		return fmt.Errorf("grow: %w", err)
	}
	if kind != filesystem.Ext4 {
		return fmt.Errorf("grow %s: %s grows while it is mounted only: %w", device, kind, fault.Invalid)
	}
	if err := h.unmounted(ctx, device); err != nil {
		return fmt.Errorf("grow: %w", err)
	}
	if err := h.e2fsck(ctx, device, "-f"); err != nil {
		return err
	}
	grow := command{tool: "resize2fs", about: device, args: []string{device}}
	r, err := h.children.run(ctx, grow)
	if err == nil && r.code != 0 {
		err = r.failed(grow, r.kind(grow, growComplaints[:]))
	}
	return err
}

// mayResize reports whether this process, and so its children, have CAP_SYS_RESOURCE. The kernel
// asks for it in ext4_resize_begin, and for nothing of the kind when an xfs grows.
func mayResize() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// growable makes sure that the device's filesystem is mounted at the path: resize2fs would
// otherwise do its work on a device that is not mounted, which is not what was asked.
func (h *Host) growable(device, path string, kind filesystem.Type) error {
	node, err := nodeNumber(device)
	if err != nil {
		return err
	}
	info, err := h.at(path)
	switch {
	case err != nil:
		return err
	case info == nil || numberOf(info) != node:
		return fmt.Errorf("%s is not mounted at %s: %w", device, path, fault.NotFound)
	case info.FSType != string(kind):
		return fmt.Errorf("%s holds %s and not %s: %w", device, info.FSType, kind, fault.Invalid)
	case readOnly(info):
		return fmt.Errorf("%s is mounted read-only at %s: %w", device, path, fault.InUse)
	}
	return nil
}
