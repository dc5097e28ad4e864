// Package volume makes RBD images into CSI volumes: all policy and all
// repetition of the driver.
//
// A [Store] makes, finds, grows, attaches and removes volumes for a controller,
// wherever the node is. It keeps no record of its own: what has to be known stands
// in Ceph, with the image (package image). What a node does with a volume is
// package host's.
//
// # How a volume is made
//
// The directory of the pool is the claim, the object rbd_id.NAME the
// publication, and what lies between can be finished by whoever comes next:
//
//	AddEntry         NAME -> ID     exclusive; a second process finds the ID here
//	CreateHeader     ID             exclusive, with the layout and all marks in one operation
//	EnsureObjectMap  ID
//	AddName          NAME -> ID     exclusive; from here on the volume is there
//	FindEntry        NAME           still ours? a frozen process may have been overtaken
//
// A clone takes the same steps, and after its header is there
//
//	TakeSnapshot     SOURCE         for a clone of a volume, not of a snapshot
//	AttachParent     ID             the header is a clone's now
//	AddChild         SOURCE         the snapshot stays from now on, whatever is deleted
//	RemoveSnapshot   SOURCE         where one was taken: it goes to the trash's namespace
//	ChangeMeta       ID             copying -> live: its content is certain
//
// A process that is killed anywhere leaves a state from which a repeated request
// goes on with the same ID. Two processes at once do the same steps on
// the same ID and meet the same end. An image that someone else makes meanwhile
// loses or wins at the first step, because librbd too begins with the directory.
//
// # How a volume goes
//
//	ChangeMeta       ID             condemned, by compare-and-set: only while nobody is attached;
//	                                retired instead, while it has snapshots
//	AddTrash         ID             from here on a sweep finds it
//	RemoveName       NAME -> ID     compares; never takes a later image's name
//	RemoveEntry      NAME -> ID     compares
//	Purge            ID             in the background; the trash is the queue
//
// A retired image stays in the trash and is condemned with its last snapshot.
// Condemned is final. Whoever meets a condemned image under a name finishes
// these steps first. A half-made image without a header gets a bare one that is
// condemned, so that its maker, if it still lives, can only fail.
package volume

import (
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Volume is what the services answer about one.
type Volume struct {
	Handle volid.Image
	Bytes  int64
	// Nodes holds the IDs of the nodes that the volume is attached to.
	Nodes []string
}

// A Store makes, finds and removes volumes. All methods may be called at once,
// in one process and in several; each may be repeated after any failure.
type Store struct {
	clusters  rbd.Clusters
	snapshots *snapshot.Store
	cache     *cache
	options   Options
}

// Options of a Store; the zero value of each field is its default.
type Options struct {
	// Removed is told of what Delete moved to the trash; see [Purger.Add]. It must not block.
	Removed func(Removed)
	// Deep is told of clones that are to be flattened; see [Flattener.Add]. It must not block.
	Deep func(Deep)
	// FlattenDepth is from how many images on, which a read can go through beside the
	// volume's own, a clone is flattened in the background; DefaultFlattenDepth.
	FlattenDepth int
	// Grace is how long a client that still watches may go on to unstage when its volume is
	// detached; DefaultGrace, none when it is negative.
	Grace time.Duration
	// Now tells the time; time.Now.
	Now func() time.Time
	// PublishedNodes keeps in memory what List answers, at most so old, for a controller
	// that offers LIST_VOLUMES_PUBLISHED_NODES; 0: every listing is read from the cluster.
	PublishedNodes time.Duration
}

func (o Options) now() time.Time {
	if o.Now == nil {
		return time.Now()
	}
	return o.Now()
}

// Removed names an image that was moved to the trash and can be purged.
type Removed struct {
	Pool rbd.Pool
	ID   string
	Name string
	// Bare says that the image has a header that only keeps it from being made (see
	// rbd.Pool.ReserveHeader), and never had data.
	Bare bool
	// Objects is how many data objects the image can have: how long the purge may take.
	Objects int64
	// Named says that the image's name may still be there: it was found in the trash, and
	// whoever put it there can have died before the name was taken away.
	Named bool
	// Source is what the image is a clone of, nil for others.
	Source *image.Source
}

// NewStore returns a store of the volumes on the clusters.
func NewStore(clusters rbd.Clusters, options Options) *Store {
	if options.FlattenDepth <= 0 {
		options.FlattenDepth = DefaultFlattenDepth
	}
	switch {
	case options.Grace == 0:
		options.Grace = DefaultGrace
	case options.Grace < 0:
		options.Grace = 0
	}
	if options.Removed == nil {
		options.Removed = func(Removed) {}
	}
	if options.Deep == nil {
		options.Deep = func(Deep) {}
	}
	s := &Store{clusters: clusters, cache: newCache(options.PublishedNodes), options: options}
	s.snapshots = snapshot.NewStore(clusters, s.bury)
	return s
}

// Snapshots returns the store of the volumes' snapshots.
func (s *Store) Snapshots() *snapshot.Store { return s.snapshots }
