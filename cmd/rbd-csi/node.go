package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/errand"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem/linux"
	"github.com/rbd-csi/rbd-csi/pkg/host"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse/launcher"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/krbd"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/nbd"
	"github.com/rbd-csi/rbd-csi/pkg/node"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/registrar"
	"github.com/rbd-csi/rbd-csi/pkg/server"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// nodeFlags are the flags of the node command.
type nodeFlags struct {
	serving
	name         string
	mostVolumes  int64
	kubeletRoot  string
	kubeletSock  string
	loadModules  bool
	runDirectory string
	workers      string
	segments     map[string]string
	heal         healing
	announcing   announcing
}

func nodeCommand() *cobra.Command {
	var f nodeFlags
	command := &cobra.Command{
		Use:   "node",
		Short: "Serve the CSI Node: map, format, mount and measure volumes on this node",
		Long: "Serve the CSI Node: map, format, mount and measure volumes on this node.\n\n" +
			"It needs root, and in Kubernetes a privileged pod with the host's network and\n" +
			"kubelet's directory mounted with Bidirectional propagation.",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return runNode(command.Context(), f) },
	}
	f.flags(command)
	flags := command.Flags()
	flags.StringVar(&f.name, "node-name", os.Getenv("NODE_NAME"), "name of this node; by default the environment's NODE_NAME")
	flags.Int64Var(&f.mostVolumes, "max-volumes", 0, "how many volumes this node takes; 0: no limit")
	flags.StringVar(&f.kubeletRoot, "kubelet-root", "", "kubelet's root directory, usually /var/lib/kubelet, to register the driver there; empty: do not register")
	flags.StringVar(&f.kubeletSock, "kubelet-endpoint", "", "path of the CSI socket as kubelet sees it; empty: as in --endpoint")
	flags.StringToStringVar(&f.segments, "topology", nil, "where this node is, as KEY=VALUE,...; CSIStorageCapacity wants some key, the same on all nodes")
	flags.BoolVar(&f.loadModules, "load-modules", false, "load the kernel's modules rbd and nbd with modprobe, which needs the host's /lib/modules")
	flags.StringVar(&f.runDirectory, "run-directory", fuse.DefaultDirectory, "directory for the mappings of the mappers fuse and nbd, and for locks, on a tmpfs")
	f.heal.flags(command)
	f.announcing.flags(command)
	flags.StringVar(&f.workers, "workers", "", "socket of rbd-csi workers, which starts the workers of the mappers fuse and nbd; empty: they are this process's children, and die with its container")
	return command
}

func runNode(ctx context.Context, f nodeFlags) error {
	id := volid.Node{Name: f.name}
	if err := id.Check(); err != nil {
		return fmt.Errorf("--node-name: %w", err)
	}
	if err := node.CheckSegments(f.segments); err != nil {
		return fmt.Errorf("--topology: %w", err)
	}
	if err := f.heal.check(); err != nil {
		return err
	}
	f.topology = len(f.segments) > 0
	boot, err := bootID()
	if err != nil {
		return err
	}
	if f.loadModules {
		loadModules(ctx)
	}
	directory, clusters, disconnect := f.connect()
	defer disconnect()
	announcer := f.announcing.announcer(f.driver, f.name)
	volumes := host.New(host.Options{
		Node:     id.String(),
		Boot:     boot,
		Clusters: clusters,
		Access:   directory.Access,
		Mappers:  f.mappers(clusters),
		Files:    linux.New(linux.Options{Reader: errand.New(selfPath, readerArgument)}),
		Mapped:   announcer.Mapped,
	})
	service := &node.Service{Host: volumes, Announcer: announcer, Node: id, MostVolumes: f.mostVolumes, Segments: f.segments}
	parts := slices.Concat(f.registration(), f.heal.part(f.driver, f.name, volumes), f.announcing.part(announcer))
	return f.serve(ctx, server.Options{Node: service}, parts...)
}

// mappers returns the ways to map, in the order in which a class with "mapper: auto" tries them.
func (f nodeFlags) mappers(clusters rbd.Clusters) []mapper.Mapper {
	return []mapper.Mapper{
		krbd.New(krbd.Options{
			Directory: filepath.Join(f.runDirectory, krbd.Name),
			Start:     krbd.Command(selfPath, writerArgument),
		}),
		nbd.New(f.nbdOptions(clusters)),
		fuse.New(f.fuseOptions()),
	}
}

func (f nodeFlags) fuseOptions() fuse.Options {
	if f.workers == "" {
		return fuse.Options{Directory: f.runDirectory, Launch: fuse.Command(selfPath, workerArgument)}
	}
	client := launcher.Dial(f.workers)
	return fuse.Options{Directory: f.runDirectory, Launch: client.Launch, Kill: client.Kill}
}

// registration returns the part that makes the driver known to kubelet, if it is wanted.
func (f nodeFlags) registration() []part {
	if f.kubeletRoot == "" {
		return nil
	}
	plugin := registrar.Plugin{Driver: f.driver, Endpoint: f.kubeletSock}
	if plugin.Endpoint == "" {
		plugin.Endpoint = strings.TrimPrefix(f.endpoint, "unix://")
	}
	socket := registrar.Socket(f.kubeletRoot, plugin)
	return []part{{name: "registration", run: func(ctx context.Context) error { return registrar.Run(ctx, socket, plugin) }}}
}

// bootID returns the kernel's boot ID: it tells whether a client that a node has
// recorded can still live.
func bootID() (string, error) {
	content, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}
