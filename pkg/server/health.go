package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Check returns nil if what it looks at is well. It should return when its
// context ends; if it does not, it has failed all the same.
type Check func(context.Context) error

// Health is the HTTP endpoint for probes and metrics:
//
//	/healthz  200 if Live is well: the process is worth keeping
//	/readyz   200 if Ready is well: it can serve requests now
//	/metrics  what Metrics has gathered, for Prometheus
//
// A check that fails makes it 503, with the reason as the body. A check that
// hangs is not started a second time; the probe fails until it has come back.
type Health struct {
	// Live should be [Probe] of the driver's own socket. It must not ask a
	// cluster: a restart does not make a cluster answer. Nil is always well.
	Live Check
	// Ready, if nil, is always well.
	Ready Check
	// Metrics may be nil, and /metrics is not found then.
	Metrics prometheus.Gatherer
	// Timeout bounds one check. It should be shorter than what the kubelet
	// allows a probe. Zero means 2 seconds.
	Timeout time.Duration
}

// Probe returns a check that calls the Probe method on a CSI socket as the
// livenessprobe sidecar does, so a server that is stuck is noticed.
func Probe(endpoint string) Check {
	return func(ctx context.Context) error {
		path, err := SocketPath(endpoint)
		if err != nil {
			return err
		}
		connection, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return fmt.Errorf("connect to %s: %w", path, err)
		}
		defer connection.Close()
		resp, err := csi.NewIdentityClient(connection).Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("probe %s: %w", path, err)
		}
		if ready := resp.GetReady(); ready != nil && !ready.GetValue() { // absent means ready
			return fmt.Errorf("probe %s: not ready: %w", path, fault.Unavailable)
		}
		return nil
	}
}

// Serve answers on a TCP address like ":9090" until ctx ends.
func (h Health) Serve(ctx context.Context, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen for probes on %s: %w: %w", address, fault.Unavailable, err)
	}
	return h.ServeListener(ctx, listener)
}

// ServeListener answers on listener, which it closes, until ctx ends.
func (h Health) ServeListener(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           h.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve probes on %s: %w: %w", listener.Addr(), fault.Unavailable, err)
	case <-ctx.Done():
	}
	// Probes are not worth waiting for.
	err := server.Close()
	<-served
	return err
}

// Handler returns the endpoint as a handler.
func (h Health) Handler() http.Handler {
	if h.Timeout == 0 {
		h.Timeout = 2 * time.Second
	}
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", &probe{check: h.Live, timeout: h.Timeout})
	mux.Handle("GET /readyz", &probe{check: h.Ready, timeout: h.Timeout})
	if h.Metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(h.Metrics, promhttp.HandlerOpts{}))
	}
	return mux
}

// A probe runs one check at a time; those who ask meanwhile get its result.
type probe struct {
	check   Check
	timeout time.Duration

	mu      sync.Mutex
	current *attempt // nil when none runs
}

// An attempt is one run of a check; err may be read when done is closed.
type attempt struct {
	begun time.Time
	done  chan struct{}
	err   error
}

// ServeHTTP answers a probe.
func (p *probe) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	err := p.ask(request.Context())
	if err != nil {
		http.Error(writer, err.Error(), http.StatusServiceUnavailable)
		return
	}
	io.WriteString(writer, "ok\n") //nolint:errcheck // whoever asked is gone
}

func (p *probe) ask(ctx context.Context) error {
	if p.check == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	attempt := p.attempt()
	select {
	case <-attempt.done:
		return attempt.err
	case <-ctx.Done():
		return fmt.Errorf("the check has been running since %s: %w", moment(attempt.begun), fault.Unknown)
	}
}

// attempt returns the running attempt, or starts one. Its time is its own, not
// that of the probe that happened to start it.
func (p *probe) attempt() *attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil {
		return p.current
	}
	one := &attempt{begun: time.Now(), done: make(chan struct{})}
	p.current = one
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), p.timeout)
		defer cancel()
		one.err = p.check(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.current = nil
		close(one.done)
	}()
	return one
}
