// Command lab brings up Ceph, Kubernetes and the driver on this machine, and takes them down.
//
//	lab up [-image FILE] [-values FILE]   bring up what is missing, and say how to look around
//	lab status                            say what runs, and how to look around
//	lab down                              delete pods and volumes, take everything down, and list what is left, if anything
//
// All take -build DIR, by default build/kube of the repository around the working directory. It needs what `kube build`,
// `kube images` and `make image` make, and helm, and says what is missing.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"sigs.k8s.io/yaml"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/kernel"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
	"github.com/rbd-csi/rbd-csi/test/subcommand"
)

// commands are the sub-commands in the order in which one uses them.
var commands = []subcommand.Command[lab.Options]{
	{Name: "up", Run: up},
	{Name: "status", Run: status},
	{Name: "down", Run: down},
}

func main() {
	kernel.RunGuest()
	ceph.RunSupervisor()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := subcommand.Dispatch(ctx, os.Args[1:], commands, read); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func read(name string, args []string) (lab.Options, error) {
	places, err := kube.FindPlaces()
	if err != nil {
		return lab.Options{}, err
	}
	opts := lab.Options{Places: places, Progress: os.Stdout}
	flags := flag.NewFlagSet(name, flag.ExitOnError)
	flags.StringVar(&opts.Places.Build, "build", places.Build, "the `folder` for all that is made")
	flags.StringVar(&opts.Image, "image", "", "the `archive` with the driver's image (default: the newest in build/image)")
	flags.IntVar(&opts.Guests, "guests", 0, "the `number` of nodes, each in a small virtual machine (default: this machine is the only node)")
	values := flags.String("values", "", "a `file` with values for the chart, merged over the lab's")
	if err := flags.Parse(args); err != nil {
		return lab.Options{}, err
	}
	if opts.Values, err = readValues(*values); err != nil {
		return lab.Options{}, err
	}
	opts.Places.Build, err = filepath.Abs(opts.Places.Build)
	return opts, err
}

// readValues reads values of the chart; no file is none.
func readValues(path string) (map[string]any, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		return nil, fmt.Errorf("values %s: %w", path, err)
	}
	return values, nil
}

func up(ctx context.Context, opts lab.Options) error {
	l, err := lab.Up(ctx, opts)
	if err != nil {
		return err
	}
	show(l, opts)
	return nil
}

// show says how to use a lab and look around in it.
func show(l *lab.Lab, opts lab.Options) {
	fmt.Printf("\nKubernetes %s with rbd-csi, on Ceph %s\n\n", kube.Version, l.Ceph.Version())
	fmt.Printf("    export KUBECONFIG=%s\n", l.Kube.Kubeconfig())
	fmt.Printf("    export CEPH_CONF=%s\n", l.Ceph.Conf())
	fmt.Printf("    export PATH=%s:$PATH\n", l.Kube.Binaries())
	fmt.Printf("    kubectl get pods --all-namespaces\n")
	fmt.Printf("    rbd ls -l %s\n\n", lab.Pool)
	fmt.Printf("The StorageClass %s is the default. To make tests use this lab:\n\n", lab.Class)
	fmt.Printf("    export %s=%s\n\n", lab.EnvBuild, opts.Places.Build)
	fmt.Println("It stays until `lab down` or a reboot.")
}

func status(ctx context.Context, opts lab.Options) error {
	l, err := lab.Open(ctx, opts.Places)
	if err != nil {
		return err
	}
	show(l, opts)
	for _, args := range [][]string{
		{"get", "nodes,csinodes"}, {"get", "pods", "--all-namespaces", "--output", "wide"}, {"get", "persistentvolumes"},
	} {
		out, err := l.Kube.Kubectl(ctx, nil, args...)
		if err != nil {
			return err
		}
		fmt.Printf("\n%s", out)
	}
	out, err := l.Ceph.RBD(ctx, "ls", "-l", lab.Pool)
	fmt.Printf("\n%s", out)
	return err
}

func down(ctx context.Context, opts lab.Options) error {
	return lab.Down(ctx, opts.Places, opts.Progress)
}
