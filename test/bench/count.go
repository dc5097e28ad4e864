package main

import (
	"context"
	"fmt"

	"github.com/rbd-csi/rbd-csi/test/driver"
)

// A batch makes one request for each of the images. It returns how many operations
// it made besides, which are not the requests'.
type batch func(ctx context.Context, l *lab, images []image) (besides int64, err error)

// An image is one of those that the requests are about, on both sides.
type image struct {
	name     string
	volume   driver.Volume     // ours, once it is created
	attached map[string]string // ours, while it is attached
	snapshot string            // the handle of ours
	restored driver.Volume     // ours, a volume made of the snapshot
	cloned   driver.Volume     // ours, a volume made of the volume
}

// A request is a row of the table. The rows are measured in their order, on the same images.
type request struct {
	name   string
	budget float64 // operations; 0: for information
	each   int     // how many requests the batch makes for an image; 0: one
	before batch   // what has to be there, not counted; nil: nothing
	bare   batch   // nil where librbd has nothing like it
	ours   batch
}

// Requests that wait for the monitors, which commit once a second, are sent in parallel. That
// changes how long they take, and not how many operations.
var requests = []request{
	{name: "create", budget: 9, bare: eachBare(bare.create), ours: eachOurs(create)},
	{name: "create again", budget: 4, bare: eachBare(bare.createAgain), ours: eachOurs(create)},
	{name: "attach", ours: eachOurs(attach)},
	{name: "attach again", ours: eachOurs(attach)},
	{name: "detach", ours: eachOurs(detach)},
	{name: "get", ours: eachOurs(get)},
	{name: "list, each row", ours: list},
	{name: "expand", budget: 30, bare: eachBare(expandBare), ours: eachOurs(expand)},
	{name: "snapshot", budget: 38, bare: parallelBare(snapshotBare), ours: parallelOurs(snapshot)},
	{name: "snapshot again", budget: 4, ours: eachOurs(snapshot)},
	{name: "list snapshots, each row", ours: listSnapshots},
	{name: "restore", budget: 47, bare: eachBare(restoreBare), ours: eachOurs(restore)},
	{name: "restore again", budget: 6, ours: eachOurs(restore)},
	{name: "clone of a volume", budget: 98, bare: parallelBare(cloneBare), ours: parallelOurs(clone)},
	{name: "clone of a volume again", budget: 6, ours: eachOurs(clone)},
	// Two things go: the clone, and the snapshot of its source that it was made of.
	{name: "delete of such a clone, until freed", budget: 72, bare: removeBare(clonedName), ours: deleteAll(clonedVolume)},
	{name: "delete of a restored volume, until freed", budget: 64, bare: removeBare(restoredName), ours: deleteAll(restoredVolume)},
	{name: "delete of a snapshot", budget: 64, bare: parallelBare(removeSnapshotBare), ours: parallelOurs(deleteSnapshot)},
	{name: "delete, until freed", budget: 64, bare: removeBare(plainName), ours: deleteAll(plainVolume)},
	{
		name: "delete of volume, snapshot, restored; each", budget: 64, each: 3,
		before: family, bare: removeFamilyBare, ours: deleteFamily,
	},
}

// count measures all rows.
func (l *lab) count(ctx context.Context) ([]Request, error) {
	// The first request opens the connection and the pool, which happens once.
	first := []image{{name: "first"}}
	for _, r := range requests {
		if _, err := l.measure(ctx, r, first); err != nil {
			return nil, err
		}
	}
	images := make([]image, l.options.batch)
	for i := range images {
		images[i].name = fmt.Sprintf("pvc-%08d-0000-4000-8000-000000000000", i)
	}
	var rows []Request
	for _, r := range requests {
		row, err := l.measure(ctx, r, images)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// measure measures one row, librbd first.
func (l *lab) measure(ctx context.Context, r request, images []image) (Request, error) {
	row := Request{Name: r.name, Budget: r.budget}
	if r.before != nil {
		if _, err := r.before(ctx, l, images); err != nil {
			return row, fmt.Errorf("before %s: %w", r.name, err)
		}
	}
	requests := len(images) * max(r.each, 1)
	var err error
	if r.bare != nil {
		if row.Bare, err = l.operations(ctx, r.bare, images, requests); err != nil {
			return row, fmt.Errorf("%s by librbd: %w", r.name, err)
		}
	}
	if row.Operations, err = l.operations(ctx, r.ours, images, requests); err != nil {
		return row, fmt.Errorf("%s: %w", r.name, err)
	}
	return row, nil
}

// operations returns how many operations of the OSDs one of the requests of the batch took.
func (l *lab) operations(ctx context.Context, do batch, images []image, requests int) (float64, error) {
	before, err := l.cluster.OpCount(ctx)
	if err != nil {
		return 0, err
	}
	besides, err := do(ctx, l, images)
	if err != nil {
		return 0, err
	}
	after, err := l.cluster.OpCount(ctx)
	if err != nil {
		return 0, err
	}
	return float64(after-before-besides) / float64(requests), nil
}
