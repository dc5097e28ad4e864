package images

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMakeOnlyWhatIsOutOfDate makes an image, makes it again, and again after what it is made of has changed.
func TestMakeOnlyWhatIsOutOfDate(t *testing.T) {
	var said bytes.Buffer
	m := Maker{Binaries: t.TempDir(), Folder: t.TempDir(), Progress: &said}
	if err := os.WriteFile(m.binary("tool"), []byte("1"), 0o755); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name   string
		before func(t *testing.T)
		want   bool
	}{
		{"missing", func(*testing.T) {}, true},
		{"up to date", func(*testing.T) {}, false},
		{"older than its input", func(t *testing.T) { touch(t, m.binary("tool"), time.Now().Add(time.Hour)) }, true},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			said.Reset()
			test.before(t)
			if err := m.make(t.Context(), m.single("tool", "example.org/tool:1")); err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(said.String(), "example.org/tool:1"); got != test.want {
				t.Errorf("made: got %t, want %t", got, test.want)
			}
		})
	}
	entries, err := os.ReadDir(m.Folder)
	if err != nil || len(entries) != 1 {
		t.Errorf("files: got %v, %v, want the archive alone", entries, err)
	}
}

func TestMakeWithoutInput(t *testing.T) {
	m := Maker{Binaries: t.TempDir(), Folder: t.TempDir(), Progress: &bytes.Buffer{}}
	if err := m.make(t.Context(), m.single("tool", "example.org/tool:1")); err == nil {
		t.Error("an image of a command that is not there: got no error")
	}
}

func TestEveryImageHasItsFile(t *testing.T) {
	files, names := map[string]bool{}, map[string]bool{}
	for _, r := range (Maker{}).recipes() {
		if files[r.file] {
			t.Errorf("file %s stands for two images", r.file)
		}
		files[r.file] = true
		for _, name := range r.names {
			if names[name] || !strings.Contains(name, ":") {
				t.Errorf("name %s: want one with a tag, once", name)
			}
			names[name] = true
		}
	}
}

// TestTagsAreVersions sees that the sidecars' images are named after the releases in go.mod.
func TestTagsAreVersions(t *testing.T) {
	text, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for name, module := range map[string]string{
		Provisioner: "external-provisioner/v6", Attacher: "external-attacher/v4", Resizer: "external-resizer/v2",
		Snapshotter: "external-snapshotter/v8", SnapshotController: "external-snapshotter/v8",
	} {
		_, tag, _ := strings.Cut(name, ":")
		if want := "github.com/kubernetes-csi/" + module + " " + tag; !strings.Contains(string(text), want) {
			t.Errorf("go.mod does not require %s", want)
		}
	}
}

func touch(t *testing.T, path string, at time.Time) {
	t.Helper()
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// TestCopyProgram copies a program with its libraries and the loader.
func TestCopyProgram(t *testing.T) {
	root := t.TempDir()
	if err := copyProgram(t.Context(), root, "/bin/cat", "bin/cat"); err != nil {
		t.Skipf("this machine's programs cannot be looked at: %v", err)
	}
	for _, want := range []string{"bin/cat", "lib64"} {
		if _, err := os.Stat(filepath.Join(root, want)); err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
}
