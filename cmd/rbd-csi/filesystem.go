package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/filesystem/linux"
)

const readerArgument = "read-devices"

// readerCommand reads devices for the node plug-in, which can give up on it and not on a thread of its own.
func readerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    readerArgument,
		Short:  "Read what block devices begin and end with (started by node)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			return linux.Serve(os.Stdin, os.Stdout)
		},
	}
}
