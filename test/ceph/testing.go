package ceph

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// downTimeout bounds a clean-up, which runs when the test's own context has ended.
const downTimeout = time.Minute

// Main is what TestMain of a package whose tests use [ForTest] hands to os.Exit.
func Main(m *testing.M) int {
	RunSupervisor()
	return m.Run()
}

// ForTest returns a cluster for one test, which ends with the test. If
// RBD_CSI_TEST_CEPH names the folder of a running cluster that has what opts ask for, the test gets
// pools of its own in that one instead, with names of their own; it must therefore take names from
// [Cluster.Pool], [Cluster.Pools] and [Cluster.DataPool]. Where no Ceph is installed the
// test is skipped with the reason.
func ForTest(t testing.TB, opts Options) *Cluster {
	t.Helper()
	if shared := fromEnvironment(t, opts); shared != nil {
		return shared.withOwnPools(t, opts)
	}
	c := startForTest(t, opts)
	t.Cleanup(func() { down(t, c) })
	return c
}

func down(t testing.TB, c *Cluster) {
	ctx, cancel := context.WithTimeout(context.Background(), downTimeout)
	defer cancel()
	if err := c.Down(ctx); err != nil {
		t.Errorf("clean up: %v", err)
	}
}

func startForTest(t testing.TB, opts Options) *Cluster {
	t.Helper()
	opts.Root = cmp.Or(opts.Root, os.Getenv(EnvRoot))
	c, err := Start(t.Context(), opts)
	skipOrFail(t, err)
	t.Logf("%s", c)
	return c
}

// skipOrFail ends the test if there is an error: as skipped where this machine cannot run Ceph.
func skipOrFail(t testing.TB, err error) {
	t.Helper()
	switch {
	case errors.Is(err, fault.Unsupported):
		t.Skipf("no cluster for this test: %v", err)
	case err != nil:
		t.Fatal(err)
	}
}

// String says in one line what runs where, and how long it took to come up.
func (c *Cluster) String() string {
	o := c.state.Options
	return fmt.Sprintf("Ceph %s in %s: monitors %d, OSDs %d, up in %.1f s",
		c.Version(), c.Dir(), o.Monitors, o.OSDs, c.Took().Seconds())
}

// fromEnvironment returns the running cluster that the environment names, or nil if it
// names none or opts ask for more than that one has.
func fromEnvironment(t testing.TB, opts Options) *Cluster {
	t.Helper()
	dir := os.Getenv(EnvCluster)
	if dir == "" {
		return nil
	}
	c, err := Attach(t.Context(), dir)
	if err != nil {
		t.Fatalf("%s=%s: %v", EnvCluster, dir, err)
	}
	if !c.offers(opts) {
		t.Logf("a cluster of its own, because the one in %s is not what the test needs", dir)
		return nil
	}
	return c
}

// offers reports whether a test that asks for opts can use this cluster.
func (c *Cluster) offers(opts Options) bool {
	have := c.state.Options
	opts = opts.withDefaults()
	return opts.OSDs <= have.OSDs && opts.Monitors <= have.Monitors && opts.Dir == "" &&
		(opts.Root == "" || opts.Root == have.Root) && opts.Address == have.Address &&
		(opts.ProposeInterval == 0 || opts.ProposeInterval == have.ProposeInterval) &&
		(!opts.ManagerModules || have.ManagerModules) && len(opts.Conf) == 0
}

// withOwnPools makes the pools and namespaces that opts ask for under names that nobody
// else uses, and removes them at the end of the test.
func (c *Cluster) withOwnPools(t testing.TB, opts Options) *Cluster {
	t.Helper()
	opts = opts.withDefaults()
	suffix := "-" + strings.ToLower(rand.Text()[:8])
	own := &Cluster{admin: c.admin, state: c.state}
	add := func(create func(context.Context, string) error, name string) string {
		if err := create(t.Context(), name+suffix); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.dropPool(t, name+suffix) })
		return name + suffix
	}
	if opts.DataPool != "" {
		own.data = add(c.CreateDataPool, opts.DataPool)
	}
	for _, pool := range opts.Pools {
		own.pools = append(own.pools, add(c.CreatePool, pool))
		for _, namespace := range opts.Namespaces[pool] {
			if err := c.CreateNamespace(t.Context(), pool+suffix, namespace); err != nil {
				t.Fatal(err)
			}
		}
	}
	return own
}

func (c *Cluster) dropPool(t testing.TB, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), downTimeout)
	defer cancel()
	if err := c.RemovePool(ctx, name); err != nil {
		t.Errorf("clean up: %v", err)
	}
}

// A Shared is one cluster for all tests of a package, started by the first test that
// needs it:
//
//	var shared = ceph.Share(ceph.Options{ProposeInterval: 50 * time.Millisecond})
//
//	func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }
//
//	func TestSomething(t *testing.T) { cluster := shared.ForTest(t, ceph.Options{}) ... }
type Shared struct {
	opts  Options
	start sync.Once
	c     *Cluster
	err   error
}

// Share names the cluster that a package's tests share. Nothing is started yet.
func Share(opts Options) *Shared { return &Shared{opts: opts} }

// Main is what TestMain hands to os.Exit: it runs the tests and takes the cluster down.
func (s *Shared) Main(m *testing.M) int {
	RunSupervisor()
	code := m.Run()
	if s.c == nil {
		return code
	}
	ctx, cancel := context.WithTimeout(context.Background(), downTimeout)
	defer cancel()
	if err := s.c.Down(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// ForTest is [ForTest] on the shared cluster: the test gets pools of its own. Of
// opts, only Pools, DataPool and Namespaces may differ from what the cluster was shared with.
func (s *Shared) ForTest(t testing.TB, opts Options) *Cluster {
	t.Helper()
	c := s.cluster(t)
	if !c.offers(opts) {
		t.Fatalf("the shared cluster (%+v) is not what the test asks for: %+v", s.opts, opts)
	}
	return c.withOwnPools(t, opts)
}

// cluster returns the running cluster, which the first caller starts and all others wait for.
func (s *Shared) cluster(t testing.TB) *Cluster {
	t.Helper()
	if c := fromEnvironment(t, s.opts); c != nil {
		return c
	}
	s.start.Do(func() {
		opts := s.opts
		opts.Root = cmp.Or(opts.Root, os.Getenv(EnvRoot))
		if opts.Pools == nil {
			opts.Pools = []string{}
		}
		// Not the context of the test that happens to be the first.
		if s.c, s.err = Start(context.Background(), opts); s.err == nil {
			t.Logf("shared: %s", s.c)
		}
	})
	skipOrFail(t, s.err)
	return s.c
}
