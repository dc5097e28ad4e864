package librbd

import (
	"context"

	"github.com/ceph/go-ceph/rados"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// index is the object that holds a pool's index, all in its omap.
const index = "rbd_csi.index"

// Index implements rbd.Copies.
func (p *pool) Index(ctx context.Context, after string, max int) ([]rbd.IndexEntry, error) {
	return run(ctx, p, "list the index", func(a at) ([]rbd.IndexEntry, error) {
		op := rados.CreateReadOp()
		defer op.Release()
		step := op.GetOmapValues(after, "", uint64(min(max, pageSize)))
		if err := op.Operate(a.IOContext, index, rados.OperationNoFlag); err != nil {
			return nil, err
		}
		var page []rbd.IndexEntry
		for {
			pair, err := step.Next()
			if err != nil || pair == nil {
				return page, err
			}
			page = append(page, rbd.IndexEntry{Key: pair.Key, Value: string(pair.Value)})
		}
	})
}

// IndexValues implements rbd.Copies.
func (p *pool) IndexValues(ctx context.Context, keys ...string) (map[string]string, error) {
	return run(ctx, p, "read the index", func(a at) (map[string]string, error) {
		op := rados.CreateReadOp()
		defer op.Release()
		op.AssertExists()
		values := map[string][]byte{}
		var step omapStep
		if len(keys) > 0 {
			step = op.GetOmapValuesByKeys(keys)
		}
		err := op.Operate(a.IOContext, index, rados.OperationNoFlag)
		if err == nil && step != nil {
			err = collect(values, step)
		}
		if err != nil {
			return nil, err
		}
		texts := make(map[string]string, len(values))
		for key, value := range values {
			texts[key] = string(value)
		}
		return texts, nil
	})
}

// ChangeIndex implements rbd.Copies, as ChangeMeta is done.
func (p *pool) ChangeIndex(ctx context.Context, change rbd.Change) error {
	return do(ctx, p, "change the index", func(a at) error { return a.change(index, "", change) })
}

// MakeIndex implements rbd.Copies.
func (p *pool) MakeIndex(ctx context.Context) error {
	return do(ctx, p, "make the index", func(a at) error {
		return a.write(index, func(op *rados.WriteOp) { op.Create(rados.CreateIdempotent) })
	})
}
