package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Serve is a worker: it reads an order, maps the image, says so or why not, and then keeps an rbd-nbd
// at the device until the device is disconnected.
func Serve(from io.Reader, to io.Writer) error {
	// What the kernel does to who writes to a pipe that nobody reads; the error of the write is enough.
	signal.Ignore(syscall.SIGPIPE)
	order, err := ReceiveOrder(from)
	if err != nil {
		return err
	}
	w := &worker{order: order, at: place{order.Directory}}
	err = w.begin()
	if said := sendAnswer(to, err); said != nil && err == nil {
		w.giveUp() // whoever asked has gone
		err = said
	}
	if err != nil {
		return err
	}
	return w.keepServing()
}

// A worker serves one image.
type worker struct {
	order   Order
	at      place
	process *os.File // locked while this process or its rbd-nbd lives
	server  *server
	device  string // its path
}

// A server is one rbd-nbd.
type server struct {
	command *exec.Cmd
	errors  *tail
	ended   chan struct{}
}

// begin maps the image.
func (w *worker) begin() error {
	var err error
	if w.process, err = os.OpenFile(w.at.file(processFile), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return fmt.Errorf("the mapping's folder is not seen here: %w: %w", fault.Unsupported, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), w.order.Timeout)
	defer cancel()
	// One whose caller has gone is about to end.
	err = await(ctx, "end of another worker for the image", func() (bool, error) {
		err := unix.Flock(int(w.process.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		return err == nil, ignoring(err, unix.EWOULDBLOCK)
	})
	if err != nil {
		return err
	}
	if err := w.start(ctx, ""); err != nil {
		w.giveUp()
		return err
	}
	return nil
}

func ignoring(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}

// start starts an rbd-nbd, to map the image or to take over a device, and returns when it serves
// and is known by its client's address.
func (w *worker) start(ctx context.Context, device string) error {
	for _, old := range []string{logFile, socketFile, clientFile} {
		_ = os.Remove(w.at.file(old))
	}
	output, err := w.run(device)
	if err != nil {
		return fmt.Errorf("start %s: %w: %w", bin, fault.Unavailable, err)
	}
	mapped := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(output).ReadString('\n')
		mapped <- line
		_, _ = io.Copy(io.Discard, output)
	}()
	select {
	case line := <-mapped:
		fields := strings.Fields(line)
		if len(fields) == 0 {
			<-w.server.ended
			return w.failed()
		}
		w.device = fields[0]
	case <-ctx.Done():
		return fmt.Errorf("the cluster did not answer: %w: %w", fault.Unavailable, context.Cause(ctx))
	}
	if err := await(ctx, bin+" to wait for the end of its device", w.server.asleep); err != nil {
		return err
	}
	return w.identify(ctx)
}

// run starts the process.
func (w *worker) run(device string) (io.Reader, error) {
	conf, err := inMemory("conf", w.order.conf())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conf.Close() }()
	keyring, err := inMemory("keyring", w.order.keyring())
	if err != nil {
		return nil, err
	}
	defer func() { _ = keyring.Close() }()
	const first = 3 // of exec.Cmd.ExtraFiles
	command := exec.CommandContext(context.Background(), program(), w.order.arguments(device, first, first+1)...)
	command.Dir, command.Env = "/", []string{"PATH=" + searchPath()}
	command.ExtraFiles = []*os.File{conf, keyring, w.process}
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	s := &server{command: command, errors: &tail{}, ended: make(chan struct{})}
	command.Stderr = s.errors
	output, err := command.StdoutPipe()
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		return nil, err
	}
	w.server = s
	go func() {
		_ = command.Wait() // how it ended is in ProcessState
		close(s.ended)
	}()
	return output, nil
}

// asleep reports whether the process's first thread sleeps (proc_pid_stat(5)), as it does from when it
// waits for its device to be disconnected. rbd-nbd misses a disconnect that comes after it has named
// the device and before it waits (NBDServer::wait_for_disconnect in 16.2), and then never ends, with the
// image open: 5 of 60 times when it was disconnected at once.
func (s *server) asleep() (bool, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.command.Process.Pid))
	if err != nil {
		return false, fmt.Errorf("see what %s does: %w: %w", bin, fault.Unavailable, err)
	}
	_, state, found := bytes.Cut(stat, []byte(") ")) // after the name
	return found && bytes.HasPrefix(state, []byte("S")), nil
}

