// Command rbd-csi is a CSI driver for Kubernetes on Ceph RBD: one binary, a
// sub-command for each part. This is the only place where the parts are put together.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// version is the driver's version; the Makefile sets it.
var version = "unknown"

func main() {
	leaveNoCore()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := 0
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "rbd-csi:", err)
		code = 1
	}
	stop()
	klog.Flush()
	os.Exit(code)
}

// leaveNoCore keeps a process that crashes from leaving its memory somewhere, for there are keys in
// it. A limit of 0 would stop a core that is a file, and not one that is piped into a program
// (core_pattern); 1 stops both: it is too small for a file, and do_coredump (fs/coredump.c) takes it for a ban of pipes.
func leaveNoCore() {
	const none = 1
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: none, Max: none}); err != nil {
		klog.ErrorS(err, "Forbid cores") // the limit was 0 before, which is as good for files
	}
}

func root() *cobra.Command {
	command := &cobra.Command{
		Use:           "rbd-csi",
		Short:         "CSI driver for Kubernetes on Ceph RBD",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	logging := flag.NewFlagSet("logging", flag.ContinueOnError)
	klog.InitFlags(logging)
	command.PersistentFlags().AddGoFlag(logging.Lookup("v"))
	command.AddCommand(
		controllerCommand(), nodeCommand(),
		workersCommand(), fuseCommand(), krbdCommand(), nbdCommand(), readerCommand(),
		fencesCommand(), doctorCommand(), versionCommand(),
	)
	return command
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(command.OutOrStdout(), "rbd-csi", version)
			return err
		},
	}
}
