package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
)

// Options of a Server.
type Options struct {
	// Path and Arguments are the program that is a worker, as for [fuse.Command].
	Path      string
	Arguments []string
	// Others are the mappers whose workers may be started too, with the mapper's name as argument.
	Others []string
	// Version is logged, and told to callers that are refused for their protocol.
	Version string
}

// A Server starts workers as children of its process, for callers that run as root.
type Server struct {
	options Options
	user    uint32 // who may call: root, but in tests

	mutex   sync.Mutex
	ending  bool
	workers map[*worker]struct{} // those that live
	changed chan struct{}        // closed and made anew when one ends
}

// A worker is a process that was started here, or is about to be.
type worker struct {
	image  string
	served bool // it has answered so
}

// New returns a Server.
func New(options Options) *Server {
	return &Server{options: options, workers: map[*worker]struct{}{}, changed: make(chan struct{})}
}

// Serve answers on the listener, which is that of a Unix socket and which it closes, until ctx
// ends and after that until no worker is left: a worker ends when its image is unmapped, and
// one that still serves a device when this process ends takes the device with it. So
// it gives a node that is being drained all the time that there is. Kubernetes bounds
// it by the pod's grace period. Meanwhile no worker is started.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	log := klog.FromContext(ctx)
	log.Info("Ready to start workers", "socket", listener.Addr().String(), "version", s.options.Version, "protocol", protocol)
	over, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() {
		defer stop()
		<-ctx.Done()
		s.drain(log)
	}()
	var answering sync.WaitGroup
	defer answering.Wait()
	defer context.AfterFunc(over, func() { _ = listener.Close() })()
	for {
		connection, err := listener.Accept()
		switch {
		case over.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w: %w", listener.Addr(), fault.Unavailable, err)
		case err != nil:
			log.Error(err, "Accept a caller") // as when there are no descriptors left
			select {
			case <-over.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		answering.Go(func() { s.answer(log, connection) })
	}
}

// acceptPause keeps a process that is out of descriptors from asking for one all the time.
const acceptPause = 100 * time.Millisecond

// drain waits until no worker is left, and says for whom it waits.
func (s *Server) drain(log klog.Logger) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.ending = true
	for len(s.workers) > 0 {
		log.Info("Told to end; these images lose their devices when this process is killed, so it waits until they are unmapped",
			"images", s.images())
		changed := s.changed
		s.mutex.Unlock()
		<-changed
		s.mutex.Lock()
	}
	log.Info("No worker is left")
}

// images returns what is served; the caller holds the lock.
func (s *Server) images() []string {
	var images []string
	for one := range s.workers {
		images = append(images, one.image)
	}
	slices.Sort(images)
	return images
}

// How long a caller may take to say what it wants, and to take its answer.
const (
	askTimeout    = 10 * time.Second
	answerTimeout = 5 * time.Second
)

// answer serves one connection.
func (s *Server) answer(log klog.Logger, connection net.Conn) {
	defer func() { _ = connection.Close() }()
	var asked request
	_ = connection.SetReadDeadline(time.Now().Add(askTimeout))
	err := receive(connection, &asked)
	if err == nil {
		err = s.admit(connection) // not before: what is unread when it closes would cost the caller the answer
	}
	if err == nil {
		_ = connection.SetReadDeadline(time.Time{})
		ctx, done := whileOpen(connection)
		err = s.do(klog.NewContext(ctx, log), asked)
		done()
	}
	_ = connection.SetWriteDeadline(time.Now().Add(answerTimeout))
	var text bytes.Buffer
	if sent := fuse.SendAnswer(&text, err); sent == nil {
		_ = send(connection, reply{Protocol: protocol, Answer: text.Bytes()})
	}
}

// whileOpen returns a context that ends when the caller closes the connection, as the kernel
// does for one that is killed. The caller of whileOpen calls done before it writes.
func whileOpen(connection net.Conn) (ctx context.Context, done func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		_, _ = connection.Read(make([]byte, 1)) // nothing comes after a request
	}()
	return ctx, func() {
		_ = connection.SetReadDeadline(time.Unix(1, 0))
		<-ended
	}
}

