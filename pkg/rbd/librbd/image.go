package librbd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// opening is rbd_open_by_id or rbd_open_by_id_read_only.
type opening func(io *rados.IOContext, id, snapshot string) (*cephrbd.Image, error)

// open opens an image, which librbd does only for one that has a name or is in the trash.
func (a at) open(id string, how opening) (*cephrbd.Image, error) {
	image, err := how(a.IOContext, id, cephrbd.NoSnapshot)
	if err != nil {
		return nil, a.notOpened(id, err)
	}
	return image, nil
}

// notOpened says why librbd did not open an image. It says ENOENT also when the image is a
// clone whose parent is not there, and that must not be taken for an image that is
// not: whoever deletes it would forget it.
func (a at) notOpened(id string, cause error) error {
	if !is(cause, syscall.ENOENT) {
		return cause
	}
	if header, err := a.header(id); err == nil && header.HasParent && a.known(id) {
		return fmt.Errorf("%w: its parent, %s of pool %d, cannot be opened: %v",
			fault.DataLoss, header.Parent.ID, header.Parent.PoolID, cause)
	}
	return cause
}

// known reports whether the directory or the trash has an image: rbd.dir_get_name, rbd.trash_get.
func (a at) known(id string) bool {
	input := new(writer).text(id).bytes
	if _, err := a.ask(directory, "dir_get_name", input); err == nil {
		return true
	}
	_, err := a.ask(trash, "trash_get", input)
	return err == nil
}

// HoldsData implements rbd.Pool: rbd_diff_iterate2 from the beginning, whole
// objects, parent included; the first that exists ends it.
func (p *pool) HoldsData(ctx context.Context, id string) (bool, error) {
	return run(ctx, p, "look for data of "+id, func(a at) (bool, error) {
		image, err := a.open(id, cephrbd.OpenImageByIdReadOnly)
		if err != nil {
			return false, err
		}
		holds := false
		err = inPieces(ctx, image, rbd.Extent{Bytes: math.MaxInt64}, func(offset, length uint64) (bool, error) {
			holds, err = holdsDataIn(image, offset, length)
			return holds, err
		})
		return holds, errors.Join(err, image.Close())
	})
}

// holdsDataIn looks at one piece of an image.
func holdsDataIn(image *cephrbd.Image, offset, length uint64) (bool, error) {
	const enough = 1 // any number but 0 ends the iteration
	holds := false
	err := image.DiffIterate(cephrbd.DiffIterateConfig{
		Offset: offset, Length: length,
		IncludeParent: cephrbd.IncludeParent, WholeObject: cephrbd.EnableWholeObject,
		Callback: func(_, _ uint64, exists int, _ any) int {
			if exists == 0 {
				return 0
			}
			holds = true
			return enough
		},
	})
	if holds {
		return true, nil
	}
	return false, err
}

// States of an image in the trash (TrashImageState in src/cls/rbd/cls_rbd_types.h).
const (
	trashNormal = 0
	trashMoving = 1
)

// trashUser is TRASH_IMAGE_SOURCE_USER: what `rbd trash ls` shows.
const trashUser = 0

// AddTrash implements rbd.Pool: rbd.trash_add. An entry that a stopped `rbd trash
// mv` left in the state MOVING would never be removable; it is set to NORMAL, in a
// second operation, since the move is now ours.
func (p *pool) AddTrash(ctx context.Context, id, name string) error {
	return do(ctx, p, "add "+id+" to the trash", func(a at) error {
		err := a.writeAlways(trash, func(op *writeOp) {
			op.exec(class, "trash_add", trashEntry(id, name, time.Now()))
		})
		if !is(err, syscall.EEXIST) {
			return err
		}
		err = a.write(trash, func(op *writeOp) {
			op.exec(class, "trash_state_set", new(writer).text(id).u8(trashNormal).u8(trashMoving).bytes)
		})
		if is(err, syscall.ESTALE, syscall.ENOENT) { // another state, or purged meanwhile
			return nil
		}
		return err
	})
}

// trashEntry is the input of rbd.trash_add: the ID and a TrashImageSpec.
func trashEntry(id, name string, at time.Time) []byte {
	return new(writer).text(id).versioned(2, func(w *writer) {
		w.u8(trashUser).text(name).time(at).time(at).u8(trashNormal)
	}).bytes
}

