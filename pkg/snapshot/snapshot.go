// Package snapshot makes snapshots of RBD images into CSI snapshots: all policy of
// the driver about them, and about groups of them and what changed between them.
//
// A snapshot is a real RBD snapshot of the volume's image; there is nothing hidden
// beside it. Three things are kept about it, in this order:
//
//	ChangeMeta     the snapshot's mark in the image's metadata, while the volume lives
//	ChangeIndex    request -> image    exclusive: CSI wants names unique across volumes
//	TakeSnapshot
//
// and they go in the opposite order: the snapshot, its entry in the index, its mark. A
// process that is killed anywhere leaves a state from which a repeated request
// goes on. Only the snapshot is the truth. A mark without one is an intent, which
// keeps the image of a deleted volume from being purged; the index is a shortcut,
// and is rebuilt from the images where it is missing.
//
// A volume may be deleted before its snapshots: its image then stays in the trash,
// retired, until the last of them has gone. A snapshot may be deleted before its
// clones: RBD keeps it in the trash's namespace until the last of those has gone.
package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Snapshot is what the services answer about one.
type Snapshot struct {
	Handle volid.Snapshot
	Source volid.Image
	Bytes  int64 // the volume's size at that moment
	Time   time.Time
	Group  volid.Group // the group it was taken with, zero for none
}

// A Store makes, finds and removes snapshots. All methods may be called at once,
// in one process and in several; each may be repeated after any failure.
type Store struct {
	clusters rbd.Clusters
	emptied  func(context.Context, image.Image) error
	others   others
}

// NewStore returns a store of the snapshots on the clusters. emptied is called with
// the image of a deleted volume when the last of its snapshots was removed.
func NewStore(clusters rbd.Clusters, emptied func(context.Context, image.Image) error) *Store {
	return &Store{clusters: clusters, emptied: emptied}
}

// A CreateSpec asks for a snapshot.
type CreateSpec struct {
	Source  volid.Image
	Request string // the request's name
}

// Create makes sure that the snapshot is there and returns it. 38 operations for a
// new one, two for one that is there.
//
// It returns fault.NotFound when the volume is not there, fault.Exists when the
// name was given to a snapshot of another volume, or the image has a snapshot of
// that name which the driver did not make, and fault.Exhausted, naming what stands
// in the way, when the image has as many snapshots as it can have.
func (s *Store) Create(ctx context.Context, spec CreateSpec, as params.Credentials) (Snapshot, error) {
	var made Snapshot
	name, err := volid.SnapshotName(spec.Source, spec.Request)
	if err != nil {
		return Snapshot{}, err
	}
	pool, err := s.clusters.Pool(ctx, spec.Source.Pool, as)
	if err == nil {
		err = image.Repeat("create", func() error {
			made, err = s.create(ctx, pool, spec, name)
			return err
		})
	}
	if err != nil {
		return Snapshot{}, fmt.Errorf("create snapshot %s of volume %s: %w", spec.Request, spec.Source, err)
	}
	return made, nil
}

func (s *Store) create(ctx context.Context, pool rbd.Pool, spec CreateSpec, name string) (Snapshot, error) {
	source, err := s.source(ctx, pool, spec)
	if err != nil {
		return Snapshot{}, err
	}
	if mark := source.Marks.Snapshots[name]; mark.Group != "" {
		return Snapshot{}, fmt.Errorf("snapshot %s of image %s is that of group snapshot %s: %w", name, source, mark.Group, fault.Exists)
	}
	if taken, ok := find(source, name); ok {
		return answer(source, taken)
	}
	if err := s.ready(ctx, source, name); err != nil {
		return Snapshot{}, err
	}
	mark := image.SnapshotMark{Request: spec.Request}
	marked, err := announce(ctx, source, name, mark)
	if err != nil {
		return Snapshot{}, err
	}
	err = claim(ctx, pool, ordinary(spec.Request), entry{ID: source.ID, Image: source.Name, Snapshot: name})
	if errors.Is(err, fault.Exists) {
		_, unmarked := unmark(ctx, marked, name)
		return Snapshot{}, unlessLeft(err, unmarked)
	}
	if err != nil {
		return Snapshot{}, err
	}
	source, taken, err := s.take(ctx, marked, name, mark)
	if err != nil {
		return Snapshot{}, err
	}
	return answer(source, taken)
}

