package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

// TestSilentCluster stops the OSD and sends 10,000 requests of all kinds, each for
// a volume of its own. Each is answered within its deadline, with a code after which it is asked again, and the controller
// holds no more than a bounded number of goroutines and threads, and of memory. As soon as the cluster answers again, so does the driver.
// With the monitor stopped requests go on over the connection that is there. All the while the controller serves another cluster as if nothing were.
func TestSilentCluster(t *testing.T) {
	m := Start(t, ceph.ForTest(t, ceph.Options{Pools: []string{"kube"}, ProposeInterval: 50 * time.Millisecond}))
	address := freeAddress(t)
	controller, err := m.Driver.Controller(t.Context(), "controller-2", "--http", address)
	check(t, err)
	s := &silence{Machine: m, controller: controller, metrics: "http://" + address + "/metrics", other: m.otherCluster(t)}
	s.whole(t, "pvc-before")
	t.Run("osd.0", func(t *testing.T) { s.round(t, "osd.0", 10_000) })
	s.served = true
	t.Run("mon.a", func(t *testing.T) { s.round(t, "mon.a", 300) })
	awaitEmpty(t, m)
}

// silence is a controller whose cluster falls silent.
type silence struct {
	*Machine
	controller *driver.Process
	metrics    string
	served     bool              // requests can be carried out all the same
	other      map[string]string // the parameters of a class of another cluster, which answers all the time
}

// otherCluster gives the driver another cluster and returns the parameters of a class there.
func (m *Machine) otherCluster(t *testing.T) map[string]string {
	t.Helper()
	other := shared.ForTest(t, ceph.Options{})
	user := "csi-" + other.Pool()
	_, err := other.AddUser(t.Context(), user, ceph.ProfileRBD(other.Pool()))
	check(t, err)
	files, err := other.ClusterDir(t.Context(), user)
	check(t, err)
	const name = "other"
	check(t, os.Symlink(files, filepath.Join(m.Driver.Folder("clusters"), name)))
	return map[string]string{"cluster": name, "pool": other.Pool()}
}

const (
	// So many send requests at once, each of which waits so long.
	silentAtOnce   = 64
	silentDeadline = 2 * time.Second
	// back is how long the driver may need when the cluster answers again.
	back = 10 * time.Second
)

func (s *silence) round(t *testing.T, daemon string, requests int64) {
	before := footprintOf(t, s.controller.PID())
	goroutines := s.goroutines(t)
	check(t, s.Ceph.Freeze(t.Context(), daemon))
	thaw := sync.OnceValue(func() error { return s.Ceph.Thaw(context.WithoutCancel(t.Context()), daemon) })
	t.Cleanup(func() { _ = thaw() })

	began := time.Now()
	elsewhere, enough := s.elsewhere(t, daemon)
	answers := s.storm(t, daemon, requests)
	enough()
	if lives := <-elsewhere; lives == 0 {
		t.Error("no volume had its life in the other cluster meanwhile")
	} else {
		t.Logf("meanwhile %d volumes had their lives in the other cluster", lives)
	}
	during, most := footprintOf(t, s.controller.PID()), s.goroutines(t)
	t.Logf("%d requests in %s: %v; goroutines %d, then %d; %+v, then %+v",
		requests, time.Since(began).Round(time.Second), answers, goroutines, most, before, during)
	if most > goroutines+400 || during.threads > before.threads+150 || during.files > before.files+100 || during.resident > before.resident+200*mib {
		t.Errorf("the controller grew to %d goroutines, %+v from %d, %+v", most, during, goroutines, before)
	}

	s.missed(t, daemon, time.Since(began))
	check(t, thaw())
	began = time.Now()
	s.whole(t, "pvc-after-"+strings.ReplaceAll(daemon, ".", "-"))
	took := time.Since(began)
	t.Logf("%s after the cluster answered again a volume was made, attached, detached and deleted", took.Round(time.Millisecond))
	if took > back {
		t.Errorf("it took %s from when the cluster answered again, want at most %s", took, back)
	}
	s.clear(t)
}

// elsewhere takes volumes through their lives in the other cluster, one after the other until it is enough, and returns how
// many. Nothing has to be asked for twice there, and everything is answered in time.
func (s *silence) elsewhere(t *testing.T, daemon string) (lives <-chan int, enough func()) {
	t.Helper()
	id, err := s.Node.ID(t.Context())
	check(t, err)
	until, enough := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		count := 0
		for ; until.Err() == nil; count++ {
			name := fmt.Sprintf("pvc-elsewhere-%s-%d", strings.ReplaceAll(daemon, ".", "-"), count)
			for i, step := range s.life(name, s.other, id) {
				ctx, cancel := context.WithTimeout(t.Context(), back)
				err := step(ctx)
				cancel()
				if err != nil {
					t.Errorf("step %d of volume %s in the other cluster: %v", i+1, name, err)
					ended <- count
					return
				}
			}
		}
		ended <- count
	}()
	return ended, enough
}

