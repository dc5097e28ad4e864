package kube

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

const (
	// diskSize is how large a guest's disk is. The file is sparse.
	diskSize = 16 << 30
	// templatePattern names the disks that guests' disks are copied from, beside the images in them.
	templatePattern = "guest-disk-*"
)

// ensureTemplate returns the path of a disk on which a containerd has the images. It is kept in their folder until there are others.
func (s *state) ensureTemplate(ctx context.Context, opts Options, say *progress.Narrator) (string, error) {
	archives, err := opts.archives()
	if err != nil {
		return "", err
	}
	name, err := templateName(archives)
	if err != nil {
		return "", err
	}
	template := filepath.Join(opts.Images, name)
	if exists(template) {
		return template, nil
	}
	if err := removeTemplates(opts.Images); err != nil {
		return "", err
	}
	if err := s.makeTemplate(ctx, archives, template+".new"); err != nil {
		return "", errors.Join(err, removeFile(template+".new"))
	}
	say.Line("%d archives of images, in a disk for guests", len(archives))
	return template, os.Rename(template+".new", template)
}

// templateName has the archives' names, sizes and times in it.
func templateName(archives []string) (string, error) {
	sum := sha256.New()
	for _, archive := range archives {
		info, err := os.Stat(archive)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(sum, archive, info.Size(), info.ModTime().UnixNano())
	}
	return fmt.Sprintf("guest-disk-%x", sum.Sum(nil)[:8]), nil
}

func removeTemplates(images string) error {
	stale, err := filepath.Glob(filepath.Join(images, templatePattern))
	for _, path := range stale {
		err = errors.Join(err, removeFile(path))
	}
	return err
}

// makeTemplate makes a disk with the images. A containerd of this machine imports them, because one in a guest takes ten times as
// long, into a folder that is then put on the disk as a whole. It has the guests' settings, but for the places.
func (s *state) makeTemplate(ctx context.Context, archives []string, path string) error {
	n := node{name: "template", address: s.Address, data: s.data("template"), volatile: s.Folder, kubeletRoot: s.KubeletRoot, firstPod: 2, lastPod: 2}
	if err := s.writeRuntimeConfig(n); err != nil {
		return err
	}
	if err := s.startRuntime(ctx, n); err != nil {
		return err
	}
	for _, archive := range archives {
		if err := s.imagesOn(ctx, n, "import", archive); err != nil {
			return fmt.Errorf("import %s: %w", archive, err)
		}
	}
	if err := s.stop(ctx, containerd); err != nil {
		return err
	}
	if err := makeDisk(ctx, path, n.data); err != nil {
		return err
	}
	return removeTree(n.data)
}

// makeDisk makes a filesystem of diskSize in a file, with what is in a folder.
func makeDisk(ctx context.Context, path, folder string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(file.Truncate(diskSize), file.Close()); err != nil {
		return err
	}
	_, err = run(ctx, "mkfs.ext4", "-q", "-d", folder, path)
	return err
}

// copySparse copies a file, and what nobody wrote in it takes no room in the copy either.
func copySparse(ctx context.Context, from, to string) error {
	_, err := run(ctx, "cp", "--sparse=always", "--reflink=auto", from, to)
	return err
}
