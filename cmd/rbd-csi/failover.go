package main

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rbd-csi/rbd-csi/pkg/failover"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// failoverPart returns the part that looks after lost nodes. Every controller does so, and none needs another. Outside of
// Kubernetes it cannot be had.
func failoverPart(driver string, store *volume.Store) (part, error) {
	client, err := kubernetes.InCluster()
	if err != nil {
		return part{}, fmt.Errorf("--failover: %w", err)
	}
	moved := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "rbd_csi_failover_pods_total",
		Help: "Pods that this controller has removed from lost nodes, so that they start elsewhere.",
	})
	watch := failover.New(failover.Options{
		Driver: driver, Kubernetes: client, Silent: store.Silent, Fence: store.FenceNode,
		Moved: func(kubernetes.Pod) { moved.Inc() },
	})
	run := func(ctx context.Context) error {
		watch.Run(ctx)
		return nil
	}
	return part{name: "failover", run: run, metrics: []prometheus.Collector{moved}}, nil
}
