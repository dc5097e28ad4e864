package rbdtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Process is a driver process on a [Ceph]. It implements rbd.Clusters.
type Process struct {
	ceph *Ceph

	mu         sync.Mutex
	faults     []*Fault
	killed     bool
	hook       func(ctx context.Context, call Call)
	calls      []Call
	operations int
	seen       map[volid.Pool]bool // namespaces that were looked for
	validated  map[string]bool     // data pools that were checked, by CLUSTER:POOL
}

var _ rbd.Clusters = (*Process)(nil)

// Process returns a new process.
func (c *Ceph) Process() *Process {
	return &Process{ceph: c, seen: map[volid.Pool]bool{}, validated: map[string]bool{}}
}

// A Call is one call of a method of rbd.Clusters or rbd.Pool.
type Call struct {
	Method string
	Place  volid.Pool
	About  string // the image's name or ID, "" when it is about none
	Err    error  // what it returned, in Calls only
}

// String returns METHOD and what the call is about.
func (c Call) String() string { return c.Method + " " + c.About }

// OnCall sets a function that is called before each call of this process, in the
// caller's goroutine and without a lock. It may wait, and it may use other
// processes or this one (then it is called for those calls too).
func (p *Process) OnCall(hook func(ctx context.Context, call Call)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = hook
}

// Calls returns the calls that have ended since the start or the last Reset, in
// the order in which they ended. Calls of a killed process are not among them.
func (p *Process) Calls() []Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
}

// Methods returns the methods of Calls.
func (p *Process) Methods() []string {
	var methods []string
	for _, call := range p.Calls() {
		methods = append(methods, call.Method)
	}
	return methods
}

// Operations returns how many RADOS operations the calls since the start or
// the last Reset cost, by the figures in the comments of package rbd.
func (p *Process) Operations() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.operations
}

// Reset forgets calls and operations. Faults and the hook stay.
func (p *Process) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls, p.operations = nil, 0
}

// Names implements rbd.Clusters.
func (p *Process) Names(ctx context.Context) ([]string, error) {
	var names []string
	err := p.do(ctx, Call{Method: "Names"}, func() error {
		names = slices.Sorted(maps.Keys(p.ceph.clusters))
		return nil
	})
	return answer(names, err)
}

// Pools implements rbd.Clusters.
func (p *Process) Pools(ctx context.Context, cluster string) ([]volid.Pool, error) {
	var places []volid.Pool
	err := p.do(ctx, Call{Method: "Pools", Place: volid.Pool{Cluster: cluster}, About: cluster}, func() error {
		known, err := p.cluster(cluster)
		if err != nil {
			return err
		}
		user, err := known.authenticate(params.Credentials{})
		if err != nil {
			return err
		}
		p.cost(len(known.pools))
		for _, pool := range known.pools {
			for namespace := range pool.spaces {
				if user.sees(pool.name) {
					places = append(places, volid.Pool{Cluster: cluster, Pool: pool.name, Namespace: namespace})
				}
			}
		}
		return nil
	})
	slices.SortFunc(places, func(a, b volid.Pool) int { return strings.Compare(a.String(), b.String()) })
	return answer(places, err)
}

// Pool implements rbd.Clusters.
func (p *Process) Pool(ctx context.Context, at volid.Pool, as params.Credentials) (rbd.Pool, error) {
	var opened *handle
	err := p.do(ctx, Call{Method: "Pool", Place: at}, func() error {
		cluster, err := p.cluster(at.Cluster)
		if err != nil {
			return err
		}
		user, err := cluster.authenticate(as)
		if err != nil {
			return err
		}
		if at.Namespace != "" && !p.known(at) && !user.sees(at.Pool) {
			return fmt.Errorf("pool %s: %w", at, fault.Denied)
		}
		space, err := p.ceph.space(at)
		if err != nil {
			return err
		}
		if at.Namespace != "" && !p.know(at) {
			p.cost(1)
		}
		opened = &handle{process: p, space: space, user: user}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return opened, nil
}

// cluster finds a cluster that answers; the caller holds the lock of the Ceph.
func (p *Process) cluster(name string) (*Cluster, error) {
	cluster, found := p.ceph.clusters[name]
	if !found {
		return nil, fmt.Errorf("cluster %q is not configured: %w", name, fault.Invalid)
	}
	if cluster.down {
		return nil, fmt.Errorf("cluster %s: no monitor answered: %w", name, fault.Unavailable)
	}
	return cluster, nil
}

// do makes one call: hook, fault, effect, fault, record. The effect runs under
// the lock of the whole Ceph.
func (p *Process) do(ctx context.Context, call Call, effect func() error) error {
	if err := ctx.Err(); err != nil {
		return ended(call, err)
	}
	p.mu.Lock()
	hook := p.hook
	p.mu.Unlock()
	if hook != nil {
		hook(ctx, call)
	}
	if err := ctx.Err(); err != nil {
		return ended(call, err)
	}
	p.mu.Lock()
	if p.killed {
		p.mu.Unlock()
		return killed(call)
	}
	struck := p.strike(call)
	p.killed = struck != nil && struck.Kill
	p.mu.Unlock()

	err := p.apply(call, effect, struck)
	p.record(call, err)
	return err
}

// apply runs the effect of a call, or does not, as the fault wants it.
func (p *Process) apply(call Call, effect func() error, struck *Fault) error {
	p.ceph.mu.Lock()
	defer p.ceph.mu.Unlock()
	switch {
	case struck == nil:
		return effect()
	case struck.When == Late:
		p.ceph.late = append(p.ceph.late, func() { _ = effect() })
	case struck.When == After:
		_ = effect()
	}
	return struck.error(call)
}

func (p *Process) record(call Call, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	call.Err = err
	p.calls = append(p.calls, call)
}

// cost adds to the count of RADOS operations.
func (p *Process) cost(operations int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.operations += operations
}

// known reports whether the process has looked for the namespace already.
func (p *Process) known(at volid.Pool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[at]
}

// know is known, and makes it so.
func (p *Process) know(at volid.Pool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.seen[at]
	p.seen[at] = true
	return was
}

// validate reports whether the data pool was checked before, and notes it.
func (p *Process) validate(cluster, pool string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.validated[cluster+":"+pool]
	p.validated[cluster+":"+pool] = true
	return was
}

// ended is the answer to a call whose context has ended before anything was sent.
func ended(call Call, err error) error {
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s %s: %w", call.Method, call.About, err)
	}
	return fmt.Errorf("%s %s: not sent: %w: %w", call.Method, call.About, fault.Unavailable, err)
}
