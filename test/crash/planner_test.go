package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
)

// A planner decides which requests are made, and what has to be true of what they make. It knows what
// will be there when all requests so far are answered.
type planner struct {
	seed    uint64
	random  *rand.Rand
	places  int
	deepest int

	number    int // of requests
	requests  []*request
	volumes   []*thing
	snapshots []*thing // ordinary ones
	groups    []*thing
	removal   *request // of the indices, nil before
}

func newPlanner(seed uint64, places, deepest int) *planner {
	return &planner{seed: seed, random: rand.New(rand.NewPCG(seed, 0)), places: places, deepest: deepest}
}

// plan decides so many requests, half of them before the indices are removed.
func (p *planner) plan(requests int) {
	for len(p.requests) <= requests/2 {
		p.step()
	}
	p.removeIndices()
	for len(p.requests) < requests {
		p.step()
	}
	p.list()
}

// step decides one request, if what it takes is there.
func (p *planner) step() {
	if len(p.volumes) < 3 {
		p.create()
		return
	}
	kinds := []struct {
		share  int
		decide func()
	}{
		{10, p.create}, {12, p.write}, {20, p.snapshot}, {18, p.restore}, {16, p.clone}, {6, p.group},
		{6, p.deleteSnapshot}, {6, p.deleteVolume}, {2, p.deleteGroup}, {2, p.takeTaken}, {2, p.list},
	}
	all := 0
	for _, kind := range kinds {
		all += kind.share
	}
	drawn := p.random.IntN(all)
	for _, kind := range kinds {
		if drawn -= kind.share; drawn < 0 {
			kind.decide()
			return
		}
	}
}

// add adds a request that needs some things as they are.
func (p *planner) add(what string, do func(context.Context, *world, asker) error, needs ...*thing) *request {
	p.number++
	number := p.number
	r := &request{
		number: number, what: what, do: do, done: make(chan struct{}),
		asker: asker{random: rand.New(rand.NewPCG(p.seed, 1+uint64(number))), twice: p.random.IntN(4) == 0},
	}
	for _, one := range needs {
		r.after = append(r.after, one.made)
		one.users = append(one.users, r)
	}
	if p.removal != nil {
		r.after = append(r.after, p.removal)
	}
	p.requests = append(p.requests, r)
	return r
}

// change adds a request that changes or ends things, so that it waits for all that need them as they are.
func (p *planner) change(what string, do func(context.Context, *world, asker) error, changed ...*thing) *request {
	r := p.add(what, do)
	for _, one := range changed {
		r.after = append(append(r.after, one.made), one.users...)
		one.made, one.users = r, nil
	}
	return r
}

func pick[T any](p *planner, from []T) T { return from[p.random.IntN(len(from))] }

// takeOut takes a thing out of a list.
func takeOut(p *planner, from *[]*thing) *thing {
	i := p.random.IntN(len(*from))
	one := (*from)[i]
	*from = slices.Delete(*from, i, i+1)
	return one
}

func (p *planner) volume(place int, c content, depth int) *thing {
	return &thing{name: "pvc-" + uuid(p.random), place: place, content: c, depth: depth}
}

func (p *planner) block(c content) content {
	return c.with(pick(p, blockOffsets), p.random.Uint64())
}

func (p *planner) create() {
	volume := p.volume(p.random.IntN(p.places), p.block(content{bytes: smallBytes}), 0)
	volume.made = p.add("create "+volume.name, create(volume))
	p.volumes = append(p.volumes, volume)
}

func (p *planner) write() {
	volume := pick(p, p.volumes)
	volume.content = p.block(volume.content)
	p.change("write "+volume.name, write(volume), volume)
}

func (p *planner) snapshotOf(volume *thing, name string) *thing {
	return &thing{name: name, place: volume.place, content: volume.content, depth: volume.depth, sources: []*thing{volume}}
}

func (p *planner) snapshot() {
	volume := pick(p, p.volumes)
	taken := p.snapshotOf(volume, "snapshot-"+uuid(p.random))
	taken.made = p.add("take "+taken.name+" of "+volume.name, take(taken), volume)
	p.snapshots = append(p.snapshots, taken)
}

func (p *planner) restore() {
	sources := slices.Clone(p.snapshots)
	for _, group := range p.groups {
		sources = append(sources, group.members...)
	}
	if len(sources) == 0 {
		return
	}
	p.restoreOf(pick(p, sources))
}

func (p *planner) restoreOf(snapshot *thing) {
	if snapshot.depth >= p.deepest {
		return
	}
	volume := p.copy(snapshot)
	volume.made = p.add("restore "+volume.name+" of "+snapshot.name, restore(snapshot, volume), snapshot)
	p.volumes = append(p.volumes, volume)
}

