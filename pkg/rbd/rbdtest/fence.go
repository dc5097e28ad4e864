package rbdtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// What Users costs beside the two operations for an image that nobody uses: to open and close it, and to
// read the notes.
const costUsers = 13

// Users implements rbd.Fences.
func (h *handle) Users(ctx context.Context, id string) ([]rbd.User, error) {
	var users []rbd.User
	err := h.call(ctx, "Users", id, 2, func(s *space) error {
		if _, found := s.headers[id]; !found {
			return fault.NotFound
		}
		for _, user := range s.users[id] {
			// The OSDs drop the watch of a client that is shut out. Its lock stays.
			user.Watches = user.Watches && !s.cluster.shutOut(user.Client)
			if user.Watches || user.Owns {
				users = append(users, user)
			}
		}
		if len(users) > 0 {
			h.process.cost(costUsers)
		}
		return nil
	})
	return answer(users, err)
}

// Blocklist implements rbd.Fences.
func (h *handle) Blocklist(ctx context.Context, id, client string, lasts time.Duration) (time.Time, error) {
	var until time.Time
	err := h.call(ctx, "Blocklist", client, 1, func(s *space) error {
		if err := rbd.CheckClient(client); err != nil {
			return err
		}
		if !s.cluster.shutOut(client) {
			s.cluster.blocklist[client] = time.Now().Add(lasts)
		}
		until = s.cluster.blocklist[client]
		return nil
	})
	return answer(until, err)
}

// Blocklisted implements rbd.Fences.
func (h *handle) Blocklisted(ctx context.Context) (map[string]time.Time, error) {
	var listed map[string]time.Time
	err := h.call(ctx, "Blocklisted", "", 0, func(s *space) error {
		listed = maps.Clone(s.cluster.blocklist)
		maps.DeleteFunc(listed, func(client string, _ time.Time) bool { return !s.cluster.shutOut(client) })
		return nil
	})
	return answer(listed, err)
}

// Unblocklist implements rbd.Fences.
func (h *handle) Unblocklist(ctx context.Context, client string) error {
	return h.call(ctx, "Unblocklist", client, 0, func(s *space) error {
		if err := rbd.CheckClient(client); err != nil {
			return err
		}
		if !s.cluster.operators[h.user.name] {
			return fault.Denied
		}
		delete(s.cluster.blocklist, client)
		return nil
	})
}

// NoteFence implements rbd.Fences.
func (h *handle) NoteFence(ctx context.Context, client, note string) error {
	return h.make(ctx, "NoteFence", client, func(s *space) error {
		s.fenced[client] = note
		return nil
	})
}

// NotedFences implements rbd.Fences.
func (h *handle) NotedFences(ctx context.Context) (map[string]string, error) {
	var noted map[string]string
	err := h.call(ctx, "NotedFences", "", 1, func(s *space) error {
		noted = maps.Clone(s.fenced)
		return nil
	})
	return answer(noted, err)
}

// ForgetFence implements rbd.Fences.
func (h *handle) ForgetFence(ctx context.Context, client string) error {
	return h.call(ctx, "ForgetFence", client, 1, func(s *space) error {
		delete(s.fenced, client)
		return nil
	})
}

// shutOut reports whether a client is in the blocklist now; the caller holds the lock.
func (c *Cluster) shutOut(client string) bool {
	until, listed := c.blocklist[client]
	return listed && time.Now().Before(until)
}

// Open implements Tools.
func (c *Ceph) Open(image volid.Image) (Client, error) {
	return c.OpenAs(image, fmt.Sprintf("10.0.0.1:0/%d", 1000+c.count()))
}

// OpenAs is [Tools].Open for a client whose address is given.
func (c *Ceph) OpenAs(image volid.Image, client string) (Client, error) {
	opened := &opened{ceph: c, client: client}
	err := c.image(image, func(s *space, id string, _ *header) error {
		opened.space, opened.id = s, id
		s.users[id] = append(s.users[id], rbd.User{Client: client, Watches: true})
		return nil
	})
	return opened, err
}

// opened is a client that has an image open.
type opened struct {
	ceph   *Ceph
	space  *space
	id     string
	client string
}

func (o *opened) Address() string { return o.client }

func (o *opened) Write(text string) error {
	o.ceph.mu.Lock()
	defer o.ceph.mu.Unlock()
	if o.space.cluster.shutOut(o.client) {
		return fmt.Errorf("client %s is blocklisted: %w", o.client, fault.Unavailable)
	}
	users := o.space.users[o.id]
	for i := range users {
		users[i].Owns = users[i].Client == o.client
	}
	return o.space.write(o.id, 0, []byte(text))
}

func (o *opened) Close() {
	o.ceph.mu.Lock()
	defer o.ceph.mu.Unlock()
	o.space.users[o.id] = slices.DeleteFunc(o.space.users[o.id], func(u rbd.User) bool { return u.Client == o.client })
}

// Lose makes the watches of a client end, as 30 s after it froze or died. A lock stays.
func (c *Ceph) Lose(client string) {
	c.eachUser(func(u *rbd.User) {
		if u.Client == client {
			u.Watches = false
		}
	})
}

// MakeControl makes a client one that the driver announced as its own.
func (c *Ceph) MakeControl(client string) {
	c.eachUser(func(u *rbd.User) {
		if u.Client == client {
			u.Control = true
		}
	})
}

// eachUser changes all users of all images.
func (c *Ceph) eachUser(change func(*rbd.User)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cluster := range c.clusters {
		for _, pool := range cluster.pools {
			for _, space := range pool.spaces {
				for _, users := range space.users {
					for i := range users {
						change(&users[i])
					}
				}
			}
		}
	}
}
