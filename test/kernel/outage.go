package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// identity are the arguments by which a guest's process is known. The kernel keeps its number and its control socket in the
// folder of this name, and removes what a killed one has left there.
func (o GuestOptions) identity() []string {
	return []string{"umid=" + o.name(), "uml_dir=" + o.Folder}
}

// Find returns the running guest that was booted with these options, by this process or another. fault.NotFound means that none runs.
func Find(options GuestOptions) (*Guest, error) {
	options = options.withDefaults()
	path := filepath.Join(options.file(), "pid")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("guest %d was not booted: %w", options.Number, fault.NotFound)
	}
	if err != nil {
		return nil, err
	}
	g := options.guest()
	if g.group, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", path, fault.Invalid, err)
	}
	if !g.runs() {
		return nil, fmt.Errorf("guest %d has ended: %w", g.number, fault.NotFound)
	}
	return g, nil
}

// runs says whether the process of that number is the guest's. One that has ended and was not waited for has no arguments.
func (g *Guest) runs() bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", g.group))
	return err == nil && strings.Contains(string(line), "\x00"+strings.Join(g.identity, "\x00")+"\x00")
}

// endTime bounds the end of a process that was killed.
const endTime = 10 * time.Second

// Kill ends the guest as a power failure does, and takes its interface away. The guest can be booted again.
func (g *Guest) Kill() error {
	err := g.signal(unix.SIGKILL)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	return errors.Join(err, g.awaitEnd(), g.network.remove(g.number))
}

// awaitEnd waits until the guest's process is gone.
func (g *Guest) awaitEnd() error {
	if g.ended != nil {
		<-g.ended
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		if !g.runs() {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end guest %d: it is there after %s: %w", g.number, endTime, fault.Unavailable)
		case <-ticker.C:
		}
	}
}

// Freeze stops the guest in its tracks, until Thaw. It goes on where it was, and finds the clock ahead.
func (g *Guest) Freeze() error { return g.signalled("freeze", unix.SIGSTOP) }

// Thaw lets a frozen guest go on.
func (g *Guest) Thaw() error { return g.signalled("thaw", unix.SIGCONT) }

func (g *Guest) signalled(what string, number syscall.Signal) error {
	if err := g.signal(number); err != nil {
		return fmt.Errorf("%s guest %d: %w", what, g.number, err)
	}
	return nil
}

func (g *Guest) signal(number syscall.Signal) error { return unix.Kill(-g.group, number) }

// CutOff separates the guest from everybody else, until Rejoin: it and its neighbours hear nothing of each other any more. Its
// interface is left up, because one that was down does not work again.
func (g *Guest) CutOff() error { return ip("link set %s nomaster", g.network.Interface(g.number)) }

// Rejoin connects it again.
func (g *Guest) Rejoin() error {
	return ip("link set %s master %s", g.network.Interface(g.number), g.network.Bridge)
}
