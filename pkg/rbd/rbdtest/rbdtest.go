// Package rbdtest is Ceph in memory, for tests of what is built on package rbd:
// clusters with pools, namespaces and users, faults on demand, and the suite
// that this fake and the real adapter both pass.
//
//	ceph := rbdtest.New()
//	ceph.AddCluster("main").AddUser("csi", "KEY").AddPool("kube")
//	process := ceph.Process()   // a driver process: it implements rbd.Clusters
//	process.Fail(rbdtest.Fault{Method: "AddName", When: rbdtest.After})
//	pool, err := process.Pool(ctx, at, params.Credentials{})
//	...
//	left := ceph.Dump()         // everything that exists
//
// Pools are rbd.Copies too: snapshots keep the data objects of their moment, clones read
// through, and Dump lists what copies leave.
//
// A second [Ceph.Process] is another process on the same clusters: faults, hooks,
// counts and a kill belong to one process, what is stored belongs to all.
package rbdtest

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Ceph is a number of clusters in memory. All methods may be called at once.
type Ceph struct {
	mu       sync.Mutex
	clusters map[string]*Cluster
	ids      int // how many IDs Create gave away
	stamps   int // how many writes there were
	late     []func()
}

// New returns a Ceph without clusters.
func New() *Ceph { return &Ceph{clusters: map[string]*Cluster{}} }

// A Cluster has users and pools. Its methods set it up and return it, so that
// they can be chained; they may be called while processes use it.
type Cluster struct {
	ceph    *Ceph
	name    string
	fsid    string
	users   map[string]user
	keyring string // the user without credentials in the request, "" for none
	pools   map[string]*pool
	down    bool

	operators map[string]bool      // users who may remove from the blocklist
	blocklist map[string]time.Time // by client, until when
}

// A user has a key and may see some pools.
type user struct {
	name  string
	key   params.Secret
	pools []string // empty: all
}

// A pool is a pool of a cluster with its namespaces; "" is the default one.
type pool struct {
	id           int64
	name         string
	noOverwrites bool
	full         bool
	snapshots    uint64 // the ID of the last snapshot of data in it
	capacity     rbd.Capacity
	spaces       map[string]*space
}

// A space is what one namespace of a pool holds.
type space struct {
	cluster *Cluster
	pool    *pool
	name    string

	names   map[string]string  // rbd_id.NAME: ID
	entries map[string]string  // rbd_directory: name to ID
	headers map[string]*header // rbd_header.ID
	maps    map[string]int64   // rbd_object_map.ID: how many objects it covers
	trash   map[string]trashed // rbd_trash: by ID
	data    map[string]objects // rbd_data.ID.N: by the image's ID
	holders map[string]int     // image ID to how many clients watch and lock it
	index   map[string]string  // rbd_csi.index; nil: it is not there

	users  map[string][]rbd.User // who uses an image, by its ID
	fenced map[string]string     // the notes about fences in rbd_csi.clients
}

// A header is an object rbd_header.ID. The snapshots in it are kept apart.
type header struct {
	rbd.Header
	foreign   map[string]string // metadata of others, without MetaPrefix
	snapshots []*snapshot       // in the order of their IDs
	kept      rbd.Parent        // a flattened image's, for the sake of its snapshots
}

// A snapshot of an image, with the data of that moment. Children in it is not used.
type snapshot struct {
	rbd.Snapshot
	data      objects
	hasParent bool
	parent    rbd.Parent
	children  map[rbd.Child]bool
}

// A trashed image; moving is the state of one whose move by `rbd trash mv` has
// not ended.
type trashed struct {
	rbd.TrashEntry
	moving bool
}

// AddCluster adds a cluster without users and pools.
func (c *Ceph) AddCluster(name string) *Cluster {
	c.mu.Lock()
	defer c.mu.Unlock()
	added := &Cluster{
		ceph: c, name: name, users: map[string]user{}, pools: map[string]*pool{},
		operators: map[string]bool{}, blocklist: map[string]time.Time{},
		fsid: fmt.Sprintf("00000000-0000-4000-8000-%012d", len(c.clusters)+1),
	}
	c.clusters[name] = added
	return added
}

// AddUser adds a user who may see the given pools, or all when none is given.
// The first user added is the one in the cluster's keyring.
func (c *Cluster) AddUser(name, key string, pools ...string) *Cluster {
	c.ceph.mu.Lock()
	defer c.ceph.mu.Unlock()
	c.users[name] = user{name: name, key: params.NewSecret(key), pools: pools}
	if c.keyring == "" {
		c.keyring = name
	}
	return c
}

// AddOperator adds a user who may also remove clients from the blocklist.
func (c *Cluster) AddOperator(name, key string) *Cluster {
	c.AddUser(name, key)
	c.ceph.mu.Lock()
	defer c.ceph.mu.Unlock()
	c.operators[name] = true
	return c
}