// copy decides on a copy: of the same size or larger, in the same place or another.
func (p *planner) copy(source *thing) *thing {
	place, c := source.place, source.content
	if p.random.IntN(3) == 0 {
		place = p.random.IntN(p.places)
	}
	if p.random.IntN(3) == 0 {
		c = c.grown(largeBytes)
	}
	copied := p.volume(place, c, source.depth+1)
	copied.source = source
	return copied
}

func (p *planner) clone() {
	source := pick(p, p.volumes)
	if deep := pick(p, p.volumes); deep.depth > source.depth {
		source = deep // chains are what takes several steps to come about
	}
	if source.depth >= p.deepest {
		return
	}
	volume := p.copy(source)
	volume.made = p.add("clone "+volume.name+" of "+source.name, clone(source, volume), source)
	p.volumes = append(p.volumes, volume)
}

func (p *planner) group() {
	place := pick(p, p.volumes).place
	var near []*thing
	for _, i := range p.random.Perm(len(p.volumes)) {
		if p.volumes[i].place == place {
			near = append(near, p.volumes[i])
		}
	}
	group := &thing{name: "groupsnapshot-" + uuid(p.random), place: place, sources: near[:min(3, len(near))]}
	for i, source := range group.sources {
		group.members = append(group.members, p.snapshotOf(source, fmt.Sprintf("member %d of %s", i, group.name)))
	}
	group.made = p.add("take "+group.name, takeGroup(group), group.sources...)
	for _, one := range group.members {
		one.made = group.made
	}
	p.groups = append(p.groups, group)
}

func (p *planner) deleteVolume() {
	volume := takeOut(p, &p.volumes)
	p.change("delete "+volume.name, deleteVolume(volume), volume)
}

func (p *planner) deleteSnapshot() {
	if len(p.snapshots) == 0 {
		return
	}
	snapshot := takeOut(p, &p.snapshots)
	p.change("delete "+snapshot.name, deleteSnapshot(snapshot), snapshot)
}

func (p *planner) deleteGroup() {
	if len(p.groups) == 0 {
		return
	}
	group := takeOut(p, &p.groups)
	p.change("delete "+group.name, deleteGroup(group), append([]*thing{group}, group.members...)...)
}

// takeTaken asks for a name that was given away.
func (p *planner) takeTaken() {
	for _, i := range p.random.Perm(len(p.snapshots)) {
		snapshot := p.snapshots[i]
		for _, j := range p.random.Perm(len(p.volumes)) {
			other := p.volumes[j]
			if other.place != snapshot.place || other == snapshot.sources[0] {
				continue
			}
			p.add("take "+snapshot.name+" of "+other.name+" too", takeTaken(snapshot, other), snapshot, other)
			return
		}
	}
}

// removeIndices removes them at a moment when no request is under way: a name that is claimed and not yet
// marked in the image is only there. All later requests wait for it.
func (p *planner) removeIndices() {
	earlier := slices.Clone(p.requests)
	p.removal = p.add("remove the indices", removeIndices)
	p.removal.after = earlier
	p.takeTaken()
	p.takeTaken()
	p.list()
}

// list asks for lists, which have to hold what is there all the time.
func (p *planner) list() {
	volumes, snapshots := slices.Clone(p.volumes), p.allSnapshots()
	p.add("list", list(volumes, snapshots), append(volumes, snapshots...)...)
}

func (p *planner) allSnapshots() []*thing {
	all := slices.Clone(p.snapshots)
	for _, group := range p.groups {
		all = append(all, group.members...)
	}
	return all
}

// deleteAllBut deletes everything in any order but for one of so many of each kind, or of all where
// that is 0. The snapshots that stay are restored, which shows what they hold.
func (p *planner) deleteAllBut(part int) {
	var ends []func()
	for _, kind := range []struct {
		there int
		end   func()
	}{{len(p.volumes), p.deleteVolume}, {len(p.snapshots), p.deleteSnapshot}, {len(p.groups), p.deleteGroup}} {
		stay := 0
		if part > 0 {
			stay = (kind.there + part - 1) / part
		}
		for range kind.there - stay {
			ends = append(ends, kind.end)
		}
	}
	p.random.Shuffle(len(ends), func(i, j int) { ends[i], ends[j] = ends[j], ends[i] })
	for _, end := range ends {
		end()
	}
	for _, snapshot := range p.allSnapshots() {
		p.restoreOf(snapshot)
	}
}

// deleteRest forgets the requests so far and deletes what is left.
func (p *planner) deleteRest() []*request {
	p.requests = nil
	p.deleteAllBut(0)
	return p.requests
}
