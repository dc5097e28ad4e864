package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// startHealth serves h on loopback and returns its URL and a function that
// stops it.
func startHealth(t *testing.T, h Health) (string, func() error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.ServeListener(ctx, listener) }()
	t.Cleanup(cancel)
	return "http://" + listener.Addr().String(), func() error {
		cancel()
		return <-served
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestHealth(t *testing.T) {
	registry := prometheus.NewRegistry()
	newMetrics("rbd-csi.io", registry)
	well := func(context.Context) error { return nil }
	ill := func(context.Context) error { return errors.New("no mapper works here") }
	for _, test := range []struct {
		name     string
		health   Health
		path     string
		wantCode int
		wantBody string
	}{
		{"no check", Health{}, "/healthz", 200, "ok"},
		{"live", Health{Live: well, Ready: ill}, "/healthz", 200, "ok"},
		{"not live", Health{Live: ill}, "/healthz", 503, "no mapper works here"},
		{"ready", Health{Live: ill, Ready: well}, "/readyz", 200, "ok"},
		{"not ready", Health{Ready: ill}, "/readyz", 503, "no mapper works here"},
		{"metrics", Health{Metrics: registry}, "/metrics", 200, "rbd_csi_panics_total 0"},
		{"no metrics", Health{}, "/metrics", 404, ""},
		{"no pprof", Health{}, "/debug/pprof/", 404, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			url, stop := startHealth(t, test.health)
			code, body := get(t, url+test.path)
			if code != test.wantCode || !strings.Contains(body, test.wantBody) {
				t.Errorf("got %d %q, want %d with %q", code, body, test.wantCode, test.wantBody)
			}
			if err := stop(); err != nil {
				t.Errorf("stop: got %v, want no error", err)
			}
		})
	}
}

func TestEachProbeChecksAnew(t *testing.T) {
	var runs atomic.Int32
	illOnce := func(context.Context) error {
		if runs.Add(1) == 1 {
			return errors.New("not yet")
		}
		return nil
	}
	url, _ := startHealth(t, Health{Ready: illOnce})
	for i, want := range []int{503, 200} {
		if code, body := get(t, url+"/readyz"); code != want {
			t.Errorf("probe %d: got %d %q, want %d", i, code, body, want)
		}
	}
}

func TestCheckThatHangsRunsOnce(t *testing.T) {
	var runs atomic.Int32
	release := make(chan struct{})
	hang := func(context.Context) error {
		runs.Add(1)
		<-release
		return nil
	}
	url, _ := startHealth(t, Health{Live: hang, Timeout: 20 * time.Millisecond})
	for range 3 {
		if code, body := get(t, url+"/healthz"); code != 503 || !strings.Contains(body, "has been running since") {
			t.Errorf("got %d %q, want 503 that says so", code, body)
		}
	}
	if got := runs.Load(); got != 1 {
		t.Errorf("got %d runs, want 1", got)
	}
	close(release)
	deadline := time.Now().Add(10 * time.Second)
	for {
		code, body := get(t, url+"/healthz")
		if code == 200 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %d %q after the check came back, want 200", code, body)
		}
	}
}

func TestProbe(t *testing.T) {
	connection, stop := start(t, Options{Identity: identity{}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := Probe(connection.Target())(ctx); err != nil {
		t.Errorf("server up: got %v, want no error", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	short, cancelShort := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelShort()
	if err := Probe(connection.Target())(short); err == nil {
		t.Error("server down: got no error, want one")
	}
	if err := Probe(filepath.Join("relative", "csi.sock"))(ctx); err == nil {
		t.Error("no endpoint: got no error, want one")
	}
}
