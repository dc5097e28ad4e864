package fuse

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

const testKey = "AQD0aGVsbG8gd29ybGQ="

// shell launches a worker that is a shell script, with a key in its order.
func shell(ctx context.Context, t *testing.T, script string) error {
	t.Helper()
	order := Order{Credentials: params.Credentials{User: "kube", Key: params.NewSecret(testKey)}, Directory: t.TempDir()}
	return Command("/bin/sh", "-c", script)(ctx, order)
}

func TestCommand(t *testing.T) {
	tests := []struct {
		name, script string
		want         fault.Kind
		says         string
	}{
		{"serves", `cat >/dev/null; echo '{"Kind":"","Error":""}'; exec >/dev/null 2>&1`, -1, ""},
		{"refuses", `echo '{"Kind":"not found","Error":"image x: not found"}'; exit 1`, fault.NotFound, "image x"},
		{"dies", `echo librbd.so.1 is missing >&2; exit 127`, fault.Unavailable, "exit status 127: librbd.so.1 is missing"},
		{"is killed", `kill -9 $$`, fault.Unavailable, "signal: killed"},
		{"says its key", `cat >&2; exit 1`, fault.Unavailable, `"Key":"(key)"`},
		{"says very much", `yes | head -c 1000000 >&2; exit 1`, fault.Unavailable, "y"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := shell(t.Context(), t, test.script)
			if test.want < 0 {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			if !fault.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v, want kind %q and %q in it", err, test.want, test.says)
			}
			if text := err.Error(); len(text) > 2*maxTail || strings.Contains(text, testKey) {
				t.Errorf("got %d bytes: %.300s, want fewer and no key", len(text), text)
			}
		})
	}
}

// A worker that does not answer is gone when its launcher gives up.
func TestCommandGivesUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	file := filepath.Join(t.TempDir(), "pid")
	err := shell(ctx, t, "echo $$ > "+file+"; exec sleep 1000")
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v, want kind %q", err, fault.Unavailable)
	}
	pid, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join("/proc", strings.TrimSpace(string(pid)))); !os.IsNotExist(err) {
		t.Errorf("process %s: got %v, want it gone", pid, err)
	}
}

// A worker that comes to answer when its launcher has given up notices, and has the time to clean up.
func TestCommandGivesUpBeforeTheAnswer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "said")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := shell(ctx, t, `trap "" PIPE; sleep 0.5; echo '{}' 2>/dev/null || echo cleaned >`+file+`; exit 1`)
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v, want kind %q", err, fault.Unavailable)
	}
	if got, err := os.ReadFile(file); string(got) != "cleaned\n" {
		t.Errorf("worker: got %q, %v from it, want that it cleaned up", got, err)
	}
}

// An answer that was given before the launcher gives up is not lost: somebody may use the device.
func TestHangUpAfterTheAnswer(t *testing.T) {
	p, err := start(Program{Path: "/bin/sh", Arguments: []string{"-c", `echo '{}'`}}, nil, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.answers.Close() }()
	<-p.ended
	if err := unix.Shutdown(int(p.answers.Fd()), unix.SHUT_RD); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() { answer <- ReceiveAnswer(p.answers) }()
	if err := p.hangUp(t.Context(), answer); err != nil {
		t.Errorf("got %v, want the answer", err)
	}
}

// A worker has a session of its own and nothing of the driver's environment.
func TestCommandSeparates(t *testing.T) {
	t.Setenv("SOME_SECRET", testKey)
	script := `exec 3>&1 1>&2
		env
		read pid comm state ppid pgrp session rest < /proc/$$/stat
		[ $session = $$ ] && pwd
		exit 1`
	err := shell(t.Context(), t, script)
	if err == nil || strings.Contains(err.Error(), "SOME_SECRET") || !strings.Contains(err.Error(), "\n/: ") {
		t.Errorf("got %v, want no SOME_SECRET, and / from the leader of a session", err)
	}
}
