package ceph

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A daemon is one life of a monitor, manager or OSD: a child of the supervisor.
type daemon struct {
	name  string
	admin admin
	cmd   *exec.Cmd
	// ended is closed when the process has been waited for.
	ended chan struct{}
}

// startDaemon starts the daemon named as in cephx (mon.a, mgr.x, osd.0). What it says
// on its standard output and error is added to NAME.out in the folder.
func startDaemon(admin admin, name string) (*daemon, error) {
	kind, id, ok := strings.Cut(name, ".")
	if !ok || strings.ContainsRune(name, filepath.Separator) {
		return nil, fmt.Errorf("a daemon's name: %w", fault.Invalid)
	}
	cmd, err := admin.tools.command(context.Background(), "ceph-"+kind, "-f", "-i", id, "--conf", admin.conf())
	if err != nil {
		return nil, err
	}
	output, err := os.OpenFile(filepath.Join(admin.dir, name+".out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	d := &daemon{name: name, admin: admin, cmd: cmd, ended: make(chan struct{})}
	return d, d.start()
}

// start starts the process on a thread that stays until the process has ended; see
// runLocked.
func (d *daemon) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := d.cmd.Start()
		started <- err
		if err == nil {
			_ = d.cmd.Wait()
			close(d.ended)
		}
	}()
	return <-started
}

// pid is 0 when the daemon has ended.
func (d *daemon) pid() int {
	select {
	case <-d.ended:
		return 0
	default:
		return d.cmd.Process.Pid
	}
}

func (d *daemon) signal(sig syscall.Signal) error {
	err := d.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("daemon %q does not run: %w", d.name, fault.Unavailable)
	}
	return err
}

func (d *daemon) lastWords() string {
	text, err := os.ReadFile(filepath.Join(d.admin.dir, d.name+".out"))
	if err != nil {
		return ""
	}
	return lastLines(string(text))
}

// ask puts a question to the daemon's admin socket.
func (d *daemon) ask(ctx context.Context, answer any, prefix string, args ...any) error {
	return ask(ctx, socketOf(d.admin.dir, d.name), command(prefix, args...), answer)
}

// command builds a command from its prefix and pairs of argument and value.
func command(prefix string, args ...any) map[string]any {
	command := map[string]any{"prefix": prefix}
	for i := 0; i+1 < len(args); i += 2 {
		command[args[i].(string)] = args[i+1]
	}
	return command
}
