package volume

import (
	"context"
	"fmt"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// An AttachSpec asks that a node may use a volume.
type AttachSpec struct {
	Node     string
	Mode     string // the CSI access mode's name; an entry that is there must have the same
	Single   bool   // the mode lets one node only use the volume
	ReadOnly bool
}

// An Attachment is a node's right to use a volume.
type Attachment struct {
	Generation uint64
	ImageID    string
}

// Attach makes sure that the node may use the volume. Three operations, two when it may already.
//
// It returns fault.InUse, naming who holds the volume, when another node's
// attachment excludes this one, and fault.Exists when the node has the volume in
// another mode.
func (s *Store) Attach(ctx context.Context, handle volid.Image, spec AttachSpec, as params.Credentials) (Attachment, error) {
	defer s.cache.change(handle)
	var right Attachment
	err := image.Repeat(fmt.Sprintf("attach volume %s to %s", handle, spec.Node), func() error {
		found, err := image.Find(ctx, s.clusters, handle, as)
		if err != nil {
			return err
		}
		right, err = attach(ctx, found, spec)
		return err
	})
	return right, err
}

func attach(ctx context.Context, i image.Image, spec AttachSpec) (Attachment, error) {
	held := i.Marks.Attachments
	if entry, ok := held.Of(spec.Node); ok && !entry.Detaching {
		if entry.Mode != spec.Mode || entry.ReadOnly != spec.ReadOnly {
			return Attachment{}, fmt.Errorf("volume %s is attached to %s as %s, readOnly %t: %w",
				i, spec.Node, entry.Mode, entry.ReadOnly, fault.Exists)
		}
		return Attachment{Generation: entry.Generation, ImageID: i.ID}, nil
	}
	if err := admits(i, spec); err != nil {
		return Attachment{}, err
	}
	held.ID = i.ID
	held.Generation++
	right := Attachment{Generation: held.Generation, ImageID: i.ID}
	entry := image.Attachment{Node: spec.Node, Generation: held.Generation, Mode: spec.Mode, ReadOnly: spec.ReadOnly}
	_, err := i.SetAttachments(ctx, held.With(entry))
	return right, err
}

// admits returns nil when the attachments that stand leave room for this one.
func admits(i image.Image, spec AttachSpec) error {
	if !spec.ReadOnly && spec.Single && !i.Header.Layout.Features.Has(rbd.ExclusiveLock) {
		// Without the lock a writer that was replaced is not stopped by anything.
		return fmt.Errorf("image %s lacks the feature exclusive-lock, add it with `rbd feature enable`: %w", i, fault.InUse)
	}
	for _, entry := range i.Marks.Attachments.Nodes {
		if spec.Single || entry.Node == spec.Node || entry.Mode != spec.Mode {
			return fmt.Errorf("volume %s is held by node %s as %s%s: %w", i, entry.Node, entry.Mode, stateOf(entry), fault.InUse)
		}
	}
	return nil
}

// stateOf says what is known of how a node uses a volume, to follow its name.
func stateOf(entry image.Attachment) string {
	switch {
	case entry.Detaching:
		return ", which is being detached"
	case entry.Client != "":
		return ", mapped by client " + entry.Client
	}
	return ""
}
