// Package rbd says what the driver asks of Ceph: an interface, its words, no C.
//
// The words are Ceph's. An image has a name and an ID. The name is for people,
// can be taken again by a later image, and stands in two places: in the object
// rbd_id.NAME, which holds the ID and is what clients open by, and in the omap
// of rbd_directory, which is what `rbd ls` lists. The ID belongs to one image
// only, for ever: rbd_header.ID holds the image's layout, its snapshots and its
// metadata, rbd_object_map.ID says which data objects exist, rbd_data.ID.N are
// those objects. An image in the trash has lost its name and kept its ID.
//
// These objects are changed by methods of the OSD class rbd (src/cls/rbd in
// Ceph), the same calls that librbd and every older client send, so they are a
// wire protocol and not an implementation detail. Because each is atomic on its
// object, an image can be made and named in steps that another process can
// finish: see package volume, where the order of the steps is decided. Each
// method here is one step and says what it costs in RADOS operations.
//
// Two adapters implement the interface: librbd on a real cluster, rbdtest in
// memory. One suite, rbdtest.Suite, runs on both.
package rbd

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Clusters opens pools. Connections are shared: one for each cluster and user.
// All methods may be called at once.
type Clusters interface {
	// Pool returns a pool, or a namespace of one, as the given user sees it.
	// Without credentials the user is the one in the cluster's keyring.
	//
	// It returns fault.Invalid when the cluster is not configured,
	// fault.NotFound when it certainly has no such pool or namespace,
	// fault.Unauthenticated when the user or the key is wrong, and
	// fault.Unavailable when no monitor answered. It costs nothing
	// when the connection and the pool are known, and one operation for a
	// namespace seen for the first time.
	Pool(ctx context.Context, at volid.Pool, as params.Credentials) (Pool, error)

	// Pools returns the pools of a cluster, and the namespaces in them, that the
	// user of the cluster's keyring may read, in the order of their handles. It
	// costs one operation for each pool, or none where that is remembered.
	Pools(ctx context.Context, cluster string) ([]volid.Pool, error)

	// Names returns the names of the configured clusters, sorted.
	Names(ctx context.Context) ([]string, error)
}

