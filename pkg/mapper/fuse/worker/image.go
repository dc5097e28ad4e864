//go:build cgo

package worker

/*
#cgo LDFLAGS: -lrbd -lrados
#include <stdint.h>
#include <stdlib.h>
#include <rados/librados.h>
#include <rbd/librbd.h>

extern void rbdcsiImageCompleted(uintptr_t call, int64_t result);

static void completed(rbd_completion_t completion, void *call) {
	int64_t result = rbd_aio_get_return_value(completion);
	rbd_aio_release(completion);
	rbdcsiImageCompleted((uintptr_t)call, result);
}

static int open_by_id(rados_ioctx_t io, const char *id, rbd_image_t *image, int read_only) {
	return read_only ? rbd_open_by_id_read_only(io, id, image, NULL) : rbd_open_by_id(io, id, image, NULL);
}

enum request { READ, WRITE, ZERO, FLUSH };

// begin begins a request. Once it has, completed is called, in a thread of librbd.
static int begin(rbd_image_t image, enum request what, uint64_t offset, uint64_t length, void *data, uintptr_t call) {
	static const char zero = 0;
	rbd_completion_t completion;
	int r = rbd_aio_create_completion((void *)call, completed, &completion);
	if (r < 0)
		return r;
	switch (what) {
	case READ:
		r = rbd_aio_read(image, offset, length, data, completion);
		break;
	case WRITE:
		r = rbd_aio_write(image, offset, length, data, completion);
		break;
	case ZERO:
		r = rbd_aio_writesame(image, offset, length, &zero, sizeof zero, completion, 0);
		break;
	case FLUSH:
		r = rbd_aio_flush(image, completion);
		break;
	}
	if (r < 0)
		rbd_aio_release(completion);
	return r;
}
*/
import "C"

import (
	"runtime"
	"runtime/cgo"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
	"golang.org/x/sys/unix"
)

// A librbdImage is an open image of librbd. Its requests are begun and waited for by a goroutine, without a thread: go-ceph has
// only the calls that hold one until the cluster answers, and a Go program with many of them spends
// its time on putting threads to sleep and waking them. All methods but close may be called at once. Errors are unix.Errno.
type librbdImage struct{ image C.rbd_image_t }

// openByID opens an image by its ID (rbd_open_by_id).
func openByID(pool *rados.IOContext, id string, readOnly bool) (librbdImage, error) {
	name := C.CString(id)
	defer C.free(unsafe.Pointer(name))
	image, flag := new(C.rbd_image_t), C.int(0)
	if readOnly {
		flag = 1
	}
	result := C.open_by_id(C.rados_ioctx_t(pool.Pointer()), name, image, flag)
	return librbdImage{*image}, failed(C.int64_t(result))
}

// failed makes an error of a negative result.
func failed(result C.int64_t) error {
	if result < 0 {
		return unix.Errno(-result)
	}
	return nil
}

// do carries a request out on data, or on so many bytes without any, and returns librbd's result.
func (i librbdImage) do(what C.enum_request, offset, length int64, data []byte) (int64, error) {
	// librbd reads and writes the data itself, and the request may wait for as long as the cluster is silent.
	var pinned runtime.Pinner
	defer pinned.Unpin()
	at := unsafe.SliceData(data)
	if at != nil {
		pinned.Pin(at)
	}
	ended := make(chan C.int64_t, 1)
	call := cgo.NewHandle(ended)
	defer call.Delete()
	begun := C.begin(i.image, what, C.uint64_t(offset), C.uint64_t(length), unsafe.Pointer(at), C.uintptr_t(call))
	if err := failed(C.int64_t(begun)); err != nil {
		return 0, err
	}
	result := <-ended
	return int64(result), failed(result)
}

// rbdcsiImageCompleted is called by librbd, in a thread of its own that has other completions to tell of and must not wait.
//
//export rbdcsiImageCompleted
func rbdcsiImageCompleted(call C.uintptr_t, result C.int64_t) {
	cgo.Handle(call).Value().(chan C.int64_t) <- result
}

// ReadAt fills data, or less of it at the end of the image, and returns how much (rbd_aio_read).
func (i librbdImage) ReadAt(data []byte, offset int64) (int, error) {
	n, err := i.do(C.READ, offset, int64(len(data)), data)
	return int(max(0, n)), err
}

// WriteAt writes all of data (rbd_aio_write).
func (i librbdImage) WriteAt(data []byte, offset int64) (int, error) {
	if _, err := i.do(C.WRITE, offset, int64(len(data)), data); err != nil {
		return 0, err
	}
	return len(data), nil
}

// Zero makes a range read as zeros: rbd_aio_writesame with zeros, which librbd turns into a write of zeroes. rbd_aio_discard would
// not do: it leaves out what is smaller than rbd_discard_granularity_bytes, which cannot be less than 4096.
func (i librbdImage) Zero(offset, length int64) error {
	_, err := i.do(C.ZERO, offset, length, nil)
	return err
}

// Flush waits until all that was written is on the cluster (rbd_aio_flush).
func (i librbdImage) Flush() error {
	_, err := i.do(C.FLUSH, 0, 0, nil)
	return err
}

// Size is the image's present size in bytes (rbd_get_size).
func (i librbdImage) Size() (int64, error) {
	var size C.uint64_t
	err := failed(C.int64_t(C.rbd_get_size(i.image, &size)))
	return int64(size), err
}

// id is the image's ID (rbd_get_id).
func (i librbdImage) id() (string, error) {
	var id [64]C.char
	err := failed(C.int64_t(C.rbd_get_id(i.image, &id[0], C.size_t(len(id)))))
	return C.GoString(&id[0]), err
}

// close closes the image, whatever it returns (rbd_close).
func (i librbdImage) close() error { return failed(C.int64_t(C.rbd_close(i.image))) }
