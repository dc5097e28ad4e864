//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

const (
	// grace is how long a child that was killed may take to end before it counts as
	// stuck. A child that does not hang in the kernel ends within a millisecond.
	grace = 100 * time.Millisecond
	// pipeGrace is how long output is waited for after a child has ended.
	pipeGrace = time.Second
	// outputLimit is how many bytes of each stream are kept.
	outputLimit = 16 << 10
	// wordsLimit is how many bytes of output an error repeats.
	wordsLimit = 400
)

// folders is where tools are looked for. The environment of the driver is not asked.
var folders = [...]string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// A command is one run of a tool.
type command struct {
	tool     string // its name in one of the folders
	about    string // the device or the path that it may hang on
	args     []string
	terminal bool // give it a terminal that answers no to every question
}

func (c command) String() string { return strings.TrimSpace(c.tool + " " + c.about) }

// children runs tools in child processes and gives up on those that do not end.
//
// A process that waits for a dead device is in the state D, in which the kernel
// does not let it be killed. Its memory and its entry in the process table stay,
// so their number is bounded, and a tool that hangs on a path or a device is
// not started a second time there: a volume that is asked for every few seconds must not
// use up the children of all others.
type children struct {
	limit int

	mu      sync.Mutex
	running int // stuck ones included
	stuck   map[subject]hang
}

// A subject is what a child may hang on.
type subject struct{ tool, about string }

// A hang says how many children hang on a subject, and since when the first.
type hang struct {
	count int
	since time.Time
}

func newChildren(limit int) *children {
	return &children{limit: limit, stuck: map[subject]hang{}}
}

// run runs a tool and returns when it has ended, or, with fault.Unknown, soon
// after ctx has: then it was killed, and if it hangs in the kernel its end is
// waited for by a goroutine of its own. An exit code is no error.
//
// fault.Unavailable means that nothing was run: there are too many children, or
// the same tool hangs there from an earlier time. fault.Unsupported means that
// the tool is not installed.
func (c *children) run(ctx context.Context, cmd command) (result, error) {
	path, err := find(cmd.tool)
	if err != nil {
		return result{}, err
	}
	end, err := c.attend(ctx, cmd, func(ctx context.Context) outcome { return cmd.live(ctx, path) })
	if err != nil {
		return result{}, err
	}
	return end.read(ctx, cmd)
}

// attend counts a child while it lives, which live is to see through to its end, however long that takes, and returns
// that end; or, soon after ctx has ended, fault.Unknown.
func (c *children) attend(ctx context.Context, cmd command, live func(ctx context.Context) outcome) (outcome, error) {
	if err := ctx.Err(); err != nil {
		return outcome{}, fmt.Errorf("%s was not begun: %w", cmd, err)
	}
	if err := c.admit(cmd); err != nil {
		return outcome{}, err
	}
	begun := time.Now()
	one := &child{cmd: cmd, ended: make(chan outcome, 1)}
	go func() {
		one.ended <- live(ctx)
		c.bury(ctx, one)
	}()

	var end outcome
	select {
	case end = <-one.ended:
	case <-ctx.Done():
		if !c.await(one, &end) {
			klog.FromContext(ctx).Info("Child process does not end", "command", cmd.String(), "since", begun)
			return outcome{}, fmt.Errorf("%s hangs since %s and was given up on: %w: %w",
				cmd, begun.Format(time.TimeOnly), fault.Unknown, context.Cause(ctx))
		}
	}
	klog.FromContext(ctx).V(4).Info("Ran", "command", cmd.String(), "took", time.Since(begun))
	return end, nil
}

