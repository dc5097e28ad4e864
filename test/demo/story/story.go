// Package story is what the demonstrations tell their stories with: they do what an operator would do, print the commands
// and what these print, and check every claim before it is printed.
//
//	s := &story.Stage{Narrator: story.NewNarrator(os.Stdout, 80, len(scenes), stop), Ctx: ctx}
//	s.Scene("Two replicas")
//	s.Show("kubectl", "get", "pods")
//	s.Check(...)
package story

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// A Stage is where scenes play. Its methods print what they do. The first failure is kept in Err, and from
// then on the methods do nothing, so that a scene reads as a list of steps. It is for one goroutine.
type Stage struct {
	*Narrator
	// Ctx ends when the story shall.
	Ctx context.Context
	// Err is the first failure.
	Err error
	// Environ is added to the environment of commands. Those without a path are looked for in its PATH.
	Environ []string
	// Patience is how long a command, or a condition, may take. Zero means a minute.
	Patience time.Duration
}

func (s *Stage) patience() time.Duration {
	if s.Patience == 0 {
		return time.Minute
	}
	return s.Patience
}

// Do makes a step that takes a while and may fail.
func (s *Stage) Do(what string, step func() error) {
	if s.Err == nil {
		s.Err = s.Doing(what, step)
	}
}

// Tell is Say that keeps quiet after a failure.
func (s *Stage) Tell(format string, args ...any) {
	if s.Err == nil {
		s.Say(format, args...)
	}
}

// Check prints a claim if it holds, and fails with it otherwise.
func (s *Stage) Check(holds bool, format string, args ...any) {
	if s.Err != nil {
		return
	}
	claim := fmt.Sprintf(format, args...)
	if !holds {
		s.Err = fmt.Errorf("this does not hold: %s", claim)
		return
	}
	s.OK(claim)
}

// Export prints a setting as one would type it, and gives it to the commands that follow.
func (s *Stage) Export(name, value string) {
	if s.Err != nil {
		return
	}
	s.Command("$ ", "export "+name+"="+value, "")
	s.Environ = append(s.Environ, name+"="+value)
}

// Show runs a command as an operator would, prints it with its output, and returns the output.
func (s *Stage) Show(command ...string) string { return s.ShowIn("", "$ ", command...) }

// ShowIn does the same in a directory, with another prompt.
func (s *Stage) ShowIn(directory, prompt string, command ...string) string {
	return s.show(directory, prompt, Quoted(command...), command)
}

// ShowLine does the same with a line for a shell.
func (s *Stage) ShowLine(line string) string {
	return s.show("", "$ ", line, []string{"sh", "-c", line})
}

func (s *Stage) show(directory, prompt, typed string, command []string) string {
	if s.Err != nil {
		return ""
	}
	output, err := s.runIn(directory, command)
	if err != nil {
		s.Err = err
		return ""
	}
	s.Command(prompt, typed, output)
	return output
}

// Run runs a command without a word and returns its output.
func (s *Stage) Run(command ...string) (string, error) { return s.runIn("", command) }

func (s *Stage) runIn(directory string, command []string) (string, error) {
	ctx, cancel := context.WithTimeout(s.Ctx, s.patience())
	defer cancel()
	run := s.Prepare(ctx, command...)
	run.Dir = directory
	var output, said bytes.Buffer
	run.Stdout, run.Stderr = &output, &said
	if err := run.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", Quoted(command...), err, output.Bytes(), said.Bytes())
	}
	return output.String(), nil
}

// Prepare returns a command with the environment that Show's have; it ends with ctx.
func (s *Stage) Prepare(ctx context.Context, command ...string) *exec.Cmd {
	// env(1) looks in the PATH that it was given, and package os/exec in this process's.
	prepared := exec.CommandContext(ctx, "env", command...)
	prepared.Env = append(os.Environ(), fmt.Sprintf("COLUMNS=%d", s.width-4), "LC_ALL=C.UTF-8")
	prepared.Env = append(prepared.Env, s.Environ...)
	return prepared
}

// Await waits until a condition holds that nothing tells of.
func (s *Stage) Await(what string, holds func() (bool, error)) {
	s.Do("waiting until "+what, func() error {
		ctx, cancel := context.WithTimeout(s.Ctx, s.patience())
		defer cancel()
		again := time.NewTicker(100 * time.Millisecond)
		defer again.Stop()
		for {
			done, err := holds()
			if err != nil || done {
				return err
			}
			select {
			case <-again.C:
			case <-ctx.Done():
				return fmt.Errorf("wait until %s: %w", what, ctx.Err())
			}
		}
	})
}
