package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// envFolder stands in the environment of every process of a cluster, with the cluster's
// folder, and is passed on to their children: containerd's shims, and whatever the kubelet
// calls. Processes in containers do not have it; they are known by their cgroup.
const envFolder = "RBD_CSI_TEST_KUBE_FOLDER"

const (
	pollInterval = 50 * time.Millisecond
	// grace is how long a process has to end before it is killed.
	grace = 10 * time.Second
	// lastWords is how much of a log an error quotes.
	lastWords = 2000
)

// poll calls done until it returns true or an error, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", fault.Unavailable, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// start starts a component that outlives this process. Its name is its command's.
func (s *state) start(name, path string, args ...string) error {
	output, err := os.OpenFile(s.log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer output.Close()
	cmd := exec.Command(path, args...)
	cmd.Dir = s.Folder
	cmd.Env = []string{"PATH=" + s.path(), "HOME=/root", envFolder + "=" + s.Folder}
	cmd.Stdout, cmd.Stderr = output, output
	// A session of its own, so that Ctrl-C in a terminal reaches only who brings the cluster up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	// Nobody else takes the status as long as this process lives; afterwards init does.
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	return s.awaitSight(name, cmd.Process.Pid, ended)
}

// awaitSight waits until a process can be found. The kernel lets a parent go on (it closes the
// descriptors marked so) a little before it shows the new program's environment.
func (s *state) awaitSight(name string, pid int, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	return poll(ctx, func() (bool, error) {
		select {
		case <-ended:
			return false, fmt.Errorf("%s has ended: %w%s", name, fault.Unavailable, s.lastWords(name))
		default:
			return isOf(pid, s.Folder, name), nil
		}
	})
}

// processes returns all processes of the cluster whose command has the name, or all of them if it
// is empty.
func processes(folder, name string) []*os.Process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []*os.Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// The handle comes first (a pidfd, pidfd_open(2)): it stays that of the process that is then
		// looked at, even if the number is given to another.
		process, err := os.FindProcess(pid)
		if err == nil && isOf(pid, folder, name) {
			found = append(found, process)
		}
	}
	return found
}

func isOf(pid int, folder, name string) bool {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(v []byte) bool {
		return string(v) == envFolder+"="+folder
	}) {
		return false
	}
	return name == "" || command(pid) == name
}

// command is the name under which a process was started.
func command(pid int) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	first, _, _ := bytes.Cut(line, []byte{0})
	return filepath.Base(string(first))
}

func (s *state) runs(name string) bool { return len(processes(s.Folder, name)) > 0 }

// stop ends a component and waits until it is gone. What does not end in time is killed.
func (s *state) stop(ctx context.Context, name string) error {
	return s.end(ctx, name, grace)
}

// end is stop with a time of the caller's.
func (s *state) end(ctx context.Context, name string, patience time.Duration) error {
	signalAll(processes(s.Folder, name), syscall.SIGTERM)
	first, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	gone := func() (bool, error) { return !s.runs(name), nil }
	if poll(first, gone) == nil {
		return nil
	}
	signalAll(processes(s.Folder, name), syscall.SIGKILL)
	second, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := poll(second, gone); err != nil {
		return fmt.Errorf("end %s: %w", name, err)
	}
	return nil
}

// signalAll sends a signal to each; one that has ended needs none.
func signalAll(list []*os.Process, signal syscall.Signal) {
	for _, process := range list {
		_ = process.Signal(signal)
	}
}

// await polls done while the component lives. Its error has the end of the component's log.
func (s *state) await(ctx context.Context, name string, limit time.Duration, done func(context.Context) error) error {
	return s.awaitWhile(ctx, func() bool { return s.runs(name) }, name, limit, done)
}

// awaitWhile is await of a component of which the caller says whether it lives.
func (s *state) awaitWhile(ctx context.Context, lives func() bool, name string, limit time.Duration, done func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready after %s", limit))
	defer cancel()
	var last error
	err := poll(ctx, func() (bool, error) {
		err := done(ctx)
		if err == nil {
			return true, nil
		}
		// That time is up says less than what was wrong before.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if !lives() {
			return false, fmt.Errorf("%s has ended: %w", name, fault.Unavailable)
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w: %w%s", name, err, last, s.lastWords(name))
	}
	return nil
}

func (s *state) lastWords(name string) string {
	text, err := os.ReadFile(s.log(name))
	if err != nil || len(text) == 0 {
		return ""
	}
	text = text[max(0, len(text)-lastWords):]
	return "\n" + s.log(name) + ":\n" + strings.TrimSpace(string(text))
}

// run runs a tool of the machine and returns what it prints. The error has its standard error.
func run(ctx context.Context, tool string, args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &out, &said
	if path := lookTool(tool); path != "" {
		cmd.Path, cmd.Err = path, nil
	}
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// lookTool finds a tool also where a user's PATH does not look.
func lookTool(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, folder := range []string{"/usr/sbin", "/sbin"} {
		path := filepath.Join(folder, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// removeFile removes a file that may be gone.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
