// Package statefulset_test tells what becomes of StatefulSets and their volumes on a real Kubernetes with the
// driver in pods, as its chart installs it, and a real Ceph: see package lab.
//
// Each test is a story in a namespace of its own. Those that take a part of the driver or of the node away come first, one after
// the other; the rest, which call t.Parallel, run side by side afterwards. Every test ends by deleting its
// namespace, and fails if one of its images is still there then. A test that fails prints what an operator would look at.
//
// A lab is brought up for the package and taken down after it, unless RBD_CSI_TEST_LAB names the build folder of one that runs.
package statefulset_test

import (
	"flag"
	"os"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

var shared lab.Shared

// sideBySide is how many of the parallel tests run at once. They wait most of the time.
const sideBySide = "6"

func TestMain(m *testing.M) {
	flag.Parse()
	if !given("test.parallel") {
		// It is a number, and so cannot be refused.
		_ = flag.Set("test.parallel", sideBySide)
	}
	os.Exit(shared.Main(m))
}

// given says whether a flag was on the command line.
func given(name string) bool {
	found := false
	flag.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}