// A Pool is a pool or a namespace in one, seen by one user. All methods may be
// called at once, also by other processes.
//
// Beside the kinds named at each method every method may return
// fault.Unavailable (not sent, or certainly not applied), fault.Unknown (sent
// and not answered in time: look again), fault.Denied, and fault.Exhausted when
// the pool or its quota is full.
type Pool interface {
	Copies
	Fences

	// Where returns the pool's place and the identities that outlive names.
	Where() Where

	// FindName returns the ID in rbd_id.NAME, or fault.NotFound. One operation.
	FindName(ctx context.Context, name string) (id string, err error)
	// AddName makes rbd_id.NAME with the ID, exclusively: fault.Exists when the
	// object is there, whatever it holds. One operation.
	AddName(ctx context.Context, name, id string) error
	// RemoveName makes sure that rbd_id.NAME does not hold this ID: it compares
	// and removes in one atomic operation (cmpext and remove). An object that
	// holds another ID is left alone, and that is no error. One operation.
	RemoveName(ctx context.Context, name, id string) error

	// FindEntry returns the ID that the directory has for a name, or
	// fault.NotFound. One operation.
	FindEntry(ctx context.Context, name string) (id string, err error)
	// AddEntry adds a name with its ID to the directory: fault.Exists when the
	// name or the ID is in it. One operation.
	AddEntry(ctx context.Context, name, id string) error
	// RemoveEntry makes sure that the directory has no such pair. A name that
	// stands there with another ID is left alone. One operation.
	RemoveEntry(ctx context.Context, name, id string) error
	// Entries returns up to max (at most 1024) entries of the directory whose
	// names come after the given one, in the order of their names. One operation.
	Entries(ctx context.Context, after string, max int) ([]Entry, error)

	// CreateHeader makes rbd_header.ID with a layout and metadata, exclusively
	// and in one atomic operation: fault.Exists when the object is there. With
	// Layout.DataPool set it returns fault.NotFound for a missing data pool and
	// fault.Unsupported for an erasure-coded one that cannot overwrite.
	CreateHeader(ctx context.Context, id string, layout Layout, meta map[string]string) error
	// ReserveHeader makes rbd_header.ID as a bare object that has metadata and no
	// layout, exclusively: fault.Exists when the object is there. It keeps a
	// half-made image from ever getting a header. One operation.
	ReserveHeader(ctx context.Context, id string, meta map[string]string) error
	// RemoveHeader makes sure that rbd_header.ID is gone. It is for headers that
	// never had data: everything else goes through the trash. One operation.
	RemoveHeader(ctx context.Context, id string) error
	// Header reads rbd_header.ID, or returns fault.NotFound. One operation.
	Header(ctx context.Context, id string) (Header, error)
	// ChangeMeta compares metadata of rbd_header.ID and, if all is as expected,
	// changes it, atomically. It returns fault.Superseded when something is not as
	// expected, and fault.NotFound when there is no such header; then nothing
	// was changed. One operation.
	ChangeMeta(ctx context.Context, id string, change Change) error

	// EnsureObjectMap makes sure that rbd_object_map.ID exists and covers the
	// layout; entries that exist keep their state. One operation.
	EnsureObjectMap(ctx context.Context, id string, layout Layout) error
	// RemoveObjectMap makes sure that rbd_object_map.ID is gone. One operation.
	RemoveObjectMap(ctx context.Context, id string) error

	// Grow makes an image at least so many bytes large; it never shrinks one.
	// fault.NotFound when there is no such image. About 28 operations (librbd).
	Grow(ctx context.Context, id string, bytes int64) error
	// HoldsData reports whether any data object of the image exists, its
	// parent's included. It asks the object map where there is a valid one and
	// the data objects otherwise. About 13 operations (librbd).
	HoldsData(ctx context.Context, id string) (bool, error)

	// AddTrash makes sure that the trash has an entry for the image: ID, the name it
	// had, source USER, now, no deferment, state NORMAL (cls_rbd trash_add). An
	// entry that is there stays as it is. The name is not touched: an image leaves its name by
	// RemoveName and RemoveEntry, which, unlike `rbd trash mv NAME`, can never
	// take a later image of the same name. One operation.
	AddTrash(ctx context.Context, id, name string) error
	// Trashed returns the entries of the trash. One operation per 1024 entries.
	Trashed(ctx context.Context) ([]TrashEntry, error)
	// Purge removes an image in the trash with its data. It returns fault.NotFound
	// when the trash has no such ID, and fault.InUse, with the image left whole,
	// while a client watches it or it has snapshots. About 31 operations, and
	// one for each data object (librbd).
	Purge(ctx context.Context, id string) error

	// Capacity returns how much the pool can still take. It asks the monitors and
	// costs no RADOS operation. With dataPool set it is that pool's.
	Capacity(ctx context.Context, dataPool string) (Capacity, error)
}

// Where is a pool's place in names and in what outlives names.
type Where struct {
	volid.Pool
	FSID   string // the cluster's UUID
	PoolID int64
}

// An Entry is an image in the directory.
type Entry struct {
	Name string
	ID   string
}

// A Layout is how an image is laid out; it is decided at its creation. Only
// Bytes changes later.
type Layout struct {
	Bytes       int64
	ObjectBytes int64 // a power of two
	Features    Features
	StripeUnit  int64 // bytes; 0 with StripeCount 0: objects are written one after the other
	StripeCount int64
	DataPool    string // name of the pool for data objects, "" for the image's own
}

// Objects returns how many data objects the image can have: what its object map covers.
func (l Layout) Objects() int64 {
	if l.ObjectBytes <= 0 {
		return 0
	}
	if l.StripeCount > 1 {
		// As in Striper::get_num_objects: the last, partial set of objects counts by stripes.
		set := l.ObjectBytes * l.StripeCount
		sets := l.Bytes / set
		rest := l.Bytes % set
		tail := (rest + l.StripeUnit - 1) / l.StripeUnit
		return sets*l.StripeCount + min(tail, l.StripeCount)
	}
	return (l.Bytes + l.ObjectBytes - 1) / l.ObjectBytes
}

