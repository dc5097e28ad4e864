package rbdtest

import (
	"context"
	"fmt"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// Changed implements rbd.Copies. What touches and is alike comes as one extent. Whole data
// objects are told without fast-diff too.
func (h *handle) Changed(ctx context.Context, id string, between rbd.Between, piece rbd.Extent) ([]rbd.Extent, error) {
	var changed []rbd.Extent
	err := h.call(ctx, "Changed", id, costChanged, func(s *space) error {
		if between != (rbd.Between{}) {
			h.process.cost(costCompared - costChanged)
		}
		if _, err := h.open(s, id); err != nil {
			return err
		}
		to, err := s.state(id, between.To)
		if err != nil {
			return err
		}
		all, err := s.changed(id, between, to)
		changed = clip(clip(all, piece), rbd.Extent{Bytes: to.layout.Bytes})
		return err
	})
	return answer(changed, err)
}

// changed returns what differs in the whole image.
func (s *space) changed(id string, between rbd.Between, to state) ([]rbd.Extent, error) {
	if between.From == 0 {
		return to.allocated()
	}
	if between.To != 0 && between.From > between.To {
		return nil, fmt.Errorf("snapshot %d is later than %d: %w", between.From, between.To, fault.Invalid)
	}
	from, err := s.state(id, between.From)
	if err != nil {
		return nil, err
	}
	var differ []rbd.Extent
	for number, now := range to.data {
		if was, existed := from.data[number]; !existed || was.stamp != now.stamp {
			differ = append(differ, to.extents(number, true)...)
		}
	}
	for number := range from.data {
		if _, exists := to.data[number]; !exists {
			differ = append(differ, to.extents(number, false)...)
		}
	}
	return join(differ), nil
}

// extents returns where a data object lies in the image.
func (st state) extents(number int64, exists bool) []rbd.Extent {
	var lie []rbd.Extent
	for _, held := range runsOf(st.layout, number) {
		lie = append(lie, rbd.Extent{Offset: held.Offset, Bytes: held.Bytes, Exists: exists})
	}
	return lie
}
