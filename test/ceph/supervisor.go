package ceph

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// envSupervisor marks the process that is to be a supervisor.
const envSupervisor = "RBD_CSI_TEST_CEPH_SUPERVISOR"

// RunSupervisor does nothing in an ordinary process. In one that [Start] began, it is
// the supervisor and does not return. Call it first in main; [Main] and [Shared.Main] do.
func RunSupervisor() {
	if os.Getenv(envSupervisor) != "" {
		os.Exit(supervise(os.Stdin, os.Stdout))
	}
}

// A supervisor owns one cluster: its folder, its ports and its daemons.
type supervisor struct {
	opts   Options
	admin  admin
	state  state
	folder *folder
	ports  *claim
	log    *slog.Logger
	// fallen is told when a daemon has ended; during the bring-up that is the end of it.
	fallen func(error)

	mu      sync.Mutex
	daemons []*daemon
}

// supervise reads options from owner, brings the cluster up, reports on answer and
// serves until owner ends, a signal comes or a handle asks it to. Then it ends the daemons
// and removes the folder. It returns the exit status.
func supervise(owner io.Reader, answer io.WriteCloser) int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer cancel()
	// An owner that goes away while we answer must not end us: there is work to undo.
	signal.Ignore(syscall.SIGPIPE)
	var opts Options
	options := json.NewDecoder(owner)
	if err := options.Decode(&opts); err != nil {
		return 1
	}
	var settled atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, owner)
		if !settled.Load() {
			cancel()
		}
	}()

	s, err := newSupervisor(opts)
	if err != nil {
		return report(answer, reply{Failure: failure(err)})
	}
	listener, err := s.bringUp(ctx)
	if err != nil {
		s.log.Error("Bring-up", "err", err)
		return report(answer, reply{Failure: failure(errors.Join(err, s.tearDown()))})
	}
	settled.Store(opts.Detached)
	if report(answer, reply{State: &s.state}) != 0 {
		cancel()
	}
	s.serve(ctx, listener, cancel)
	if err := s.tearDown(); err != nil {
		s.log.Error("Tear-down", "err", err)
		return 1
	}
	return 0
}

// report sends the one answer that Start waits for.
func report(answer io.WriteCloser, r reply) int {
	defer answer.Close()
	if err := json.NewEncoder(answer).Encode(r); err != nil || r.Failure != nil {
		return 1
	}
	return 0
}

// newSupervisor takes what the cluster needs of the machine: a folder, ports, and the
// view of a root.
func newSupervisor(opts Options) (*supervisor, error) {
	taken, err := takeFolder(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("take a folder: %w", err)
	}
	s := &supervisor{opts: opts, folder: taken}
	s.opts.Dir = taken.path
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, s.tearDown())
	}
	return s, nil
}

func (s *supervisor) prepare() error {
	output, err := os.Create(filepath.Join(s.folder.path, "supervisor.log"))
	if err != nil {
		return err
	}
	defer output.Close()
	// From here on also a panic is in the log.
	if err := syscall.Dup3(int(output.Fd()), syscall.Stderr, 0); err != nil {
		return fmt.Errorf("redirect standard error: %w", err)
	}
	s.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	if s.opts.Root != "" {
		if err := mountView(s.opts.Root, s.folder.path); err != nil {
			return err
		}
	}
	s.admin = admin{
		tools: tools{root: s.opts.Root, env: environment()},
		dir:   s.folder.path,
		osds:  s.opts.OSDs,
	}
	s.ports, err = claimPorts(s.opts.Address)
	return err
}

// serve answers requests until ctx ends.
func (s *supervisor) serve(ctx context.Context, listener net.Listener, cancel func()) {
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go s.answer(conn, cancel)
	}
}

func (s *supervisor) answer(conn net.Conn, cancel func()) {
	var req request
	if err := json.NewDecoder(conn).Decode(&req); err != nil {
		conn.Close()
		return
	}
	if req.Verb == verbDown {
		// The connection stays open: the kernel closes it when all is done.
		cancel()
		return
	}
	defer conn.Close()
	err := s.do(req)
	s.log.Info("Request", "verb", req.Verb, "daemon", req.Daemon, "signal", int(req.Signal), "err", err)
	_ = json.NewEncoder(conn).Encode(reply{Daemons: s.list(), Failure: failure(err)})
}

func (s *supervisor) do(req request) error {
	switch req.Verb {
	case verbList:
		return nil
	case verbStart:
		return s.start(req.Daemon)
	case verbSignal, verbKill:
		d, err := s.find(req.Daemon)
		if err != nil {
			return err
		}
		if err := d.signal(req.Signal); err != nil {
			return err
		}
		if req.Verb == verbKill {
			<-d.ended
		}
		return nil
	default:
		return fmt.Errorf("verb %q: %w", req.Verb, fault.Invalid)
	}
}

func (s *supervisor) list() []Daemon {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Daemon, len(s.daemons))
	for i, d := range s.daemons {
		list[i] = Daemon{Name: d.name, PID: d.pid()}
	}
	return list
}

func (s *supervisor) find(name string) (*daemon, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.index(name); i >= 0 {
		return s.daemons[i], nil
	}
	return nil, fmt.Errorf("daemon %q: %w", name, fault.NotFound)
}

func (s *supervisor) index(name string) int {
	return slices.IndexFunc(s.daemons, func(d *daemon) bool { return d.name == name })
}

// start starts a daemon that has not run yet or has ended.
func (s *supervisor) start(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.index(name)
	if i >= 0 && s.daemons[i].pid() != 0 {
		return fmt.Errorf("daemon %q runs: %w", name, fault.Exists)
	}
	d, err := startDaemon(s.admin, name)
	switch {
	case err != nil:
		return fmt.Errorf("start %s: %w", name, err)
	case i >= 0:
		s.daemons[i] = d
	default:
		s.daemons = append(s.daemons, d)
	}
	go func() {
		<-d.ended
		s.fallen(fmt.Errorf("%s ended: %w%s", name, fault.Unavailable, d.lastWords()))
	}()
	return nil
}

// tearDown ends the daemons, the hard way because nobody will read their disks, and
// removes the folder. Mounts go with the process. The lock is kept for ever, so that a
// request that came at the same time starts no daemon any more.
func (s *supervisor) tearDown() error {
	s.mu.Lock()
	for _, d := range s.daemons {
		if d.pid() != 0 {
			_ = d.signal(syscall.SIGKILL)
		}
	}
	for _, d := range s.daemons {
		<-d.ended
	}
	if s.ports != nil {
		s.ports.release()
	}
	return s.folder.remove()
}
