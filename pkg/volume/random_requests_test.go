package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// act begins a request, or does what people do.
func (w *world) act() {
	all := []struct {
		often int
		do    func()
	}{
		{12, w.writeSome}, {12, w.createSome}, {12, w.takeSome}, {8, w.removeSome}, {7, w.dropSome},
		{5, w.groupSome}, {4, w.ungroupSome}, {4, w.attachSome}, {4, w.detachSome}, {3, w.expandSome}, {4, w.formatSome},
		{3, w.sweep}, {3, w.purge}, {2, w.flatten}, {1, w.removeIndex},
	}
	sum := 0
	for _, one := range all {
		sum += one.often
	}
	at := w.rnd.IntN(sum)
	for _, one := range all {
		if at -= one.often; at < 0 {
			one.do()
			break
		}
	}
	w.step++
}

// pick returns one of those that are fit.
func pick[T any](w *world, all []*T, fit func(*T) bool) *T {
	some := slices.DeleteFunc(slices.Clone(all), func(one *T) bool { return !fit(one) })
	if len(some) == 0 {
		return nil
	}
	return some[w.rnd.IntN(len(some))]
}

// there returns a volume that certainly is there.
func (w *world) there() *aVolume {
	return pick(w, w.volumes, func(v *aVolume) bool { return v.isThere() })
}

// writeSome is what a user does.
func (w *world) writeSome() {
	v := w.there()
	if v == nil {
		return
	}
	w.writes++
	v.text = fmt.Sprintf("%s-%05d", v.handle.Name, w.writes)
	w.step++
	w.must(w.ceph.WriteAt(v.handle, 0, v.text))
	w.must(w.ceph.WriteAt(v.handle, v.least-int64(len(v.text)), v.text))
	v.note(w.step, true)
	w.notef("%s is written: %s", v.handle, v.text)
}

func (w *world) createSome() {
	v := pick(w, w.volumes, func(v *aVolume) bool { return v.busy == nil && v.standing != present })
	if v == nil {
		return
	}
	if v.standing == absent {
		if !v.free() {
			return
		}
		v.since = w.step
		w.choose(v)
	}
	what := fmt.Sprintf("create %s of %d", v.handle, v.bytes)
	if v.source != nil {
		what += " from " + v.source.handle()
	}
	spec := v.spec()
	w.chain(chain{
		what: what, on: &v.subject, makes: true,
		do: func(ctx context.Context, d *driver) (any, error) {
			return d.Create(ctx, spec, nobody)
		},
		final: func(begun int, answer any, err error) { w.created(v, begun, answer, err) },
	})
}

// choose says what a volume is to be made of.
func (w *world) choose(v *aVolume) {
	v.bytes, v.source, v.from, v.of = int64(1+w.rnd.IntN(3))*block, nil, nil, nil
	v.content, v.refused = content{}, false
	switch w.rnd.IntN(5) {
	case 0, 1:
		if v.of = w.snapshotThere(); v.of != nil {
			handle := v.of.taken.Handle
			v.source = &Source{Snapshot: &handle}
		}
	case 2, 3:
		if v.from = w.there(); v.from != nil {
			v.source = &Source{Volume: &v.from.handle}
		}
	}
	v.most = max(v.most, v.bytes)
	if v.from != nil {
		v.most = max(v.most, v.from.most)
	}
	if v.of != nil {
		v.most = max(v.most, v.of.taken.Bytes)
	}
}

// snapshotThere returns a snapshot that certainly is there, also one of a group.
func (w *world) snapshotThere() *aSnapshot {
	all := slices.Clone(w.snaps)
	for _, g := range w.groups {
		if g.isThere() {
			all = append(all, g.members...)
		}
	}
	return pick(w, all, func(s *aSnapshot) bool { return s.isThere() })
}

