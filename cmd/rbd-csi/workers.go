package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse/launcher"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/nbd"
	"github.com/rbd-csi/rbd-csi/pkg/server"
)

// workersFlags are the flags of the workers command.
type workersFlags struct{ socket, http string }

func workersCommand() *cobra.Command {
	var f workersFlags
	command := &cobra.Command{
		Use:   "workers",
		Short: "Start the workers of the mappers fuse and nbd for rbd-csi node --workers",
		Long: "Start the workers of the mappers fuse and nbd for rbd-csi node --workers, as children of this process.\n\n" +
			"In Kubernetes it is a pod of its own on each node, which is not restarted with the node\n" +
			"plug-in: when it is killed, all devices that its workers serve are lost. Told to end (SIGTERM)\n" +
			"it starts no more workers and waits until the last one has ended, as when a node is drained.\n\n" +
			"It needs root, a privileged pod with the host's network, and the directory of the mappings\n" +
			"at the same path as in the node plug-in, mounted with Bidirectional propagation there and here.",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return runWorkers(command.Context(), f) },
	}
	flags := command.Flags()
	flags.StringVar(&f.socket, "socket", launcher.DefaultSocket, "socket to listen on; only root may connect")
	flags.StringVar(&f.http, "http", "", "address for /healthz and /readyz, for instance :9809; empty: none")
	return command
}

func runWorkers(ctx context.Context, f workersFlags) error {
	if err := os.MkdirAll(filepath.Dir(f.socket), 0o700); err != nil {
		return fmt.Errorf("make the directory of the socket: %w", err)
	}
	listener, err := server.Listen(f.socket)
	if err != nil {
		return err
	}
	workers := launcher.New(launcher.Options{Path: selfPath, Arguments: []string{workerArgument}, Others: []string{nbd.Name}, Version: version})
	parts := []part{{name: "workers", run: func(ctx context.Context) error { return workers.Serve(ctx, listener) }}}
	if f.http != "" {
		health := server.Health{Live: launcher.Dial(f.socket).Ping, Timeout: 5 * time.Second}
		parts = append(parts, part{name: "health", run: func(ctx context.Context) error { return health.Serve(ctx, f.http) }})
	}
	return runAll(ctx, parts)
}
