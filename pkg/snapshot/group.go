package snapshot

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A group snapshot is a number of ordinary snapshots, all of one moment, each with a
// mark that names the group and all members. It is no group of RBD's.
//
//	ChangeIndex      the group's name and those of all members, in one operation
//	ChangeMeta       a mark on each member; that of the first one tells the attempt
//	RemoveSnapshot   what an earlier attempt left: it may be of another moment
//	TakeSnapshots    all of one moment, or a failure
//	ChangeMeta       on each mark: the group is whole
//
// The first member is the one with the lowest ID, whatever the order in the request. Its
// mark decides between two processes: who begins an attempt replaces it, and who
// ends one replaces it too, so an attempt that was overtaken cannot call the snapshots of
// another one whole. From then on nothing but a deletion touches the snapshots. A group
// that is not whole was never answered to anybody, and whoever meets it may go on with it
// or remove it.

// MostMembers is how many volumes a group can have: each takes a thread of librbd's while
// the writers of all are held up.
const MostMembers = 64

// A GroupSpec asks for snapshots of several volumes at one moment.
type GroupSpec struct {
	Request string // the request's name
	Sources []volid.Image
}

// A Group is what the services answer about a group snapshot.
type Group struct {
	Handle    volid.Group
	Time      time.Time
	Snapshots []Snapshot // in the order of their sources' handles
}

// A plan is a GroupSpec that can be carried out.
type plan struct {
	handle  volid.Group
	request string
	parts   []wanted
}

// A wanted is a snapshot to be taken for a group.
type wanted struct {
	source   volid.Image
	snapshot string // the RBD snapshot's name
}

// CreateGroup makes sure that the group snapshot is there and returns it. For each member it
// costs five operations beside the snapshot, and two when it is there; and two for the index.
//
// It returns fault.Invalid for a group without or with too many volumes, with one twice or with
// some of different pools, fault.NotFound when a volume is not there, fault.Unsupported when one
// lacks exclusive-lock, fault.Exhausted as Create does, fault.Exists when the name was given to
// other volumes' snapshots or a snapshot of the group was deleted since, and
// fault.Unavailable when writers did not let go of their volumes for a moment. After a failure
// there is no snapshot of it, unless Ceph did not answer; a repeat begins
// anew then.
func (s *Store) CreateGroup(ctx context.Context, spec GroupSpec, as params.Credentials) (Group, error) {
	what := "create group snapshot " + spec.Request
	p, err := planned(spec)
	if err != nil {
		return Group{}, fmt.Errorf("%s: %w", what, err)
	}
	var made Group
	pool, err := s.clusters.Pool(ctx, p.handle.Pool, as)
	if err == nil {
		err = image.Repeat("create", func() error {
			made, err = s.createGroup(ctx, pool, p)
			return err
		})
	}
	if err != nil {
		return Group{}, fmt.Errorf("%s: %w", what, err)
	}
	return made, nil
}

// planned checks a spec and finds the names.
func planned(spec GroupSpec) (plan, error) {
	if len(spec.Sources) == 0 || len(spec.Sources) > MostMembers {
		return plan{}, fmt.Errorf("%d volumes, where 1 to %d are possible: %w", len(spec.Sources), MostMembers, fault.Invalid)
	}
	pool := spec.Sources[0].Pool
	name, err := volid.GroupName(pool, spec.Request)
	if err != nil {
		return plan{}, err
	}
	p := plan{handle: volid.Group{Pool: pool, Name: name}, request: spec.Request}
	for i, source := range spec.Sources {
		if source.Pool != pool {
			return plan{}, fmt.Errorf("volumes %s and %s are in different pools, and a group snapshot is of one: %w", spec.Sources[0], source, fault.Invalid)
		}
		if slices.Contains(spec.Sources[:i], source) {
			return plan{}, fmt.Errorf("volume %s is named twice: %w", source, fault.Invalid)
		}
		snapshot, err := volid.SnapshotName(source, spec.Request)
		if err != nil {
			return plan{}, err
		}
		p.parts = append(p.parts, wanted{source: source, snapshot: snapshot})
	}
	return p, nil
}

