// Package build makes the commands that a cluster is of, from Go modules: Kubernetes and etcd as one
// file, the sidecars for drivers, and the few of our own.
package build

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kube"
)

// commands are the packages to build; each becomes a file with the last part of its path as name.
var commands = []string{
	"./cmd/kubernetes",
	"./cmd/pause",
	"./cmd/dns",
	"github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher",
	"github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
	"github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
	"github.com/kubernetes-csi/external-snapshot-metadata/cmd/csi-snapshot-metadata",
	"github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
	"github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
}

// suite are those that Kubernetes' own storage suite needs besides.
var suite = []string{
	"github.com/onsi/ginkgo/v2/ginkgo",
	"k8s.io/kubernetes/test/images/agnhost",
}

// links are the names under which the combined binary is run.
var links = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet",
}

// How long the long steps take on two cores, when nothing is in the caches of Go.
const (
	usualFetch   = 20 * time.Second
	usualCompile = 10 * time.Minute
	usualSuite   = 3 * time.Minute
)

// A Builder knows where things are and to whom to tell what it does.
type Builder struct {
	// Module is the folder of the Go module test/kube.
	Module string
	// Folder is where all that is made goes: bin, images and the caches of this package.
	Folder string
	// Suite builds also what runs Kubernetes' own storage suite.
	Suite bool
	// Progress is told the steps.
	Progress io.Writer
}

// Binaries is the folder that Build fills.
func (b Builder) Binaries() string { return filepath.Join(b.Folder, "bin") }

// Build makes what is missing or out of date, as the go command sees it; when nothing is, that
// takes a few seconds. The modules come from the proxy that the go command is set to.
func (b Builder) Build(ctx context.Context) error {
	if err := os.MkdirAll(b.Binaries(), 0o755); err != nil {
		return err
	}
	modfile, err := b.supply(ctx)
	if err != nil {
		return fmt.Errorf("supply modules: %w", err)
	}
	packages := commands
	if b.Suite {
		packages = append(slices.Clip(packages), suite...)
	}
	needed, err := b.fetch(ctx, modfile, packages)
	if err != nil {
		return err
	}
	if err := b.compile(ctx, modfile, packages, needed); err != nil {
		return err
	}
	if b.Suite {
		if err := b.compileSuite(ctx); err != nil {
			return err
		}
	}
	if err := b.link(); err != nil {
		return err
	}
	return b.copyDefinitions(ctx)
}

// fetch gets the modules and returns of how many packages the commands are made.
func (b Builder) fetch(ctx context.Context, modfile string, packages []string) (int, error) {
	step := b.begin("fetch modules and list packages", usualFetch)
	out, err := b.goCommand(ctx, step, append([]string{"list", "-modfile=" + modfile, "-deps"}, packages...)...)
	step.End(err)
	return strings.Count(out, "\n"), err
}

// compile builds all commands at once: they share most of what they are made of.
func (b Builder) compile(ctx context.Context, modfile string, packages []string, needed int) error {
	step := b.begin(fmt.Sprintf("compile %d packages and link %d commands", needed, len(packages)), usualCompile)
	args := []string{"build", "-p", AtOnce, "-v", "-modfile=" + modfile, "-ldflags=" + ldflags(), "-o", b.Binaries() + "/"}
	_, err := b.goCommand(ctx, step, append(args, packages...)...)
	step.End(err)
	return err
}

func (b Builder) compileSuite(ctx context.Context) error {
	step := b.begin("compile Kubernetes' storage suite", usualSuite)
	_, err := b.goCommand(ctx, step, "test", "-c", "-p", AtOnce, "-v", "-tags=suite", "-ldflags="+ldflags(), "-o", filepath.Join(b.Binaries(), "e2e.test"), "./cmd/e2e")
	step.End(err)
	return err
}

