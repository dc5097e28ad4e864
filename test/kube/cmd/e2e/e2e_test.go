//go:build suite

// Package e2e is Kubernetes' own end-to-end test binary with the storage suites for
// drivers out of the tree (External.Storage) and what the framework itself brings along.
// The driver is named on the command line: -storage.testdriver=FILE. The build tag keeps it out of
// `go test ./...`, where there is none.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"   // what is printed of a namespace after a failure
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init" // figures that some storage specs read
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"    // waits for nodes between specs
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	_ "k8s.io/kubernetes/test/e2e/storage/external" // the flag -storage.testdriver and its suites
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
)

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "unknown arguments: %q\n", flag.Args())
		os.Exit(2)
	}
	testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	os.Exit(m.Run())
}

// TestExternalStorage is the whole suite; which specs of it run is said to Ginkgo.
func TestExternalStorage(t *testing.T) {
	if framework.TestContext.Host == "" && framework.TestContext.KubeConfig == "" {
		t.Skip("no cluster is named: -kubeconfig=FILE")
	}
	gomega.RegisterFailHandler(framework.Fail)
	suite, reporter := framework.CreateGinkgoConfig()
	ginkgo.RunSpecs(t, "External storage", suite, reporter)
}
