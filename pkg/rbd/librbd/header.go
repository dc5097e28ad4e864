package librbd

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// Keys in the omap of rbd_header.ID, as the class rbd writes them.
const (
	keySize        = "size"
	keyOrder       = "order"
	keyFeatures    = "features"
	keySnapSeq     = "snap_seq"
	keyParent      = "parent"
	keyDataPool    = "data_pool_id"
	keyStripeUnit  = "stripe_unit"
	keyStripeCount = "stripe_count"
	keyCreated     = "create_timestamp"
	metaPrefix     = "metadata_"
	snapPrefix     = "snapshot_"
)

// knownFeatures are those that package rbd names. Others come and go with
// what is done to an image (OPERATIONS with its first clone) and are no part of
// its layout.
const knownFeatures = rbd.Layering | rbd.StripingV2 | rbd.ExclusiveLock | rbd.ObjectMap |
	rbd.FastDiff | rbd.DeepFlatten | rbd.Journaling | rbd.DataPool

// CreateHeader implements rbd.Pool: rbd.create on a new object, and metadata. The
// stripes are written beside it and not by rbd.set_stripe_unit_count, because a
// method does not see what an earlier one of the same operation wrote. It costs
// one operation more when a connection uses a data pool for the first time.
func (p *pool) CreateHeader(ctx context.Context, id string, layout rbd.Layout, meta map[string]string) error {
	return do(ctx, p, "create the header of "+id, func(a at) error {
		dataPool, err := a.dataPool(layout.DataPool)
		if err != nil {
			return err
		}
		omap := prefixed(metaPrefix, meta)
		input, err := creation(id, layout, p.where.PoolID, dataPool, omap)
		if err != nil {
			return err
		}
		return a.write(headerPrefix+id, func(op *writeOp) {
			op.createNew()
			op.exec(class, "create", input)
			op.setOmap(omap)
		})
	})
}

// creation returns the input of rbd.create; it adds the stripes to omap.
func creation(id string, layout rbd.Layout, pool, dataPool int64, omap map[string][]byte) ([]byte, error) {
	if layout.Bytes < 0 || layout.ObjectBytes <= 0 || layout.ObjectBytes&(layout.ObjectBytes-1) != 0 {
		return nil, fmt.Errorf("%w: %d bytes in objects of %d", fault.Invalid, layout.Bytes, layout.ObjectBytes)
	}
	features, prefix := layout.Features&^(rbd.DataPool|rbd.StripingV2), dataPrefix+id
	if dataPool >= 0 {
		features |= rbd.DataPool
		prefix = dataPrefix + strconv.FormatInt(pool, 10) + "." + id
	}
	if layout.StripeCount > 1 || layout.StripeUnit != 0 && layout.StripeUnit != layout.ObjectBytes {
		features |= rbd.StripingV2
		omap[keyStripeUnit] = new(writer).u64(uint64(layout.StripeUnit)).bytes
		omap[keyStripeCount] = new(writer).u64(uint64(layout.StripeCount)).bytes
	}
	order := uint8(bits.TrailingZeros64(uint64(layout.ObjectBytes)))
	return new(writer).u64(uint64(layout.Bytes)).u8(order).u64(uint64(features)).text(prefix).u64(uint64(dataPool)).bytes, nil
}

// prefixed returns texts as pairs of an omap, with a prefix before their keys.
func prefixed(prefix string, texts map[string]string) map[string][]byte {
	pairs := make(map[string][]byte, len(texts))
	for key, value := range texts {
		pairs[prefix+key] = []byte(value)
	}
	return pairs
}

