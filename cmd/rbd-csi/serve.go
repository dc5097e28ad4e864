package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/identity"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/librbd"
	"github.com/rbd-csi/rbd-csi/pkg/server"
)

// serving holds the flags that controller and node have in common.
type serving struct {
	driver   string
	endpoint string
	clusters string
	http     string
	topology bool // nodes tell where they are
}

func (s *serving) flags(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVar(&s.driver, "driver-name", defaultDriver, "name of the CSI driver, as in StorageClass.provisioner")
	flags.StringVar(&s.endpoint, "endpoint", "unix:///csi/csi.sock", "socket to serve CSI on")
	flags.StringVar(&s.clusters, "clusters", defaultClusters, "directory with a directory for each cluster, which holds ceph.conf and keyring, or mon-endpoints, userID and userKey as Rook has them")
	flags.StringVar(&s.http, "http", "", "address for /healthz, /readyz and /metrics, for instance :9808; empty: none")
}

// defaultDriver is the driver's name unless a flag says otherwise.
const defaultDriver = "rbd-csi.io"

// defaultClusters is where the chart mounts the clusters' files.
const defaultClusters = "/etc/rbd-csi/clusters"

// closeTime bounds how long the end of the process waits for connections to close.
const closeTime = 5 * time.Second

// connect returns the clusters that the flags name, and what closes their
// connections. None is made before it is needed.
func (s *serving) connect() (directory cluster.Directory, clusters *librbd.Clusters, disconnect func()) {
	directory = cluster.Directory(s.clusters)
	clusters = librbd.New(directory, librbd.Options{})
	return directory, clusters, func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		if err := clusters.Close(ctx); err != nil {
			klog.ErrorS(err, "Close connections")
		}
	}
}

// A part is something that runs beside the others until its context ends. When one
// ends with an error, all end.
type part struct {
	name string
	run  func(ctx context.Context) error
	// metrics are what /metrics tells of it.
	metrics []prometheus.Collector
}

// serve serves the services, health and metrics, and the other parts, until the
// context ends or one of them fails.
func (s *serving) serve(ctx context.Context, services server.Options, others ...part) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	services.Driver, services.Metrics, services.Logger = s.driver, registry, klog.Background()
	services.Share = clusterOf
	services.Identity = &identity.Service{Name: s.driver, Version: version, Topology: s.topology}
	listener, err := server.Listen(s.endpoint)
	if err != nil {
		return err
	}
	csi := server.New(services)
	parts := append([]part{{name: "CSI", run: func(ctx context.Context) error { return csi.ServeListener(ctx, listener) }}}, others...)
	for _, p := range others {
		registry.MustRegister(p.metrics...)
	}
	if s.http != "" {
		health := server.Health{Live: server.Probe(s.endpoint), Metrics: registry, Timeout: 5 * time.Second}
		parts = append(parts, part{name: "health", run: func(ctx context.Context) error { return health.Serve(ctx, s.http) }})
	}
	return runAll(ctx, parts)
}

// clusterOf returns the name of the cluster that a request is about, or "" if it says none: where there is one only, and for lists.
// It takes the name from what is asked for, unchecked.
func clusterOf(request any) string {
	handle := ""
	switch r := request.(type) {
	case interface{ GetVolumeId() string }:
		handle = r.GetVolumeId()
	case interface{ GetSourceVolumeId() string }:
		handle = r.GetSourceVolumeId()
	case interface{ GetSnapshotId() string }:
		handle = r.GetSnapshotId()
	case interface{ GetGroupSnapshotId() string }:
		handle = r.GetGroupSnapshotId()
	case interface{ GetSourceVolumeIds() []string }:
		handle = strings.Join(r.GetSourceVolumeIds(), "")
	case interface{ GetParameters() map[string]string }:
		return r.GetParameters()["cluster"]
	}
	name, _, _ := strings.Cut(handle, ":")
	return name
}

// runAll runs the parts until the context ends or one fails, and returns the
// first failure when all have ended.
func runAll(ctx context.Context, parts []part) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error)
	for _, p := range parts {
		go func() {
			err := p.run(ctx)
			if err != nil {
				err = fmt.Errorf("%s: %w", p.name, err)
			}
			ended <- err
		}()
	}
	var first error
	for range parts {
		if err := <-ended; err != nil && first == nil {
			first = err
		}
		stop()
	}
	return first
}
