package kernel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/rbd-csi/rbd-csi/test/driver"
)

// nodeFolder is where a node has its socket, its run directory, and what kubelet has, in its guest.
const nodeFolder = "/run/node"

// A Node is the driver's node plug-in in a guest, which is called from this machine.
type Node struct {
	*driver.Process

	guest   *Guest
	command Command
	log     string

	mutex sync.Mutex
	life  *life
}

// life is one life of a process in a guest.
type life struct {
	pid   int
	ended chan struct{}
}

// NodeOptions say what node to run.
type NodeOptions struct {
	Binary   string // of the driver; guests see this machine's files
	Name     string
	Clusters string   // the directory for --clusters
	Folder   string   // on this machine, for the log and the socket
	Flags    []string // further ones
}

// StartNode starts a node in a guest, and returns when it answers. What it needs on this machine
// ends with ctx.
func StartNode(ctx context.Context, g *Guest, options NodeOptions) (*Node, error) {
	if err := os.MkdirAll(options.Folder, 0o755); err != nil {
		return nil, err
	}
	socket, there := filepath.Join(options.Folder, options.Name+".sock"), nodeFolder+"/csi.sock"
	if _, err := g.Relay(ctx, socket, there); err != nil {
		return nil, err
	}
	process, err := driver.Elsewhere(options.Name, nodeFolder, socket, folders{g})
	if err != nil {
		return nil, err
	}
	n := &Node{Process: process, guest: g, log: filepath.Join(options.Folder, options.Name+".log")}
	n.command.Arguments = append([]string{
		options.Binary, "node", "--node-name", options.Name, "--run-directory", nodeFolder + "/run",
		"--endpoint", "unix://" + there, "--clusters", options.Clusters, "-v=4",
	}, options.Flags...)
	return n, n.Start(ctx)
}

// Start starts the node's process in its guest, and returns when it answers.
func (n *Node) Start(ctx context.Context) error {
	if err := (folders{n.guest}).MkdirAll(ctx, nodeFolder+"/run"); err != nil {
		return err
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	started, ended, failed := make(chan int, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(ended)
		defer log.Close()
		failed <- n.guest.run(context.WithoutCancel(ctx), log, n.command, func(pid int) { started <- pid })
	}()
	select {
	case pid := <-started:
		n.mutex.Lock()
		n.life = &life{pid: pid, ended: ended}
		n.mutex.Unlock()
	case err := <-failed:
		return fmt.Errorf("start node %s in guest %d: %w", n.Name, n.guest.number, err)
	}
	answered := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { answered <- n.Answers(ctx) }()
	select {
	case err := <-answered:
		return err
	case err := <-failed:
		return fmt.Errorf("start node %s in guest %d: it ended: %w: %s", n.Name, n.guest.number, err, n.Said())
	}
}

// Kill ends the process by SIGKILL, and returns when it is gone.
func (n *Node) Kill(ctx context.Context) error {
	n.mutex.Lock()
	life := n.life
	n.mutex.Unlock()
	if life == nil {
		return nil
	}
	if _, err := n.guest.Output(ctx, "kill", "-9", strconv.Itoa(life.pid)); err != nil {
		return err
	}
	<-life.ended
	return nil
}

// On says that the guest was booted again.
func (n *Node) On(g *Guest) { n.guest = g }

// Said returns the end of what the node has logged.
func (n *Node) Said() string {
	content, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	const most = 6000
	return string(content[max(0, len(content)-most):])
}

// folders are what kubelet makes and removes in a guest.
type folders struct{ guest *Guest }

func (f folders) Mkdir(path string) error { return f.MkdirAll(context.Background(), path) }

func (f folders) RemoveAll(path string) error {
	_, err := f.guest.Output(context.Background(), "rm", "-rf", "--one-file-system", path)
	return err
}

func (f folders) Kind(path string) (string, error) {
	kind, err := f.guest.Output(context.Background(), "sh", "-c",
		`if [ -d "$0" ]; then echo directory; elif [ -f "$0" ]; then echo file; elif [ -e "$0" ]; then echo other; else echo not_found; fi`, path)
	return strings.TrimSpace(kind), err
}

func (f folders) MkdirAll(ctx context.Context, path string) error {
	_, err := f.guest.Output(ctx, "mkdir", "-p", path)
	return err
}

func (f folders) RemoveEmpty(ctx context.Context, path string) error {
	said, err := f.guest.Output(ctx, "sh", "-c", `[ ! -e "$0" ] || rmdir "$0"`, path)
	if err != nil {
		return fmt.Errorf("after an OK: %w: %s", err, said)
	}
	return nil
}
