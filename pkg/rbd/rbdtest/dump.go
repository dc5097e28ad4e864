package rbdtest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Objects implements Tools.
func (c *Ceph) Objects(at volid.Pool) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.space(at)
	if err != nil {
		return nil, err
	}
	return s.objects(), nil
}

// Dump returns what Objects returns, of all places, and the metadata of each
// header, each line with the handle of its place in front. It is sorted: two
// dumps can be compared, and an empty one means that nothing is left.
func (c *Ceph) Dump() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines []string
	for _, cluster := range c.clusters {
		for _, pool := range cluster.pools {
			for _, space := range pool.spaces {
				place := space.where().Pool.String()
				for _, line := range append(space.objects(), space.metadata()...) {
					lines = append(lines, place+" "+line)
				}
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// objects lists what a place holds, sorted.
func (s *space) objects() []string {
	var lines []string
	for name := range s.names {
		lines = append(lines, "rbd_id."+name)
	}
	for name, id := range s.entries {
		lines = append(lines, "rbd_directory "+name+" "+id)
	}
	for id := range s.headers {
		lines = append(lines, "rbd_header."+id)
	}
	for id := range s.maps {
		lines = append(lines, "rbd_object_map."+id)
	}
	for id, entry := range s.trash {
		lines = append(lines, "rbd_trash "+id+" "+entry.Name)
	}
	for id, objects := range s.data {
		if len(objects) > 0 {
			lines = append(lines, "rbd_data."+id)
		}
	}
	for id, h := range s.headers {
		lines = append(lines, h.listSnapshots(id)...)
	}
	for key, value := range s.index {
		lines = append(lines, "rbd_csi.index "+key+" "+value)
	}
	slices.Sort(lines)
	return lines
}

// listSnapshots lists an image's snapshots, "rbd_snapshot IMAGE SNAPSHOT NAME KIND" with both by their
// IDs, and the clones that they know, "rbd_children IMAGE SNAPSHOT POOL/NAMESPACE/CLONE" likewise.
func (h *header) listSnapshots(id string) (lines []string) {
	for _, taken := range h.snapshots {
		lines = append(lines, fmt.Sprintf("rbd_snapshot %s %d %s %d", id, taken.ID, taken.Name, taken.Kind))
		for child := range taken.children {
			lines = append(lines, fmt.Sprintf("rbd_children %s %d %d/%s/%s", id, taken.ID, child.PoolID, child.Namespace, child.ID))
		}
	}
	return lines
}

// metadata lists the metadata of a place's headers.
func (s *space) metadata() []string {
	var lines []string
	for id, h := range s.headers {
		for _, all := range []map[string]string{h.Meta, h.foreign} {
			for key, value := range all {
				lines = append(lines, strings.Join([]string{"rbd_header." + id, "metadata_" + key, "=", value}, " "))
			}
		}
	}
	return lines
}
