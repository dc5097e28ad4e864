//go:build cgo

package fuse_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse/launcher"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/mappertest"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// A node has the workers in one pod and the driver in others, as Kubernetes has them: mount
// and PID namespaces of their own, a /dev of their own, and the directory of the mappings
// shared as a hostPath volume with Bidirectional propagation is. The test itself is one of
// the driver's pods.
type pods struct {
	*lab
	launcher.Client
	workers *pod
}

// newPods starts the pod of the workers.
func newPods(t *testing.T) *pods {
	t.Helper()
	needRoot(t)
	// Below it are all temporary directories of the test, made after this and removed before.
	shared := filepath.Dir(t.TempDir())
	must(t, unix.Mount("run", shared, "tmpfs", 0, "mode=755"))
	t.Cleanup(func() { must(t, unix.Unmount(shared, unix.MNT_DETACH)) })
	must(t, unix.Mount("", shared, "", unix.MS_SHARED, ""))
	p := &pods{lab: newLab(t), Client: launcher.Dial(filepath.Join(shared, "workers.sock"))}
	p.startWorkers(t)
	return p
}

func (p *pods) startWorkers(t *testing.T) {
	t.Helper()
	pod := startPod(t, workersPodArgument, podOrder{Socket: p.Socket})
	t.Cleanup(func() {
		if pod.command.ProcessState == nil {
			pod.end(t, syscall.SIGTERM)
		}
	})
	p.workers = pod
	eventually(t, "ask the workers' pod", func() error { return p.Ping(t.Context()) })
}

func (p *pods) mapper() *fuse.Mapper {
	return fuse.New(fuse.Options{Directory: p.directory, Launch: p.Launch, Kill: p.Kill})
}

// fence kills the worker of a device by way of its pod, and has the cluster forget it.
func (p *pods) fence(t *testing.T, device mapper.Device) {
	t.Helper()
	place := p.place(mapper.Request{Target: device.Target})
	must(t, p.Kill(t.Context(), place))
	eventually(t, "the worker is gone", func() error {
		if isLocked(filepath.Join(place, "worker")) {
			return errors.New("it holds its lock")
		}
		return nil
	})
	p.ceph(t, "osd", "blocklist", "add", device.Client)
}

// A pod is a process in namespaces of its own.
type pod struct{ command *exec.Cmd }

// A podOrder says what the process in a pod is to do.
type podOrder struct {
	Socket string
	driverOrder
}

// Arguments of this program that make it the process in a pod.
const (
	workersPodArgument = "fuse-workers-pod"
	driverPodArgument  = "fuse-driver-pod"
)

func startPod(t *testing.T, argument string, order podOrder) *pod {
	t.Helper()
	text, err := json.Marshal(order)
	must(t, err)
	command := exec.Command("/proc/self/exe", argument)
	var said bytes.Buffer
	command.Stdin, command.Stderr = bytes.NewReader(text), &said
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	must(t, command.Start())
	t.Cleanup(func() {
		if command.ProcessState == nil { // only after a failure
			_ = command.Process.Kill()
			_ = command.Wait()
		}
		if t.Failed() {
			t.Logf("%s said: %s", argument, said.String())
		}
	})
	return &pod{command}
}

// end signals the first process of the pod and waits until all in it are gone: the kernel
// kills the others when the first ends.
func (p *pod) end(t *testing.T, signal syscall.Signal) {
	t.Helper()
	must(t, p.command.Process.Signal(signal))
	err := p.command.Wait()
	if state := p.command.ProcessState.Sys().(syscall.WaitStatus); err != nil && state.Signal() != signal {
		t.Errorf("pod: got %v, want it to end", err)
	}
}

