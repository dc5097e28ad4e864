//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// stackLimit is how many mounts on top of each other Unmount takes down.
const stackLimit = 64

// Unmount implements filesystem.Host.
//
// It is never lazy: a lazy umount only hides the mount, while its users go on
// writing to a device that is about to be detached.
func (h *Host) Unmount(ctx context.Context, path string) error {
	if err := begin(ctx, path); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	resolved, err := resolve(path)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	// An umount that hangs has taken the mount off the table already, while the kernel still
	// writes what is left to the device.
	if err := h.children.hangs("umount", resolved); err != nil {
		return err
	}
	for range stackLimit {
		done, err := h.unmountOne(ctx, resolved)
		if err != nil {
			return err
		}
		if done {
			return h.removeTarget(ctx, resolved)
		}
	}
	return fmt.Errorf("unmount %s: it is still mounted after %d times: %w", path, stackLimit, fault.InUse)
}

// unmountOne takes down the topmost mount at a path; done means that there was none.
func (h *Host) unmountOne(ctx context.Context, path string) (done bool, err error) {
	mounts, err := readTable(tableFile)
	if err != nil {
		return false, err
	}
	info := mounts.top(path)
	if info == nil {
		return true, nil
	}
	// -c: the path has no symbolic links any more, and looking for them could hang.
	umount := command{tool: "umount", about: path, args: []string{"-c", "-n", "-i", path}}
	r, err := h.children.run(ctx, umount)
	switch {
	case err != nil:
		return false, err
	case r.code == 0:
		klog.FromContext(ctx).V(2).Info("Unmounted", "path", path, "source", info.Source, "root", info.Root)
		return false, nil
	case r.says(umount, "busy"):
		return false, fmt.Errorf("%w; %s", r.failed(umount, fault.InUse), h.blame(ctx, mounts, info))
	}
	if now, again := readTable(tableFile); again == nil && now.top(path) == nil {
		return true, nil // somebody else was faster
	}
	return false, r.failed(umount, fault.Unavailable)
}

// removeTarget removes the folder or the file at which something was mounted. It asks
// children, for a path that is not a target may lie on a volume that hangs.
func (h *Host) removeTarget(ctx context.Context, path string) error {
	stat := command{tool: "stat", about: path, args: []string{"-c", "%f %s", path}}
	r, err := h.children.run(ctx, stat)
	if err != nil {
		return err
	}
	if r.code != 0 {
		return gone(r, stat, fault.Unavailable)
	}
	var mode, size uint64
	if _, err := fmt.Sscanf(string(r.out), "%x %d", &mode, &size); err != nil {
		return r.failed(stat, fault.Internal)
	}
	remove := command{tool: "rmdir", about: path, args: []string{path}}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG:
		if size > 0 {
			return fmt.Errorf("remove %s: it is a file with %d bytes in it: %w", path, size, fault.InUse)
		}
		remove.tool = "unlink"
	case unix.S_IFLNK:
		return fmt.Errorf("%s is a symbolic link: %w", path, fault.Invalid)
	default:
		return fmt.Errorf("remove %s: it is neither a directory nor a file: %w", path, fault.InUse)
	}
	r, err = h.children.run(ctx, remove)
	if err != nil || r.code == 0 {
		return err
	}
	return gone(r, remove, r.kind(remove, removeComplaints[:]))
}

var removeComplaints = [...]complaint{
	{"not empty", fault.InUse},
	{"busy", fault.InUse},
}

// gone returns no error when a tool failed because the path is not there.
func gone(r result, cmd command, otherwise fault.Kind) error {
	if r.kind(cmd, lookComplaints[:]) == fault.NotFound {
		return nil
	}
	return r.failed(cmd, otherwise)
}
