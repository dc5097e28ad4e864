package librbd

import (
	"maps"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// Connections over which the driver controls images watch the images that they open, and own their
// locks, as any client does. Who fences an image has to know them: shut out, such a
// connection would have to be made anew by a process that did nothing wrong, and a flatten of hours begin again.
// A process knows its own. Those of others are known by a note in the place (see clientsObject),
// which is written before the first image is opened there, so that whoever is found watching was noted before.
//
// A note does no harm when its connection is gone: nobody gets the same nonce again.

// announceAgain is after how long a connection in use announces itself anew, and controlAge when
// a note is so old that its connection certainly is gone.
const (
	announceAgain = 24 * time.Hour
	controlAge    = 30 * 24 * time.Hour
)

// controls are the addresses of this process's connections.
type controls struct {
	mu     sync.Mutex
	listed map[string]bool
}

func (c *controls) add(client string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listed == nil {
		c.listed = map[string]bool{}
	}
	c.listed[client] = true
}

func (c *controls) remove(client string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.listed, client)
}

func (c *controls) own(client string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listed[client]
}

// announce notes the connection in the place, unless it did so of late. It comes before each
// opening of an image that is watched by who opens it. The first time it also removes what is too old. Two
// operations, and then none for a day.
func (a at) announce() error {
	s, key := a.session, place{a.where.PoolID, a.where.Namespace}
	s.mu.Lock()
	since := time.Since(s.announced[key])
	s.mu.Unlock()
	if since < announceAgain {
		return nil
	}
	old, err := a.oldControls()
	if err != nil {
		return err
	}
	err = a.writeAlways(clientsObject, func(op *writeOp) {
		op.create()
		if len(old) > 0 {
			op.removeOmap(old)
		}
		now := strconv.FormatInt(time.Now().Unix(), 10)
		op.setOmap(map[string][]byte{controlPrefix + s.client: []byte(now)})
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announced[key] = time.Now()
	return nil
}

// oldControls returns the keys of announcements that are too old to be of a connection
// that still is.
func (a at) oldControls() ([]string, error) {
	page, err := a.notes("", controlPrefix)
	if err != nil {
		return nil, err
	}
	var old []string
	for key, value := range page {
		seconds, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || time.Since(time.Unix(seconds, 0)) > controlAge {
			old = append(old, key)
		}
	}
	return old, nil
}

// addControls says of which users it is known that they are connections of the driver's.
func (a at) addControls(ours *controls, users map[string]rbd.User) error {
	var keys []string
	for client := range users {
		keys = append(keys, controlPrefix+client)
	}
	noted := map[string][]byte{}
	err := a.read(clientsObject, func(op *readOp) func() {
		found := op.omapOf(keys)
		return func() { maps.Insert(noted, found) }
	})
	if err != nil && !is(err, syscall.ENOENT) {
		return err
	}
	for client, user := range users {
		_, user.Control = noted[controlPrefix+client]
		user.Control = user.Control || ours.own(client)
		users[client] = user
	}
	return nil
}
