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
// attached to the node, is silent.
//
// That a node is silent does not say that it will not write any more: only Detach sees to that. It changes nothing, and takes
// two operations, and two more if the node has not unstaged the volume.
func (s *Store) Silent(ctx context.Context, handle volid.Image, node string) (bool, error) {
	found, err := image.Find(ctx, s.clusters, handle, params.Credentials{})
	if errors.Is(err, fault.NotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether node %s lives: %w", node, err)
	}
	over := leaving(found.Marks.Attachments, func(entry image.Attachment) bool { return entry.Node == node })
	if over.clean() {
		return true, nil
	}
	users, err := found.Pool.Users(ctx, found.ID)
	if err != nil {
		return false, fmt.Errorf("look who uses volume %s: %w", found, err)
	}
	return !slices.ContainsFunc(over.targets(users), func(t target) bool { return t.watches }), nil
}
