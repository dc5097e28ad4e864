//go:build linux

package linux

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// Bits of the exit code of e2fsck(8).
const (
	fsckCorrected   = 1
	fsckReboot      = 2 // corrected, and the machine should be rebooted if that was its root
	fsckUncorrected = 4
	fsckCancelled   = 32
)

// fsckRuins are what e2fsck says when it gives up on a filesystem with the exit code that it
// also has for a device that cannot be read.
var fsckRuins = [...]string{"Bad magic number in super-block", "superblock is corrupt", "UNEXPECTED INCONSISTENCY"}

// Check implements filesystem.Host.
//
// For ext4 it is `e2fsck -p`, which replays the journal, as mounting would, and looks
// further only if the filesystem says of itself that it has errors; where it would do neither it is
// not started. For xfs nothing is run:
// mounting replays the log, and xfs_repair must not come before that, for it refuses
// a filesystem with a log to replay, and made to go on (-L) it throws away what was written last.
func (h *Host) Check(ctx context.Context, device string, kind filesystem.Type) error {
	if err := begin(ctx, device); err != nil {
		return err
	}
	if err := h.unmounted(ctx, device); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	switch kind {
	case filesystem.Ext4:
		return h.checkExt4(ctx, device)
	case filesystem.XFS:
		return nil
	}
	return fmt.Errorf("check %s: filesystem %q: %w", device, kind, fault.Invalid)
}

// checkExt4 has e2fsck check what is not seen to be clean.
func (h *Host) checkExt4(ctx context.Context, device string) error {
	seen, err := h.read(ctx, device, Piece{0, frontSize})
	if err != nil || clean(seen.Front) {
		return err
	}
	return h.e2fsck(ctx, device)
}

func (h *Host) e2fsck(ctx context.Context, device string, flags ...string) error {
	fsck := command{tool: "e2fsck", about: device, args: append(flags, "-p", device)}
	r, err := h.children.run(ctx, fsck)
	if err != nil {
		return err
	}
	if kind, bad := fsckKind(r); bad {
		return r.failed(fsck, kind)
	}
	if r.code != 0 {
		klog.FromContext(ctx).Info("Repaired filesystem", "device", device, "said", shorten(oneLine(string(r.out))))
	}
	return nil
}

// fsckKind says whether a run of e2fsck failed, and how.
func fsckKind(r result) (kind fault.Kind, bad bool) {
	said := r.said() + " " + oneLine(string(r.out))
	switch {
	case r.code&fsckUncorrected != 0:
		return fault.DataLoss, true
	case r.code&^(fsckCorrected|fsckReboot) == 0:
		return 0, false
	case r.code&fsckCancelled != 0:
		return fault.Unknown, true
	case strings.Contains(said, "is mounted"), strings.Contains(said, "is in use"):
		return fault.InUse, true
	}
	for _, ruin := range fsckRuins {
		if strings.Contains(said, ruin) {
			return fault.DataLoss, true
		}
	}
	return fault.Unavailable, true
}
