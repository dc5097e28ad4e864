package server

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Options is what a [Server] is made of. Every service may be nil and is not
// offered then.
type Options struct {
	// Driver is the driver's name, for the label driver_name of the metrics.
	Driver string
	// Logger is where requests log; the zero value means klog's own.
	Logger klog.Logger
	// Metrics is where the server's figures are registered, which can be done
	// once for a registry; nil means nowhere.
	Metrics prometheus.Registerer

	Identity         csi.IdentityServer
	Controller       csi.ControllerServer
	GroupController  csi.GroupControllerServer
	SnapshotMetadata csi.SnapshotMetadataServer
	Node             csi.NodeServer

	// MaxWorks bounds the works (requests that change something) that run or
	// wait for their turn, and apart from them, by the same number, the
	// requests that only read. Work that nobody waits for any more counts
	// until it ends. A request beyond the bound is Unavailable at once.
	// Zero means 256.
	MaxWorks int
	// Share returns what a request is about that can fail to answer by itself, such as a cluster. MaxWorks counts for
	// each share, so that the requests that wait for one do not get those for another refused. nil: there is one share.
	Share func(request any) string
	// WorkTimeout is how long one work may take, from when its turn came,
	// whether its callers wait or not. Then its context ends. A caller without
	// a deadline waits as long. Zero means 10 minutes.
	WorkTimeout time.Duration
	// Grace is how long requests and works may take to end once the server
	// has been told to stop. Zero means 20 seconds, which leaves a third of
	// what Kubernetes gives a pod by default.
	Grace time.Duration
}

// A Server answers CSI requests on a Unix socket.
type Server struct {
	grpc     *grpc.Server
	unary    grpc.UnaryServerInterceptor
	log      klog.Logger
	requests atomic.Uint64
	metrics  *metrics
	works    *works
	grace    time.Duration
}

// New returns a server that offers the services of options.
func New(options Options) *Server {
	options = withDefaults(options)
	figures := newMetrics(options.Driver, options.Metrics)
	server := &Server{
		log:     options.Logger,
		metrics: figures,
		works:   newWorks(options.MaxWorks, options.Share, options.WorkTimeout, figures),
		grace:   options.Grace,
	}
	figures.observe(options.Metrics, server.works)
	// The order matters: a code is given last, so that log and metrics see the
	// fault itself, and both count what the checks turn away.
	server.unary = chain(coded, server.logged, server.measured, checked, server.works.joined)
	server.grpc = grpc.NewServer(
		grpc.UnaryInterceptor(server.unary),
		grpc.StreamInterceptor(server.streamed),
	)
	server.register(options)
	return server
}

// Serve listens on endpoint (see [Listen]) and serves until ctx ends; see
// [Server.ServeListener].
func (s *Server) Serve(ctx context.Context, endpoint string) error {
	listener, err := Listen(endpoint)
	if err != nil {
		return err
	}
	return s.ServeListener(ctx, listener)
}

// ServeListener serves on listener, which it closes, until ctx ends. Then it
// takes no more requests, lets those that run and the works left behind end
// for as long as Options.Grace, and returns nil if they did. Otherwise the
// contexts of the works end and the error, of kind Unknown, names the oldest.
// A server serves once.
func (s *Server) ServeListener(ctx context.Context, listener net.Listener) error {
	s.log.Info("Serving", "endpoint", listener.Addr().String())
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(listener) }()
	select {
	case err := <-served:
		s.works.end()
		return fmt.Errorf("serve on %s: %w: %w", listener.Addr(), fault.Unavailable, err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.grace)
	defer cancel()
	s.stop(grace)
	<-served
	err := s.works.drained(grace)
	s.works.end()
	s.log.Info("Stopped", "endpoint", listener.Addr().String())
	return err
}

// stop lets the running requests end until grace does, then cuts them off.
func (s *Server) stop(grace context.Context) {
	stopped := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-grace.Done():
		s.grpc.Stop() // makes GracefulStop return, too
		<-stopped
	}
}

func (s *Server) register(options Options) {
	if options.Identity != nil {
		csi.RegisterIdentityServer(s.grpc, options.Identity)
	}
	if options.Controller != nil {
		csi.RegisterControllerServer(s.grpc, options.Controller)
	}
	if options.GroupController != nil {
		csi.RegisterGroupControllerServer(s.grpc, options.GroupController)
	}
	if options.SnapshotMetadata != nil {
		csi.RegisterSnapshotMetadataServer(s.grpc, options.SnapshotMetadata)
	}
	if options.Node != nil {
		csi.RegisterNodeServer(s.grpc, options.Node)
	}
}

func withDefaults(options Options) Options {
	if options.Logger.GetSink() == nil {
		options.Logger = klog.Background()
	}
	if options.MaxWorks == 0 {
		options.MaxWorks = 256
	}
	if options.Share == nil {
		options.Share = func(any) string { return "" }
	}
	if options.WorkTimeout == 0 {
		options.WorkTimeout = 10 * time.Minute
	}
	if options.Grace == 0 {
		options.Grace = 20 * time.Second
	}
	return options
}

// chain makes one interceptor of several, the first being the outermost.
func chain(links ...grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	if len(links) == 1 {
		return links[0]
	}
	first, rest := links[0], chain(links[1:]...)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return first(ctx, req, info, func(ctx context.Context, req any) (any, error) {
			return rest(ctx, req, info, handler)
		})
	}
}
