package librbd

import (
	"encoding/binary"
	"errors"
	"time"
)

// The encoding of Ceph (src/include/encoding.h): little-endian integers, texts and
// buffers with their length in front, maps with their count in front, and
// structs that may have versions with version, oldest version that can read
// it, and length in front (ENCODE_START).

// A writer puts values together. The zero writer is empty.
type writer struct{ bytes []byte }

func (w *writer) u8(v uint8) *writer { w.bytes = append(w.bytes, v); return w }
func (w *writer) u32(v uint32) *writer {
	w.bytes = binary.LittleEndian.AppendUint32(w.bytes, v)
	return w
}
func (w *writer) u64(v uint64) *writer {
	w.bytes = binary.LittleEndian.AppendUint64(w.bytes, v)
	return w
}

func (w *writer) text(v string) *writer {
	w.u32(uint32(len(v)))
	w.bytes = append(w.bytes, v...)
	return w
}

// time is utime_t: seconds and nanoseconds, 32 bits each.
func (w *writer) time(v time.Time) *writer {
	return w.u32(uint32(v.Unix())).u32(uint32(v.Nanosecond()))
}

// versioned puts a struct of a version that readers of all earlier ones understand.
func (w *writer) versioned(version uint8, fields func(*writer)) *writer {
	const oldest = 1
	var inner writer
	fields(&inner)
	w.u8(version).u8(oldest).u32(uint32(len(inner.bytes)))
	w.bytes = append(w.bytes, inner.bytes...)
	return w
}

// errShort means that an answer ended too early.
var errShort = errors.New("answer is cut short")

// A reader takes values apart. After the first value that is not there, err is
// set and all further values are zero.
type reader struct {
	bytes []byte
	err   error
}

func (r *reader) take(n uint32) []byte {
	if r.err != nil || uint64(n) > uint64(len(r.bytes)) {
		r.err = errShort
		return nil
	}
	taken := r.bytes[:n]
	r.bytes = r.bytes[n:]
	return taken
}

func (r *reader) u8() uint8 {
	if taken := r.take(1); taken != nil {
		return taken[0]
	}
	return 0
}

func (r *reader) u32() uint32 {
	if taken := r.take(4); taken != nil {
		return binary.LittleEndian.Uint32(taken)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if taken := r.take(8); taken != nil {
		return binary.LittleEndian.Uint64(taken)
	}
	return 0
}

func (r *reader) text() string { return string(r.take(r.u32())) }

func (r *reader) time() time.Time {
	seconds, nanoseconds := r.u32(), r.u32()
	return time.Unix(int64(seconds), int64(nanoseconds))
}

// versioned takes a struct apart; fields that a later version added are skipped.
func (r *reader) versioned(fields func(version uint8, r *reader)) {
	r.compatible(func(version, _ uint8, r *reader) { fields(version, r) })
}

// compatible is versioned for a struct that lost fields: it also tells the oldest
// version that can read it.
func (r *reader) compatible(fields func(version, oldest uint8, r *reader)) {
	version, oldest := r.u8(), r.u8()
	inner := reader{bytes: r.take(r.u32()), err: r.err}
	fields(version, oldest, &inner)
	if r.err == nil {
		r.err = inner.err
	}
}

// count returns how many elements follow, which cannot be more than bytes.
func (r *reader) count() int {
	n := r.u32()
	if uint64(n) > uint64(len(r.bytes)) {
		r.err = errShort
		return 0
	}
	return int(n)
}
