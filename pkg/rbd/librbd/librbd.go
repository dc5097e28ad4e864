// Package librbd is the real cluster behind package rbd: go-ceph, librados and
// librbd. It decides nothing; a method is a call or two and the translation of
// its error.
//
// What is one step on one object is one RADOS operation with methods of the OSD
// classes rbd and cmpomap, the same that librbd sends (src/cls/rbd/cls_rbd.cc,
// src/cls/cmpomap/server.cc). What needs a whole image (growing it, looking for
// data, removing it) is done by librbd.
//
// Build it with the tag that go-ceph wants for the release that is installed:
// pacific for Ceph 16.2, none for 18 and later.
package librbd

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ceph/go-ceph/rados"
	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Options are limits. Zero values stand for the defaults.
type Options struct {
	// Connect is how long connecting may take (client_mount_timeout), and every
	// question to the monitors (rados_mon_op_timeout). 5 s by default, because the
	// sidecars of Kubernetes wait for 10 s or 15 s.
	Connect time.Duration
	// Operation is rados_osd_op_timeout, 30 s by default and at least: an operation
	// that ran into it may be applied all the same.
	Operation time.Duration
	// Calls is how many calls into one cluster are under way at a time, those
	// included that nobody waits for any more. 48 by default.
	Calls int
	// Idle is how long a connection stays without use. 10 minutes by default.
	Idle time.Duration
}

func (o Options) filled() Options {
	fill := func(value *time.Duration, usual time.Duration) {
		if *value == 0 {
			*value = usual
		}
	}
	fill(&o.Connect, 5*time.Second)
	fill(&o.Operation, 30*time.Second)
	fill(&o.Idle, 10*time.Minute)
	o.Operation = max(o.Operation, 30*time.Second)
	if o.Calls == 0 {
		o.Calls = 48
	}
	return o
}

// connectsAtOnce is how many connections to one cluster are being made at a time.
// Each costs threads and, when the cluster is away, lasts for Options.Connect.
const connectsAtOnce = 3

// Clusters are the clusters of a directory. They implement rbd.Clusters and share
// one connection for each cluster, user, key, content of ceph.conf and list of monitors.
type Clusters struct {
	directory cluster.Directory
	options   Options
	salt      [sha256.Size]byte // so that what tells keys apart says nothing of them
	growing   queues            // of callers of Grow
	taking    queues            // of callers of TakeSnapshot and RemoveSnapshot
	together  queues            // of snapshots of one moment, by pool
	flattens  flights           // of Flatten
	controls  controls          // addresses of the connections

	mu       sync.Mutex
	closed   bool
	sessions map[identity]*session
	clusters map[string]*bounds
	open     sync.WaitGroup // sessions that hold something of librados
}

// bounds are shared by all sessions of a cluster.
type bounds struct {
	calls    *rbd.Calls
	flattens *rbd.Calls    // of Flatten, which may take hours
	slots    chan struct{} // one value for each of them
	connects chan struct{}
}

var _ rbd.Clusters = (*Clusters)(nil)

// New returns the clusters of a directory. It connects to none of them. Close
// has to be called in the end. It also sets how malloc uses memory, for the
// whole process.
func New(directory cluster.Directory, options Options) *Clusters {
	c := &Clusters{
		directory: directory, options: options.filled(),
		sessions: map[identity]*session{}, clusters: map[string]*bounds{},
	}
	saveMemory()
	_, _ = rand.Read(c.salt[:]) // never fails, see crypto/rand
	return c
}

// Close closes all connections, each after its last call, and waits for that until
// ctx ends. Calls that come later get fault.Unavailable.
func (c *Clusters) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	sessions := c.sessions
	c.sessions = map[identity]*session{}
	c.mu.Unlock()
	for _, one := range sessions {
		one.retire()
	}
	done := make(chan struct{})
	go func() {
		c.open.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close connections to Ceph: calls still hang: %w: %w", fault.Unknown, ctx.Err())
	}
}

// Names implements rbd.Clusters.
func (c *Clusters) Names(context.Context) ([]string, error) { return c.directory.Names() }