// dataPool returns the ID of a data pool that can overwrite, -1 for none.
func (a at) dataPool(name string) (int64, error) {
	if name == "" || name == a.where.Pool.Pool {
		return -1, nil
	}
	s := a.session
	io, err := s.context(name, "")
	if err != nil {
		return 0, fmt.Errorf("data %w", err)
	}
	id := io.GetPoolID()
	s.mu.Lock()
	checked := s.overwrite[id]
	s.mu.Unlock()
	if checked {
		return id, nil
	}
	err = at{IOContext: io, session: s}.checkOverwrite()
	if is(err, syscall.EOPNOTSUPP) {
		return 0, fmt.Errorf("%w: the data pool %s is erasure-coded and cannot overwrite, "+
			"`ceph osd pool set %s allow_ec_overwrites true` makes it so", fault.Unsupported, name, name)
	}
	if err != nil {
		return 0, fmt.Errorf("check whether the data pool %s can overwrite: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overwrite[id] = true
	return id, nil
}

// overwriteCheck is the name of an object that never exists for others to see.
const overwriteCheck = "rbd_csi_overwrite_check"

// checkOverwrite writes one byte twice in the same place and removes it again, in
// one atomic operation that leaves nothing. An erasure-coded pool without
// allow_ec_overwrites refuses the second write.
func (a at) checkOverwrite() error {
	return a.write(overwriteCheck, func(op *writeOp) {
		op.write([]byte{0}, 0)
		op.write([]byte{0}, 0)
		op.remove()
	})
}

// ReserveHeader implements rbd.Pool.
func (p *pool) ReserveHeader(ctx context.Context, id string, meta map[string]string) error {
	return do(ctx, p, "reserve the header of "+id, func(a at) error {
		return a.writeAlways(headerPrefix+id, func(op *writeOp) {
			op.createNew()
			op.setOmap(prefixed(metaPrefix, meta))
		})
	})
}

// RemoveHeader implements rbd.Pool.
func (p *pool) RemoveHeader(ctx context.Context, id string) error {
	return do(ctx, p, "remove the header of "+id, func(a at) error { return a.remove(headerPrefix + id) })
}

// mostMeta is how many pieces of metadata are read: what an OSD gives in one
// operation (osd_max_omap_entries_per_request). The driver keeps a dozen.
const mostMeta = 1024

// mostSnapshots is how many snapshots are read; the same limit.
const mostSnapshots = 1024

// Header implements rbd.Pool: the omap is read as it is, the fixed keys, the
// snapshots and our metadata in one operation.
func (p *pool) Header(ctx context.Context, id string) (rbd.Header, error) {
	return run(ctx, p, "read the header of "+id, func(a at) (rbd.Header, error) { return a.header(id) })
}

func (a at) header(id string) (rbd.Header, error) {
	values := map[string][]byte{}
	err := a.read(headerPrefix+id, func(op *readOp) func() {
		fixed := op.omapOf([]string{
			keySize, keyOrder, keyFeatures, keySnapSeq, keyParent, keyDataPool, keyStripeUnit, keyStripeCount, keyCreated,
		})
		snapshots := op.omap("", snapPrefix, mostSnapshots)
		meta := op.omap("", metaPrefix+rbd.MetaPrefix, mostMeta)
		return func() {
			maps.Insert(values, fixed)
			maps.Insert(values, snapshots)
			maps.Insert(values, meta)
		}
	})
	if err != nil {
		return rbd.Header{}, err
	}
	return readHeader(id, values)
}

// readHeader makes a header of the values in an omap.
func readHeader(id string, values map[string][]byte) (rbd.Header, error) {
	header := rbd.Header{ID: id, DataPoolID: -1, Meta: map[string]string{}}
	for key, value := range values {
		if name, ok := strings.CutPrefix(key, metaPrefix); ok {
			header.Meta[name] = string(value)
		}
	}
	if _, header.Whole = values[keySize]; !header.Whole {
		return header, nil
	}
	var failed error
	number := func(key string, absent uint64) uint64 {
		value, found := values[key]
		if !found {
			return absent
		}
		r := reader{bytes: value}
		got := r.u64()
		if r.err != nil {
			failed = fmt.Errorf("key %s: %w", key, r.err)
		}
		return got
	}
	order := reader{bytes: values[keyOrder]}
	header.Layout = rbd.Layout{
		Bytes: int64(number(keySize, 0)), ObjectBytes: 1 << order.u8(),
		Features:   rbd.Features(number(keyFeatures, 0)) & knownFeatures,
		StripeUnit: int64(number(keyStripeUnit, 0)), StripeCount: int64(number(keyStripeCount, 0)),
	}
	header.DataPoolID = int64(number(keyDataPool, ^uint64(0)))
	header.HasSnaps = number(keySnapSeq, 0) > 0
	if parent, found := values[keyParent]; found && failed == nil {
		header.Parent, header.HasParent, failed = readParent(parent)
	}
	if failed == nil {
		header.Snapshots, failed = readSnapshots(values)
	}
	if failed == nil {
		header.Created, failed = readCreated(values)
	}
	if failed == nil {
		failed = order.err
	}
	if failed != nil {
		return rbd.Header{}, fmt.Errorf("header of %s: %w", id, failed)
	}
	return header, nil
}

// readCreated reads when an image was made (utime_t), as rbd.create notes it.
func readCreated(values map[string][]byte) (time.Time, error) {
	value, found := values[keyCreated]
	if !found {
		return time.Time{}, nil
	}
	r := reader{bytes: value}
	at := r.time()
	if r.err != nil {
		return time.Time{}, fmt.Errorf("key %s: %w", keyCreated, r.err)
	}
	return at, nil
}

// readParent reads the parent of an image's HEAD, and whether it has one. After a
// flatten the key stays while snapshots need the parent, without an overlap for HEAD
// (struct cls_rbd_parent in src/cls/rbd/cls_rbd.h).
func readParent(value []byte) (parent rbd.Parent, has bool, err error) {
	r := reader{bytes: value}
	r.versioned(func(version uint8, r *reader) {
		parent.PoolID = int64(r.u64())
		if version >= 2 {
			parent.Namespace = r.text()
		}
		parent.ID, parent.Snapshot = r.text(), r.u64()
		if has = version < 2 || r.u8() != 0; has {
			parent.Overlap = int64(r.u64())
		}
	})
	if has = has && parent.PoolID >= 0; !has || r.err != nil {
		return rbd.Parent{}, false, r.err
	}
	return parent, true, nil
}

// readSnapshots reads the snapshots in an omap, in the order of their IDs.
func readSnapshots(values map[string][]byte) ([]rbd.Snapshot, error) {
	var snapshots []rbd.Snapshot
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !strings.HasPrefix(key, snapPrefix) {
			continue
		}
		snapshot, err := readSnapshot(values[key])
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", key, err)
		}
		snapshots = append(snapshots, snapshot)
	}
	slices.SortFunc(snapshots, func(a, b rbd.Snapshot) int { return cmp.Compare(a.ID, b.ID) })
	return snapshots, nil
}

