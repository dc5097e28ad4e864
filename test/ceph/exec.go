package ceph

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A tools runs Ceph's programs: those of this machine, or those below a root.
type tools struct {
	// root is the root directory the programs see; empty means ours. A handle reaches
	// the supervisor's mounts through /proc/PID/root.
	root string
	// env is the whole environment of the programs.
	env []string
}

// programs are all that we run, with the Debian package that has each.
var programs = []struct{ name, pkg string }{
	{"ceph", "ceph-common"},
	{"ceph-authtool", "ceph-common"},
	{"ceph-mgr", "ceph-mgr"},
	{"ceph-mon", "ceph-mon"},
	{"ceph-osd", "ceph-osd"},
	{"crushtool", "ceph-base"},
	{"monmaptool", "ceph-base"},
	{"rados", "ceph-common"},
	{"rbd", "ceph-common"},
}

// environment is what Ceph's programs get: what they need to find each other, and
// nothing of the caller's that changes them (CEPH_ARGS, CEPH_CONF). The cache limit
// keeps an OSD some 100 MB smaller.
func environment() []string {
	env := []string{"LANG=C.UTF-8", "TCMALLOC_MAX_TOTAL_THREAD_CACHE_BYTES=16777216"}
	for _, name := range []string{"PATH", "HOME", "TMPDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// check says with fault.Unsupported which packages are missing.
func (t tools) check() error {
	var missing []string
	for _, program := range programs {
		if _, err := t.path(program.name); err != nil && !slices.Contains(missing, program.pkg) {
			missing = append(missing, program.pkg)
		}
	}
	switch {
	case len(missing) == 0:
		return nil
	case t.root != "":
		return fmt.Errorf("no Ceph below %s (make it by test/ceph/root.sh): %w", t.root, fault.Unsupported)
	default:
		return fmt.Errorf("no Ceph on this machine (on Debian: apt-get install --no-install-recommends %s): %w",
			strings.Join(missing, " "), fault.Unsupported)
	}
}

// path finds a program as those that run it will see it.
func (t tools) path(name string) (string, error) {
	if t.root == "" {
		return exec.LookPath(name)
	}
	for _, dir := range []string{"/usr/bin", "/usr/sbin"} {
		if _, err := os.Stat(filepath.Join(t.root, dir, name)); err == nil {
			return filepath.Join(dir, name), nil
		}
	}
	return "", fmt.Errorf("%s below %s: %w", name, t.root, fault.NotFound)
}

// command prepares a program that ends when ctx or this process does.
func (t tools) command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	path, err := t.path(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = t.env
	cmd.WaitDelay = 10 * time.Second // for what is still in the pipe: a busy machine reads late
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: t.root, Pdeathsig: syscall.SIGKILL}
	if t.root != "" {
		cmd.Dir = "/"
	}
	return cmd, nil
}

// run runs a program to its end and returns its standard output. The error has the
// program's last words.
func (t tools) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd, err := t.command(ctx, name, args...)
	if err != nil {
		return "", err
	}
	var out, errout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errout
	if err := runLocked(cmd); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w%s", name, strings.Join(args, " "), ended(ctx, err), lastLines(errout.String()))
	}
	return out.String(), nil
}

// runLocked is cmd.Run for commands with a parent-death signal. The kernel sends
// that signal when the thread that forked ends, not the process, so the thread has to
// stay until the command is done.
func runLocked(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// ended tells a program that was killed because ctx ended from one that failed.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// lastLines returns the last lines of a program's output, to be put at the end of an
// error.
func lastLines(text string) string {
	const most = 5
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
	if len(lines) == 0 {
		return ""
	}
	return ": " + strings.Join(lines[max(0, len(lines)-most):], "; ")
}
