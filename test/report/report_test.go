package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const start = `{"Action":"start","Package":"github.com/rbd-csi/rbd-csi/pkg/a"}` + "\n"
	cases := []struct {
		name   string
		stream string
		well   bool
		want   []string
		not    []string
	}{
		{
			name: "a passed test",
			stream: start +
				`{"Action":"output","Package":"github.com/rbd-csi/rbd-csi/pkg/a","Test":"TestA","Output":"    a_test.go:3: noise\n"}` + "\n" +
				`{"Action":"pass","Package":"github.com/rbd-csi/rbd-csi/pkg/a","Test":"TestA","Elapsed":1}` + "\n" +
				`{"Action":"pass","Package":"github.com/rbd-csi/rbd-csi/pkg/a","Elapsed":1.5}` + "\n",
			well: true,
			want: []string{"ok     pkg/a ", "1.5 s  1 passed\n", "\n1 passed, 0 failed, 0 skipped\n"},
			not:  []string{"noise", "Skipped:"},
		},
		{
			name: "a slow test has a line",
			stream: `{"Action":"pass","Package":"p","Test":"TestSlow","Elapsed":12}` + "\n" +
				`{"Action":"pass","Package":"p","Test":"TestSlow/part","Elapsed":12}` + "\n",
			well: true,
			want: []string{"p TestSlow 12 s\n"},
			not:  []string{"TestSlow/part"},
		},
		{
			name: "skipped tests are listed by reason",
			stream: `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}` + "\n" +
				`{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:12: wants root\n"}` + "\n" +
				`{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}` + "\n" +
				`{"Action":"skip","Package":"p","Test":"TestA"}` + "\n" +
				`{"Action":"skip","Package":"p","Test":"TestB"}` + "\n" +
				`{"Action":"output","Package":"p","Test":"TestD","Output":"    a_test.go:9: skipped: wants root\n"}` + "\n" +
				`{"Action":"skip","Package":"p","Test":"TestD"}` + "\n" +
				`{"Action":"pass","Package":"p","Test":"TestC"}` + "\n" +
				`{"Action":"pass","Package":"p"}` + "\n",
			well: true,
			want: []string{"1 passed, 3 skipped\n", "  wants root\n    p TestA\n    p TestD\n", "  (no reason given)\n    p TestB\n", "\n1 passed, 0 failed, 3 skipped\n"},
			not:  []string{"within tests"},
		},
		{
			name: "what a test left out",
			stream: `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: skipped: snapshots\n"}` + "\n" +
				`{"Action":"pass","Package":"p","Test":"TestA"}` + "\n",
			well: true,
			want: []string{"Skipped within tests:\n  p TestA: snapshots\n"},
		},
		{
			name: "a failed test shows its output and no other's",
			stream: `{"Action":"output","Package":"p","Test":"TestA","Output":"got 1, want 2\n"}` + "\n" +
				`{"Action":"fail","Package":"p","Test":"TestA"}` + "\n" +
				`{"Action":"output","Package":"p","Test":"TestB","Output":"noise\n"}` + "\n" +
				`{"Action":"pass","Package":"p","Test":"TestB"}` + "\n" +
				`{"Action":"fail","Package":"p","Elapsed":2}` + "\n",
			want: []string{"FAIL   p ", "got 1, want 2\n", "Failed: p\n", "\n1 passed, 1 failed, 0 skipped\n"},
			not:  []string{"noise"},
		},
		{
			name: "a process that died shows the test that was running",
			stream: `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" +
				`{"Action":"output","Package":"p","Test":"TestB","Output":"panic: boom\n"}` + "\n" +
				`{"Action":"fail","Package":"p"}` + "\n",
			want: []string{"panic: boom\n", "Failed: p\n"},
		},
		{
			name: "a process that hung shows who waits in this repository",
			stream: `{"Action":"output","Package":"p","Test":"TestB","Output":"panic: test timed out\n\ngoroutine 1 [chan receive]:\ntesting.(*T).Run()\n\n"}` + "\n" +
				`{"Action":"output","Package":"p","Test":"TestB","Output":"goroutine 7 [chan send]:\ngithub.com/rbd-csi/rbd-csi/pkg/x.Do()\n\n"}` + "\n" +
				`{"Action":"output","Package":"p","Test":"TestB","Output":"goroutine 8 [select]:\nnet/http.serve()\n"}` + "\n" +
				`{"Action":"fail","Package":"p"}` + "\n",
			want: []string{"panic: test timed out\n", "goroutine 7 [chan send]:\n", "(2 more goroutines"},
			not:  []string{"testing.", "net/http"},
		},
		{
			name: "a package that cannot be built",
			stream: `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" +
				`{"ImportPath":"q [q.test]","Action":"build-output","Output":"undefined: x\n"}` + "\n" +
				`{"ImportPath":"q [q.test]","Action":"build-fail"}` + "\n" +
				`{"Action":"fail","Package":"q","FailedBuild":"q [q.test]"}` + "\n",
			want: []string{"FAIL   q ", "undefined: x\n", "Failed: q\n"},
		},
		{
			name:   "no test at all",
			stream: `{"Action":"skip","Package":"p"}` + "\n",
			want:   []string{"\n0 passed, 0 failed, 0 skipped\n"},
		},
		{
			name:   "lines that are no events are shown",
			stream: "go: downloading\n" + `{"Action":"pass","Package":"p","Test":"TestA"}`,
			well:   true,
			want:   []string{"go: downloading\n"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			r := newReport(&out)
			if err := feed(r, strings.NewReader(c.stream)); err != nil {
				t.Fatal(err)
			}
			if got := r.summary(); got != c.well {
				t.Errorf("summary() = %v, want %v", got, c.well)
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("got no %q in:\n%s", want, out.String())
				}
			}
			for _, not := range c.not {
				if strings.Contains(out.String(), not) {
					t.Errorf("got %q, want it left out of:\n%s", not, out.String())
				}
			}
		})
	}
}

func TestRunReportsACommandThatFails(t *testing.T) {
	var out strings.Builder
	r := newReport(&out)
	pass := `echo '{"Action":"pass","Package":"p","Test":"TestA"}'`
	if err := run(t.Context(), r, "good", pass); err != nil {
		t.Errorf("run(%q) = %v, want nil", pass, err)
	}
	err := run(t.Context(), r, "bad", pass+"; exit 3")
	if err == nil {
		t.Fatal("run of a command that exits with 3 = nil, want an error")
	}
	r.broken("bad", err)
	if r.summary() {
		t.Errorf("summary() = true after a command failed, want false:\n%s", out.String())
	}
}
