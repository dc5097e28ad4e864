package ceph

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// bringUpTimeout bounds the bring-up on a machine that is busy with other things.
const bringUpTimeout = 3 * time.Minute

// state is what a handle has to know of a running cluster; it stands in cluster.json.
type state struct {
	FSID       string        `json:"fsid"`
	Version    string        `json:"version"`
	Release    int           `json:"release"`
	KeyType    string        `json:"keyType,omitempty"`
	Monitors   []string      `json:"monitors"`
	Supervisor int           `json:"supervisor"`
	Options    Options       `json:"options"`
	Took       time.Duration `json:"took"`
}

// bringUp makes the cluster from nothing and returns the socket for requests.
func (s *supervisor) bringUp(ctx context.Context) (net.Listener, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bringUpTimeout,
		fmt.Errorf("not up after %s: %w", bringUpTimeout, fault.Unavailable))
	defer cancel()
	ctx, s.fallen = context.WithCancelCause(ctx)
	begun := time.Now()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"find the release", s.findRelease},
		{"write configuration and keys", s.configure},
		{"format disks, elect a monitor", together(s.formatOSDs, s.startMonitors)},
		{"start the others, make pools", together(s.startOthers, s.makePools)},
		{"make pools serve", s.initPools},
		{"allow old keys", s.allowOldKeys},
		{"become healthy", s.awaitHealth},
		{"give the monitors their pace back", s.restorePace},
	} {
		start := time.Now()
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("bring Ceph up in %s: %s: %w", s.folder.path, step.name, err)
		}
		s.log.Info("Step", "name", step.name, "took", time.Since(start).Round(time.Millisecond))
	}
	s.state.Took = time.Since(begun)
	return s.announce()
}

// together runs the steps at the same time and waits for all of them.
func together(steps ...func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		errs := make([]error, len(steps))
		var group sync.WaitGroup
		for i, step := range steps {
			group.Go(func() { errs[i] = step(ctx) })
		}
		group.Wait()
		return errors.Join(errs...)
	}
}

var versionLine = regexp.MustCompile(`^ceph version ((\d+)\.[0-9.]+)`)

func (s *supervisor) findRelease(ctx context.Context) error {
	text, err := s.admin.tools.run(ctx, "ceph-mon", "--version")
	if err != nil {
		return err
	}
	match := versionLine.FindStringSubmatch(text)
	if match == nil {
		return fmt.Errorf("version %q: %w", text, fault.Unsupported)
	}
	s.state.Version = match[1]
	s.state.Release, err = strconv.Atoi(match[2])
	return err
}

// configure writes ceph.conf, the keyrings and the manager's modules.
func (s *supervisor) configure(ctx context.Context) error {
	s.state.FSID = newUUID()
	s.state.Supervisor = os.Getpid()
	for i := range s.opts.Monitors {
		s.state.Monitors = append(s.state.Monitors, s.ports.monitor(s.opts.Address, i))
	}
	s.state.Options = s.opts
	if s.oldKeys() {
		s.admin.keyType, s.state.KeyType = "aes", "aes"
	}
	if err := s.write(confFile, conf(s.folder.path, s.state.FSID, s.ports, s.opts)); err != nil {
		return err
	}
	if !s.opts.ManagerModules {
		if err := writeModules(s.folder.path); err != nil {
			return err
		}
	}
	return s.writeKeys(ctx)
}

// firstNewKeys is the release from which on keys are aes256k unless asked otherwise.
const firstNewKeys = 20

// oldKeys reports whether the release has to be told to make and take keys of the old type.
func (s *supervisor) oldKeys() bool { return s.opts.OldKeys && s.state.Release >= firstNewKeys }

