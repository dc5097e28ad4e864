package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/test/driver"
)

// What a request may cost in a pool with many images, as a multiple of what it costs in one with few,
// and how long all volumes may take to be listed: external-attacher wants an answer in 15 s.
const (
	fewImages   = 10
	manyImages  = 10_000
	mostGrowth  = 1.1
	mostListing = 15.0
	growthBurst = 50
)

// growth compares a pool of few images with one of many. Bursts in both take turns, as in
// rates, and what they make in the pool of few is deleted again.
func (l *lab) growth(ctx context.Context) ([]Growth, error) {
	fmt.Printf("creating %d images, and comparing with %d ...\n", manyImages, fewImages)
	if err := l.fill(ctx, few, fewImages); err != nil {
		return nil, err
	}
	if err := l.fill(ctx, ours, manyImages); err != nil {
		return nil, err
	}
	operations := Growth{What: "operations of a create", Most: mostGrowth}
	var err error
	if operations.Few, err = l.createOperations(ctx, few); err != nil {
		return nil, err
	}
	if operations.Many, err = l.createOperations(ctx, ours); err != nil {
		return nil, err
	}
	operations.Ratio = operations.Many / operations.Few
	seconds, err := l.createSeconds(ctx)
	return []Growth{operations, seconds}, err
}

// fill creates so many images in a pool.
func (l *lab) fill(ctx context.Context, pool string, images int) error {
	return atOnce(ctx, parallel, images, func(number int) error {
		_, err := l.controller.Create(ctx, claim(pool, fmt.Sprintf("fill-%d", number)))
		return err
	})
}

// createOperations counts the operations of a create in a pool.
func (l *lab) createOperations(ctx context.Context, pool string) (float64, error) {
	var made []driver.Volume
	creates := func(ctx context.Context, l *lab, images []image) (int64, error) {
		for _, i := range images {
			volume, err := l.controller.Create(ctx, claim(pool, i.name))
			if err != nil {
				return 0, err
			}
			made = append(made, volume)
		}
		return 0, nil
	}
	images := make([]image, growthBurst)
	for i := range images {
		images[i].name = fmt.Sprintf("count-%d", i)
	}
	operations, err := l.operations(ctx, creates, images, len(images))
	if err != nil {
		return 0, err
	}
	return operations, l.deleteFrom(ctx, pool, made)
}

// createSeconds measures how long a create takes in each pool, one after the other.
func (l *lab) createSeconds(ctx context.Context) (Growth, error) {
	row := Growth{What: "milliseconds of a create, one at a time", Most: mostGrowth}
	var ofFew, ofMany, ratios []float64
	for round := range 2*l.options.rounds + 1 {
		milliseconds := map[string]float64{}
		pools := []string{few, ours}
		if round%2 == 0 {
			slices.Reverse(pools)
		}
		for _, pool := range pools {
			var err error
			if milliseconds[pool], err = l.createBurst(ctx, pool, round); err != nil {
				return row, err
			}
		}
		ofFew, ofMany = append(ofFew, milliseconds[few]), append(ofMany, milliseconds[ours])
		ratios = append(ratios, milliseconds[ours]/milliseconds[few])
	}
	row.Few, row.Many, row.Ratio = median(ofFew), median(ofMany), median(ratios)
	return row, nil
}

// createBurst returns how many milliseconds a create takes.
func (l *lab) createBurst(ctx context.Context, pool string, round int) (float64, error) {
	made := make([]driver.Volume, growthBurst)
	perSecond, err := perSecond(ctx, 1, growthBurst, func(number int) (err error) {
		made[number], err = l.controller.Create(ctx, claim(pool, fmt.Sprintf("burst-%d-%d", round, number)))
		return err
	})
	if err != nil {
		return 0, err
	}
	return 1000 / perSecond, l.deleteFrom(ctx, pool, made)
}

// deleteFrom deletes volumes of a pool and waits until they are freed.
func (l *lab) deleteFrom(ctx context.Context, pool string, volumes []driver.Volume) error {
	for _, volume := range volumes {
		if err := l.controller.Delete(ctx, volume); err != nil {
			return err
		}
	}
	_, err := l.awaitFree(ctx, pool)
	return err
}

// listings measures how long it takes to list all volumes, by a controller that offers published
// nodes: the first time it reads them all, and then it has them in memory.
func (l *lab) listings(ctx context.Context) ([]Listing, error) {
	lister, err := l.driver.Controller(ctx, "lister", append([]string{"--published-nodes"}, quiet...)...)
	if err != nil {
		return nil, err
	}
	var rows []Listing
	for _, what := range []string{"read from the cluster", "from memory"} {
		begun := time.Now()
		volumes, err := listAll(ctx, lister)
		if err != nil {
			return nil, err
		}
		if volumes < manyImages {
			return nil, fmt.Errorf("got %d rows, want %d or more", volumes, manyImages)
		}
		rows = append(rows, Listing{What: what, Volumes: volumes, Seconds: time.Since(begun).Seconds(), Most: mostListing})
	}
	return rows, nil
}

// listAll lists all volumes, page by page as external-attacher does.
func listAll(ctx context.Context, by *driver.Process) (volumes int, err error) {
	for token := ""; ; {
		answer, err := by.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: token})
		if err != nil {
			return 0, err
		}
		volumes += len(answer.GetEntries())
		if token = answer.GetNextToken(); token == "" {
			return volumes, nil
		}
	}
}
