//go:build linux

package linux

import (
	"context"
	"fmt"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// Usage implements filesystem.Host. The kernel asks a filesystem for its figures, and one whose device
// is dead may not answer, so statfs(2) is left to stat(1). The size of a device is in sysfs.
func (h *Host) Usage(ctx context.Context, path string) (filesystem.Usage, error) {
	if err := begin(ctx, path); err != nil {
		return filesystem.Usage{}, fmt.Errorf("measure: %w", err)
	}
	info, err := h.at(path)
	if err != nil {
		return filesystem.Usage{}, fmt.Errorf("measure: %w", err)
	}
	if info == nil {
		return filesystem.Usage{}, fmt.Errorf("measure: nothing is mounted at %s: %w", path, fault.NotFound)
	}
	if node, found := boundNode(info); found {
		size, err := deviceSize(node)
		return filesystem.Usage{Block: true, Total: size}, err
	}
	stat := command{tool: "stat", about: info.Mountpoint, args: []string{"-f", "-c", "%S %b %f %a %c %d", info.Mountpoint}}
	r, err := h.children.run(ctx, stat)
	if err != nil {
		return filesystem.Usage{}, fmt.Errorf("measure: %w", err)
	}
	if r.code != 0 {
		return filesystem.Usage{}, fmt.Errorf("measure: %w", r.failed(stat, fault.Unavailable))
	}
	usage, err := parseUsage(string(r.out))
	if err != nil {
		return filesystem.Usage{}, fmt.Errorf("measure %s: %w", path, err)
	}
	return usage, nil
}

// parseUsage reads the size of a block and the numbers of blocks, free ones, those free for users,
// inodes, and free ones.
func parseUsage(text string) (filesystem.Usage, error) {
	var size, blocks, free, available, inodes, freeInodes int64
	if _, err := fmt.Sscan(text, &size, &blocks, &free, &available, &inodes, &freeInodes); err != nil {
		return filesystem.Usage{}, fmt.Errorf("read %q: %w: %w", text, fault.Internal, err)
	}
	return filesystem.Usage{
		Total: blocks * size, Used: (blocks - free) * size, Available: available * size,
		Inodes: inodes, InodesUsed: inodes - freeInodes, InodesAvailable: freeInodes,
	}, nil
}
