package librbd

// #cgo LDFLAGS: -lrados
// #include <malloc.h>
// #include <rados/librados.h>
import "C"

import (
	"runtime"
	"runtime/debug"
	"time"

	"github.com/ceph/go-ceph/rados"
)

// discard frees a connection that was never made, with its threads, at once.
// (*rados.Conn).Shutdown does nothing for it and leaves it to the garbage
// collector, which may come after a thousand wrong keys. rados_shutdown is
// right for a handle in any state; the finalizer is taken off because it would
// call it a second time.
func discard(conn *rados.Conn) {
	runtime.SetFinalizer(conn, nil)
	C.rados_shutdown(C.rados_t(conn.Cluster()))
}

// saveMemory bounds the arenas of malloc to two. By default each of the threads
// that are in a call may get its own (up to eight for each core), and keeps it: a
// sixth of the controller's memory after a load of 32 requests at a time, for
// nothing that could be measured.
func saveMemory() {
	const arenas = 2
	C.mallopt(C.M_ARENA_MAX, arenas)
}

// rest is how long a connection is without calls before memory is given back.
const rest = time.Second

// giveBack gives memory that librados, librbd and the driver freed back to the kernel. malloc
// keeps it otherwise, 15 of 70 MiB after a load of 32 requests at a time, and Go keeps as much again as is in use
// until its next collection.
func giveBack() {
	debug.FreeOSMemory()
	C.malloc_trim(0)
}
