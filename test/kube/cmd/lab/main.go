// Command lab brings up Ceph, Kubernetes and the driver on this machine, and takes them down.
//
//	lab up [-guests N] [-image FILE] [-values FILE]
//	              bring up what is missing, and say how to look around
//	lab status    say what runs, and how to look around
//	lab node NAME kill|boot|freeze|thaw|cut-off|rejoin
//	              do that to a node in a guest
//	lab node NAME run COMMAND...
//	              run a command in its guest
//	lab down      delete pods and volumes, take everything down, and list what is left, if anything
//
// With -guests N there are N nodes, each in a small virtual machine whose kernel has rbd, and which can be lost. Otherwise this machine
// is the only node.
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

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/kernel"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
	"github.com/rbd-csi/rbd-csi/test/subcommand"
)

// A call is what a sub-command was given.
type call struct {
	lab.Options

	args []string
}

// commands are the sub-commands in the order in which one uses them.
var commands = []subcommand.Command[call]{
	{Name: "up", Run: up},
	{Name: "status", Run: status},
	{Name: "node", Run: doToNode},
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

func read(name string, args []string) (call, error) {
	places, err := kube.FindPlaces()
	if err != nil {
		return call{}, err
	}
	opts := call{Options: lab.Options{Places: places, Progress: os.Stdout}}
	flags := flag.NewFlagSet(name, flag.ExitOnError)
	flags.StringVar(&opts.Places.Build, "build", places.Build, "the `folder` for all that is made")
	flags.StringVar(&opts.Image, "image", "", "the `archive` with the driver's image (default: the newest in build/image)")
	flags.IntVar(&opts.Guests, "guests", 0, "how `many` nodes there are, each in a guest (0: this machine is the only node)")
	values := flags.String("values", "", "a `file` with values for the chart, merged over the lab's")
	if err := flags.Parse(args); err != nil {
		return call{}, err
	}
	opts.args = flags.Args()
	if opts.Values, err = readValues(*values); err != nil {
		return call{}, err
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

func up(ctx context.Context, opts call) error {
	l, err := lab.Up(ctx, opts.Options)
	if err != nil {
		return err
	}
	show(l, opts)
	return nil
}

// show says how to use a lab and look around in it.
func show(l *lab.Lab, opts call) {
	fmt.Printf("\nKubernetes %s with rbd-csi, on Ceph %s\n\n", kube.Version, l.Ceph.Version())
	fmt.Printf("    export KUBECONFIG=%s\n", l.Kube.Kubeconfig())
	fmt.Printf("    export CEPH_CONF=%s\n", l.Ceph.Conf())
	fmt.Printf("    export PATH=%s:$PATH\n", l.Kube.Binaries())
	fmt.Printf("    kubectl get pods --all-namespaces\n")
	fmt.Printf("    rbd ls -l %s\n\n", lab.Pool)
	showGuests(l)
	fmt.Printf("The StorageClass %s is the default. To make tests use this lab:\n\n", lab.Class)
	fmt.Printf("    export %s=%s\n\n", lab.EnvBuild, opts.Places.Build)
	fmt.Println("It stays until `lab down` or a reboot.")
}

// showGuests says how to get into nodes in guests, and how to lose them.
func showGuests(l *lab.Lab) {
	guests := l.Kube.Guests()
	if len(guests) == 0 {
		return
	}
	last := guests[len(guests)-1].Name()
	fmt.Printf("The nodes are in guests; %s is one of them:\n\n", last)
	fmt.Printf("    build/lab node %s run ls /sys/bus/rbd/devices\n", last)
	fmt.Printf("    build/lab node %s kill       # or freeze, thaw, cut-off, rejoin\n", last)
	fmt.Printf("    kubectl taint node %s node.kubernetes.io/out-of-service=lost:NoExecute\n", last)
	fmt.Printf("    build/lab node %s boot\n", last)
	fmt.Printf("    kubectl taint node %s node.kubernetes.io/out-of-service-\n\n", last)
}

func doToNode(ctx context.Context, opts call) error {
	if len(opts.args) < 2 {
		return fmt.Errorf("name a node and what to do to it: %w", fault.Invalid)
	}
	l, err := lab.Open(ctx, opts.Places)
	if err != nil {
		return err
	}
	node, err := l.Kube.Guest(opts.args[0])
	if err != nil {
		return err
	}
	switch what := opts.args[1]; what {
	case "kill":
		return node.Kill()
	case "boot":
		return node.Boot(ctx)
	case "freeze":
		return node.Freeze()
	case "thaw":
		return node.Thaw()
	case "cut-off":
		return node.CutOff()
	case "rejoin":
		return node.Rejoin()
	case "run":
		out, err := node.Run(ctx, opts.args[2:]...)
		fmt.Print(out)
		return err
	default:
		return fmt.Errorf("%s is nothing that can be done to a node: %w", what, fault.Invalid)
	}
}

func status(ctx context.Context, opts call) error {
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

func down(ctx context.Context, opts call) error {
	return lab.Down(ctx, opts.Places, opts.Progress)
}
