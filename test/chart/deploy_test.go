package chart

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestDeployAgrees compares deploy/kubernetes with what the chart renders.
func TestDeployAgrees(t *testing.T) {
	want, err := Deploy(directory)
	if err != nil {
		t.Fatal(err)
	}
	got, err := generated(filepath.Join(top, DeployDirectory))
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Concat(slices.Collect(maps.Keys(got)), slices.Collect(maps.Keys(want)))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if got[name] != want[name] {
			t.Errorf("%s/%s is not what the chart makes: run `make generate`", DeployDirectory, name)
		}
	}
}

// TestDeployIsWhole reads the objects of deploy/kubernetes strictly, the examples too: all that the chart has for these
// values, and nothing of Helm's.
func TestDeployIsWhole(t *testing.T) {
	var names []string
	files, err := filepath.Glob(filepath.Join(top, DeployDirectory, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	examples, err := filepath.Glob(filepath.Join(top, DeployDirectory, "example", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	snapshots, err := filepath.Glob(filepath.Join(top, DeployDirectory, "example", "snapshots", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range slices.Concat(files, examples, snapshots) {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.ToLower(string(content)), "helm.sh") || strings.Contains(string(content), "managed-by") {
			t.Errorf("%s: has something of Helm's", file)
		}
		for _, o := range read(t, file, string(content)) {
			if strings.HasPrefix(string(content), "# Made from ") {
				names = append(names, o.name())
			}
		}
	}
	want := []string{"Namespace rbd-csi"}
	for _, o := range render(t, Release{Name: "rbd-csi", Namespace: "rbd-csi", Values: deployValues}) {
		if _, test := o.Object.(*corev1.Pod); !test && !strings.HasSuffix(o.name(), "-test") {
			want = append(want, o.name())
		}
	}
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(names, "\n"), strings.Join(want, "\n"))
	}
}
