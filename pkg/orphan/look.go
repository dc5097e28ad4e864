package orphan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Look compares everything once. It costs an operation for each image, those of others included, one for each 1024 names
// in directories, trashes and indices, a few for each thing that looks wrong, and three lists of Kubernetes, twice; one
// operation after the other, so that requests are not held up.
//
// A pool that cannot be looked through is told in the report's notes; an error is one of Kubernetes, or of the list of clusters.
func (c *Checker) Look(ctx context.Context) (Report, error) {
	before, err := c.ask(ctx)
	if err != nil {
		return Report{}, err
	}
	names, err := c.Clusters.Names(ctx)
	if err != nil {
		return Report{}, err
	}
	l := &look{Checker: c, before: before, whole: map[string]bool{}, trashed: map[string]string{}, added: map[string]bool{}}
	for _, name := range names {
		pools, err := c.Clusters.Pools(ctx, name)
		if err != nil {
			l.skip("cluster "+name, err)
		}
		for _, at := range pools {
			if err := l.pool(ctx, at); err != nil {
				l.skip("pool "+at.String(), err)
			}
		}
	}
	l.lost(ctx)
	after, err := c.ask(ctx)
	if err != nil {
		return Report{}, err
	}
	l.judge(ctx, after)
	if !after.asked {
		l.note("Kubernetes was not asked: volumes were not compared with PersistentVolumes, nor snapshots with VolumeSnapshotContents")
	}
	if after.pending != "" {
		l.note("%s has no handle yet: snapshots taken since %s may be those that it waits for", after.pending, after.since.UTC().Format(time.RFC3339))
	}
	slices.SortStableFunc(l.report.Findings, func(a, b Finding) int {
		return strings.Compare(string(a.Kind)+" "+a.Where, string(b.Kind)+" "+b.Where)
	})
	return l.report, ctx.Err()
}

// A look is what one look through everything has seen so far.
type look struct {
	*Checker
	before known
	report Report

	images    int
	whole     map[string]bool   // handles of PersistentVolumes whose images are there
	trashed   map[string]string // IDs of images that were moved to the trash and not deleted, by their handles
	suspects  []image.Image     // in the directory, and perhaps nobody's
	snapshots []snapshot.Marked // perhaps nobody's
	missing   []Finding         // of what Kubernetes knows
	added     map[string]bool   // keys of the report's findings
}

func (l *look) note(format string, values ...any) {
	l.report.Notes = append(l.report.Notes, fmt.Sprintf(format, values...))
}

// skip notes what could not be looked through. What is gone by now, or is not for this user, makes the look no less complete.
func (l *look) skip(what string, err error) {
	l.note("%s was not looked through: %v", what, err)
	if !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Denied) {
		l.report.Incomplete = true
	}
}

// add adds a finding, once: an image that is on its way to the trash is met in both places.
func (l *look) add(f Finding) {
	if !l.added[f.key()] {
		l.added[f.key()] = true
		l.report.Findings = append(l.report.Findings, f)
	}
}

// progressEvery is after how many images Progress is told.
const progressEvery = 1024

// pool looks through a pool or a namespace of one: the index first, because what it says is true of the images read after it.
func (l *look) pool(ctx context.Context, at volid.Pool) error {
	pool, err := l.Clusters.Pool(ctx, at, params.Credentials{})
	if err != nil {
		return err
	}
	audit, err := snapshot.NewAudit(ctx, pool)
	if err != nil {
		return err
	}
	l.images = 0
	for after := ""; ; {
		page, err := pool.Entries(ctx, after, progressEvery)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		for _, entry := range page {
			if err := l.entry(ctx, audit, image.Image{Pool: pool, Name: entry.Name, ID: entry.ID}); err != nil {
				return err
			}
		}
		after = page[len(page)-1].Name
		l.tell(at)
	}
	if err := l.trash(ctx, pool, audit); err != nil {
		return err
	}
	l.tell(at)
	return l.index(ctx, pool, audit)
}

func (l *look) tell(at volid.Pool) {
	if l.Progress != nil {
		l.Progress(at, l.images)
	}
}

// read reads an image, and reports whether it is the driver's. What its marks say is not known when they cannot be read.
func (l *look) read(ctx context.Context, bare image.Image) (found image.Image, ours bool, err error) {
	l.images++
	found, err = bare.Read(ctx)
	if errors.Is(err, fault.InUse) {
		l.note("%v", err)
		return bare, false, nil
	}
	return found, found.Headed && found.Marks.Ours() || !found.Headed && rbd.Ours(bare.ID), err
}

// entry looks at an image in the directory.
func (l *look) entry(ctx context.Context, audit *snapshot.Audit, bare image.Image) error {
	found, ours, err := l.read(ctx, bare)
	if err != nil {
		return err
	}
	audit.Show(found)
	l.marked(found)
	handle := found.Handle().String()
	stands := found.Headed && found.Header.Whole && !found.Marks.Copying() && !found.Marks.Deleted()
	_, wanted := l.before.volumes[handle]
	if wanted && stands {
		l.whole[handle] = true
	}
	if ours && (!wanted || !stands) {
		l.suspects = append(l.suspects, image.Image{Pool: found.Pool, Name: found.Name, ID: found.ID})
	}
	return nil
}

// marked looks at the snapshots that an image keeps, also one that the driver did not make.
func (l *look) marked(of image.Image) {
	for _, one := range snapshot.MarkedIn(of) {
		if _, wanted := l.before.contents[one.Handle.String()]; !wanted && l.old(one.At) {
			l.snapshots = append(l.snapshots, one)
		}
	}
}

// trash looks through the trash of a pool.
func (l *look) trash(ctx context.Context, pool rbd.Pool, audit *snapshot.Audit) error {
	entries, err := pool.Trashed(ctx)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		found, ours, err := l.read(ctx, image.Image{Pool: pool, Name: entry.Name, ID: entry.ID})
		if err != nil {
			return err
		}
		audit.Show(found)
		l.marked(found)
		if found.Headed && !found.Marks.Deleted() {
			l.trashed[found.Handle().String()] = found.ID
			continue
		}
		if ours && l.old(entry.Time) {
			l.waiting(found, entry)
		}
	}
	return nil
}

// index tells what of a pool's index does not agree with the images.
func (l *look) index(ctx context.Context, pool rbd.Pool, audit *snapshot.Audit) error {
	wrong, err := audit.End(ctx)
	if err != nil {
		return err
	}
	for _, one := range wrong {
		l.add(indexed(pool, one))
	}
	return nil
}
