package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// A Guest is a running kernel.
type Guest struct {
	number  int
	network Network
	log     string
	// identity are those of its process's arguments by which it is known.
	identity []string
	// group is its process group, whose number is that of its first process.
	group   int
	process *exec.Cmd     // nil for one of another process
	ended   chan struct{} // nil likewise
	took    time.Duration
}

// GuestOptions say what guest to boot.
type GuestOptions struct {
	// Number is 1 to mostGuests; each running guest of a network has its own.
	Number int
	// Memory is how much it has, as the kernel's mem=; empty: 768M.
	Memory string
	// Folder is where its console's output goes, the file guestN.log, and where it is found again.
	Folder string
	// Network is where its interface is; empty: the network of this package's tests.
	Network Network
	// Disk is a file of this machine that is the guest's /dev/ubda; empty: it has no disk.
	Disk string
	// Environment is put into the environment of the guest's process on this machine, for whoever looks for it there.
	Environment []string
}

func (o GuestOptions) withDefaults() GuestOptions {
	o.Memory = cmp.Or(o.Memory, "768M")
	o.Network = cmp.Or(o.Network, ownNetwork)
	return o
}

func (o GuestOptions) guest() *Guest {
	return &Guest{number: o.Number, network: o.Network, log: o.file() + ".log", identity: o.identity()}
}

// file is where what a guest has in the folder begins with; the kernel makes a folder of that name.
func (o GuestOptions) file() string { return filepath.Join(o.Folder, o.name()) }
func (o GuestOptions) name() string { return fmt.Sprintf("guest%d", o.Number) }

// mostGuests is how many guests of a network can run at once.
const mostGuests = 9

// bootTime bounds a boot. It takes 2 to 5 s on two idle cores.
const bootTime = time.Minute

// Boot starts a guest and returns when it runs commands. It stays when this process ends.
func Boot(ctx context.Context, options GuestOptions) (*Guest, error) {
	options = options.withDefaults()
	found, err := findParts()
	if err != nil {
		return nil, err
	}
	g := options.guest()
	if err := g.network.connect(g.number); err != nil {
		return nil, fmt.Errorf("boot guest %d: %w", g.number, err)
	}
	begun := time.Now()
	if err := g.start(found, options); err != nil {
		return nil, fmt.Errorf("boot guest %d: %w", g.number, errors.Join(err, g.network.remove(g.number)))
	}
	if err := g.await(ctx); err != nil {
		return nil, fmt.Errorf("boot guest %d: %w: %s", g.number, err, errors.Join(g.Kill(), errors.New(g.Console())))
	}
	g.took = time.Since(begun)
	return g, nil
}

func (g *Guest) start(found parts, options GuestOptions) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	console, err := os.Create(g.log)
	if err != nil {
		return err
	}
	defer console.Close()
	// gro=1: without it frames are dropped that are larger than the interface's, and each costs a
	// retransmission. The address of the interface is fixed because a random one may be refused.
	g.process = exec.Command(found.linux, append(slices.Clone(g.identity),
		"mem="+options.Memory, "rootfstype=hostfs", "rootflags=/", "ro", "init="+self, "seccomp=on",
		fmt.Sprintf("vec0:transport=tap,ifname=%s,mac=52:54:00:77:01:%02x,depth=128,gro=1", g.network.Interface(g.number), g.number),
		"con=null", "con0=null,fd:1", "panic=-1",
		envAddress+"="+g.Address(), envMachine+"="+g.network.Machine, envModules+"="+found.modules)...)
	if options.Disk != "" {
		g.process.Args = append(g.process.Args, "ubd0="+options.Disk)
	}
	g.process.Env = append(append(os.Environ(), "TMPDIR=/dev/shm"), options.Environment...) // the first for the guest's memory
	g.process.Stdout, g.process.Stderr = console, console
	// A group of its own: it is many processes. And a session of its own: it outlives a terminal.
	g.process.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := g.process.Start(); err != nil {
		return err
	}
	g.group, g.ended = g.process.Process.Pid, make(chan struct{})
	go func() {
		_ = g.process.Wait() // how it ended is in ProcessState
		close(g.ended)
	}()
	return nil
}

// await waits until the guest runs a command.
func (g *Guest) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTime, fmt.Errorf("it runs no command after %s", bootTime))
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		if err := g.Run(ctx, io.Discard, Command{Arguments: []string{"true"}}); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-g.ended:
			return fmt.Errorf("it ended, %s", g.process.ProcessState)
		case <-ticker.C:
		}
	}
}

// String says what runs, and how long it took to boot.
func (g *Guest) String() string {
	return fmt.Sprintf("guest %d at %s, up in %.1f s", g.number, g.Address(), g.took.Seconds())
}

// Address returns the guest's address.
func (g *Guest) Address() string { return g.network.Address(g.number) }

// Console returns the last lines of what the guest's kernel and init have said.
func (g *Guest) Console() string {
	content, err := os.ReadFile(g.log)
	if err != nil {
		return err.Error()
	}
	const most = 4000
	return string(content[max(0, len(content)-most):])
}
