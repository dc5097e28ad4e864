package rbdtest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// AttachParent implements rbd.Copies. Whether there is such a snapshot is nothing
// that the clone's header could know.
func (h *handle) AttachParent(ctx context.Context, id string, parent rbd.Parent) error {
	return h.make(ctx, "AttachParent", id, func(s *space) error {
		stored, found := s.headers[id]
		if !found || !stored.Whole {
			return fault.NotFound
		}
		if parent.ID == "" || parent.Overlap <= 0 {
			return fmt.Errorf("parent %+v: %w", parent, fault.Invalid)
		}
		if !stored.Layout.Features.Has(rbd.Layering) {
			return fmt.Errorf("it has no layering: %w", fault.Unsupported)
		}
		parent.Overlap = min(parent.Overlap, stored.Layout.Bytes)
		if stored.HasParent {
			if !stored.Parent.Is(parent) {
				return fmt.Errorf("another parent: %w", fault.Exists)
			}
			h.process.cost(1) // to compare
			return nil
		}
		stored.HasParent, stored.Parent = true, parent
		return nil
	})
}

// DetachParent implements rbd.Copies.
func (h *handle) DetachParent(ctx context.Context, id string, parent rbd.Parent) error {
	return h.make(ctx, "DetachParent", id, func(s *space) error {
		stored, found := s.headers[id]
		if !found || !stored.Whole {
			return fault.NotFound
		}
		if !stored.HasParent {
			return nil
		}
		if !stored.Parent.Is(parent) {
			return fmt.Errorf("another parent: %w", fault.Exists)
		}
		h.process.cost(2) // to compare, and to notify
		stored.detach()
		return nil
	})
}

// detach takes the parent away, with deep-flatten that of the snapshots too.
func (h *header) detach() {
	h.HasParent, h.Parent = false, rbd.Parent{}
	if !h.Layout.Features.Has(rbd.DeepFlatten) {
		return
	}
	for _, taken := range h.snapshots {
		taken.hasParent, taken.parent = false, rbd.Parent{}
	}
}

// AddChild implements rbd.Copies.
func (h *handle) AddChild(ctx context.Context, id string, snapshot uint64, child rbd.Child) error {
	return h.make(ctx, "AddChild", id, func(s *space) error {
		taken, err := s.snapshot(id, snapshot)
		if err != nil {
			return err
		}
		if taken.Kind == rbd.TrashedSnapshot {
			return fmt.Errorf("snapshot %d is in the trash: %w", snapshot, fault.NotFound)
		}
		taken.children[child] = true
		return nil
	})
}

// RemoveChild implements rbd.Copies.
func (h *handle) RemoveChild(ctx context.Context, id string, snapshot uint64, child rbd.Child) error {
	return h.call(ctx, "RemoveChild", id, 1, func(s *space) error {
		if taken, err := s.snapshot(id, snapshot); err == nil {
			delete(taken.children, child)
		}
		return nil
	})
}

// Children implements rbd.Copies.
func (h *handle) Children(ctx context.Context, id string, snapshot uint64) ([]rbd.Child, error) {
	var children []rbd.Child
	err := h.call(ctx, "Children", id, 1, func(s *space) error {
		if taken, err := s.snapshot(id, snapshot); err == nil {
			children = slices.SortedFunc(maps.Keys(taken.children), compareChildren)
		}
		return nil
	})
	return answer(children, err)
}

// compareChildren orders as cls::rbd::ChildImageSpec is ordered.
func compareChildren(a, b rbd.Child) int {
	return cmp.Or(cmp.Compare(a.PoolID, b.PoolID), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID))
}

// Flatten implements rbd.Copies. A clone's snapshots get the parent's data too where the clone
// has deep-flatten. Where it has not they go on needing the parent, whose snapshot
// goes on knowing the clone until the last of them is removed (rbd.parent_detach).
func (h *handle) Flatten(ctx context.Context, id string) error {
	return h.make(ctx, "Flatten", id, func(s *space) error {
		now, err := s.state(id, 0)
		if err != nil || !now.hasParent {
			return err
		}
		h.process.cost(costFlatten - costParent - 1)
		if _, err := h.open(s, id); err != nil {
			return err
		}
		copied, err := s.copyUp(id, now)
		if err != nil {
			return err
		}
		h.process.cost(2 * len(copied))
		return s.part(s.headers[id], copied)
	})
}

// copyUp copies what an image reads from its parent, and returns the copies.
func (s *space) copyUp(id string, now state) (copied objects, err error) {
	if s.data[id] == nil {
		s.data[id] = objects{}
	}
	copied = objects{}
	return copied, now.copyUp(s.data[id], copied)
}

// part ends what an image has with its parent that got copies of the parent's objects.
func (s *space) part(h *header, copied objects) error {
	if h.Layout.Features.Has(rbd.DeepFlatten) {
		for _, taken := range h.snapshots {
			old, err := s.state(h.ID, taken.ID)
			if err != nil {
				return err
			}
			if err := old.copyUp(taken.data, copied); err != nil {
				return err
			}
		}
	}
	h.kept = h.Parent
	h.detach()
	s.unkeep(h)
	return nil
}

// unkeep lets the parent of a flattened image go when none of its snapshots needs it.
func (s *space) unkeep(h *header) {
	if h.kept.ID == "" || slices.ContainsFunc(h.snapshots, func(t *snapshot) bool { return t.hasParent }) {
		return
	}
	parent := h.kept
	h.kept = rbd.Parent{}
	s.release(parent, h.ID)
}

// release takes a clone from the parent's snapshot, and that away when it is
// in the trash and this was its last clone. What is missing of them is no error.
func (s *space) release(parent rbd.Parent, clone string) {
	above, err := s.cluster.spaceOf(parent)
	if err != nil {
		return
	}
	taken, err := above.snapshot(parent.ID, parent.Snapshot)
	if err != nil {
		return
	}
	delete(taken.children, rbd.Child{PoolID: s.pool.id, Namespace: s.name, ID: clone})
	if taken.Kind == rbd.TrashedSnapshot {
		above.removeSnapshot(above.headers[parent.ID], parent.Snapshot)
	}
}

// snapshot finds a snapshot of an image.
func (s *space) snapshot(id string, snapshot uint64) (*snapshot, error) {
	stored, found := s.headers[id]
	if !found {
		return nil, fault.NotFound
	}
	taken := stored.find(snapshot)
	if taken == nil {
		return nil, fmt.Errorf("snapshot %d: %w", snapshot, fault.NotFound)
	}
	return taken, nil
}
