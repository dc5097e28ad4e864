package kube

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

const pod = `
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: one}}
spec:
  hostname: first
  subdomain: names
  terminationGracePeriodSeconds: 1
  containers:
    - name: server
      image: registry.k8s.io/nginx-slim:0.24
      volumeMounts: [{name: html, mountPath: /usr/share/nginx/html}]
  volumes: [{name: html, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: names}
spec: {clusterIP: None, selector: {app: one}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec: {selector: {app: one}, ports: [{port: 80}]}
`

// TestUpDown plays a cluster's life, with its starter forgotten and a component killed, and sees that
// nothing is left of it.
func TestUpDown(t *testing.T) {
	if folder := os.Getenv(EnvCluster); folder != "" {
		t.Skipf("%s=%s: that cluster is not for this test to take down", EnvCluster, folder)
	}
	before := readSysctls()
	cluster := ForTest(t)
	ctx, folder := t.Context(), cluster.Folder()

	again, err := Up(ctx, Options{Folder: folder})
	if err != nil || again.Address() != cluster.Address() {
		t.Fatalf("Up of a cluster that runs: got %v, %v, want the same cluster", again, err)
	}
	places, err := FindPlaces()
	if err != nil {
		t.Fatal(err)
	}
	second := places.Options()
	second.Folder = t.TempDir()
	if _, err := Up(ctx, second); !errors.Is(err, fault.InUse) {
		t.Errorf("Up of a second cluster: got %v, want %v", err, fault.InUse)
	}
	if left, err := Left(ctx, folder); err != nil || !hasAll(left, "process", "mount", "cgroup", "interface", "chain", "file") {
		t.Errorf("Left while it runs: got %q, %v, want some of each kind", left, err)
	}

	if err := cluster.Apply(ctx, pod); err != nil {
		t.Fatal(err)
	}
	wait(t, cluster)
	inPod(t, cluster, "echo hello >/usr/share/nginx/html/index.html")
	for _, name := range []string{"localhost", "names", "first.names.default.svc.cluster.local", "front"} {
		if got := inPod(t, cluster, "wget -q -O - http://"+name); got != "hello\n" {
			t.Errorf("page of %s: got %q, want hello", name, got)
		}
	}

	staleFolderLeavesOthersAlone(t)

	if err := cluster.StopKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	if cluster.state.runs(kubelet) {
		t.Error("the kubelet runs after StopKubelet")
	}
	if err := cluster.StartKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cluster.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if got := inPod(t, cluster, "cat /usr/share/nginx/html/index.html"); got != "hello\n" {
		t.Errorf("file after the kubelet's restart: got %q, want hello", got)
	}

	// Without containerd pods are ended by other means; it is started for that.
	signalAll(processes(folder, containerd), unix.SIGKILL)
	begun := time.Now()
	if err := cluster.Down(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("down in %s", time.Since(begun).Round(time.Millisecond))
	if left, err := Left(ctx, folder); err != nil || len(left) > 0 {
		t.Errorf("Left after Down: got %q, %v, want nothing", left, err)
	}
	for name, value := range readSysctls() {
		if value != before[name] {
			t.Errorf("%s: got %s, want %s as before", name, value, before[name])
		}
	}
	if _, err := Open(folder); !errors.Is(err, fault.NotFound) {
		t.Errorf("Open after Down: got %v, want %v", err, fault.NotFound)
	}
}

// hasAll says whether there is something of each kind.
func hasAll(left []string, kinds ...string) bool {
	return !slices.ContainsFunc(kinds, func(kind string) bool {
		return !slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, kind+" ") })
	})
}

