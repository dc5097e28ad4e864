package rbdtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// A handle is a place as one process and user see it; it implements rbd.Pool.
type handle struct {
	process *Process
	space   *space
	user    user
}

var _ rbd.Pool = (*handle)(nil)

// What librbd's own functions cost, measured on Ceph 16.2 with empty images that
// have an object map and no client. What goes with a last clone, a snapshot in the trash, is
// not counted (32).
const (
	costGrow           = 27
	costHoldsData      = 13
	costPurge          = 30
	costTakeSnapshot   = 33
	costTogether       = 35 // for each of several snapshots of one moment
	costRemoveSnapshot = 31
	costNoSnapshot     = 15 // to remove one that is not there
	costFlatten        = 46
	costChanged        = 13
	costCompared       = 15 // Changed of a snapshot
	costParent         = 13 // for each parent that is opened with an image
	costDetach         = 3  // to take a clone from its parent
)

// pageSize is how many entries of an omap one operation returns at most.
const pageSize = 1024

// call makes one call of a method that costs so many operations.
func (h *handle) call(ctx context.Context, method, about string, cost int, effect func(s *space) error) error {
	call := Call{Method: method, Place: h.space.where().Pool, About: about}
	return h.process.do(ctx, call, func() error {
		if h.space.cluster.down {
			return fmt.Errorf("%s %s: cluster %s is down: %w", method, about, h.space.cluster.name, fault.Unavailable)
		}
		h.process.cost(cost)
		if !h.user.sees(h.space.pool.name) {
			return fmt.Errorf("%s %s: pool %s: %w", method, about, h.space.pool.name, fault.Denied)
		}
		if err := effect(h.space); err != nil {
			return fmt.Errorf("%s %s: %w", method, about, err)
		}
		return nil
	})
}

// make is call for methods of one operation that make something, which a full pool refuses.
func (h *handle) make(ctx context.Context, method, about string, effect func(s *space) error) error {
	return h.fill(ctx, method, about, 1, effect)
}

// fill is make for methods that cost more.
func (h *handle) fill(ctx context.Context, method, about string, cost int, effect func(s *space) error) error {
	return h.call(ctx, method, about, cost, func(s *space) error {
		if s.pool.full {
			return fault.Exhausted
		}
		return effect(s)
	})
}

// open is open of the space, and counts what librbd spends on the parents.
func (h *handle) open(s *space, id string) (*header, error) {
	stored, parents, err := s.open(id)
	h.process.cost(costParent * parents)
	return stored, err
}

// Where implements rbd.Pool.
func (h *handle) Where() rbd.Where { return h.space.where() }

// FindName implements rbd.Pool.
func (h *handle) FindName(ctx context.Context, name string) (id string, err error) {
	err = h.call(ctx, "FindName", name, 1, func(s *space) error {
		return find(s.names, name, &id)
	})
	return answer(id, err)
}

// AddName implements rbd.Pool.
func (h *handle) AddName(ctx context.Context, name, id string) error {
	return h.make(ctx, "AddName", name, func(s *space) error {
		return add(s.names, name, id)
	})
}

// RemoveName implements rbd.Pool.
func (h *handle) RemoveName(ctx context.Context, name, id string) error {
	return h.call(ctx, "RemoveName", name, 1, func(s *space) error {
		if s.names[name] == id {
			delete(s.names, name)
		}
		return nil
	})
}

// FindEntry implements rbd.Pool.
func (h *handle) FindEntry(ctx context.Context, name string) (id string, err error) {
	err = h.call(ctx, "FindEntry", name, 1, func(s *space) error {
		return find(s.entries, name, &id)
	})
	return answer(id, err)
}

// AddEntry implements rbd.Pool.
func (h *handle) AddEntry(ctx context.Context, name, id string) error {
	return h.make(ctx, "AddEntry", name, func(s *space) error {
		if _, listed := s.nameOf(id); listed {
			return fault.Exists
		}
		return add(s.entries, name, id)
	})
}

// RemoveEntry implements rbd.Pool.
func (h *handle) RemoveEntry(ctx context.Context, name, id string) error {
	return h.call(ctx, "RemoveEntry", name, 1, func(s *space) error {
		if s.entries[name] == id {
			delete(s.entries, name)
		}
		return nil
	})
}

// Entries implements rbd.Pool.
func (h *handle) Entries(ctx context.Context, after string, max int) ([]rbd.Entry, error) {
	var page []rbd.Entry
	err := h.call(ctx, "Entries", after, 1, func(s *space) error {
		for _, name := range slices.Sorted(maps.Keys(s.entries)) {
			if name > after && len(page) < min(max, pageSize) {
				page = append(page, rbd.Entry{Name: name, ID: s.entries[name]})
			}
		}
		return nil
	})
	return answer(page, err)
}