func (s *Store) createGroup(ctx context.Context, pool rbd.Pool, p plan) (Group, error) {
	parts, err := s.gather(ctx, pool, p)
	if err != nil {
		return Group{}, s.giveUp(ctx, pool, p, err)
	}
	whole, err := s.whole(ctx, pool, p, parts)
	if err == nil && !whole {
		err = s.prepare(ctx, pool, p, parts)
	}
	switch {
	case fault.Is(err, fault.NotFound):
		return Group{}, s.giveUp(ctx, pool, p, err)
	case fault.Is(err, fault.Exists):
		return Group{}, unlessLeft(err, s.yield(ctx, p, parts))
	case err != nil:
		return Group{}, err
	}
	if !whole {
		if parts, err = takeTogether(ctx, pool, p, parts); err != nil {
			return Group{}, err
		}
	}
	if err := prove(ctx, parts); err != nil {
		return Group{}, err
	}
	if err := s.confirm(ctx, pool, p, parts); err != nil {
		return Group{}, err
	}
	return answerGroup(p.handle, parts)
}

// gather finds the volumes, in the order of their IDs. One that was deleted since is found
// by what the index knows of the group.
func (s *Store) gather(ctx context.Context, pool rbd.Pool, p plan) ([]part, error) {
	var parts []part
	for _, one := range p.parts {
		found, err := image.FindIn(ctx, pool, one.source.Name)
		if errors.Is(err, fault.NotFound) {
			var there bool
			var unread error
			if found, there, unread = s.deleted(ctx, pool, p.handle, one); unread != nil {
				return nil, unread
			} else if there {
				err = nil
			}
		}
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", one.source, err)
		}
		parts = append(parts, part{Image: found, snapshot: one.snapshot})
	}
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.ID, b.ID) })
	return parts, nil
}

// deleted returns the image of a deleted volume that is a member of the group.
func (s *Store) deleted(ctx context.Context, pool rbd.Pool, group volid.Group, one wanted) (image.Image, bool, error) {
	_, known, err := s.record(ctx, pool, group)
	if err != nil {
		return image.Image{}, false, err
	}
	members, err := membersOf(ctx, pool, group, known.Members)
	for _, member := range members {
		if member.Name == one.source.Name && member.snapshot == one.snapshot {
			return member.Image, true, err
		}
	}
	return image.Image{}, false, err
}

// giveUp removes what an interrupted attempt left of a group that cannot be taken because
// a volume has gone: nobody could ever ask for it again.
func (s *Store) giveUp(ctx context.Context, pool rbd.Pool, p plan, cause error) error {
	if !fault.Is(cause, fault.NotFound) {
		return cause
	}
	err := image.Repeat("remove what there is of it", func() error {
		value, known, err := s.record(ctx, pool, p.handle)
		if err != nil || value == "" {
			return err
		}
		if value, err = announceEnd(ctx, pool, p.handle, value, known); err != nil {
			return err
		}
		if err := s.free(ctx, pool, p.handle, known.Members); err != nil {
			return err
		}
		return unlist(ctx, pool, p.handle, value, known)
	})
	if fault.Is(err, fault.Exists) {
		return s.stands(ctx, pool, p, cause)
	}
	return unlessLeft(cause, err)
}

// stands returns why a group cannot be taken whose name has one that is whole, and stays until somebody
// deletes it. If it has just been taken by a process with the same request, it is the answer to this one too.
func (s *Store) stands(ctx context.Context, pool rbd.Pool, p plan, cause error) error {
	if _, err := s.gather(ctx, pool, p); err != nil {
		return cause
	}
	return fmt.Errorf("another process was at it: %w: %w", fault.Superseded, cause)
}

// yield removes what an earlier attempt left of a group whose name another one has got.
func (s *Store) yield(ctx context.Context, p plan, parts []part) error {
	var own []part
	for _, one := range parts {
		mark, marked := one.mark()
		if !marked || !belongs(p.handle, mark) || !slices.Equal(mark.Members, idsOf(parts)) {
			continue
		}
		if mark.Whole {
			return nil // a member was deleted, and these are left
		}
		own = append(own, one)
	}
	return s.removeAll(ctx, p.handle, own)
}

