// Command report runs `go test -json` and tells what came of it: a line for each
// package as it finishes, the output of what failed, and at the end every test
// that was skipped with its reason, because a run that is green for having left
// things out should say so.
//
//	report TITLE COMMAND [TITLE COMMAND]...
//
// Each COMMAND is run by the shell, one after the other, also when an earlier one
// failed. The exit status is 0 if all of them were well and some test was run.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 3 || len(os.Args)%2 == 0 {
		fmt.Fprintln(os.Stderr, "usage: report TITLE COMMAND [TITLE COMMAND]...")
		os.Exit(2)
	}
	// A terminal sends SIGINT to the tests as well: they end, and are reported on.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	well := runAll(ctx, newReport(os.Stdout), os.Args[1:])
	stop()
	if !well {
		os.Exit(1)
	}
}

// runAll runs commands, each after its title, and reports whether all was well.
func runAll(ctx context.Context, r *report, commands []string) bool {
	for i := 0; i+1 < len(commands) && ctx.Err() == nil; i += 2 {
		if err := run(ctx, r, commands[i], commands[i+1]); err != nil {
			r.broken(commands[i], err)
		}
	}
	return r.summary() && ctx.Err() == nil
}

// run runs one command and feeds what it prints to the report. The error says that
// the command ended badly, which it also does after a test failed.
func run(ctx context.Context, r *report, title, command string) error {
	begun := time.Now()
	r.begin(title)
	shell := exec.CommandContext(ctx, "sh", "-c", command)
	shell.Cancel = func() error { return shell.Process.Signal(syscall.SIGTERM) }
	shell.Stderr = os.Stdout
	output, err := shell.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := shell.Start(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := feed(r, output); err != nil {
		return fmt.Errorf("read output: %w", err)
	}
	err = shell.Wait()
	r.end(title, time.Since(begun))
	return err
}

// feed reads a stream of events. Lines that are none are shown as they are.
func feed(r *report, stream io.Reader) error {
	lines := bufio.NewReader(stream)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		switch {
		case len(line) == 0:
		case line[0] == '{' && json.Unmarshal(line, &e) == nil && e.Action != "":
			r.event(e)
		default:
			r.printf("%s", line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
