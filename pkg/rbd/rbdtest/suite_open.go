package rbdtest

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// openCases are about rbd.Clusters and about contexts.
func openCases() []trialCase {
	return []trialCase{
		{"refused", testRefused},
		{"where", func(t *trial) {
			for _, at := range []volid.Pool{t.Pool, t.Namespace} {
				pool, err := t.Process(t.T).Pool(t.Context(), at, params.Credentials{})
				t.ok(err)
				where := pool.Where()
				if where.Pool != at || len(where.FSID) != len("00000000-0000-0000-0000-000000000000") || where.PoolID < 1 {
					t.Errorf("got %+v, want %s with the cluster's UUID and the pool's ID", where, at)
				}
			}
		}},
		{"names", func(t *trial) {
			names, err := t.Process(t.T).Names(t.Context())
			if !slices.Contains(names, t.at.Cluster) || !slices.IsSorted(names) || err != nil {
				t.Errorf("got %q, %v; want %s among them, sorted", names, err, t.at.Cluster)
			}
		}},
		{"pools", func(t *trial) {
			pools, err := t.Process(t.T).Pools(t.Context(), t.at.Cluster)
			t.ok(err)
			for _, want := range []volid.Pool{t.Pool, t.Namespace} {
				if !slices.Contains(pools, want) {
					t.Errorf("got %v, want %s among them", pools, want)
				}
			}
			if !slices.IsSortedFunc(pools, func(a, b volid.Pool) int { return strings.Compare(a.String(), b.String()) }) {
				t.Errorf("got %v, want them in the order of their handles", pools)
			}
			_, err = t.Process(t.T).Pools(t.Context(), "no-such-cluster")
			t.is("no such cluster", err, fault.Invalid)
		}},
		{"places are apart", func(t *trial) {
			image := t.image("a")
			id := t.make(image, plain(), nil)
			other := newTrial(t.T, t.Fixture, t.Namespace)
			other.missing("FindName elsewhere")(other.pool.FindName(t.Context(), image.Name))
			other.missing("FindEntry elsewhere")(other.pool.FindEntry(t.Context(), image.Name))
			_, err := other.pool.Header(t.Context(), id)
			t.is("Header elsewhere", err, fault.NotFound)
			t.remove(image, id)
		}},
		{"capacity", func(t *trial) {
			for _, dataPool := range []string{"", t.DataPool} {
				capacity, err := t.pool.Capacity(t.Context(), dataPool)
				if capacity.Available <= 0 || capacity.Used < 0 || err != nil {
					t.Errorf("Capacity(%q): got %+v, %v; want some", dataPool, capacity, err)
				}
			}
			_, err := t.pool.Capacity(t.Context(), "no-such-pool")
			t.is("no such pool", err, fault.NotFound)
		}},
		{"a context that has ended", testEnded},
		{"a stranger", func(t *trial) {
			pool, err := t.Process(t.T).Pool(t.Context(), t.Pool, t.Stranger)
			if err == nil {
				_, err = pool.FindName(t.Context(), "x")
			}
			t.is("FindName", err, fault.Denied)
			t.is("AddName", pool.AddName(t.Context(), "x", rbd.NewID()), fault.Denied)
			_, err = t.Process(t.T).Pool(t.Context(), t.Namespace, t.Stranger)
			t.is("Pool of a namespace", err, fault.Denied)
		}},
	}
}

func testRefused(t *trial) {
	none := params.Credentials{}
	process := t.Process(t.T)
	for _, one := range []struct {
		name string
		at   volid.Pool
		as   params.Credentials
		want fault.Kind
	}{
		{"cluster", volid.Pool{Cluster: "no-such-cluster", Pool: t.Pool.Pool}, none, fault.Invalid},
		{"pool", volid.Pool{Cluster: t.Pool.Cluster, Pool: "no-such-pool"}, none, fault.NotFound},
		{"namespace", volid.Pool{Cluster: t.Pool.Cluster, Pool: t.Pool.Pool, Namespace: "no-such-ns"}, none, fault.NotFound},
		{"wrong key", t.Pool, t.WrongKey, fault.Unauthenticated},
		{"unknown user", t.Pool, t.UnknownUser, fault.Unauthenticated},
		{"key that is none", t.Pool, params.Credentials{User: t.WrongKey.User, Key: params.NewSecret("not a key")}, fault.Unauthenticated},
	} {
		for range 2 {
			pool, err := process.Pool(t.Context(), one.at, one.as)
			if pool != nil || !fault.Is(err, one.want) {
				t.Errorf("%s: got %v, %v; want %v", one.name, pool, err, one.want)
			}
			if key := one.as.Key.Reveal(); err != nil && key != "" && strings.Contains(err.Error(), key) {
				t.Errorf("%s: the error holds the key: %v", one.name, err)
			}
		}
	}
}

// testEnded holds that nothing is sent for a caller who has gone.
func testEnded(t *trial) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancelLate := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancelLate()
	name, id, process := t.image("a").Name, rbd.NewID(), t.Process(t.T)
	for _, one := range []struct {
		name string
		ctx  context.Context
		want fault.Kind
	}{{"canceled", canceled, fault.Canceled}, {"too late", late, fault.Unavailable}} {
		t.is("AddName, "+one.name, t.pool.AddName(one.ctx, name, id), one.want)
		t.is("Grow, "+one.name, t.pool.Grow(one.ctx, id, 1), one.want)
		t.is("Purge, "+one.name, t.pool.Purge(one.ctx, id), one.want)
		_, err := process.Pool(one.ctx, t.at, params.Credentials{})
		t.is("Pool, "+one.name, err, one.want)
	}
	t.missing("FindName")(t.pool.FindName(t.Context(), name))
}
