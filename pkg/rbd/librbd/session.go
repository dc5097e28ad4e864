package librbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ceph/go-ceph/rados"
	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/step"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A session is one connection to a cluster, or the attempt to make it.
type session struct {
	identity identity
	bounds   *bounds
	began    time.Time
	waiting  atomic.Int64 // how many want it right now

	ready chan struct{} // closed when the attempt has ended
	err   error         // why it failed; set before ready is closed
	conn  *rados.Conn   // likewise
	fsid  string
	// client is the connection's address, as a blocklist names it; likewise.
	client string

	mu        sync.Mutex
	users     int  // calls under way
	retired   bool // nobody gets it any more; closed after its last call
	closed    func()
	resting   *time.Timer // to give memory back
	used      time.Time
	contexts  map[place]*rados.IOContext
	found     map[volid.Pool]rbd.Where // places that were looked for
	overwrite map[int64]bool           // data pools that can overwrite, by ID
	announced map[place]time.Time      // where it was noted as the driver's, see announce
}

// A place is a pool, by its ID, and a namespace in it.
type place struct {
	pool      int64
	namespace string
}

// errRetired means that a session was closed between finding and using it.
var errRetired = fmt.Errorf("the connection was closed: %w", fault.Unavailable)

func newSession(id identity, shared *bounds) *session {
	return &session{
		identity: id, bounds: shared, began: time.Now(), used: time.Now(), ready: make(chan struct{}),
		contexts: map[place]*rados.IOContext{}, found: map[volid.Pool]rbd.Where{}, overwrite: map[int64]bool{},
		announced: map[place]time.Time{},
	}
}

// wait waits until the session is connected. An attempt that outlives its callers
// goes on.
func (s *session) wait(ctx context.Context) (*session, error) {
	select {
	case <-s.ready:
		return s, s.err
	default:
	}
	what := "connect to cluster " + s.identity.cluster + " as client." + s.identity.user
	step.Set(ctx, what)
	select {
	case <-s.ready:
		return s, s.err
	case <-ctx.Done():
	}
	kind := fault.Unavailable
	if errors.Is(ctx.Err(), context.Canceled) {
		kind = fault.Canceled
	}
	return nil, fmt.Errorf("%s: not done since %s: %w: %w", what, s.began.UTC().Format(time.RFC3339), kind, ctx.Err())
}

func (s *session) failed(err error) {
	s.err = err
	close(s.ready)
}

// connected puts the session into service. closed is called when it has been closed.
func (s *session) connected(conn *rados.Conn, fsid, client string, closed func()) {
	s.conn, s.fsid, s.client = conn, fsid, client
	s.mu.Lock()
	s.closed, s.resting = closed, time.AfterFunc(rest, giveBack)
	s.closeIfDone()
	s.mu.Unlock()
	close(s.ready)
}

// enter begins a call; it fails when the session has been retired.
func (s *session) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retired {
		return false
	}
	s.users++
	s.used = time.Now()
	s.resting.Stop()
	return true
}

// leave ends a call.
func (s *session) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
	if s.users == 0 {
		s.resting.Reset(rest)
	}
	s.closeIfDone()
}

// retire makes enter fail from now on, and closes the session after its last call.
func (s *session) retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	s.closeIfDone()
}

// closeIfDone closes a retired session without calls; the caller holds s.mu.
func (s *session) closeIfDone() {
	if !s.retired || s.users > 0 || s.closed == nil {
		return
	}
	closed := s.closed
	s.closed = nil
	s.resting.Stop()
	go func() {
		for _, io := range s.contexts {
			io.Destroy()
		}
		s.conn.Shutdown()
		giveBack()
		closed()
	}()
}

// idleSince reports whether a connected session was not used since a moment.
func (s *session) idleSince(moment time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed != nil && s.users == 0 && s.waiting.Load() == 0 && s.used.Before(moment)
}

// calls returns what bounds the calls by this connection.
func (s *session) calls() *rbd.Calls {
	if s.identity.slow {
		return s.bounds.flattens
	}
	return s.bounds.calls
}

// guard makes a call count as one of the session's.
func guard[T any](s *session, call func() (T, error)) func() (T, error) {
	return func() (T, error) {
		if !s.enter() {
			var none T
			return none, errRetired
		}
		defer s.leave()
		return call()
	}
}

// context returns the handle for a pool and namespace. It asks the monitors when
// the pool is not in the map of OSDs that the client has, else nobody. Pools
// are looked up at each call: the name may be another pool's by now.
//
// Handles work on a full pool, too: what takes space fails with ENOSPC or EDQUOT
// instead of waiting for space, and what frees space is carried out
// (rados_set_pool_full_try).
func (s *session) context(pool, namespace string) (*rados.IOContext, error) {
	id, err := s.conn.GetPoolByName(pool)
	if fault.Is(classified(err), fault.NotFound) {
		return nil, fmt.Errorf("pool %s: %w (make it, or name another: `ceph osd pool ls`)", pool, fault.NotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", pool, classified(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := place{id, namespace}
	if io, found := s.contexts[key]; found {
		return io, nil
	}
	io, err := s.conn.OpenIOContext(pool)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", pool, classified(err))
	}
	if io.GetPoolID() != id {
		io.Destroy()
		return nil, fmt.Errorf("pool %s is another one now: %w", pool, fault.Superseded)
	}
	io.SetNamespace(namespace)
	if err := io.SetPoolFullTry(); err != nil {
		io.Destroy()
		return nil, fmt.Errorf("pool %s: %w", pool, classified(err))
	}
	s.contexts[key] = io
	return io, nil
}

// known returns a place that was found before.
func (s *session) known(at volid.Pool) (rbd.Where, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	where, found := s.found[at]
	return where, found && !s.retired
}

// forget makes the next Pool look for a place again.
func (s *session) forget(at volid.Pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.found, at)
}

// look looks for a place and remembers it.
func (s *session) look(at volid.Pool) (rbd.Where, error) {
	io, err := s.context(at.Pool, "")
	if err != nil {
		return rbd.Where{}, fmt.Errorf("cluster %s: %w", at.Cluster, err)
	}
	if at.Namespace != "" {
		exists, err := cephrbd.NamespaceExists(io, at.Namespace)
		if err != nil {
			return rbd.Where{}, fmt.Errorf("look for namespace %s: %w", at, classified(err))
		}
		if !exists {
			return rbd.Where{}, fmt.Errorf("pool %s:%s has no namespace %q: %w", at.Cluster, at.Pool, at.Namespace, fault.NotFound)
		}
	}
	where := rbd.Where{Pool: at, FSID: s.fsid, PoolID: io.GetPoolID()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found[at] = where
	return where, nil
}
