// Package orphan compares what is in Ceph with what Kubernetes knows, and tells what belongs to nobody.
//
// A [Checker] looks at everything once and returns what it found; a [Watch] does so again and again and
// removes the little that policy allows. Nothing is written down: what was found is found again.
//
// # What is never touched
//
// An image is the driver's when its mark, with its own ID in it, says so, or when it has no header yet and an ID that the driver
// draws (rbd.Ours). A snapshot is when its image has a mark of it. Everything else is somebody else's and is neither reported
// nor removed.
//
// A volume that Kubernetes does not know may be wanted all the same: another Kubernetes cluster may use the same pool, or a
// person may have deleted a PersistentVolume whose reclaimPolicy is Retain and kept the image. Ceph does not tell. So nothing that could hold what
// anybody wrote is removed unless a person names it, see [Checker.Remove]. What a Watch may remove: see [Watch.Collect].
//
// # Races
//
// Kubernetes is asked before the clusters are looked through and once more after. What was known to it at either time is no
// orphan, and a PersistentVolume has lost its image only if it was there both times. What is younger than the
// grace is being made: the external-provisioner writes the PersistentVolume after the volume. What has no age, because a process was killed
// before it wrote one, is looked at twice, and by a Watch for as long as the grace.
package orphan

import (
	"context"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// A Kind says what is wrong, in a word for metrics.
type Kind string

// The kinds of findings.
const (
	Volume       Kind = "volume"        // a volume that no PersistentVolume has
	LostVolume   Kind = "lost-volume"   // a PersistentVolume whose image is not there
	Snapshot     Kind = "snapshot"      // a snapshot that no VolumeSnapshotContent has
	LostSnapshot Kind = "lost-snapshot" // a VolumeSnapshotContent whose snapshot is not there
	HalfMade     Kind = "half-made"     // an image or a snapshot whose making or deletion nobody goes on with
	Trash        Kind = "trash"         // a deleted volume whose space is not freed
	Index        Kind = "index"         // a pair of a pool's index that does not agree with the images
)

// Kinds returns every kind.
func Kinds() []Kind {
	return []Kind{Volume, LostVolume, Snapshot, LostSnapshot, HalfMade, Trash, Index}
}

// A Finding is one thing that is wrong.
type Finding struct {
	Kind Kind `json:"kind"`
	// Where is the handle of the volume or the snapshot, or the pool with the key in its index.
	Where string `json:"where"`
	// Object is the name of the PersistentVolume or VolumeSnapshotContent, empty where there is none.
	Object string `json:"object,omitempty"`
	// Since is when the thing was made or deleted; zero where Ceph does not tell.
	Since time.Time `json:"since,omitzero"`
	What  string    `json:"what"` // a sentence
	Do    string    `json:"do"`   // what a person can do, in words that can be typed
	// UID is that of the object, for events.
	UID string `json:"-"`

	id   string // of the image
	pair snapshot.Mismatch
	pool rbd.Pool // of the pair
}

// A Report is what one look found.
type Report struct {
	Findings []Finding `json:"findings"`
	// Notes say what was not compared and why.
	Notes []string `json:"notes,omitempty"`
	// Incomplete says that a cluster or a pool could not be looked through, so that something may have been missed.
	Incomplete bool `json:"incomplete,omitempty"`
}

// A Persistent is a PersistentVolume.
type Persistent struct {
	Name   string
	UID    string
	Handle string
	Claim  string // NAMESPACE/NAME, empty: none
	Made   time.Time
	// Going says that its volume is being deleted with it, or that it is being deleted itself.
	Going bool
	// Other says that it is another driver's, or that of this driver by another name. What it names is
	// known to Kubernetes, and nobody looks whether it is there.
	Other bool
}

// A Content is a VolumeSnapshotContent, or what a VolumeGroupSnapshotContent says of one of its snapshots.
type Content struct {
	Name   string
	Handle string // empty while the snapshot, or the group, is being made
	Made   time.Time
	Going  bool // it is being deleted
	Other  bool // as of a Persistent
	// Group says that it is of a VolumeGroupSnapshotContent. Each snapshot of one has a VolumeSnapshotContent as well, later.
	Group bool
}

// String is the kind of the object and its name.
func (c Content) String() string {
	if c.Group {
		return "VolumeGroupSnapshotContent " + c.Name
	}
	return "VolumeSnapshotContent " + c.Name
}

// Kubernetes is what is asked of a Kubernetes cluster. Both methods may be called at once.
type Kubernetes interface {
	// Volumes returns all PersistentVolumes, also those of other drivers: a wrong name of this one must not make
	// orphans of all its volumes.
	Volumes(ctx context.Context) ([]Persistent, error)
	// Contents returns all VolumeSnapshotContents, likewise, and what all VolumeGroupSnapshotContents say.
	Contents(ctx context.Context) ([]Content, error)
}

// DefaultGrace is how old something has to be before it counts as nobody's.
const DefaultGrace = time.Hour

// A Checker looks for orphans. All methods may be called at once, in several processes.
type Checker struct {
	Clusters rbd.Clusters
	Store    *volume.Store // on the same clusters
	// Kubernetes may be nil: then what is in Ceph is only compared within Ceph.
	Kubernetes Kubernetes
	// Grace is how old something has to be; DefaultGrace.
	Grace time.Duration
	// Now tells the time; time.Now.
	Now func() time.Time
	// Progress is told of a pool and how many of its images were read, from time to time.
	Progress func(pool volid.Pool, images int)
}

func (c *Checker) grace() time.Duration {
	if c.Grace <= 0 {
		return DefaultGrace
	}
	return c.Grace
}

func (c *Checker) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// old reports whether something of that time is older than the grace. What has no time is not.
func (c *Checker) old(at time.Time) bool { return !at.IsZero() && c.now().Sub(at) >= c.grace() }
