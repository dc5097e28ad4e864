package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A part is a member of a group: an image, and the name that its snapshot has or gets.
type part struct {
	image.Image
	snapshot string
}

func (p part) mark() (image.SnapshotMark, bool) {
	mark, marked := p.Marks.Snapshots[p.snapshot]
	return mark, marked
}

func (p part) taken() (rbd.Snapshot, bool) { return find(p.Image, p.snapshot) }

// now returns the part as it is now.
func (p part) now(ctx context.Context) (part, error) {
	now, err := p.Image.Read(ctx)
	return part{Image: now, snapshot: p.snapshot}, err
}

// DeleteGroup makes sure that the group snapshot and all its members are gone: those that
// the index knows and those given. One that is not there is success. About four operations for
// each beside the snapshot's own.
//
// It returns fault.Invalid, with nothing deleted, when a given snapshot is not of the group.
func (s *Store) DeleteGroup(ctx context.Context, group volid.Group, given []volid.Snapshot, as params.Credentials) error {
	pool, err := s.clusters.Pool(ctx, group.Pool, as)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err == nil {
		err = image.Repeat("delete", func() error { return s.deleteGroup(ctx, pool, group, given) })
	}
	if err != nil {
		return fmt.Errorf("delete group snapshot %s: %w", group, err)
	}
	return nil
}

func (s *Store) deleteGroup(ctx context.Context, pool rbd.Pool, group volid.Group, given []volid.Snapshot) error {
	value, known, err := s.record(ctx, pool, group)
	if err != nil {
		return err
	}
	if err := checkGiven(ctx, pool, group, given); err != nil {
		return err
	}
	if value, err = announceEnd(ctx, pool, group, value, known); err != nil {
		return err
	}
	members, err := membersOf(ctx, pool, group, together(known.Members, given))
	if err != nil {
		return err
	}
	if err := s.removeAll(ctx, group, members); err != nil {
		return err
	}
	return unlist(ctx, pool, group, value, known)
}

// checkGiven returns fault.Invalid when one of the snapshots is another group's or none's. An
// operation for each. One that has gone may be any group's.
func checkGiven(ctx context.Context, pool rbd.Pool, group volid.Group, given []volid.Snapshot) error {
	for _, one := range given {
		if one.Image.Pool != group.Pool {
			return fmt.Errorf("snapshot %s is not of the group's pool: %w", one, fault.Invalid)
		}
		found, err := image.Image{Pool: pool, Name: one.Image.Name, ID: one.ImageID}.Read(ctx)
		if err != nil {
			return err
		}
		mark, marked := found.Marks.Snapshots[one.Name]
		_, there := userSnapshot(found, one.Name)
		if marked && !belongs(group, mark) || !marked && there {
			return fmt.Errorf("snapshot %s is not of the group: %w", one, fault.Invalid)
		}
	}
	return nil
}

// together adds the images of snapshots to a list of image IDs.
func together(ids []string, given []volid.Snapshot) []string {
	ids = slices.Clone(ids)
	for _, one := range given {
		if !slices.Contains(ids, one.ImageID) {
			ids = append(ids, one.ImageID)
		}
	}
	return ids
}

// GetGroup returns the group snapshot, or fault.NotFound when it is not whole, or not any
// more. An operation for each member and one for the index; the given snapshots serve where that
// does not know the group. fault.Invalid when one of them is not of the group.
func (s *Store) GetGroup(ctx context.Context, group volid.Group, given []volid.Snapshot, as params.Credentials) (Group, error) {
	found, err := s.getGroup(ctx, group, given, as)
	if err != nil {
		return Group{}, fmt.Errorf("group snapshot %s: %w", group, err)
	}
	return found, nil
}

func (s *Store) getGroup(ctx context.Context, group volid.Group, given []volid.Snapshot, as params.Credentials) (Group, error) {
	pool, err := s.clusters.Pool(ctx, group.Pool, as)
	if err != nil {
		return Group{}, err
	}
	_, known, err := s.record(ctx, pool, group)
	if err != nil {
		return Group{}, err
	}
	ids := known.Members
	if len(ids) == 0 {
		ids = together(nil, given)
	}
	members, err := membersOf(ctx, pool, group, ids)
	if err != nil {
		return Group{}, err
	}
	if !standing(members) {
		return Group{}, fault.NotFound
	}
	found, err := answerGroup(group, members)
	if err != nil {
		return Group{}, err
	}
	for _, one := range given {
		if !slices.ContainsFunc(found.Snapshots, func(s Snapshot) bool { return s.Handle == one }) {
			return Group{}, fmt.Errorf("snapshot %s is not of the group: %w", one, fault.Invalid)
		}
	}
	return found, nil
}