// runPod is the process in a pod.
func runPod(argument string, in io.Reader) error {
	var order podOrder
	if err := json.NewDecoder(in).Decode(&order); err != nil {
		return err
	}
	if err := enterPod(); err != nil {
		return err
	}
	if argument == driverPodArgument {
		return driveInPod(order)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	_ = os.Remove(order.Socket) // of one that was killed
	listener, err := net.Listen("unix", order.Socket)
	if err != nil {
		return err
	}
	server := launcher.New(launcher.Options{Path: "/proc/self/exe", Arguments: []string{workerArgument}, Version: "test"})
	return server.Serve(ctx, listener)
}

// enterPod gives the process a /proc and a /dev as a container has them. In this /dev there
// are no loop devices, as if each were made after the pod.
func enterPod() error {
	nodes := map[string]uint64{}
	for _, name := range []string{"null", "zero", "random", "urandom", "fuse", "loop-control"} {
		var stat unix.Stat_t
		if err := unix.Stat("/dev/"+name, &stat); err != nil {
			return err
		}
		nodes["/dev/"+name] = stat.Rdev
	}
	for _, path := range []string{"/", "/proc", "/dev"} {
		// An error says that it is no mount of its own.
		_ = unix.Mount("", path, "", unix.MS_PRIVATE, "")
	}
	err := errors.Join(unix.Mount("proc", "/proc", "proc", 0, ""), unix.Mount("dev", "/dev", "tmpfs", 0, "mode=755"))
	for path, device := range nodes {
		err = errors.Join(err, unix.Mknod(path, unix.S_IFCHR|0o600, int(device)))
	}
	return err
}

// driveInPod maps until it is killed: once, or again and again.
func driveInPod(order podOrder) error {
	request := mapper.Request{Target: order.Target}
	request.Access.Conf = order.Conf
	request.Access.Credentials = params.Credentials{User: order.User, Key: params.NewSecret(order.Key)}
	client := launcher.Dial(order.Socket)
	m := fuse.New(fuse.Options{Directory: order.Directory, Launch: client.Launch, Kill: client.Kill})
	for {
		device, err := m.Map(context.Background(), request)
		if err != nil {
			return err
		}
		if order.Until == untilMapped {
			select {} // for its end
		}
		if err := m.Unmap(context.Background(), device); err != nil {
			return err
		}
	}
}

func (p *pods) startDriver(t *testing.T, request mapper.Request, until string) *pod {
	t.Helper()
	return startPod(t, driverPodArgument, podOrder{p.Socket, driverOrder{
		Directory: p.directory, Target: request.Target, Conf: request.Access.Conf,
		User: request.Access.User, Key: request.Access.Key.Reveal(), Until: until,
	}})
}

func TestSuiteInPods(t *testing.T) {
	mappertest.Suite(t, func(t *testing.T) mappertest.Fixture {
		p := newPods(t)
		f := p.fixture(p.mapper)
		f.Kill = p.fence
		return f
	})
}

// A device that a pod has mapped works on when the pod is killed, and the next pod finds it,
// grows it and unmaps it.
func TestDriverPodIsReplaced(t *testing.T) {
	p := newPods(t)
	request := p.image(t, 256<<20)
	first := p.startDriver(t, request, untilMapped)
	m := p.mapper()
	eventually(t, "the first pod has mapped", func() error {
		devices, err := m.Devices(t.Context())
		if err == nil && (len(devices) != 1 || devices[0].Dead != "") {
			err = fmt.Errorf("devices are %+v", devices)
		}
		return err
	})
	device := p.only(t, m)
	run(t, "mkfs.ext4", "-q", device.Path)
	path, unmount := mounted(t, device)
	stop := busy(t, filepath.Join(path, "busy"))
	first.end(t, syscall.SIGKILL)
	eventually(t, "its mount namespace is gone", func() error {
		file, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device.Path), "loop/backing_file"))
		if text := strings.TrimSpace(string(file)); err == nil && text != "/image" {
			err = fmt.Errorf("backing_file is %s", text)
		}
		return err
	})

	must(t, os.WriteFile(filepath.Join(path, "file"), []byte("still here"), 0o600))
	if again, err := m.Map(t.Context(), request); err != nil || again != device {
		t.Errorf("Map: got %+v, %v, want %+v as before", again, err, device)
	}
	kind(t, "Unmap while mounted", m.Unmap(t.Context(), device), fault.InUse)
	p.resize(t, request, 512<<20)
	if got, err := m.Grow(t.Context(), device); err != nil || got != 512<<20 {
		t.Errorf("Grow: got %d, %v, want %d", got, err, 512<<20)
	}
	stop()
	run(t, "sync", "-f", path)
	unmount()
	must(t, m.Unmap(t.Context(), device))
}

// Pods of the driver are killed at moments that nobody chose.
func TestDriverPodKilledAnywhere(t *testing.T) {
	const rounds = 10
	p := newPods(t)
	request := p.image(t, 8<<20)
	for round := range rounds {
		after := time.Duration(rand.Int64N(int64(600 * time.Millisecond)))
		driver := p.startDriver(t, request, untilKilled)
		time.Sleep(after) // the moment is what is tested
		driver.end(t, syscall.SIGKILL)
		mapAndUse(t, p.mapper(), request)
		if t.Failed() {
			t.Fatalf("round %d, killed after %s", round, after)
		}
	}
}

// The devices die with the workers' pod, and are mapped anew when it is there again.
func TestWorkersPodIsKilled(t *testing.T) {
	p := newPods(t)
	request := p.image(t, 8<<20)
	m := p.mapper()
	device, err := m.Map(t.Context(), request)
	must(t, err)
	must(t, os.WriteFile(device.Path, []byte("synced"), 0))
	run(t, "sync", device.Path)
	p.workers.end(t, syscall.SIGKILL)
	if dead := p.only(t, m); dead.Dead == "" || dead.Path != device.Path {
		t.Errorf("Devices: got %+v, want %s dead", dead, device.Path)
	}
	p.ceph(t, "osd", "blocklist", "add", device.Client)
	_, err = m.Map(t.Context(), request)
	kind(t, "Map without the pod", err, fault.Unavailable)
	if err == nil || !strings.Contains(err.Error(), "rbd-csi-workers") {
		t.Errorf("Map without the pod: got %v, want it to name rbd-csi-workers", err)
	}

	p.startWorkers(t)
	again := p.mapped(t, m, request)
	if got, err := os.ReadFile(again.Path); err != nil || !bytes.HasPrefix(got, []byte("synced")) {
		t.Errorf("device: got %.10q, %v, want what was synced", got, err)
	}
}

// A pod that is told to end waits for its devices, and no longer.
func TestWorkersPodEnds(t *testing.T) {
	p := newPods(t)
	request := p.image(t, 8<<20)
	m := p.mapper()
	device := p.mapped(t, m, request)
	must(t, p.workers.command.Process.Signal(syscall.SIGTERM))
	eventually(t, "the pod takes no orders", func() error {
		if _, err := m.Map(t.Context(), p.image(t, 8<<20)); err == nil || !strings.Contains(err.Error(), "is ending") {
			return fmt.Errorf("Map of another: %w", err)
		}
		return nil
	})
	must(t, os.WriteFile(device.Path, []byte("in use"), 0))
	must(t, m.Unmap(t.Context(), device))
	if err := p.workers.command.Wait(); err != nil {
		t.Errorf("pod: got %v, want its end", err)
	}
	p.startWorkers(t)
}
