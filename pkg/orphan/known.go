package orphan

import (
	"context"
	"fmt"
	"maps"
	"time"
)

// known is what Kubernetes knew at one moment, by handles. The zero value knows nothing.
type known struct {
	asked    bool
	volumes  map[string]Persistent
	contents map[string]Content
	// pending is the oldest VolumeSnapshotContent or VolumeGroupSnapshotContent without a handle, and since when there is one: a
	// snapshot taken since then may be the one that it waits for.
	pending string
	since   time.Time
}

// ask asks Kubernetes what it knows now, if there is one to ask.
func (c *Checker) ask(ctx context.Context) (known, error) {
	if c.Kubernetes == nil {
		return known{}, nil
	}
	volumes, err := c.Kubernetes.Volumes(ctx)
	if err != nil {
		return known{}, fmt.Errorf("ask for the PersistentVolumes: %w", err)
	}
	contents, err := c.Kubernetes.Contents(ctx)
	if err != nil {
		return known{}, fmt.Errorf("ask for the contents of snapshots: %w", err)
	}
	k := known{asked: true, volumes: map[string]Persistent{}, contents: map[string]Content{}}
	for _, one := range volumes {
		if _, there := k.volumes[one.Handle]; !there || !one.Other {
			k.volumes[one.Handle] = one
		}
	}
	for _, one := range contents {
		k.note(one)
	}
	return k, nil
}

// note adds a Content. One that is of a group alone counts where there is no other.
func (k *known) note(one Content) {
	_, there := k.contents[one.Handle]
	switch {
	case one.Handle != "" && (!there || !one.Other && !one.Group):
		k.contents[one.Handle] = one
	case one.Handle == "" && !one.Other && (k.pending == "" || one.Made.Before(k.since)):
		k.pending, k.since = one.String(), one.Made
	}
}

// and returns what was known at either of two moments.
func (k known) and(later known) known {
	both := known{asked: k.asked && later.asked, volumes: maps.Clone(k.volumes), contents: maps.Clone(k.contents), pending: k.pending, since: k.since}
	if both.asked {
		maps.Copy(both.volumes, later.volumes)
		maps.Copy(both.contents, later.contents)
	}
	if later.pending != "" && (both.pending == "" || later.since.Before(both.since)) {
		both.pending, both.since = later.pending, later.since
	}
	return both
}

// skew is how far the clocks of the API server and of the OSDs may be apart.
const skew = 5 * time.Minute

// mayWaitFor reports whether a Content without a handle may be that of a snapshot of this time.
func (k known) mayWaitFor(at time.Time) bool { return k.pending != "" && at.After(k.since.Add(-skew)) }