// inMemory returns a file that is in memory alone.
func inMemory(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	if _, err := file.Write(content); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// watchLine is in rbd-nbd's log with debug_ms=1: the client's address in front of what it sends, which is
// to watch the image's header. Lines before it can be of another client, which has only asked
// the monitors for settings.
var watchLine = regexp.MustCompile(` -- (\S+:0/\d+) --> .*rbd_header\.([0-9a-z]+):head \[watch watch`)

// identify finds out which client rbd-nbd is and which image it has opened, from what it logs when it
// is told to log its messages; and then it is told not to any more.
func (w *worker) identify(ctx context.Context) error {
	var watch [][]byte
	err := await(ctx, "log of "+bin, func() (bool, error) {
		log, err := os.ReadFile(w.at.file(logFile))
		if err != nil {
			return false, nil //nolint:nilerr // it is not there yet
		}
		watch = watchLine.FindSubmatch(log)
		return watch != nil, nil
	})
	if err != nil {
		return err
	}
	if err := quiet(ctx, w.at.file(socketFile)); err != nil {
		return fmt.Errorf("tell %s not to log its messages: %w: %w", bin, fault.Unavailable, err)
	}
	if got, want := string(watch[2]), w.order.Target.ImageID; got != want {
		return fmt.Errorf("the name is that of another image now, %s, and not of %s: %w", got, want, fault.NotFound)
	}
	if err := w.at.record(string(watch[1])); err != nil {
		return fmt.Errorf("record the client: %w: %w", fault.Unavailable, err)
	}
	return nil
}

// quiet turns the log of messages off, by the admin socket: a JSON text that ends with a zero goes
// in, and a length of four bytes and a text come back.
func quiet(ctx context.Context, socket string) error {
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = connection.SetDeadline(deadline)
	}
	if _, err := io.WriteString(connection, `{"prefix": "config set", "var": "debug_ms", "val": ["0/0"]}`+"\x00"); err != nil {
		return err
	}
	length := make([]byte, 4)
	if _, err := io.ReadFull(connection, length); err != nil {
		return err
	}
	said, err := io.ReadAll(io.LimitReader(connection, int64(binary.BigEndian.Uint32(length))))
	if err == nil && !bytes.Contains(said, []byte("success")) {
		err = fmt.Errorf("it says %s", said)
	}
	return err
}

// giveUp takes down what begin has put up. rbd-nbd ends by itself when its device is disconnected, or
// when it is told to, and then closes the image; a client that is killed is watched by the cluster for
// 30 s more, and the image cannot be removed as long.
func (w *worker) giveUp() {
	if w.server == nil {
		return
	}
	if w.device != "" && w.disconnect() == nil && w.server.endsWithin(gracePeriod) {
		return
	}
	_ = w.server.command.Process.Signal(syscall.SIGTERM)
	if !w.server.endsWithin(gracePeriod) {
		_ = w.server.command.Process.Kill()
		<-w.server.ended
	}
}

func (w *worker) disconnect() error {
	number, err := strconv.Atoi(strings.TrimPrefix(w.device, "/dev/nbd"))
	if err != nil {
		return err
	}
	return netlinkDisconnect(number)
}

func (s *server) endsWithin(limit time.Duration) bool {
	select {
	case <-s.ended:
		return true
	case <-time.After(limit):
		return false
	}
}

// gracePeriod is how long rbd-nbd may take to close an image that it has opened.
const gracePeriod = 10 * time.Second

// keepServing waits until the device is disconnected, and meanwhile starts a new rbd-nbd when one
// has died.
func (w *worker) keepServing() error {
	log := klog.Background().WithValues("image", w.order.Target.Image.String(), "device", w.device)
	number, _ := strconv.Atoi(strings.TrimPrefix(w.device, "/dev/nbd"))
	for {
		<-w.server.ended
		if !w.connected(number) {
			return nil
		}
		log.Info("rbd-nbd ended before its time, and another one takes its device over", "said", w.server.errors.String())
		ctx, cancel := context.WithTimeout(context.Background(), defaultReattach*time.Second)
		err := w.start(ctx, w.device)
		cancel()
		if err != nil {
			log.Error(err, "Take a device over")
			if w.server.alive() {
				_ = w.server.command.Process.Kill()
			}
			<-time.After(pause)
		}
	}
}

// pause keeps a worker from starting one rbd-nbd after the other when none can serve.
const pause = time.Second

func (s *server) alive() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// connected reports whether the kernel still has the device, and means this image with it. It may
// take a moment to see that the device was disconnected when rbd-nbd has seen it.
func (w *worker) connected(number int) bool {
	k := kernel{sys: "/sys", dev: "/dev"}
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	return await(ctx, "disconnected", func() (bool, error) {
		found, err := k.find(w.order.Target)
		return found == nil || found.number != number, err
	}) != nil
}

// settleTime is how long the kernel may take to take a device down after rbd-nbd ended.
const settleTime = time.Second

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
