package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Fenced is a client that the driver has shut out.
type Fenced struct {
	Fence

	Pool   volid.Pool // where it is noted
	Client string
	// Lasts is until when the cluster's blocklist has the client; zero: it has not.
	Lasts time.Time
}

// Fences returns the clients that are noted as shut out in a cluster, as its keyring's user sees them.
// An operation for each pool and namespace, beside those to list them.
func (s *Store) Fences(ctx context.Context, cluster string) ([]Fenced, error) {
	places, err := s.clusters.Pools(ctx, cluster)
	if err != nil {
		return nil, fmt.Errorf("list fences: %w", err)
	}
	var all []Fenced
	for _, place := range places {
		found, err := s.fencesIn(ctx, place)
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Denied) {
			continue // removed meanwhile, or not for this user
		}
		if err != nil {
			return nil, fmt.Errorf("list fences: %w", err)
		}
		all = append(all, found...)
	}
	return all, nil
}

func (s *Store) fencesIn(ctx context.Context, place volid.Pool) ([]Fenced, error) {
	pool, err := s.clusters.Pool(ctx, place, params.Credentials{})
	if err != nil {
		return nil, err
	}
	notes, err := pool.NotedFences(ctx)
	if err != nil || len(notes) == 0 {
		return nil, err
	}
	listed, err := pool.Blocklisted(ctx)
	if err != nil {
		return nil, err
	}
	var found []Fenced
	for client, text := range notes {
		one := Fenced{Pool: place, Client: client, Lasts: listed[client]}
		if err := json.Unmarshal([]byte(text), &one.Fence); err != nil {
			return nil, fmt.Errorf("the note of client %s in %s, rbd_csi.clients: %w: %w", client, place, fault.InUse, err)
		}
		found = append(found, one)
	}
	return found, nil
}

// Unfence removes a client from the blocklist, as a user who may: fault.Denied for one with no more
// than `profile rbd`. Whoever asks for it knows that the mapping is gone: a client
// that is only frozen would write again.
func (s *Store) Unfence(ctx context.Context, one Fenced, as params.Credentials) error {
	what := fmt.Sprintf("remove the fence of client %s, node %s", one.Client, one.Node)
	pool, err := s.clusters.Pool(ctx, one.Pool, as)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	users, err := pool.Users(ctx, one.ID)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, user := range users {
		if user.Client == one.Client && user.Watches {
			return fmt.Errorf("%s: it watches image %s: %w", what, one.Image, fault.InUse)
		}
	}
	// The note goes first: with the note alone left, a controller would shut the client out again.
	if err := pool.ForgetFence(ctx, one.Client); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := pool.Unblocklist(ctx, one.Client); err != nil {
		return fmt.Errorf("%s: %w", what, errors.Join(err, pool.NoteFence(ctx, one.Client, image.Written(one.Fence))))
	}
	return nil
}

// renewEvery is how often fences are looked at, and renewLate how long after the end of an entry the monitors
// have certainly dropped it (mon_tick_interval is 5 s).
const (
	renewEvery = 10 * time.Minute
	renewLate  = 6 * time.Second
)

// KeepFences sees to it that fences last as long as they are to, until ctx ends. A client that was shut out
// before by another, who had broken its lock, is for an hour only, and an entry is not replaced by
// one that lasts longer: it is made anew as soon as it has ended.
func (s *Store) KeepFences(ctx context.Context) {
	for ctx.Err() == nil {
		next := s.renewAll(ctx)
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// renewAll looks at the fences of all clusters once, and returns when to look again.
func (s *Store) renewAll(ctx context.Context) time.Duration {
	log := klog.FromContext(ctx)
	names, err := s.clusters.Names(ctx)
	if err != nil {
		log.Error(err, "Look at fences")
		return renewEvery
	}
	next := renewEvery
	for _, name := range names {
		soon, err := s.RenewFences(ctx, name)
		if err != nil {
			log.Error(err, "Look at fences", "cluster", name)
		}
		next = min(next, soon)
	}
	return next
}

// RenewFences blocklists the clients of a cluster anew that are noted as shut out and are not, forgets those
// whose time is over, and returns when it should be called again, at the latest after 10 minutes.
func (s *Store) RenewFences(ctx context.Context, cluster string) (next time.Duration, err error) {
	next = renewEvery
	all, err := s.Fences(ctx, cluster)
	if err != nil {
		return next, err
	}
	now := s.options.now()
	var failed []error
	for _, one := range all {
		left := time.Unix(one.Until, 0).Sub(now)
		switch {
		case left <= 0 && one.Lasts.IsZero():
			failed = append(failed, s.forget(ctx, one))
		case left > 0 && one.Lasts.IsZero():
			failed = append(failed, s.renew(ctx, one, left))
		case time.Unix(one.Until, 0).After(one.Lasts):
			next = min(next, max(time.Second, one.Lasts.Sub(now)+renewLate))
		}
	}
	return next, errors.Join(failed...)
}

func (s *Store) forget(ctx context.Context, one Fenced) error {
	pool, err := s.clusters.Pool(ctx, one.Pool, params.Credentials{})
	if err != nil {
		return err
	}
	return pool.ForgetFence(ctx, one.Client)
}

func (s *Store) renew(ctx context.Context, one Fenced, left time.Duration) error {
	pool, err := s.clusters.Pool(ctx, one.Pool, params.Credentials{})
	if err != nil {
		return err
	}
	until, err := pool.Blocklist(ctx, one.ID, one.Client, left)
	if err != nil {
		return fmt.Errorf("shut out client %s of node %s anew: %w", one.Client, one.Node, err)
	}
	klog.FromContext(ctx).Info("Fenced anew", "volume", one.Image, "node", one.Node, "client", one.Client, "until", until.UTC().Format(time.RFC3339))
	return nil
}

// Booted reports whether the mapping of a client that was shut out is gone, because the node has started
// anew since: the kernel's boot ID is another than the one recorded with the client.
func (f Fenced) Booted(node, boot string) bool {
	return f.Node == node && f.Boot != "" && boot != "" && f.Boot != boot
}