// created takes note of the answer to a create.
func (w *world) created(v *aVolume, begun int, answer any, err error) {
	if err != nil {
		v.odd = true
		gone := v.of != nil && !v.of.steadyFrom(v.since) || v.from != nil && !v.from.steadyFrom(v.since)
		if !fault.Is(err, fault.NotFound) || !gone {
			w.failf("create %s: %v", v.handle, err)
		}
		if v.settle(false, begun, w.step); v.standing == absent {
			v.gone(w.step)
		}
		return
	}
	if v.from != nil {
		v.most = max(v.most, v.from.most) // it may have grown meanwhile
	}
	if v.of != nil {
		v.most = max(v.most, v.of.taken.Bytes, v.of.of.most) // another one may have got its name since
	}
	got := answer.(Volume)
	if v.settle(true, begun, w.step); v.standing != present {
		v.note(w.step, false)
		return
	}
	if got.Handle != v.handle || got.Bytes < v.bytes || got.Bytes > v.most {
		w.failf("created %+v, want %s of %d to %d bytes", got, v.handle, v.bytes, v.most)
	}
	v.least, v.id = got.Bytes, w.idOf(v)
	held := w.read(v)
	w.checkCopy(v, held, got.Bytes)
	v.content = held
	v.note(w.step, true)
}

// checkCopy holds that a new volume has what its source had.
func (w *world) checkCopy(v *aVolume, got content, bytes int64) {
	ok := got == content{}
	var want any = "nothing"
	switch {
	case v.of != nil:
		ok, want = v.of.holds(got), v.of.allowed
		if v.of.read != nil {
			want = *v.of.read
		}
		switch same := v.of.steadyFrom(v.since); {
		case !same: // another one may have got its name since
			ok, want = v.of.of.everHeld(got.text, mostAncestors), v.of.of.texts
		case ok && v.of.strict:
			v.of.read = &got
		}
		if behind := v.of.taken.Bytes; bytes > behind {
			text, err := w.ceph.ReadAt(v.handle, behind, 16)
			w.must(err)
			if strings.Trim(text, "\x00") != "" {
				w.failf("%s holds %q behind the end of its source", v.handle, text)
			}
		}
	case v.from != nil:
		held, certain := v.from.during(v.since, w.step)
		ok, want = slices.Contains(held, got), held
		if !certain {
			ok, want = v.from.everHeld(got.text, mostAncestors), v.from.texts
		}
	}
	if !ok && (!v.refused || !v.everHeld(got.text, mostAncestors)) {
		w.failf("new volume %s holds %v, want one of %v", v.handle, got, want)
	}
}

// read returns what is in a volume.
func (w *world) read(v *aVolume) content {
	text, err := w.ceph.ReadAt(v.handle, 0, 7)
	w.must(err)
	mark, err := w.ceph.ReadAt(v.handle, params4k, 2)
	w.must(err)
	return content{text: strings.Trim(text, "\x00"), format: mark == "fs"}
}

const params4k = 4096 // where the filesystem is

// idOf returns the ID that a volume has.
func (w *world) idOf(v *aVolume) string {
	pool, err := w.ceph.Process().Pool(w.t.Context(), v.handle.Pool, nobody)
	w.must(err)
	id, err := pool.FindName(w.t.Context(), v.handle.Name)
	w.must(err)
	return id
}

func (w *world) removeSome() {
	v := pick(w, w.volumes, func(v *aVolume) bool { return v.busy == nil && (v.standing == unsure || v.standing == present) })
	if v == nil || v.node.standing != absent && !w.one(5) {
		return
	}
	w.remove(v)
}

func (w *world) remove(v *aVolume) {
	v.note(w.step, false)
	was := v.standing
	w.chain(chain{
		what: "delete " + v.handle.String(), on: &v.subject,
		do: func(ctx context.Context, d *driver) (any, error) {
			return nil, d.Delete(ctx, v.handle, nobody)
		},
		final: func(begun int, _ any, err error) { w.removed(v, was, begun, err) },
	})
}

func (w *world) removed(v *aVolume, was standing, begun int, err error) {
	if err == nil {
		v.settle(false, begun, w.step)
		v.gone(w.step)
		return
	}
	if !fault.Is(err, fault.InUse) || v.node.standing == absent && v.node.free() && v.node.steady < v.steady {
		w.failf("delete %s: %v", v.handle, err)
	}
	// It is refused while the volume is attached. Who asked before may still remove it.
	if was == present && v.making+v.removing == 0 {
		v.standing = present
		v.note(w.step, true)
		return
	}
	v.standing, v.refused = unsure, true
}