// standing reports whether these are all members of a group, each with its snapshot, and the
// group is whole.
func standing(members []part) bool {
	whole := false
	for _, one := range members {
		mark, _ := one.mark()
		if _, taken := one.taken(); !taken || len(mark.Members) != len(members) {
			return false
		}
		whole = whole || mark.Whole
	}
	return whole
}

// belongs reports whether a mark is that of a member of the group.
func belongs(group volid.Group, mark image.SnapshotMark) bool {
	if mark.Group == "" {
		return false
	}
	name, err := volid.GroupName(group.Pool, mark.Group)
	return err == nil && name == group.Name
}

// membersOf returns those of the images, by their IDs, that have a mark of the group. An
// operation for each.
func membersOf(ctx context.Context, pool rbd.Pool, group volid.Group, ids []string) ([]part, error) {
	var members []part
	for _, id := range ids {
		found, err := image.Image{Pool: pool, ID: id}.Read(ctx)
		if err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(found.Marks.Snapshots)) {
			if mark := found.Marks.Snapshots[name]; belongs(group, mark) {
				found.Name = mark.Image
				members = append(members, part{Image: found, snapshot: name})
				break
			}
		}
	}
	return members, nil
}

// removeAll removes the snapshots of a group, each with its entry in the index and its mark.
func (s *Store) removeAll(ctx context.Context, group volid.Group, members []part) error {
	for _, one := range members {
		read := true
		err := image.Repeat("remove snapshot "+one.snapshot, func() error {
			if !read {
				now, err := one.now(ctx)
				if err != nil {
					return err
				}
				one = now
			}
			read = false
			if mark, _ := one.mark(); !belongs(group, mark) {
				return nil // gone, and the name perhaps given to another one
			}
			return s.remove(ctx, one.Image, one.snapshot)
		})
		if err != nil {
			return fmt.Errorf("volume %s: %w", one.Image, err)
		}
	}
	return nil
}

// record returns what the index knows of a group, and the pair's value, "" for nothing. One
// operation, and more where the index has to be built.
func (s *Store) record(ctx context.Context, pool rbd.Pool, group volid.Group) (value string, known record, err error) {
	value, err = s.indexValue(ctx, pool, groupKeys+group.Name)
	known, _ = readRecord(value)
	return value, known, err
}

// indexValue returns what the index has for a key, "" for nothing, and builds it where it is not there or
// not whole. One operation for one that is.
func (s *Store) indexValue(ctx context.Context, pool rbd.Pool, key string) (string, error) {
	values, err := pool.IndexValues(ctx, completeKey, key)
	if err == nil && values[completeKey] == complete {
		return values[key], nil
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return "", err
	}
	if there, err := s.indexed(ctx, pool); err != nil || !there {
		return "", err
	}
	values, err = pool.IndexValues(ctx, key)
	return values[key], lookAgain(err)
}

// announceEnd makes sure that the index says that the group is being removed, before anything
// is looked at, and returns the pair's value.
func announceEnd(ctx context.Context, pool rbd.Pool, group volid.Group, value string, known record) (string, error) {
	known.Going = true
	if value == "" || value == known.String() {
		return value, nil
	}
	key := groupKeys + group.Name
	err := pool.ChangeIndex(ctx, rbd.Change{
		Expect: map[string]string{key: value}, Set: map[string]string{key: known.String()},
	})
	if err != nil {
		return "", fmt.Errorf("note in the index that the group goes: %w", lookAgain(err))
	}
	return known.String(), nil
}

// unlist makes sure that the index does not have the group, nor its members. It returns
// fault.Superseded when the pair is not as it was read.
func unlist(ctx context.Context, pool rbd.Pool, group volid.Group, value string, known record) error {
	if value == "" {
		return nil
	}
	key := groupKeys + group.Name
	change := rbd.Change{Expect: map[string]string{key: value}, Remove: []string{key}}
	for _, id := range known.Members {
		change.Remove = append(change.Remove, member(known.Request, id))
	}
	if err := pool.ChangeIndex(ctx, change); err != nil {
		return fmt.Errorf("remove the group from the index: %w", lookAgain(err))
	}
	return nil
}