// admit returns fault.Denied unless the caller runs as root here (SO_PEERCRED). The socket's
// mode says the same, from a moment after it was made.
func (s *Server) admit(connection net.Conn) error {
	unixConnection, ok := connection.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("caller %s is not on a Unix socket: %w", connection.RemoteAddr(), fault.Denied)
	}
	raw, err := unixConnection.SyscallConn()
	if err != nil {
		return fmt.Errorf("ask who calls: %w: %w", fault.Denied, err)
	}
	var peer *unix.Ucred
	failed := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(failed, err); err != nil {
		return fmt.Errorf("ask who calls: %w: %w", fault.Denied, err)
	}
	if peer.Uid != s.user {
		return fmt.Errorf("only root may ask for workers, and user %d does: %w", peer.Uid, fault.Denied)
	}
	return nil
}

func (s *Server) do(ctx context.Context, asked request) error {
	if asked.Protocol > protocol {
		return s.tooOld(fmt.Sprintf("speaks protocol %d and %d is needed", protocol, asked.Protocol))
	}
	switch asked.Ask {
	case askPing:
		return nil
	case askKill:
		return fuse.KillWorker(asked.Directory)
	case askLaunch:
		order, err := fuse.ReceiveOrder(bytes.NewReader(asked.Order))
		if err != nil {
			return err
		}
		program := fuse.Program{Path: s.options.Path, Arguments: s.options.Arguments, Secret: order.Credentials.Key.Reveal()}
		return s.start(ctx, Worker{Mapper: "fuse", Image: order.Target.Image.String(), Directory: order.Directory}, program, asked.Order)
	case askStart:
		if asked.Worker == nil || !slices.Contains(s.options.Others, asked.Worker.Mapper) {
			break
		}
		if len(asked.Order) == 0 {
			return nil
		}
		return s.start(ctx, *asked.Worker, fuse.Program{Path: s.options.Path, Arguments: []string{asked.Worker.Mapper}}, asked.Order)
	}
	return s.tooOld(fmt.Sprintf("does not know the request %q", asked.Ask))
}

// tooOld is the answer to what a later version asks for.
func (s *Server) tooOld(why string) error {
	return fmt.Errorf("the pod rbd-csi-workers on this node (version %s) is older than the node plug-in: it %s; "+
		"drain the node and delete the pod, so that it is made anew: %w", s.options.Version, why, fault.Unsupported)
}

// start starts a worker; see [fuse.Start].
func (s *Server) start(ctx context.Context, wanted Worker, program fuse.Program, order []byte) error {
	log := klog.FromContext(ctx).WithValues("mapper", wanted.Mapper, "image", wanted.Image, "directory", wanted.Directory)
	if _, err := os.Stat(wanted.Directory); err != nil {
		return fmt.Errorf("the pod rbd-csi-workers does not see the mapping's folder: mount the directory of mappings at the same "+
			"path in both pods, with Bidirectional propagation: %w: %w", fault.Unsupported, err)
	}
	one := &worker{image: wanted.Image}
	if err := s.begin(one); err != nil {
		return err
	}
	ended := func(how string) {
		if s.end(one) && how != endedWell {
			log.Info("Worker ended, and its device is lost", "how", how)
			return
		}
		log.V(2).Info("Worker ended", "how", how)
	}
	if err := fuse.Start(ctx, program, order, ended); err != nil {
		s.end(one) // for one that could not be started
		return err
	}
	s.serves(one)
	log.V(2).Info("Worker serves")
	return nil
}

// endedWell is how a process ends whose image was unmapped, as os.ProcessState says it.
const endedWell = "exit status 0"

// begin counts a worker that is about to be started.
func (s *Server) begin(one *worker) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.ending {
		return fmt.Errorf("the pod rbd-csi-workers on this node is ending, and starts no worker while it waits until %d images are unmapped: %w",
			len(s.workers), fault.Unavailable)
	}
	s.workers[one] = struct{}{}
	return nil
}

func (s *Server) serves(one *worker) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	one.served = true
}

// end forgets a worker, and reports whether it had served.
func (s *Server) end(one *worker) (served bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	delete(s.workers, one)
	close(s.changed)
	s.changed = make(chan struct{})
	return one.served
}
