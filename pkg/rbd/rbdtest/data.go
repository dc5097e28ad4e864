package rbdtest

import (
	"bytes"
	"fmt"
	"maps"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// objects are the data objects of an image at one moment, by their numbers.
type objects map[int64]object

// An object is a data object. Its bytes are never changed, a write makes new ones, so
// that snapshots can share them; what is behind their end reads as zeroes.
type object struct {
	bytes []byte
	stamp int // no two writes have the same
}

// A state is what can be read of an image: as it is now, or a snapshot of it.
type state struct {
	space     *space
	layout    rbd.Layout
	data      objects
	hasParent bool
	parent    rbd.Parent
}

// state returns the image as it is now (snapshot 0), or one of its snapshots.
func (s *space) state(id string, snapshot uint64) (state, error) {
	h, found := s.headers[id]
	if !found || !h.Whole {
		return state{}, fmt.Errorf("image %s: %w", id, fault.NotFound)
	}
	if snapshot == 0 {
		return state{space: s, layout: h.Layout, data: s.data[id], hasParent: h.HasParent, parent: h.Parent}, nil
	}
	taken := h.find(snapshot)
	if taken == nil {
		return state{}, fmt.Errorf("image %s, snapshot %d: %w", id, snapshot, fault.NotFound)
	}
	layout := h.Layout
	layout.Bytes = taken.Bytes
	return state{space: s, layout: layout, data: taken.data, hasParent: taken.hasParent, parent: taken.parent}, nil
}

// open returns an image's header as one who opens the image, which librbd does when the
// image has a name or is in the trash, and everything that it was made of can be
// opened too. It also returns how many parents, one above the other, that are.
func (s *space) open(id string) (stored *header, parents int, err error) {
	_, listed := s.nameOf(id)
	if _, trashed := s.trash[id]; !listed && !trashed {
		return nil, 0, fmt.Errorf("image %s: %w", id, fault.NotFound)
	}
	now, err := s.state(id, 0)
	for ; err == nil && now.hasParent; parents++ {
		now, err = now.above()
	}
	if err != nil {
		return nil, 0, err
	}
	return s.headers[id], parents, nil
}

// above returns what a clone was made of. That it is not there does not mean that the
// clone is not, but that its data is lost.
func (st state) above() (state, error) {
	source, err := st.space.cluster.spaceOf(st.parent)
	if err == nil {
		var found state
		if found, err = source.state(st.parent.ID, st.parent.Snapshot); err == nil {
			return found, nil
		}
	}
	return state{}, fmt.Errorf("its parent: %w: %w", fault.DataLoss, err)
}

// spaceOf returns the space that a parent is in.
func (c *Cluster) spaceOf(parent rbd.Parent) (*space, error) {
	pool := c.poolByID(parent.PoolID)
	if pool == nil || pool.spaces[parent.Namespace] == nil {
		return nil, fmt.Errorf("parent %s, its pool %d: %w", parent.ID, parent.PoolID, fault.NotFound)
	}
	return pool.spaces[parent.Namespace], nil
}

// read returns a piece of a state; behind its end there are zeroes.
func (st state) read(piece rbd.Extent) ([]byte, error) {
	text := make([]byte, piece.Bytes)
	for _, r := range runs(st.layout, piece) {
		into := text[r.Offset-piece.Offset:][:r.Bytes]
		if held, found := st.data[r.number]; found {
			if r.inObject < int64(len(held.bytes)) {
				copy(into, held.bytes[r.inObject:])
			}
			continue
		}
		through := min(r.Bytes, st.parent.Overlap-r.Offset)
		if !st.hasParent || through <= 0 {
			continue
		}
		source, err := st.above()
		if err != nil {
			return nil, err
		}
		shown, err := source.read(rbd.Extent{Offset: r.Offset, Bytes: through})
		if err != nil {
			return nil, err
		}
		copy(into, shown)
	}
	return text, nil
}

// content returns a copy of a data object, of the parent's data where there is none; it
// may end before the object could.
func (st state) content(number int64) ([]byte, error) {
	if held, found := st.data[number]; found || !st.covered(number) {
		return bytes.Clone(held.bytes), nil
	}
	whole := make([]byte, st.layout.ObjectBytes)
	for _, held := range runsOf(st.layout, number) {
		read, err := st.read(held.Extent)
		if err != nil {
			return nil, err
		}
		copy(whole[held.inObject:], read)
	}
	return whole, nil
}

// covered reports whether a parent shows through where a data object lies.
func (st state) covered(number int64) bool {
	held := runsOf(st.layout, number)
	return st.hasParent && len(held) > 0 && held[0].Offset < st.parent.Overlap
}

// allocated returns what exists of a state, its parent's data included, in order and joined.
func (st state) allocated() ([]rbd.Extent, error) {
	var found []rbd.Extent
	for number := range st.data {
		for _, held := range runsOf(st.layout, number) {
			found = append(found, rbd.Extent{Offset: held.Offset, Bytes: held.Bytes, Exists: true})
		}
	}
	if st.hasParent && st.parent.Overlap > 0 {
		source, err := st.above()
		if err != nil {
			return nil, err
		}
		shown, err := source.allocated()
		if err != nil {
			return nil, err
		}
		found = append(found, clip(shown, rbd.Extent{Bytes: st.parent.Overlap})...)
	}
	return join(found), nil
}

// put makes or replaces a data object of an image.
func (s *space) put(id string, number int64, content []byte) {
	if s.data[id] == nil {
		s.data[id] = objects{}
	}
	s.data[id][number] = s.cluster.ceph.object(content)
}

// object makes a data object; long rows of zeroes at its end are not kept.
func (c *Ceph) object(content []byte) object {
	const step = 4096 // bytes that are compared at a time
	zeroes := make([]byte, step)
	for len(content) >= step && bytes.Equal(content[len(content)-step:], zeroes) {
		content = content[:len(content)-step]
	}
	c.stamps++
	return object{bytes: bytes.Clone(content), stamp: c.stamps}
}

// write writes into an image; a clone's data object begins as a copy of the parent's.
func (s *space) write(id string, offset int64, text []byte) error {
	for _, r := range runs(s.headers[id].Layout, rbd.Extent{Offset: offset, Bytes: int64(len(text))}) {
		now, err := s.state(id, 0)
		if err != nil {
			return err
		}
		content, err := now.content(r.number)
		if err != nil {
			return err
		}
		if lacking := r.inObject + r.Bytes - int64(len(content)); lacking > 0 {
			content = append(content, make([]byte, lacking)...)
		}
		copy(content[r.inObject:], text[r.Offset-offset:][:r.Bytes])
		s.put(id, r.number, content)
	}
	return nil
}

// discard gives up a piece of an image. A data object that is wholly in it goes, except that
// an empty one has to hide the parent's; of another one the piece becomes zeroes.
func (s *space) discard(id string, piece rbd.Extent) error {
	now, err := s.state(id, 0)
	if err != nil {
		return err
	}
	given := map[int64][]run{}
	for _, r := range runs(now.layout, piece) {
		given[r.number] = append(given[r.number], r)
	}
	for number, pieces := range given {
		switch {
		case total(pieces) < total(runsOf(now.layout, number)):
			err = s.zero(id, now, pieces)
		case now.covered(number):
			s.put(id, number, nil)
		default:
			delete(s.data[id], number)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// zero writes zeroes to pieces of one data object, if there is anything to overwrite.
func (s *space) zero(id string, now state, pieces []run) error {
	number := pieces[0].number
	if _, exists := now.data[number]; !exists && !now.covered(number) {
		return nil
	}
	for _, r := range pieces {
		if err := s.write(id, r.Offset, make([]byte, r.Bytes)); err != nil {
			return err
		}
	}
	return nil
}

// copyUp adds to a state's data objects those that it reads from its parent. Copied holds
// copies made already and gets the new ones: an image and its snapshots share them.
func (st state) copyUp(into, copied objects) error {
	if !st.hasParent {
		return nil
	}
	source, err := st.above()
	if err != nil {
		return err
	}
	shown, err := source.allocated()
	if err != nil {
		return err
	}
	for _, piece := range clip(shown, rbd.Extent{Bytes: min(st.parent.Overlap, st.layout.Bytes)}) {
		for _, r := range runs(st.layout, piece) {
			if _, own := into[r.number]; own {
				continue
			}
			if _, done := copied[r.number]; !done {
				content, err := st.content(r.number)
				if err != nil {
					return err
				}
				copied[r.number] = st.space.cluster.ceph.object(content)
			}
			into[r.number] = copied[r.number]
		}
	}
	return nil
}

// clone copies the list of objects and shares their bytes.
func (o objects) clone() objects {
	if o == nil {
		return objects{}
	}
	return maps.Clone(o)
}
