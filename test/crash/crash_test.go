package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

func TestMain(m *testing.M) { os.Exit(ceph.Main(m)) }

const (
	cluster = "lab"
	// atOnce is how many volumes are worked on at the same time.
	atOnce = 6
	// patience bounds the whole of a volume's life, with all its repetitions.
	patience = 10 * time.Minute
	// settling is how long after the last request everything may take to be gone.
	settling = 90 * time.Second
)

// TestKill is the test of this package.
func TestKill(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it mounts filesystems, which needs root")
	}
	seed := uint64(fromEnvironment(t, "RBD_CSI_CRASH_SEED", int(rand.Uint32())))
	volumes := fromEnvironment(t, "RBD_CSI_CRASH_VOLUMES", 200)
	staged := fromEnvironment(t, "RBD_CSI_CRASH_STAGED", 40)
	t.Logf("RBD_CSI_CRASH_SEED=%d: %d volumes, of which %d are staged", seed, volumes, staged)

	w := newWorld(t, seed, ceph.Options{})
	w.startControllers(t, 20)
	w.startNodes(t)
	lives := plan(seed, volumes, staged)
	begun := time.Now()
	kills := w.killWhile(t, func(ctx context.Context) { w.live(ctx, t, lives) })
	t.Logf("all requests answered after %.0f s, with processes killed: %v", time.Since(begun).Seconds(), kills)
	if !t.Failed() {
		w.settle(t, lives)
	}
}

func fromEnvironment(t *testing.T, name string, usual int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	number, err := strconv.Atoi(text)
	if err != nil || number < 0 {
		t.Fatalf("%s=%s: want a number", name, text)
	}
	return number
}

// A world is a cluster with controllers and nodes.
type world struct {
	seed        uint64
	cluster     *ceph.Cluster
	folder      string
	driver      *driver.Driver
	controllers []*mortal
	nodes       []*mortal
	before      driver.Remains // what the machine had before
	places      []place        // where volumes and their copies are made, if not in the first pool alone
}

// newWorld starts the cluster, and no process of the driver yet.
func newWorld(t *testing.T, seed uint64, options ceph.Options) *world {
	w := &world{seed: seed, cluster: ceph.ForTest(t, options)}
	binary, err := driver.Binary(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if w.folder, err = driver.NewFolder("rbd-csi-crash"); err != nil {
		t.Fatal(err)
	}
	if w.before, err = driver.Look(w.folder); err != nil {
		t.Fatal(err)
	}
	directory := w.addUser(t)
	w.driver, err = driver.New(driver.Options{
		Binary: binary, Clusters: map[string]string{cluster: directory}, Folder: w.folder, Verbosity: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, w.driver) })
	return w
}

// startControllers starts two, which are killed after so many answers at most.
func (w *world) startControllers(t *testing.T, most int, flags ...string) {
	t.Helper()
	// A look through the trash every second: what the other one left is not to wait for minutes.
	flags = append([]string{"--purge-every", "1s"}, flags...)
	for _, name := range []string{"controller-1", "controller-2"} {
		p, err := w.driver.Controller(t.Context(), name, flags...)
		w.controllers = append(w.controllers, newMortal(t, p, err, most))
	}
}

func (w *world) startNodes(t *testing.T) {
	t.Helper()
	for _, name := range []string{"node-a", "node-b"} {
		p, err := w.driver.Node(t.Context(), name)
		w.nodes = append(w.nodes, newMortal(t, p, err, 6))
	}
}

