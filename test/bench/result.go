package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// A Result is what the bench writes as JSON.
type Result struct {
	Ceph     string    `json:"ceph"`  // the release
	Batch    int       `json:"batch"` // requests in a batch
	Requests []Request `json:"requests"`
	Rates    []Rate    `json:"rates,omitempty"`
	Growth   []Growth  `json:"growth,omitempty"`
	Listings []Listing `json:"listings,omitempty"`
	Memory   Memory    `json:"memory,omitzero"`
}

// A Request is how many RADOS operations one request took on average.
type Request struct {
	Name       string  `json:"name"`
	Operations float64 `json:"operations"`
	Bare       float64 `json:"librbd,omitempty"` // for librbd's bare minimum, if there is one
	Budget     float64 `json:"budget,omitempty"` // at most; 0: none
}

// ratio is how many operations there are for each of librbd's, 0 where that has nothing like it.
func (r Request) ratio() float64 {
	if r.Bare == 0 {
		return 0
	}
	return r.Operations / r.Bare
}

// A Rate is how much was done in a second; the median of several rounds each.
type Rate struct {
	What      string  `json:"what"` // create, snapshot, restore
	InFlight  int     `json:"inFlight"`
	PerSecond float64 `json:"perSecond"`
	Bare      float64 `json:"librbd"`
	Ratio     float64 `json:"ratio"` // median of the rounds' ratios
	Least     float64 `json:"least,omitempty"`
}

// Growth is what something costs in a pool with few and in one with many images.
type Growth struct {
	What  string  `json:"what"`
	Few   float64 `json:"few"`
	Many  float64 `json:"many"`
	Ratio float64 `json:"ratio"` // of times the median of the rounds' ratios
	Most  float64 `json:"most"`
}

// Listing is how long it took to list all volumes.
type Listing struct {
	What    string  `json:"what"` // where the answer came from
	Volumes int     `json:"volumes"`
	Seconds float64 `json:"seconds"`
	Most    float64 `json:"most"`
}

// Memory is what the controller had resident after all that.
type Memory struct {
	Bytes int64 `json:"bytes"`
	Limit int64 `json:"limit"`
}

// noise is what an average may exceed its budget by: ten operations in a batch of 40 that were nobody's
// request, such as the refresh of a watch, or asked again because an answer came late with 32 in flight. A request
// that costs one operation more exceeds it by 1.
const noise = 0.25

func (r Request) within() bool { return r.Budget == 0 || r.Operations <= r.Budget+noise }
func (r Rate) within() bool    { return r.Ratio >= r.Least }
func (g Growth) within() bool  { return g.Ratio <= g.Most }
func (l Listing) within() bool { return l.Seconds <= l.Most }
func (m Memory) within() bool  { return m.Bytes <= m.Limit }

// Within reports whether every figure is within its bound.
func (r Result) Within() bool {
	for _, row := range r.Requests {
		if !row.within() {
			return false
		}
	}
	for _, row := range r.Rates {
		if !row.within() {
			return false
		}
	}
	for _, row := range r.Growth {
		if !row.within() {
			return false
		}
	}
	for _, row := range r.Listings {
		if !row.within() {
			return false
		}
	}
	return r.Memory.within()
}

// print prints the tables.
func (r Result) print(out io.Writer) {
	t := &text{out: out}
	t.line("")
	t.line("RADOS operations for each request, Ceph %s       librbd  rbd-csi    ratio   budget", r.Ceph)
	for _, row := range r.Requests {
		t.line("  %-44s %8s %8.2f %8s %8s  %s", row.Name, unlessZero(row.Bare, "%.2f"), row.Operations,
			unlessZero(row.ratio(), "%.2f"), unlessZero(row.Budget, "%.0f"), verdict(row.Budget > 0, row.within()))
	}
	if len(r.Rates) == 0 {
		return
	}
	t.line("")
	t.line("Done in a second                                     librbd  rbd-csi    ratio    least")
	for _, row := range r.Rates {
		t.line("  %-44s %8.0f %8.0f %8.2f %8s  %s", fmt.Sprintf("%s, %d in flight", row.What, row.InFlight), row.Bare, row.PerSecond,
			row.Ratio, unlessZero(row.Least, "%.2f"), verdict(row.Least > 0, row.within()))
	}
	t.line("")
	t.line("With the number of images %30d %8d    ratio     most", fewImages, manyImages)
	for _, row := range r.Growth {
		t.line("  %-44s %8.2f %8.2f %8.2f %8.2f  %s", row.What, row.Few, row.Many, row.Ratio, row.Most, verdict(true, row.within()))
	}
	t.line("")
	t.line("Listing all volumes, in seconds                     volumes  rbd-csi              most")
	for _, row := range r.Listings {
		t.line("  %-44s %8d %8.2f %8s %8.2f  %s", row.What, row.Volumes, row.Seconds, "", row.Most, verdict(true, row.within()))
	}
	t.line("")
	t.line("Resident memory of the controller afterwards, MB              %8.0f          %8.0f  %s",
		float64(r.Memory.Bytes)/1e6, float64(r.Memory.Limit)/1e6, verdict(true, r.Memory.within()))
}

// text prints lines; who closed the pipe does not want to read more.
type text struct{ out io.Writer }

func (t *text) line(format string, args ...any) { _, _ = fmt.Fprintf(t.out, format+"\n", args...) }

func unlessZero(figure float64, format string) string {
	if figure == 0 {
		return "-"
	}
	return fmt.Sprintf(format, figure)
}

func verdict(bounded, within bool) string {
	switch {
	case !bounded:
		return ""
	case within:
		return "ok"
	}
	return "EXCEEDED"
}

// write writes the figures to a file, unless there is no path.
func (r Result) write(path string) error {
	if path == "" {
		return nil
	}
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	if err := os.WriteFile(path, append(content, '\n'), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	fmt.Printf("\nThe figures are in %s.\n", path)
	return nil
}
