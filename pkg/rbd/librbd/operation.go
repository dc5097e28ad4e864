package librbd

/*
#cgo LDFLAGS: -lrados
#include <stdint.h>
#include <stdlib.h>
#include <rados/librados.h>

extern void rbdcsiCompleted(uintptr_t call, int result);

static void completed(rados_completion_t completion, void *call) {
	rbdcsiCompleted((uintptr_t)call, rados_aio_get_return_value(completion));
}

static int write_op(rados_ioctx_t io, rados_write_op_t op, const char *object, int flags, uintptr_t call) {
	rados_completion_t completion;
	int r = rados_aio_create_completion2((void *)call, completed, &completion);
	if (r < 0)
		return r;
	r = rados_aio_write_op_operate(op, io, completion, object, NULL, flags);
	rados_aio_release(completion);
	return r;
}

static int read_op(rados_ioctx_t io, rados_read_op_t op, const char *object, uintptr_t call) {
	rados_completion_t completion;
	int r = rados_aio_create_completion2((void *)call, completed, &completion);
	if (r < 0)
		return r;
	r = rados_aio_read_op_operate(op, io, completion, object, LIBRADOS_OPERATION_NOFLAG);
	rados_aio_release(completion);
	return r;
}

// texts returns where each of count texts begins that stand one behind the other.
static const char **texts(const char *packed, const size_t *lengths, size_t count) {
	const char **begins = malloc((count + 1) * sizeof *begins);
	for (size_t i = 0; i < count; i++) {
		begins[i] = packed;
		packed += lengths[i];
	}
	return begins;
}

static void set_omap(rados_write_op_t op, const char *keys, const size_t *key_lengths,
		const char *values, const size_t *value_lengths, size_t count) {
	const char **k = texts(keys, key_lengths, count), **v = texts(values, value_lengths, count);
	rados_write_op_omap_set2(op, k, v, key_lengths, value_lengths, count);
	free(k);
	free(v);
}

static void remove_omap(rados_write_op_t op, const char *keys, const size_t *lengths, size_t count) {
	const char **k = texts(keys, lengths, count);
	rados_write_op_omap_rm_keys2(op, k, lengths, count);
	free(k);
}

// What a step of a read operation has found; librados writes here when the operation ends.
typedef struct { char *bytes; size_t length; int result; } answer_t;
typedef struct { rados_omap_iter_t pairs; unsigned char more; int result; } pairs_t;

typedef struct { char *key, *value; size_t key_length, value_length; } pair_t;

static void exec(rados_read_op_t op, const char *class, const char *method, const char *input, size_t length, answer_t *found) {
	rados_read_op_exec(op, class, method, input, length, &found->bytes, &found->length, &found->result);
}

static void list_omap(rados_read_op_t op, const char *after, const char *prefix, uint64_t most, pairs_t *found) {
	rados_read_op_omap_get_vals2(op, after, prefix, most, &found->pairs, &found->more, &found->result);
}

static void get_omap(rados_read_op_t op, const char *keys, const size_t *lengths, size_t count, pairs_t *found) {
	const char **k = texts(keys, lengths, count);
	rados_read_op_omap_get_vals_by_keys2(op, k, count, lengths, &found->pairs, &found->result);
	free(k);
}

static pair_t next(const pairs_t *found) {
	pair_t pair = {0};
	rados_omap_get_next2(found->pairs, &pair.key, &pair.value, &pair.key_length, &pair.value_length);
	return pair;
}
*/
import "C"

import (
	"iter"
	"runtime/cgo"
	"unsafe"
)

// Operations of RADOS: steps on one object that are carried out together or not at all
// (rados_write_op_operate and rados_read_op_operate). Go-ceph has them too, and holds a
// thread until the answer is there. Here librados is told whom to tell (rados_aio_write_op_operate):
// a call under way, and one that hangs, costs a goroutine. Decision 0014 has what that is worth.

// flags of an operation; see enum LIBRADOS_OPERATION_* of librados.h.
type flags C.int

