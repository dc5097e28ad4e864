package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/test/demo/story"
)

// TestWriteRecords has a shell of this machine do what a pod's does.
func TestWriteRecords(t *testing.T) {
	folder := t.TempDir()
	w, err := writeRecords(exec.CommandContext(t.Context(), "sh", "-c", "set -e; cd "+folder+"; "+appendRecords))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Writes(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	written, err := w.Stop()
	if err != nil || written < 3 {
		t.Fatalf("stop: got %d, %v, want 3 or more", written, err)
	}
	file, err := os.Open(filepath.Join(folder, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if read, err := story.CountRecords(file); err != nil || read != written {
		t.Errorf("records read: got %d, %v, want %d", read, err, written)
	}
}

// TestWriteRecordsFails sees that the reason is told: the folder is none.
func TestWriteRecordsFails(t *testing.T) {
	w, err := writeRecords(exec.CommandContext(t.Context(), "sh", "-c", "set -e; cd /dev/null; "+appendRecords))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Writes(t.Context(), 1); err == nil {
		t.Error("writes: got no error, want one")
	}
	if written, err := w.Stop(); written != 0 || err == nil || !strings.Contains(err.Error(), "/dev/null") {
		t.Errorf("stop: got %d, %v, want 0 and what the shell said", written, err)
	}
}

func TestNewer(t *testing.T) {
	folder := t.TempDir()
	made := time.Now().Add(-time.Hour)
	write := func(name string, age time.Duration) string {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, made, made.Add(-age)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	target := write("target", 0)
	write("old/a.go", time.Minute)
	write("old/b_test.go", -time.Minute)
	write("new/a.go", time.Minute)
	write("new/deep/b.go", -time.Minute)
	cases := []struct {
		name, target, source string
		want                 bool
	}{
		{"of older files and a newer test", target, "old", true},
		{"of a newer file", target, "new", false},
		{"of a source that is gone", target, "gone", false},
		{"that is not there", filepath.Join(folder, "none"), "old", false},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			if got := newer(test.target, filepath.Join(folder, test.source)); got != test.want {
				t.Errorf("got %t, want %t", got, test.want)
			}
		})
	}
}

// TestManifestNames sees that the story's files are there, and name what the story does.
func TestManifestNames(t *testing.T) {
	cases := []struct {
		file, name string
		want       []string
	}{
		{webManifest, "StatefulSet", []string{"name: web\n", "mountPath: " + data, "labels: {app: web}"}},
		{classManifest, "class", []string{"name: archive\n", "imageFeature: "}},
		{claimManifest, "claim", []string{"name: " + letters + "\n", "storageClassName: archive\n"}},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("../../../..", test.file))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if !strings.Contains(string(text), want) {
					t.Errorf("%s: got no %q in it, want one", test.file, want)
				}
			}
		})
	}
}
