package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A Guest is a running kernel.
type Guest struct {
	number  int
	log     string
	process *exec.Cmd
	ended   chan struct{}
	took    time.Duration
}

// GuestOptions say what guest to boot.
type GuestOptions struct {
	// Number is 1 to mostGuests; each running guest has its own.
	Number int
	// Memory is how much it has, as the kernel's mem=; empty: 768M.
	Memory string
	// Folder is where its console's output goes, the file guestN.log.
	Folder string
}

// mostGuests is how many guests can run at once.
const mostGuests = 9

// bootTime bounds a boot. It takes 2 to 5 s on two idle cores.
const bootTime = time.Minute

// Boot starts a guest and returns when it runs commands.
func Boot(ctx context.Context, options GuestOptions) (*Guest, error) {
	found, err := findParts()
	if err != nil {
		return nil, err
	}
	if options.Memory == "" {
		options.Memory = "768M"
	}
	tap := fmt.Sprintf("tap%d", options.Number)
	for _, arguments := range []string{"tuntap add dev " + tap + " mode tap", "link set " + tap + " master br0 up"} {
		if err := run("ip", strings.Fields(arguments)...); err != nil {
			return nil, fmt.Errorf("boot guest %d: %w", options.Number, err)
		}
	}
	g := &Guest{number: options.Number, log: filepath.Join(options.Folder, fmt.Sprintf("guest%d.log", options.Number)), ended: make(chan struct{})}
	begun := time.Now()
	if err := g.start(found, options, tap); err != nil {
		return nil, fmt.Errorf("boot guest %d: %w", g.number, err)
	}
	if err := g.await(ctx); err != nil {
		return nil, fmt.Errorf("boot guest %d: %w: %s", g.number, err, errors.Join(g.Kill(), errors.New(g.Console())))
	}
	g.took = time.Since(begun)
	return g, nil
}

func (g *Guest) start(found parts, options GuestOptions, tap string) error {
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
	g.process = exec.Command(found.linux,
		"mem="+options.Memory, "umid=guest"+fmt.Sprint(g.number), "uml_dir="+filepath.Dir(g.log),
		"rootfstype=hostfs", "rootflags=/", "ro", "init="+self, "seccomp=on",
		fmt.Sprintf("vec0:transport=tap,ifname=%s,mac=52:54:00:77:01:%02x,depth=128,gro=1", tap, g.number),
		"con=null", "con0=null,fd:1", "panic=-1",
		envAddress+"="+guestAddress(g.number), envModules+"="+found.modules)
	g.process.Env = append(os.Environ(), "TMPDIR=/dev/shm") // for the guest's memory
	g.process.Stdout, g.process.Stderr = console, console
	// A group of its own: it is many processes.
	g.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := g.process.Start(); err != nil {
		return err
	}
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
func (g *Guest) Address() string { return guestAddress(g.number) }

// Console returns the last lines of what the guest's kernel and init have said.
func (g *Guest) Console() string {
	content, err := os.ReadFile(g.log)
	if err != nil {
		return err.Error()
	}
	const most = 4000
	return string(content[max(0, len(content)-most):])
}

// Kill ends the guest as a power failure does, and takes its tap away. The guest can be booted again.
func (g *Guest) Kill() error {
	err := syscall.Kill(-g.process.Process.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		err = nil
	}
	<-g.ended
	return errors.Join(err, run("ip", "link", "del", fmt.Sprintf("tap%d", g.number)))
}