func wait(t *testing.T, cluster *Cluster) {
	t.Helper()
	if _, err := cluster.Kubectl(t.Context(), nil, "wait", "--for=condition=Ready", "pod/one", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	// A service has its pods a moment after they are ready.
	_, err := cluster.Kubectl(t.Context(), nil, "wait", "--for=jsonpath={.endpoints[0].conditions.ready}=true",
		"endpointslices", "-l", "kubernetes.io/service-name in (names,front)", "--timeout=60s")
	if err != nil {
		t.Fatal(err)
	}
}

func inPod(t *testing.T, cluster *Cluster, script string) string {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), nil, "exec", "one", "--", "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFolderIsChecked(t *testing.T) {
	strange := t.TempDir()
	if err := os.WriteFile(filepath.Join(strange, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name, folder string
		want         error
	}{
		{"relative", "build/kube", fault.Invalid},
		{"not clean", "/tmp/../kube", fault.Invalid},
		{"too long for sockets", "/" + strings.Repeat("x", 80), fault.Invalid},
		{"somebody's", strange, fault.Exists},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			if _, err := Up(t.Context(), Options{Folder: test.folder}); !errors.Is(err, test.want) {
				t.Errorf("Up: got %v, want %v", err, test.want)
			}
			if err := Down(t.Context(), test.folder, nil); !errors.Is(err, test.want) {
				t.Errorf("Down: got %v, want %v", err, test.want)
			}
		})
	}
	if !exists(filepath.Join(strange, "precious")) {
		t.Error("a file that is not a cluster's is gone")
	}
}

func TestLockedFolderIsInUse(t *testing.T) {
	folder := t.TempDir()
	unlock, err := lock(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := Down(t.Context(), folder, nil); !errors.Is(err, fault.InUse) {
		t.Errorf("Down while another is at it: got %v, want %v", err, fault.InUse)
	}
}

func TestForeignKubeletRootIsRefused(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "config.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &state{Folder: t.TempDir(), KubeletRoot: root}
	if err := s.checkRoot(); !errors.Is(err, fault.InUse) {
		t.Errorf("a root with files in it: got %v, want %v", err, fault.InUse)
	}
	if err := os.Remove(filepath.Join(root, "config.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := s.checkRoot(); err != nil {
		t.Errorf("an empty root: got %v, want no error", err)
	}
}

func TestMachineIsLocked(t *testing.T) {
	unlock, err := lockMachine()
	if err != nil {
		t.Skipf("a cluster is being brought up or taken down: %v", err)
	}
	defer unlock()
	if _, err := Up(t.Context(), Options{Folder: t.TempDir()}); !errors.Is(err, fault.InUse) {
		t.Errorf("Up while another is at it: got %v, want %v", err, fault.InUse)
	}
}

// staleFolderLeavesOthersAlone takes down what is left of a cluster that is gone while another runs.
func staleFolderLeavesOthersAlone(t *testing.T) {
	t.Helper()
	root := t.TempDir()
	kept := filepath.Join(root, "another's")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &state{Folder: t.TempDir(), KubeletRoot: root}
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	if err := s.tearDown(t.Context(), progress.NewNarrator(t.Output(), "kube")); err != nil {
		t.Fatal(err)
	}
	if !exists(kept) || len(cgroupFolders()) == 0 {
		t.Error("something of the cluster that runs was removed")
	}
	if exists(filepath.Join(s.Folder, stateFile)) {
		t.Error("the state of the cluster that is gone is still there")
	}
}

// TestStartFindsItsProcess starts many: what was just started is seen at once.
func TestStartFindsItsProcess(t *testing.T) {
	s := &state{Folder: t.TempDir()}
	if err := s.makeFolders(); err != nil {
		t.Fatal(err)
	}
	sleep := lookTool("sleep")
	for range 20 {
		if err := s.start("sleep", sleep, "60"); err != nil {
			t.Fatal(err)
		}
		if !s.runs("sleep") {
			t.Fatal("what was just started is not found")
		}
		if err := s.stop(t.Context(), "sleep"); err != nil {
			t.Fatal(err)
		}
		if found := processes(s.Folder, ""); len(found) > 0 {
			t.Fatalf("processes after stop: got %d, want none", len(found))
		}
	}
	if err := s.start("false", lookTool("false")); err == nil {
		if err := poll(t.Context(), func() (bool, error) { return !s.runs("false"), nil }); err != nil {
			t.Error(err)
		}
	}
}
