package librbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// exclusiveLock is the name of an image's exclusive lock on its header (RBD_LOCK_NAME).
const exclusiveLock = "rbd_lock"

// Users implements rbd.Fences. librados has no call in C that lists an object's watchers, and librbd's
// (rbd_watchers_list) wants the image open, which is dear; so it is asked only when there is an owner of the lock, or
// somebody answers a notification, or should. A notification without content tells clients that the header changed.
// An image that is opened read-only is not watched by who opens it.
func (p *pool) Users(ctx context.Context, id string) ([]rbd.User, error) {
	return run(ctx, p, "look who uses "+id, func(a at) ([]rbd.User, error) {
		users := map[string]rbd.User{}
		if err := a.addOwners(id, users); err != nil {
			return nil, err
		}
		watched := len(users) > 0
		if !watched {
			var err error
			if watched, err = a.watched(id); err != nil {
				return nil, err
			}
		}
		if !watched {
			return nil, nil
		}
		if err := a.addWatchers(id, users); err != nil {
			return nil, err
		}
		if err := a.addControls(&p.clusters.controls, users); err != nil {
			return nil, err
		}
		clients := slices.Sorted(maps.Keys(users))
		listed := make([]rbd.User, len(clients))
		for i, client := range clients {
			listed[i] = users[client]
		}
		return listed, nil
	})
}

// addOwners adds who owns the exclusive lock (rados_list_lockers).
func (a at) addOwners(id string, users map[string]rbd.User) error {
	lock, err := a.ListLockers(headerPrefix+id, exclusiveLock)
	if err != nil {
		return err
	}
	for _, address := range lock.Addrs {
		client := rbd.ClientOf(address)
		user := users[client]
		user.Client, user.Owns = client, true
		users[client] = user
	}
	return nil
}

// watched reports whether the header has watchers that the OSD knows (rados_notify2).
func (a at) watched(id string) (bool, error) {
	acks, silent, err := a.NotifyWithTimeout(headerPrefix+id, nil, time.Second)
	if is(err, syscall.ETIMEDOUT) {
		return true, nil
	}
	return len(acks)+len(silent) > 0, err
}

// addWatchers adds who watches the header.
func (a at) addWatchers(id string, users map[string]rbd.User) error {
	image, err := a.open(id, cephrbd.OpenImageByIdReadOnly)
	if err != nil {
		return err
	}
	watchers, err := image.ListWatchers()
	for _, watcher := range watchers {
		client := rbd.ClientOf(watcher.Addr)
		user := users[client]
		user.Client, user.Watches = client, true
		users[client] = user
	}
	return errors.Join(err, image.Close())
}

// Blocklist implements rbd.Fences: the monitors' command `osd blocklist add`, unless the client is listed, which answers
// when the new map is there; rados_wait_for_latest_osdmap; and an operation on the header, which
// carries the number of that map and which the OSD does not carry out before it has it.
func (p *pool) Blocklist(ctx context.Context, id, client string, lasts time.Duration) (time.Time, error) {
	what := "blocklist " + client
	if err := rbd.CheckClient(client); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", what, err)
	}
	if p.clusters.controls.own(client) {
		return time.Time{}, fmt.Errorf("%s: it is a connection of this process: %w", what, fault.InUse)
	}
	return run(ctx, p, what, func(a at) (time.Time, error) {
		until, err := a.listed(client, lasts)
		if err != nil {
			return time.Time{}, err
		}
		if err := a.session.conn.WaitForLatestOSDMap(); err != nil {
			return time.Time{}, err
		}
		if _, err := a.Stat(headerPrefix + id); err != nil && !is(err, syscall.ENOENT) {
			return time.Time{}, err
		}
		return until, nil
	})
}

// listed makes sure that a client is in the blocklist, and returns until when. To add one that is there changes nothing and
// takes a proposal of the monitors all the same.
func (a at) listed(client string, lasts time.Duration) (time.Time, error) {
	before, err := a.blocklist()
	if err != nil || !before[client].IsZero() {
		return before[client], err
	}
	if err := a.changeBlocklist("add", client, lasts); err != nil {
		return time.Time{}, err
	}
	after, err := a.blocklist()
	if err == nil && after[client].IsZero() {
		err = fmt.Errorf("%w: the monitors took the entry and do not list it", fault.Unknown)
	}
	return after[client], err
}

