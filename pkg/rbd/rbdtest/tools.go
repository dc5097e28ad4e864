package rbdtest

import (
	"bytes"
	"fmt"
	"maps"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Tools do to images what people and other programs do to them, with the
// commands rbd and rados, past the driver. The fake has them ([Ceph]) and so has
// the test of the real adapter. A place that does not exist is an error.
type Tools interface {
	// Create makes an image as `rbd create` does: with a hexadecimal ID and
	// without metadata. It returns the ID.
	Create(image volid.Image, layout rbd.Layout) (id string, err error)
	// Snapshot takes a snapshot, as `rbd snap create`.
	Snapshot(image volid.Image, snapshot string) error
	// RemoveSnapshots removes all snapshots, as `rbd snap purge`.
	RemoveSnapshots(image volid.Image) error
	// Clone makes an image of that name in the same place, a linked copy of the
	// source as it is now, as `rbd snap create` and `rbd clone` do. It returns the ID.
	Clone(source volid.Image, name string) (id string, err error)
	// SetMeta sets one piece of metadata, as `rbd image-meta set`.
	SetMeta(image volid.Image, key, value string) error
	// Write makes the image's first data object.
	Write(image volid.Image) error
	// WriteAt writes a text into an image, by librbd, and flushes. ReadAt reads so many
	// bytes, the parent's where the image has none of its own.
	WriteAt(image volid.Image, offset int64, text string) error
	ReadAt(image volid.Image, offset int64, bytes int) (text string, err error)
	// Discard gives up a piece of an image, by librbd; the suite discards whole data objects.
	Discard(image volid.Image, offset, bytes int64) error
	// RemoveIndex removes the object rbd_csi.index, as `rados rm`. One that is not there is no error.
	RemoveIndex(at volid.Pool) error
	// Hold makes a client that watches the image and holds its exclusive lock,
	// where the image has that feature, until release is called.
	Hold(image volid.Image) (release func(), err error)
	// Open makes a client with a connection of its own that has the image open, and so watches it.
	Open(image volid.Image) (Client, error)
	// RemoveTrashedSnapshots removes all snapshots of an image in the trash.
	RemoveTrashedSnapshots(at volid.Pool, id string) error
	// Trash moves an image to the trash, as `rbd trash mv`.
	Trash(image volid.Image) error
	// HalfTrash begins `rbd trash mv` and stops after the first step: the image is
	// in the trash in the state MOVING, and its names are there.
	HalfTrash(image volid.Image) error
	// HalfPurge begins to remove an image in the trash and stops after a step: 1
	// the header is gone, 2 the object map too.
	HalfPurge(at volid.Pool, id string, step int) error
	// MapObjects returns how many objects the object map of an image covers.
	MapObjects(at volid.Pool, id string) (int64, error)
	// Objects returns what exists in a place, sorted, one line for each of
	// rbd_id.NAME, "rbd_directory NAME ID", rbd_header.ID, rbd_object_map.ID,
	// "rbd_trash ID NAME", and for each image with data its prefix rbd_data.ID.
	// The suite compares two such lists, so there may be more lines: the fake has one for each
	// snapshot, for each clone that a snapshot knows, and for each entry of the index.
	// rbd_csi.index itself has no line, because nobody removes an empty index.
	Objects(at volid.Pool) ([]string, error)
}

// A Client has an image open over a connection of its own, as a node that has mapped it.
type Client interface {
	// Address is what it is called in the blocklist.
	Address() string
	// Write writes at the image's beginning and flushes. It takes the exclusive lock, where the image
	// has that feature, also from another client. It fails when the client is blocklisted.
	Write(text string) error
	// Close closes the image and the connection.
	Close()
}

var _ Tools = (*Ceph)(nil)

// firstID is an ID like librbd's: the client's number and a random one, in hexadecimal.
const firstID = 0x1064d327b23c

// Create implements Tools.
func (c *Ceph) Create(image volid.Image, layout rbd.Layout) (string, error) {
	return c.create(image, func(s *space, id string) (*header, error) {
		dataPool := int64(-1)
		if layout.DataPool != "" {
			dataPool = s.cluster.pools[layout.DataPool].id
		}
		return newHeader(id, layout, dataPool), nil
	})
}

// create makes an image with a header that is made when its ID is known.
func (c *Ceph) create(image volid.Image, makeHeader func(s *space, id string) (*header, error)) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.space(image.Pool)
	if err != nil {
		return "", err
	}
	if s.names[image.Name] != "" || s.entries[image.Name] != "" {
		return "", fmt.Errorf("create %s: %w", image, fault.Exists)
	}
	id := fmt.Sprintf("%x", firstID+c.ids)
	made, err := makeHeader(s, id)
	if err != nil {
		return "", err
	}
	c.ids++
	s.names[image.Name], s.entries[image.Name], s.headers[id] = id, id, made
	if made.Layout.Features.Has(rbd.ObjectMap) {
		s.maps[id] = made.Layout.Objects()
	}
	return id, nil
}

// Snapshot implements Tools.
func (c *Ceph) Snapshot(image volid.Image, snapshot string) error {
	return c.image(image, func(s *space, id string, h *header) error { return s.take(id, snapshot) })
}

// RemoveSnapshots implements Tools. One that has clones goes to the trash.
func (c *Ceph) RemoveSnapshots(image volid.Image) error {
	return c.image(image, func(s *space, id string, h *header) error {
		s.removeAll(h)
		return nil
	})
}