// source returns the volume's image. A repeated request may come when the volume has been
// deleted and its snapshot is there: then it is the image in the trash. fault.NotFound means that
// it certainly is not there, because nobody asks again after that.
func (s *Store) source(ctx context.Context, pool rbd.Pool, spec CreateSpec) (image.Image, error) {
	found, gone := image.FindIn(ctx, pool, spec.Source.Name)
	if !errors.Is(gone, fault.NotFound) {
		return found, gone
	}
	value, err := s.indexValue(ctx, pool, ordinary(spec.Request))
	if err != nil {
		return image.Image{}, err
	}
	known, ok := readEntry(value)
	if !ok || known.Image != spec.Source.Name {
		return image.Image{}, gone
	}
	deleted, err := image.Image{Pool: pool, Name: known.Image, ID: known.ID}.Read(ctx)
	if err != nil {
		return image.Image{}, err
	}
	if _, taken := find(deleted, known.Snapshot); !taken {
		return image.Image{}, gone
	}
	return deleted, nil
}

// unlessLeft returns a final answer, unless what was begun could not be cleared away: then the request
// has to come again, and the answer is why.
func unlessLeft(answer, left error) error {
	if left != nil {
		return fmt.Errorf("clear away what was begun: %w (there is no other way: %w)", left, answer)
	}
	return answer
}

// take takes a snapshot that was announced with this mark, and returns it with the image as it is
// then. One that is there already stays as it is.
func (s *Store) take(ctx context.Context, marked image.Image, name string, mark image.SnapshotMark) (image.Image, rbd.Snapshot, error) {
	err := marked.Pool.TakeSnapshot(ctx, marked.ID, name)
	mine := err == nil
	if errors.Is(err, fault.InUse) {
		// librbd asks all who have the image open, and one who takes a group snapshot of it says no.
		err = fmt.Errorf("a client of the image wants none at this moment: %w: %w", fault.Unavailable, err)
	}
	if err != nil && !errors.Is(err, fault.Exists) {
		return image.Image{}, rbd.Snapshot{}, fmt.Errorf("take snapshot %s of image %s: %w", name, marked, err)
	}
	now, err := marked.Read(ctx)
	if err != nil {
		return image.Image{}, rbd.Snapshot{}, err
	}
	if taken, ok := find(now, name); ok {
		return now, taken, nil
	}
	lost := fmt.Errorf("snapshot %s of image %s was removed meanwhile: %w", name, now, fault.Superseded)
	if !mine {
		return image.Image{}, rbd.Snapshot{}, lost
	}
	return image.Image{}, rbd.Snapshot{}, unlessLeft(lost, s.withdraw(context.WithoutCancel(ctx), now, name, mark))
}

// withdraw removes a snapshot that was taken while another process removed its mark, and the
// name that it may have got after that: nobody would ever remove them else. A third process can be
// about to announce and use it: it loses to the mark that is written here, or wins, and then it stays.
func (s *Store) withdraw(ctx context.Context, taken image.Image, name string, mark image.SnapshotMark) error {
	mark.ID, mark.Image, mark.At = taken.ID, taken.Name, time.Now().Unix()
	mark.Withdrawn, mark.Whole = true, false
	key := image.SnapshotKey(name)
	return image.Repeat("withdraw snapshot "+name, func() error {
		of, err := taken.Read(ctx)
		if err != nil {
			return err
		}
		if _, marked := of.Marks.Snapshots[name]; marked {
			return nil
		}
		if of.Headed && !of.Marks.Deleted() { // otherwise nobody can announce it
			of, err = of.Change(ctx, map[string]string{key: image.Written(mark)}, key)
		}
		if err != nil {
			return lookAgain(err)
		}
		of.Marks.Snapshots = maps.Clone(of.Marks.Snapshots)
		if of.Marks.Snapshots == nil {
			of.Marks.Snapshots = map[string]image.SnapshotMark{}
		}
		of.Marks.Snapshots[name] = mark
		return s.remove(ctx, of, name)
	})
}

// ready returns nil when the image can have one more snapshot of that name. One that is being withdrawn is
// removed first.
func (s *Store) ready(ctx context.Context, source image.Image, name string) error {
	if source.Marks.Snapshots[name].Withdrawn {
		if err := s.remove(ctx, source, name); err != nil {
			return err
		}
		return fmt.Errorf("snapshot %s of image %s was being withdrawn: %w", name, source, fault.Superseded)
	}
	return room(source, name)
}

