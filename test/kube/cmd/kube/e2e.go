package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/images"
	"github.com/rbd-csi/rbd-csi/test/kube/suite"
)

func addSuiteFlags(flags *flag.FlagSet, opts *suite.Options) {
	flags.StringVar(&opts.Driver, "testdriver", "", "the `file` that says what the driver can do")
	flags.StringVar(&opts.Focus, "focus", "", "only specs whose names have this `regexp` after External.Storage")
	flags.StringVar(&opts.Skip, "skip", "", "no specs whose names have this `regexp`")
	flags.IntVar(&opts.Procs, "procs", 4, "how many specs run at once")
	flags.DurationVar(&opts.Timeout, "timeout", time.Hour, "how long all may take")
}

// runSuite runs Kubernetes' storage suite against the cluster that is up.
func runSuite(ctx context.Context, c call) error {
	if c.specs.Driver == "" {
		return fmt.Errorf("e2e wants -testdriver: %w", fault.Invalid)
	}
	cluster, err := kube.Open(c.places.Options().Folder)
	if err != nil {
		return err
	}
	opts := c.specs
	opts.Folder, opts.Progress = filepath.Join(c.places.Build, "e2e"), os.Stdout
	if opts.Driver, err = filepath.Abs(opts.Driver); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(c.places.Options().Images, images.SuiteFolder, "*.tar"))
	if err != nil {
		return err
	}
	if err := cluster.Import(ctx, archives...); err != nil {
		return err
	}
	begun := time.Now()
	summary, err := suite.Run(ctx, cluster, opts)
	if err != nil {
		return err
	}
	fmt.Printf("\nkube: the suite took %.0f s\n", time.Since(begun).Seconds())
	summary.Write(os.Stdout)
	if len(summary.Failed) > 0 {
		return fmt.Errorf("%d specs failed, see %s: %w", len(summary.Failed), opts.Folder, fault.Internal)
	}
	return nil
}
