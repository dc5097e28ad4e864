package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// An event is a line of `go test -json`: see `go doc test2json`, and for the build
// events `go help buildjson`.
type event struct {
	Action      string
	Package     string
	Test        string
	Elapsed     float64 // seconds
	Output      string
	ImportPath  string // of a build event
	FailedBuild string // of a package that could not be built
}

// slow is from when on a single test gets a line of its own, so that whoever waits
// sees what for.
const slow = 10 // seconds

// A report collects events and writes what they mean.
type report struct {
	out      io.Writer
	packages map[string]*results
	builds   map[string]string // output of builds, by import path
	skipped  map[string][]string
	left     []string // what tests say that they left out, see leftOut
	failed   []string // packages and commands
	before   int      // how many had failed when the present command began
	count    struct{ passed, failed, skipped int }
}

// results are those of one package until it finishes.
type results struct {
	output map[string]*strings.Builder // by test, "" is the package itself
	failed []string
	count  struct{ passed, skipped int }
}

func newReport(out io.Writer) *report {
	return &report{
		out:      out,
		packages: map[string]*results{},
		builds:   map[string]string{},
		skipped:  map[string][]string{},
	}
}

func (r *report) printf(format string, args ...any) { fmt.Fprintf(r.out, format, args...) }

func (r *report) begin(title string) {
	r.before = len(r.failed)
	r.printf("\n== %s\n", title)
}

func (r *report) end(title string, took time.Duration) {
	r.printf("== %s: %.0f s\n", title, took.Seconds())
}

// broken notes a command that ended badly. After a failure in it that is no news.
func (r *report) broken(title string, err error) {
	if len(r.failed) == r.before {
		r.printf("FAIL %s: %v\n", title, err)
		r.failed = append(r.failed, title)
	}
}

func (r *report) event(e event) {
	switch {
	case e.Action == "build-output":
		r.builds[e.ImportPath] += e.Output
	case e.Package == "":
	case e.Action == "output":
		r.of(e.Package).write(e.Test, e.Output)
	case e.Test != "":
		r.test(e)
	case e.Action == "pass", e.Action == "fail", e.Action == "skip":
		r.finished(e)
	}
}

func (r *report) of(name string) *results {
	if r.packages[name] == nil {
		r.packages[name] = &results{output: map[string]*strings.Builder{}}
	}
	return r.packages[name]
}

func (p *results) write(test, text string) {
	if p.output[test] == nil {
		p.output[test] = &strings.Builder{}
	}
	p.output[test].WriteString(text)
}

func (p *results) text(test string) string {
	if p.output[test] == nil {
		return ""
	}
	return p.output[test].String()
}

// test counts a test or a sub-test that finished.
func (r *report) test(e event) {
	p := r.of(e.Package)
	name := short(e.Package) + " " + e.Test
	switch e.Action {
	case "pass":
		p.count.passed++
		r.count.passed++
	case "skip":
		p.count.skipped++
		r.count.skipped++
		why := strings.TrimPrefix(reason(p.text(e.Test)), leftOutPrefix)
		r.skipped[why] = append(r.skipped[why], name)
	case "fail":
		p.failed = append(p.failed, e.Test)
		r.count.failed++
	default:
		return
	}
	if e.Action != "skip" {
		for _, text := range leftOut(p.text(e.Test)) {
			r.left = append(r.left, name+": "+text)
		}
	}
	if e.Elapsed >= slow && !strings.Contains(e.Test, "/") {
		r.printf("       %-4s %s %.0f s\n", e.Action, name, e.Elapsed)
	}
	if e.Action != "fail" {
		delete(p.output, e.Test)
	}
}

