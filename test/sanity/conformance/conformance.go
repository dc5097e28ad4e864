// Package conformance runs csi-sanity, the conformance suite of the CSI project,
// against sockets, and says which of its cases it left out and why.
package conformance

import (
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
)

// Options say what to test.
type Options struct {
	Controller string // socket of the controller
	Node       string // socket of the node; it may be the same
	Parameters map[string]string
	Directory  string  // for targets and staging paths; it exists
	Bytes      int64   // size of the volumes
	On         Machine // where the node is; nil: here
}

// A Machine has the paths that kubelet makes and removes around calls of a node which is not on this machine.
type Machine interface {
	Mkdir(path string) error
	RemoveAll(path string) error
	// Kind says what is at a path: file, directory, not_found or other.
	Kind(path string) (string, error)
}

// unclaimed says for each reason with which the suite may leave a case out why the
// driver does not claim what it is about. A case that is left out for any other reason fails the
// test, so that no capability is lost unnoticed.
var unclaimed = map[string]string{
	"SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported":     "a snapshot can be used wherever its volume can, so there is nothing to choose",
	"ControllerModifyVolume not supported":                 noChange,
	"Modify Volume not supported":                          noChange,
	"Modify volume not supported":                          noChange,
	"ControllerGetVolumeHealth not supported":              noHealth,
	"ControllerListVolumeHealth not supported":             noHealth,
	"NodeGetVolumeHealth not supported":                    noHealth,
	"NodeGetStorageHealth not supported":                   noHealth,
	"ControllerPublishVolume.readonly field not supported": "a volume is read-only by its access mode alone (PUBLISH_READONLY)",
	"node does not report accessible topology":             "the node runs without --topology here: a pool can be reached from everywhere",
	"testnodevolumeattachlimit not enabled":                "a node has no limit of volumes",
}

const (
	noChange = "no parameter of a volume can be changed (MODIFY_VOLUME)"
	noHealth = "the driver does not judge a volume's health (GET_VOLUME_HEALTH, LIST_VOLUME_HEALTH, GET_STORAGE_HEALTH)"
)

// Run runs the suite; it can run once in a process, because Ginkgo can.
func Run(t *testing.T, options Options) {
	config := sanity.NewTestConfig()
	config.Address = options.Node
	config.ControllerAddress = options.Controller
	config.TestVolumeParameters = options.Parameters
	config.TestVolumeSize = options.Bytes
	config.TestVolumeExpandSize = 2 * options.Bytes
	config.TargetPath = filepath.Join(options.Directory, "target")
	config.StagingPath = filepath.Join(options.Directory, "staging")

	if options.On != nil {
		reach(&config, options.On)
	}

	var report types.Report
	ginkgo.ReportAfterSuite("what was skipped", func(r ginkgo.Report) { report = r })
	gomega.RegisterFailHandler(ginkgo.Fail)
	context := sanity.GinkgoTest(&config)
	defer context.Finalize()
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct, reporter.NoColor = true, true
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)
	tell(t, report)
}

// reach has the suite make and look at the node's paths where the node is.
func reach(config *sanity.TestConfig, on Machine) {
	makeDirectory := func(path string) (string, error) { return path, on.Mkdir(path) }
	config.CreateTargetDir, config.CreateStagingDir = makeDirectory, makeDirectory
	config.RemoveTargetPath, config.RemoveStagingPath = on.RemoveAll, on.RemoveAll
	config.CheckPath = func(path string) (sanity.PathKind, error) {
		kind, err := on.Kind(path)
		if err != nil {
			return "", err
		}
		return sanity.IsPathKind(kind)
	}
}

// tell lists by name what was left out, with the reason.
func tell(t *testing.T, report types.Report) {
	t.Helper()
	ran := 0
	for _, spec := range report.SpecReports {
		switch reason := spec.Failure.Message; {
		case spec.LeafNodeType != types.NodeTypeIt:
		case spec.State == types.SpecStatePending:
			t.Logf("left out: %q, because csi-sanity itself has set it aside", spec.FullText())
		case spec.State != types.SpecStateSkipped:
			ran++
		case unclaimed[reason] == "":
			t.Errorf("case %q was left out: %q, want it to run", spec.FullText(), reason)
		default:
			t.Logf("left out: %q, because %s", spec.FullText(), unclaimed[reason])
		}
	}
	t.Logf("csi-sanity: %d cases run", ran)
}
