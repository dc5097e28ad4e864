package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A level is a kind of work at a concurrency: how much is done in a burst, and the least
// ratio to librbd's rate; 0: for information.
type level struct {
	work     work
	inFlight int
	burst    int
	least    float64
}

var levels = []level{
	{creating, 1, 100, 0},
	{creating, 8, 300, 0},
	{creating, 32, 600, 0.85},
	{snapshotting, 32, 200, 0.9},
	{restoring, 32, 300, 0.8},
}

// A work is what is done again and again, on both sides. The name of a piece is its own.
type work struct {
	name string
	ours func(ctx context.Context, l *lab, name string, number int) error
	bare func(l *lab, name string, number int) error
}

var (
	creating = work{
		name: "create",
		ours: func(ctx context.Context, l *lab, name string, _ int) error {
			return create(ctx, l.controller, &image{name: name})
		},
		bare: func(l *lab, name string, _ int) error { return l.bare.create(name) },
	}
	snapshotting = work{
		name: "snapshot",
		ours: func(ctx context.Context, l *lab, name string, number int) error {
			_, err := snapshotOf(ctx, l.controller, l.source(number).volume, name)
			return err
		},
		bare: func(l *lab, name string, number int) error { return l.bare.snapshot(l.source(number).name, name) },
	}
	restoring = work{
		name: "restore",
		ours: func(ctx context.Context, l *lab, name string, number int) error {
			_, err := copyOf(ctx, l.controller, name, fromSnapshot(l.source(number).snapshot))
			return err
		},
		bare: func(l *lab, name string, number int) error {
			return l.bare.clone(l.source(number).name, bareSnapshot, name)
		},
	}
)

// sourceCount is how many volumes snapshots are taken of and restored from. It is twice
// what is in flight, because two snapshots of one volume are taken one after the other.
const sourceCount = 64

func (l *lab) source(number int) image { return l.sources[number%len(l.sources)] }

// makeSources makes the volumes, and a snapshot of each.
func (l *lab) makeSources(ctx context.Context) error {
	l.sources = make([]image, sourceCount)
	for i := range l.sources {
		l.sources[i].name = fmt.Sprintf("source-%d", i)
	}
	for _, step := range []batch{
		eachBare(bare.create), parallelBare(snapshotBare), eachOurs(create), parallelOurs(snapshot),
	} {
		if _, err := step(ctx, l, l.sources); err != nil {
			return fmt.Errorf("make sources of snapshots: %w", err)
		}
	}
	return nil
}

// rates measures how much is done in a second. The machine is shared and its speed drifts, so
// bursts of both sides take turns, and the median of the ratios counts.
func (l *lab) rates(ctx context.Context) ([]Rate, error) {
	if err := l.makeSources(ctx); err != nil {
		return nil, err
	}
	var rows []Rate
	for _, level := range levels {
		fmt.Printf("%s with %d in flight, %d rounds of %d on each side ...\n",
			level.work.name, level.inFlight, l.options.rounds, level.burst)
		var ours, bare, ratios []float64
		for round := range l.options.rounds {
			a, b, err := l.round(ctx, level, round)
			if err != nil {
				return nil, err
			}
			ours, bare, ratios = append(ours, a), append(bare, b), append(ratios, a/b)
		}
		rows = append(rows, Rate{
			What: level.work.name, InFlight: level.inFlight, PerSecond: median(ours), Bare: median(bare),
			Ratio: median(ratios), Least: level.least,
		})
	}
	return rows, nil
}

// round measures a burst of each side; which is first changes from round to round.
func (l *lab) round(ctx context.Context, level level, round int) (ours, bare float64, err error) {
	name := func(number int) string {
		return fmt.Sprintf("rate-%s-%d-%d-%d", level.work.name, level.inFlight, round, number)
	}
	doOurs := func(number int) error { return level.work.ours(ctx, l, name(number), number) }
	doBare := func(number int) error { return level.work.bare(l, name(number), number) }
	if round%2 == 0 {
		if bare, err = perSecond(ctx, level.inFlight, level.burst, doBare); err != nil {
			return 0, 0, fmt.Errorf("%s by librbd: %w", level.work.name, err)
		}
	}
	if ours, err = perSecond(ctx, level.inFlight, level.burst, doOurs); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", level.work.name, err)
	}
	if round%2 != 0 {
		if bare, err = perSecond(ctx, level.inFlight, level.burst, doBare); err != nil {
			return 0, 0, fmt.Errorf("%s by librbd: %w", level.work.name, err)
		}
	}
	return ours, bare, nil
}

// perSecond does something so many times with so many in flight, and returns its rate.
func perSecond(ctx context.Context, inFlight, times int, do func(number int) error) (float64, error) {
	begun := time.Now()
	err := atOnce(ctx, inFlight, times, do)
	return float64(times) / time.Since(begun).Seconds(), err
}

// atOnce calls do for 0 to times-1, with so many calls in flight, and returns the first
// errors. After one no more calls are made.
func atOnce(ctx context.Context, inFlight, times int, do func(number int) error) error {
	var next atomic.Int64
	var workers sync.WaitGroup
	failed := make(chan error, inFlight)
	for range inFlight {
		workers.Go(func() {
			for number := next.Add(1) - 1; number < int64(times) && ctx.Err() == nil; number = next.Add(1) - 1 {
				if err := do(int(number)); err != nil {
					failed <- err
					next.Store(int64(times))
					return
				}
			}
		})
	}
	workers.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return ctx.Err()
	}
}

func median(figures []float64) float64 {
	slices.Sort(figures)
	middle := len(figures) / 2
	if len(figures)%2 == 1 {
		return figures[middle]
	}
	return (figures[middle-1] + figures[middle]) / 2
}

// memoryAtRest returns how many bytes a process without work has in memory, as soon as that falls no more.
func memoryAtRest(ctx context.Context, pid int) (Memory, error) {
	const between = 3 * time.Second
	for last := int64(math.MaxInt64); ; {
		now, err := residentMemory(pid)
		if err != nil || now.Bytes >= last {
			return now, err
		}
		last = now.Bytes
		select {
		case <-time.After(between):
		case <-ctx.Done():
			return Memory{}, ctx.Err()
		}
	}
}

// residentMemory returns how many bytes a process has in memory, from VmRSS of /proc/PID/status.
func residentMemory(pid int) (Memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("read the controller's memory: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kibibytes, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return Memory{Bytes: kibibytes << 10, Limit: 80e6}, err
		}
	}
	return Memory{}, fmt.Errorf("read the controller's memory: /proc/%d/status has no VmRSS", pid)
}
