package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"
)

// metrics are the figures of a server. Each answers a question:
//
//   - csi_plugin_operations_seconds{driver_name,method_name,grpc_status_code}:
//     how long do requests take, and which fail with what? Name, labels and
//     buckets are those of csi-lib-utils, so that existing dashboards work.
//     A joined request counts with the time that its own caller waited.
//   - rbd_csi_requests_in_flight{method_name}: what is being asked right now?
//   - rbd_csi_requests_joined_total{method_name}: do callers give up and
//     repeat before the work is done, so that a longer time-out would help?
//   - rbd_csi_requests_refused_total{method_name}: was anyone turned away
//     because too much was going on?
//   - rbd_csi_works{state="running|waiting"} and rbd_csi_works_limit: how near
//     is that?
//   - rbd_csi_works_abandoned: how many works run that nobody waits for, as
//     they do when a cluster does not answer?
//   - rbd_csi_oldest_work_seconds: does something hang, and since when? Zero
//     when nothing runs.
//   - rbd_csi_panics_total: is there a defect to report?
//
// method_name is gRPC's, like /csi.v1.Controller/CreateVolume. Reading requests
// are not works; they appear in the first two, and when refused.
type metrics struct {
	seconds  *prometheus.HistogramVec
	inFlight *prometheus.GaugeVec
	joined   *prometheus.CounterVec
	refused  *prometheus.CounterVec
	panics   prometheus.Counter
}

func newMetrics(driver string, registry prometheus.Registerer) *metrics {
	factory := promauto.With(registry)
	return &metrics{
		seconds: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name:        "csi_plugin_operations_seconds",
			Help:        "Duration of CSI requests in seconds, by method and gRPC status code.",
			ConstLabels: prometheus.Labels{"driver_name": driver},
			Buckets:     []float64{.1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600},
		}, []string{"method_name", "grpc_status_code"}),
		inFlight: factory.NewGaugeVec(prometheus.GaugeOpts{
			Name: "rbd_csi_requests_in_flight",
			Help: "CSI requests whose callers are waiting.",
		}, []string{"method_name"}),
		joined: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "rbd_csi_requests_joined_total",
			Help: "CSI requests that joined an identical one instead of running.",
		}, []string{"method_name"}),
		refused: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "rbd_csi_requests_refused_total",
			Help: "CSI requests refused because too many were running.",
		}, []string{"method_name"}),
		panics: factory.NewCounter(prometheus.CounterOpts{
			Name: "rbd_csi_panics_total",
			Help: "Panics of the driver while it served a CSI request.",
		}),
	}
}

// observe registers the figures that are read off the works when asked for.
func (m *metrics) observe(registry prometheus.Registerer, works *works) {
	factory := promauto.With(registry)
	gauge := func(name, help string, labels prometheus.Labels, read func(snapshot) float64) {
		options := prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}
		factory.NewGaugeFunc(options, func() float64 { return read(works.snapshot()) })
	}
	const worksHelp = "CSI requests that change something, running or waiting for their turn."
	gauge("rbd_csi_works", worksHelp, prometheus.Labels{"state": "running"},
		func(s snapshot) float64 { return float64(s.running) })
	gauge("rbd_csi_works", worksHelp, prometheus.Labels{"state": "waiting"},
		func(s snapshot) float64 { return float64(s.waiting) })
	gauge("rbd_csi_works_limit", "The number of works for one cluster beyond which requests are refused.", nil,
		func(s snapshot) float64 { return float64(s.limit) })
	gauge("rbd_csi_works_abandoned", "Running works that no caller waits for any more.", nil,
		func(s snapshot) float64 { return float64(s.abandoned) })
	gauge("rbd_csi_oldest_work_seconds", "How long the oldest running work has been running, in seconds.", nil,
		func(s snapshot) float64 { return s.oldest.Seconds() })
}

// measured counts the request and the time that its caller waited.
func (s *Server) measured(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	inFlight := s.metrics.inFlight.WithLabelValues(info.FullMethod)
	inFlight.Inc()
	defer inFlight.Dec()
	begun := time.Now()
	resp, err := handler(ctx, req)
	s.metrics.seconds.WithLabelValues(info.FullMethod, codeOf(err).String()).Observe(time.Since(begun).Seconds())
	return resp, err
}
