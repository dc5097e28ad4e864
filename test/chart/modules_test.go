package chart_test

import (
	"os"
	"strings"
	"testing"
)

// TestModulesAreThoseOfKubernetes holds that Helm is made of the same versions as the Kubernetes that `make demo` compiles beside
// it: most of its packages are client-go's and kubectl's, and are compiled once then. It also holds that the chart is tested
// with the same Kubernetes.
func TestModulesAreThoseOfKubernetes(t *testing.T) {
	ours, theirs := modules(t, "go.mod"), modules(t, "../kube/go.mod")
	shared := 0
	for path, version := range ours {
		other, there := theirs[path]
		if !there || replaced[path] {
			continue
		}
		shared++
		if version != other {
			t.Errorf("%s is %s here and %s in test/kube", path, version, other)
		}
	}
	if shared < 50 {
		t.Errorf("%d modules are in both, want more than 50", shared)
	}
}

// replaced are required by test/kube in old versions, and replaced when Kubernetes is built.
var replaced = map[string]bool{"k8s.io/kubectl": true, "k8s.io/apiextensions-apiserver": true}

// modules returns the versions of the modules that a go.mod requires, by path.
func modules(t *testing.T, file string) map[string]string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(strings.TrimPrefix(line, "require "))
		if len(fields) >= 2 && strings.HasPrefix(fields[1], "v") && strings.Contains(fields[0], "/") {
			versions[fields[0]] = fields[1]
		}
	}
	return versions
}
