package errand

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/errand/errandtest"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// The test's program is also the one that runs errands: it reads files, and says what is in them.
const argument = "errand"

func TestMain(m *testing.M) { errandtest.Main(m, argument, serve) }

func serve(from io.Reader, to io.Writer) error { return Serve(from, to, readFile) }

type answer struct {
	Index         int
	Text, Trouble string
}

func readFile(index int, path string) answer {
	text, err := os.ReadFile(path)
	if err != nil {
		return answer{Index: index, Trouble: err.Error()}
	}
	return answer{Index: index, Text: string(text)}
}

func program(t *testing.T) *Program {
	p := New("/proc/self/exe", argument)
	t.Cleanup(func() {
		select {
		case one := <-p.spare:
			_ = one.socket.Close()
			ends(t, one)
		default:
		}
	})
	return p
}

// fifo returns the path of one. Reading it waits until somebody has written there, as reading a
// device waits for a silent cluster.
func fifo(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// locked opens a file with a lock on it, or returns nil if another has it.
func locked(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if !errors.Is(err, unix.EWOULDBLOCK) {
			t.Fatal(err)
		}
		_ = file.Close()
		return nil
	}
	return file
}

func start(t *testing.T, p *Program, held *os.File, paths ...string) Work[answer] {
	t.Helper()
	work, err := Start[string, answer](p, paths, held)
	if err != nil {
		t.Fatal(err)
	}
	return work
}

func ends(t *testing.T, one *process) {
	t.Helper()
	select {
	case <-one.ended:
	case <-time.After(30 * time.Second):
		t.Error("a process that is not needed any more: got no end of it for 30 s")
	}
}

// Results come as they are ready, and an order that waits keeps none of the others.
func TestStart(t *testing.T) {
	file, waits := filepath.Join(t.TempDir(), "file"), fifo(t)
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	work := start(t, program(t), nil, waits, file, file+".none")
	got := map[int]answer{}
	for range 2 {
		one := <-work.Results
		got[one.Index] = one
	}
	if got[1].Text != "text" || !strings.Contains(got[2].Trouble, "no such file") {
		t.Errorf("results: got %+v, want the text of 1 and the trouble of 2", got)
	}
	work.Kill()
	if last, more := <-work.Results; more {
		t.Errorf("results after the kill: got %+v, want their end", last)
	}
}

// One process does one work after the other, has the held file for each and lets go of it with the last result, and is
// replaced if it was killed. A late kill of what is done does it no harm.
func TestProcessServesAgain(t *testing.T) {
	p := program(t)
	path := filepath.Join(t.TempDir(), "lock")
	var before *process
	var earlier Work[answer]
	for round, killed := range []bool{false, false, false, true} {
		if killed {
			_ = before.command.Process.Kill()
			<-before.ended
		}
		held, waits := locked(t, path), fifo(t)
		work := start(t, p, held, waits)
		_ = held.Close()
		if earlier.Kill != nil {
			earlier.Kill()
		}
		if again := locked(t, path); again != nil {
			t.Errorf("round %d: lock while the process is at work: got it, want none", round)
		}
		if err := os.WriteFile(waits, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if result := <-work.Results; result.Text != "x" {
			t.Errorf("round %d: result: got %+v, want x", round, result)
		}
		if again := locked(t, path); again == nil {
			t.Errorf("round %d: lock after the last result: got none, want it", round)
		} else {
			_ = again.Close()
		}
		if _, more := <-work.Results; more {
			t.Errorf("round %d: results: got a second one, want their end", round)
		}
		spare := p.take()
		if spare == nil || before != nil && (spare == before) == killed {
			t.Fatalf("round %d: got process %p after %p, want the same one unless it was killed: %t", round, spare, before, killed)
		}
		p.keep(spare)
		before, earlier = spare, work
	}
	// One is enough.
	extra, err := p.spawn()
	if err != nil {
		t.Fatal(err)
	}
	p.keep(extra)
	ends(t, extra)
}

// Work that comes while a process is about to be free waits for it, and does not wait for one that hangs.
func TestWorkWaitsForTheBusyProcess(t *testing.T) {
	p := program(t)
	first := fifo(t)
	busy := start(t, p, nil, first)
	second := fifo(t)
	other := start(t, p, nil, second) // after its patience it started a process of its own
	for _, path := range []string{first, second} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, work := range []Work[answer]{busy, other} {
		if result := <-work.Results; result.Text != "x" {
			t.Errorf("result: got %+v, want x", result)
		}
		<-work.Results // closed when its process is kept, or sent away
	}
	one := p.take()
	if one == nil {
		t.Fatal("process after the work: got none, want the one that is kept")
	}
	p.busy.Add(1) // as if it were at work
	go p.keep(one)
	if again := p.take(); again != one {
		t.Errorf("process for the next work: got %p, want %p, which was busy", again, one)
	}
	p.busy.Add(-1)
	p.keep(one)
}

func TestServeRefuses(t *testing.T) {
	var output bytes.Buffer
	err := serve(strings.NewReader(`["c2VjcmV0`), &output)
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("Serve: got %v, want fault.Invalid", err)
	}
	if strings.Contains(err.Error(), "c2Vj") || output.Len() > 0 {
		t.Errorf("Serve: got %v and %q, want nothing of the input", err, output.String())
	}
}

func TestNoProgram(t *testing.T) {
	_, err := Start[string, answer](New(filepath.Join(t.TempDir(), "none")), []string{"x"}, nil)
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("Start: got %v, want fault.Unavailable", err)
	}
}
