package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Silent reports that a node shows no sign of life at a volume that is attached to it: nobody that [Store.Detach]
// would have to shut out watches the image. Ceph forgets a watcher that it has not heard of for
// osd_client_watch_timeout, 30 s, and one that was shut out at once. A volume that is not there, or not
// attached to the node, is silent. fault.Unsupported: nobody can tell, because the node only reads it, and who has mapped an image
// read-only does not watch it.
//
// That a node is silent does not say that it will not write any more: only Detach sees to that. It changes nothing, and takes
// two operations, and two more if the node has not unstaged the volume.
func (s *Store) Silent(ctx context.Context, handle volid.Image, node string) (bool, error) {
	found, over, err := s.had(ctx, handle, node)
	if err != nil {
		return false, fmt.Errorf("look whether node %s lives: %w", node, err)
	}
	if over.clean() {
		return true, nil
	}
	users, err := found.Pool.Users(ctx, found.ID)
	if err != nil {
		return false, fmt.Errorf("look who uses volume %s: %w", found, err)
	}
	switch {
	case slices.ContainsFunc(over.targets(users), func(t target) bool { return t.watches }):
		return false, nil
	case !slices.ContainsFunc(over.entries, writes):
		return false, fmt.Errorf("look whether node %s lives: it only reads volume %s: %w", node, found, fault.Unsupported)
	}
	return true, nil
}

// had returns a volume, and what it would be about to detach it from a node: nothing when the volume is gone.
func (s *Store) had(ctx context.Context, handle volid.Image, node string) (image.Image, departure, error) {
	found, err := image.Find(ctx, s.clusters, handle, params.Credentials{})
	if errors.Is(err, fault.NotFound) {
		return image.Image{}, departure{}, nil
	}
	return found, leaving(found.Marks.Attachments, func(entry image.Attachment) bool { return entry.Node == node }), err
}

// writes reports whether a node's client writes, and so watches the image.
func writes(entry image.Attachment) bool { return !entry.ReadOnly || entry.Replays }

// FenceNode shuts out the client that a node has recorded for a volume that is attached to it. The record stays as it is, so a node that
// comes back may stage the volume anew, with another client. What shuts out every client that could write, and lets go of the
// volume, is [Store.Detach]; after this it has no proposal of the monitors to wait for.
//
// Only a node that has been given up may be fenced in this way: nobody is asked and nobody is waited for. A volume that is not there, not attached
// to the node or unstaged there is success. It may be called again. Two operations, and two more to shut a client out.
func (s *Store) FenceNode(ctx context.Context, handle volid.Image, node string) error {
	found, over, err := s.had(ctx, handle, node)
	if err != nil {
		return fmt.Errorf("fence node %s: %w", node, err)
	}
	for _, entry := range over.entries {
		if entry.Client == "" {
			continue
		}
		if err := s.fence(ctx, found, target{client: entry.Client, entry: entry}); err != nil {
			return err
		}
	}
	return nil
}