// whole reports whether all snapshots are there and of one moment.
func (s *Store) whole(ctx context.Context, pool rbd.Pool, p plan, parts []part) (bool, error) {
	proven, missing := false, []part{}
	for _, one := range parts {
		mark, marked := one.mark()
		switch {
		case !marked:
		case mark.Group != p.request:
			return false, fmt.Errorf("volume %s has a snapshot %s that request %q asked for: %w", one.Image, one.snapshot, mark.Request, fault.Exists)
		case !slices.Equal(mark.Members, idsOf(parts)):
			if err := s.free(ctx, pool, p.handle, mark.Members); err != nil {
				return false, err
			}
			return false, fmt.Errorf("an unfinished group of other volumes had the name: %w", fault.Superseded)
		}
		proven = proven || mark.Whole
		if _, taken := one.taken(); !taken {
			missing = append(missing, one)
		}
	}
	if !proven {
		return false, nil
	}
	return true, lost(ctx, p, missing)
}

// lost returns fault.Exists for snapshots that are missing in a group that was whole. They are looked
// at once more: another process can have taken them between the first look at one
// volume and that at another.
func lost(ctx context.Context, p plan, missing []part) error {
	if len(missing) == 0 {
		return nil
	}
	now, err := missing[0].now(ctx)
	if err != nil {
		return err
	}
	if _, taken := now.taken(); taken {
		return fmt.Errorf("another process was at it: %w", fault.Superseded)
	}
	return fmt.Errorf("the snapshot of volume %s in it was deleted; delete the group %s, or ask under another name: %w",
		now.Image, p.handle, fault.Exists)
}

// free removes what there is of an unfinished group with these members, and returns
// fault.Exists for a whole one.
func (s *Store) free(ctx context.Context, pool rbd.Pool, group volid.Group, ids []string) error {
	members, err := membersOf(ctx, pool, group, ids)
	if err != nil {
		return err
	}
	var names []string
	proven := false
	for _, one := range members {
		mark, _ := one.mark()
		proven = proven || mark.Whole
		names = append(names, fmt.Sprintf("%s (ID %s)", one.Image, one.ID))
	}
	if proven {
		return fmt.Errorf("the name was given to a group snapshot of volumes %s: %w", strings.Join(names, ", "), fault.Exists)
	}
	return s.removeAll(ctx, group, members)
}

// prepare checks that the snapshots can be taken and claims their names.
func (s *Store) prepare(ctx context.Context, pool rbd.Pool, p plan, parts []part) error {
	if err := ready(parts); err != nil {
		return err
	}
	return s.claimGroup(ctx, pool, p, parts)
}

// ready returns nil when a snapshot can be taken of all volumes.
func ready(parts []part) error {
	for _, one := range parts {
		if one.Marks.Deleted() {
			return fmt.Errorf("volume %s is deleted: %w", one.Image, fault.NotFound)
		}
		if !one.Header.Layout.Features.Has(rbd.ExclusiveLock) {
			return fmt.Errorf("volume %s has no exclusive-lock, by which its writers could be held up; `rbd feature enable` adds it: %w", one.Image, fault.Unsupported)
		}
		if err := room(one.Image, one.snapshot); err != nil {
			return err
		}
	}
	return nil
}

// namesOf returns the pairs of the index that a group has.
func (p plan) namesOf(parts []part) map[string]string {
	names := map[string]string{groupKeys + p.handle.Name: record{Request: p.request, Members: idsOf(parts)}.String()}
	for _, one := range parts {
		names[member(p.request, one.ID)] = entry{ID: one.ID, Image: one.Name, Snapshot: one.snapshot}.String()
	}
	return names
}

// confirm makes sure that the index still says what was claimed: a process that removes an
// earlier group of that name can have been slow. One operation.
func (s *Store) confirm(ctx context.Context, pool rbd.Pool, p plan, parts []part) error {
	names := p.namesOf(parts)
	known, err := pool.IndexValues(ctx, slices.Sorted(maps.Keys(names))...)
	if err != nil && !errors.Is(err, fault.NotFound) || maps.Equal(known, names) {
		return err
	}
	return s.claimGroup(ctx, pool, p, parts)
}

