package rbdtest

import (
	"context"
	"maps"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// Index implements rbd.Copies.
func (h *handle) Index(ctx context.Context, after string, max int) ([]rbd.IndexEntry, error) {
	var page []rbd.IndexEntry
	err := h.call(ctx, "Index", after, 1, func(s *space) error {
		if s.index == nil {
			return fault.NotFound
		}
		for _, key := range slices.Sorted(maps.Keys(s.index)) {
			if key > after && len(page) < min(max, pageSize) {
				page = append(page, rbd.IndexEntry{Key: key, Value: s.index[key]})
			}
		}
		return nil
	})
	return answer(page, err)
}

// IndexValues implements rbd.Copies. The call is about the first key.
func (h *handle) IndexValues(ctx context.Context, keys ...string) (map[string]string, error) {
	values, about := map[string]string{}, ""
	if len(keys) > 0 {
		about = keys[0]
	}
	err := h.call(ctx, "IndexValues", about, 1, func(s *space) error {
		if s.index == nil {
			return fault.NotFound
		}
		for _, key := range keys {
			if value, found := s.index[key]; found {
				values[key] = value
			}
		}
		return nil
	})
	return answer(values, err)
}

// ChangeIndex implements rbd.Copies. The call is about the first key that is set,
// or else removed, in their order.
func (h *handle) ChangeIndex(ctx context.Context, change rbd.Change) error {
	keys := append(slices.Sorted(maps.Keys(change.Set)), slices.Sorted(slices.Values(change.Remove))...)
	return h.make(ctx, "ChangeIndex", append(keys, "")[0], func(s *space) error {
		if s.index == nil {
			return fault.NotFound
		}
		if err := expect(change, func(key string) string { return s.index[key] }); err != nil {
			return err
		}
		maps.Copy(s.index, change.Set)
		for _, key := range change.Remove {
			delete(s.index, key)
		}
		return nil
	})
}

// MakeIndex implements rbd.Copies.
func (h *handle) MakeIndex(ctx context.Context) error {
	return h.make(ctx, "MakeIndex", "", func(s *space) error {
		if s.index == nil {
			s.index = map[string]string{}
		}
		return nil
	})
}
