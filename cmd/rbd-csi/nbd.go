package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse/launcher"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/nbd"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// nbdCommand is a worker of the nbd mapper. It takes its order, the key included, from standard
// input, so that nothing of it is seen in /proc.
func nbdCommand() *cobra.Command {
	return &cobra.Command{
		Use:    nbd.Name,
		Short:  "Keep an rbd-nbd at one image (started by node or workers)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			return nbd.Serve(os.Stdin, os.Stdout)
		},
	}
}

func (f nodeFlags) nbdOptions(clusters rbd.Clusters) nbd.Options {
	options := nbd.Options{
		Directory: filepath.Join(f.runDirectory, nbd.Name),
		Launch:    nbd.Command(selfPath, nbd.Name),
		Bytes:     func(ctx context.Context, of mapper.Target) (int64, error) { return imageBytes(ctx, clusters, of) },
	}
	if f.workers != "" {
		client := launcher.Dial(f.workers)
		options.Ready = func(ctx context.Context) error { return client.Starts(ctx, nbd.Name) }
		options.Launch = func(ctx context.Context, order nbd.Order) error {
			var text bytes.Buffer
			if err := order.Send(&text); err != nil {
				return err
			}
			worker := launcher.Worker{Mapper: nbd.Name, Image: order.Target.Image.String(), Directory: order.Directory}
			return client.Start(ctx, worker, text.Bytes())
		}
	}
	return options
}

// imageBytes returns how large an image is. A request to grow a device brings no secrets: the cluster's
// own keyring serves.
func imageBytes(ctx context.Context, clusters rbd.Clusters, of mapper.Target) (int64, error) {
	pool, err := clusters.Pool(ctx, of.Image.Pool, params.Credentials{})
	if err != nil {
		return 0, err
	}
	header, err := pool.Header(ctx, of.ImageID)
	return header.Layout.Bytes, err
}