func (w *world) takeSome() {
	s := pick(w, w.snaps, func(s *aSnapshot) bool { return s.busy == nil && s.standing != present })
	if s == nil {
		return
	}
	if s.standing == absent {
		v := w.there()
		if v == nil || !s.free() {
			return
		}
		// The volumes that were made of the earlier one go on with that.
		next := &aSnapshot{request: s.request, of: v}
		next.name, next.since, next.odd = s.name, w.step, s.odd
		w.snaps[slices.Index(w.snaps, s)] = next
		s = next
	}
	spec := snapshot.CreateSpec{Source: s.of.handle, Request: s.request}
	w.chain(chain{
		what: fmt.Sprintf("snapshot %s of %s", s.request, s.of.handle), on: &s.subject, makes: true,
		do: func(ctx context.Context, d *driver) (any, error) {
			return d.Snapshots().Create(ctx, spec, nobody)
		},
		final: func(begun int, answer any, err error) { w.taken(s, begun, answer, err) },
	})
}

func (w *world) taken(s *aSnapshot, begun int, answer any, err error) {
	if err != nil {
		allowed := (fault.Is(err, fault.NotFound) || fault.Is(err, fault.Exists)) && !s.of.steadyFrom(s.since) || fault.Is(err, fault.Exists) && (s.odd || s.making > 0 || w.orphaned(s.request))
		if s.odd = true; !allowed {
			w.failf("snapshot %s of %s: %v", s.request, s.of.handle, err)
		}
		if s.settle(false, begun, w.step); fault.Is(err, fault.Exists) {
			s.standing = unsure // the name may be that of a snapshot of an earlier volume of the same name
		}
		return
	}
	got := answer.(snapshot.Snapshot)
	if got.Source != s.of.handle || got.Bytes > s.of.most || got.Group != (volid.Group{}) {
		w.failf("snapshot %+v, want one of %s, of at most %d bytes", got, s.of.handle, s.of.most)
	}
	again := s.taken.Handle != volid.Snapshot{} // it was removed, or may have been, and is another one now
	s.taken, s.read = got, nil
	s.allowed, s.strict = s.of.during(s.since, w.step)
	s.strict = s.strict && !again
	s.settle(true, begun, w.step)
}

func (w *world) dropSome() {
	s := pick(w, w.snaps, func(s *aSnapshot) bool {
		return s.busy == nil && s.standing != absent && s.taken.Handle != volid.Snapshot{}
	})
	if s != nil {
		w.dropOne(s)
	}
}

func (w *world) dropOne(s *aSnapshot) {
	handle := s.taken.Handle
	w.chain(chain{
		what: "delete snapshot " + handle.String(), on: &s.subject,
		do: func(ctx context.Context, d *driver) (any, error) {
			return nil, d.Snapshots().Delete(ctx, handle, nobody)
		},
		final: func(begun int, _ any, err error) {
			if fault.Is(err, fault.InUse) && (s.making > 0 || w.orphaned(handle.Name)) {
				s.standing = unsure
				return
			}
			w.must(err)
			s.settle(false, begun, w.step)
		},
	})
}

func (w *world) groupSome() {
	g := pick(w, w.groups, func(g *aGroup) bool { return g.busy == nil && g.standing != present })
	if g == nil {
		return
	}
	if g.standing == absent {
		some := slices.DeleteFunc(slices.Clone(w.volumes), func(v *aVolume) bool { return !v.isThere() || v.handle.Pool != kube })
		if len(some) < 2 || !g.free() {
			return
		}
		w.rnd.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
		g.of, g.since, g.taken, g.members = some[:2+w.rnd.IntN(min(2, len(some)-1))], w.step, snapshot.Group{}, nil
	}
	spec := snapshot.GroupSpec{Request: g.request}
	for _, v := range g.of {
		spec.Sources = append(spec.Sources, v.handle)
	}
	w.chain(chain{
		what: fmt.Sprintf("group snapshot %s of %v", g.request, spec.Sources), on: &g.subject, makes: true,
		do: func(ctx context.Context, d *driver) (any, error) {
			return d.Snapshots().CreateGroup(ctx, spec, nobody)
		},
		final: func(begun int, answer any, err error) { w.grouped(g, begun, answer, err) },
	})
}

