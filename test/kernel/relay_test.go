package kernel

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
)

// inGuest runs the test of the same name in the guest, and its subtests' outcomes become those
// of subtests here, each as soon as it is known.
func inGuest(t *testing.T, g *Guest, environment []string) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	relay(t, g, self, t.Name(), environment)
}

// relay runs a test of a program in the guest, which has subtests.
func relay(t *testing.T, g *Guest, program, test string, environment []string) {
	t.Helper()
	reader, writer := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := g.Run(t.Context(), writer, Command{
			Arguments:   []string{program, "-test.run", "^" + test + "$", "-test.v=test2json", "-test.timeout=15m"},
			Environment: environment,
		})
		ended <- err
		_ = writer.CloseWithError(io.EOF)
	}()
	results := make(chan result)
	go func() {
		defer close(results)
		readResults(reader, test, results)
	}()
	told := 0
	for one := range results {
		told++
		t.Run(one.name, func(t *testing.T) { one.tell(t) })
	}
	if err := <-ended; err != nil && (!t.Failed() || told == 0) {
		t.Errorf("the test in the guest: got %v, want no error; its console ends with:\n%s", err, g.Console())
	}
	if told == 0 {
		t.Error("the test in the guest had no subtests, want some")
	}
}

// A result is what came of a subtest in the guest.
type result struct{ name, outcome, output string }

func (r result) tell(t *testing.T) {
	if r.output != "" {
		t.Logf("in the guest:\n%s", r.output)
	}
	switch r.outcome {
	case "FAIL":
		t.Fail()
	case "SKIP":
		t.SkipNow()
	}
}

// Lines of what a test prints with -test.v=test2json; each begins with a control character.
var (
	nameLine    = regexp.MustCompile(`^\x16?=== (?:RUN|NAME|CONT)\s+(\S*)$`)
	outcomeLine = regexp.MustCompile(`^\s*\x16?\s*--- (PASS|FAIL|SKIP): (\S+) (\(.*\))$`)
)

// readResults reads the outcomes of the direct subtests of a test. Output of theirs goes with
// them; output of the test itself, a panic for instance, is a failure of its own at the end
// unless the test passed.
func readResults(from io.Reader, test string, results chan<- result) {
	outputs := make(map[string]*strings.Builder)
	current, passed := "", false
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if match := nameLine.FindStringSubmatch(line); match != nil {
			current = subtest(match[1], test)
			continue
		}
		if match := outcomeLine.FindStringSubmatch(line); match != nil {
			name := subtest(match[2], test)
			switch match[2] {
			case test:
				passed = match[1] != "FAIL"
			case test + "/" + name:
				results <- result{name, match[1], text(outputs, name) + match[3]}
				delete(outputs, name)
			}
			continue
		}
		if line == "PASS" || line == "FAIL" {
			continue // of the program as a whole
		}
		if outputs[current] == nil {
			outputs[current] = &strings.Builder{}
		}
		fmt.Fprintln(outputs[current], line)
	}
	for name := range outputs {
		if !passed {
			results <- result{"unfinished: " + name, "FAIL", text(outputs, name)}
		}
	}
}

// subtest returns the name of the direct subtest in a test's name, or nothing.
func subtest(name, test string) string {
	rest, found := strings.CutPrefix(name, test+"/")
	if !found {
		return ""
	}
	name, _, _ = strings.Cut(rest, "/")
	return name
}

func text(outputs map[string]*strings.Builder, name string) string {
	if outputs[name] == nil {
		return ""
	}
	return outputs[name].String()
}

func TestReadResults(t *testing.T) {
	const printed = "\x16=== RUN   TestX\n\x16=== RUN   TestX/one\n    x.go:1: hello\n\x16--- PASS: TestX/one (0.10s)\n" +
		"\x16=== NAME  TestX\n\x16=== RUN   TestX/two\n\x16=== RUN   TestX/two/deep\n    x.go:2: deep\n" +
		"\x16--- FAIL: TestX/two/deep (0.00s)\n\x16--- FAIL: TestX/two (0.20s)\n" +
		"\x16=== RUN   TestX/three\n    x.go:3: why\n\x16--- SKIP: TestX/three (0.00s)\n"
	tests := []struct {
		name, end string
		more      int
	}{
		{"failed", "\x16--- FAIL: TestX (0.30s)\nFAIL\n", 0},
		{"passed", "\x16--- PASS: TestX (0.30s)\nPASS\n", 0},
		{"panic", "\x16=== RUN   TestX/four\npanic: oh\n", 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			results := make(chan result, 10)
			readResults(strings.NewReader(printed+test.end), "TestX", results)
			close(results)
			var got []string
			for one := range results {
				got = append(got, one.name+" "+one.outcome)
			}
			if want := "one PASS, two FAIL, three SKIP"; strings.Join(got[:min(3, len(got))], ", ") != want || len(got) != 3+test.more {
				t.Errorf("results: got %q, want %s and %d more", got, want, test.more)
			}
		})
	}
}
