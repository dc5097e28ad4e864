// Ceph-folder brings a real Ceph up in a folder and takes it down again, outside of
// tests: what `make ceph` and `make ceph-down` run. It also runs commands in the root of another
// release.
//
//	ceph-folder up [-dir DIR] [-osds N] [-monitors N] [-pools A,B] [-data-pool P] [-namespaces A/X,A/Y] [-root ROOT] ...
//	ceph-folder status [-dir DIR]
//	ceph-folder run [-dir DIR] COMMAND...
//	ceph-folder down [-dir DIR]
//	ceph-folder in-root -root ROOT [-show DIR]... COMMAND...
//
// The root is made by test/ceph/root.sh.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/subcommand"
)

// commands are the sub-commands in the order in which one uses them.
var commands = []subcommand.Command[[]string]{
	{Name: "up", Run: up},
	{Name: "status", Run: status},
	{Name: "run", Run: run},
	{Name: "down", Run: down},
	{Name: "in-root", Run: inRoot},
}

func main() {
	ceph.RunSupervisor()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := subcommand.Dispatch(ctx, os.Args[1:], commands, unread); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "ceph-folder:", err)
		os.Exit(1)
	}
}

// unread leaves a sub-command's arguments to itself.
func unread(_ string, args []string) ([]string, error) { return args, nil }

// newFlags makes a set of flags with the one that every sub-command for a cluster has.
func newFlags(name string) (flags *flag.FlagSet, dir *string) {
	flags = flag.NewFlagSet(name, flag.ExitOnError)
	return flags, flags.String("dir", filepath.Join("build", "ceph"), "the cluster's `folder`")
}

func up(ctx context.Context, args []string) error {
	var opts ceph.Options
	flags, dir := newFlags("up")
	flags.IntVar(&opts.OSDs, "osds", 1, "how many OSDs, 1 to 3")
	flags.IntVar(&opts.Monitors, "monitors", 1, "how many monitors, 1 to 3")
	pools := flags.String("pools", "rbd", "replicated `pools`, separated by commas")
	flags.StringVar(&opts.DataPool, "data-pool", "", "an erasure-coded `pool` for the data of images")
	namespaces := flags.String("namespaces", "", "RADOS namespaces, `POOL/NAMESPACE` separated by commas")
	flags.Int64Var(&opts.OSDBytes, "osd-bytes", 0, "size of each OSD's sparse file (default 10 GiB)")
	flags.StringVar(&opts.Root, "root", "", "run the release of Ceph in this `root`, made by root.sh")
	flags.StringVar(&opts.Address, "address", "127.0.0.1", "the local IPv4 `address` to bind to")
	flags.DurationVar(&opts.ProposeInterval, "propose-interval", 0, "how long monitors gather changes (default: Ceph's 1s)")
	flags.BoolVar(&opts.OldKeys, "old-keys", false, "keys that clients of older releases can use")
	flags.BoolVar(&opts.ManagerModules, "manager-modules", false, "load Ceph's own manager modules")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if opts.Dir, opts.Root, err = absolute(*dir, opts.Root); err != nil {
		return err
	}
	opts.Pools = strings.Split(*pools, ",")
	if opts.Namespaces, err = readNamespaces(*namespaces); err != nil {
		return err
	}
	opts.Detached = true
	cluster, err := ceph.Start(ctx, opts)
	if err != nil {
		return err
	}
	show(cluster)
	return nil
}

// absolute makes the folder and the root, which may be empty, absolute.
func absolute(dir, root string) (string, string, error) {
	dir, err := filepath.Abs(dir)
	if err == nil && root != "" {
		root, err = filepath.Abs(root)
	}
	return dir, root, err
}

func readNamespaces(list string) (map[string][]string, error) {
	namespaces := make(map[string][]string)
	for place := range strings.SplitSeq(list, ",") {
		if place == "" {
			continue
		}
		pool, namespace, found := strings.Cut(place, "/")
		if !found {
			return nil, fmt.Errorf("%q is not POOL/NAMESPACE: %w", place, fault.Invalid)
		}
		namespaces[pool] = append(namespaces[pool], namespace)
	}
	return namespaces, nil
}

// show says how to use a cluster and look around in it.
func show(cluster *ceph.Cluster) {
	fmt.Printf("%s\n\n", cluster)
	fmt.Printf("    export CEPH_CONF=%s\n", cluster.Conf())
	fmt.Printf("    export %s=%s\n\n", ceph.EnvCluster, cluster.Dir())
	fmt.Println("The first is for ceph, rbd and rados (ceph -s, rbd ls, rados df); the second makes")
	fmt.Println("tests use this cluster. The folder holds the daemons' logs. It stays until `make")
	fmt.Println("ceph-down` or a reboot.")
	if cluster.Root() != "" {
		fmt.Printf("\nThe tools of this release: ceph-folder run -dir %s ceph -s\n", cluster.Dir())
	}
}

func status(ctx context.Context, args []string) error {
	cluster, rest, err := attach(ctx, "status", args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("status takes no arguments: %w", fault.Invalid)
	}
	daemons, err := cluster.Daemons(ctx)
	if err != nil {
		return err
	}
	show(cluster)
	for _, daemon := range daemons {
		fmt.Printf("%8d  %s\n", daemon.PID, daemon.Name)
	}
	text, err := cluster.Ceph(ctx, "--connect-timeout", "10", "status")
	fmt.Print(text)
	return err
}

// attach finds the cluster that a sub-command is for.
func attach(ctx context.Context, name string, args []string) (*ceph.Cluster, []string, error) {
	flags, dir := newFlags(name)
	if err := flags.Parse(args); err != nil {
		return nil, nil, err
	}
	path, err := filepath.Abs(*dir)
	if err != nil {
		return nil, nil, err
	}
	cluster, err := ceph.Attach(ctx, path)
	return cluster, flags.Args(), err
}

func run(ctx context.Context, args []string) error {
	cluster, rest, err := attach(ctx, "run", args)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return fmt.Errorf("run needs a command: %w", fault.Invalid)
	}
	cmd, err := cluster.Command(ctx, rest[0], rest[1:]...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	runtime.LockOSThread()
	return cmd.Run()
}

func down(ctx context.Context, args []string) error {
	flags, dir := newFlags("down")
	if err := flags.Parse(args); err != nil {
		return err
	}
	path, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	return ceph.TakeDown(ctx, path)
}
