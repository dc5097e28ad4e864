package host

import (
	"context"
	"crypto/rand"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/image"
)

// A FormatSpec says which filesystem a volume gets if it has none.
type FormatSpec struct {
	Type     filesystem.Type
	Options  []string // of mkfs
	ReadOnly bool     // never format: the volume is only read
}

// ensureFormatted makes sure that the mapped image holds a filesystem of the type.
//
// mkfs runs at most once in the life of an image. Its mark goes from nothing to
// formatting, with the UUID that the filesystem will have, and after mkfs to
// formatted; only then is it mounted. What the device shows decides nothing
// alone, because a device that cannot be read shows nothing either:
//
//	mark         device shows      then
//	-            nothing           format, if no data object exists; fault.InUse otherwise
//	-            the type          use it and mark it: made by hand, or a clone
//	-            something else    fault.InUse
//	formatting   nothing, or UUID  our own mkfs was interrupted: format again
//	formatting   something else    fault.InUse
//	formatted    the type          use it; a warning if the UUID is another
//	formatted    nothing           fault.DataLoss
//	formatted    something else    fault.InUse
func (h *Host) ensureFormatted(ctx context.Context, i image.Image, device string, spec FormatSpec) error {
	shown, err := h.files.Probe(ctx, device)
	if err != nil {
		return fmt.Errorf("look what volume %s holds: %w", i, err)
	}
	mark, begun := i.Format()
	interrupted := begun && !mark.Done
	switch {
	case interrupted && (shown.Empty() || shown.UUID == mark.UUID):
		return h.format(ctx, i, device, spec, mark.UUID)
	case shown.Empty() && mark.Done:
		return fmt.Errorf("volume %s was formatted %s with UUID %s and shows no filesystem now; "+
			"nothing was written, look at a clone of it: %w", i, mark.Type, mark.UUID, fault.DataLoss)
	case shown.Empty():
		return h.formatFirst(ctx, i, device, spec)
	case shown.Type != string(spec.Type):
		return fmt.Errorf("volume %s holds %s and not %s: %w", i, shown.Type, spec.Type, fault.InUse)
	case interrupted:
		return fmt.Errorf("volume %s was to be formatted with UUID %s and holds another %s, %s: %w",
			i, mark.UUID, shown.Type, shown.UUID, fault.InUse)
	case mark.Done:
		if shown.UUID != mark.UUID {
			klog.FromContext(ctx).Info("Volume holds another filesystem than it was formatted with",
				"volume", i.String(), "formattedUUID", mark.UUID, "foundUUID", shown.UUID)
		}
		return nil
	}
	return h.adopt(ctx, i, shown, spec)
}

// formatFirst formats an image that never was, if it holds no data.
func (h *Host) formatFirst(ctx context.Context, i image.Image, device string, spec FormatSpec) error {
	if spec.ReadOnly {
		return fmt.Errorf("volume %s holds no filesystem and is to be read only: %w", i, fault.InUse)
	}
	holds, err := i.HoldsData(ctx)
	if err != nil {
		return err
	}
	if holds {
		return fmt.Errorf("volume %s holds data that is no filesystem; use it as a block volume, or empty it: %w", i, fault.InUse)
	}
	return h.format(ctx, i, device, spec, newUUID())
}

// format runs mkfs between its two marks.
func (h *Host) format(ctx context.Context, i image.Image, device string, spec FormatSpec, uuid string) error {
	if spec.ReadOnly {
		return fmt.Errorf("volume %s holds no finished filesystem and is to be read only: %w", i, fault.InUse)
	}
	before, redo := i.Format()
	mark := image.Format{Type: string(spec.Type), UUID: uuid}
	if mark != before {
		var err error
		if i, err = i.RecordFormat(ctx, mark); err != nil {
			return err
		}
	}
	// An image that was never formatted is formatted only if it has no data object: it reads as zeros.
	err := h.files.Format(ctx, device, filesystem.Format{
		Type: spec.Type, UUID: uuid, Options: spec.Options, Redo: redo, Zeroed: !redo,
	})
	if err != nil {
		return fmt.Errorf("format volume %s: %w", i, err)
	}
	klog.FromContext(ctx).V(2).Info("Formatted", "volume", i.String(), "type", spec.Type, "uuid", uuid)
	mark.Done = true
	_, err = i.RecordFormat(ctx, mark)
	return err
}

// adopt marks a filesystem that somebody else made, so that it is never formatted over.
func (h *Host) adopt(ctx context.Context, i image.Image, shown filesystem.Signature, spec FormatSpec) error {
	if spec.ReadOnly {
		return nil
	}
	_, err := i.RecordFormat(ctx, image.Format{Type: shown.Type, UUID: shown.UUID, Done: true})
	return err
}

// newUUID returns a random UUID, version 4 of RFC 9562.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
