package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse/worker"
)

// selfPath is how this program starts itself, also when its file was replaced.
const selfPath = "/proc/self/exe"

const workerArgument = "fuse"

// fuseCommand is a worker of the fuse mapper. It takes its order, the key
// included, from standard input, so that nothing of it is seen in /proc.
func fuseCommand() *cobra.Command {
	return &cobra.Command{
		Use:    workerArgument,
		Short:  "Serve one image as a file (started by node or workers)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			return worker.Run(os.Stdin, os.Stdout)
		},
	}
}
