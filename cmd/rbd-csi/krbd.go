package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/mapper/krbd"
)

const writerArgument = "krbd"

// krbdCommand is a writer of the krbd mapper. It takes its orders, a key included, from standard
// input, so that nothing of them is seen in /proc.
func krbdCommand() *cobra.Command {
	return &cobra.Command{
		Use:    writerArgument,
		Short:  "Write to the kernel's files below /sys/bus/rbd (started by node)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			return krbd.Serve(os.Stdin, os.Stdout)
		},
	}
}