// changeBlocklist sends `osd blocklist add` or `rm`; profile rbd allows the first, of one exact client.
func (a at) changeBlocklist(operation, client string, lasts time.Duration) error {
	command := map[string]any{"prefix": "osd blocklist", "blocklistop": operation, "addr": client}
	if operation == "add" {
		// The monitors do not take a number without a point for a real one.
		command["expire"] = json.RawMessage(strconv.FormatFloat(lasts.Seconds(), 'f', 1, 64))
	}
	_, err := a.command(command)
	return err
}

// command asks the monitors.
func (a at) command(command map[string]any) ([]byte, error) {
	text, err := json.Marshal(command)
	if err != nil {
		return nil, err
	}
	output, message, err := a.session.conn.MonCommand(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", classified(err), message)
	}
	return output, nil
}

// Blocklisted implements rbd.Fences: `osd blocklist ls`.
func (p *pool) Blocklisted(ctx context.Context) (map[string]time.Time, error) {
	return run(ctx, p, "list the blocklist", func(a at) (map[string]time.Time, error) { return a.blocklist() })
}

func (a at) blocklist() (map[string]time.Time, error) {
	output, err := a.command(map[string]any{"prefix": "osd blocklist ls", "format": "json"})
	if err != nil {
		return nil, err
	}
	return readBlocklist(output)
}

// blocklistTime is how the monitors write until when an entry lasts.
const blocklistTime = "2006-01-02T15:04:05.999999-0700"

// readBlocklist reads the lists in an answer, of clients and, since 16.2.11, of ranges of addresses, one
// after the other. What is no exact client is left out.
func readBlocklist(output []byte) (map[string]time.Time, error) {
	listed := map[string]time.Time{}
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var entries []struct{ Addr, Until string }
		err := decoder.Decode(&entries)
		if errors.Is(err, io.EOF) {
			return listed, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the answer to osd blocklist ls: %w", err)
		}
		for _, entry := range entries {
			client := rbd.ClientOf(entry.Addr)
			if rbd.CheckClient(client) != nil {
				continue
			}
			if listed[client], err = time.Parse(blocklistTime, entry.Until); err != nil {
				return nil, fmt.Errorf("read the answer to osd blocklist ls: %w", err)
			}
		}
	}
}

// Unblocklist implements rbd.Fences: `osd blocklist rm`.
func (p *pool) Unblocklist(ctx context.Context, client string) error {
	what := "remove " + client + " from the blocklist"
	if err := rbd.CheckClient(client); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return do(ctx, p, what, func(a at) error {
		err := a.changeBlocklist("rm", client, 0)
		if is(err, syscall.ENOENT) {
			return nil
		}
		return err
	})
}

// clientsObject holds in its omap what the driver notes about clients in a place:
//
//	control/CLIENT   when (seconds since 1970) a process announced this connection as its own
//	fenced/CLIENT    the text of NoteFence
const (
	clientsObject = "rbd_csi.clients"
	controlPrefix = "control/"
	fencedPrefix  = "fenced/"
)

// NoteFence implements rbd.Fences.
func (p *pool) NoteFence(ctx context.Context, client, note string) error {
	return do(ctx, p, "note the fence of "+client, func(a at) error {
		return a.write(clientsObject, func(op *writeOp) {
			op.create()
			op.setOmap(map[string][]byte{fencedPrefix + client: []byte(note)})
		})
	})
}

// ForgetFence implements rbd.Fences.
func (p *pool) ForgetFence(ctx context.Context, client string) error {
	return do(ctx, p, "forget the fence of "+client, func(a at) error {
		err := a.write(clientsObject, func(op *writeOp) {
			op.assertExists()
			op.removeOmap([]string{fencedPrefix + client})
		})
		if is(err, syscall.ENOENT) {
			return nil
		}
		return err
	})
}

// NotedFences implements rbd.Fences.
func (p *pool) NotedFences(ctx context.Context) (map[string]string, error) {
	return run(ctx, p, "list the fences", func(a at) (map[string]string, error) {
		noted := map[string]string{}
		for after := ""; ; {
			page, err := a.notes(after, fencedPrefix)
			if err != nil {
				return nil, err
			}
			for key, note := range page {
				noted[strings.TrimPrefix(key, fencedPrefix)] = string(note)
				after = max(after, key)
			}
			if len(page) < pageSize {
				return noted, nil
			}
		}
	})
}

// notes returns a page of the notes about clients whose keys have a prefix.
func (a at) notes(after, prefix string) (map[string][]byte, error) {
	page := map[string][]byte{}
	err := a.read(clientsObject, func(op *readOp) func() {
		found := op.omap(after, prefix, pageSize)
		return func() { maps.Insert(page, found) }
	})
	if is(err, syscall.ENOENT) {
		return nil, nil
	}
	return page, err
}
