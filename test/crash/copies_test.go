package crash

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/test/ceph"
)

// TestKillCopies is TestKill for snapshots, group snapshots and clones: see the package's comment.
func TestKillCopies(t *testing.T) {
	killCopies(t, course{deepest: 6, kept: 5})
}

// TestKillFlatten is TestKillCopies with chains of clones that are flattened meanwhile.
func TestKillFlatten(t *testing.T) {
	killCopies(t, course{deepest: 10, kept: 3, flags: []string{"--flatten-depth", "3", "--flatten-every", "2s"}, depth: 3})
}

// A course is how such a test goes.
type course struct {
	deepest int      // clones of clones are made up to that depth
	kept    int      // one of so many things is kept until the rest has gone
	flags   []string // of the controllers
	depth   int      // how deep what is kept may be in the end, 0 for any
}

func killCopies(t *testing.T, c course) {
	seed := uint64(fromEnvironment(t, "RBD_CSI_CRASH_SEED", int(rand.Uint32())))
	requests := fromEnvironment(t, "RBD_CSI_CRASH_COPIES", 60)
	if c.depth > 0 {
		requests /= 2
	}
	t.Logf("RBD_CSI_CRASH_SEED=%d: %d requests, and then everything is deleted", seed, requests)

	w := newWorld(t, seed, ceph.Options{
		Pools: []string{"rbd", "more"}, Namespaces: map[string][]string{"rbd": {"tenant"}},
		ProposeInterval: 50 * time.Millisecond,
		// Whoever is killed while he holds an image is thought to be at it for so many seconds, in place
		// of 30: a third of the test's time would be waiting.
		Conf: map[string]string{"osd_client_watch_timeout": "10"},
	})
	pools := w.cluster.Pools()
	w.places = []place{{pool: pools[0]}, {pool: pools[0], namespace: "tenant"}, {pool: pools[1]}}
	w.startControllers(t, 12, c.flags...)

	p := newPlanner(seed, len(w.places), c.deepest)
	p.plan(requests)
	p.deleteAllBut(c.kept)
	volumes, snapshots := slices.Clone(p.volumes), p.allSnapshots()
	if !w.performWhileKilled(t, p.requests) {
		return
	}
	w.await(t, func(ctx context.Context) []string { return w.differences(ctx, volumes, snapshots) })
	w.compareAll(t, volumes)
	for _, volume := range volumes {
		if _, idle := w.wrongSnapshots(t.Context(), volume, snapshots); len(idle) > 0 {
			t.Log(idle)
		}
	}
	if c.depth > 0 {
		w.await(t, func(ctx context.Context) []string { return w.tooDeep(ctx, volumes, c.depth) })
	}
	if w.performWhileKilled(t, p.deleteRest()) && !w.await(t, w.left) {
		w.explainLeft(t)
	}
}

// performWhileKilled makes the requests while the controllers are killed, and reports whether all
// were answered.
func (w *world) performWhileKilled(t *testing.T, requests []*request) bool {
	t.Helper()
	begun := time.Now()
	kills := w.killWhile(t, func(ctx context.Context) { w.perform(ctx, t, requests) })
	t.Logf("%d requests answered after %.0f s, with processes killed: %v", len(requests), time.Since(begun).Seconds(), kills)
	return !t.Failed()
}
