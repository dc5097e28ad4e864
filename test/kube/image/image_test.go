package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// TestPack reads an archive as a runtime does: from the index by digests to the files.
func TestPack(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "etc", "motd"), "hello\n")
	if err := os.Symlink("etc/motd", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Names: []string{"example.org/a:1", "example.org/b:2"}, Root: root, Entrypoint: []string{"/bin/a"}, User: "65532"}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := Pack(path, spec); err != nil {
		t.Fatal(err)
	}
	files := read(t, path)
	for name, text := range files {
		if digest, found := strings.CutPrefix(name, "blobs/sha256/"); found {
			if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != digest {
				t.Errorf("%s: got digest %x", name, sum)
			}
		}
	}
	var list index
	decode(t, files["index.json"], &list)
	for i, name := range spec.Names {
		if got := list.Manifests[i].Annotations["io.containerd.image.name"]; got != name {
			t.Errorf("name %d: got %s, want %s", i, got, name)
		}
	}
	var whole manifest
	decode(t, files[blobName(list.Manifests[0].Digest)], &whole)
	var runs config
	decode(t, files[blobName(whole.Config.Digest)], &runs)
	if runs.Config.Entrypoint[0] != "/bin/a" || runs.Config.User != "65532" || runs.RootFS.DiffIDs[0] != whole.Layers[0].Digest {
		t.Errorf("configuration: got %+v", runs)
	}
	layer := tar.NewReader(bytes.NewReader(files[blobName(whole.Layers[0].Digest)]))
	var names []string
	for header, err := layer.Next(); err == nil; header, err = layer.Next() {
		names = append(names, header.Name+">"+header.Linkname)
		if header.Uid != 0 || header.ModTime.Unix() > 0 {
			t.Errorf("%s: got user %d and time %s, want root and none", header.Name, header.Uid, header.ModTime)
		}
	}
	if got, want := strings.Join(names, " "), "etc/> etc/motd> link>etc/motd"; got != want {
		t.Errorf("files of the layer: got %s, want %s", got, want)
	}
}

func TestPackTwiceGivesTheSameBytes(t *testing.T) {
	root, folder := t.TempDir(), t.TempDir()
	write(t, filepath.Join(root, "a"), "a")
	var archives [][]byte
	for _, name := range []string{"1.tar", "2.tar"} {
		path := filepath.Join(folder, name)
		if err := Pack(path, Spec{Names: []string{"a:1"}, Root: root}); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, text)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two archives of the same files differ")
	}
	if entries, _ := os.ReadDir(folder); len(entries) != 2 {
		t.Errorf("files beside the archives: got %v, want none", entries)
	}
}

func TestPackWantsAName(t *testing.T) {
	if err := Pack(filepath.Join(t.TempDir(), "a.tar"), Spec{Root: t.TempDir()}); !errors.Is(err, fault.Invalid) {
		t.Errorf("got %v, want %v", err, fault.Invalid)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) map[string][]byte {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	files := map[string][]byte{}
	archive := tar.NewReader(file)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(err)
		}
	}
}

func decode(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
}
