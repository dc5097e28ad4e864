package registrar_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/registrar"
)

var plugin = registrar.Plugin{Driver: "rbd-csi.io", Endpoint: "/var/lib/kubelet/plugins/rbd-csi.io/csi.sock"}

// A registration in progress, and the kubelet's side of it.
type session struct {
	kubelet registration.RegistrationClient
	socket  string
	cancel  context.CancelFunc
	ended   chan error
}

func start(t *testing.T, socket string) *session {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{socket: socket, cancel: cancel, ended: make(chan error, 1)}
	go func() { s.ended <- registrar.Run(ctx, socket, plugin) }()
	waitUntilSomebodyListens(t, socket)
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		connection.Close()
		cancel()
	})
	s.kubelet = registration.NewRegistrationClient(connection)
	return s
}

func waitUntilSomebodyListens(t *testing.T, socket string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		connection, err := net.Dial("unix", socket)
		if err == nil {
			connection.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody listens on %s after 10 s: %v", socket, err)
		}
	}
}

func newSocket(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	socket := registrar.Socket(root, plugin)
	if want := filepath.Join(root, "plugins_registry", "rbd-csi.io-reg.sock"); socket != want {
		t.Errorf("socket: got %s, want %s", socket, want)
	}
	if err := os.Mkdir(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	return socket
}

func TestRegistration(t *testing.T) {
	s := start(t, newSocket(t))
	info, err := s.kubelet.GetInfo(t.Context(), &registration.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if info.GetType() != "CSIPlugin" || info.GetName() != plugin.Driver || info.GetEndpoint() != plugin.Endpoint ||
		!slices.Equal(info.GetSupportedVersions(), []string{"1.0.0"}) {
		t.Errorf("got %v, want CSIPlugin, %+v and version 1.0.0", info, plugin)
	}
	if _, err := s.kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{PluginRegistered: true}); err != nil {
		t.Errorf("notify: got %v, want no error", err)
	}
	// A kubelet that restarts asks again.
	if _, err := s.kubelet.GetInfo(t.Context(), &registration.InfoRequest{}); err != nil {
		t.Errorf("second time: got %v, want no error", err)
	}
	s.cancel()
	if err := <-s.ended; err != nil {
		t.Errorf("end: got %v, want no error", err)
	}
	if _, err := os.Stat(s.socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket after the end: got %v, want it gone", err)
	}
}

func TestRefusal(t *testing.T) {
	s := start(t, newSocket(t))
	status := &registration.RegistrationStatus{Error: "node name is empty"}
	if _, err := s.kubelet.NotifyRegistrationStatus(t.Context(), status); err != nil {
		t.Errorf("notify: got %v, want no error", err)
	}
	err := <-s.ended
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "node name is empty") {
		t.Errorf("got %v, want kind %v with the kubelet's reason", err, fault.Unavailable)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	socket := newSocket(t)
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false) // as after a kill
	old.Close()
	s := start(t, socket)
	if _, err := s.kubelet.GetInfo(t.Context(), &registration.InfoRequest{}); err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

func TestAnotherRegistrarIsLeftAlone(t *testing.T) {
	s := start(t, newSocket(t))
	if _, err := s.kubelet.GetInfo(t.Context(), &registration.InfoRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := registrar.Run(t.Context(), s.socket, plugin); !fault.Is(err, fault.InUse) {
		t.Errorf("got %v, want kind %v", err, fault.InUse)
	}
}
