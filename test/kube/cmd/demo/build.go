package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/build"
	"github.com/rbd-csi/rbd-csi/test/kube/images"
	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

const (
	// release is the release of Debian whose libraries the driver's image has.
	release = "forky"
	// usualHelm and usualImage are how long these take on two cores, when nothing is there.
	usualHelm  = time.Minute // after Kubernetes, of whose modules it is made
	usualImage = 6 * time.Minute
)

// build makes what is missing or out of date. The driver's image is made beside all the rest: that waits for the network and
// the disk, where the others want the processors.
func (s *stage) build() {
	if s.Err != nil {
		return
	}
	image := newer(s.options.image(), s.options.imageSources()...)
	helm := newer(s.options.helm(), filepath.Join(s.options.top(), "test", "chart", "go.sum"))
	_, down := kube.Open(s.options.places.Options().Folder)
	s.Line("")
	if down == nil {
		s.Say("Kubernetes is up already, and is used as it is.")
	} else {
		s.Say("What is missing is built first: Kubernetes from its Go modules, Helm, and the image of the driver. That takes about " +
			"a quarter of an hour on two cores, and some seconds when it was done before.")
	}
	ctx, cancel := context.WithCancel(s.Ctx)
	defer cancel()
	out := s.Progress("  ")
	var all sync.WaitGroup
	var errs [2]error
	all.Go(func() {
		if down != nil {
			errs[0] = s.options.buildKubernetes(ctx, out)
		}
		if errs[0] == nil && !helm {
			errs[0] = watched(out, "helm", "building Helm", usualHelm, func() error { return s.options.buildHelm(ctx) })
		}
		cancelIf(errs[0], cancel)
	})
	all.Go(func() {
		if !image {
			errs[1] = watched(out, "image", "building the driver's image", usualImage, func() error { return s.options.buildImage(ctx, out) })
		}
		cancelIf(errs[1], cancel)
	})
	all.Wait()
	s.Err = errors.Join(errs[:]...)
	s.imageMade = !image
}

func cancelIf(err error, cancel func()) {
	if err != nil {
		cancel()
	}
}

func (o options) helm() string { return filepath.Join(o.top(), "build", "helm") }

func (o options) image() string {
	return filepath.Join(o.top(), "build", "image", "rbd-csi-"+release+".tar")
}

// imageSources are what the driver's image is made of.
func (o options) imageSources() []string {
	var paths []string
	for _, name := range []string{"cmd", "pkg", "go.mod", "go.sum", "Dockerfile", "deploy/image.sh", "deploy/root.sh"} {
		paths = append(paths, filepath.Join(o.top(), name))
	}
	return paths
}

func (o options) buildKubernetes(ctx context.Context, out io.Writer) error {
	err := build.Builder{Module: o.places.Module, Folder: o.places.Build, Progress: out}.Build(ctx)
	if err != nil {
		return fmt.Errorf("build Kubernetes: %w", err)
	}
	to := o.places.Options()
	return images.Maker{
		Binaries: to.Binaries, Folder: to.Images, Packages: o.places.Packages(), Progress: out,
	}.Make(ctx)
}

// buildHelm builds the command from the module of the chart's tests. Debuggers' data are left out.
func (o options) buildHelm(ctx context.Context) error {
	compile := exec.CommandContext(ctx, "nice", build.GoTool(), "build", "-p", build.AtOnce, "-ldflags=-s -w", "-o", o.helm(), "helm.sh/helm/v4/cmd/helm")
	compile.Dir = filepath.Join(o.top(), "test", "chart")
	compile.Env = build.Environment()
	said, err := compile.CombinedOutput()
	if err != nil {
		return fmt.Errorf("build Helm: %w: %s", err, tail(string(said), 20))
	}
	return nil
}

// buildImage has deploy/image.sh make the driver's image.
func (o options) buildImage(ctx context.Context, out io.Writer) error {
	script := exec.CommandContext(ctx, filepath.Join(o.top(), "deploy", "image.sh"), release)
	script.Env = append(os.Environ(), "VERSION="+o.version, "GO="+build.GoTool())
	script.Stdout, script.Stderr = out, out
	// It has processes of its own, which would go on without it.
	script.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	script.Cancel = func() error { return syscall.Kill(-script.Process.Pid, syscall.SIGTERM) }
	script.WaitDelay = 10 * time.Second
	if err := script.Run(); err != nil {
		return fmt.Errorf("build the driver's image: %w", err)
	}
	return nil
}

// watched does something that takes long, and says so.
func watched(out io.Writer, who, what string, usual time.Duration, do func() error) error {
	step := progress.Begin(out, who, what, usual, nil)
	err := do()
	step.End(err)
	return err
}

// newer says that a file is there, and was written after everything that it is made of. Tests are not part of anything.
func newer(path string, sources ...string) bool {
	made, err := os.Stat(path)
	if err != nil {
		return false
	}
	for _, source := range sources {
		err := filepath.WalkDir(source, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(name, "_test.go") {
				return err
			}
			info, err := entry.Info()
			if err == nil && info.ModTime().After(made.ModTime()) {
				err = fmt.Errorf("%s is newer: %w", name, fault.Exists)
			}
			return err
		})
		if err != nil {
			return false
		}
	}
	return true
}
