package librbd

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/step"
)

const (
	// flattensAtOnce is how many images of a cluster one process flattens at a time, and
	// flattenObjects how many objects of each: copying must leave the cluster to
	// those who work in it. The usual bound of librbd is 10 objects.
	flattensAtOnce = 4
	flattenObjects = 4
)

// Flatten implements rbd.Copies: copyUp, and then rbd_flatten. It has slots and a connection of its own, because it may
// take hours. An image is flattened once at a time: those who come while it is
// done, perhaps for someone who has gone, wait for that. When ctx ends, Flatten returns
// fault.Unknown, and librbd goes on.
func (p *pool) Flatten(ctx context.Context, id string) error {
	one, end := p.clusters.flattens.join(p.imageKey(id))
	if end == nil {
		return p.waitForFlatten(ctx, id, one)
	}
	return p.flatten(ctx, id, end)
}

// waitForFlatten waits for the call of another.
func (p *pool) waitForFlatten(ctx context.Context, id string, one *flight) error {
	step.Set(ctx, "waiting for the flattening of", id, "that is under way")
	select {
	case <-one.done:
		if one.err != nil {
			return fmt.Errorf("flatten %s in %s: %w", id, p.where, classified(one.err))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("flatten %s in %s: it is being done: %w: %w", id, p.where, fault.Unknown, ctx.Err())
	}
}

// flatten waits for a slot and flattens; end is called when that has ended.
func (p *pool) flatten(ctx context.Context, id string, end func(error)) error {
	free, err := p.flattenSlot(ctx)
	if err != nil {
		err = fmt.Errorf("flatten %s in %s: %w", id, p.where, err)
		end(err)
		return err
	}
	var began atomic.Bool
	_, err = runOn(ctx, p, p.slowConnection, "flatten "+id, func(a at) (struct{}, error) {
		began.Store(true)
		defer free()
		err := a.flatten(id)
		end(err)
		return struct{}{}, err
	})
	if !began.Load() {
		free()
		end(err)
	}
	return err
}

// flattenSlot waits for a slot, and returns the function that gives it back.
func (p *pool) flattenSlot(ctx context.Context) (free func(), err error) {
	s, err := p.slowConnection(ctx)
	if err != nil {
		return nil, err
	}
	slots := s.bounds.slots
	step.Set(ctx, "waiting for one of the", strconv.Itoa(flattensAtOnce), "images that are flattened at a time")
	select {
	case slots <- struct{}{}:
		return sync.OnceFunc(func() { <-slots }), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%d other images are being flattened: %w: %w", flattensAtOnce, unsent(ctx), ctx.Err())
	}
}

// flatten flattens an image that has a parent. EINVAL says that it has none any more.
func (a at) flatten(id string) error {
	header, err := a.header(id)
	switch {
	case err != nil:
		return err
	case !header.Whole:
		return fmt.Errorf("%w: its header has no layout", fault.NotFound)
	case !header.HasParent:
		return nil
	}
	err = a.withImage(id, func(image *cephrbd.Image) error {
		if err := a.copyUp(image, id); err != nil {
			return fmt.Errorf("copy up: %w", err)
		}
		return image.Flatten()
	})
	if is(err, syscall.EINVAL) {
		if header, again := a.header(id); again == nil && !header.HasParent {
			return nil
		}
	}
	return err
}

// slowConnection returns the connection for flattening.
func (p *pool) slowConnection(ctx context.Context) (*session, error) {
	return p.current(ctx, &p.slow, true)
}

// slowly bounds how many objects librbd has under way at a time for one operation on an
// image. It is for a connection of its own, made when something is flattened: librbd
// takes the option from the connection again whenever it reads a header anew, so it
// cannot be another for one image alone, unless it is stored with it (`rbd config image
// set`), where it would hold for all clients and stay.
func slowly(conn *rados.Conn) error {
	if err := conn.SetConfigOption("rbd_concurrent_management_ops", strconv.Itoa(flattenObjects)); err != nil {
		conn.Shutdown()
		return fmt.Errorf("%w: bound the objects under way: %w", fault.Internal, err)
	}
	return nil
}
