package main

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
)

func TestWithin(t *testing.T) {
	good := func() Result {
		return Result{
			Requests: []Request{{Name: "create", Operations: 9, Budget: 9}, {Name: "get", Operations: 50}},
			Rates:    []Rate{{InFlight: 1, Ratio: 0.1}, {InFlight: 32, Ratio: 0.85, Least: 0.85}},
			Growth:   []Growth{{What: "operations", Few: 5, Many: 5.5, Ratio: 1.1, Most: 1.1}},
			Listings: []Listing{{Volumes: 10_000, Seconds: 15, Most: 15}},
			Memory:   Memory{Bytes: 80e6, Limit: 80e6},
		}
	}
	cases := []struct {
		name string
		make func(*Result)
		want bool
	}{
		{"all at their bounds", func(*Result) {}, true},
		{"a request with the noise of a batch", func(r *Result) { r.Requests[0].Operations = 9.2 }, true},
		{"a request over its budget", func(r *Result) { r.Requests[0].Operations = 9.3 }, false},
		{"a rate under its ratio", func(r *Result) { r.Rates[1].Ratio = 0.84 }, false},
		{"growth over its bound", func(r *Result) { r.Growth[0].Ratio = 1.11 }, false},
		{"a listing that is too slow", func(r *Result) { r.Listings[0].Seconds = 15.01 }, false},
		{"memory over its limit", func(r *Result) { r.Memory.Bytes++ }, false},
		{"only counts", func(r *Result) { *r = Result{Requests: r.Requests} }, true},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			result := good()
			test.make(&result)
			if got := result.Within(); got != test.want {
				t.Errorf("got %t, want %t", got, test.want)
			}
			var out strings.Builder
			result.print(&out)
			if got := strings.Contains(out.String(), "EXCEEDED"); got == test.want {
				t.Errorf("printed verdict EXCEEDED: got %t, want %t:\n%s", got, !test.want, &out)
			}
		})
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		figures []float64
		want    float64
	}{
		{[]float64{3}, 3},
		{[]float64{5, 1, 100}, 5},
		{[]float64{4, 1, 2, 3}, 2.5},
	} {
		if got := median(test.figures); got != test.want {
			t.Errorf("median: got %v, want %v", got, test.want)
		}
	}
}

func TestResidentMemory(t *testing.T) {
	if _, err := residentMemory(-1); err == nil {
		t.Error("memory of no process: got no error, want one")
	}
}

func TestAtOnce(t *testing.T) {
	var done atomic.Int64
	if err := atOnce(t.Context(), 4, 10, func(number int) error { done.Add(1 << number); return nil }); err != nil || done.Load() != 1<<10-1 {
		t.Errorf("calls made: %b, error %v, want each of ten once", done.Load(), err)
	}
	failure := errors.New("no")
	done.Store(0)
	err := atOnce(t.Context(), 1, 10, func(int) error { done.Add(1); return failure })
	if !errors.Is(err, failure) || done.Load() != 1 {
		t.Errorf("%d calls, error %v, want one that failed", done.Load(), err)
	}
}
