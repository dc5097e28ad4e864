package access

import (
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Sizes in bytes.
const (
	// Step is what sizes are rounded up to.
	Step = 1 << 20
	// Default is the size of a volume for which none is asked.
	Default = 1 << 30
	// MinBlock is the smallest raw block volume.
	MinBlock = 1 << 20
	// MinExt4 is the smallest volume with ext4. mke2fs 1.47 makes no journal below 8 MiB
	// (with its blocks of 4 KiB), and a journal and nothing else there.
	MinExt4 = 16 << 20
	// MinXFS is the smallest volume with xfs: mkfs.xfs refuses less since xfsprogs 5.19.
	MinXFS = 300 << 20

	// sector is the unit of block devices, and so of any size at all.
	sector = 512
	// maxObjects is the largest object map (MAX_OBJECT_MAP_OBJECT_COUNT in Ceph's
	// cls/rbd/cls_rbd_types.h).
	maxObjects = 256_000_000
)

// MinBytes returns the smallest volume in bytes with a filesystem of type fsType, or without
// one where it is "".
func MinBytes(fsType string) int64 {
	switch fsType {
	case "ext4":
		return MinExt4
	case "xfs":
		return MinXFS
	}
	return MinBlock
}

// MaxBytes returns the largest image in bytes with objects of objectSize bytes and
// stripeCount objects side by side (0 and 1 both mean none). It is what
// the object map of an image holds, and counts for images without one too, so that
// the feature can be switched on later. Striped images are bounded at whole object
// sets, since librbd counts all objects of a set that has been begun.
func MaxBytes(objectSize, stripeCount int64) int64 {
	stripeCount = max(stripeCount, 1)
	return maxObjects / stripeCount * stripeCount * objectSize
}

// Size returns the size in bytes to make or grow a volume to, where least and most bound
// what the volume can have ([MinBytes], [MaxBytes]; both multiples of [Step]).
//
// It is the smallest multiple of [Step] that is at least required_bytes and least; if that
// exceeds limit_bytes, the smallest multiple of 512 within the range. Where neither field
// is set (zero counts as not set, as the specification says) it is [Default], or
// less if only limit_bytes is set and asks for less.
//
// A negative field, and required_bytes above limit_bytes, are Invalid: such a range has no
// meaning. A range that has one and cannot be had is OutOfRange: it lies above most
// or below least, or no multiple of 512 is in it.
func Size(r *csi.CapacityRange, least, most int64) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if err := checkRange(required, limit); err != nil {
		return 0, err
	}
	top := most
	if limit > 0 {
		top = min(limit, most)
	}
	switch {
	case required > most:
		return 0, outOfRange("required_bytes %d: the largest volume with this object size has %d bytes", required, most)
	case top < least:
		return 0, outOfRange("limit_bytes %d: the smallest volume of this kind has %d bytes", limit, least)
	}
	wanted := max(required, least)
	if required == 0 {
		wanted = max(min(Default, top-top%Step), least)
	}
	for _, unit := range []int64{Step, sector} {
		if size, ok := roundUp(wanted, unit, top); ok {
			return size, nil
		}
	}
	return 0, outOfRange("required_bytes %d, limit_bytes %d: no multiple of %d is within", required, limit, sector)
}

// CopySize is [Size] for a copy of so many bytes of content, 0 for none: the copy is as large as
// its source where nothing else is asked for, and never smaller. A range that lies below it
// is OutOfRange, even if a larger volume would be within: who asks for less than the source
// has is mistaken about one of them.
func CopySize(r *csi.CapacityRange, content, least, most int64) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if err := checkRange(required, limit); err != nil {
		return 0, err
	}
	switch {
	case required > 0 && required < content:
		return 0, outOfRange("required_bytes %d: the source has %d bytes, and a copy is no smaller", required, content)
	case limit > 0 && limit < content:
		return 0, outOfRange("limit_bytes %d: the source has %d bytes, and a copy is no smaller", limit, content)
	case content > most:
		return 0, outOfRange("the source has %d bytes, and the largest volume with this object size %d", content, most)
	case required == 0 && content > 0:
		r = &csi.CapacityRange{RequiredBytes: content, LimitBytes: limit}
	}
	return Size(r, least, most)
}

// Covers reports whether a volume of size bytes is what r asks for, so that a repeated
// request can be answered with it. An impossible range is covered by nothing.
func Covers(r *csi.CapacityRange, size int64) bool {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	return checkRange(required, limit) == nil && size >= required && (limit == 0 || size <= limit)
}

func checkRange(required, limit int64) error {
	switch {
	case required < 0:
		return invalid("capacity range: required_bytes %d is negative", required)
	case limit < 0:
		return invalid("capacity range: limit_bytes %d is negative", limit)
	case limit > 0 && required > limit:
		return invalid("capacity range: required_bytes %d is above limit_bytes %d", required, limit)
	}
	return nil
}

// roundUp returns the smallest multiple of unit that is at least n, and whether it is at
// most top. It does not overflow.
func roundUp(n, unit, top int64) (int64, bool) {
	if over := n % unit; over != 0 {
		if n > top-(unit-over) {
			return 0, false
		}
		n += unit - over
	}
	return n, n <= top
}

func outOfRange(format string, args ...any) error {
	return fmt.Errorf("capacity range: "+format+": %w", append(args, fault.OutOfRange)...)
}