// readSnapshot reads a struct cls_rbd_snap (src/cls/rbd/cls_rbd.h): version 3 knows
// protection, 4 flags, 5 namespaces, 6 the time and 7 children. OSDs since Nautilus
// write version 8, which readers of earlier ones cannot read: it has neither
// the features nor a parent of its own any more.
func readSnapshot(value []byte) (snapshot rbd.Snapshot, err error) {
	const withoutParent = 8
	r := reader{bytes: value}
	r.compatible(func(version, oldest uint8, r *reader) {
		snapshot.ID, snapshot.Name, snapshot.Bytes = r.u64(), r.text(), int64(r.u64())
		if oldest < withoutParent {
			_ = r.u64() // features
		}
		if version >= 2 && oldest < withoutParent {
			r.versioned(func(uint8, *reader) {}) // parent
		}
		if version >= 3 {
			_ = r.u8() // protection
		}
		if version >= 4 {
			_ = r.u64() // flags
		}
		if version >= 5 {
			r.versioned(func(_ uint8, r *reader) { snapshot.Kind = rbd.SnapshotKind(r.u32()) })
		}
		if version >= 6 {
			snapshot.Time = r.time()
		}
		if version >= 7 {
			snapshot.Children = int(r.u32())
		}
	})
	return snapshot, r.err
}

// ChangeMeta implements rbd.Pool.
func (p *pool) ChangeMeta(ctx context.Context, id string, change rbd.Change) error {
	return do(ctx, p, "change metadata of "+id, func(a at) error { return a.change(headerPrefix+id, metaPrefix, change) })
}

// change changes an omap: cmpomap.cmp_vals in front of the changes. The existence
// of the object is asserted, because an omap-set alone would make it. The prefix is
// put before each key.
func (a at) change(object, prefix string, change rbd.Change) error {
	return a.write(object, func(op *writeOp) {
		op.assertExists()
		if len(change.Expect) > 0 {
			op.exec("cmpomap", "cmp_vals", expectation(prefixed(prefix, change.Expect)))
		}
		op.setOmap(prefixed(prefix, change.Set))
		var remove []string
		for _, key := range change.Remove {
			remove = append(remove, prefix+key)
		}
		op.removeOmap(remove)
	})
}

// expectation is struct cmp_vals_op (src/cls/cmpomap/ops.h): how to compare, the
// values in the order of their keys, and an empty default for keys that are
// absent. Mode and operator are CEPH_OSD_CMPXATTR_* in src/include/rados.h.
func expectation(values map[string][]byte) []byte {
	const (
		modeText     = 1
		equal        = 1
		haveADefault = 1
	)
	return new(writer).versioned(1, func(w *writer) {
		w.u8(modeText).u8(equal).u32(uint32(len(values)))
		for _, key := range slices.Sorted(maps.Keys(values)) {
			w.text(key).text(string(values[key]))
		}
		w.u8(haveADefault).text("")
	}).bytes
}

// objectNonexistent is OBJECT_NONEXISTENT, the state of all entries of a new map.
const objectNonexistent = 0

// EnsureObjectMap implements rbd.Pool: rbd.object_map_resize on a new object. A map
// that exists is left alone, because it was made whole, and because resizing one
// that was grown since would cut it.
func (p *pool) EnsureObjectMap(ctx context.Context, id string, layout rbd.Layout) error {
	return do(ctx, p, "make the object map of "+id, func(a at) error {
		err := a.write(mapPrefix+id, func(op *writeOp) {
			op.createNew()
			op.exec(class, "object_map_resize", new(writer).u64(uint64(layout.Objects())).u8(objectNonexistent).bytes)
		})
		if is(err, syscall.EEXIST) {
			return nil
		}
		return err
	})
}

// RemoveObjectMap implements rbd.Pool.
func (p *pool) RemoveObjectMap(ctx context.Context, id string) error {
	return do(ctx, p, "remove the object map of "+id, func(a at) error { return a.remove(mapPrefix + id) })
}