func (w *world) grouped(g *aGroup, begun int, answer any, err error) {
	if err != nil {
		gone := slices.ContainsFunc(g.of, func(v *aVolume) bool { return !v.steadyFrom(g.since) })
		// A group that is being removed has lost members, and its name until it is removed.
		exists := fault.Is(err, fault.Exists)
		allowed := fault.Is(err, fault.NotFound) && gone || exists && (gone || g.odd || g.standing == unsure)
		if g.odd = true; !allowed {
			w.failf("group snapshot %s: %v", g.request, err)
		}
		if g.settle(false, begun, w.step); exists {
			g.standing = unsure // the name may be that of a group of earlier volumes of the same names
		}
		return
	}
	got := answer.(snapshot.Group)
	if len(got.Snapshots) != len(g.of) {
		w.failf("group snapshot %+v, want %d members", got, len(g.of))
	}
	g.taken, g.members = got, nil
	g.moments = moments(g.of, g.since, w.step)
	for _, v := range g.of {
		at := slices.IndexFunc(got.Snapshots, func(s snapshot.Snapshot) bool { return s.Source == v.handle })
		if at < 0 {
			w.failf("group snapshot %+v, want a snapshot of %s", got, v.handle)
		}
		member := &aSnapshot{request: g.request, of: v, taken: got.Snapshots[at]}
		member.allowed, member.strict = v.during(g.since, w.step)
		g.members = append(g.members, member)
	}
	g.settle(true, begun, w.step)
	for _, member := range g.members {
		member.standing, member.steady = g.standing, w.step
	}
}

func (w *world) ungroupSome() {
	g := pick(w, w.groups, func(g *aGroup) bool {
		return g.busy == nil && g.standing != absent && g.taken.Handle != volid.Group{}
	})
	if g != nil {
		w.ungroup(g)
	}
}

func (w *world) ungroup(g *aGroup) {
	var given []volid.Snapshot
	for _, member := range g.members {
		member.standing = unsure
		given = append(given, member.taken.Handle)
	}
	handle := g.taken.Handle
	w.chain(chain{
		what: "delete group snapshot " + handle.String(), on: &g.subject,
		do: func(ctx context.Context, d *driver) (any, error) {
			return nil, d.Snapshots().DeleteGroup(ctx, handle, given, nobody)
		},
		final: func(begun int, _ any, err error) {
			w.must(err)
			g.settle(false, begun, w.step)
		},
	})
}

func (w *world) attachSome() {
	v := pick(w, w.volumes, func(v *aVolume) bool { return v.isThere() && v.node.busy == nil && v.node.standing == absent })
	if v == nil || !v.node.free() {
		return
	}
	node := fmt.Sprintf("node-%d", w.rnd.IntN(3))
	v.node.steady = w.step
	v.attached = node
	w.chain(chain{
		what: fmt.Sprintf("attach %s to %s", v.handle, node), on: &v.node, makes: true,
		do: func(ctx context.Context, d *driver) (any, error) {
			return d.Attach(ctx, v.handle, AttachSpec{Node: node, Mode: "w", Single: true}, nobody)
		},
		final: func(begun int, _ any, err error) {
			if err != nil && (!fault.Is(err, fault.NotFound) || v.steadyFrom(begun)) {
				w.failf("attach %s to %s: %v", v.handle, node, err)
			}
			v.node.settle(err == nil, begun, w.step)
			if err == nil && !v.isThere() {
				v.node.standing = unsure
			}
		},
	})
}

func (w *world) detachSome() {
	if v := pick(w, w.volumes, func(v *aVolume) bool { return v.node.busy == nil && v.node.standing != absent }); v != nil {
		w.detach(v)
	}
}

func (w *world) detach(v *aVolume) {
	node := v.attached
	w.chain(chain{
		what: fmt.Sprintf("detach %s from %s", v.handle, node), on: &v.node,
		do: func(ctx context.Context, d *driver) (any, error) {
			return nil, d.Detach(ctx, v.handle, node, nobody)
		},
		final: func(begun int, _ any, err error) {
			w.must(err)
			v.node.settle(false, begun, w.step)
			v.node.steady = w.step
		},
	})
}