// claimGroup makes sure that the names of the group and of its members are given to it, or
// returns fault.Exists. One operation for names that are free.
func (s *Store) claimGroup(ctx context.Context, pool rbd.Pool, p plan, parts []part) error {
	names := p.namesOf(parts)
	expected := map[string]string{}
	for key := range names {
		expected[key] = ""
	}
	var others []string // of a group that had the name
	return image.Repeat("claim the names", func() error {
		err := changeIndex(ctx, pool, rbd.Change{Expect: maps.Clone(expected), Set: names, Remove: others})
		if !errors.Is(err, fault.Superseded) {
			return err
		}
		known, err := pool.IndexValues(ctx, slices.Sorted(maps.Keys(names))...)
		if err != nil || maps.Equal(known, names) {
			return lookAgain(err)
		}
		others = nil
		for _, key := range slices.Sorted(maps.Keys(names)) {
			if expected[key] = known[key]; known[key] == names[key] {
				continue
			}
			with, err := s.vacate(ctx, pool, p, parts, key, known[key])
			if err != nil {
				return fmt.Errorf("name %s: %w", key, err)
			}
			others = append(others, with...)
		}
		others = slices.DeleteFunc(others, func(key string) bool { return names[key] != "" })
		return fmt.Errorf("names changed hands: %w", fault.Superseded)
	})
}

// vacate returns nil when a pair of the index has no group behind it that is whole, and
// fault.Exists otherwise; and the keys that go with the pair.
func (s *Store) vacate(ctx context.Context, pool rbd.Pool, p plan, parts []part, key, value string) (with []string, err error) {
	if key != groupKeys+p.handle.Name {
		if known, ok := readEntry(value); ok {
			return nil, stale(ctx, pool, key, known)
		}
		return nil, nil
	}
	known, ok := readRecord(value)
	if !ok {
		return nil, nil
	}
	for _, id := range known.Members {
		with = append(with, member(known.Request, id))
	}
	if slices.Equal(known.Members, idsOf(parts)) {
		return with, nil
	}
	return with, s.free(ctx, pool, p.handle, known.Members)
}

// takeTogether marks the images, takes the snapshots, and returns the parts as they are
// then.
func takeTogether(ctx context.Context, pool rbd.Pool, p plan, looked []part) ([]part, error) {
	attempt := rand.Text()
	if err := enlist(ctx, p, looked, attempt); err != nil {
		return nil, err
	}
	for _, one := range looked {
		if err := drop(ctx, one.Image, one.snapshot); err != nil {
			return nil, err
		}
	}
	var all []rbd.SnapshotOf
	for _, one := range looked {
		all = append(all, rbd.SnapshotOf{ID: one.ID, Name: one.snapshot})
	}
	if err := pool.TakeSnapshots(ctx, all); err != nil {
		undone := sweep(context.WithoutCancel(ctx), looked, attempt)
		return nil, unlessLeft(untaken(err), undone)
	}
	parts, mine, err := reread(ctx, looked, attempt)
	if err == nil && !mine {
		err = errors.Join(fmt.Errorf("another process was at it: %w", fault.Superseded), sweep(context.WithoutCancel(ctx), looked, attempt))
	}
	return parts, err
}

// enlist writes the marks. The first one is written in any case: what another process
// has under way fails from then on.
func enlist(ctx context.Context, p plan, parts []part, attempt string) error {
	for i, one := range parts {
		if known, marked := one.mark(); marked && !known.Withdrawn && i > 0 {
			continue
		}
		mark := image.SnapshotMark{
			ID: one.ID, Image: one.Name, At: time.Now().Unix(),
			Request: p.request, Group: p.request, Members: idsOf(parts),
		}
		if i == 0 {
			mark.Attempt = attempt
		}
		if format := one.Marks.Format; format.State == image.Formatted {
			mark.Format = &format
		}
		key := image.SnapshotKey(one.snapshot)
		_, err := one.Change(ctx, map[string]string{
			key:                image.Written(mark),
			image.AnnouncedKey: image.Written(image.AnnouncedMark{ID: one.ID, Snapshot: one.snapshot}),
		}, key)
		if err != nil {
			return fmt.Errorf("announce snapshot %s in image %s: %w", one.snapshot, one.Image, lookAgain(err))
		}
	}
	return nil
}

