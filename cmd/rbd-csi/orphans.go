package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/pkg/orphan"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// watching holds the flags of the background check for orphans.
type watching struct {
	every   time.Duration
	collect time.Duration
}

func (w *watching) flags(command *cobra.Command) {
	flags := command.Flags()
	flags.DurationVar(&w.every, "doctor-every", orphan.DefaultEvery, "how often Ceph is compared with Kubernetes, as `rbd-csi doctor` does; 0: never")
	flags.DurationVar(&w.collect, "collect-orphans", 0, "how old what belongs to nobody has to be to be removed, as far as it cannot hold anything that anybody wrote; 0: nothing is removed. It must be 0 where another Kubernetes cluster uses the same pools")
}

// part returns the background check. Every controller makes it, and none needs another: to look costs about an
// operation for each image and --doctor-every, and what two remove at once goes once. A cluster of 100,000 images
// that is looked at each hour by two controllers does 56 operations a second for it on average, all of them reads.
func (w *watching) part(driver string, clusters rbd.Clusters, store *volume.Store) part {
	figure := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "rbd_csi_orphans",
		Help: "What belongs to nobody in Ceph, and what is lost there, by kind. It has no value before the first look is complete.",
	}, []string{"kind"})
	run := func(ctx context.Context) error {
		known, err := askKubernetes(driver)
		if err != nil {
			klog.FromContext(ctx).Error(err, "Look for orphans within Ceph only")
		}
		watch := orphan.Watch{
			Checker: &orphan.Checker{Clusters: clusters, Store: store, Kubernetes: known},
			Every:   w.every, Collect: w.collect,
			Counted: func(counts map[orphan.Kind]int) {
				for kind, count := range counts {
					figure.WithLabelValues(string(kind)).Set(float64(count))
				}
			},
			Found: func(ctx context.Context, found orphan.Finding) { reportLost(ctx, known, found) },
		}
		watch.Run(ctx)
		return nil
	}
	return part{name: "orphans", run: run, metrics: []prometheus.Collector{figure}}
}

// reportLost makes an event of a PersistentVolume that has lost its image.
func reportLost(ctx context.Context, known orphan.Kubernetes, found orphan.Finding) {
	in, asked := known.(objects)
	if !asked || found.Kind != orphan.LostVolume {
		return
	}
	volume := kubernetes.Volume{Name: found.Object, UID: found.UID}
	if err := in.client.ReportVolume(ctx, "rbd-csi", volume, "ImageLost", found.What+"; "+found.Do); err != nil {
		klog.FromContext(ctx).Error(err, "Report a lost image")
	}
}
