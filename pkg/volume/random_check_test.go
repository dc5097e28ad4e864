package volume

import (
	"maps"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// glance compares what costs little, while requests are under way.
func (w *world) glance() {
	fresh := start(w.ceph)
	for _, v := range w.volumes {
		if v.isThere() {
			w.checkVolume(fresh, v)
		}
	}
	for _, s := range w.allSnapshots() {
		got, err := fresh.Snapshots().Get(w.t.Context(), s.taken.Handle, nobody)
		if err != nil || got.Bytes != s.taken.Bytes || !got.Time.Equal(s.taken.Time) {
			w.failf("snapshot %s is %+v, error %v; want %+v", s.request, got, err, s.taken)
		}
	}
}

// allSnapshots returns those that certainly are there, those of groups too.
func (w *world) allSnapshots() []*aSnapshot {
	all := slices.Clone(w.snaps)
	for _, g := range w.groups {
		if g.isThere() {
			all = append(all, g.members...)
		}
	}
	return slices.DeleteFunc(all, func(s *aSnapshot) bool { return !s.isThere() })
}

// checkVolume compares a volume that certainly is there.
func (w *world) checkVolume(fresh *driver, v *aVolume) {
	found, err := image.Find(w.t.Context(), fresh.clusters, v.handle, nobody)
	if err != nil {
		w.failf("volume %s: %v", v.handle, err)
	}
	if got := w.read(v); got != v.content {
		w.failf("volume %s holds %v, want %v", v.handle, got, v.content)
	}
	if bytes := found.Header.Layout.Bytes; bytes < v.least || bytes > v.most || found.ID != v.id {
		w.failf("volume %s has ID %s and %d bytes, want %s and %d to %d", v.handle, found.ID, bytes, v.id, v.least, v.most)
	}
	switch mark, _ := found.Format(); {
	case mark.Done && !v.format:
		w.failf("volume %s has the mark of a filesystem, and none is in it", v.handle)
	case !mark.Done && v.formatted:
		w.failf("volume %s has lost the mark of its filesystem", v.handle)
	}
	if nodes := found.Marks.Attachments.Names(); v.node.isThere() && !slices.Equal(nodes, []string{v.attached}) {
		w.failf("volume %s is attached to %v, want %s", v.handle, nodes, v.attached)
	}
	w.checkParents(found)
}

// checkParents holds that each snapshot that an image is made of knows its clone, and how many there are.
func (w *world) checkParents(of image.Image) {
	ctx, clusters := w.t.Context(), w.ceph.Process()
	deep := 0
	for child := of; child.Header.HasParent; deep++ {
		parent := child.Header.Parent
		above, err := NewStore(clusters, Options{}).place(ctx, "main", parent.PoolID, parent.Namespace)
		w.must(err)
		children, err := above.Children(ctx, parent.ID, parent.Snapshot)
		w.must(err)
		where := child.Where()
		if !slices.Contains(children, rbd.Child{PoolID: where.PoolID, Namespace: where.Namespace, ID: child.ID}) {
			w.failf("the parent of %s, %+v, does not know it but %v", child, parent, children)
		}
		name := child.Name
		child, err = image.Image{Pool: above, ID: parent.ID, Name: "a parent of " + name}.Read(ctx)
		w.must(err)
	}
	if deep > deepest || deep > 0 && deep > of.Marks.Volume.Depth {
		w.failf("%s has %d parents, its mark says %d", of, deep, of.Marks.Volume.Depth)
	}
}

// compare compares everything while nothing is under way.
func (w *world) compare() {
	w.glance()
	fresh := start(w.ceph)
	listed, _, err := fresh.List(w.t.Context(), "", 0)
	w.must(err)
	for _, v := range w.volumes {
		there := slices.ContainsFunc(listed, func(l Volume) bool { return l.Handle == v.handle })
		if there && v.standing == absent || !there && v.standing == present {
			w.failf("volume %s is listed: %t", v.handle, there)
		}
	}
	taken, _, err := fresh.Snapshots().List(w.t.Context(), "", 0)
	w.must(err)
	known := w.allSnapshots()
	for _, s := range known {
		if !slices.Contains(handlesIn(taken), s.taken.Handle) {
			w.failf("snapshot %s is not listed", s.taken.Handle)
		}
		w.checkSnapshot(s)
	}
	for _, one := range taken {
		if !w.mayBe(one.Handle, one.Group != volid.Group{}) {
			w.failf("snapshot %s is there, and was answered to nobody", one.Handle)
		}
	}
	for _, g := range w.groups {
		if g.isThere() {
			w.checkGroup(fresh, g)
		}
	}
}

// mayBe reports whether a snapshot may be there.
func (w *world) mayBe(handle volid.Snapshot, grouped bool) bool {
	for _, s := range w.snaps {
		if s.request == handle.Name && s.standing != absent && s.of.handle == handle.Image {
			return true
		}
	}
	for _, g := range w.groups {
		if g.request == handle.Name && grouped && g.standing != absent {
			return true
		}
	}
	return false
}

// checkSnapshot holds that a snapshot has what was in its volume.
func (w *world) checkSnapshot(s *aSnapshot) {
	got := w.readSnapshot(s)
	if !s.holds(got) {
		w.failf("snapshot %s holds %v, want one of %v (it was read: %v, strict %t)", s.taken.Handle, got, s.allowed, s.read, s.strict)
	}
	s.read = &got
}

func (w *world) checkGroup(fresh *driver, g *aGroup) {
	got, err := fresh.Snapshots().GetGroup(w.t.Context(), g.taken.Handle, nil, nobody)
	if err != nil || !slices.Equal(handlesIn(got.Snapshots), handlesIn(g.taken.Snapshots)) {
		w.failf("group snapshot %+v, error %v; want %+v", got, err, g.taken)
	}
	var held []content
	for _, member := range g.members {
		held = append(held, w.readSnapshot(member))
	}
	if g.moments != nil && !slices.ContainsFunc(g.moments, func(m []content) bool { return slices.Equal(m, held) }) {
		w.failf("group snapshot %s holds %v, which was there at no moment; want one of %v", g.request, held, g.moments)
	}
}

// readSnapshot reads through a clone that nobody else sees.
func (w *world) readSnapshot(s *aSnapshot) content {
	ctx := w.t.Context()
	handle := s.taken.Handle
	pool, err := w.ceph.Process().Pool(ctx, handle.Image.Pool, nobody)
	w.must(err)
	header, err := pool.Header(ctx, handle.ImageID)
	w.must(err)
	at := slices.IndexFunc(header.Snapshots, func(one rbd.Snapshot) bool { return one.Name == handle.Name && one.Kind == rbd.UserSnapshot })
	if at < 0 {
		w.failf("snapshot %s is not in its image", handle)
	}
	scratch := &aVolume{handle: volid.Image{Pool: handle.Image.Pool, Name: "scratch"}}
	id, layout := "scratch", header.Layout
	layout.Bytes = s.taken.Bytes
	w.must(pool.AddEntry(ctx, "scratch", id))
	w.must(pool.CreateHeader(ctx, id, layout, nil))
	w.must(pool.AddName(ctx, "scratch", id))
	w.must(pool.AttachParent(ctx, id, rbd.Parent{
		PoolID: pool.Where().PoolID, Namespace: pool.Where().Namespace, ID: handle.ImageID, Snapshot: header.Snapshots[at].ID, Overlap: s.taken.Bytes,
	}))
	got := w.read(scratch)
	w.must(pool.RemoveName(ctx, "scratch", id))
	w.must(pool.RemoveEntry(ctx, "scratch", id))
	w.must(pool.RemoveHeader(ctx, id))
	return got
}

// mostSweeps is how often the trash is looked through until it is empty. A parent goes with its last clone, so
// a chain of clones takes a look for each.
const mostSweeps = 15

// removeAll deletes everything, in any order, and holds that nothing is left.
func (w *world) removeAll() {
	w.notef("everything is deleted")
	w.calm = true
	var removals []func()
	listed, _, err := start(w.ceph).Snapshots().List(w.t.Context(), "", 0)
	w.must(err)
	groups := map[volid.Group]bool{{}: true}
	for _, one := range listed {
		if one.Group == (volid.Group{}) {
			removals = append(removals, func() { w.dropOne(&aSnapshot{taken: one}) })
		}
		if !groups[one.Group] {
			removals = append(removals, func() { w.ungroup(&aGroup{taken: snapshot.Group{Handle: one.Group}}) })
		}
		groups[one.Group] = true
	}
	for _, v := range w.volumes {
		if v.standing != absent {
			removals = append(removals, func() {
				w.detach(v)
				w.settleAll()
				w.remove(v)
			})
		}
	}
	w.rnd.Shuffle(len(removals), func(i, j int) { removals[i], removals[j] = removals[j], removals[i] })
	for _, remove := range removals {
		remove()
		w.settleAll()
	}
	w.removeOrphans()
	for range mostSweeps {
		if len(w.left()) == 0 {
			return
		}
		w.sweepAll()
	}
	w.failf("everything was deleted, and this is left:\n%s", strings.Join(w.left(), "\n"))
}

// noteOrphans notes what is left when a process sleeps until its image is deleted, makes one step more, and is
// killed before it looks again, or when that step is late: a snapshot without a mark, which
// nothing tells from one that a person took, and the object map of an image that was purged.
func (w *world) noteOrphans() {
	w.eachImage(func(found image.Image) {
		for _, one := range found.Header.Snapshots {
			if _, marked := found.Marks.Snapshots[one.Name]; !marked && one.Kind == rbd.UserSnapshot {
				w.orphans[found.ID+"@"+one.Name] = true
			}
		}
	})
	all := w.ceph.Dump()
	for _, line := range all {
		if place, id, is := strings.Cut(line, " rbd_object_map."); is && !slices.Contains(all, place+" rbd_header."+id) {
			w.orphans[line] = true
		}
	}
}

// orphaned reports whether there ever was such a snapshot without a mark.
func (w *world) orphaned(name string) bool {
	for key := range w.orphans {
		if strings.HasSuffix(key, "@"+name) {
			return true
		}
	}
	return false
}

// removeOrphans does what a person has to do with them.
func (w *world) removeOrphans() {
	w.eachImage(func(found image.Image) {
		for _, one := range found.Header.Snapshots {
			if _, marked := found.Marks.Snapshots[one.Name]; !marked && w.orphans[found.ID+"@"+one.Name] {
				w.must(found.Pool.RemoveSnapshot(w.t.Context(), found.ID, one.ID))
			}
		}
	})
}

// eachImage visits all images, those in the trash too.
func (w *world) eachImage(visit func(image.Image)) {
	ctx, process := w.t.Context(), w.ceph.Process()
	for _, at := range w.places() {
		pool, err := process.Pool(ctx, at, nobody)
		w.must(err)
		entries, err := pool.Entries(ctx, "", 1000)
		w.must(err)
		ids := map[string]string{}
		for _, one := range entries {
			ids[one.ID] = one.Name
		}
		trashed, err := pool.Trashed(ctx)
		w.must(err)
		for _, one := range trashed {
			ids[one.ID] = one.Name
		}
		for _, id := range sortedKeys(ids) {
			found, err := image.Image{Pool: pool, Name: ids[id], ID: id}.Read(ctx)
			w.must(err)
			visit(found)
		}
	}
}

// settleAll lets all requests end.
func (w *world) settleAll() {
	for len(w.live) > 0 {
		w.goOn(w.live[0])
	}
	for len(w.open) > 0 {
		w.finish(w.open[0])
	}
}

// sweepAll does what is done from time to time, and what is done after an hour.
func (w *world) sweepAll() {
	ctx, fresh := w.t.Context(), start(w.ceph)
	for _, at := range w.places() {
		pool, err := fresh.process.Pool(ctx, at, nobody)
		w.must(err)
		trashed, err := pool.Trashed(ctx)
		w.must(err)
		for _, one := range trashed {
			found, err := image.Image{Pool: pool, Name: one.Name, ID: one.ID}.Read(ctx)
			w.must(err)
			for _, name := range sortedKeys(found.Marks.Snapshots) {
				if found.Marks.Volume.State != image.Retired || found.Marks.Snapshots[name].For != "" {
					continue
				}
				now, err := found.Read(ctx)
				w.must(err)
				w.must(fresh.Snapshots().DropIntent(ctx, now, name, 0))
			}
		}
	}
	flattener := NewFlattener(FlattenOptions{})
	w.must(flattener.Sweep(ctx, fresh.Store))
	for len(flattener.queue) > 0 {
		w.must(fresh.flatten(ctx, <-flattener.queue))
	}
	purger := NewPurger(PurgeOptions{Grace: -1})
	purger.store = fresh.Store
	w.must(purger.Sweep(ctx))
	if err := purgeQueue(ctx, purger); err != nil && !fault.Is(err, fault.InUse) {
		w.must(err)
	}
}

func (w *world) places() []volid.Pool {
	places, err := w.ceph.Process().Pools(w.t.Context(), "main")
	w.must(err)
	return places
}

// left returns what is in all pools. A pair of an index that was built twice may be left: who builds it adds
// what he has read of an image, which may have gone since. It does no harm.
func (w *world) left() []string {
	var left []string
	for _, line := range w.ceph.Dump() {
		place, object, _ := strings.Cut(line, " ")
		isPair := strings.HasPrefix(object, "rbd_csi.index s/") || strings.HasPrefix(object, "rbd_csi.index g/")
		if object != "rbd_csi.index complete 1" && (!isPair || w.built[place] < 2) && !w.orphans[line] {
			left = append(left, line)
		}
	}
	return left
}

func handlesIn(all []snapshot.Snapshot) (handles []volid.Snapshot) {
	for _, one := range all {
		handles = append(handles, one.Handle)
	}
	return handles
}

func sortedKeys[V any](of map[string]V) []string { return slices.Sorted(maps.Keys(of)) }
