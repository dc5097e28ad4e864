// Package images makes the images of a test cluster, from what `kube build` made and from packages
// of Debian, under the names that they have in the registry. No registry is asked.
package images

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/image"
)

// The images' names. Those of the sidecars are their releases in go.mod.
const (
	Provisioner        = "registry.k8s.io/sig-storage/csi-provisioner:v6.4.0"
	Attacher           = "registry.k8s.io/sig-storage/csi-attacher:v4.13.0"
	Resizer            = "registry.k8s.io/sig-storage/csi-resizer:v2.3.0"
	Snapshotter        = "registry.k8s.io/sig-storage/csi-snapshotter:v8.7.0"
	SnapshotController = "registry.k8s.io/sig-storage/snapshot-controller:v8.7.0"
	SnapshotMetadata   = "registry.k8s.io/sig-storage/csi-snapshot-metadata:v1.1.0"
	// Busybox is Debian's, a shell and small tools.
	Busybox = "docker.io/library/busybox:1.35"
	// Nginx has the name that Kubernetes' tutorial on StatefulSets uses, and in it Debian's
	// nginx, which serves /usr/share/nginx/html on port 80, with busybox for a shell.
	Nginx = "registry.k8s.io/nginx-slim:0.24"
	// ExampleNginx is what deploy/kubernetes/example/statefulset.yaml runs: the same.
	ExampleNginx = "docker.io/library/nginx:1.27"
)

// The images that Kubernetes' storage suite wants in 1.37.2 (test/utils/image/manifest.go), with contents
// that do what its specs ask of them.
const (
	suiteBusybox = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2"
	suiteNginx   = "registry.k8s.io/e2e-test-images/nginx:1.27.0-2"
	suiteGNU     = "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.1.1"
	suiteAgnhost = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
)

// A Maker knows where things are and to whom to tell what it does.
type Maker struct {
	// Binaries is the folder that `kube build` fills.
	Binaries string
	// Folder is where the archives go, one for each image. Those that only Kubernetes' storage suite
	// needs are in SuiteFolder below it, so that not every cluster has to unpack them.
	Folder string
	// Packages is a cache of packages of Debian.
	Packages string
	// Suite makes also the images of Kubernetes' storage suite.
	Suite bool
	// Progress is told what is made.
	Progress io.Writer
}

// SuiteFolder is where below the others the images are that only the suite needs.
const SuiteFolder = "suite"

// A recipe says how an image is made.
type recipe struct {
	file  string
	names []string
	// inputs are the files that, when newer than the archive, make it out of date.
	inputs []string
	// fill puts the image's contents into an empty folder.
	fill                func(ctx context.Context, root string) error
	entrypoint, command []string
	suite               bool
}

// recipes lists the images.
func (m Maker) recipes() []recipe {
	list := []recipe{
		m.single("pause", kube.PauseImage),
		m.single("csi-provisioner", Provisioner),
		m.single("csi-attacher", Attacher),
		m.single("csi-resizer", Resizer),
		m.single("csi-snapshotter", Snapshotter),
		m.single("snapshot-controller", SnapshotController),
		m.single("csi-snapshot-metadata", SnapshotMetadata),
		{file: "busybox", names: []string{Busybox, "docker.io/library/busybox:latest", suiteBusybox}, fill: m.fillBusybox, command: []string{"sh"}},
		{file: "nginx", names: []string{Nginx, ExampleNginx, suiteNginx}, fill: m.fillNginx, entrypoint: []string{"/usr/sbin/nginx", "-g", "daemon off;"}},
		{file: "gnu", names: []string{suiteGNU}, fill: m.fillGNU, command: []string{"sh"}, suite: true},
		{
			file: "agnhost", names: []string{suiteAgnhost}, inputs: []string{m.binary("agnhost")}, fill: m.fillAgnhost,
			entrypoint: []string{"/agnhost"}, command: []string{"pause"}, suite: true,
		},
	}
	return list
}

func (m Maker) binary(name string) string { return filepath.Join(m.Binaries, name) }

// single is an image with one static command in it and nothing else.
func (m Maker) single(name, reference string) recipe {
	return recipe{
		file: name, names: []string{reference}, inputs: []string{m.binary(name)}, entrypoint: []string{"/" + name},
		fill: func(_ context.Context, root string) error {
			return copyFile(m.binary(name), filepath.Join(root, name))
		},
	}
}

// Make makes the images that are missing or older than what they are made of.
func (m Maker) Make(ctx context.Context) error {
	for _, folder := range []string{filepath.Join(m.Folder, SuiteFolder), m.Packages} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
	}
	for _, r := range m.recipes() {
		if r.suite && !m.Suite {
			continue
		}
		if err := m.make(ctx, r); err != nil {
			return fmt.Errorf("make image %s: %w", r.names[0], err)
		}
	}
	return nil
}

func (m Maker) make(ctx context.Context, r recipe) error {
	path := filepath.Join(m.Folder, r.file+".tar")
	if r.suite {
		path = filepath.Join(m.Folder, SuiteFolder, r.file+".tar")
	}
	if current(path, r.inputs) {
		return nil
	}
	begun := time.Now()
	root, err := os.MkdirTemp(m.Folder, r.file+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := r.fill(ctx, root); err != nil {
		return err
	}
	if err := image.Pack(path, image.Spec{Names: r.names, Root: root, Entrypoint: r.entrypoint, Command: r.command}); err != nil {
		return err
	}
	fmt.Fprintf(m.Progress, "kube: image %s (%.1f s)\n", r.names[0], time.Since(begun).Seconds())
	return nil
}

// current says that the file is there and not older than this program and the inputs.
func current(path string, inputs []string) bool {
	made, err := os.Stat(path)
	if err != nil {
		return false
	}
	if self, err := os.Executable(); err == nil {
		inputs = append(slices.Clip(inputs), self)
	}
	for _, input := range inputs {
		info, err := os.Stat(input)
		if err != nil || info.ModTime().After(made.ModTime()) {
			return false
		}
	}
	return true
}