// CreateHeader implements rbd.Pool.
func (h *handle) CreateHeader(ctx context.Context, id string, layout rbd.Layout, meta map[string]string) error {
	return h.make(ctx, "CreateHeader", id, func(s *space) error {
		dataPool, err := h.dataPool(s, layout.DataPool)
		if err != nil {
			return err
		}
		made := newHeader(id, layout, dataPool)
		made.Meta = maps.Clone(meta)
		return add(s.headers, id, made)
	})
}

// dataPool returns the ID of a data pool that is fit for it, -1 for none.
func (h *handle) dataPool(s *space, name string) (int64, error) {
	if name == "" || name == s.pool.name {
		return -1, nil
	}
	pool, found := s.cluster.pools[name]
	if !found {
		return 0, fmt.Errorf("data pool %s: %w", name, fault.NotFound)
	}
	if !h.process.validate(s.cluster.name, name) {
		h.process.cost(1)
	}
	if pool.noOverwrites {
		return 0, fmt.Errorf("data pool %s cannot overwrite, allow_ec_overwrites is off: %w", name, fault.Unsupported)
	}
	return pool.id, nil
}

// newHeader makes a header of a layout, in the form in which it is read back.
func newHeader(id string, layout rbd.Layout, dataPool int64) *header {
	layout.DataPool = ""
	layout.Features &^= rbd.DataPool | rbd.StripingV2
	if dataPool >= 0 {
		layout.Features |= rbd.DataPool
	}
	if layout.StripeCount <= 1 && (layout.StripeUnit == 0 || layout.StripeUnit == layout.ObjectBytes) {
		layout.StripeUnit, layout.StripeCount = 0, 0
	} else {
		layout.Features |= rbd.StripingV2
	}
	return &header{Header: rbd.Header{ID: id, Whole: true, Layout: layout, DataPoolID: dataPool, Created: now()}}
}

// ReserveHeader implements rbd.Pool.
func (h *handle) ReserveHeader(ctx context.Context, id string, meta map[string]string) error {
	return h.make(ctx, "ReserveHeader", id, func(s *space) error {
		return add(s.headers, id, &header{Header: rbd.Header{ID: id, DataPoolID: -1, Meta: maps.Clone(meta)}})
	})
}

// RemoveHeader implements rbd.Pool.
func (h *handle) RemoveHeader(ctx context.Context, id string) error {
	return h.call(ctx, "RemoveHeader", id, 1, func(s *space) error {
		delete(s.headers, id)
		return nil
	})
}

// Header implements rbd.Pool.
func (h *handle) Header(ctx context.Context, id string) (rbd.Header, error) {
	var read rbd.Header
	err := h.call(ctx, "Header", id, 1, func(s *space) error {
		stored, found := s.headers[id]
		if !found {
			return fault.NotFound
		}
		read = stored.copyHeader()
		return nil
	})
	return answer(read, err)
}

// ChangeMeta implements rbd.Pool.
func (h *handle) ChangeMeta(ctx context.Context, id string, change rbd.Change) error {
	return h.make(ctx, "ChangeMeta", id, func(s *space) error {
		stored, found := s.headers[id]
		if !found {
			return fault.NotFound
		}
		if err := expect(change, stored.value); err != nil {
			return err
		}
		for key, value := range change.Set {
			stored.set(key, value)
		}
		for _, key := range change.Remove {
			delete(stored.Meta, key)
			delete(stored.foreign, key)
		}
		return nil
	})
}

// EnsureObjectMap implements rbd.Pool.
func (h *handle) EnsureObjectMap(ctx context.Context, id string, layout rbd.Layout) error {
	return h.make(ctx, "EnsureObjectMap", id, func(s *space) error {
		if _, found := s.maps[id]; !found {
			s.maps[id] = layout.Objects()
		}
		return nil
	})
}

// RemoveObjectMap implements rbd.Pool.
func (h *handle) RemoveObjectMap(ctx context.Context, id string) error {
	return h.call(ctx, "RemoveObjectMap", id, 1, func(s *space) error {
		delete(s.maps, id)
		return nil
	})
}

// Grow implements rbd.Pool.
func (h *handle) Grow(ctx context.Context, id string, bytes int64) error {
	return h.call(ctx, "Grow", id, costGrow, func(s *space) error {
		stored, err := h.open(s, id)
		if err != nil {
			return err
		}
		if bytes <= stored.Layout.Bytes {
			return nil
		}
		stored.Layout.Bytes = bytes
		if stored.Layout.Features.Has(rbd.ObjectMap) {
			s.maps[id] = max(s.maps[id], stored.Layout.Objects())
		}
		return nil
	})
}

