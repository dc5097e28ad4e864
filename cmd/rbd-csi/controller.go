package main

import (
	"cmp"
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/controller"
	"github.com/rbd-csi/rbd-csi/pkg/group"
	"github.com/rbd-csi/rbd-csi/pkg/metadata"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/server"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// controlling holds the flags of the controller alone.
type controlling struct {
	purge          volume.PurgeOptions
	flatten        volume.FlattenOptions
	flattenDepth   int
	publishedNodes bool
	grace          time.Duration
	orphans        watching
	failover       bool
}

func controllerCommand() *cobra.Command {
	var s serving
	var c controlling
	command := &cobra.Command{
		Use:   "controller",
		Short: "Serve the CSI Controller: make, attach, grow, copy and delete volumes",
		Long: "Serve the CSI Controller, GroupController and SnapshotMetadata: make, attach, grow, copy and delete volumes and snapshots.\n\n" +
			"It needs neither root nor a privilege. Several may run at once.",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return runController(command.Context(), s, c)
		},
	}
	s.flags(command)
	c.flags(command)
	command.Flags().BoolVar(&s.topology, "topology", false, "the nodes run with --topology, which the provisioner has to know")
	return command
}

func (c *controlling) flags(command *cobra.Command) {
	c.orphans.flags(command)
	flags := command.Flags()
	flags.IntVar(&c.purge.Workers, "purge-workers", 4, "how many deleted volumes are freed at once")
	flags.DurationVar(&c.purge.Every, "purge-every", volume.DefaultPurgeEvery, "how often the trash is looked through for what another process left")
	flags.IntVar(&c.flattenDepth, "flatten-depth", volume.DefaultFlattenDepth, "from how many images on, which a read can go through beside the volume's own, a clone is flattened in the background")
	flags.DurationVar(&c.flatten.Every, "flatten-every", volume.DefaultFlattenEvery, "how often the pools are looked through for clones to flatten that another process left")
	flags.DurationVar(&c.grace, "detach-grace", volume.DefaultGrace, "how long a client that still lives may go on to unstage when its volume is detached, before it is shut out; 0: not at all")
	flags.BoolVar(&c.failover, "failover", false, "let pods with volumes on a node that is neither ready nor heard of by Ceph start elsewhere at once: taint the node out-of-service and remove those pods")
	flags.BoolVar(&c.publishedNodes, "published-nodes", false, "ListVolumes tells the nodes of each volume; the attacher then lists all volumes every minute")
}

func runController(ctx context.Context, s serving, c controlling) error {
	_, clusters, disconnect := s.connect()
	defer disconnect()
	purger, flattener := volume.NewPurger(c.purge), volume.NewFlattener(c.flatten)
	options := volume.Options{Removed: purger.Add, Deep: flattener.Add, FlattenDepth: c.flattenDepth, Grace: cmp.Or(c.grace, -1)}
	if c.publishedNodes {
		options.PublishedNodes = volume.DefaultListAge
	}
	store := volume.NewStore(clusters, options)
	services := server.Options{
		Controller: &controller.Service{
			Store:          store,
			DefaultCluster: func(ctx context.Context) (string, error) { return onlyCluster(ctx, clusters) },
			PublishedNodes: c.publishedNodes,
		},
		GroupController:  &group.Service{Snapshots: store.Snapshots()},
		SnapshotMetadata: &metadata.Service{Snapshots: store.Snapshots()},
	}
	purging := func(ctx context.Context) error {
		purger.Run(ctx, store)
		return nil
	}
	flattening := func(ctx context.Context) error {
		flattener.Run(ctx, store)
		return nil
	}
	fencing := func(ctx context.Context) error {
		store.KeepFences(ctx)
		return nil
	}
	parts := []part{{name: "purge", run: purging}, {name: "flatten", run: flattening}, {name: "fences", run: fencing}}
	if c.orphans.every > 0 {
		parts = append(parts, c.orphans.part(s.driver, clusters, store))
	}
	if c.failover {
		moving, err := failoverPart(s.driver, store)
		if err != nil {
			return err
		}
		parts = append(parts, moving)
	}
	return s.serve(ctx, services, parts...)
}

// onlyCluster returns the name of the cluster if there is one only, and "" otherwise.
func onlyCluster(ctx context.Context, clusters rbd.Clusters) (string, error) {
	names, err := clusters.Names(ctx)
	if err != nil || len(names) != 1 {
		return "", err
	}
	return names[0], nil
}
