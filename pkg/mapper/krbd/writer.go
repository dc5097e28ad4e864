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
// runs, which is several times as long as mapping takes. So a process that is done with its orders waits for the next
// ones. It ends with this process.
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
	results, turn := make(chan Result, len(orders)), &turn{process: process}
	go func() {
		defer close(results)
		if receive(process.socket, results, len(orders)) && turn.end() {
			w.keep(process)
			return
		}
		<-process.ended // nothing of it goes on then
		_ = process.socket.Close()
	}()
	return Work{Results: results, Kill: turn.kill}, nil
}

// A turn is what one work has a process for.
type turn struct {
	process *writer

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
func (w *writers) take() *writer {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	process := w.spare
	w.spare = nil
	return process
}

// keep lets a process wait for the next work, if none does yet; otherwise it ends.
func (w *writers) keep(process *writer) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.spare == nil {
		w.spare = process
		return
	}
	_ = process.socket.Close()
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
// then until it has the last result, or ends.
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

// next takes the first byte of the next orders, and the file that may come with it, or -1. Orders that do not come
// through a socket bring no file. It returns nil when there will be no orders.
func next(from io.Reader) (input io.Reader, held int) {
	file, ok := from.(*os.File)
	if !ok {
		return from, -1
	}
	first, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	for {
		n, length, _, _, err := unix.Recvmsg(int(file.Fd()), first, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOTSOCK):
			return from, -1
		case err != nil || n == 0:
			return nil, -1
		}
		return io.MultiReader(bytes.NewReader(first), from), fileIn(rights[:length])
	}
}

// fileIn returns the file that came with a message, or -1.
func fileIn(rights []byte) int {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return -1
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(files) == 0 {
		return -1
	}
	return files[0]
}