const (
	plain     flags = C.LIBRADOS_OPERATION_NOFLAG
	fullForce flags = C.LIBRADOS_OPERATION_FULL_FORCE // also in a full pool
)

// A writeOp changes an object. Its steps copy what they are given.
type writeOp struct{ op C.rados_write_op_t }

// operate carries out an operation and returns its number as an error.
func (a at) operate(object string, how flags, steps func(*writeOp)) error {
	op := &writeOp{C.rados_create_write_op()}
	defer C.rados_release_write_op(op.op)
	steps(op)
	return awaited(object, func(name *C.char, call C.uintptr_t) C.int {
		return C.write_op(C.rados_ioctx_t(a.Pointer()), op.op, name, C.int(how), call)
	})
}

// awaited begins an operation on an object and waits for its end.
func awaited(object string, begin func(name *C.char, call C.uintptr_t) C.int) error {
	ended := make(chan C.int, 1)
	call := cgo.NewHandle(ended)
	defer call.Delete()
	name := C.CString(object)
	defer C.free(unsafe.Pointer(name))
	r := begin(name, C.uintptr_t(call))
	if r >= 0 {
		r = <-ended
	}
	if r < 0 {
		return code(r)
	}
	return nil
}

// rbdcsiCompleted is called by librados, in a thread of its own that has other completions
// to tell of and must not wait.
//
//export rbdcsiCompleted
func rbdcsiCompleted(call C.uintptr_t, result C.int) {
	cgo.Handle(call).Value().(chan C.int) <- result
}

// create makes sure that the object is there.
func (w *writeOp) create() { C.rados_write_op_create(w.op, C.LIBRADOS_CREATE_IDEMPOTENT, nil) }

// createNew makes the object, or fails with EEXIST.
func (w *writeOp) createNew() { C.rados_write_op_create(w.op, C.LIBRADOS_CREATE_EXCLUSIVE, nil) }

// assertExists fails with ENOENT where the object is not there.
func (w *writeOp) assertExists() { C.rados_write_op_assert_exists(w.op) }

// remove removes the object.
func (w *writeOp) remove() { C.rados_write_op_remove(w.op) }

// write writes bytes from an offset on.
func (w *writeOp) write(content []byte, offset uint64) {
	C.rados_write_op_write(w.op, chars(content), C.size_t(len(content)), C.uint64_t(offset))
}

// compare fails where the bytes from an offset on are others, see firstDifference.
func (w *writeOp) compare(content []byte, offset uint64) {
	C.rados_write_op_cmpext(w.op, chars(content), C.size_t(len(content)), C.uint64_t(offset), nil)
}

// exec calls a method of an OSD class.
func (w *writeOp) exec(class, method string, input []byte) {
	c, m := C.CString(class), C.CString(method)
	defer C.free(unsafe.Pointer(c))
	defer C.free(unsafe.Pointer(m))
	C.rados_write_op_exec(w.op, c, m, chars(input), C.size_t(len(input)), nil)
}

// setOmap sets pairs of the omap, if there are any; it makes the object where it is not there.
func (w *writeOp) setOmap(pairs map[string][]byte) {
	if len(pairs) == 0 {
		return
	}
	var keys, values packed
	for key, value := range pairs {
		keys.add(key)
		values.add(string(value))
	}
	C.set_omap(w.op, chars(keys.bytes), keys.sizes(), chars(values.bytes), values.sizes(), keys.count())
}

// removeOmap removes keys from the omap, if there are any.
func (w *writeOp) removeOmap(keys []string) {
	if len(keys) == 0 {
		return
	}
	all := pack(keys)
	C.remove_omap(w.op, chars(all.bytes), all.sizes(), all.count())
}

// A readOp reads of an object. What its steps return can be read once the operation has ended well, and
// until read returns.
type readOp struct {
	op      C.rados_read_op_t
	results []*C.int // of the steps, for an answer that cannot be decoded fails its step alone
	release []func() // of what librados writes to
}

