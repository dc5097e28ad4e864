package krbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Command returns a Start that runs a program, which has to call [Serve]:
//
//	Command("/proc/self/exe", "krbd")
//
// A program that is linked with librbd takes a tenth of a second of the processor until it
// runs, which is several times as long as mapping takes. So after each work the process for the next one is
// started, and waits for its orders. It ends with this process.
func Command(path string, arguments ...string) Start {
	w := &writers{path: path, arguments: arguments}
	return w.start
}

// writers are the processes of one program.
type writers struct {
	path      string
	arguments []string

	mutex sync.Mutex
	spare *writer // waits for orders; nil: none does
}

// A writer is a process, and this end of the socket that is its standard input and output.
type writer struct {
	command *exec.Cmd
	socket  *os.File
	ended   chan struct{}
}

func (w *writers) start(orders []Order, held *os.File) (Work, error) {
	input, err := json.Marshal(orders)
	if err != nil {
		return Work{}, fmt.Errorf("start a writer: %w: %w", fault.Internal, err)
	}
	process := w.take()
	if process == nil || process.tell(input, held) != nil {
		if process, err = w.spawn(); err == nil {
			err = process.tell(input, held)
		}
	}
	if err != nil {
		return Work{}, fmt.Errorf("start a writer: %w: %w", fault.Unavailable, err)
	}
	results := make(chan Result, len(orders))
	go func() {
		receive(process.socket, results, len(orders))
		<-process.ended // it has said what there is to say
		_ = process.socket.Close()
		close(results)
		w.prepare() // not before: it would take the processor from this one
	}()
	return Work{Results: results, Kill: func() { _ = process.command.Process.Kill() }}, nil
}

// take returns the process that waits, or nil.
func (w *writers) take() *writer {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	process := w.spare
	w.spare = nil
	return process
}

// prepare makes sure that a process waits. Without one the next work starts its own.
func (w *writers) prepare() {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.spare == nil {
		w.spare, _ = w.spawn()
	}
}

func (w *writers) spawn() (*writer, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "writer")
	defer func() { _ = theirs.Close() }()
	if err := unix.SetNonblock(pair[0], true); err != nil { // so that who reads takes no thread
		_ = unix.Close(pair[0])
		return nil, err
	}
	// It is ended by Kill and not by a context, because it may outlive the request.
	command := exec.CommandContext(context.Background(), w.path, w.arguments...)
	command.Dir, command.Env = "/", []string{}
	command.Stdin, command.Stdout = theirs, theirs
	// In a session of its own: a signal for the driver must not end a request halfway.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	process := &writer{command: command, socket: os.NewFile(uintptr(pair[0]), "writer"), ended: make(chan struct{})}
	if err := command.Start(); err != nil {
		_ = process.socket.Close()
		return nil, err
	}
	go func() {
		_ = command.Wait()
		close(process.ended)
	}()
	return process, nil
}

// tell sends the orders, and the lock's file with their first byte. The process has the file open
// then until it ends.
func (p *writer) tell(input []byte, held *os.File) error {
	err := p.send(input, held)
	if err != nil {
		_ = p.command.Process.Kill()
		_ = p.socket.Close()
	}
	return err
}

func (p *writer) send(input []byte, held *os.File) error {
	var rights []byte
	if held != nil {
		rights = unix.UnixRights(int(held.Fd()))
	}
	raw, err := p.socket.SyscallConn()
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
	_, err = p.socket.Write(input[1:])
	return err
}

// inherit takes the first byte of the orders, and the file that may come with it, which stays open
// until this process ends. Orders that do not come through a socket bring no file. It returns nil when
// there will be no orders.
func inherit(from io.Reader) io.Reader {
	file, ok := from.(*os.File)
	if !ok {
		return from
	}
	first, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	for {
		n, _, _, _, err := unix.Recvmsg(int(file.Fd()), first, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return from
		case n == 0:
			return nil
		}
		return io.MultiReader(bytes.NewReader(first), from)
	}
}