// storm sends the requests and counts their answers by code.
func (s *silence) storm(t *testing.T, daemon string, requests int64) map[codes.Code]int {
	t.Helper()
	kinds := s.requests()
	var mutex sync.Mutex
	var next, told atomic.Int64
	answers := map[codes.Code]int{}
	var workers sync.WaitGroup
	for range silentAtOnce {
		workers.Go(func() {
			for i := next.Add(1); i <= requests; i = next.Add(1) {
				name := kinds[int(i)%len(kinds)]
				ctx, cancel := context.WithTimeout(t.Context(), silentDeadline)
				began := time.Now()
				err := name.send(ctx, fmt.Sprintf("pvc-%s-%d", strings.ReplaceAll(daemon, ".", "-"), i))
				took := time.Since(began)
				cancel()
				mutex.Lock()
				answers[status.Code(err)]++
				mutex.Unlock()
				right := driver.StillGoing(err) || s.served && (err == nil || status.Code(err) == codes.NotFound)
				if took > silentDeadline+time.Second || !right {
					if told.Add(1) <= 5 {
						t.Errorf("%s after %s: %v, want a code after which it is asked again, within %s", name.name, took, err, silentDeadline)
					}
				}
			}
		})
	}
	workers.Wait()
	return answers
}

type silentRequest struct {
	name string
	send func(ctx context.Context, volume string) error
}

// requests are of each kind that asks the cluster.
func (s *silence) requests() []silentRequest {
	volume := func(name string) driver.Volume {
		return driver.Volume{Name: name, Handle: s.Pool().String() + "/" + name}
	}
	return []silentRequest{
		{"create", func(ctx context.Context, name string) error {
			_, err := s.controller.Create(ctx, driver.Claim{Volume: name, Bytes: gib, Parameters: s.Parameters()})
			return err
		}},
		{"delete", func(ctx context.Context, name string) error { return s.controller.Delete(ctx, volume(name)) }},
		{"attach", func(ctx context.Context, name string) error {
			_, err := s.controller.Attach(ctx, volume(name), "node-a:357f3ccb")
			return err
		}},
		{"detach", func(ctx context.Context, name string) error {
			return s.controller.Detach(ctx, volume(name), "node-a:357f3ccb")
		}},
		{"expand", func(ctx context.Context, name string) error {
			_, err := s.controller.Expand(ctx, volume(name), 2*gib)
			return err
		}},
		{"snapshot", func(ctx context.Context, name string) error {
			_, err := s.controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snap-" + name, SourceVolumeId: volume(name).Handle})
			return err
		}},
	}
}

// whole takes one volume through its life, asking again as the sidecars do.
func (s *silence) whole(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id, err := s.Node.ID(ctx)
	check(t, err)
	for _, step := range s.life(name, s.Parameters(), id) {
		for err := step(ctx); err != nil; err = step(ctx) {
			if !driver.StillGoing(err) || ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// life is what is asked of the controller in a volume's life, one after the other.
func (s *silence) life(name string, parameters map[string]string, node string) []func(context.Context) error {
	var made driver.Volume
	return []func(context.Context) error{
		func(ctx context.Context) (err error) {
			made, err = s.controller.Create(ctx, driver.Claim{Volume: name, Bytes: gib, Parameters: parameters})
			return err
		},
		func(ctx context.Context) error { _, err := s.controller.Attach(ctx, made, node); return err },
		func(ctx context.Context) error { return s.controller.Detach(ctx, made, node) },
		func(ctx context.Context) error { return s.controller.Delete(ctx, made) },
	}
}

// clear deletes what was made although nobody waited for it.
func (s *silence) clear(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		listed, err := s.controller.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
		check(t, err)
		if len(listed.GetEntries()) == 0 {
			return
		}
		for _, entry := range listed.GetEntries() {
			err := s.controller.Delete(t.Context(), driver.Volume{Handle: entry.GetVolume().GetVolumeId()})
			if err != nil && (!driver.StillGoing(err) || time.Now().After(deadline)) {
				t.Fatal(err)
			}
		}
	}
}

// goroutines asks the controller's metrics.
func (s *silence) goroutines(t *testing.T) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.metrics, http.NoBody)
	check(t, err)
	answer, err := http.DefaultClient.Do(request)
	check(t, err)
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if value, found := strings.CutPrefix(lines.Text(), "go_goroutines "); found {
			_, _ = io.Copy(io.Discard, answer.Body)
			number, err := strconv.Atoi(value)
			check(t, err)
			return number
		}
	}
	t.Fatal("the metrics do not tell the goroutines")
	return 0
}

// freeAddress returns an address on the loopback that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	defer listener.Close()
	return listener.Addr().String()
}