// Clone implements Tools.
func (c *Ceph) Clone(source volid.Image, name string) (string, error) {
	if err := c.Snapshot(source, fmt.Sprintf("for-%s-%d", name, c.count())); err != nil {
		return "", err
	}
	return c.create(volid.Image{Pool: source.Pool, Name: name}, func(s *space, id string) (*header, error) {
		sourceID := s.names[source.Name]
		from := s.headers[sourceID]
		last := from.snapshots[len(from.snapshots)-1]
		made := newHeader(id, from.Layout, -1)
		made.Meta, made.foreign = maps.Clone(from.Meta), maps.Clone(from.foreign)
		made.HasParent = true
		made.Parent = rbd.Parent{
			PoolID: s.pool.id, Namespace: s.name, ID: sourceID, Snapshot: last.ID, Overlap: last.Bytes,
		}
		last.children[rbd.Child{PoolID: s.pool.id, Namespace: s.name, ID: id}] = true
		return made, nil
	})
}

// count returns another number each time.
func (c *Ceph) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stamps++
	return c.stamps
}

// SetMeta implements Tools.
func (c *Ceph) SetMeta(image volid.Image, key, value string) error {
	return c.image(image, func(s *space, id string, h *header) error {
		h.set(key, value)
		return nil
	})
}

// Write implements Tools.
func (c *Ceph) Write(image volid.Image) error {
	return c.image(image, func(s *space, id string, h *header) error {
		return s.write(id, 0, bytes.Repeat([]byte("d"), 4096))
	})
}

// WriteAt implements Tools.
func (c *Ceph) WriteAt(image volid.Image, offset int64, text string) error {
	return c.image(image, func(s *space, id string, h *header) error { return s.write(id, offset, []byte(text)) })
}

// ReadAt implements Tools.
func (c *Ceph) ReadAt(image volid.Image, offset int64, bytes int) (text string, err error) {
	err = c.image(image, func(s *space, id string, h *header) error {
		now, err := s.state(id, 0)
		if err != nil {
			return err
		}
		read, err := now.read(rbd.Extent{Offset: offset, Bytes: int64(bytes)})
		text = string(read)
		return err
	})
	return text, err
}

// Discard implements Tools.
func (c *Ceph) Discard(image volid.Image, offset, bytes int64) error {
	return c.image(image, func(s *space, id string, h *header) error {
		return s.discard(id, rbd.Extent{Offset: offset, Bytes: bytes})
	})
}

// RemoveIndex implements Tools.
func (c *Ceph) RemoveIndex(at volid.Pool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.space(at)
	if err != nil {
		return err
	}
	s.index = nil
	return nil
}

// Hold implements Tools.
func (c *Ceph) Hold(image volid.Image) (release func(), err error) {
	err = c.image(image, func(s *space, id string, h *header) error {
		s.holders[id]++
		release = func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			s.holders[id]--
		}
		return nil
	})
	return release, err
}

// RemoveTrashedSnapshots implements Tools.
func (c *Ceph) RemoveTrashedSnapshots(at volid.Pool, id string) error {
	return c.header(at, id, func(s *space, h *header) { s.removeAll(h) })
}

// Trash implements Tools.
func (c *Ceph) Trash(image volid.Image) error {
	return c.image(image, func(s *space, id string, h *header) error {
		s.trash[id] = trashed{TrashEntry: rbd.TrashEntry{ID: id, Name: image.Name, Time: now()}}
		delete(s.names, image.Name)
		delete(s.entries, image.Name)
		return nil
	})
}

// CopyUp copies what an image reads from its parent, as Flatten does before it parts them.
func (c *Ceph) CopyUp(image volid.Image) error {
	return c.image(image, func(s *space, id string, _ *header) error {
		now, err := s.state(id, 0)
		if err != nil {
			return err
		}
		_, err = s.copyUp(id, now)
		return err
	})
}

// HalfTrash implements Tools.
func (c *Ceph) HalfTrash(image volid.Image) error {
	return c.image(image, func(s *space, id string, h *header) error {
		s.trash[id] = trashed{TrashEntry: rbd.TrashEntry{ID: id, Name: image.Name, Time: now()}, moving: true}
		return nil
	})
}

// MapObjects implements Tools.
func (c *Ceph) MapObjects(at volid.Pool, id string) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.space(at)
	if err != nil {
		return 0, err
	}
	var objects int64
	err = find(s.maps, id, &objects)
	return objects, err
}

// HalfPurge implements Tools.
func (c *Ceph) HalfPurge(at volid.Pool, id string, step int) error {
	return c.header(at, id, func(s *space, h *header) {
		delete(s.headers, id)
		if step > 1 {
			delete(s.maps, id)
		}
	})
}

// header does something to an image found by its ID.
func (c *Ceph) header(at volid.Pool, id string, effect func(s *space, h *header)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.space(at)
	if err != nil {
		return err
	}
	stored, found := s.headers[id]
	if !found {
		return fmt.Errorf("image %s in %s: %w", id, at, fault.NotFound)
	}
	effect(s, stored)
	return nil
}

// image does something to an image found by its name.
func (c *Ceph) image(image volid.Image, effect func(s *space, id string, h *header) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.space(image.Pool)
	if err != nil {
		return err
	}
	id := s.names[image.Name]
	stored, found := s.headers[id]
	if !found {
		return fmt.Errorf("image %s: %w", image, fault.NotFound)
	}
	return effect(s, id, stored)
}
