package librbd

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// cloneChild is RBD_OPERATION_FEATURE_CLONE_CHILD (src/include/rbd/features.h): the
// image is a clone whose parent knows it, of clone format 2. Clients that do
// not know what that is keep off.
const cloneChild = 1 << 1

// AttachParent implements rbd.Copies: rbd.parent_attach and rbd.op_features_set. The
// second neither reads nor writes what the first wrote, the key parent, so that it does
// not matter that a method does not see what an earlier one of the same operation
// did. A repetition costs a second operation, to compare.
func (p *pool) AttachParent(ctx context.Context, id string, parent rbd.Parent) error {
	return do(ctx, p, "attach the parent of "+id, func(a at) error {
		err := a.write(headerPrefix+id, func(op *writeOp) {
			op.assertExists()
			op.exec(class, "parent_attach", attachment(parent))
			op.exec(class, "op_features_set", new(writer).u64(cloneChild).u64(cloneChild).bytes)
		})
		if !is(err, syscall.EEXIST, syscall.ENOEXEC) {
			return err
		}
		header, err := a.header(id)
		if err != nil {
			return err
		}
		return attached(header, parent)
	})
}

// DetachParent implements rbd.Copies. The class takes away whatever parent there is, so it is compared before; a clone gets no other in
// between. Who has the image open is notified, to read its header again.
func (p *pool) DetachParent(ctx context.Context, id string, parent rbd.Parent) error {
	return do(ctx, p, "detach the parent of "+id, func(a at) error {
		header, err := a.header(id)
		if err != nil || header.Whole && !header.HasParent {
			return err
		}
		if err := attached(header, parent); err != nil {
			return err
		}
		err = a.write(headerPrefix+id, func(op *writeOp) {
			op.assertExists()
			op.exec(class, "parent_detach", nil)
		})
		if err != nil && !is(err, syscall.ENOENT) {
			return err
		}
		_, _, err = a.NotifyWithTimeout(headerPrefix+id, nil, time.Second)
		if is(err, syscall.ETIMEDOUT) { // who does not answer reads it when it can
			return nil
		}
		return err
	})
}

// attachment is the input of rbd.parent_attach: a ParentImageSpec
// (src/cls/rbd/cls_rbd_types.h) and the overlap, of which the class takes the
// image's size where that is less.
func attachment(parent rbd.Parent) []byte {
	return new(writer).versioned(1, func(w *writer) {
		w.u64(uint64(parent.PoolID)).text(parent.Namespace).text(parent.ID).u64(parent.Snapshot)
	}).u64(uint64(parent.Overlap)).bytes
}

// attached says why a header refused a parent; nil when it has that parent already.
func attached(header rbd.Header, parent rbd.Parent) error {
	switch {
	case !header.Whole:
		return fmt.Errorf("%w: its header has no layout", fault.NotFound)
	case !header.Layout.Features.Has(rbd.Layering):
		return fmt.Errorf("%w: the image lacks the feature layering", fault.Unsupported)
	case header.HasParent && header.Parent.Is(parent):
		return nil
	}
	return fmt.Errorf("%w: another parent, %s of pool %d, snapshot %d",
		fault.Exists, header.Parent.ID, header.Parent.PoolID, header.Parent.Snapshot)
}

// AddChild implements rbd.Copies: rbd.child_attach, which refuses a snapshot in the trash.
func (p *pool) AddChild(ctx context.Context, id string, snapshot uint64, child rbd.Child) error {
	return do(ctx, p, fmt.Sprintf("add the clone %s to snapshot %d of %s", child.ID, snapshot, id), func(a at) error {
		err := a.write(headerPrefix+id, func(op *writeOp) {
			op.assertExists()
			op.exec(class, "child_attach", adoption(snapshot, child))
		})
		if is(err, syscall.EEXIST) {
			return nil
		}
		return err
	})
}

// RemoveChild implements rbd.Copies: rbd.child_detach, with ENOENT for what is not there.
func (p *pool) RemoveChild(ctx context.Context, id string, snapshot uint64, child rbd.Child) error {
	return do(ctx, p, fmt.Sprintf("remove the clone %s from snapshot %d of %s", child.ID, snapshot, id), func(a at) error {
		err := a.writeAlways(headerPrefix+id, func(op *writeOp) {
			op.assertExists()
			op.exec(class, "child_detach", adoption(snapshot, child))
		})
		if is(err, syscall.ENOENT) {
			return nil
		}
		return err
	})
}

// adoption is the input of rbd.child_attach and rbd.child_detach: the snapshot's ID and a ChildImageSpec.
func adoption(snapshot uint64, child rbd.Child) []byte {
	w := new(writer).u64(snapshot)
	return w.versioned(2, func(w *writer) {
		w.u64(uint64(child.PoolID)).text(child.ID).text(child.Namespace)
	}).bytes
}

// Children implements rbd.Copies: rbd.children_list.
func (p *pool) Children(ctx context.Context, id string, snapshot uint64) ([]rbd.Child, error) {
	what := fmt.Sprintf("list the clones of snapshot %d of %s", snapshot, id)
	return run(ctx, p, what, func(a at) ([]rbd.Child, error) {
		answer, err := a.ask(headerPrefix+id, "children_list", new(writer).u64(snapshot).bytes)
		if is(err, syscall.ENOENT) {
			return nil, nil // the snapshot never had one, or lost the last, or is gone
		}
		if err != nil {
			return nil, err
		}
		return readChildren(answer)
	})
}

// readChildren reads a set of ChildImageSpecs; namespaces came with version 2.
func readChildren(answer *reader) ([]rbd.Child, error) {
	children := make([]rbd.Child, 0, answer.count())
	for range cap(children) {
		var child rbd.Child
		answer.versioned(func(version uint8, r *reader) {
			child.PoolID, child.ID = int64(r.u64()), r.text()
			if version >= 2 {
				child.Namespace = r.text()
			}
		})
		children = append(children, child)
	}
	return children, answer.err
}
