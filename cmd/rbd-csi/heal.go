package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/heal"
	"github.com/rbd-csi/rbd-csi/pkg/host"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
)

// healing holds the flags that say what is done when a volume goes bad under a pod.
type healing struct {
	policy string
	every  time.Duration
}

// The policies.
const (
	healOff     = "off"
	healReport  = "report"
	healRestart = "restart"
)

var healPolicies = []string{healOff, healReport, healRestart}

func (h *healing) flags(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVar(&h.policy, "heal", healReport, "what to do about the pods of a volume whose device died or whose filesystem went read-only: off, report (an event), or restart (delete those that a controller makes anew)")
	flags.DurationVar(&h.every, "heal-every", heal.DefaultEvery, "how often volumes are looked at for that")
}

func (h healing) check() error {
	if !slices.Contains(healPolicies, h.policy) {
		return fmt.Errorf("--heal=%s: %w: one of %s", h.policy, fault.Invalid, strings.Join(healPolicies, ", "))
	}
	return nil
}

// part returns the part that looks after the volumes of a node, if it is wanted.
func (h healing) part(driver, node string, volumes *host.Host) []part {
	if h.policy == healOff {
		return nil
	}
	ailing := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "rbd_csi_node_ailing_volumes",
		Help: "Volumes on this node that something is wrong with.",
	}, []string{"reason"})
	healer := heal.New(node, volumes.Ailing, heal.Options{
		Driver: driver, Pods: podsOrNil(), Restart: h.policy == healRestart, Every: h.every,
		Seen: func(volumes map[string]int) {
			for reason, n := range volumes {
				ailing.WithLabelValues(reason).Set(float64(n))
			}
		},
	})
	run := func(ctx context.Context) error {
		healer.Run(ctx)
		return nil
	}
	return []part{{name: "heal", run: run, metrics: []prometheus.Collector{ailing}}}
}

// podsOrNil returns where pods are asked for, or nil outside of Kubernetes.
func podsOrNil() heal.Pods {
	client, is := inCluster("Pods are not told when a volume goes bad, only the log and the metrics are")
	if !is {
		return nil
	}
	return client
}

// inCluster returns a client of the Kubernetes that this process runs in, if it does; if not, the log says what is not done.
func inCluster(notDone string) (client *kubernetes.Client, is bool) {
	client, err := kubernetes.InCluster()
	if err != nil {
		klog.Background().Info(notDone, "reason", err.Error())
	}
	return client, err == nil
}
