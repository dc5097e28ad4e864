// Package errand has processes of this same program do what may wait in the kernel for ever: a write
// to sysfs, a read of a device whose cluster is silent.
//
//	the driver -- orders, a file --> process
//	           <-- one result each --
//
// A goroutine that waits in the kernel takes a thread that nothing can end, and a process
// with such a thread cannot end either. A process of its own can be killed, and left behind where a kill
// is not enough.
//
// A program that is linked with librbd takes a tenth of a second of the processor until it runs, which is
// several times as long as mapping an image takes. So a process that is done with its orders waits for the
// next ones. It ends with the driver. What orders and results are is the caller's business; they go
// through a socket as JSON, so that they are in no argument and no file.
package errand

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Program is what is run, and which of its processes waits. Its functions may be called at once.
type Program struct {
	path      string
	arguments []string
	spare     chan *process // the one that waits for orders
	busy      atomic.Int64  // how many are at work
}

// patience is how long a process that is at work is waited for before another one is started, which
// takes longer to begin than most orders take to end.
const patience = 50 * time.Millisecond

// New returns a program that calls [Serve] when it has these arguments. It starts nothing.
//
//	New("/proc/self/exe", "krbd")
func New(path string, arguments ...string) *Program {
	return &Program{path: path, arguments: arguments, spare: make(chan *process, 1)}
}

// A Work is a process that carries orders out, all at the same time.
type Work[Result any] struct {
	// Results has room for all, in the order in which they end. It is closed after the last one, or when the
	// process has ended before and been waited for.
	Results <-chan Result
	// Kill ends the process if it still is at the orders. One that waits in the kernel may not end for a long time.
	Kill func()
}

// Start has a process carry orders out. It keeps the held file open until it has the last result, or ends, and with the
// file a lock on it; nil: there is none. The error is fault.Unavailable when no process could be started.
func Start[Order, Result any](p *Program, orders []Order, held *os.File) (Work[Result], error) {
	input, err := json.Marshal(orders)
	if err != nil {
		return Work[Result]{}, fmt.Errorf("start %s: %w: %w", p.path, fault.Internal, err)
	}
	one := p.take()
	if one == nil || one.tell(input, held) != nil {
		if one, err = p.spawn(); err == nil {
			err = one.tell(input, held)
		}
	}
	if err != nil {
		return Work[Result]{}, fmt.Errorf("start %s: %w: %w", p.path, fault.Unavailable, err)
	}
	results, turn := make(chan Result, len(orders)), &turn{process: one}
	p.busy.Add(1)
	go func() {
		defer close(results)
		defer p.busy.Add(-1)
		if receive(one.socket, results, len(orders)) && turn.end() {
			p.keep(one)
			return
		}
		<-one.ended // nothing of it goes on then
		_ = one.socket.Close()
	}()
	return Work[Result]{Results: results, Kill: turn.kill}, nil
}

// receive passes results on, and reports whether all came.
func receive[Result any](from *os.File, results chan<- Result, all int) bool {
	decoder := json.NewDecoder(from)
	for range all {
		var result Result
		if decoder.Decode(&result) != nil {
			return false
		}
		results <- result
	}
	return true
}

// A turn is what one work has a process for.
type turn struct {
	process *process

	mutex        sync.Mutex
	over, killed bool
}

// kill ends the process, unless the work is done: then it is another's.
func (t *turn) kill() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if !t.over {
		t.killed = true
		_ = t.process.command.Process.Kill()
	}
}

// end says that the work is done; false: the process was killed meanwhile.
func (t *turn) end() bool {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.over = true
	return !t.killed
}

// take returns the process that waits, or nil.
func (p *Program) take() *process {
	select {
	case one := <-p.spare:
		return one
	default:
	}
	if p.busy.Load() == 0 {
		return nil
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case one := <-p.spare:
		return one
	case <-timer.C:
		return nil
	}
}

// keep lets a process wait for the next work, if none does yet; otherwise it ends.
func (p *Program) keep(one *process) {
	select {
	case p.spare <- one:
	default:
		_ = one.socket.Close()
	}
}

// A process, and this end of the socket that is its standard input and output.
type process struct {
	command *exec.Cmd
	socket  *os.File
	ended   chan struct{}
}

func (p *Program) spawn() (*process, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "errand")
	defer func() { _ = theirs.Close() }()
	if err := unix.SetNonblock(pair[0], true); err != nil { // so that who reads takes no thread
		_ = unix.Close(pair[0])
		return nil, err
	}
	// It is ended by Kill and not by a context, because it may outlive the request.
	command := exec.CommandContext(context.Background(), p.path, p.arguments...)
	command.Dir, command.Env = "/", []string{}
	command.Stdin, command.Stdout = theirs, theirs
	// In a session of its own: a signal for the driver must not end a request halfway.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	one := &process{command: command, socket: os.NewFile(uintptr(pair[0]), "errand"), ended: make(chan struct{})}
	if err := command.Start(); err != nil {
		_ = one.socket.Close()
		return nil, err
	}
	go func() {
		_ = command.Wait()
		close(one.ended)
	}()
	return one, nil
}

// tell sends the orders, and the held file with their first byte. The process has the file open
// then until it has the last result, or ends.
func (one *process) tell(input []byte, held *os.File) error {
	err := one.send(input, held)
	if err != nil {
		_ = one.command.Process.Kill()
		_ = one.socket.Close()
	}
	return err
}

func (one *process) send(input []byte, held *os.File) error {
	var rights []byte
	if held != nil {
		rights = unix.UnixRights(int(held.Fd()))
	}
	raw, err := one.socket.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), input[:1], rights, nil, unix.MSG_NOSIGNAL)
		return !errors.Is(err, unix.EAGAIN)
	})
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	_, err = one.socket.Write(input[1:])
	return err
}
