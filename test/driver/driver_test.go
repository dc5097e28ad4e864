package driver

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// TestMain lets the test's executable stand in for the driver's: as a controller that
// only answers Probe, and as a worker that only has a file open.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "controller" {
		os.Exit(standInController(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[len(os.Args)-1] == "fuse" {
		os.Exit(standInWorker(os.Args[1]))
	}
	os.Exit(m.Run())
}

func standInController(arguments []string) int {
	flags := flag.NewFlagSet("controller", flag.ContinueOnError)
	endpoint := flags.String("endpoint", "", "")
	flags.String("clusters", "", "")
	flags.Int("v", 0, "")
	refuse := flags.Bool("refuse", false, "")
	if err := flags.Parse(arguments); err != nil || *refuse {
		fmt.Fprintln(os.Stderr, "no such cluster", err)
		return 1
	}
	path := strings.TrimPrefix(*endpoint, "unix://")
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return 1
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, alive{})
	if err := server.Serve(listener); err != nil {
		return 1
	}
	return 0
}

// alive answers Probe.
type alive struct {
	csi.UnimplementedIdentityServer
}

func (alive) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

// standInWorker has a file open until its standard input ends.
func standInWorker(path string) int {
	file, err := os.Open(path)
	if err != nil {
		return 1
	}
	defer file.Close() // read only
	fmt.Println("open")
	_, _ = os.Stdin.Read(make([]byte, 1))
	return 0
}

func TestKillAndStart(t *testing.T) {
	d := newDriver(t)
	p, err := d.Controller(t.Context(), "controller")
	if err != nil {
		t.Fatal(err)
	}
	first := p.PID()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := p.PID(); first == 0 || got != 0 {
		t.Fatalf("PID before and after Kill: got %d and %d, want one and none", first, got)
	}
	// A caller meanwhile waits for the process to come back; a call that still went to the
	// connection of the killed one breaks, and is made again.
	answered := make(chan error, 1)
	go func() { answered <- p.Answers(t.Context()) }()
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("Probe across a restart: got %v, want nil", err)
	}
	if got := p.PID(); got == 0 || got == first {
		t.Errorf("PID after a restart: got %d, want another than %d", got, first)
	}
	if err := p.Stop(t.Context()); err != nil || p.PID() != 0 {
		t.Errorf("Stop: got %v, PID %d, want nil and 0", err, p.PID())
	}
}

func TestStartOfOneThatEnds(t *testing.T) {
	_, err := newDriver(t).Controller(t.Context(), "controller", "--refuse")
	if err == nil || !strings.Contains(err.Error(), "no such cluster") {
		t.Errorf("Start: got %v, want an error with the end of the log", err)
	}
}

func newDriver(t *testing.T) *Driver {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Options{Binary: self, Folder: shortFolder(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close: got %v, want nil", err)
		}
	})
	return d
}

// shortFolder is one in which sockets' paths are not too long, as in t.TempDir they can be.
func shortFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "driver")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	return folder
}

func TestNewFolder(t *testing.T) {
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	temporary := shortFolder(t)
	t.Setenv("TMPDIR", temporary)
	stale := filepath.Join(temporary, fmt.Sprintf("prefix-%d-1", gone.Process.Pid))
	others := []string{
		filepath.Join(temporary, fmt.Sprintf("prefix-%d-2", os.Getpid())),
		filepath.Join(temporary, fmt.Sprintf("prefix-other-%d-3", gone.Process.Pid)),
	}
	for _, folder := range append(others, stale) {
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	made, err := NewFolder("prefix")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("folder of a process that is gone: got %v, want that it is gone", err)
	}
	for _, folder := range append(others, made) {
		if _, err := os.Stat(folder); err != nil {
			t.Errorf("folder %s: got %v, want that it is there", folder, err)
		}
	}
}

func TestLookAndSweep(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it mounts and attaches loop devices, which needs root")
	}
	folder := shortFolder(t)
	before, err := Look(folder)
	if err != nil {
		t.Fatal(err)
	}
	leaveBehind(t, folder)

	left, err := Look(folder)
	if err != nil {
		t.Fatal(err)
	}
	left = left.Without(before)
	for what, list := range map[string][]string{
		"mounts": left.Mounts, "loop devices": left.Loops, "workers": left.Workers,
		"mappings": left.Mappings, "targets": left.Targets,
	} {
		if len(list) != 1 {
			t.Errorf("%s: got %q, want one", what, list)
		}
	}
	if err := Sweep(folder); err != nil {
		t.Fatal(err)
	}
	if left, err = Look(folder); err != nil || !left.Without(before).Empty() {
		t.Errorf("after Sweep: got %v, %v, want nothing", left, err)
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("folder after Sweep: got %v, want that it is gone", err)
	}
}

// A device whose path the kernel has lost is told from another driver's by the path that it was attached by.
func TestLoopsWhosePathIsLost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it mounts and attaches loop devices, which needs root")
	}
	folder := shortFolder(t)
	mapping := filepath.Join(folder, "mapping")
	if err := os.Mkdir(mapping, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", mapping, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(mapping, "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command("losetup", "--find", "--show", image).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, output)
	}
	device := strings.TrimSpace(string(output))
	defer func() { _ = exec.Command("losetup", "--detach", device).Run() }()
	if err := unix.Unmount(mapping, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		folder string
		want   bool
	}{{folder, true}, {"/run/of-another-driver", false}} {
		loops, err := loopsBelow(test.folder)
		if file, got := loops[device]; err != nil || got != test.want || got && file != lostPath {
			t.Errorf("below %s: got %v, %v, want %s in it: %t", test.folder, loops, err, device, test.want)
		}
	}
}

// leaveBehind makes one of each kind of remains.
func leaveBehind(t *testing.T, folder string) {
	t.Helper()
	mapping := filepath.Join(folder, "node-a", runFolder, "mapping")
	staging := filepath.Join(folder, "node-a", "staging", "pvc-1")
	image := filepath.Join(mapping, "image")
	for _, path := range []string{mapping, staging} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command("losetup", "--find", image).CombinedOutput(); err != nil {
		t.Skipf("no loop device can be attached here: %v: %s", err, output)
	}
	if err := unix.Mount("none", staging, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	startWorker(t, image)
}

func startWorker(t *testing.T, path string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	worker := exec.Command(self, path, "fuse")
	if _, err := worker.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	output, err := worker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	go worker.Wait() //nolint:errcheck // it is killed
	if _, err := output.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
}

// TestAwaitEnd sees that a process that stays is not taken for one that has ended.
func TestAwaitEnd(t *testing.T) {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Skipf("no pidfd_open here: %v", err)
	}
	defer unix.Close(self) // read only
	if awaitEnd(self, 10*time.Millisecond) {
		t.Error("awaitEnd of this process: got true, want false")
	}
}
