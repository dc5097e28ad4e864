package librbd

/*
#include <rbd/librbd.h>
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"unsafe"

	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// copyUp makes sure that a clone has an object of its own for each that its parent has, as far as the two overlap.
//
// rbd_flatten passes over objects that the clone's object map says are there (C_FlattenObject; mended by ceph/ceph#61129), and
// librbd and krbd say so before they write one. A client that is killed in between leaves an object that is not there: it is read from the parent
// until the flatten, and as zeroes after it (decision 0018). Here the object map is not believed: in each object a block is written over itself, unless it
// has changed since it was read (rbd_compare_and_write), and an object that is missing is copied for that. Whoever is killed
// after this can leave no object missing that the parent has.
//
// A flatten that finds all objects there copies nothing, so this takes its place, with two operations more for each object.
func (a at) copyUp(image *cephrbd.Image, id string) error {
	overlap, err := image.GetOverlap()
	if err != nil {
		return err
	}
	unit, err := image.GetStripeUnit()
	if err != nil {
		return err
	}
	// Who began it may have gone: a flatten goes on.
	return inPieces(context.Background(), image, rbd.Extent{Bytes: int64(overlap)}, func(offset, length uint64) (bool, error) {
		blocks, err := blocksOfData(image, offset, length, unit)
		if err != nil || len(blocks) == 0 {
			return false, err
		}
		return false, a.touchAll(id, blocks)
	})
}

// A block is the beginning of a piece of an object.
type block struct{ offset, length uint64 }

// blockBytes is how much of a piece is touched; less than that is all of it.
const blockBytes = 512

// blocksOfData returns a block of each piece of at most a unit that the image or its parent has data in (rbd_diff_iterate2): what the object map of a clone
// says too much of is among them, and it never says too little.
func blocksOfData(image *cephrbd.Image, offset, length, unit uint64) ([]block, error) {
	var blocks []block
	err := image.DiffIterate(cephrbd.DiffIterateConfig{
		Offset: offset, Length: length,
		IncludeParent: cephrbd.IncludeParent, WholeObject: cephrbd.EnableWholeObject,
		Callback: func(begin, length uint64, exists int, _ any) int {
			for end := begin + length; exists != 0 && begin < end; begin += unit - begin%unit {
				blocks = append(blocks, block{begin, min(blockBytes, end-begin)})
			}
			return 0
		},
	})
	return blocks, err
}

// touchesAtOnce is one less than flattenObjects, because an OSD may be at the end of an operation still when the one after it comes.
const touchesAtOnce = flattenObjects - 1

// touchAll touches blocks of an image, a few at a time.
func (a at) touchAll(id string, blocks []block) error {
	image, err := a.openHandle(id)
	if err != nil {
		return err
	}
	waiting := make(chan block)
	errs := make([]error, touchesAtOnce)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			for one := range waiting {
				if errs[i] == nil {
					errs[i] = touch(image, one)
				}
			}
		})
	}
	for _, one := range blocks {
		waiting <- one
	}
	close(waiting)
	all.Wait()
	return errors.Join(errors.Join(errs...), result("rbd_close", C.rbd_close(image)))
}

// touch writes a block over itself. One that has changed meanwhile was written by somebody else, who had the object copied.
func touch(image C.rbd_image_t, one block) error {
	content := make([]byte, one.length)
	bytes := (*C.char)(unsafe.Pointer(unsafe.SliceData(content)))
	offset, length := C.uint64_t(one.offset), C.size_t(one.length)
	if err := result("rbd_read", C.int(C.rbd_read(image, offset, length, bytes))); err != nil {
		return err
	}
	var mismatch C.uint64_t
	err := result("rbd_compare_and_write", C.int(C.rbd_compare_and_write(image, offset, length, bytes, bytes, &mismatch, 0)))
	if is(err, syscall.EILSEQ) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("at %d: %w", one.offset, err)
	}
	return nil
}
