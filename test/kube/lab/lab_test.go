package lab

import (
	"archive/tar"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kube"
)

// repository makes a folder with what is looked for, and returns the places in it.
func repository(t *testing.T, files map[string]string) kube.Places {
	t.Helper()
	top := t.TempDir()
	for name, content := range files {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return kube.Places{Module: filepath.Join(top, "test", "kube"), Build: filepath.Join(top, "build", "kube")}
}

// archive is a tar with a file of that name and content.
func archive(t *testing.T, name, content string) string {
	t.Helper()
	var text strings.Builder
	w := tar.NewWriter(&text)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
	if err == nil {
		_, err = w.Write([]byte(content))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func TestFind(t *testing.T) {
	const image = "build/image/rbd-csi-forky.tar"
	whole := archive(t, "manifest.json", `[{"Config":"c0ffee.json","RepoTags":["localhost/rbd-csi:forky","docker.io/library/rbd-csi:v1"]}]`)
	for name, test := range map[string]struct {
		files map[string]string
		kind  error
		says  string
	}{
		"everything":       {files: map[string]string{"build/helm": "", image: whole}},
		"no helm":          {files: map[string]string{image: whole}, kind: fault.Unsupported, says: "build/helm"},
		"no image":         {files: map[string]string{"build/helm": ""}, kind: fault.Unsupported, says: "make image"},
		"no archive":       {files: map[string]string{"build/helm": "", image: "text"}, kind: io.ErrUnexpectedEOF},
		"another archive":  {files: map[string]string{"build/helm": "", image: archive(t, "file", "text")}, kind: fault.NotFound},
		"two images":       {files: map[string]string{"build/helm": "", image: archive(t, "manifest.json", `[{},{}]`)}, kind: fault.Invalid},
		"no name for pods": {files: map[string]string{"build/helm": "", image: archive(t, "manifest.json", `[{"RepoTags":["localhost/rbd-csi:forky"]}]`)}, kind: fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := find(Options{Places: repository(t, test.files)})
			if test.kind != nil {
				if !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.says) {
					t.Errorf("got error %v, want %v with %q", err, test.kind, test.says)
				}
				return
			}
			if err != nil || got.repository != "docker.io/library/rbd-csi" || got.tag != "v1" || got.id != "c0ffee" {
				t.Errorf("got %+v, error %v, want docker.io/library/rbd-csi:v1 with ID c0ffee", got, err)
			}
		})
	}
}

func TestAwait(t *testing.T) {
	calls := 0
	err := Await(t.Context(), time.Minute, "it is so", func(context.Context) (bool, string, error) {
		calls++
		return calls == 2, "not yet", nil
	})
	if err != nil || calls != 2 {
		t.Errorf("a condition that holds at the second look: got error %v after %d looks", err, calls)
	}
	err = Await(t.Context(), time.Millisecond, "it is so", func(context.Context) (bool, string, error) { return false, "it is otherwise", nil })
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "it is otherwise") {
		t.Errorf("a condition that never holds: got %v, want Unavailable and how things are", err)
	}
	err = Await(t.Context(), time.Minute, "it is so", func(context.Context) (bool, string, error) { return false, "", fault.Denied })
	if !errors.Is(err, fault.Denied) {
		t.Errorf("a condition that cannot be looked at: got %v, want %v", err, fault.Denied)
	}
}

// TestMetadataCertificate makes a certificate once, which is taken for its own authority, for the name of the service.
func TestMetadataCertificate(t *testing.T) {
	l := &Lab{places: kube.Places{Build: t.TempDir()}}
	if err := os.MkdirAll(l.folder(), 0o755); err != nil {
		t.Fatal(err)
	}
	certificate, key, err := l.metadataCertificate()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: metadataName, Roots: roots}); err != nil {
		t.Errorf("certificate for %s: got %v, want it to be good", metadataName, err)
	}
	again, _, err := l.metadataCertificate()
	if err != nil || string(again) != string(certificate) {
		t.Errorf("asked again: got another certificate or %v, want the same", err)
	}
}
