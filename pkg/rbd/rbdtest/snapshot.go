package rbdtest

import (
	"context"
	"fmt"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// TakeSnapshot implements rbd.Copies.
func (h *handle) TakeSnapshot(ctx context.Context, id, name string) error {
	return h.fill(ctx, "TakeSnapshot", id, costTakeSnapshot, func(s *space) error {
		if _, err := h.open(s, id); err != nil {
			return err
		}
		return s.take(id, name)
	})
}

// mostTogether is how many snapshots of one moment can be taken.
const mostTogether = 64

// TakeSnapshots implements rbd.Copies. The call is about the first image's ID. Here
// the snapshots are taken or refused all together; a test that wants fault.Superseded asks for it by a
// [Fault], before (none was taken) or after (all were). For some of them it takes these
// in a hook of [Process.OnCall].
func (h *handle) TakeSnapshots(ctx context.Context, wanted []rbd.SnapshotOf) error {
	about := ""
	if len(wanted) > 0 {
		about = wanted[0].ID
	}
	return h.fill(ctx, "TakeSnapshots", about, costTogether*len(wanted), func(s *space) error {
		if len(wanted) > mostTogether {
			return fmt.Errorf("at most %d: %w", mostTogether, fault.OutOfRange)
		}
		images := map[string]bool{}
		for _, one := range wanted {
			images[one.ID] = true
		}
		if len(images) < len(wanted) {
			return fmt.Errorf("an image is named twice: %w", fault.Invalid)
		}
		for _, one := range wanted {
			if err := h.lockable(s, one); err != nil {
				return err
			}
		}
		for _, one := range wanted {
			if err := s.takeable(one); err != nil {
				return err
			}
		}
		for _, one := range wanted {
			if err := s.take(one.ID, one.Name); err != nil {
				return err
			}
		}
		return nil
	})
}

// RemoveSnapshot implements rbd.Copies. librbd opens no image that has neither a name nor an entry in
// the trash; then a snapshot that is there has to stay.
func (h *handle) RemoveSnapshot(ctx context.Context, id string, snapshot uint64) error {
	return h.call(ctx, "RemoveSnapshot", id, costNoSnapshot, func(s *space) error {
		stored, found := s.headers[id]
		if !found || !stored.Whole {
			return nil
		}
		there := stored.find(snapshot) != nil
		_, err := h.open(s, id)
		switch {
		case fault.Is(err, fault.NotFound) && there:
			return fmt.Errorf("it has neither a name nor an entry in the trash: %w", fault.InUse)
		case fault.Is(err, fault.NotFound):
			return nil
		case err == nil && there:
			h.process.cost(costRemoveSnapshot - costNoSnapshot)
			s.removeSnapshot(stored, snapshot)
		}
		return err
	})
}

// lockable tells why an image's lock cannot be had.
func (h *handle) lockable(s *space, wanted rbd.SnapshotOf) error {
	stored, err := h.open(s, wanted.ID)
	switch {
	case err != nil:
		return err
	case !stored.Layout.Features.Has(rbd.ExclusiveLock):
		return fmt.Errorf("image %s has no exclusive-lock: %w", wanted.ID, fault.Unsupported)
	case s.holders[wanted.ID] > 0:
		return fmt.Errorf("image %s, its lock is kept: %w", wanted.ID, fault.InUse)
	}
	return nil
}

// takeable tells why an image cannot have a snapshot of that name.
func (s *space) takeable(wanted rbd.SnapshotOf) error {
	stored, _, err := s.open(wanted.ID)
	if err != nil {
		return err
	}
	named := func(t *snapshot) bool { return t.Kind == rbd.UserSnapshot && t.Name == wanted.Name }
	if slices.ContainsFunc(stored.snapshots, named) {
		return fmt.Errorf("image %s, snapshot %s: %w", wanted.ID, wanted.Name, fault.Exists)
	}
	return nil
}

// take takes a snapshot. Its ID is the next of the pool that has the data: with a
// data pool, an image's IDs are those of another pool than its neighbour's.
func (s *space) take(id, name string) error {
	if err := s.takeable(rbd.SnapshotOf{ID: id, Name: name}); err != nil {
		return err
	}
	stored, pool := s.headers[id], s.pool
	if stored.DataPoolID >= 0 {
		pool = s.cluster.poolByID(stored.DataPoolID)
	}
	pool.snapshots++
	stored.HasSnaps = true
	stored.snapshots = append(stored.snapshots, &snapshot{
		Snapshot: rbd.Snapshot{ID: pool.snapshots, Name: name, Bytes: stored.Layout.Bytes, Time: now()},
		data:     s.data[id].clone(), hasParent: stored.HasParent, parent: stored.Parent,
		children: map[rbd.Child]bool{},
	})
	return nil
}

// find returns a snapshot, nil when there is none of this ID.
func (h *header) find(id uint64) *snapshot {
	for _, taken := range h.snapshots {
		if taken.ID == id {
			return taken
		}
	}
	return nil
}

// removeSnapshot removes a snapshot that has no clones. One that has goes to the trash and gets a
// UUID for its name there, so that its own can be had again (rbd.snapshot_trash_add).
func (s *space) removeSnapshot(h *header, id uint64) {
	taken := h.find(id)
	switch {
	case taken == nil:
	case len(taken.children) == 0:
		h.snapshots = slices.DeleteFunc(h.snapshots, func(t *snapshot) bool { return t == taken })
		s.unkeep(h)
	case taken.Kind == rbd.UserSnapshot:
		taken.Kind = rbd.TrashedSnapshot
		taken.Name = fmt.Sprintf("00000000-0000-4000-8000-%012x", id)
	}
}

// removeAll does to all snapshots what removeSnapshot does to one.
func (s *space) removeAll(h *header) {
	for _, taken := range slices.Clone(h.snapshots) {
		s.removeSnapshot(h, taken.ID)
	}
}
