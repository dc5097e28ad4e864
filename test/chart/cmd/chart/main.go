// Chart works on the Helm chart without a cluster and without the command helm.
//
//	chart generate [-top DIR]                                    make deploy/kubernetes and the table of values anew
//	chart lint     [-top DIR] [-values FILE]                     helm lint --strict
//	chart render   [-top DIR] [-values FILE] [-name N] [-namespace N]   helm template
//
// DIR is the top of the repository.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rbd-csi/rbd-csi/test/chart"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("say what: generate, lint or render")
	}
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	top := flags.String("top", ".", "top of the repository")
	file := flags.String("values", "", "file of values; none: the chart's defaults")
	release := chart.Release{}
	flags.StringVar(&release.Name, "name", "rbd-csi", "name of the release")
	flags.StringVar(&release.Namespace, "namespace", "rbd-csi", "its namespace")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if *file != "" {
		values, err := chart.ReadValues(*file)
		if err != nil {
			return err
		}
		release.Values = values
	}
	directory := filepath.Join(*top, chart.Directory)
	switch args[0] {
	case "generate":
		return chart.Generate(*top)
	case "lint":
		return chart.Lint(directory, release)
	case "render":
		return render(directory, release)
	default:
		return fmt.Errorf("%q is not one of generate, lint and render", args[0])
	}
}

func render(directory string, release chart.Release) error {
	texts, err := chart.Render(directory, release)
	if err != nil {
		return err
	}
	_, err = fmt.Print(chart.Manifests(texts))
	return err
}