// lookAgain makes fault.Superseded of what is not there any more: the next look finds out.
func lookAgain(err error) error {
	if fault.Is(err, fault.NotFound) {
		return fmt.Errorf("%w: %w", fault.Superseded, err)
	}
	return err
}

// untaken says what to do about snapshots that could not be taken.
func untaken(err error) error {
	err = fmt.Errorf("take the snapshots: %w", err)
	switch fault.Of(err) {
	case fault.Superseded:
		return fmt.Errorf("clients of the volumes take their exclusive locks back each time; come again, and pause the writers if it stays so: %w: %w", fault.Unavailable, err)
	case fault.Exists, fault.NotFound:
		return fmt.Errorf("another process was at it: %w: %w", fault.Superseded, err)
	}
	return err
}

// reread returns the parts as they are now, and whether all have their marks and
// snapshots and the attempt is still the last one. The first part is read last: then,
// if the attempt is the last one, no snapshot that was seen can be another process's.
func reread(ctx context.Context, parts []part, attempt string) (now []part, mine bool, err error) {
	now, mine = slices.Clone(parts), true
	for i := len(now) - 1; i >= 0; i-- {
		if now[i], err = parts[i].now(ctx); err != nil {
			return nil, false, err
		}
		_, taken := now[i].taken()
		mine = mine && taken
	}
	mark, _ := now[0].mark()
	return now, mine && mark.Attempt == attempt, nil
}

// sweep removes the snapshots of an attempt that failed. When another process has begun
// one meanwhile, they are that one's business, except where there is no mark: nobody
// would ever remove those else.
func sweep(ctx context.Context, parts []part, attempt string) error {
	now, _, err := reread(ctx, parts, attempt)
	if err != nil {
		return err
	}
	mark, _ := now[0].mark()
	for _, one := range now {
		left, there := userSnapshot(one.Image, one.snapshot)
		if _, marked := one.mark(); !there || marked && mark.Attempt != attempt {
			continue
		}
		if err := one.Pool.RemoveSnapshot(ctx, one.ID, left.ID); err != nil {
			return fmt.Errorf("snapshot %s of image %s is left: %w", one.snapshot, one.Image, err)
		}
	}
	return nil
}

// prove records that the snapshots are of one moment, beginning with the first part.
func prove(ctx context.Context, parts []part) error {
	for _, one := range parts {
		mark, _ := one.mark()
		if mark.Whole {
			continue
		}
		mark.Whole = true
		key := image.SnapshotKey(one.snapshot)
		err := one.Pool.ChangeMeta(ctx, one.ID, rbd.Change{
			Expect: map[string]string{key: one.Marks.Raw[key]},
			Set:    map[string]string{key: image.Written(mark)},
		})
		if err != nil {
			return fmt.Errorf("record that snapshot %s of image %s is whole: %w", one.snapshot, one.Image, lookAgain(err))
		}
	}
	return nil
}

func answerGroup(handle volid.Group, parts []part) (Group, error) {
	made := Group{Handle: handle}
	for _, one := range parts {
		taken, _ := one.taken()
		snapshot, err := answer(one.Image, taken)
		if err != nil {
			return Group{}, err
		}
		made.Snapshots = append(made.Snapshots, snapshot)
		if made.Time.IsZero() || taken.Time.Before(made.Time) {
			made.Time = taken.Time
		}
	}
	slices.SortFunc(made.Snapshots, func(a, b Snapshot) int { return cmp.Compare(a.Source.String(), b.Source.String()) })
	return made, nil
}

func idsOf(parts []part) []string {
	var ids []string
	for _, one := range parts {
		ids = append(ids, one.ID)
	}
	return ids
}
