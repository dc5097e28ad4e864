package librbd

import (
	"context"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// index is the object that holds a pool's index, all in its omap.
const index = "rbd_csi.index"

// Index implements rbd.Copies.
func (p *pool) Index(ctx context.Context, after string, max int) ([]rbd.IndexEntry, error) {
	return run(ctx, p, "list the index", func(a at) ([]rbd.IndexEntry, error) {
		var page []rbd.IndexEntry
		err := a.read(index, func(op *readOp) func() {
			pairs := op.omap(after, "", min(max, pageSize))
			return func() {
				for key, value := range pairs {
					page = append(page, rbd.IndexEntry{Key: key, Value: string(value)})
				}
			}
		})
		return page, err
	})
}

// IndexValues implements rbd.Copies.
func (p *pool) IndexValues(ctx context.Context, keys ...string) (map[string]string, error) {
	return run(ctx, p, "read the index", func(a at) (map[string]string, error) {
		values := map[string]string{}
		err := a.read(index, func(op *readOp) func() {
			op.assertExists()
			found := op.omapOf(keys)
			return func() {
				for key, value := range found {
					values[key] = string(value)
				}
			}
		})
		return values, err
	})
}

// ChangeIndex implements rbd.Copies, as ChangeMeta is done.
func (p *pool) ChangeIndex(ctx context.Context, change rbd.Change) error {
	return do(ctx, p, "change the index", func(a at) error { return a.change(index, "", change) })
}

// MakeIndex implements rbd.Copies.
func (p *pool) MakeIndex(ctx context.Context) error {
	return do(ctx, p, "make the index", func(a at) error {
		return a.write(index, func(op *writeOp) { op.create() })
	})
}