// AddPool adds a pool, with its namespaces, that 1 TiB is available in.
func (c *Cluster) AddPool(name string, namespaces ...string) *Cluster {
	c.ceph.mu.Lock()
	defer c.ceph.mu.Unlock()
	added := &pool{
		id: int64(len(c.pools) + 1), name: name, spaces: map[string]*space{},
		capacity: rbd.Capacity{Available: 1 << 40},
	}
	for _, namespace := range append([]string{""}, namespaces...) {
		added.spaces[namespace] = newSpace(c, added, namespace)
	}
	c.pools[name] = added
	return c
}

// AddDataPool adds a pool that is good for data only: erasure-coded, with or
// without allow_ec_overwrites.
func (c *Cluster) AddDataPool(name string, overwrites bool) *Cluster {
	c.AddPool(name)
	c.ceph.mu.Lock()
	defer c.ceph.mu.Unlock()
	c.pools[name].noOverwrites = !overwrites
	return c
}

// SetCapacity says what Capacity answers for a pool.
func (c *Cluster) SetCapacity(pool string, capacity rbd.Capacity) *Cluster {
	c.ceph.mu.Lock()
	defer c.ceph.mu.Unlock()
	c.pools[pool].capacity = capacity
	return c
}

// SetFull makes a pool refuse with fault.Exhausted what would make something in
// it, or accept it again. Removing works in a full pool.
func (c *Cluster) SetFull(pool string, full bool) *Cluster {
	c.ceph.mu.Lock()
	defer c.ceph.mu.Unlock()
	c.pools[pool].full = full
	return c
}

// SetDown takes the cluster off the network, or back: while it is down every
// call answers fault.Unavailable and nothing is done.
func (c *Cluster) SetDown(down bool) *Cluster {
	c.ceph.mu.Lock()
	defer c.ceph.mu.Unlock()
	c.down = down
	return c
}

func newSpace(c *Cluster, p *pool, name string) *space {
	return &space{
		cluster: c, pool: p, name: name,
		names: map[string]string{}, entries: map[string]string{}, headers: map[string]*header{},
		maps: map[string]int64{}, trash: map[string]trashed{}, data: map[string]objects{},
		holders: map[string]int{},
		users:   map[string][]rbd.User{}, fenced: map[string]string{},
	}
}

// space finds a place; the caller holds the lock.
func (c *Ceph) space(at volid.Pool) (*space, error) {
	cluster, found := c.clusters[at.Cluster]
	if !found {
		return nil, fmt.Errorf("cluster %q is not configured: %w", at.Cluster, fault.Invalid)
	}
	pool, found := cluster.pools[at.Pool]
	if !found {
		return nil, fmt.Errorf("cluster %s: pool %q: %w", at.Cluster, at.Pool, fault.NotFound)
	}
	space, found := pool.spaces[at.Namespace]
	if !found {
		return nil, fmt.Errorf("pool %s:%s: namespace %q: %w", at.Cluster, at.Pool, at.Namespace, fault.NotFound)
	}
	return space, nil
}

// authenticate checks credentials; the caller holds the lock.
func (c *Cluster) authenticate(as params.Credentials) (user, error) {
	if !as.Given() {
		if c.keyring == "" {
			return user{}, fmt.Errorf("cluster %s: no secret in the request and no keyring: %w", c.name, fault.Unauthenticated)
		}
		return c.users[c.keyring], nil
	}
	known, found := c.users[as.User]
	if !found || !known.key.Equal(as.Key) {
		return user{}, fmt.Errorf("cluster %s: client.%s or its key: %w", c.name, as.User, fault.Unauthenticated)
	}
	return known, nil
}

// sees reports whether the user's capabilities reach a pool.
func (u user) sees(pool string) bool { return len(u.pools) == 0 || slices.Contains(u.pools, pool) }

// where returns the place of a space.
func (s *space) where() rbd.Where {
	return rbd.Where{
		Pool: volid.Pool{Cluster: s.cluster.name, Pool: s.pool.name, Namespace: s.name},
		FSID: s.cluster.fsid, PoolID: s.pool.id,
	}
}

// poolByID finds a pool of the cluster; nil for none.
func (c *Cluster) poolByID(id int64) *pool {
	for _, pool := range c.pools {
		if pool.id == id {
			return pool
		}
	}
	return nil
}

// copyHeader returns a header that shares nothing with the stored one.
func (h *header) copyHeader() rbd.Header {
	copied := h.Header
	copied.Meta = maps.Clone(h.Meta)
	if copied.Meta == nil {
		copied.Meta = map[string]string{}
	}
	for _, taken := range h.snapshots {
		shown := taken.Snapshot
		shown.Children = len(taken.children)
		copied.Snapshots = append(copied.Snapshots, shown)
	}
	return copied
}

// now is the time with the precision of the trash, one second.
func now() time.Time { return time.Now().Truncate(time.Second) }
