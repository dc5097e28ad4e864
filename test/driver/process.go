package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// Names in a process's folder.
const (
	socketFile = "csi.sock"
	logFile    = "log"
	runFolder  = "run" // of a node: its mappings
	// locksFolder is in a run folder, and has a file for each image that krbd maps or unmaps just now.
	locksFolder = "krbd"
)

// A Process is one process of the driver, with clients of its socket. Killed and
// started again it keeps its folder, and the clients find it again.
// All methods may be called at once.
type Process struct {
	// Name is the name that it was started with; a node's is its node name.
	Name string

	csi.IdentityClient
	csi.ControllerClient
	csi.GroupControllerClient
	csi.SnapshotMetadataClient
	csi.NodeClient

	folder     string
	socket     string
	on         Machine
	command    []string
	connection *grpc.ClientConn

	mutex   sync.Mutex
	running *running // nil before the first start
}

// running is one life of a process.
type running struct {
	command *exec.Cmd
	ended   chan struct{} // closed when it was waited for
}

// Controller starts a controller and returns when it answers. Flags come after the usual ones.
func (d *Driver) Controller(ctx context.Context, name string, flags ...string) (*Process, error) {
	return d.start(ctx, name, append([]string{"controller"}, flags...))
}

// Node starts a node of that name and returns when it answers. Its mappings are
// below its own folder, so that several nodes do not see each other's.
func (d *Driver) Node(ctx context.Context, name string, flags ...string) (*Process, error) {
	run := filepath.Join(d.Folder(name), runFolder)
	return d.start(ctx, name, append([]string{"node", "--node-name", name, "--run-directory", run}, flags...))
}

func (d *Driver) start(ctx context.Context, name string, arguments []string) (*Process, error) {
	folder := d.Folder(name)
	p := &Process{Name: name, folder: folder, socket: filepath.Join(folder, socketFile), on: here{}}
	if err := os.MkdirAll(p.folder, 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.command = append([]string{d.options.Binary}, arguments...)
	p.command = append(p.command,
		"--endpoint", "unix://"+p.Socket(),
		"--clusters", d.Folder(clustersFolder),
		fmt.Sprintf("-v=%d", d.options.Verbosity))
	if err := p.connect(); err != nil {
		return nil, err
	}
	d.mutex.Lock()
	d.processes = append(d.processes, p)
	d.mutex.Unlock()
	return p, p.Start(ctx)
}

// connect makes the clients. A killed process is back in milliseconds, so the
// connection is tried again as soon, and not after gRPC's usual second.
func (p *Process) connect() error {
	soon := backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond}
	connection, err := grpc.NewClient("unix://"+p.Socket(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", p.Name, err)
	}
	p.connection = connection
	p.IdentityClient = csi.NewIdentityClient(connection)
	p.ControllerClient = csi.NewControllerClient(connection)
	p.GroupControllerClient = csi.NewGroupControllerClient(connection)
	p.SnapshotMetadataClient = csi.NewSnapshotMetadataClient(connection)
	p.NodeClient = csi.NewNodeClient(connection)
	return nil
}

// Socket returns the path of the process's socket.
func (p *Process) Socket() string { return p.socket }

// Log returns the path of the process's log, to which each life adds.
func (p *Process) Log() string { return filepath.Join(p.folder, logFile) }

// Command returns the command line.
func (p *Process) Command() []string { return p.command }

// Start starts the process, unless it runs, and returns when it answers. The error of one
// that ends instead holds the end of its log.
func (p *Process) Start(ctx context.Context) error {
	life, err := p.launch()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		answered <- p.Answers(ctx)
	}()
	select {
	case err = <-answered:
	case <-life.ended:
		err = fmt.Errorf("it ended, %s: %s", life.command.ProcessState, p.Tail())
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	return nil
}

// Answers waits until the process answers. The connection may still be the one of
// its earlier life, which then breaks under the question.
func (p *Process) Answers(ctx context.Context) error {
	for {
		_, err := p.Probe(ctx, &csi.ProbeRequest{})
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return err
		}
	}
}

func (p *Process) launch() (*running, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.running != nil && !p.running.over() {
		return p.running, nil
	}
	log, err := os.OpenFile(p.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	command := exec.Command(p.command[0], p.command[1:]...)
	command.Stdout, command.Stderr = log, log
	// In a group of its own, so that Ctrl-C in a terminal leaves it alive to take down what it
	// has mounted; and dead when this process dies, so that a killed test leaves none behind.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := startFromLastingThread(command); err != nil {
		return nil, err
	}
	life := &running{command: command, ended: make(chan struct{})}
	go func() {
		_ = command.Wait() // how it ended is in ProcessState
		close(life.ended)
	}()
	p.running = life
	return life, nil
}

func (r *running) over() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// Tail returns the last lines of the log.
func (p *Process) Tail() string {
	content, err := os.ReadFile(p.Log())
	if err != nil {
		return err.Error()
	}
	const most = 1000
	return string(bytes.TrimSpace(content[max(0, len(content)-most):]))
}

// PID returns the process ID of the present life, or 0 if there is none.
func (p *Process) PID() int {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.running == nil || p.running.over() {
		return 0
	}
	return p.running.command.Process.Pid
}

// Ended returns a channel that is closed when the present life ends; nil before the first one.
func (p *Process) Ended() <-chan struct{} {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.running == nil {
		return nil
	}
	return p.running.ended
}

// Kill ends the process by SIGKILL and returns when it is gone. One that does not run is no error.
func (p *Process) Kill() error { return p.end(context.Background(), syscall.SIGKILL) }

// Stop ends the process by SIGTERM and returns when it is gone, or when ctx ends.
func (p *Process) Stop(ctx context.Context) error { return p.end(ctx, syscall.SIGTERM) }

func (p *Process) end(ctx context.Context, signal syscall.Signal) error {
	p.mutex.Lock()
	life := p.running
	p.mutex.Unlock()
	if life == nil {
		return nil
	}
	if err := life.command.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", p.Name, err)
	}
	select {
	case <-life.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end %s: %w", p.Name, ctx.Err())
	}
}
