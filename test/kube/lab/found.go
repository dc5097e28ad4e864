package lab

import (
	"archive/tar"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// findings are the things that are built by other commands and needed here.
type findings struct {
	helm  string
	chart string
	// archive has the driver's image, whose name is repository:tag, and whose ID tells it from others of that name.
	archive             string
	repository, tag, id string
	// imported says that the nodes have it.
	imported bool
}

// find says with fault.Unsupported all that is missing, and the command that makes it.
func find(opts Options) (findings, error) {
	top := opts.Places.Top()
	f := findings{helm: filepath.Join(top, "build", "helm"), chart: filepath.Join(top, "charts", "rbd-csi"), archive: opts.Image}
	var missing []string
	if !exists(f.helm) {
		missing = append(missing, "there is no "+f.helm+" (make build/helm builds it)")
	}
	if f.archive == "" {
		f.archive = newest(filepath.Join(top, "build", "image", "rbd-csi-*.tar"))
	}
	if f.archive == "" || !exists(f.archive) {
		missing = append(missing, "there is no image of the driver, "+cmp.Or(f.archive, "build/image/rbd-csi-*.tar")+" (make image builds it)")
	}
	if len(missing) > 0 {
		return f, fmt.Errorf("%w: %s", fault.Unsupported, strings.Join(missing, "; "))
	}
	packed, err := readManifest(f.archive)
	if err != nil {
		return f, fmt.Errorf("read %s: %w", f.archive, err)
	}
	f.id = strings.TrimSuffix(filepath.Base(packed.Config), ".json")
	for _, name := range packed.RepoTags {
		if colon := strings.LastIndex(name, ":"); colon > 0 && !strings.HasPrefix(name, "localhost/") {
			f.repository, f.tag = name[:colon], name[colon+1:]
			return f, nil
		}
	}
	return f, fmt.Errorf("find a name for the cluster in %s, got %q: %w", f.archive, packed.RepoTags, fault.Invalid)
}

// newest is the file of a pattern that was written last, or empty.
func newest(pattern string) string {
	// The only error is that of a wrong pattern.
	paths, _ := filepath.Glob(pattern)
	var last string
	var when int64
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && info.ModTime().UnixNano() > when {
			last, when = path, info.ModTime().UnixNano()
		}
	}
	return last
}

// A manifest says what image is in an archive. Its configuration's name is the image's ID.
type manifest struct {
	Config   string
	RepoTags []string
}

// readManifest reads the manifest of the only image in an archive of docker's layout.
func readManifest(path string) (manifest, error) {
	file, err := os.Open(path)
	if err != nil {
		return manifest{}, err
	}
	defer file.Close()
	archive := tar.NewReader(file)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return manifest{}, fmt.Errorf("manifest.json: %w", fault.NotFound)
		}
		if err != nil {
			return manifest{}, err
		}
		if header.Name != "manifest.json" {
			continue
		}
		var images []manifest
		err = json.NewDecoder(archive).Decode(&images)
		if err == nil && len(images) != 1 {
			err = fmt.Errorf("%d images, not one: %w", len(images), fault.Invalid)
		}
		if err != nil {
			return manifest{}, err
		}
		return images[0], nil
	}
}
