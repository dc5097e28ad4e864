package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Marked is a snapshot that was made for a request, or was to be, as its mark says.
type Marked struct {
	Handle volid.Snapshot
	At     time.Time // when it was taken, or announced where it is not there
	// Whole says that it is there, and for one of a group that the group is: then it was answered to somebody.
	Whole bool
}

// MarkedIn returns the snapshots that an image keeps for requests, in the order of their names. Those that are
// taken for the making of a clone are none.
func MarkedIn(of image.Image) []Marked {
	var all []Marked
	for _, name := range slices.Sorted(maps.Keys(of.Marks.Snapshots)) {
		mark := of.Marks.Snapshots[name]
		if mark.For != "" {
			continue
		}
		source := volid.Image{Pool: of.Where().Pool, Name: mark.Image}
		one := Marked{Handle: volid.Snapshot{Image: source, Name: name, ImageID: of.ID}, At: time.Unix(mark.At, 0)}
		if taken, there := find(of, name); there {
			one.At, one.Whole = taken.Time, mark.Group == "" || mark.Whole
		}
		all = append(all, one)
	}
	return all
}

// A Mismatch is a pair of a pool's index that does not agree with the images.
type Mismatch struct {
	Key string
	// Value is what the index has; empty: it lacks the pair, which follows from an image.
	Value string
	// Image and ID are those of the image that the pair is about, as far as it says.
	Image, ID string
}

// An Audit compares a pool's index with its images. It reads the index, is shown the images, and looks again at what
// does not agree. Requests that run at the same time do not disturb it: a mark is written before the pair
// of the index and removed after it, and a snapshot is taken after the pair is there and removed before it.
type Audit struct {
	pool  rbd.Pool
	whole bool              // the index has been built
	pairs map[string]string // of the index
	stood map[string]bool   // keys that an image stands behind
	lacks []lack
}

// A lack is a pair that follows from an image and is not in the index.
type lack struct {
	key string
	of  image.Image
}

// NewAudit reads the index of a pool. One operation for each 1024 pairs.
func NewAudit(ctx context.Context, pool rbd.Pool) (*Audit, error) {
	audit := &Audit{pool: pool, pairs: map[string]string{}, stood: map[string]bool{}}
	for after := ""; ; {
		page, err := pool.Index(ctx, after, pageSize)
		if errors.Is(err, fault.NotFound) {
			return audit, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the index of pool %s: %w", pool.Where(), err)
		}
		for _, one := range page {
			audit.pairs[one.Key], after = one.Value, one.Key
		}
		if len(page) == 0 {
			audit.whole = audit.pairs[completeKey] == complete
			return audit, nil
		}
	}
}

// Show shows an image of the pool, one in the trash included, as it was read after the index.
func (a *Audit) Show(of image.Image) {
	standing, announced := entriesOf(of)
	for key, value := range standing {
		if stands(key, a.pairs[key], value) {
			a.stood[key] = true
		} else if !strings.HasPrefix(key, groupKeys) {
			a.lacks = append(a.lacks, lack{key: key, of: of})
		}
	}
	for key, value := range announced {
		a.stood[key] = a.stood[key] || stands(key, a.pairs[key], value)
	}
}

// stands reports whether the value of a key in the index means what follows from an image. Of a group
// it is enough that there is a member.
func stands(key, value, follows string) bool {
	if !strings.HasPrefix(key, snapshotKeys) {
		return value != ""
	}
	known, ok := readEntry(value)
	wanted, _ := readEntry(follows)
	return ok && known.ID == wanted.ID && known.Snapshot == wanted.Snapshot
}