// find returns the path of a tool.
func find(tool string) (string, error) {
	for _, folder := range folders {
		if path, err := exec.LookPath(folder + "/" + tool); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: %w", tool, fault.Unsupported)
}

// admit counts a child that is about to be started, or refuses it.
func (c *children) admit(cmd command) error {
	if err := c.hangs(cmd.tool, cmd.about); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running >= c.limit {
		return fmt.Errorf("%s was not begun: there are %d child processes, %d subjects hang: %w",
			cmd, c.running, len(c.stuck), fault.Unavailable)
	}
	c.running++
	return nil
}

// hangs returns fault.Unavailable if a tool that was given up on still hangs there.
func (c *children) hangs(tool, about string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	hang, found := c.stuck[subject{tool, about}]
	if !found {
		return nil
	}
	return fmt.Errorf("%s %s: an earlier one hangs in the kernel since %s: %w",
		tool, about, hang.since.Format(time.DateTime), fault.Unavailable)
}

// await waits a short time for a child that was killed. If that does not end, it
// counts as stuck until bury has seen its end.
func (c *children) await(one *child, end *outcome) (ended bool) {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case *end = <-one.ended:
		return true
	case <-timer.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	one.stuck = true
	about := subject{one.cmd.tool, one.cmd.about}
	hang := c.stuck[about]
	if hang.count == 0 {
		hang.since = time.Now()
	}
	hang.count++
	c.stuck[about] = hang
	return false
}

// bury forgets a child that has ended.
func (c *children) bury(ctx context.Context, one *child) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	if !one.stuck {
		return
	}
	about := subject{one.cmd.tool, one.cmd.about}
	hang := c.stuck[about]
	hang.count--
	c.stuck[about] = hang
	if hang.count == 0 {
		delete(c.stuck, about)
	}
	klog.FromContext(ctx).V(2).Info("Child process that hung has ended", "command", one.cmd.String())
}

// count returns how many children there are, and on how many subjects one hangs.
func (c *children) count() (running, stuck int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running, len(c.stuck)
}

// A child is one process.
type child struct {
	cmd   command
	ended chan outcome // gets one outcome
	stuck bool         // belongs to the lock of children
}

// An outcome is how a child ended.
type outcome struct {
	err         error // of exec, or of an errand
	out, errors tape
}

// live runs the process to its end, however long that takes.
//
// The process is killed when ctx ends, and also when the driver does: a mkfs that
// goes on after its driver was killed would run beside the one that the next
// driver starts. The kernel ties that signal to the thread that made the child,
// hence the locked thread. Its own process group keeps it from the signals that a
// terminal sends to the driver, which ends its requests first.
func (c command) live(ctx context.Context, path string) outcome {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var end outcome
	process := exec.CommandContext(ctx, path, c.args...)
	process.Env = environment()
	process.Dir = "/"
	process.Stdout, process.Stderr = &end.out, &end.errors
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	process.WaitDelay = pipeGrace
	if c.terminal {
		end.err = runInTerminal(process, &end.out)
	} else {
		end.err = process.Run()
	}
	return end
}

// environment is all that a tool gets to see of one. BLKID_FILE turns off libblkid's record of what
// stood on which device, from which mke2fs answers for two seconds without looking: a
// device whose name was another's just before would count as formatted, or not.
func environment() []string {
	return []string{"PATH=" + strings.Join(folders[:], ":"), "LC_ALL=C", "BLKID_FILE=/dev/null"}
}

// read makes a result of an outcome, or an error if the process did not end by itself.
func (o *outcome) read(ctx context.Context, cmd command) (result, error) {
	r := result{out: o.out.bytes(), errors: o.errors.bytes()}
	if cmd.terminal {
		r.errors = append(append(r.errors, '\n'), r.out...)
	}
	if o.err == nil || errors.Is(o.err, exec.ErrWaitDelay) {
		return r, nil
	}
	var exit *exec.ExitError
	if errors.As(o.err, &exit) && exit.Exited() {
		r.code = exit.ExitCode()
		return r, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return result{}, fmt.Errorf("%s was killed in the middle: %w: %w", cmd, fault.Unknown, cause)
	}
	if exit != nil {
		return result{}, fmt.Errorf("%s was killed by somebody else (%s): %w", cmd, exit, fault.Unknown)
	}
	return result{}, fmt.Errorf("%s could not be run: %w: %w", cmd, fault.Unavailable, o.err)
}
