package server

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

func TestSocketPath(t *testing.T) {
	for _, test := range []struct {
		endpoint, want string
	}{
		{"unix:///csi/csi.sock", "/csi/csi.sock"},
		{"/csi/csi.sock", "/csi/csi.sock"},
		{"unix://csi.sock", ""},
		{"csi.sock", ""},
		{"tcp://127.0.0.1:1", ""},
		{"", ""},
		{"/" + strings.Repeat("a", 106), "/" + strings.Repeat("a", 106)},
		{"/" + strings.Repeat("a", 107), ""},
	} {
		got, err := SocketPath(test.endpoint)
		if got != test.want || (err == nil) != (test.want != "") || (err != nil && !fault.Is(err, fault.Invalid)) {
			t.Errorf("%q: got %q, %v, want %q or an error of kind %v", test.endpoint, got, err, test.want, fault.Invalid)
		}
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "csi.sock")
	listener, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode(); got != fs.ModeSocket|0o600 {
		t.Errorf("got mode %v, want a socket with 0600", got)
	}
	if _, err := Listen(path); !fault.Is(err, fault.InUse) {
		t.Errorf("a second time: got %v, want kind %v", err, fault.InUse)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after close: got %v, want the socket gone", err)
	}
}

func TestListenRemovesAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "csi.sock")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false) // as after a kill
	old.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	listener, err := Listen(path)
	if err != nil {
		t.Fatalf("got %v, want the stale socket replaced", err)
	}
	listener.Close()
}

// A process that was killed answers on its socket until the kernel has cleared it away.
func TestListenWaitsForTheDying(t *testing.T) {
	path := filepath.Join(t.TempDir(), "csi.sock")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _ = old.Accept() // it answers once, and dies
		old.Close()
	}()
	listener, err := Listen(path)
	if err != nil {
		t.Fatalf("got %v, want the socket of the dying replaced", err)
	}
	listener.Close()
	<-asked
}

// Of many that begin to listen at once over a stale socket, one does.
func TestListenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "csi.sock")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	const many = 16
	listeners, begin := make(chan net.Listener, many), make(chan struct{})
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			<-begin
			listener, err := Listen(path)
			if err == nil {
				listeners <- listener
			} else if !fault.Is(err, fault.InUse) {
				t.Errorf("got %v, want kind %v", err, fault.InUse)
			}
		})
	}
	close(begin)
	all.Wait()
	if got := len(listeners); got != 1 {
		t.Errorf("got %d listeners, want 1", got)
	}
	close(listeners)
	for listener := range listeners {
		listener.Close()
	}
}

func TestListenLeavesAloneWhatIsNoSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "csi.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !fault.Is(err, fault.Exists) {
		t.Errorf("got %v, want kind %v", err, fault.Exists)
	}
	if data, err := os.ReadFile(path); string(data) != "precious" {
		t.Errorf("got %q, %v, want the file as it was", data, err)
	}
}
