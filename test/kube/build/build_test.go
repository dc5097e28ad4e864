package build

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/test/kube"
)

// TestFollow reads what the go command says: counts, and the lines that tell what is wrong.
func TestFollow(t *testing.T) {
	const output = `go: downloading k8s.io/api v0.37.2
k8s.io/api/core/v1
example.org/a
# example.org/a
./a.go:3:2: undefined: b
`
	var said bytes.Buffer
	s := Builder{Progress: &said}.begin("work", time.Minute)
	got := s.follow(strings.NewReader(output))
	if want := "# example.org/a\n./a.go:3:2: undefined: b\n"; got != want {
		t.Errorf("lines: got %q, want %q", got, want)
	}
	if got, want := s.counts(), ", 1 modules fetched, 2 packages compiled"; got != want {
		t.Errorf("counts: got %q, want %q", got, want)
	}
	s.End(nil)
	if !strings.Contains(said.String(), "work") || !strings.Contains(said.String(), "done in") {
		t.Errorf("progress: got %q, want the step's begin and end", said.String())
	}
}

func TestLink(t *testing.T) {
	b := Builder{Folder: t.TempDir()}
	if err := os.MkdirAll(b.Binaries(), 0o755); err != nil {
		t.Fatal(err)
	}
	// What an earlier release left there is replaced.
	if err := os.WriteFile(filepath.Join(b.Binaries(), "kubelet"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.link(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range links {
		if target, err := os.Readlink(filepath.Join(b.Binaries(), name)); err != nil || target != "kubernetes" {
			t.Errorf("%s: got %q, %v, want a link to kubernetes", name, target, err)
		}
	}
}

// TestVersion sees that what the components call themselves is what go.mod has.
func TestVersion(t *testing.T) {
	text, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := "k8s.io/kubernetes v" + kube.Version + "\n"; !strings.Contains(string(text), want) {
		t.Errorf("go.mod does not require %s", want)
	}
	if flags := ldflags(); !strings.Contains(flags, "gitVersion=v"+kube.Version+" ") || !strings.Contains(flags, "gitMinor=37 ") {
		t.Errorf("linker's flags: got %s", flags)
	}
}

// TestSupplied makes the changed copy of a module once for each release of it.
func TestSupplied(t *testing.T) {
	changes := 0
	module := supplied{path: "example.org/m", change: func(copied string) error {
		changes++
		return os.WriteFile(filepath.Join(copied, "added.go"), []byte("package m\n"), 0o644)
	}}
	to := filepath.Join(t.TempDir(), "copy")
	releases := []string{t.TempDir(), t.TempDir()}
	for i, test := range []struct {
		name string
		from string
		want int
	}{
		{"first", releases[0], 1},
		{"again", releases[0], 1},
		{"another release", releases[1], 2},
	} {
		own := fmt.Sprintf("of-%d.go", i)
		if err := os.WriteFile(filepath.Join(test.from, own), []byte("package m\n"), 0o444); err != nil {
			t.Fatal(err)
		}
		if err := module.copy(test.from, to); err != nil {
			t.Fatal(err)
		}
		if changes != test.want {
			t.Errorf("%s: got %d copies made, want %d", test.name, changes, test.want)
		}
		if _, err := os.Stat(filepath.Join(to, "added.go")); err != nil {
			t.Errorf("%s: got %v, want the change in the copy", test.name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(to, "of-0.go")); !os.IsNotExist(err) {
		t.Errorf("a file of the other release: got %v, want it gone", err)
	}
}
