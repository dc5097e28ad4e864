package kube

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// downTimeout bounds a clean-up, which runs when the test's own context has ended.
const downTimeout = 3 * time.Minute

// ForTest returns a cluster for one test, which ends with the test. If RBD_CSI_TEST_KUBE names the folder of a running
// one, the test gets that, and it stays; the test must therefore take a namespace of its own and
// remove what it makes. Where the machine cannot run a cluster, or runs one, the test is skipped with the reason.
//
// Bringing one up takes about 20 s. A package with several tests calls [Up] in its TestMain.
func ForTest(t testing.TB) *Cluster {
	t.Helper()
	if folder := os.Getenv(EnvCluster); folder != "" {
		cluster, err := Open(folder)
		if err != nil {
			t.Fatalf("%s=%s: %v", EnvCluster, folder, err)
		}
		return cluster
	}
	places, err := FindPlaces()
	if err != nil {
		t.Fatal(err)
	}
	opts := places.Options()
	opts.Folder = filepath.Join(places.Build, "test")
	opts.Progress = t.Output()
	cluster, err := Up(t.Context(), opts)
	switch {
	case errors.Is(err, fault.Unsupported), errors.Is(err, fault.InUse):
		t.Skipf("no cluster can run here: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), downTimeout)
		defer cancel()
		if err := cluster.Down(ctx); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return cluster
}
