package volume

import (
	"context"
	"fmt"

	"github.com/rbd-csi/rbd-csi/pkg/access"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// An ExpandSpec says how large a volume has to become. To is asked with the
// size that the volume has and the most it can have, and returns the new size,
// which is never below the present one, or why there can be none.
type ExpandSpec struct {
	To func(bytes, most int64) (int64, error)
}

// Expand makes the volume larger and returns it. A volume that is large enough
// stays as it is. About 29 operations. It may be attached and in use.
func (s *Store) Expand(ctx context.Context, handle volid.Image, spec ExpandSpec, as params.Credentials) (Volume, error) {
	found, err := image.Find(ctx, s.clusters, handle, as)
	if err != nil {
		return Volume{}, err
	}
	layout := &found.Header.Layout
	to, err := spec.To(layout.Bytes, access.MaxBytes(layout.ObjectBytes, layout.StripeCount))
	if err != nil {
		return Volume{}, fmt.Errorf("expand volume %s: %w", handle, err)
	}
	if to <= layout.Bytes {
		return asVolume(found), nil
	}
	defer s.cache.change(handle)
	if err := found.Pool.Grow(ctx, found.ID, to); err != nil {
		return Volume{}, fmt.Errorf("expand volume %s to %d bytes: %w", handle, to, err)
	}
	layout.Bytes = to
	return asVolume(found), nil
}

// Get returns the volume, or fault.NotFound. Two operations.
func (s *Store) Get(ctx context.Context, handle volid.Image, as params.Credentials) (Volume, error) {
	found, err := image.Find(ctx, s.clusters, handle, as)
	if err != nil {
		return Volume{}, err
	}
	return asVolume(found), nil
}

// Capacity returns how many bytes volumes in a pool can still take.
func (s *Store) Capacity(ctx context.Context, at volid.Pool, dataPool string, as params.Credentials) (int64, error) {
	pool, err := s.clusters.Pool(ctx, at, as)
	if err != nil {
		return 0, fmt.Errorf("capacity of pool %s: %w", at, err)
	}
	capacity, err := pool.Capacity(ctx, dataPool)
	if err != nil {
		return 0, fmt.Errorf("capacity of pool %s: %w", at, err)
	}
	return capacity.Available, nil
}

// LargestCapacity returns the capacity of the pool that can take most, of all
// pools that the keyrings of the clusters show.
func (s *Store) LargestCapacity(ctx context.Context) (int64, error) {
	pools, err := rbd.AllPools(ctx, s.clusters)
	if err != nil {
		return 0, err
	}
	var largest int64
	for _, at := range pools {
		available, err := s.Capacity(ctx, at, "", params.Credentials{})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return 0, err
		}
		largest = max(largest, available)
	}
	return largest, nil
}
