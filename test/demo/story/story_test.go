package story

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestWidth sees that nothing is wider than the terminal.
func TestWidth(t *testing.T) {
	var out bytes.Buffer
	n := &Narrator{out: &out, width: 80, scenes: 1, unheard: func() {}}
	n.Scene("A title")
	n.Say("%s", strings.Repeat("word ", 50))
	n.Wrap("      ", strings.Repeat("word ", 50))
	n.Did("ControllerUnpublishVolume", "controller  data-web-0 from node-a", 0)
	n.Command("$ ", "command", strings.Repeat("x", 200)+"\n\nend\n")
	n.Command("$ ", Quoted("kubectl", "get", "pods", "-o", strings.Repeat("y", 40), strings.Repeat("z ", 10), "and", "more"), "")
	n.OK("claim")
	for line := range strings.Lines(out.String()) {
		if got := len(strings.TrimSuffix(line, "\n")); got > 80 {
			t.Errorf("line of %d columns, want at most 80: %q", got, line)
		}
		if strings.HasSuffix(line, " \n") {
			t.Errorf("line ends with a blank: %q", line)
		}
	}
	if got := strings.Count(out.String(), "x"); got != 200 {
		t.Errorf("letters of a folded line: got %d, want 200", got)
	}
}

func TestUnheard(t *testing.T) {
	closed, err := os.Open(os.DevNull) // not for writing
	if err != nil {
		t.Fatal(err)
	}
	defer closed.Close()
	called := false
	n := &Narrator{out: closed, width: 80, unheard: func() { called = true }}
	n.OK("claim")
	if !called {
		t.Error("nobody was told that the output cannot be written")
	}
}

func TestFolded(t *testing.T) {
	cases := []struct {
		name, line string
		width      int
		want       []string
	}{
		{"short", "one two", 7, []string{"one two"}},
		{"at a blank", "one two three", 8, []string{"one two", "  three"}},
		{"columns", "one       two       three", 16, []string{"one  two  three"}},
		{"a long word", "abcdefghij", 8, []string{"abcdefgh", "  ij"}},
		{"a blank too early", "a bcdefghijk", 8, []string{"a bcdefg", "  hijk"}},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			if got := folded(test.line, test.width); strings.Join(got, "|") != strings.Join(test.want, "|") {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestCommandIsAsPrinted has a shell read what is printed of a command.
func TestCommandIsAsPrinted(t *testing.T) {
	cases := []struct {
		name    string
		command []string
	}{
		{"plain", []string{"echo", "one", "two"}},
		{"quotes", []string{"echo", "it's", `a "word" $HOME`, ""}},
		{"long", []string{"echo", strings.Repeat("a", 30), strings.Repeat("b ", 30), "c", strings.Repeat("d", 30), "e"}},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			n := &Narrator{out: &out, width: 50, unheard: func() {}}
			n.Command("", Quoted(test.command...), "")
			got, err := exec.CommandContext(t.Context(), "sh", "-c", out.String()).Output()
			if err != nil {
				t.Fatalf("sh -c %q: %v", out.String(), err)
			}
			if want := strings.Join(test.command[1:], " ") + "\n"; string(got) != want {
				t.Errorf("a shell printed %q, want %q; it was given\n%s", got, want, out.String())
			}
		})
	}
}

func TestStage(t *testing.T) {
	var out bytes.Buffer
	s := &Stage{Narrator: &Narrator{out: &out, width: 80, unheard: func() {}}, Ctx: t.Context()}
	s.Export("MOOD", "good")
	if got := s.Show("sh", "-c", "echo $MOOD"); got != "good\n" || s.Err != nil {
		t.Fatalf("show: got %q, %v, want the exported value", got, s.Err)
	}
	s.Check(false, "pigs fly")
	if s.Err == nil || !strings.Contains(s.Err.Error(), "pigs fly") {
		t.Fatalf("a claim that does not hold: got %v, want an error that names it", s.Err)
	}
	before := out.String()
	s.Check(true, "claim")
	s.Tell("words")
	s.Do("step", func() error { return errors.New("was run") })
	s.Show("echo")
	s.Export("A", "b")
	if out.String() != before {
		t.Errorf("after a failure: got %q printed, want nothing", strings.TrimPrefix(out.String(), before))
	}
}

func TestWriter(t *testing.T) {
	var written strings.Builder
	finished := false
	w := NewWriter(func(record string) error {
		written.WriteString(record)
		return nil
	}, func() error { finished = true; return nil })
	if err := w.Writes(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	count, err := w.Stop()
	if err != nil || count < 3 || !finished {
		t.Fatalf("stop: got %d, %v, finished %t, want 3 or more, finished", count, err, finished)
	}
	if read, err := CountRecords(strings.NewReader(written.String())); err != nil || read != count {
		t.Errorf("records read: got %d, %v, want %d", read, err, count)
	}
}

func TestWriterFails(t *testing.T) {
	broken := errors.New("no space")
	w := NewWriter(func(record string) error {
		if record == Record(3) {
			return broken
		}
		return nil
	}, nil)
	if err := w.Writes(t.Context(), 5); !errors.Is(err, broken) {
		t.Errorf("writes: got %v, want %v", err, broken)
	}
	if count, err := w.Stop(); count != 2 || !errors.Is(err, broken) {
		t.Errorf("stop: got %d, %v, want 2, %v", count, err, broken)
	}
}

func TestCountRecordsFindsFaults(t *testing.T) {
	cases := []struct{ name, text string }{
		{"a gap", Record(1) + Record(3)},
		{"a changed byte", strings.Replace(Record(1), "record", "recorD", 1)},
		{"zeros", Record(1) + strings.Repeat("\x00", 100)},
		{"a torn end", Record(1) + Record(2)[:20]},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			if read, err := CountRecords(strings.NewReader(test.text)); err == nil {
				t.Errorf("got %d records and no error, want an error", read)
			}
		})
	}
}
