package main

import (
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/filesystem/linux"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/krbd"
)

const (
	writerArgument = "krbd"
	readerArgument = "read-devices"
)

// krbdCommand is a writer of the krbd mapper.
func krbdCommand() *cobra.Command {
	return errandCommand(writerArgument, "Write to the kernel's files below /sys/bus/rbd (started by node)", krbd.Serve)
}

// readerCommand reads devices for the node plug-in, which can give up on it and not on a thread of its own.
func readerCommand() *cobra.Command {
	return errandCommand(readerArgument, "Read what block devices begin and end with (started by node)", linux.Serve)
}

// errandCommand is a process of package errand. It takes its orders, keys included, from standard
// input, so that nothing of them is seen in /proc.
func errandCommand(argument, short string, serve func(io.Reader, io.Writer) error) *cobra.Command {
	return &cobra.Command{
		Use:    argument,
		Short:  short,
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE:   func(*cobra.Command, []string) error { return serve(os.Stdin, os.Stdout) },
	}
}