// read carries out an operation: steps adds its steps, and returns how to read what they have found.
func (a at) read(object string, steps func(*readOp) (found func())) error {
	op := &readOp{op: C.rados_create_read_op()}
	defer func() {
		C.rados_release_read_op(op.op)
		for _, release := range op.release {
			release()
		}
	}()
	found := steps(op)
	err := awaited(object, func(name *C.char, call C.uintptr_t) C.int {
		return C.read_op(C.rados_ioctx_t(a.Pointer()), op.op, name, call)
	})
	if err != nil {
		return err
	}
	for _, result := range op.results {
		if *result < 0 {
			return code(*result)
		}
	}
	found()
	return nil
}

// assertExists fails with ENOENT where the object is not there.
func (r *readOp) assertExists() { C.rados_read_op_assert_exists(r.op) }

// exec calls a method of an OSD class and returns how to get its answer.
func (r *readOp) exec(class, method string, input []byte) (answer func() []byte) {
	c, m := C.CString(class), C.CString(method)
	defer C.free(unsafe.Pointer(c))
	defer C.free(unsafe.Pointer(m))
	got := (*C.answer_t)(C.calloc(1, C.sizeof_answer_t))
	r.results = append(r.results, &got.result)
	r.release = append(r.release, func() {
		C.rados_buffer_free(got.bytes)
		C.free(unsafe.Pointer(got))
	})
	C.exec(r.op, c, m, chars(input), C.size_t(len(input)), got)
	return func() []byte { return C.GoBytes(unsafe.Pointer(got.bytes), C.int(got.length)) }
}

// omap reads pairs in the order of their keys, those after one and with a prefix, at most so many.
func (r *readOp) omap(after, prefix string, most int) iter.Seq2[string, []byte] {
	a, p := C.CString(after), C.CString(prefix)
	defer C.free(unsafe.Pointer(a))
	defer C.free(unsafe.Pointer(p))
	found := r.pairs()
	C.list_omap(r.op, a, p, C.uint64_t(most), found)
	return inOrder(found)
}

// omapOf reads the pairs that have these keys, as far as there are.
func (r *readOp) omapOf(keys []string) iter.Seq2[string, []byte] {
	all, found := pack(keys), r.pairs()
	C.get_omap(r.op, chars(all.bytes), all.sizes(), all.count(), found)
	return inOrder(found)
}

func (r *readOp) pairs() *C.pairs_t {
	found := (*C.pairs_t)(C.calloc(1, C.sizeof_pairs_t))
	r.results = append(r.results, &found.result)
	r.release = append(r.release, func() {
		C.rados_omap_get_end(found.pairs)
		C.free(unsafe.Pointer(found))
	})
	return found
}

// inOrder returns the pairs that were found (rados_omap_get_next2), once.
func inOrder(found *C.pairs_t) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for {
			pair := C.next(found)
			if pair.key == nil {
				return
			}
			key := C.GoStringN(pair.key, C.int(pair.key_length))
			if !yield(key, C.GoBytes(unsafe.Pointer(pair.value), C.int(pair.value_length))) {
				return
			}
		}
	}
}

// packed is texts one behind the other, so that C can be given them without a copy of each.
type packed struct {
	bytes   []byte
	lengths []C.size_t
}

func pack(texts []string) *packed {
	p := &packed{}
	for _, text := range texts {
		p.add(text)
	}
	return p
}

func (p *packed) add(text string) {
	p.bytes = append(p.bytes, text...)
	p.lengths = append(p.lengths, C.size_t(len(text)))
}

func (p *packed) sizes() *C.size_t { return unsafe.SliceData(p.lengths) }

func (p *packed) count() C.size_t { return C.size_t(len(p.lengths)) }

// chars is where bytes begin, for a call that does not keep them.
func chars(content []byte) *C.char { return (*C.char)(unsafe.Pointer(unsafe.SliceData(content))) }