// ldflags leave out what only a debugger needs, which is a third of the space, and tell the
// components their version: without, they call themselves v0.0.0 and kubectl warns about the difference.
func ldflags() string {
	const variable = " -X k8s.io/component-base/version."
	parts := strings.SplitN(kube.Version, ".", 3)
	return "-s -w" + variable + "gitVersion=v" + kube.Version + variable + "gitMajor=" + parts[0] +
		variable + "gitMinor=" + parts[1] + variable + "gitTreeState=clean"
}

// goCommand runs the go command in our module, at low priority because it takes every core for
// minutes, and returns its output.
func (b Builder) goCommand(ctx context.Context, step *step, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nice", append([]string{GoTool()}, args...)...)
	cmd.Dir = b.Module
	cmd.Env = Environment()
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var out bytes.Buffer
	cmd.Stdout = &out
	talk, err := cmd.StderrPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	said := step.follow(talk)
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, said)
	}
	return out.String(), nil
}

// follow reads what the go command says: with -v a line for each package that it compiles. It returns the
// other lines.
func (s *step) follow(output io.Reader) string {
	var said strings.Builder
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "go: downloading "):
			s.downloaded.Add(1)
		case strings.Contains(line, " ") || strings.Contains(line, "\t") || strings.HasPrefix(line, "#"):
			said.WriteString(line + "\n")
		default:
			s.compiled.Add(1)
		}
	}
	return said.String()
}

// link gives the combined binary its other names.
func (b Builder) link() error {
	for _, name := range links {
		path := filepath.Join(b.Binaries(), name)
		if target, err := os.Readlink(path); err == nil && target == "kubernetes" {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink("kubernetes", path); err != nil {
			return err
		}
	}
	return nil
}

// definitions are the modules that have the definitions of resources, beside their types: of snapshots and groups of them, and
// of the service that tells what of a volume changed between two.
var definitions = []string{
	"github.com/kubernetes-csi/external-snapshotter/client/v8",
	"github.com/kubernetes-csi/external-snapshot-metadata/client",
}

// copyDefinitions copies the definitions of resources.
func (b Builder) copyDefinitions(ctx context.Context) error {
	to := filepath.Join(b.Binaries(), kube.DefinitionsFolder)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, module := range definitions {
		from, err := b.moduleFolder(ctx, module)
		if err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(from, "config", "crd", "*_*.yaml"))
		if err != nil || len(files) == 0 {
			return fmt.Errorf("find definitions in %s: %w", from, errors.Join(fault.NotFound, err))
		}
		for _, file := range files {
			if err := copyText(file, filepath.Join(to, filepath.Base(file))); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyText(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o644)
}

// moduleFolder fetches a module, in the version of our go.mod, and returns where its files are.
func (b Builder) moduleFolder(ctx context.Context, path string) (string, error) {
	cmd := exec.CommandContext(ctx, GoTool(), "mod", "download", "-json", path)
	cmd.Dir = b.Module
	out, err := cmd.Output()
	var module struct{ Dir, Error string }
	if unread := json.Unmarshal(out, &module); err != nil || unread != nil {
		return "", fmt.Errorf("fetch module %s: %w %s", path, errors.Join(err, unread), module.Error)
	}
	return module.Dir, nil
}

// GoTool is the go command to run: the environment's GO, or go.
func GoTool() string { return cmp.Or(os.Getenv("GO"), "go") }

// AtOnce is how many packages the go command is to compile at once (its flag -p) with compilers in that Environment.
var AtOnce = strconv.Itoa(runtime.NumCPU() + 1)

// Environment is this process's, with which a compiler makes nothing for debuggers, uses one processor, and collects garbage when it has
// three times what it needs: with one more of them than there are processors that takes about a third less time than as the go
// command starts them. Cgo is off: what runs in images has no C library there. The Makefile says the same to what it compiles of
// this module, so that nothing is compiled twice.
func Environment() []string {
	const flags = " -gcflags=all=-dwarf=false -buildvcs=false"
	return append(os.Environ(), "GOGC=200", "GOMAXPROCS=1", "CGO_ENABLED=0", "GOFLAGS="+os.Getenv("GOFLAGS")+flags)
}
