package orphan

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// lost looks for the images and snapshots of what Kubernetes knows and the look did not come upon, by their names.
func (l *look) lost(ctx context.Context) {
	for _, handle := range slices.Sorted(maps.Keys(l.before.volumes)) {
		of := l.before.volumes[handle]
		if l.whole[handle] || of.Going || of.Other || !l.old(of.Made) {
			continue
		}
		if err := l.findVolume(ctx, handle); errors.Is(err, fault.NotFound) {
			l.missing = append(l.missing, lostVolume(of, l.trashed[handle], err))
		} else if err != nil {
			l.note("PersistentVolume %s was not compared: %v", of.Name, err)
		}
	}
	for _, handle := range slices.Sorted(maps.Keys(l.before.contents)) {
		of := l.before.contents[handle]
		if of.Going || of.Other || of.Group || !l.old(of.Made) {
			continue
		}
		if err := l.findSnapshot(ctx, handle); errors.Is(err, fault.NotFound) {
			l.missing = append(l.missing, lostSnapshot(of, err))
		} else if err != nil {
			l.note("%s was not compared: %v", of, err)
		}
	}
}

func (l *look) findVolume(ctx context.Context, handle string) error {
	at, err := volid.ParseImage(handle)
	if err != nil {
		return err
	}
	_, err = image.Find(ctx, l.Clusters, at, params.Credentials{})
	return err
}

func (l *look) findSnapshot(ctx context.Context, handle string) error {
	at, err := volid.ParseSnapshot(handle)
	if err != nil {
		return err
	}
	_, err = l.Store.Snapshots().Get(ctx, at, params.Credentials{})
	return err
}

// judge makes findings of what is still wrong now that Kubernetes was asked again.
func (l *look) judge(ctx context.Context, after known) {
	for _, one := range l.missing {
		volume, isVolume := after.volumes[one.Where]
		content, isContent := after.contents[one.Where]
		switch {
		case one.Kind == LostVolume && isVolume && !volume.Going, one.Kind == LostSnapshot && isContent && !content.Going:
			l.add(one)
		}
	}
	either := l.before.and(after)
	for _, one := range l.suspects {
		if err := l.suspect(ctx, one, either); err != nil {
			l.skip("image "+one.String(), err)
		}
	}
	for _, one := range l.snapshots {
		_, wanted := either.contents[one.Handle.String()]
		switch {
		case wanted || either.mayWaitFor(one.At):
		case !one.Whole:
			l.add(halfSnapshot(one))
		case either.asked:
			l.add(unknownSnapshot(one))
		}
	}
}

// suspect looks again at an image that seemed to be nobody's. Two operations.
func (l *look) suspect(ctx context.Context, seen image.Image, either known) error {
	found, err := image.Look(ctx, seen.Pool, seen.Name)
	if errors.Is(err, fault.NotFound) {
		return nil // gone meanwhile
	}
	if err != nil {
		return err
	}
	persistent, wanted := either.volumes[found.Handle().String()]
	switch {
	case wanted && persistent.Going && found.Marks.Deleted():
		// Kubernetes is at it.
	case !found.Headed || !found.Header.Whole:
		l.add(halfImage(found))
	case !l.old(found.Header.Created):
	case found.Marks.Copying() || !found.Named:
		l.add(halfImage(found))
	case found.Marks.Deleted():
		l.add(halfDeleted(found))
	case either.asked && !wanted:
		l.add(unknownVolume(found))
	}
	return nil
}
