package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Launch starts a worker for an order and returns when it serves, or its error. After an
// error the worker is gone or about to go by itself. A worker outlives ctx, and should
// outlive the process that called.
//
// It is a seam: in Kubernetes a worker that is the driver's child dies with the driver's
// container, so there package launcher asks a process in another pod to start it.
type Launch func(ctx context.Context, order Order) error

// Command returns a Launch that starts a program, which has to call worker.Run, as a
// child in a session of its own, without this process's environment:
//
//	Command("/proc/self/exe", "fuse")
//
// As long as this process lives it waits for the child in the background, so that no
// zombie is left.
func Command(path string, arguments ...string) Launch {
	return Watched(func(string) {}, path, arguments...)
}

// Watched returns a Launch like that of Command, which also tells when a process has
// ended, and how ("exit status 1"), whether it has served or not. If none could be
// started it tells nothing.
func Watched(ended func(how string), path string, arguments ...string) Launch {
	return func(ctx context.Context, order Order) error {
		var input bytes.Buffer
		if err := order.Send(&input); err != nil {
			return fmt.Errorf("start worker: %w", err)
		}
		return Start(ctx, Program{Path: path, Arguments: arguments, Secret: order.Credentials.Key.Reveal()}, input.Bytes(), ended)
	}
}

// A Program is a worker's, of this mapper or another one whose workers answer as these do.
type Program struct {
	Path      string
	Arguments []string
	Secret    string // is left out of errors; empty: there is none
}

// Start starts a worker with its order as input, and returns when it serves, or its error; see
// [Watched].
func Start(ctx context.Context, program Program, input []byte, ended func(how string)) error {
	process, err := start(program, input, ended)
	if err != nil {
		return fmt.Errorf("start worker: %w: %w", fault.Unavailable, err)
	}
	defer func() { _ = process.answers.Close() }()
	answer := make(chan error, 1)
	go func() { answer <- ReceiveAnswer(process.answers) }()
	select {
	case err = <-answer:
	case <-ctx.Done():
		err = process.hangUp(ctx, answer)
	}
	if err == nil {
		return nil
	}
	return process.end(ctx, err)
}

// environment of a worker. glibc would make eight arenas for each processor, and librbd's
// threads fill them all: it costs 60 MB for each busy device.
var environment = []string{"MALLOC_ARENA_MAX=2"}

// A process is a worker that was started here.
type process struct {
	command *exec.Cmd
	answers *os.File
	errors  *tail
	ended   chan struct{}
	secret  string
}

func start(program Program, input []byte, ended func(how string)) (*process, error) {
	answers, output, err := answerSockets()
	if err != nil {
		return nil, err
	}
	p := &process{
		command: exec.Command(program.Path, program.Arguments...),
		answers: answers,
		errors:  &tail{},
		ended:   make(chan struct{}),
		secret:  program.Secret,
	}
	p.command.Dir = "/"
	p.command.Env = environment
	p.command.Stdin, p.command.Stdout, p.command.Stderr = bytes.NewReader(input), output, p.errors
	p.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = startAsIOFlusher(p.command)
	_ = output.Close()
	if err != nil {
		_ = answers.Close()
		return nil, err
	}
	go func() {
		_ = p.command.Wait()
		ended(p.command.ProcessState.String())
		close(p.ended)
	}()
	return p, nil
}

// answerSockets returns what an answer is read from and what it is written to: sockets, because
// one end of them can be shut down without losing what is on its way. See hangUp.
func answerSockets() (from, to *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(pair[0]), "answers"), os.NewFile(uintptr(pair[1]), "answers"), nil
}

// hangUp is for a caller that has given up. From now on the worker cannot answer: it sees that
// when it tries, and takes down what it has put up. If it has answered already, this returns
// what it said; it may serve then, and somebody may have seen it.
func (p *process) hangUp(ctx context.Context, answer <-chan error) error {
	_ = unix.Shutdown(int(p.answers.Fd()), unix.SHUT_RD)
	if err := <-answer; !errors.Is(err, errNoAnswer) {
		return err
	}
	return fmt.Errorf("worker process %d did not answer: %w: %w", p.command.Process.Pid, fault.Unavailable, ctx.Err())
}

// startAsIOFlusher starts a process in whose threads the kernel, when it needs memory,
// never waits for I/O (PR_SET_IO_FLUSHER, Linux 5.6): that I/O could be for the
// device that the process serves. The flag belongs to a thread and is inherited, so it
// has to be there before the process has threads. Without CAP_SYS_RESOURCE
// it cannot be set; the worker says so in its status.
func startAsIOFlusher(command *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) == nil {
		defer func() { _ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0) }()
	}
	return command.Start()
}

// end makes sure that a worker which does not serve is gone, and returns why it does not:
// its own answer, or what it wrote before it died without one. It is given the time to
// close what it has opened: a client that is killed is watched by the cluster for 30 s more,
// and holds others up for as long.
func (p *process) end(ctx context.Context, why error) error {
	select {
	case <-p.ended:
	case <-ctx.Done():
		grace := time.AfterFunc(gracePeriod, func() { _ = p.command.Process.Kill() })
		<-p.ended
		grace.Stop()
	}
	if !errors.Is(why, errNoAnswer) {
		return why
	}
	text := p.errors.String()
	if p.secret != "" {
		text = strings.ReplaceAll(text, p.secret, "(key)")
	}
	return fmt.Errorf("worker ended without an answer: %s: %s: %w", p.command.ProcessState, text, fault.Unavailable)
}

// tail keeps the end of what is written to it.
type tail struct {
	mutex sync.Mutex
	bytes []byte
}

const maxTail = 2000

func (t *tail) Write(some []byte) (int, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.bytes = append(t.bytes, some...)
	t.bytes = t.bytes[max(0, len(t.bytes)-maxTail):]
	return len(some), nil
}

func (t *tail) String() string {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return strings.TrimSpace(string(t.bytes))
}