// HoldsData implements rbd.Pool.
func (h *handle) HoldsData(ctx context.Context, id string) (bool, error) {
	holds := false
	err := h.call(ctx, "HoldsData", id, costHoldsData, func(s *space) error {
		if _, err := h.open(s, id); err != nil {
			return err
		}
		now, err := s.state(id, 0)
		if err != nil {
			return err
		}
		held, err := now.allocated()
		holds = len(held) > 0
		return err
	})
	return answer(holds, err)
}

// AddTrash implements rbd.Pool.
func (h *handle) AddTrash(ctx context.Context, id, name string) error {
	return h.make(ctx, "AddTrash", id, func(s *space) error {
		entry, found := s.trash[id]
		if !found {
			entry = trashed{TrashEntry: rbd.TrashEntry{ID: id, Name: name, Time: now()}}
		}
		if entry.moving {
			h.process.cost(1)
		}
		entry.moving = false
		s.trash[id] = entry
		return nil
	})
}

// Trashed implements rbd.Pool.
func (h *handle) Trashed(ctx context.Context) ([]rbd.TrashEntry, error) {
	var entries []rbd.TrashEntry
	err := h.call(ctx, "Trashed", "", 0, func(s *space) error {
		h.process.cost(1 + len(s.trash)/pageSize)
		for _, id := range slices.Sorted(maps.Keys(s.trash)) {
			entries = append(entries, s.trash[id].TrashEntry)
		}
		return nil
	})
	return answer(entries, err)
}

// Purge implements rbd.Pool.
func (h *handle) Purge(ctx context.Context, id string) error {
	return h.call(ctx, "Purge", id, costPurge, func(s *space) error {
		entry, trashed := s.trash[id]
		if !trashed {
			return fault.NotFound
		}
		stored, found := s.headers[id]
		switch {
		case entry.moving:
			return fmt.Errorf("it is being moved to the trash: %w", fault.InUse)
		case s.holders[id] > 0:
			return fmt.Errorf("a client watches it: %w", fault.InUse)
		case found && len(stored.snapshots) > 0:
			return fmt.Errorf("it has snapshots: %w", fault.InUse)
		}
		if found && stored.HasParent {
			h.process.cost(costDetach)
			s.release(stored.Parent, id)
		}
		h.process.cost(len(s.data[id]))
		delete(s.data, id)
		delete(s.maps, id)
		delete(s.headers, id)
		delete(s.trash, id)
		return nil
	})
}

// Capacity implements rbd.Pool.
func (h *handle) Capacity(ctx context.Context, dataPool string) (rbd.Capacity, error) {
	var capacity rbd.Capacity
	err := h.call(ctx, "Capacity", dataPool, 0, func(s *space) error {
		asked := s.pool
		if dataPool != "" {
			asked = s.cluster.pools[dataPool]
		}
		if asked == nil {
			return fmt.Errorf("data pool %s: %w", dataPool, fault.NotFound)
		}
		capacity = asked.capacity
		return nil
	})
	return answer(capacity, err)
}

// nameOf returns the name under which the directory has an ID.
func (s *space) nameOf(id string) (string, bool) {
	for name, listed := range s.entries {
		if listed == id {
			return name, true
		}
	}
	return "", false
}

// value returns metadata, "" when there is none.
func (h *header) value(key string) string {
	if strings.HasPrefix(key, rbd.MetaPrefix) {
		return h.Meta[key]
	}
	return h.foreign[key]
}

// set sets metadata.
func (h *header) set(key, value string) {
	kept := &h.foreign
	if strings.HasPrefix(key, rbd.MetaPrefix) {
		kept = &h.Meta
	}
	if *kept == nil {
		*kept = map[string]string{}
	}
	(*kept)[key] = value
}

// expect compares what is there with what a change expects.
func expect(change rbd.Change, value func(key string) string) error {
	for key, want := range change.Expect {
		if value(key) != want {
			return fmt.Errorf("%s is not as expected: %w", key, fault.Superseded)
		}
	}
	return nil
}

// find sets value to what a map holds, or returns NotFound.
func find[V any](in map[string]V, key string, value *V) error {
	found, ok := in[key]
	if !ok {
		return fault.NotFound
	}
	*value = found
	return nil
}

// add puts a value into a map that does not have the key, or returns Exists.
func add[V any](to map[string]V, key string, value V) error {
	if _, found := to[key]; found {
		return fault.Exists
	}
	to[key] = value
	return nil
}

// answer drops a value beside an error: an answer that was lost tells nothing.
func answer[V any](value V, err error) (V, error) {
	if err != nil {
		var none V
		return none, err
	}
	return value, nil
}