// End returns what does not agree and did not change meanwhile, in the order of the keys; nothing for an
// index that was not built yet or was removed, because it is built anew when it is needed. Three operations for each.
func (a *Audit) End(ctx context.Context) ([]Mismatch, error) {
	if !a.whole {
		return nil, nil
	}
	var all []Mismatch
	for _, key := range slices.Sorted(maps.Keys(a.pairs)) {
		one := mismatchOf(key, a.pairs[key])
		if a.stood[key] || one.Key == "" {
			continue
		}
		behind, err := behind(ctx, a.pool, one)
		if err != nil {
			return nil, err
		}
		same, err := a.still(ctx, one)
		if err != nil {
			return nil, err
		}
		if !behind && same {
			all = append(all, one)
		}
	}
	for _, one := range a.lacks {
		lacking, err := a.lacking(ctx, one)
		if err != nil {
			return nil, err
		}
		if lacking {
			all = append(all, Mismatch{Key: one.key, Image: one.of.Name, ID: one.of.ID})
		}
	}
	return all, nil
}

// mismatchOf returns a pair with the image that it is about; without a key it is none that this version knows.
func mismatchOf(key, value string) Mismatch {
	one := Mismatch{Key: key, Value: value}
	switch {
	case strings.HasPrefix(key, snapshotKeys):
		known, _ := readEntry(value)
		one.Image, one.ID = known.Image, known.ID
	case strings.HasPrefix(key, flattenKeys):
		one.Image, one.ID = value, strings.TrimPrefix(key, flattenKeys)
	case !strings.HasPrefix(key, groupKeys):
		return Mismatch{}
	}
	return one
}

// still reports whether the index has the pair as it was read.
func (a *Audit) still(ctx context.Context, one Mismatch) (bool, error) {
	values, err := a.pool.IndexValues(ctx, one.Key)
	if errors.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil && values[one.Key] == one.Value, err
}

// lacking reports whether the index lacks a pair while the snapshot stands: before and after the look.
func (a *Audit) lacking(ctx context.Context, one lack) (bool, error) {
	values, err := a.pool.IndexValues(ctx, one.key)
	if errors.Is(err, fault.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now, err := one.of.Read(ctx)
	if errors.Is(err, fault.InUse) {
		return false, nil
	}
	standing, _ := entriesOf(now)
	follows, is := standing[one.key]
	return err == nil && is && !stands(one.key, values[one.key], follows), err
}

// behind reports whether an image stands behind a pair of the index. One whose marks cannot be read may.
func behind(ctx context.Context, pool rbd.Pool, one Mismatch) (bool, error) {
	ids := []string{one.ID}
	if strings.HasPrefix(one.Key, groupKeys) {
		known, _ := readRecord(one.Value)
		ids = known.Members
	}
	for _, id := range ids {
		if id == "" {
			continue // the pair cannot be read
		}
		of, err := image.Image{Pool: pool, Name: one.Image, ID: id}.Read(ctx)
		if errors.Is(err, fault.InUse) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		standing, announced := entriesOf(of)
		maps.Copy(announced, standing)
		if follows, is := announced[one.Key]; is && stands(one.Key, one.Value, follows) {
			return true, nil
		}
	}
	return false, nil
}

// Spare reports whether a pair stands for a snapshot and nothing is behind it, so that [Forget] removes it. A
// clone's pair is removed by whoever flattens, and a group's stays for a person to look at.
func (m Mismatch) Spare() bool { return m.Value != "" && isSnapshot(m.Key) }

// Forget removes a spare pair from a pool's index, unless it has changed or an image stands behind it now. Three
// operations. A snapshot that is announced at the same moment keeps its name.
func Forget(ctx context.Context, pool rbd.Pool, one Mismatch) error {
	if !one.Spare() {
		return fmt.Errorf("pair %s of the index of pool %s: %w", one.Key, pool.Where(), fault.Invalid)
	}
	is, err := behind(ctx, pool, one)
	if err != nil || is {
		return err
	}
	err = pool.ChangeIndex(ctx, rbd.Change{Expect: map[string]string{one.Key: one.Value}, Remove: []string{one.Key}})
	if errors.Is(err, fault.Superseded) || errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove name %s from the index of pool %s: %w", one.Key, pool.Where(), err)
	}
	if is, err = behind(ctx, pool, one); is {
		err = addMissing(ctx, pool, map[string]string{one.Key: one.Value})
	}
	return err
}