// addUser makes the driver's Ceph user and returns its directory.
func (w *world) addUser(t *testing.T) string {
	t.Helper()
	user := "crash-" + w.cluster.Pool()
	if _, err := w.cluster.AddUser(t.Context(), user, ceph.ProfileRBD(w.cluster.Pools()...)); err != nil {
		t.Fatal(err)
	}
	directory, err := w.cluster.ClusterDir(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return directory
}

// end takes the driver down. After a failure the logs are worth more than the space.
func end(t *testing.T, d *driver.Driver) {
	if t.Failed() {
		logs, err := d.KeepLogs(filepath.Join(os.TempDir(), "rbd-csi-crash-logs"))
		t.Logf("logs: %v, %v", logs, err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("take the driver down: got %v, want nil", err)
	}
}

// live leads all lives, a few at a time.
func (w *world) live(ctx context.Context, t *testing.T, lives []*life) {
	next := make(chan *life)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for l := range next {
				ctx, cancel := context.WithTimeout(ctx, patience)
				if err := w.lead(ctx, l); err != nil {
					t.Errorf("volume %s: %v", l.claim.Volume, err)
				}
				cancel()
			}
		})
	}
	for _, l := range lives {
		next <- l
	}
	close(next)
	all.Wait()
}

// killWhile kills the processes again and again until do returns, and returns how often each
// was. All of them run then.
func (w *world) killWhile(t *testing.T, do func(context.Context)) map[string]int {
	living, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	killing, stop := context.WithCancel(living)
	defer stop()
	kills := map[string]int{}
	var mutex sync.Mutex
	var killers sync.WaitGroup
	for i, m := range append(append([]*mortal{}, w.controllers...), w.nodes...) {
		random := rand.New(rand.NewPCG(w.seed, 1000+uint64(i)))
		killers.Go(func() {
			count, err := m.dieAgainAndAgain(killing, random)
			if err != nil {
				t.Errorf("kill %s: %v", m.Name, err)
				giveUp()
			}
			mutex.Lock()
			defer mutex.Unlock()
			kills[m.Name] = count
		})
	}
	do(living)
	stop()
	killers.Wait()
	return kills
}

// newMortal takes what [driver.Driver.Controller] or Node returned.
func newMortal(t *testing.T, p *driver.Process, err error, most int) *mortal {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return &mortal{Process: p, most: most, answered: make(chan time.Duration, 1000)}
}

// A mortal is a process that is killed again and again.
type mortal struct {
	*driver.Process
	// most is how many requests it may answer before it is killed.
	most int
	// answered gets the duration of each request that it has answered.
	answered chan time.Duration
}

// dieAgainAndAgain kills the process and starts it until ctx ends, and returns how often. A life
// lasts for a random number of answers, and ends at a random moment within about the
// duration of a request after the last of them: so some requests get done in any life but the
// shortest, however slow the machine is, and the end is in the middle of others. It is an error if
// the process ends by itself.
func (m *mortal) dieAgainAndAgain(ctx context.Context, random *rand.Rand) (count int, err error) {
	for ; ; count++ {
		moment := 500 * time.Millisecond
		for range random.IntN(m.most) {
			select {
			case moment = <-m.answered:
			case <-m.Ended():
				return count, fmt.Errorf("it ended by itself: %s", m.Tail())
			case <-ctx.Done():
				return count, nil
			}
		}
		end := time.NewTimer(time.Duration(random.Float64() * float64(2*moment)))
		select {
		case <-end.C:
		case <-m.Ended():
			return count, fmt.Errorf("it ended by itself: %s", m.Tail())
		case <-ctx.Done():
			return count, nil
		}
		// Started also when ctx has just ended.
		if err := errors.Join(m.Kill(), m.startAgain(context.WithoutCancel(ctx))); err != nil {
			return count, err
		}
	}
}

// startAgain starts the process; one that ends at once is started again as kubelet would, but not
// for ever.
func (m *mortal) startAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var err error
	for range 5 {
		if err = m.Start(ctx); err == nil {
			return nil
		}
	}
	return err
}

// uuid returns a UUID of the random source, version 4 of RFC 9562.
func uuid(random *rand.Rand) string {
	a, b := random.Uint64(), random.Uint64()
	return fmt.Sprintf("%08x-%04x-4%03x-a%03x-%012x", a>>32, a>>16&0xffff, a&0xfff, b>>48&0xfff, b&0xffffffffffff)
}
