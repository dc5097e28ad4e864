//go:build linux

package linux

import (
	"context"
	"fmt"
	"regexp"
	"slices"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// uuidForm is the one spelling of a UUID that blkid answers with; another would not be known again.
var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Format implements filesystem.Host.
//
// Neither mkfs is ever forced. mke2fs gets a terminal, so that it looks for itself what
// stands on the device in the moment before it writes, and is answered no; mkfs.xfs
// looks anyway. To do an interrupted format again, what that one left is erased first.
// Both open the device exclusively, so two of them cannot work at once, nor one
// beside a mount.
func (h *Host) Format(ctx context.Context, device string, spec filesystem.Format) error {
	if err := begin(ctx, device); err != nil {
		return err
	}
	if err := check(spec); err != nil {
		return fmt.Errorf("format %s: %w", device, err)
	}
	if err := h.unmounted(ctx, device); err != nil {
		return fmt.Errorf("format %s: %w", device, err)
	}
	if err := h.roomy(device, spec.Type); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	if err := h.clear(ctx, device, spec); err != nil {
		return fmt.Errorf("format %s: %w", device, err)
	}
	if err := h.mkfs(ctx, device, spec); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	made, err := h.Probe(ctx, device)
	if err != nil {
		return fmt.Errorf("look at the new filesystem: %w", err)
	}
	if want := (filesystem.Signature{Type: string(spec.Type), UUID: spec.UUID}); made != want {
		return fmt.Errorf("format %s with %q: it shows %s %s then and not %s %s: %w",
			device, spec.Options, made.Type, made.UUID, want.Type, want.UUID, fault.Invalid)
	}
	klog.FromContext(ctx).V(2).Info("Made filesystem", "device", device, "type", spec.Type, "uuid", spec.UUID)
	return nil
}

// check returns fault.Invalid for what no mkfs could make.
func check(spec filesystem.Format) error {
	if !uuidForm.MatchString(spec.UUID) {
		return fmt.Errorf("UUID %q is not 32 small hexadecimal digits with hyphens: %w", spec.UUID, fault.Invalid)
	}
	_, err := arguments(spec, "")
	return err
}

// unmounted returns fault.InUse when a device is mounted or bound somewhere in this namespace.
func (h *Host) unmounted(ctx context.Context, device string) error {
	uses, err := h.Uses(ctx, device)
	if err != nil {
		return err
	}
	for _, use := range uses {
		if use.Type != "" {
			return fmt.Errorf("%s is mounted at %s: %w", device, use.Path, fault.InUse)
		}
	}
	return nil
}

// extLeast is the least size of an ext4 with a journal: 2048 blocks. On a smaller device mke2fs makes
// one without, and says so in passing.
const extLeast = 8 << 20

// roomy returns fault.OutOfRange when a device is too small. mkfs.xfs knows its limit itself.
func (h *Host) roomy(device string, kind filesystem.Type) error {
	node, err := nodeNumber(device)
	if err != nil {
		return err
	}
	size, err := deviceSize(node)
	if err == nil && kind == filesystem.Ext4 && 0 < size && size < extLeast {
		return fmt.Errorf("%s has %d bytes, ext4 with a journal takes %d: %w", device, size, extLeast, fault.OutOfRange)
	}
	return err
}

// clear makes sure that nothing stands on a device: it refuses what it finds there, or
// erases it when that is our own interrupted work. One look is enough, because mkfs looks as well.
func (h *Host) clear(ctx context.Context, device string, spec filesystem.Format) error {
	seen, err := h.look(ctx, device)
	if err != nil {
		return err
	}
	found := seen.signature
	if found.Empty() {
		return agree(seen, seen)
	}
	if !spec.Redo || found.UUID != spec.UUID {
		return fmt.Errorf("it holds %s %s: %w", found.Type, found.UUID, fault.InUse)
	}
	wipefs := command{tool: "wipefs", about: device, args: []string{"--all", device}}
	r, err := h.children.run(ctx, wipefs)
	if err == nil && r.code != 0 {
		err = r.failed(wipefs, r.kind(wipefs, formatComplaints[:]))
	}
	return err
}

// mkfs runs the tool.
func (h *Host) mkfs(ctx context.Context, device string, spec filesystem.Format) error {
	mkfs := command{tool: "mkfs." + string(spec.Type), about: device, terminal: spec.Type == filesystem.Ext4}
	usage := ""
	if spec.Type == filesystem.XFS {
		// Without arguments it does nothing but complain and explain itself.
		explained, err := h.children.run(ctx, command{tool: mkfs.tool})
		if err != nil {
			return err
		}
		usage = string(explained.errors)
	}
	options, err := arguments(spec, usage)
	if err != nil {
		return err
	}
	mkfs.args = slices.Concat(options, []string{device})
	r, err := h.children.run(ctx, mkfs)
	if err == nil && r.code != 0 {
		err = r.failed(mkfs, r.kind(mkfs, formatComplaints[:]))
	}
	return err
}

// formatComplaints are of mke2fs 1.47, mkfs.xfs 6.1 and wipefs 2.38. What is not listed is
// fault.Unavailable.
var formatComplaints = [...]complaint{
	{"Filesystem must be larger", fault.OutOfRange},
	{"data subvolume is too small", fault.OutOfRange},
	{"too small for a journal", fault.OutOfRange},
	{"Proceed anyway", fault.InUse},
	{"Found a ", fault.InUse},
	{"appears to contain", fault.InUse},
	{"is mounted", fault.InUse},
	{"contains a mounted", fault.InUse},
	{"apparently in use", fault.InUse},
	{"Device or resource busy", fault.InUse},
	{"Input/output error", fault.Unavailable},
	{"nvalid", fault.Invalid},
	{"illegal", fault.Invalid},
	{"unknown option", fault.Invalid},
	{"respecified", fault.Invalid},
	{"not supported", fault.Invalid},
	{"Bad option", fault.Invalid},
	{"bad error behavior", fault.Invalid},
	{"specified", fault.Invalid},
	{"specify", fault.Invalid},
	{"must be", fault.Invalid},
	{"too small", fault.Invalid},
	{"too large", fault.Invalid},
	{"too many", fault.Invalid},
	{"Cannot ", fault.Invalid},
}
