package rbd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// AllPools returns the pools of all clusters, and the namespaces in them, that the
// clusters' own users may read, in the order of their handles.
func AllPools(ctx context.Context, clusters Clusters) ([]volid.Pool, error) {
	names, err := clusters.Names(ctx)
	if err != nil {
		return nil, err
	}
	var all []volid.Pool
	for _, name := range names {
		pools, err := clusters.Pools(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("list pools of cluster %s: %w", name, err)
		}
		all = append(all, pools...)
	}
	slices.SortFunc(all, comparePools)
	return all, nil
}

// From returns those of the pools, which AllPools returned, that a list has to go on
// with after it has come to a place, and whether the first of them is that place.
func From(pools []volid.Pool, place volid.Pool) (rest []volid.Pool, there bool) {
	at, there := slices.BinarySearchFunc(pools, place, comparePools)
	return pools[at:], there
}

func comparePools(a, b volid.Pool) int { return strings.Compare(a.String(), b.String()) }
