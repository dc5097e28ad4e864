package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// The index of a pool or namespace is one object with a pair for each name that a
// request gave away. It makes names unique across volumes and a list cost what its
// rows cost. It is never the truth: an entry whose image has no such mark is stale,
// and is taken over by whoever wants its name.
//
//	s/REQUEST/           an ordinary snapshot
//	s/REQUEST/IMAGEID    a member of the group snapshot that the request asked for
//	g/NAME               a group snapshot, by the name in its handle
//	f/IMAGEID            a clone that waits to be flattened
//	complete             the index has been built from the images
//
// Members and ordinary snapshots cannot have the same key, since an ID is never empty.
const (
	snapshotKeys = "s/"
	groupKeys    = "g/"
	flattenKeys  = "f/"
	completeKey  = "complete"
	complete     = "1"
)

func ordinary(request string) string { return snapshotKeys + request + "/" }

func member(request, id string) string { return snapshotKeys + request + "/" + id }

// keyOf returns the key of a snapshot's entry, "" for one that has none.
func keyOf(mark image.SnapshotMark) string {
	switch {
	case mark.For != "":
		return ""
	case mark.Group != "":
		return member(mark.Group, mark.ID)
	}
	return ordinary(mark.Request)
}

// An entry says where the snapshot of a name is.
type entry struct {
	ID       string `json:"id"`
	Image    string `json:"image"`
	Snapshot string `json:"snapshot"`
}

func (e entry) String() string {
	text, err := json.Marshal(e)
	if err != nil {
		panic(err) // a struct of strings
	}
	return string(text)
}

// readEntry reads an entry; what is not one is stale like one of an image that has gone.
func readEntry(value string) (entry, bool) {
	var read entry
	if json.Unmarshal([]byte(value), &read) != nil {
		return entry{}, false
	}
	return read, read.ID != "" && read.Snapshot != ""
}

// A record is the entry of a group: who asked for it, and the IDs of its members in
// their order. What else there is to know stands in the members' own entries and marks.
type record struct {
	Request string   `json:"request"`
	Members []string `json:"members"`
	// Going says that the group is being removed. Who takes its name meanwhile writes the pair anew,
	// and so keeps it.
	Going bool `json:"going,omitempty"`
}

func (r record) String() string {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // a struct of strings
	}
	return string(text)
}

// readRecord reads a group's entry; what is not one is stale.
func readRecord(value string) (record, bool) {
	var read record
	if json.Unmarshal([]byte(value), &read) != nil {
		return record{}, false
	}
	return read, read.Request != "" && len(read.Members) > 0
}

// claim makes sure that a name is given to this snapshot, or returns fault.Exists
// with whose it is. One operation for a name that is free.
func claim(ctx context.Context, pool rbd.Pool, key string, wanted entry) error {
	expected := ""
	return image.Repeat("claim name "+key, func() error {
		err := setIndex(ctx, pool, key, expected, wanted.String())
		if !errors.Is(err, fault.Superseded) {
			return err
		}
		values, err := pool.IndexValues(ctx, key)
		if err != nil {
			return lookAgain(err)
		}
		expected = values[key]
		known, ok := readEntry(expected)
		if ok && known.ID == wanted.ID && known.Snapshot == wanted.Snapshot {
			return nil
		}
		if ok {
			if err := stale(ctx, pool, key, known); err != nil {
				return err
			}
		}
		return fmt.Errorf("name %s changed hands: %w", key, fault.Superseded)
	})
}

// stale returns nil when an entry has no mark behind it, and fault.Exists otherwise.
func stale(ctx context.Context, pool rbd.Pool, key string, known entry) error {
	of, err := image.Image{Pool: pool, Name: known.Image, ID: known.ID}.Read(ctx)
	if err != nil {
		return err
	}
	mark, marked := of.Marks.Snapshots[known.Snapshot]
	if marked && keyOf(mark) == key {
		return fmt.Errorf("the name was given to snapshot %s of image %s (ID %s): %w", known.Snapshot, of, of.ID, fault.Exists)
	}
	return nil
}

// setIndex changes a pair of the index that has the expected value. An empty value
// removes the pair.
func setIndex(ctx context.Context, pool rbd.Pool, key, expected, value string) error {
	change := rbd.Change{Expect: map[string]string{key: expected}}
	if value == "" {
		change.Remove = []string{key}
	} else {
		change.Set = map[string]string{key: value}
	}
	return changeIndex(ctx, pool, change)
}

// changeIndex changes the index, and builds it first where it is not there. fault.Superseded
// means that a pair of the change is not as expected, or that somebody has removed the
// index meanwhile.
func changeIndex(ctx context.Context, pool rbd.Pool, change rbd.Change) error {
	change.Expect[completeKey] = complete
	err := pool.ChangeIndex(ctx, change)
	if errors.Is(err, fault.NotFound) {
		if err = Build(ctx, pool); err == nil {
			err = lookAgain(pool.ChangeIndex(ctx, change))
		}
	}
	if !errors.Is(err, fault.Superseded) {
		return err
	}
	// Something is not as expected: perhaps the index was being built by a process that died.
	values, unread := pool.IndexValues(ctx, completeKey)
	if unread != nil || values[completeKey] == complete {
		return err
	}
	if built := Build(ctx, pool); built != nil {
		return built
	}
	return lookAgain(pool.ChangeIndex(ctx, change))
}

