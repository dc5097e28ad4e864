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

	"github.com/rbd-csi/rbd-csi/pkg/errand/errandtest"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// The test's program is also the one that writes.
const writerArgument = "krbd-writer"

func TestMain(m *testing.M) { errandtest.Main(m, writerArgument, Serve) }

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
