// Command kube builds a Kubernetes of one node and its images, and runs it in a folder: what
// `make kube` and `make kube-down` run.
//
//	kube build [-suite]     compile the components, the sidecars, and Kubernetes' storage suite
//	kube images [-suite]    make the images
//	kube up                 bring the cluster up, and say how to look around
//	kube status             say whether it runs, and how to look around
//	kube import FILE...     make images known to the node
//	kube kubelet stop|start stop the kubelet, or start it again
//	kube e2e -testdriver FILE [-focus REGEXP] [-skip REGEXP] [-procs N] [-timeout D]
//	                        run Kubernetes' storage suite, and sum up what became of its specs
//	kube down               take the cluster down, and list what is left, if anything
//
// All take -build DIR, by default build/kube of the repository around the working directory.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/build"
	"github.com/rbd-csi/rbd-csi/test/kube/images"
	"github.com/rbd-csi/rbd-csi/test/kube/suite"
	"github.com/rbd-csi/rbd-csi/test/subcommand"
)

// A call is what a sub-command was given.
type call struct {
	places kube.Places
	suite  bool
	specs  suite.Options
	args   []string
}

// commands are the sub-commands in the order in which one uses them.
var commands = []subcommand.Command[call]{
	{Name: "build", Run: buildAll},
	{Name: "images", Run: makeImages},
	{Name: "up", Run: up},
	{Name: "status", Run: status},
	{Name: "import", Run: importImages},
	{Name: "kubelet", Run: switchKubelet},
	{Name: "e2e", Run: runSuite},
	{Name: "down", Run: down},
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := subcommand.Dispatch(ctx, os.Args[1:], commands, read); err != nil {
		fmt.Fprintln(os.Stderr, "kube:", err)
		os.Exit(1)
	}
}

func read(name string, args []string) (call, error) {
	places, err := kube.FindPlaces()
	if err != nil {
		return call{}, err
	}
	c := call{places: places}
	flags := flag.NewFlagSet(name, flag.ExitOnError)
	flags.StringVar(&c.places.Build, "build", places.Build, "the `folder` for all that is made")
	flags.BoolVar(&c.suite, "suite", false, "what Kubernetes' storage suite needs, too")
	if name == "e2e" {
		addSuiteFlags(flags, &c.specs)
	}
	if err := flags.Parse(args); err != nil {
		return call{}, err
	}
	c.args = flags.Args()
	c.places.Build, err = filepath.Abs(c.places.Build)
	return c, err
}

func buildAll(ctx context.Context, c call) error {
	return build.Builder{Module: c.places.Module, Folder: c.places.Build, Suite: c.suite, Progress: os.Stdout}.Build(ctx)
}

func makeImages(ctx context.Context, c call) error {
	opts := c.places.Options()
	return images.Maker{
		Binaries: opts.Binaries, Folder: opts.Images, Packages: c.places.Packages(),
		Suite: c.suite, Progress: os.Stdout,
	}.Make(ctx)
}

func up(ctx context.Context, c call) error {
	opts := c.places.Options()
	opts.Progress = os.Stdout
	cluster, err := kube.Up(ctx, opts)
	if err != nil {
		return err
	}
	show(cluster)
	return nil
}

// show says how to use a cluster and look around in it.
func show(cluster *kube.Cluster) {
	fmt.Printf("\nKubernetes %s, node %s at %s\n\n", kube.Version, cluster.Node(), cluster.Address())
	fmt.Printf("    export KUBECONFIG=%s\n", cluster.Kubeconfig())
	fmt.Printf("    export PATH=%s:$PATH\n", cluster.Binaries())
	fmt.Printf("    kubectl get pods --all-namespaces\n\n")
	fmt.Printf("Logs are in %s. To make tests use this cluster:\n\n", filepath.Join(cluster.Folder(), "log"))
	fmt.Printf("    export %s=%s\n\n", kube.EnvCluster, cluster.Folder())
	fmt.Println("It stays until `make kube-down` or a reboot.")
}

func status(ctx context.Context, c call) error {
	cluster, err := kube.Open(c.places.Options().Folder)
	if err != nil {
		return err
	}
	show(cluster)
	out, err := cluster.Kubectl(ctx, nil, "get", "nodes,pods", "--all-namespaces", "-o", "wide")
	fmt.Printf("\n%s", out)
	return err
}

func importImages(ctx context.Context, c call) error {
	cluster, err := kube.Open(c.places.Options().Folder)
	if err != nil {
		return err
	}
	return cluster.Import(ctx, c.args...)
}

func switchKubelet(ctx context.Context, c call) error {
	cluster, err := kube.Open(c.places.Options().Folder)
	if err != nil {
		return err
	}
	switch strings.Join(c.args, " ") {
	case "stop":
		return cluster.StopKubelet(ctx)
	case "start":
		return cluster.StartKubelet(ctx)
	}
	return fmt.Errorf("kubelet wants stop or start: %w", fault.Invalid)
}

func down(ctx context.Context, c call) error {
	folder := c.places.Options().Folder
	if err := kube.Down(ctx, folder, os.Stdout); err != nil {
		return err
	}
	left, err := kube.Left(ctx, folder)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind: %s: %w", strings.Join(left, ", "), fault.Internal)
	}
	return err
}
