package rbd

import (
	"context"
	"time"
)

// Copies is the part of a [Pool] that is about snapshots and clones. What is said
// of a Pool's methods holds for these.
//
// A clone is made of the same steps as an empty image, and two more: its header
// gets a parent, and the parent's snapshot gets a child. Either is one method of
// the class rbd on one object, by IDs: the parent's name does not matter, and it
// may be in the trash. librbd's own clone does the same (clone format 2), by name.
type Copies interface {
	// TakeSnapshot takes a snapshot of an image, by librbd: a client that has the image
	// open is asked to stop writing for that moment. fault.Exists when the image
	// has a snapshot of that name, fault.NotFound when there is no such image; it may be in
	// the trash. 33 operations, and a proposal of the monitors (up to a second).
	TakeSnapshot(ctx context.Context, id, name string) error
	// TakeSnapshots takes a snapshot of each image, all of one moment: between
	// the call and its return there is a moment at which no other client could write to any of
	// them. It returns fault.Superseded when that could not be had, because a client took an
	// image back, and fault.Unsupported, with nothing done, when an image lacks
	// exclusive-lock. After an error some of the snapshots may be there.
	TakeSnapshots(ctx context.Context, wanted []SnapshotOf) error
	// RemoveSnapshot makes sure that nothing can be cloned from a snapshot any more,
	// and that it is gone as soon as it has no clones: one that has is
	// moved to the namespace of the trash, from where the last clone's end takes it. One
	// there without clones is removed; one with clones stays, and that is no
	// error. A snapshot or an image that is not there is none either. fault.InUse when
	// the snapshot is protected, or the image has neither a name nor an entry in the trash.
	// About 31 operations, 29 for one with clones.
	RemoveSnapshot(ctx context.Context, id string, snapshot uint64) error

	// AttachParent makes rbd_header.ID the header of a clone (rbd.parent_attach, rbd.op_features_set).
	// The parent it has already is no error; another one is fault.Exists. One
	// operation.
	AttachParent(ctx context.Context, id string, parent Parent) error
	// DetachParent makes sure that rbd_header.ID has not this parent (rbd.parent_detach): what the clone has not
	// copied is zeros from then on, so only one that has copied everything may be parted so. Its parent is not asked, and need not
	// be there. Another parent is fault.Exists. Three operations.
	DetachParent(ctx context.Context, id string, parent Parent) error
	// AddChild makes sure that a snapshot of an image in this pool knows a clone
	// (rbd.child_attach): from then on it stays as long as the clone does. It returns
	// fault.NotFound when there is no such snapshot, or only in the trash. One operation.
	AddChild(ctx context.Context, id string, snapshot uint64, child Child) error
	// RemoveChild makes sure that a snapshot does not know a clone (rbd.child_detach). It
	// is for clones whose header is not there: a purge does it for the others. The snapshot
	// stays, also in the trash. One operation.
	RemoveChild(ctx context.Context, id string, snapshot uint64, child Child) error
	// Children returns the clones that a snapshot knows (rbd.children_list), none for one
	// that is not there. One operation.
	Children(ctx context.Context, id string, snapshot uint64) ([]Child, error)
	// Flatten copies what a clone has from its parent and parts them, by librbd; at most
	// a few objects are under way at a time. An image without a parent is left as
	// it is. fault.NotFound when there is no such image. It takes as long as
	// the data, and may be repeated after any failure: it goes on where it was.
	Flatten(ctx context.Context, id string) error

	// Changed returns what differs between two states of an image in a piece of it,
	// in order and in whole data objects where the object map tells (fast-diff), without
	// asking the data. From 0 is the beginning, when nothing was written: then it
	// is what is allocated, a parent's data included. To 0 is the present state. About
	// 13 operations for any length with fast-diff (librbd), 15 since a snapshot.
	Changed(ctx context.Context, id string, between Between, piece Extent) ([]Extent, error)

	// Index returns up to max (at most 1024) entries of the pool's index whose keys
	// come after the given one, in the order of their keys. The index is one object of
	// the driver's own, rbd_csi.index, and [Copies.ChangeIndex] decides what is in
	// it. fault.NotFound when it is not there. One operation.
	Index(ctx context.Context, after string, max int) ([]IndexEntry, error)
	// IndexValues returns the values of those of the keys that the index has.
	// fault.NotFound when it is not there. One operation.
	IndexValues(ctx context.Context, keys ...string) (map[string]string, error)
	// ChangeIndex is to the index what ChangeMeta is to a header. One operation.
	ChangeIndex(ctx context.Context, change Change) error
	// MakeIndex makes sure that the index is there; it begins empty. One operation.
	MakeIndex(ctx context.Context) error
}

// A Snapshot is a snapshot of an image, as its header has it.
type Snapshot struct {
	ID       uint64 // of the pool: no two snapshots ever have the same
	Name     string
	Bytes    int64 // the image's size at that moment
	Time     time.Time
	Kind     SnapshotKind
	Children int // how many clones it knows
}

// A SnapshotKind is the namespace that a snapshot is in.
type SnapshotKind uint32

// The kinds of snapshots (cls::rbd::SnapshotNamespaceType).
const (
	UserSnapshot    SnapshotKind = 0
	GroupSnapshot   SnapshotKind = 1
	TrashedSnapshot SnapshotKind = 2 // removed while it had clones
	MirrorSnapshot  SnapshotKind = 3
)

// A SnapshotOf is a snapshot to be taken.
type SnapshotOf struct {
	ID   string // the image's
	Name string // the snapshot's
}

// A Parent is the snapshot that a clone was made of.
type Parent struct {
	PoolID    int64
	Namespace string
	ID        string
	Snapshot  uint64
	Overlap   int64 // bytes of the clone, from its beginning, that the parent shows through
}

// Is reports whether both are the same snapshot. The overlap does not tell parents apart: it shrinks with the clone.
func (p Parent) Is(other Parent) bool {
	p.Overlap = other.Overlap
	return p == other
}

// A Child is a clone.
type Child struct {
	PoolID    int64
	Namespace string
	ID        string
}

// Between names two states of an image by the IDs of their snapshots.
type Between struct{ From, To uint64 }

// An Extent is a piece of an image, in bytes. Exists is set by Changed alone: false
// says that the piece was discarded and reads as zeroes.
type Extent struct {
	Offset, Bytes int64
	Exists        bool
}

// An IndexEntry is a pair of the pool's index.
type IndexEntry struct{ Key, Value string }