// forget makes sure that the index does not say that this snapshot has the name.
func forget(ctx context.Context, pool rbd.Pool, key string, gone entry) error {
	if key == "" {
		return nil
	}
	err := pool.ChangeIndex(ctx, rbd.Change{
		Expect: map[string]string{key: gone.String()}, Remove: []string{key},
	})
	if errors.Is(err, fault.Superseded) || errors.Is(err, fault.NotFound) {
		return nil // it is another's, or was removed already
	}
	if err != nil {
		return fmt.Errorf("remove name %s from the index: %w", key, err)
	}
	return nil
}

// NoteDeep makes sure that the index says that a clone waits to be flattened. One operation.
func NoteDeep(ctx context.Context, clone image.Image) error {
	err := setIndex(ctx, clone.Pool, flattenKeys+clone.ID, "", clone.Name)
	if errors.Is(err, fault.Superseded) {
		return nil // it says so
	}
	if err != nil {
		return fmt.Errorf("note that image %s is to be flattened: %w", clone, err)
	}
	return nil
}

// ForgetDeep makes sure that the index does not say so any more. One operation.
func ForgetDeep(ctx context.Context, pool rbd.Pool, id string) error {
	err := pool.ChangeIndex(ctx, rbd.Change{Remove: []string{flattenKeys + id}})
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// AllDeep returns the IDs of the clones in a pool that wait to be flattened, with their
// names. One operation for each 1024.
func AllDeep(ctx context.Context, pool rbd.Pool) (map[string]string, error) {
	waiting := map[string]string{}
	for after := flattenKeys; ; {
		page, err := pool.Index(ctx, after, pageSize)
		if errors.Is(err, fault.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		for _, one := range page {
			id, is := strings.CutPrefix(one.Key, flattenKeys)
			if !is {
				return waiting, nil
			}
			waiting[id], after = one.Value, one.Key
		}
		if len(page) == 0 {
			return waiting, nil
		}
	}
}

// pageSize is how many names or entries are read at once.
const pageSize = 1024

// Build makes the index of a pool from its images, those in the trash included. It
// may be called at any time and by several: it adds what is missing, and takes nothing
// away. An operation for each image, and for each entry.
//
// A name goes to a snapshot that is there before one that is only announced: whoever asks for a
// name has announced it before he finds that another snapshot has it.
func Build(ctx context.Context, pool rbd.Pool) error {
	if err := pool.MakeIndex(ctx); err != nil {
		return fmt.Errorf("make the index of pool %s: %w", pool.Where(), err)
	}
	announced := map[string]string{}
	err := everyImage(ctx, pool, func(found image.Image) error {
		standing, intended := entriesOf(found)
		maps.Copy(announced, intended)
		return addMissing(ctx, pool, standing)
	})
	if err == nil {
		err = addMissing(ctx, pool, announced)
	}
	if err == nil {
		err = pool.ChangeIndex(ctx, rbd.Change{Set: map[string]string{completeKey: complete}})
	}
	if err != nil {
		return fmt.Errorf("build the index of pool %s: %w", pool.Where(), lookAgain(err))
	}
	return nil
}

// addMissing adds those of the pairs to the index whose keys it does not have.
func addMissing(ctx context.Context, pool rbd.Pool, pairs map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(pairs)) {
		err := pool.ChangeIndex(ctx, rbd.Change{Expect: map[string]string{key: ""}, Set: map[string]string{key: pairs[key]}})
		if err != nil && !errors.Is(err, fault.Superseded) {
			return err
		}
	}
	return nil
}

// entriesOf returns the pairs of the index that follow from an image: for what is there, and for
// what is only announced.
func entriesOf(of image.Image) (standing, announced map[string]string) {
	standing, announced = map[string]string{}, map[string]string{}
	if of.Marks.Volume.Deep && of.Header.HasParent && !of.Marks.Condemned() {
		standing[flattenKeys+of.ID] = of.Name
	}
	for name, mark := range of.Marks.Snapshots {
		key := keyOf(mark)
		if key == "" {
			continue
		}
		entries := announced
		if _, taken := find(of, name); taken {
			entries = standing
		}
		entries[key] = entry{ID: of.ID, Image: mark.Image, Snapshot: name}.String()
		if mark.Group == "" {
			continue
		}
		if group, err := volid.GroupName(of.Where().Pool, mark.Group); err == nil {
			entries[groupKeys+group] = record{Request: mark.Group, Members: mark.Members}.String()
		}
	}
	return standing, announced
}

// everyImage calls visit with each image of a pool, by the directory and by the trash.
func everyImage(ctx context.Context, pool rbd.Pool, visit func(image.Image) error) error {
	look := func(name, id string) error {
		found, err := image.Image{Pool: pool, Name: name, ID: id}.Read(ctx)
		if errors.Is(err, fault.InUse) {
			return nil // its marks cannot be read; whoever uses the image is told
		}
		if err != nil {
			return err
		}
		return visit(found)
	}
	for after := ""; ; {
		page, err := pool.Entries(ctx, after, pageSize)
		if err != nil {
			return err
		}
		for _, one := range page {
			if err := look(one.Name, one.ID); err != nil {
				return err
			}
			after = one.Name
		}
		if len(page) == 0 {
			break
		}
	}
	trashed, err := pool.Trashed(ctx)
	if err != nil {
		return err
	}
	for _, one := range trashed {
		if err := look(one.Name, one.ID); err != nil {
			return err
		}
	}
	return nil
}

// isSnapshot reports whether a key is that of a snapshot's entry.
func isSnapshot(key string) bool { return strings.HasPrefix(key, snapshotKeys) }