// Features are bits of an image's features, as in include/rbd/features.h.
type Features uint64

// The features that the driver sets or asks for.
const (
	Layering      Features = 1 << 0
	StripingV2    Features = 1 << 1
	ExclusiveLock Features = 1 << 2
	ObjectMap     Features = 1 << 3
	FastDiff      Features = 1 << 4
	DeepFlatten   Features = 1 << 5
	Journaling    Features = 1 << 6
	DataPool      Features = 1 << 7
)

// Has reports whether all the given bits are set.
func (f Features) Has(bits Features) bool { return f&bits == bits }

// A Header is what rbd_header.ID says of an image.
type Header struct {
	ID string
	// Whole is false for a bare header made by ReserveHeader; then there is no Layout.
	Whole bool
	// Layout is the image's; DataPool in it is left empty, DataPoolID tells it.
	Layout     Layout
	DataPoolID int64      // -1: the image's own pool
	Created    time.Time  // by the clock of an OSD; zero for a bare header, and for an image older than Ceph 14
	HasParent  bool       // a clone that was not flattened
	Parent     Parent     // of which, when HasParent is set
	HasSnaps   bool       // snapshots were taken of it, perhaps all removed since
	Snapshots  []Snapshot // in the order of their IDs, those in the trash included; at most 1024
	// Meta holds the metadata whose keys begin with MetaPrefix, as
	// `rbd image-meta list` shows it. A clone begins with a copy of its source's.
	Meta map[string]string
}

// MetaPrefix begins the key of all metadata that the driver keeps on images.
const MetaPrefix = "rbd-csi.io/"

// A Change to metadata. Keys are without Ceph's own prefix "metadata_". An
// absent key and an empty value are the same to Expect.
type Change struct {
	Expect map[string]string
	Set    map[string]string
	Remove []string
}

// A TrashEntry is an image in the trash.
type TrashEntry struct {
	ID   string
	Name string // the name that it had
	Time time.Time
}

// Capacity of a pool in bytes, replication already taken off.
type Capacity struct {
	Available int64
	Used      int64
}

// idLetters are those of [NewID]; with 13 of them an ID has 67 random bits.
const idLetters = "0123456789abcdefghijklmnopqrstuvwxyz"

// idLength is the longest ID that `rbd info` shows whole: block_name_prefix
// has room for 24 bytes (RBD_MAX_BLOCK_NAME_SIZE in librbd.h), of which
// "rbd_data." and the final NUL take ten.
const idLength = 14

// NewID returns an ID for an image that the driver makes itself. librbd's own
// IDs are hexadecimal; these begin with the letter v, so that an image which
// someone else is making under our name is not taken for our unfinished work.
func NewID() string {
	random := make([]byte, idLength)
	id := make([]byte, 0, idLength)
	id = append(id, 'v')
	for len(id) < idLength {
		_, _ = rand.Read(random) // never fails, see crypto/rand
		for _, b := range random {
			// 252 is the largest multiple of 36 in a byte: beyond it letters would not be alike likely.
			if b < 252 && len(id) < idLength {
				id = append(id, idLetters[int(b)%len(idLetters)])
			}
		}
	}
	return string(id)
}

// Ours reports whether the ID was made by [NewID].
func Ours(id string) bool {
	if len(id) != idLength || id[0] != 'v' {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// mostObjects is how many data objects an object map can cover
// (cls::rbd::MAX_OBJECT_MAP_OBJECT_COUNT). Larger images cannot be made with one.
const mostObjects = 256_000_000

// MostBytes returns how large an image of this layout can be.
func MostBytes(l Layout) int64 {
	if l.ObjectBytes <= 0 || l.ObjectBytes > (1<<63-1)/mostObjects {
		return 1<<63 - 1
	}
	return l.ObjectBytes * mostObjects
}
