//go:build cgo

package fuse_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// A drivers' order says what a driver process does until it is killed.
type driverOrder struct {
	Directory string
	Target    mapper.Target
	Conf      string
	User, Key string
	Until     string
}

// What a driver process does.
const (
	untilLaunching = "a worker is starting" // it kills itself while its worker connects
	untilLaunched  = "the worker serves"    // it kills itself before it attaches a loop device
	untilMapped    = "mapped"               // it kills itself then
	untilKilled    = "killed"               // it maps, writes and unmaps for ever
)

// drive is a driver process.
func drive(in io.Reader) error {
	var order driverOrder
	if err := json.NewDecoder(in).Decode(&order); err != nil {
		return err
	}
	request := mapper.Request{Target: order.Target}
	request.Access.Conf = order.Conf
	request.Access.Credentials = params.Credentials{User: order.User, Key: params.NewSecret(order.Key)}
	m := fuse.New(fuse.Options{Directory: order.Directory, Launch: fatalLaunch(order.Until)})
	for {
		device, err := m.Map(context.Background(), request)
		if err != nil {
			return err
		}
		if order.Until == untilMapped {
			killSelf()
		}
		if err := os.WriteFile(device.Path, make([]byte, 1<<20), 0); err != nil {
			return err
		}
		if err := m.Unmap(context.Background(), device); err != nil {
			return err
		}
	}
}

// fatalLaunch launches a worker and kills the driver at some point of that.
func fatalLaunch(until string) fuse.Launch {
	return func(ctx context.Context, order fuse.Order) error {
		if until == untilLaunching {
			go func() {
				for !isLocked(filepath.Join(order.Directory, "worker")) {
				}
				killSelf()
			}()
		}
		err := launch(ctx, order)
		if until == untilLaunched {
			killSelf()
		}
		return err
	}
}

func killSelf() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }

func isLocked(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = file.Close() }()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	return unix.FcntlFlock(file.Fd(), unix.F_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK
}

// driver runs a driver process and returns when it is gone. It is killed after the given
// time if it has not killed itself.
func (l *lab) driver(t *testing.T, request mapper.Request, until string, after time.Duration) {
	t.Helper()
	order, err := json.Marshal(driverOrder{
		Directory: l.directory, Target: request.Target, Conf: request.Access.Conf,
		User: request.Access.User, Key: request.Access.Key.Reveal(), Until: until,
	})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), after)
	defer cancel()
	command := exec.CommandContext(ctx, "/proc/self/exe", driverArgument)
	command.Stdin, command.Stderr = bytes.NewReader(order), os.Stderr
	command.WaitDelay = patience // its workers hold its standard error until they are ready
	err = command.Run()
	ended, ok := err.(*exec.ExitError)
	if !ok || !ended.Sys().(syscall.WaitStatus).Signaled() {
		t.Fatalf("driver process: got %v, want it killed", err)
	}
}

// The next driver process finishes what a killed one has begun, whichever call comes first.
func TestKilledDriver(t *testing.T) {
	next := []struct {
		name string
		do   func(t *testing.T, m *fuse.Mapper, request mapper.Request)
	}{
		{"map", func(t *testing.T, m *fuse.Mapper, request mapper.Request) { mapAndUse(t, m, request) }},
		{"unmap", func(t *testing.T, m *fuse.Mapper, request mapper.Request) {
			must(t, m.Unmap(t.Context(), mapper.Device{Target: request.Target}))
		}},
		{"unmap what is listed", func(t *testing.T, m *fuse.Mapper, request mapper.Request) {
			eventually(t, "unmap what is listed", func() error {
				devices, err := m.Devices(t.Context())
				if len(devices) > 0 {
					err = m.Unmap(t.Context(), devices[0])
				}
				return err
			})
		}},
		{"map read-only", func(t *testing.T, m *fuse.Mapper, request mapper.Request) {
			request.ReadOnly = true
			device, err := m.Map(t.Context(), request)
			if err == nil {
				err = m.Unmap(t.Context(), device)
			}
			if until := t.Name(); err != nil && filepath.Base(filepath.Dir(until)) != "mapped" {
				t.Error(err)
			}
			must(t, m.Unmap(t.Context(), mapper.Device{Target: request.Target}))
		}},
	}
	for _, until := range []string{untilLaunching, untilLaunched, untilMapped} {
		t.Run(until, func(t *testing.T) {
			for _, next := range next {
				t.Run(next.name, func(t *testing.T) {
					l := newLab(t)
					request := l.image(t, 8<<20)
					l.driver(t, request, until, patience)
					next.do(t, l.mapper(), request)
				})
			}
		})
	}
}

// mapAndUse maps, reads, writes and unmaps an image.
func mapAndUse(t *testing.T, m *fuse.Mapper, request mapper.Request) {
	t.Helper()
	device, err := m.Map(t.Context(), request)
	must(t, err)
	devices, err := m.Devices(t.Context())
	must(t, err)
	if len(devices) != 1 || devices[0] != device {
		t.Errorf("Devices: got %+v, want %+v alone", devices, device)
	}
	must(t, os.WriteFile(device.Path, []byte("in use"), 0))
	_, err = os.ReadFile(device.Path)
	must(t, err)
	must(t, m.Unmap(t.Context(), device))
}

// A driver that maps and unmaps without end is killed at moments that nobody chose.
func TestDriverKilledAnywhere(t *testing.T) {
	const rounds = 25
	l := newLab(t)
	request := l.image(t, 8<<20)
	for round := range rounds {
		after := time.Duration(rand.Int64N(int64(600 * time.Millisecond)))
		l.driver(t, request, untilKilled, after)
		m := l.mapper()
		if round%2 == 0 {
			mapAndUse(t, m, request)
		} else {
			must(t, m.Unmap(t.Context(), mapper.Device{Target: request.Target}))
		}
		if devices, err := m.Devices(t.Context()); err != nil || len(devices) > 0 {
			t.Fatalf("round %d, killed after %s: got %+v, %v, want no device", round, after, devices, err)
		}
		if t.Failed() {
			t.Fatalf("round %d, killed after %s", round, after)
		}
	}
}
