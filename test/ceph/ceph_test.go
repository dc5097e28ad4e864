package ceph

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// envOwner makes the test binary a program that starts a cluster in the folder it names and
// waits to be killed.
const envOwner = "RBD_CSI_TEST_CEPH_OWNER"

// ownedFile is what that program puts into the folder when the cluster is up.
const ownedFile = "owned"

func TestMain(m *testing.M) {
	RunSupervisor()
	if dir := os.Getenv(envOwner); dir != "" {
		os.Exit(own(dir))
	}
	os.Exit(Main(m))
}

func own(dir string) int {
	if _, err := Start(context.Background(), Options{Dir: dir, Root: os.Getenv(EnvRoot)}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.WriteFile(filepath.Join(dir, ownedFile), nil, 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {}
}

func TestOneMonitorOneOSD(t *testing.T) {
	c := startForTest(t, Options{Namespaces: map[string][]string{"rbd": {"ns"}}})
	t.Cleanup(func() { down(t, c) })
	if got, err := c.RBD(t.Context(), "namespace", "ls", c.Pool(), "--format", "json"); err != nil || !strings.Contains(got, `"ns"`) {
		t.Errorf("got namespaces %s and %v, want ns", got, err)
	}
	checkPace(t, c, "1.000000")

	pids := pidsOf(t, c)
	base := basePort(t, c.Dir())
	if len(pids) != 3 {
		t.Errorf("got daemons %v, want three", pids)
	}
	down(t, c)
	if left := processesOf(t, c.Dir()); len(left) > 0 {
		t.Errorf("after Down got processes %v", left)
	}
	if _, err := os.Stat(c.Dir()); !os.IsNotExist(err) {
		t.Errorf("after Down got %v for the folder, want that it does not exist", err)
	}
	if listener, err := claimBlock(defaultAddress, base); err != nil {
		t.Errorf("after Down: %v", err)
	} else {
		listener.Close()
	}
	if err := c.Down(t.Context()); err != nil {
		t.Errorf("second Down: got %v, want nil", err)
	}
	if _, err := Attach(t.Context(), c.Dir()); !errors.Is(err, fault.NotFound) {
		t.Errorf("attach after Down: got %v, want a fault.NotFound", err)
	}
}

// TestOpCount shows that an idle cluster counts nothing and that the same work counts the same.
func TestOpCount(t *testing.T) {
	c := ForTest(t, Options{})
	count := func() int64 {
		t.Helper()
		n, err := c.OpCount(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// The duration is the thing measured here.
	const idle = 10 * time.Second
	start, end := count(), time.After(idle)
	for waiting := true; waiting; {
		select {
		case <-end:
			waiting = false
		case <-time.After(pollInterval):
		}
		if now := count(); now != start {
			t.Fatalf("got %d operations in an idle cluster, want 0", now-start)
		}
	}
	var costs []int64
	for i := range 3 {
		before := count()
		if _, err := c.RBD(t.Context(), "create", "--size", "1G", fmt.Sprintf("%s/image%d", c.Pool(), i)); err != nil {
			t.Fatal(err)
		}
		costs = append(costs, count()-before)
	}
	t.Logf("operations of `rbd create`: %v", costs)
	// librbd's bare minimum is 6; the tool adds nothing to it on 16.2.
	if costs[1] < 6 || costs[1] > 10 || costs[1] != costs[2] {
		t.Errorf("got %v operations for three times `rbd create`, want about 6 and the same each time", costs)
	}
}

func TestUsersAndTheirFolders(t *testing.T) {
	c := ForTest(t, Options{Pools: []string{"mine", "other"}, ProposeInterval: 50 * time.Millisecond})
	key, err := c.AddUser(t.Context(), "driver", ProfileRBD(c.Pool()))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := c.ClusterDir(t.Context(), "driver")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "keyring")); err != nil || !strings.Contains(string(text), key) {
		t.Errorf("got %v and a keyring without the key", err)
	}
	as := func(args ...string) error {
		args = append([]string{"--conf", filepath.Join(dir, "ceph.conf"), "--keyring", filepath.Join(dir, "keyring"), "--id", "driver"}, args...)
		_, err := c.admin.tools.run(t.Context(), "rbd", args...)
		return err
	}
	if err := as("create", "--size", "1G", c.Pools()[0]+"/image"); err != nil {
		t.Errorf("in the user's pool: %v", err)
	}
	if err := as("create", "--size", "1G", c.Pools()[1]+"/image"); err == nil {
		t.Error("got no error in a pool that is not the user's")
	}
}

// TestDataPools puts an image's data on an erasure-coded pool with each number of OSDs.
func TestDataPools(t *testing.T) {
	needCeph(t)
	content := bytes.Repeat([]byte("sixteen bytes or"), 1<<20/16*5)
	for osds := 1; osds <= 3; osds++ {
		t.Run(fmt.Sprintf("%d OSDs", osds), func(t *testing.T) {
			c := startForTest(t, Options{OSDs: osds, DataPool: "ec", ProposeInterval: 50 * time.Millisecond})
			t.Cleanup(func() { down(t, c) })
			// In the cluster's folder, because that is seen in a root as well.
			file := filepath.Join(c.Dir(), "content")
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			image := c.Pool() + "/image"
			if _, err := c.RBD(t.Context(), "import", "--no-progress", "--data-pool", c.DataPool(), file, image); err != nil {
				t.Fatal(err)
			}
			if got, err := c.RBD(t.Context(), "export", "--no-progress", image, "-"); err != nil || got != string(content) {
				t.Errorf("got %d bytes and %v, want the %d bytes that were written", len(got), err, len(content))
			}
			if objects, err := c.Rados(t.Context(), "ls", "--pool", c.DataPool()); err != nil || strings.Count(objects, "rbd_data.") != 2 {
				t.Errorf("got objects %q in the data pool and %v, want two of data", objects, err)
			}
		})
	}
}

// TestFaults takes a cluster of three through what happens to machines.
func TestFaults(t *testing.T) {
	needCeph(t)
	c := startForTest(t, Options{OSDs: 3, Monitors: 3, ProposeInterval: 50 * time.Millisecond})
	t.Cleanup(func() { down(t, c) })
	ctx := t.Context()
	write := func(name string) error {
		bounded, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		_, err := c.RBD(bounded, "create", "--size", "1G", c.Pool()+"/"+name)
		return err
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	must("healthy", write("first"))
	pids := pidsOf(t, c)
	if len(pids) != 7 {
		t.Errorf("got daemons %v, want three monitors, a manager and three OSDs", pids)
	}

	must("kill a monitor", c.Kill(ctx, "mon.c"))
	must("stop an OSD", c.Stop(ctx, "osd.2"))
	must("without a monitor and an OSD", write("second"))
	if _, err := c.OpCount(ctx); !errors.Is(err, fault.Unavailable) {
		t.Errorf("count with an OSD down: got %v, want a fault.Unavailable", err)
	}
	if err := c.Kill(ctx, "osd.2"); !errors.Is(err, fault.Unavailable) {
		t.Errorf("kill a dead OSD: got %v, want a fault.Unavailable", err)
	}
	if err := c.Restart(ctx, "osd.1"); !errors.Is(err, fault.Exists) {
		t.Errorf("start a living OSD: got %v, want a fault.Exists", err)
	}
	if err := c.Kill(ctx, "osd.7"); !errors.Is(err, fault.NotFound) {
		t.Errorf("kill an OSD that there is not: got %v, want a fault.NotFound", err)
	}
	must("restart the OSD", c.Restart(ctx, "osd.2"))
	must("restart the monitor", c.Restart(ctx, "mon.c"))
	must("health", c.WaitHealthy(ctx))
	if now := pidsOf(t, c); now["osd.2"] == pids["osd.2"] || now["osd.1"] != pids["osd.1"] {
		t.Errorf("got %v after %v, want a new osd.2 and the same osd.1", now, pids)
	}

	for name := range pids {
		must("freeze "+name, c.Freeze(ctx, name))
	}
	bounded, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := c.RBD(bounded, "ls", c.Pool()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with all frozen: got %v, want that the deadline passes", err)
	}
	for name := range pids {
		must("thaw "+name, c.Thaw(ctx, name))
	}
	must("thawed", write("third"))
}

func TestManagerCanBePaused(t *testing.T) {
	c := ForTest(t, Options{Pools: []string{}})
	resume, err := c.PauseManager(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// A process that is running on another processor stops at its next interrupt.
	eventually(t, "the manager is stopped", func() bool { return processState(t, pidsOf(t, c)["mgr.x"]) == "T" })
	if err := resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the manager runs again", func() bool { return processState(t, pidsOf(t, c)["mgr.x"]) != "T" })
}

func TestSideBySide(t *testing.T) {
	needCeph(t)
	const clusters = 3
	var group sync.WaitGroup
	seen := make(map[string]bool)
	var mu sync.Mutex
	for range clusters {
		group.Go(func() {
			c, err := Start(t.Context(), Options{Root: os.Getenv(EnvRoot)})
			if err != nil {
				t.Error(err)
				return
			}
			defer down(t, c)
			t.Log(c)
			fsid, err := c.Ceph(t.Context(), "fsid")
			if err != nil || strings.TrimSpace(fsid) != c.FSID() {
				t.Errorf("got cluster %q and %v, want %s", fsid, err, c.FSID())
			}
			mu.Lock()
			defer mu.Unlock()
			seen[fsid] = true
		})
	}
	group.Wait()
	if len(seen) != clusters {
		t.Errorf("got %d clusters, want %d", len(seen), clusters)
	}
}

// TestOwnerKilled kills the process that starts a cluster, by SIGKILL, when it has come to a
// certain file, and then nothing is left.
func TestOwnerKilled(t *testing.T) {
	needCeph(t)
	for _, moment := range []string{lockFile, confFile, "osd.0", "mon.a.asok", "osd.0.asok", stateFile, ownedFile} {
		t.Run(moment, func(t *testing.T) {
			dir, owner := startOwner(t)
			eventually(t, moment+" is there", func() bool {
				_, err := os.Stat(filepath.Join(dir, moment))
				return err == nil
			})
			kill(t, owner.Process.Pid)
			_ = owner.Wait()
			eventually(t, "folder and processes are gone", func() bool {
				_, err := os.Stat(dir)
				return os.IsNotExist(err) && len(processesOf(t, dir)) == 0
			})
		})
	}
}

// TestSupervisorKilled kills the supervisor instead: the daemons end with it, and the folder
// goes when it is used again.
func TestSupervisorKilled(t *testing.T) {
	c := startForTest(t, Options{})
	t.Cleanup(func() { down(t, c) })
	kill(t, c.state.Supervisor)
	eventually(t, "the daemons are gone", func() bool { return len(processesOf(t, c.Dir())) == 0 })
	// The daemons may end before its socket does, and who asks in between is not told what became of that.
	eventually(t, "who asks is told that there is no supervisor", func() bool {
		_, err := c.Daemons(t.Context())
		return errors.Is(err, fault.Unavailable)
	})
	sweep()
	if _, err := os.Stat(c.Dir()); !os.IsNotExist(err) {
		t.Errorf("got %v for the folder, want that it does not exist", err)
	}
}

func TestSweepLeavesTheLiving(t *testing.T) {
	taken, err := takeFolder("")
	if err != nil {
		t.Fatal(err)
	}
	sweep()
	if _, err := os.Stat(taken.path); err != nil {
		t.Errorf("after sweep: %v", err)
	}
	if _, err := takeFolder(taken.path); !errors.Is(err, fault.Exists) {
		t.Errorf("take it again: got %v, want a fault.Exists", err)
	}
	if err := taken.remove(); err != nil {
		t.Error(err)
	}
}

func TestFolderOfOthers(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := takeFolder(dir); !errors.Is(err, fault.Exists) {
		t.Errorf("take: got %v, want a fault.Exists", err)
	}
	if err := TakeDown(t.Context(), dir); err != nil {
		t.Errorf("take down: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestStartCanceled gives up in the middle, and then nothing is left.
func TestStartCanceled(t *testing.T) {
	needCeph(t)
	dir := folderName(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		eventually(t, "a monitor runs", func() bool {
			_, err := os.Stat(filepath.Join(dir, "mon.a.asok"))
			return err == nil
		})
	}()
	if _, err := Start(ctx, Options{Dir: dir}); !errors.Is(err, fault.Canceled) {
		t.Errorf("got %v, want a fault.Canceled", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("got %v for the folder, want that it does not exist", err)
	}
	if left := processesOf(t, dir); len(left) > 0 {
		t.Errorf("got processes %v, want none", left)
	}
}

// TestTakeDownDuringBringUp ends a cluster that does not take requests yet.
func TestTakeDownDuringBringUp(t *testing.T) {
	needCeph(t)
	dir, owner := startOwner(t)
	eventually(t, "a monitor runs", func() bool {
		_, err := os.Stat(filepath.Join(dir, "mon.a.asok"))
		return err == nil
	})
	if err := TakeDown(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("got %v for the folder, want that it does not exist", err)
	}
	if err := owner.Wait(); err == nil {
		t.Error("got no error from the program whose cluster was taken away")
	}
}

// TestBringUpFails shows that the error says what is wrong, soon, and that nothing is left.
func TestBringUpFails(t *testing.T) {
	needCeph(t)
	for _, test := range []struct {
		name string
		conf map[string]string
		want string
	}{
		// The path is in the tool's own words, which it does not always get out before it exits.
		{"tool fails", map[string]string{"mon data": "/proc/none"}, "ceph-mon --mkfs"},
		{"daemon ends", map[string]string{"public addr": "192.0.2.1"}, "osd.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := folderName(t)
			_, err := Start(t.Context(), Options{Dir: dir, Root: os.Getenv(EnvRoot), Conf: test.conf})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error that names %s", err, test.want)
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("got %v for the folder, want that it does not exist", err)
			}
		})
	}
}

// TestSharedThroughEnvironment attaches to a detached cluster as `make ceph` leaves it.
func TestSharedThroughEnvironment(t *testing.T) {
	needCeph(t)
	dir := folderName(t)
	outer := startForTest(t, Options{Dir: dir, Detached: true, ProposeInterval: 50 * time.Millisecond})
	t.Cleanup(func() { down(t, outer) })
	t.Setenv(EnvCluster, dir)
	var pool string
	t.Run("test", func(t *testing.T) {
		c := ForTest(t, Options{Pools: []string{"p"}, DataPool: "d", Namespaces: map[string][]string{"p": {"ns"}}})
		if c.FSID() != outer.FSID() {
			t.Fatalf("got cluster %s, want the one of the environment, %s", c.FSID(), outer.FSID())
		}
		pool = c.Pool()
		if _, err := c.RBD(t.Context(), "create", "--size", "1G", "--data-pool", c.DataPool(), pool+"/ns/image"); err != nil {
			t.Error(err)
		}
	})
	pools, err := outer.Ceph(t.Context(), "osd", "pool", "ls")
	if err != nil || strings.TrimSpace(pools) != "rbd" {
		t.Errorf("after the test got pools %q and %v, want only rbd, without %s", pools, err, pool)
	}
	for _, test := range []struct {
		name string
		opts Options
		want bool
	}{
		{"the same", Options{}, true},
		{"more OSDs", Options{OSDs: 2}, false},
		{"more monitors", Options{Monitors: 2}, false},
		{"another pace", Options{ProposeInterval: time.Second}, false},
		{"settings", Options{Conf: map[string]string{"a": "b"}}, false},
		{"modules", Options{ManagerModules: true}, false},
	} {
		if got := outer.offers(test.opts); got != test.want {
			t.Errorf("%s: got offers %v, want %v", test.name, got, test.want)
		}
	}
}

var shared = Share(Options{ProposeInterval: 50 * time.Millisecond})

func TestShare(t *testing.T) {
	t.Cleanup(func() {
		if shared.c != nil {
			down(t, shared.c)
		}
	})
	var pools, clusters []string
	for range 2 {
		t.Run("test", func(t *testing.T) {
			c := shared.ForTest(t, Options{})
			pools, clusters = append(pools, c.Pool()), append(clusters, c.FSID())
		})
	}
	if len(clusters) == 2 && (clusters[0] != clusters[1] || pools[0] == pools[1]) {
		t.Errorf("got clusters %v and pools %v, want one cluster and two pools", clusters, pools)
	}
}

// needCeph skips the test where there is no Ceph to start.
func needCeph(t *testing.T) {
	t.Helper()
	skipOrFail(t, canRun(os.Getenv(EnvRoot)))
}

// folderName returns a short path at which there is nothing yet.
func folderName(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ceph-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func startOwner(t *testing.T) (dir string, owner *exec.Cmd) {
	t.Helper()
	dir = folderName(t)
	owner = exec.Command("/proc/self/exe")
	owner.Env = append(os.Environ(), envOwner+"="+dir)
	owner.Stderr = os.Stderr
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	return dir, owner
}

func kill(t *testing.T, pid int) {
	t.Helper()
	process, err := os.FindProcess(pid)
	if err == nil {
		err = process.Kill()
	}
	if err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := poll(ctx, func() (bool, error) { return cond(), nil }); err != nil {
		t.Errorf("%s: got %v, want it within a minute", what, err)
	}
}

func pidsOf(t *testing.T, c *Cluster) map[string]int {
	t.Helper()
	daemons, err := c.Daemons(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pids := make(map[string]int)
	for _, d := range daemons {
		pids[d.Name] = d.PID
	}
	return pids
}

// processesOf lists the processes with a path in dir among their arguments.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, entry := range entries {
		// A process that has ended meanwhile is not there.
		text, err := os.ReadFile(entry)
		if err == nil && strings.Contains(string(text), dir+"/") {
			found = append(found, entry+": "+strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return found
}

// processState returns the letter of a process's state, T for stopped (proc_pid_stat(5)).
func processState(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return rest[:1]
}

var firstMonitor = regexp.MustCompile(`v2:[0-9.]+:(\d+)`)

func basePort(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, confFile))
	if err != nil {
		t.Fatal(err)
	}
	match := firstMonitor.FindSubmatch(text)
	if match == nil {
		t.Fatalf("got no monitor in %s", text)
	}
	port, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	return port - monitorPort
}

// checkPace asks the monitor for the interval at which it proposes.
func checkPace(t *testing.T, c *Cluster, want string) {
	t.Helper()
	var answer map[string]string
	err := ask(t.Context(), socketOf(c.Dir(), "mon.a"), command("config get", "var", "paxos_propose_interval"), &answer)
	if got := answer["paxos_propose_interval"]; err != nil || got != want {
		t.Errorf("got a propose interval of %q and %v, want %q", got, err, want)
	}
}