// finished writes the line of a package.
func (r *report) finished(e event) {
	p := r.of(e.Package)
	delete(r.packages, e.Package)
	switch e.Action {
	case "skip":
		return // no test files
	case "fail":
		r.failed = append(r.failed, short(e.Package))
		r.printf("FAIL   %-32s %6.1f s\n", short(e.Package), e.Elapsed)
		r.printf("%s%s", r.builds[e.FailedBuild], p.failures())
		return
	}
	skipped := ""
	if p.count.skipped > 0 {
		skipped = fmt.Sprintf(", %d skipped", p.count.skipped)
	}
	r.printf("ok     %-32s %6.1f s  %d passed%s\n", short(e.Package), e.Elapsed, p.count.passed, skipped)
}

// failures returns the output of the failed tests and of the package itself. A test
// that was running when the process died is not among the failed: all output is
// returned then.
func (p *results) failures() string {
	tests := append(slices.Clone(p.failed), "")
	if len(p.failed) == 0 {
		tests = slices.Sorted(maps.Keys(p.output))
	}
	slices.Sort(tests)
	var all strings.Builder
	for _, test := range slices.Compact(tests) {
		all.WriteString(ofOurs(p.text(test)))
	}
	return all.String()
}

// ofOurs leaves out the goroutines that run nothing of this repository. When a test hangs, these are most of what the process
// writes when it is ended, and what reads the output may keep its beginning alone.
func ofOurs(output string) string {
	var kept []string
	left := 0
	for block := range strings.SplitSeq(output, "\n\n") {
		if strings.HasPrefix(block, "goroutine ") && !strings.Contains(block, module) {
			left++
			continue
		}
		kept = append(kept, block)
	}
	if left == 0 {
		return output
	}
	return fmt.Sprintf("%s\n(%d more goroutines, which run nothing of %s)\n", strings.Join(kept, "\n\n"), left, strings.TrimSuffix(module, "/"))
}

// module begins the import paths of this repository.
const module = "github.com/rbd-csi/rbd-csi/"

// summary writes what was skipped and why, and the counts. It reports whether all
// is well.
func (r *report) summary() bool {
	if len(r.skipped) > 0 {
		r.printf("\nSkipped:\n")
	}
	for _, why := range slices.Sorted(maps.Keys(r.skipped)) {
		r.printf("  %s\n", why)
		for _, test := range r.skipped[why] {
			r.printf("    %s\n", test)
		}
	}
	if len(r.left) > 0 {
		r.printf("\nSkipped within tests:\n")
	}
	for _, text := range r.left {
		r.printf("  %s\n", text)
	}
	if len(r.failed) > 0 {
		r.printf("\nFailed: %s\n", strings.Join(r.failed, ", "))
	}
	r.printf("\n%d passed, %d failed, %d skipped\n", r.count.passed, r.count.failed, r.count.skipped)
	return len(r.failed) == 0 && r.count.failed == 0 && r.count.passed > 0
}

// short returns a package's path below the module.
func short(name string) string {
	return strings.TrimPrefix(name, module)
}

var (
	frame    = regexp.MustCompile(`^\s*(=== |--- )`)
	position = regexp.MustCompile(`^\s*\w+\.go:\d+: `)
)

// reason returns what a skipped test logged, which is why it was skipped.
func reason(output string) string {
	var said []string
	for line := range strings.Lines(output) {
		if !frame.MatchString(line) {
			said = append(said, strings.TrimSpace(position.ReplaceAllString(line, "")))
		}
	}
	if len(said) == 0 {
		return "(no reason given)"
	}
	return strings.Join(said, " ")
}

// leftOutPrefix begins the lines in which a test that runs a suite of another kind
// logs what the suite skipped.
const leftOutPrefix = "skipped: "

// leftOut returns what a test logged in lines that begin with leftOutPrefix.
func leftOut(output string) []string {
	var said []string
	for line := range strings.Lines(output) {
		text := strings.TrimSpace(position.ReplaceAllString(line, ""))
		if rest, ok := strings.CutPrefix(text, leftOutPrefix); ok {
			said = append(said, rest)
		}
	}
	return said
}