// Trashed implements rbd.Pool: rbd.trash_list, page by page.
func (p *pool) Trashed(ctx context.Context) ([]rbd.TrashEntry, error) {
	return run(ctx, p, "list the trash", func(a at) ([]rbd.TrashEntry, error) {
		var entries []rbd.TrashEntry
		for after := ""; ; after = entries[len(entries)-1].ID {
			page, err := a.trashPage(after)
			entries = append(entries, page...)
			if err != nil || len(page) < pageSize {
				return entries, err
			}
		}
	})
}

func (a at) trashPage(after string) ([]rbd.TrashEntry, error) {
	answer, err := a.ask(trash, "trash_list", new(writer).text(after).u64(pageSize).bytes)
	if is(err, syscall.ENOENT) {
		return nil, nil // nothing was ever in it
	}
	if err != nil {
		return nil, err
	}
	return readTrash(answer)
}

// readTrash reads a map from IDs to TrashImageSpecs.
func readTrash(answer *reader) ([]rbd.TrashEntry, error) {
	page := make([]rbd.TrashEntry, 0, answer.count())
	for range cap(page) {
		entry := rbd.TrashEntry{ID: answer.text()}
		answer.versioned(func(_ uint8, r *reader) {
			_ = r.u8() // the source
			entry.Name, entry.Time = r.text(), r.time()
		})
		page = append(page, entry)
	}
	return page, answer.err
}

// purgeLock is held while an image is removed, and keeps others of the driver from all that makes librbd ask for
// the image's exclusive lock: growing it, taking snapshots, another removal. Of two removals at once, librbd 16.2
// lets the later one take the lock of a header that the earlier one has just removed, finds that the lock is lost, and
// aborts at the next data object (C_RemoveObject::send in TrimRequest.cc). The lock lasts as long as the watch of a
// client that died, which is in a removal's way likewise.
var purgeLock = advisory{names: []string{growing, taking}, lasts: 30 * time.Second}

// Purge implements rbd.Pool: rbd_trash_remove.
func (p *pool) Purge(ctx context.Context, id string) error {
	return do(ctx, p, "purge "+id, func(a at) error {
		err := a.trashRemove(id)
		if is(err, syscall.EBUSY) && a.dropGhosts(id) == nil {
			err = a.trashRemove(id) // with the lock of the header that was made anew
		}
		switch {
		case errors.Is(err, errLocked):
			return fmt.Errorf("%w: %v", fault.InUse, err)
		case is(err, syscall.EUCLEAN):
			return fmt.Errorf("%w: it is being moved to the trash", fault.InUse)
		}
		return err
	})
}

// trashRemove removes an image in the trash under its lock. One whose removal was interrupted at its very end
// has no header any more that could be locked, and no data either.
func (a at) trashRemove(id string) error {
	remove := func() error { return cephrbd.TrashRemove(a.IOContext, id, true) }
	began := false
	err := a.lockedLong(purgeLock, id, func() error {
		began = true
		return remove()
	})
	if !began && is(err, syscall.ENOENT) {
		return remove()
	}
	return err
}

// dropGhosts takes watchers off a header that are none. An OSD that carries out a client's watch
// after it has noticed that the client is gone keeps the watcher in the object's own record
// (object_info_t::watchers), but has no session for it that could time out, so it stands there
// until the OSD forgets the object's context. Blocklisting does not help. A notification
// tells: the OSD sends it to the watchers that it has, and names those that do not answer.
// If there is none, the header is made anew with what it holds, in one operation.
func (a at) dropGhosts(id string) error {
	acks, silent, err := a.NotifyWithTimeout(headerPrefix+id, nil, 2*time.Second)
	if err != nil {
		return err
	}
	if len(acks)+len(silent) > 0 {
		return syscall.EBUSY
	}
	values, err := a.GetAllOmapValues(headerPrefix+id, "", "", 1024)
	if err != nil {
		return err
	}
	// Whoever changes a mark or takes a snapshot meanwhile, a person who brings the image back
	// for instance, must not get the old one back: then nothing is done. Nor is
	// anything done to snapshots, which may get children at any moment.
	expected := map[string][]byte{}
	for key, value := range values {
		if strings.HasPrefix(key, snapPrefix) {
			return syscall.EBUSY
		}
		if key == keySnapSeq || strings.HasPrefix(key, metaPrefix) {
			expected[key] = value
		}
	}
	return a.write(headerPrefix+id, func(op *writeOp) {
		op.assertExists()
		op.exec("cmpomap", "cmp_vals", expectation(expected))
		op.remove()
		op.create()
		op.setOmap(values)
	})
}