func (w *world) expandSome() {
	v := pick(w, w.volumes, func(v *aVolume) bool { return v.isThere() && v.expand.free() })
	if v == nil {
		return
	}
	to := v.least + block*int64(w.rnd.IntN(3))
	v.most = max(v.most, to)
	w.chain(chain{
		what: fmt.Sprintf("expand %s to %d", v.handle, to), on: &v.expand, makes: true,
		do: func(ctx context.Context, d *driver) (any, error) {
			return d.Expand(ctx, v.handle, ExpandSpec{To: func(bytes, most int64) (int64, error) { return max(bytes, to), nil }}, nobody)
		},
		final: func(begun int, answer any, err error) {
			steady := v.steadyFrom(begun)
			if err != nil && (!fault.Is(err, fault.NotFound) || steady) {
				w.failf("expand %s: %v", v.handle, err)
			}
			if err == nil && steady {
				if got := answer.(Volume); got.Bytes < to || got.Bytes > v.most {
					w.failf("expanded %+v, want %d to %d bytes", got, to, v.most)
				}
				v.least = max(v.least, to)
			}
		},
	})
}

// formatSome does what a node does with a volume that has no filesystem.
func (w *world) formatSome() {
	v := pick(w, w.volumes, func(v *aVolume) bool { return v.isThere() && !v.format && !v.formatted && v.mkfs.free() })
	if v == nil {
		return
	}
	w.chain(chain{
		what: "mkfs on " + v.handle.String(), on: &v.mkfs, makes: true,
		do: func(ctx context.Context, d *driver) (any, error) {
			return nil, image.Repeat("mkfs", func() error { return w.mkfs(ctx, d, v) })
		},
		final: func(begun int, _ any, err error) {
			steady := v.steadyFrom(begun)
			if err != nil && !errors.Is(err, errGone) && (!fault.Is(err, fault.NotFound) || steady) {
				w.failf("mkfs on %s: %v", v.handle, err)
			}
			v.formatted = v.formatted || err == nil && steady
		},
	})
}

func (w *world) mkfs(ctx context.Context, d *driver, v *aVolume) error {
	found, err := image.Find(ctx, d.clusters, v.handle, nobody)
	if err != nil {
		return err
	}
	mark, begun := found.Format()
	if mark.Done {
		return nil
	}
	if !begun {
		mark = image.Format{Type: "ext4", UUID: rbd.NewID()}
		if found, err = found.RecordFormat(ctx, mark); err != nil {
			return err
		}
	}
	if d.process.Killed() {
		return fault.Unavailable
	}
	if !v.isThere() || v.id != found.ID {
		return fmt.Errorf("mkfs: %w: %w", fault.Invalid, errGone)
	}
	w.must(w.ceph.WriteAt(v.handle, params4k, "fs"))
	v.format = true
	v.note(w.step, true)
	mark.Done = true
	_, err = found.RecordFormat(ctx, mark)
	return err
}

// sweep is what a purger does that begins.
func (w *world) sweep() {
	w.chain(chain{what: "look through the trash", do: func(ctx context.Context, d *driver) (any, error) {
		purger := NewPurger(PurgeOptions{Grace: -1})
		purger.store = d.Store
		return nil, errors.Join(purger.Sweep(ctx), purgeQueue(ctx, purger))
	}})
}

func purgeQueue(ctx context.Context, purger *Purger) error {
	var failed []error
	for purger.Waiting() > 0 {
		removed, _ := purger.next()
		failed = append(failed, purger.purge(ctx, removed))
		purger.finish(removed)
	}
	return errors.Join(failed...)
}

// purge is what a purger does with what its process has deleted.
func (w *world) purge() {
	w.chain(chain{what: "purge", do: func(ctx context.Context, d *driver) (any, error) {
		d.mu.Lock()
		removed := d.removed
		d.removed = nil
		d.mu.Unlock()
		purger := NewPurger(PurgeOptions{})
		purger.store = d.Store
		for _, one := range removed {
			purger.Add(one)
		}
		return nil, purgeQueue(ctx, purger)
	}})
}

// flatten is what a flattener does.
func (w *world) flatten() {
	w.chain(chain{what: "flatten", do: func(ctx context.Context, d *driver) (any, error) {
		flattener := NewFlattener(FlattenOptions{})
		failed := []error{flattener.Sweep(ctx, d.Store)}
		for len(flattener.queue) > 0 {
			failed = append(failed, d.flatten(ctx, <-flattener.queue))
		}
		return nil, errors.Join(failed...)
	}})
}

// removeIndex is what a person does.
func (w *world) removeIndex() {
	at := w.volumes[w.rnd.IntN(len(w.volumes))].handle.Pool
	w.notef("the index of %s is removed by hand", at)
	w.must(w.ceph.RemoveIndex(at))
	w.step++
}