// Pools implements rbd.Clusters. A user whose capabilities reach only into a
// namespace cannot list the namespaces of the pool; the pool is left out then.
func (c *Clusters) Pools(ctx context.Context, name string) ([]volid.Pool, error) {
	var places []volid.Pool
	err := c.retried(ctx, name, params.Credentials{}, func(s *session) error {
		var err error
		places, err = rbd.Do(ctx, s.bounds.calls, "list the pools of "+name, guard(s, func() ([]volid.Pool, error) {
			return s.readablePools(name)
		}))
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(places, func(a, b volid.Pool) int { return strings.Compare(a.String(), b.String()) })
	return places, nil
}

// readablePools asks each pool for its namespaces (rbd_namespace_list).
func (s *session) readablePools(name string) ([]volid.Pool, error) {
	pools, err := s.conn.ListPools()
	if err != nil {
		return nil, classified(err)
	}
	var places []volid.Pool
	for _, pool := range pools {
		io, err := s.context(pool, "")
		if err != nil {
			return nil, err
		}
		namespaces, err := cephrbd.NamespaceList(io)
		if kind := kindOf(number(err)); err != nil && (kind == fault.Denied || kind == fault.NotFound) {
			continue // not for this user, or removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list the namespaces of pool %s: %w", pool, classified(err))
		}
		for _, namespace := range append(namespaces, "") {
			places = append(places, volid.Pool{Cluster: name, Pool: pool, Namespace: namespace})
		}
	}
	return places, nil
}

// Pool implements rbd.Clusters.
func (c *Clusters) Pool(ctx context.Context, at volid.Pool, as params.Credentials) (rbd.Pool, error) {
	var opened *pool
	err := c.retried(ctx, at.Cluster, as, func(s *session) error {
		where, known := s.known(at)
		if !known {
			var err error
			where, err = rbd.Do(ctx, s.bounds.calls, "look for pool "+at.String(), guard(s, func() (rbd.Where, error) {
				return s.look(at)
			}))
			if err != nil {
				return err
			}
		}
		opened = &pool{clusters: c, as: as, where: where}
		opened.session.Store(s)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return opened, nil
}

// retried calls with a session of the cluster, and once more with a new one when
// the first turns out to be of no use any more.
func (c *Clusters) retried(ctx context.Context, name string, as params.Credentials, call func(*session) error) error {
	const attempts = 3
	for attempt := 1; ; attempt++ {
		s, err := c.session(ctx, name, as, false)
		if err != nil {
			return err
		}
		err = call(s)
		if attempt == attempts || !c.discarded(s, err) {
			return classified(err)
		}
	}
}

// discarded reports whether err means that a session is of no use any more,
// because it was closed or its client blocklisted. In the second case it drops it.
func (c *Clusters) discarded(s *session, err error) bool {
	if errors.Is(err, errRetired) {
		return true
	}
	if !is(err, blocklisted) {
		return false
	}
	c.drop(s)
	return true
}

// drop makes sure that nobody gets the session any more.
func (c *Clusters) drop(s *session) {
	c.mu.Lock()
	if c.sessions[s.identity] == s {
		delete(c.sessions, s.identity)
	}
	c.mu.Unlock()
	s.retire()
}

// identity tells connections apart.
type identity struct {
	cluster, user string
	key, conf     [sha256.Size]byte
	slow          bool // see slowly
}

// session returns the connection for a user of a cluster; it makes one where
// there is none. Those who come meanwhile wait for the same one.
func (c *Clusters) session(ctx context.Context, name string, as params.Credentials, slow bool) (*session, error) {
	access, err := c.directory.Access(name, as)
	if err != nil {
		return nil, err
	}
	settings, err := access.Settings()
	if err != nil {
		return nil, err
	}
	id := identity{
		cluster: name, user: access.User, key: c.hash(access.Key.Reveal()),
		conf: c.hash(access.Monitors + "\n" + string(settings)), slow: slow,
	}

	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, fmt.Errorf("cluster %s: connections are closed: %w", name, fault.Unavailable)
	}
	s, found := c.sessions[id]
	if !found {
		s = newSession(id, c.bounds(name))
		c.sessions[id] = s
		c.open.Add(1)
		go c.connect(s, access)
	}
	s.waiting.Add(1)
	idle := c.takeIdle()
	c.mu.Unlock()
	defer s.waiting.Add(-1)
	for _, one := range idle {
		one.retire()
	}
	return s.wait(ctx)
}

// hash returns a value that differs where texts differ.
func (c *Clusters) hash(text string) (sum [sha256.Size]byte) {
	mac := hmac.New(sha256.New, c.salt[:])
	mac.Write([]byte(text))
	return [sha256.Size]byte(mac.Sum(nil))
}

// bounds returns what all sessions of a cluster share; the caller holds c.mu.
func (c *Clusters) bounds(name string) *bounds {
	shared, found := c.clusters[name]
	if !found {
		shared = &bounds{
			calls: rbd.NewCalls(name, c.options.Calls), connects: make(chan struct{}, connectsAtOnce),
			// Twice as many, because a slot is free a moment before its call has left.
			flattens: rbd.NewCalls(name, 2*flattensAtOnce), slots: make(chan struct{}, flattensAtOnce),
		}
		c.clusters[name] = shared
	}
	return shared
}

// takeIdle takes sessions out of use that nobody has used for long; the caller
// holds c.mu. It runs whenever someone asks for a session, so those that remain
// are those of the last users.
func (c *Clusters) takeIdle() []*session {
	var idle []*session
	for id, one := range c.sessions {
		if one.idleSince(time.Now().Add(-c.options.Idle)) {
			delete(c.sessions, id)
			idle = append(idle, one)
		}
	}
	return idle
}

// connect makes the connection of a session, unless everyone who wanted it has
// gone while it waited for its turn.
func (c *Clusters) connect(s *session, access cluster.Access) {
	s.bounds.connects <- struct{}{}
	defer func() { <-s.bounds.connects }()
	var conn *rados.Conn
	var fsid, client string
	err := fmt.Errorf("cluster %s: nobody waits for the connection any more: %w", access.Cluster, fault.Unavailable)
	if c.wanted(s) {
		conn, fsid, err = dial(access, c.options)
	}
	if err == nil {
		client, err = addressOf(conn)
	}
	if err == nil && s.identity.slow {
		err = slowly(conn)
	}
	if err != nil {
		c.mu.Lock()
		if c.sessions[s.identity] == s {
			delete(c.sessions, s.identity)
		}
		c.mu.Unlock()
		s.failed(err)
		c.open.Done()
		return
	}
	c.controls.add(client)
	s.connected(conn, fsid, client, func() {
		c.controls.remove(client)
		c.open.Done()
	})
}

// wanted reports whether someone waits for a session. If not, nobody will get it
// any more: whoever comes starts another one.
func (c *Clusters) wanted(s *session) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.waiting.Load() > 0 {
		return true
	}
	if c.sessions[s.identity] == s {
		delete(c.sessions, s.identity)
	}
	return false
}
