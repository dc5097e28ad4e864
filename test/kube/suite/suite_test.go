package suite

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onsi/ginkgo/v2/types"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

func spec(name string, state types.SpecState, said string) types.SpecReport {
	return types.SpecReport{
		LeafNodeType: types.NodeTypeIt, ContainerHierarchyTexts: []string{"External Storage"}, LeafNodeText: name,
		State: state, Failure: types.Failure{Message: said},
	}
}

func TestRead(t *testing.T) {
	setup := spec("", types.SpecStateFailed, "no cluster")
	setup.LeafNodeType, setup.ContainerHierarchyTexts = types.NodeTypeSynchronizedBeforeSuite, nil
	text, err := json.Marshal([]types.Report{{SpecReports: types.SpecReports{
		spec("a", types.SpecStatePassed, ""),
		spec("b", types.SpecStateFailed, "timed out\nafter 5 m"),
		spec("c", types.SpecStateSkipped, "no snapshots"),
		spec("d", types.SpecStateSkipped, "no snapshots"),
		spec("out of focus", types.SpecStateSkipped, ""),
		spec("e", types.SpecStatePanicked, "nil"),
		setup,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	summary, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	summary.Write(&out)
	const want = `1 specs passed, 3 failed, 2 skipped

FAILED  External Storage b
        timed out

FAILED  External Storage e
        nil

FAILED  SynchronizedBeforeSuite
        no cluster

skipped 2: no snapshots
        External Storage c
        External Storage d

left out: it wants the images hello-populator and volume-data-source-validator, whose Go modules the module proxy does not hand out
        any volume data source

left out: it wants the command crictl on the node, of which Debian has no package
        remount stale subpath bind mount after network filesystem disruption
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestReadWithoutReport(t *testing.T) {
	if _, err := Read(filepath.Join(t.TempDir(), "report.json")); !errors.Is(err, fault.NotFound) {
		t.Errorf("got %v, want %v", err, fault.NotFound)
	}
}
