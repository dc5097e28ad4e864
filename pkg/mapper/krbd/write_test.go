package krbd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// The test's program is also the one that writes.
const writerArgument = "krbd-writer"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == writerArgument {
		if err := Serve(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func secret(text string) params.Secret { return params.NewSecret(text) }

// The real process, with files in place of sysfs.
func TestCommand(t *testing.T) {
	folder := t.TempDir()
	file, fifo := filepath.Join(folder, "file"), filepath.Join(folder, "fifo")
	for _, err := range []error{os.WriteFile(file, nil, 0o600), unix.Mkfifo(fifo, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	held, err := tryLock(filepath.Join(folder, "lock"))
	if err != nil || held == nil {
		t.Fatalf("tryLock: got %v, %v, want a file", held, err)
	}
	// Opening a FIFO that nobody reads waits, as a request for a silent cluster does.
	work, err := Command("/proc/self/exe", writerArgument)([]Order{
		{Path: file, Text: "text"},
		{Path: filepath.Join(folder, "none"), Text: "x"},
		{Path: fifo, Text: "x"},
		{Path: file, Text: "x", NetworkNamespace: filepath.Join(folder, "none")},
	}, held)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[int]Result)
	for len(got) < 3 {
		select {
		case result := <-work.Results:
			got[result.Index] = result
		case <-time.After(30 * time.Second):
			t.Fatalf("results: got %v for 30 s, want three", got)
		}
	}
	if got[0].Errno != 0 || got[1].Errno != unix.ENOENT || got[1].Step != stepWrite || got[3].Step != stepNamespace {
		t.Errorf("results: got %+v", got)
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "text" {
		t.Errorf("file: got %q, %v, want text", content, err)
	}
	// The lock is the process's too, and goes with it.
	_ = held.Close()
	if again, err := tryLock(held.Name()); again != nil || err != nil {
		t.Errorf("tryLock while the process waits: got %v, %v, want nothing", again, err)
	}
	work.Kill()
	if result, more := <-work.Results; more {
		t.Errorf("results after the kill: got %+v, want none", result)
	}
	if again, err := tryLock(held.Name()); again == nil || err != nil {
		t.Errorf("tryLock after the process: got %v, %v, want a file", again, err)
	}
}

// One process does one work after the other, takes the lock for each and lets go of it with the last result, and is
// replaced if it was killed. A late kill of what is done does it no harm.
func TestWriterServesAgain(t *testing.T) {
	w := &writers{path: "/proc/self/exe", arguments: []string{writerArgument}}
	path := filepath.Join(t.TempDir(), "lock")
	var before *writer
	var earlier Work
	for round, killed := range []bool{false, false, false, true} {
		if killed {
			_ = before.command.Process.Kill()
			<-before.ended
		}
		held, err := tryLock(path)
		if err != nil || held == nil {
			t.Fatalf("round %d: tryLock: got %v, %v, want a file", round, held, err)
		}
		fifo := filepath.Join(t.TempDir(), "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		work, err := w.start([]Order{{Path: fifo, Text: "x"}}, held)
		if err != nil {
			t.Fatal(err)
		}
		_ = held.Close()
		if earlier.Kill != nil {
			earlier.Kill()
		}
		if again, err := tryLock(path); again != nil || err != nil {
			t.Errorf("round %d: tryLock while the process waits: got %v, %v, want nothing", round, again, err)
		}
		if content, err := os.ReadFile(fifo); string(content) != "x" || err != nil {
			t.Errorf("round %d: written: got %q, %v, want x", round, content, err)
		}
		if result := <-work.Results; result.Errno != 0 {
			t.Errorf("round %d: result: got %+v, want none", round, result)
		}
		if _, more := <-work.Results; more {
			t.Errorf("round %d: results: got a second one, want their end", round)
		}
		if again, err := tryLock(path); again == nil || err != nil {
			t.Errorf("round %d: tryLock after the work: got %v, %v, want a file", round, again, err)
		} else {
			_ = again.Close()
		}
		spare := w.take()
		if spare == nil || before != nil && (spare == before) == killed {
			t.Fatalf("round %d: got process %p after %p, want the same one unless it was killed: %t", round, spare, before, killed)
		}
		w.keep(spare)
		before, earlier = spare, work
	}
	// One is enough, and nothing is left when this process lets go of it.
	extra, err := w.spawn()
	if err != nil {
		t.Fatal(err)
	}
	w.keep(extra)
	last := w.take()
	_ = last.socket.Close()
	for _, process := range []*writer{extra, last} {
		select {
		case <-process.ended:
		case <-time.After(30 * time.Second):
			t.Error("a process that is not needed any more: got no end of it for 30 s")
		}
	}
}

func TestServeRefuses(t *testing.T) {
	var output bytes.Buffer
	err := Serve(strings.NewReader(`[{"Key":"c2VjcmV0`), &output)
	wantKind(t, "Serve", err, fault.Invalid)
	if strings.Contains(err.Error(), "c2Vj") || output.Len() > 0 {
		t.Errorf("Serve: got %v and %q, want nothing of the input", err, output.String())
	}
}

// A key is told to the kernel and to nobody else.
func TestResultHasNoKey(t *testing.T) {
	var output bytes.Buffer
	orders, err := json.Marshal([]Order{{Path: "/nowhere/x", Text: "x", KeyName: "rbd-csi:test", Key: []byte("topsecret")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := Serve(bytes.NewReader(orders), &output); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(output.String(), "topsecret") || strings.Contains(output.String(), "dG9wc2VjcmV0") {
		t.Errorf("answer: got the key in %s", output.String())
	}
	var result Result
	if err := json.Unmarshal(output.Bytes(), &result); err != nil || result.Errno == 0 {
		t.Errorf("answer: got %+v, %v, want a number", result, err)
	}
}