// announce writes the mark of a snapshot that is about to be taken. From then on the
// image is not purged. A mark that is there already is written anew: who removes the
// snapshot compares it, and then sees that it is being taken again.
//
// A filesystem is recorded only when it certainly is in the snapshot: a mark without
// one makes a node look at the device before it writes.
func announce(ctx context.Context, source image.Image, name string, mark image.SnapshotMark) (image.Image, error) {
	if source.Marks.Deleted() {
		return image.Image{}, fmt.Errorf("image %s is that of a deleted volume: %w", source, fault.NotFound)
	}
	mark.ID, mark.Image, mark.At, mark.Attempt = source.ID, source.Name, time.Now().Unix(), rand.Text()
	if format := source.Marks.Format; format.State == image.Formatted {
		mark.Format = &format
	}
	key := image.SnapshotKey(name)
	marked, err := source.Change(ctx, map[string]string{
		key:                image.Written(mark),
		image.AnnouncedKey: image.Written(image.AnnouncedMark{ID: source.ID, Snapshot: name}),
	}, key)
	if err != nil {
		return image.Image{}, fmt.Errorf("announce snapshot %s in image %s: %w", name, source, err)
	}
	return marked, nil
}

// mostSnapshots is how many snapshots an image may have before no more are taken. krbd
// reads their IDs into one page of 4 KiB and maps no image with more than 510
// (RBD_MAX_SNAP_COUNT in drivers/block/rbd.c); a few are kept for clones of the volume,
// which need one for a moment.
const mostSnapshots = 500

// mostTold is how many snapshots an error names.
const mostTold = 5

// room returns nil when the image can have one more snapshot of that name.
func room(source image.Image, name string) error {
	_, marked := source.Marks.Snapshots[name]
	if _, there := userSnapshot(source, name); there && !marked {
		return fmt.Errorf("image %s has a snapshot %s that was not made by this driver: %w", source, name, fault.Exists)
	}
	if len(source.Header.Snapshots) < mostSnapshots {
		return nil
	}
	return fmt.Errorf("image %s has %d snapshots, and no node could use it with more than 510; delete some, the oldest are %s: %w",
		source, len(source.Header.Snapshots), oldest(source.Header.Snapshots), fault.Exhausted)
}

// oldest describes the first snapshots of an image.
func oldest(all []rbd.Snapshot) string {
	text := ""
	for i, one := range all[:min(mostTold, len(all))] {
		if i > 0 {
			text += ", "
		}
		if text += one.Name; one.Kind == rbd.TrashedSnapshot {
			text = fmt.Sprintf("%s (deleted, kept for %d clones)", text, one.Children)
		}
	}
	return text
}

// find returns a snapshot of the driver by its name, unless it is being withdrawn.
func find(of image.Image, name string) (rbd.Snapshot, bool) {
	if mark, marked := of.Marks.Snapshots[name]; !marked || mark.Withdrawn {
		return rbd.Snapshot{}, false
	}
	return userSnapshot(of, name)
}

// userSnapshot returns a snapshot that was not removed by its name, whoever made it.
func userSnapshot(of image.Image, name string) (rbd.Snapshot, bool) {
	for _, one := range of.Header.Snapshots {
		if one.Name == name && one.Kind == rbd.UserSnapshot {
			return one, true
		}
	}
	return rbd.Snapshot{}, false
}

// answer returns what the services say of a snapshot.
func answer(of image.Image, taken rbd.Snapshot) (Snapshot, error) {
	mark := of.Marks.Snapshots[taken.Name]
	source := volid.Image{Pool: of.Where().Pool, Name: mark.Image}
	made := Snapshot{
		Handle: volid.Snapshot{Image: source, Name: taken.Name, ImageID: of.ID},
		Source: source, Bytes: taken.Bytes, Time: taken.Time,
	}
	if mark.Group == "" {
		return made, nil
	}
	name, err := volid.GroupName(source.Pool, mark.Group)
	made.Group = volid.Group{Pool: source.Pool, Name: name}
	return made, err
}

// Get returns the snapshot, or fault.NotFound. One operation.
func (s *Store) Get(ctx context.Context, handle volid.Snapshot, as params.Credentials) (Snapshot, error) {
	found, err := s.open(ctx, handle, as)
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w", handle, err)
	}
	taken, ok := find(found, handle.Name)
	if !ok {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w", handle, fault.NotFound)
	}
	return answer(found, taken)
}

// open reads the image of a snapshot, whatever has become of its name.
func (s *Store) open(ctx context.Context, handle volid.Snapshot, as params.Credentials) (image.Image, error) {
	pool, err := s.clusters.Pool(ctx, handle.Image.Pool, as)
	if err != nil {
		return image.Image{}, err
	}
	return image.Image{Pool: pool, Name: handle.Image.Name, ID: handle.ImageID}.Read(ctx)
}
