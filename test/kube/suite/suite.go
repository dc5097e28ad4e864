// Package suite runs Kubernetes' own storage suite for drivers (External.Storage) against a cluster and says what
// became of each spec, those that were skipped and why included.
package suite

import (
	"cmp"
	"context"
	_ "embed" // policies.yaml
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2/types"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kube"
)

const (
	// External is what the names of the suite's specs begin with. The binary has others that come with
	// the framework.
	External = `External.Storage`
	// interruptGrace is how long Ginkgo has to clean up after it was interrupted.
	interruptGrace = time.Minute
)

// Options say what to run.
type Options struct {
	// Driver is the file that says what the driver can do (test/e2e/storage/external in Kubernetes).
	Driver string
	// Focus and Skip are regular expressions over the names of specs, below External. An empty Focus is all.
	Focus, Skip string
	// Procs is how many specs run at once. Those marked Serial run alone, after the others.
	Procs int
	// Timeout bounds the whole run.
	Timeout time.Duration
	// Folder is where the reports go; it is made.
	Folder string
	// Progress is told what Ginkgo says.
	Progress io.Writer
}

// leftOut are specs that cannot run here, with the reason: expressions over their names.
var leftOut = []struct{ names, reason string }{
	{
		`any volume data source`,
		"it wants the images hello-populator and volume-data-source-validator, whose Go modules the module proxy does not hand out",
	},
	{
		`remount stale subpath bind mount after network filesystem disruption`,
		"it wants the command crictl on the node, of which Debian has no package",
	},
}

// policies put right what specs ask for against the driver's own description.
//
//go:embed policies.yaml
var policies string

// A Spec is what became of one.
type Spec struct {
	Name string
	Time time.Duration
	// Said is why it was skipped or how it failed.
	Said string
}

// A Summary is what became of all that were to run.
type Summary struct{ Passed, Failed, Skipped []Spec }

// Run runs the specs. An error says that they could not be run, or that a time was over; that specs fail is in the summary.
func Run(ctx context.Context, cluster *kube.Cluster, opts Options) (Summary, error) {
	if err := os.MkdirAll(opts.Folder, 0o755); err != nil {
		return Summary{}, err
	}
	report := filepath.Join(opts.Folder, "report.json")
	if err := os.RemoveAll(report); err != nil {
		return Summary{}, err
	}
	if err := cluster.Apply(ctx, policies); err != nil {
		return Summary{}, fmt.Errorf("apply policies: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(cluster.Binaries(), "ginkgo"), arguments(cluster, opts, report)...)
	cmd.Env = append(os.Environ(), cluster.Environ()...)
	cmd.Stdout, cmd.Stderr = opts.Progress, opts.Progress
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = interruptGrace
	// Its status says whether a spec failed, which the report says, too.
	ran := cmd.Run()
	summary, err := Read(report)
	if err != nil {
		return Summary{}, fmt.Errorf("run the suite: %w: %w", err, cmp.Or(ran, ctx.Err()))
	}
	if ran != nil && len(summary.Failed) == 0 {
		return summary, fmt.Errorf("run the suite: %w", ran)
	}
	if len(summary.Passed)+len(summary.Failed)+len(summary.Skipped) == 0 {
		return summary, fmt.Errorf("run the suite: no spec is in focus: %w", fault.Invalid)
	}
	return summary, nil
}

func arguments(cluster *kube.Cluster, opts Options, report string) []string {
	// Ginkgo joins several focuses by "or", so there is one.
	focus := External
	if opts.Focus != "" {
		focus += ".*(" + opts.Focus + ")"
	}
	args := []string{
		"--focus=" + focus, "--procs=" + fmt.Sprint(max(1, opts.Procs)), "--no-color", "--silence-skips",
		"--json-report=" + filepath.Base(report), "--output-dir=" + filepath.Dir(report),
	}
	if opts.Timeout > 0 {
		args = append(args, "--timeout="+opts.Timeout.String())
	}
	if opts.Skip != "" {
		args = append(args, "--skip="+opts.Skip)
	}
	for _, out := range leftOut {
		args = append(args, "--skip="+out.names)
	}
	return append(args, filepath.Join(cluster.Binaries(), "e2e.test"), "--",
		"--kubeconfig="+cluster.Kubeconfig(), "--provider=skeleton", "--storage.testdriver="+opts.Driver,
		"--kubelet-root-dir="+cluster.KubeletRoot(), "--report-dir="+opts.Folder)
}

// Read reads a report of Ginkgo. Specs that were not to run, because of focus and skip, are left out.
func Read(report string) (Summary, error) {
	text, err := os.ReadFile(report)
	if err != nil {
		return Summary{}, fmt.Errorf("read the report: %w: %w", fault.NotFound, err)
	}
	var suites []types.Report
	if err := json.Unmarshal(text, &suites); err != nil {
		return Summary{}, fmt.Errorf("read %s: %w: %w", report, fault.Invalid, err)
	}
	var summary Summary
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			summary.add(spec)
		}
	}
	return summary, nil
}

func (s *Summary) add(report types.SpecReport) {
	spec := Spec{Name: report.FullText(), Time: report.RunTime, Said: report.Failure.Message}
	isSpec := report.LeafNodeType == types.NodeTypeIt
	switch {
	case report.State == types.SpecStatePassed && isSpec:
		s.Passed = append(s.Passed, spec)
	case report.State.Is(types.SpecStateFailureStates):
		// What is no spec but runs before or after all, too.
		spec.Name = cmp.Or(spec.Name, report.LeafNodeType.String())
		s.Failed = append(s.Failed, spec)
	case report.State == types.SpecStateSkipped && isSpec && spec.Said != "":
		s.Skipped = append(s.Skipped, spec)
	}
}

// Write prints the summary: counts, the specs that failed, and those that were skipped, by reason.
func (s Summary) Write(out io.Writer) {
	fmt.Fprintf(out, "%d specs passed, %d failed, %d skipped\n", len(s.Passed), len(s.Failed), len(s.Skipped))
	for _, spec := range s.Failed {
		fmt.Fprintf(out, "\nFAILED  %s\n        %s\n", spec.Name, firstLine(spec.Said))
	}
	reasons := map[string][]string{}
	for _, spec := range s.Skipped {
		reason := firstLine(spec.Said)
		reasons[reason] = append(reasons[reason], spec.Name)
	}
	ordered := make([]string, 0, len(reasons))
	for reason := range reasons {
		ordered = append(ordered, reason)
	}
	slices.SortFunc(ordered, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(reasons[b]), len(reasons[a])), cmp.Compare(a, b))
	})
	for _, reason := range ordered {
		fmt.Fprintf(out, "\nskipped %d: %s\n", len(reasons[reason]), reason)
		for _, name := range reasons[reason] {
			fmt.Fprintf(out, "        %s\n", name)
		}
	}
	for _, left := range leftOut {
		fmt.Fprintf(out, "\nleft out: %s\n        %s\n", left.reason, left.names)
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