func (s *supervisor) writeKeys(ctx context.Context) error {
	list := entities(s.opts)
	for i := range list {
		args := []string{"--gen-print-key"}
		if s.oldKeys() && list[i].name == adminName {
			args = append(args, "--key-type", s.admin.keyType)
		}
		key, err := s.admin.tools.run(ctx, "ceph-authtool", args...)
		if err != nil {
			return err
		}
		list[i].key = strings.TrimSpace(key)
	}
	if err := s.write("all.keyring", keyring(true, list...)); err != nil {
		return err
	}
	for _, e := range list {
		var err error
		switch {
		case e.name == adminName:
			err = s.write(keyringFile, keyring(false, e))
		case e.name != monitorsName:
			err = s.write(filepath.Join(e.name, keyringFile), keyring(false, e))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// write makes a file in the folder that only its owner may read.
func (s *supervisor) write(name, text string) error {
	path := s.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o600)
}

func (s *supervisor) path(name string) string { return filepath.Join(s.folder.path, name) }

// formatOSDs formats the disk of each OSD. It needs no monitor.
func (s *supervisor) formatOSDs(ctx context.Context) error {
	var steps []func(context.Context) error
	for _, id := range s.opts.osds() {
		steps = append(steps, func(ctx context.Context) error {
			_, err := s.admin.tools.run(ctx, "ceph-osd", "--mkfs", "--no-mon-config", "-i", strconv.Itoa(id),
				"--osd-objectstore", "bluestore", "--osd-uuid", newUUID(), "--conf", s.admin.conf())
			return err
		})
	}
	return together(steps...)(ctx)
}

// startMonitors starts the monitors and waits until all of them are in the quorum.
func (s *supervisor) startMonitors(ctx context.Context) error {
	args := []string{"--create", "--fsid", s.state.FSID}
	for i, id := range s.opts.monitors() {
		args = append(args, "--addv", id, s.state.Monitors[i])
	}
	if s.oldKeys() {
		args = append(args, "--auth-allowed-ciphers", "aes,aes256k")
	}
	if _, err := s.admin.tools.run(ctx, "monmaptool", append(args, s.path("monmap"))...); err != nil {
		return err
	}
	for _, id := range s.opts.monitors() {
		_, err := s.admin.tools.run(ctx, "ceph-mon", "--mkfs", "-i", id, "--monmap", s.path("monmap"),
			"--keyring", s.path("all.keyring"), "--conf", s.admin.conf())
		if err != nil {
			return err
		}
	}
	if err := os.Remove(s.path("all.keyring")); err != nil {
		return err
	}
	for _, id := range s.opts.monitors() {
		if err := s.start(monitorName(id)); err != nil {
			return err
		}
	}
	for _, id := range s.opts.monitors() {
		if err := s.awaitReady(ctx, monitorName(id)); err != nil {
			return err
		}
	}
	return s.hasten(ctx)
}

// hasten makes the monitors commit at once while nothing is measured yet. The setting
// goes to the running process only.
func (s *supervisor) hasten(ctx context.Context) error {
	return s.eachMonitor(ctx, "config set", "var", "paxos_propose_interval", "val", []string{"0.05"})
}

// restorePace takes back what hasten did, so that ceph.conf and `ceph config` count again.
func (s *supervisor) restorePace(ctx context.Context) error {
	return s.eachMonitor(ctx, "config unset", "var", "paxos_propose_interval")
}

func (s *supervisor) eachMonitor(ctx context.Context, prefix string, args ...any) error {
	for _, id := range s.opts.monitors() {
		d, err := s.find(monitorName(id))
		if err != nil {
			return err
		}
		if err := d.ask(ctx, nil, prefix, args...); err != nil {
			return err
		}
	}
	return nil
}

// startOthers starts the OSDs and the manager and waits for the OSDs. The monitors learn
// that an OSD exists when it boots.
func (s *supervisor) startOthers(ctx context.Context) error {
	for _, id := range s.opts.osds() {
		if err := s.start(osdName(id)); err != nil {
			return err
		}
	}
	if err := s.start(managerName); err != nil {
		return err
	}
	for _, id := range s.opts.osds() {
		if err := s.awaitReady(ctx, osdName(id)); err != nil {
			return err
		}
	}
	return nil
}

func (s *supervisor) awaitReady(ctx context.Context, name string) error {
	err := poll(ctx, func() (bool, error) { return ready(ctx, s.folder.path, name, s.opts.Monitors), nil })
	if err != nil {
		return fmt.Errorf("wait until %s serves: %w", name, err)
	}
	return nil
}

// ready asks a daemon on its admin socket whether it is at work: a monitor in a quorum
// of all, an OSD that the monitors count as up. A manager is not asked.
func ready(ctx context.Context, dir, name string, monitors int) bool {
	var answer struct {
		State  string `json:"state"`
		Quorum []int  `json:"quorum"`
	}
	socket := socketOf(dir, name)
	switch {
	case strings.HasPrefix(name, "mon."):
		return ask(ctx, socket, command("mon_status"), &answer) == nil && len(answer.Quorum) == monitors
	case strings.HasPrefix(name, "osd."):
		return ask(ctx, socket, command("status"), &answer) == nil && answer.State == "active"
	default:
		return true
	}
}

// makePools makes the replicated pools. The monitors do so before there is an OSD.
func (s *supervisor) makePools(ctx context.Context) error {
	for _, pool := range s.opts.Pools {
		if err := s.admin.addPool(ctx, pool); err != nil {
			return err
		}
	}
	return nil
}

// initPools does what needs OSDs that are up: a client that writes to a pool without one looks
// again only after 5 s, and the CRUSH rule of the data pool names them.
func (s *supervisor) initPools(ctx context.Context) error {
	if s.opts.DataPool != "" {
		if err := s.admin.createDataPool(ctx, s.opts.DataPool); err != nil {
			return err
		}
	}
	for _, pool := range s.opts.Pools {
		if err := s.admin.initPool(ctx, pool); err != nil {
			return err
		}
		for _, namespace := range s.opts.Namespaces[pool] {
			if err := s.admin.createNamespace(ctx, pool, namespace); err != nil {
				return err
			}
		}
	}
	return nil
}

// allowOldKeys tells the monitors that we mean it: what they would say of old keys for ever is
// muted. Daemons have keys of the new type, which no client sees.
func (s *supervisor) allowOldKeys(ctx context.Context) error {
	if !s.oldKeys() {
		return nil
	}
	for _, check := range []string{"AUTH_INSECURE_CLIENT_KEY_TYPE", "AUTH_INSECURE_KEYS_ALLOWED", "AUTH_INSECURE_KEYS_CREATABLE"} {
		if _, err := s.admin.ceph(ctx, "health", "mute", check, "--sticky"); err != nil {
			return err
		}
	}
	return nil
}

func (s *supervisor) awaitHealth(ctx context.Context) error {
	return s.admin.awaitHealth(ctx, s.opts.pools())
}

// announce opens the socket for requests and writes cluster.json, in this order: a
// folder with a cluster.json has a supervisor that answers.
func (s *supervisor) announce() (net.Listener, error) {
	listener, err := net.Listen("unix", s.path(controlFile))
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(s.state)
	if err == nil {
		err = s.write("."+stateFile, string(text))
	}
	if err == nil {
		err = os.Rename(s.path("."+stateFile), s.path(stateFile))
	}
	if err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

// newUUID returns a random UUID of version 4 (RFC 9562, section 5.4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
