package nbd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Launch starts a worker for an order and returns when it serves, or its error. After an error the
// worker is gone or about to go by itself. A worker outlives ctx, and should outlive the
// process that called: in Kubernetes it is a process of another pod that starts it.
type Launch func(ctx context.Context, order Order) error

// Command returns a Launch that starts a program, which has to call [Serve], as a child in a
// session of its own, without this process's environment but for PATH:
//
//	Command("/proc/self/exe", "nbd")
//
// As long as this process lives it waits for the child in the background, so that no zombie is left.
func Command(path string, arguments ...string) Launch {
	return func(ctx context.Context, order Order) error {
		if ctx.Err() != nil {
			return fmt.Errorf("start worker: %w: %w", fault.Unavailable, context.Cause(ctx))
		}
		var input bytes.Buffer
		if err := order.Send(&input); err != nil {
			return err
		}
		command := exec.CommandContext(context.WithoutCancel(ctx), path, arguments...) // it outlives the request
		command.Dir, command.Env, command.Stdin = "/", []string{"PATH=" + searchPath()}, &input
		command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		output, err := command.StdoutPipe()
		if err == nil {
			err = command.Start()
		}
		if err != nil {
			return fmt.Errorf("start worker: %w: %w", fault.Unavailable, err)
		}
		said := make(chan error, 1)
		go func() {
			ok, err := receiveAnswer(output)
			if !ok {
				err = fmt.Errorf("worker ended without an answer: %w: %w", fault.Unavailable, err)
			}
			said <- err
			_ = command.Wait()
		}()
		select {
		case err := <-said:
			return err
		case <-ctx.Done():
			// The worker sees that nobody listens when it answers, and takes down what it has put up.
			_ = output.Close()
			return fmt.Errorf("worker process %d did not answer: %w: %w", command.Process.Pid, fault.Unavailable, context.Cause(ctx))
		}
	}
}

// searchPath is where programs are looked for, also by a worker that was started without any environment.
func searchPath() string {
	if path := os.Getenv("PATH"); path != "" {
		return path
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// program returns the path of rbd-nbd, or its name if it is not there.
func program() string {
	for _, folder := range filepath.SplitList(searchPath()) {
		path := filepath.Join(folder, bin)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return bin
}
