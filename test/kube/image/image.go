// Package image packs files as an image for containers, in the layout of the Open Container
// Initiative (image-spec 1.1, image-layout.md) in a tar archive. It needs no daemon and no
// registry: containerd, buildah, podman, skopeo and docker read such archives.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Spec says what is in an image.
type Spec struct {
	// Names are the references under which the image is known, registry and tag
	// included: registry.k8s.io/pause:3.10.2.
	Names []string
	// Root is the folder that becomes the image's root; its files belong to root there.
	Root string
	// Entrypoint and Command are what a container runs, as in a Dockerfile.
	Entrypoint, Command []string
	// User is the number of the user that it runs as, or empty for root.
	User string
}

// The types that the specification gives to an archive's parts.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// searchPath is PATH in a container whose pod does not say otherwise.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type config struct {
	Architecture string       `json:"architecture"`
	OS           string       `json:"os"`
	Config       runConfig    `json:"config"`
	RootFS       rootFS       `json:"rootfs"`
	History      []madeByWhom `json:"history"`
}

type runConfig struct {
	User       string   `json:"User,omitempty"`
	Env        []string `json:"Env"`
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	WorkingDir string   `json:"WorkingDir"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type madeByWhom struct {
	CreatedBy string `json:"created_by"`
}

// Pack writes the image to an archive at path, in place of what was there. The same files give
// the same bytes: there are no times and no names of users in it.
func Pack(path string, spec Spec) error {
	if len(spec.Names) == 0 {
		return fmt.Errorf("pack %s: no name: %w", path, fault.Invalid)
	}
	layer, err := writeLayer(path+".layer", spec.Root)
	if err != nil {
		return fmt.Errorf("pack %s: %w", spec.Root, err)
	}
	defer os.Remove(path + ".layer")
	file, err := os.Create(path + ".part")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	err = writeArchive(file, path+".layer", layer, spec)
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	return os.Rename(file.Name(), path)
}

// writeArchive writes the parts in the order in which each needs the digests of those before.
func writeArchive(out io.Writer, layerFile string, layer descriptor, spec Spec) error {
	archive := tar.NewWriter(out)
	if err := addBlobFile(archive, layerFile, layer); err != nil {
		return err
	}
	runs, err := addBlob(archive, typeConfig, config{
		Architecture: runtime.GOARCH,
		OS:           "linux",
		Config:       runConfig{User: spec.User, Env: []string{searchPath}, Entrypoint: spec.Entrypoint, Cmd: spec.Command, WorkingDir: "/"},
		RootFS:       rootFS{Type: "layers", DiffIDs: []string{layer.Digest}},
		History:      []madeByWhom{{CreatedBy: "rbd-csi, test/kube/image"}},
	})
	if err != nil {
		return err
	}
	whole, err := addBlob(archive, typeManifest, manifest{
		SchemaVersion: 2, MediaType: typeManifest, Config: runs, Layers: []descriptor{layer},
	})
	if err != nil {
		return err
	}
	list := index{SchemaVersion: 2, MediaType: typeIndex}
	for _, name := range spec.Names {
		named := whole
		// The first is what containerd reads, the second what the specification has.
		named.Annotations = map[string]string{
			"io.containerd.image.name":          name,
			"org.opencontainers.image.ref.name": name[strings.LastIndexByte(name, ':')+1:],
		}
		list.Manifests = append(list.Manifests, named)
	}
	if err := addJSON(archive, "index.json", list); err != nil {
		return err
	}
	if err := addJSON(archive, "oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}); err != nil {
		return err
	}
	return archive.Close()
}

// writeLayer writes a folder as a tar archive to path and says what that is.
func writeLayer(path, root string) (descriptor, error) {
	file, err := os.Create(path)
	if err != nil {
		return descriptor{}, err
	}
	defer file.Close()
	sum := sha256.New()
	layer := tar.NewWriter(io.MultiWriter(file, sum))
	// WalkDir goes in lexical order.
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		return addFile(layer, root, path, entry)
	})
	if err != nil {
		return descriptor{}, err
	}
	if err := layer.Close(); err != nil {
		return descriptor{}, err
	}
	size, err := file.Seek(0, io.SeekCurrent)
	return descriptor{MediaType: typeLayer, Digest: digest(sum.Sum(nil)), Size: size}, err
}

func addFile(layer *tar.Writer, root, path string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	var target string
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	name, err := filepath.Rel(root, path)
	if err != nil {
		return err
	}
	plain := &tar.Header{Typeflag: header.Typeflag, Name: name, Linkname: target, Mode: header.Mode, Size: header.Size}
	if info.IsDir() {
		plain.Name += "/"
	}
	if err := layer.WriteHeader(plain); err != nil || !info.Mode().IsRegular() {
		return err
	}
	return copyFile(layer, path)
}

func copyFile(out io.Writer, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(out, file)
	return err
}

// addBlobFile adds a file that is known by its digest.
func addBlobFile(archive *tar.Writer, path string, what descriptor) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: blobName(what.Digest), Mode: 0o644, Size: what.Size}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	return copyFile(archive, path)
}

// addBlob adds a value as JSON under its digest.
func addBlob(archive *tar.Writer, mediaType string, value any) (descriptor, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(text)
	what := descriptor{MediaType: mediaType, Digest: digest(sum[:]), Size: int64(len(text))}
	return what, add(archive, blobName(what.Digest), text)
}

func addJSON(archive *tar.Writer, name string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return add(archive, name, text)
}

func add(archive *tar.Writer, name string, text []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(archive, bytes.NewReader(text))
	return err
}

func digest(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

func blobName(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }
