package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

// rootCache is where Go's build cache is kept in a root. It is not the machine's: Go does
// not see that C libraries differ.
const rootCache = "/var/cache/go-build"

// goEnv is what we ask of `go env`.
type goEnv struct{ GOROOT, GOMODCACHE, GOMOD, GOFLAGS, GOPROXY string }

// inRoot runs a command in the root of another release, with Go, its module cache, the repository
// and the folder for temporary files seen at the same paths. It needs root.
func inRoot(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("in-root", flag.ExitOnError)
	root := flags.String("root", "", "the `root`, made by root.sh")
	var more []string
	flags.Func("show", "one more `folder` to be seen inside; may be given several times", func(dir string) error {
		more = append(more, dir)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *root == "" || flags.NArg() == 0 {
		return fmt.Errorf("in-root needs -root and a command: %w", fault.Invalid)
	}
	path, err := filepath.Abs(*root)
	if err != nil {
		return err
	}
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	env, err := askGo(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(path, rootCache), 0o755); err != nil {
		return err
	}
	dirs := append([]string{env.GOROOT, env.GOMODCACHE, filepath.Dir(env.GOMOD), os.TempDir()}, more...)
	return ceph.ExecInRoot(path, dirs, here, env.inside(), flags.Args())
}

func askGo(ctx context.Context) (goEnv, error) {
	var env goEnv
	text, err := exec.CommandContext(ctx, "go", "env", "-json").Output()
	if err != nil {
		return env, fmt.Errorf("run go env: %w", err)
	}
	if err := json.Unmarshal(text, &env); err != nil {
		return env, fmt.Errorf("read go env: %w", err)
	}
	if env.GOMOD == "" || env.GOMOD == os.DevNull {
		return env, fmt.Errorf("the working directory is not in a Go module: %w", fault.Invalid)
	}
	return env, nil
}

// inside is the environment in the root: Go as it is here with a build cache of its own, and
// our own variables, except the folder of a cluster's root, which is not seen there.
func (e goEnv) inside() []string {
	env := []string{
		"PATH=" + filepath.Join(e.GOROOT, "bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"LANG=C.UTF-8",
		"TMPDIR=" + os.TempDir(),
		"GOCACHE=" + rootCache,
		"GOMODCACHE=" + e.GOMODCACHE,
		"GOFLAGS=" + e.GOFLAGS,
		"GOPROXY=" + e.GOPROXY,
		"GOTOOLCHAIN=local",
	}
	for _, setting := range os.Environ() {
		if strings.HasPrefix(setting, "RBD_CSI_") && !strings.HasPrefix(setting, ceph.EnvRoot+"=") {
			env = append(env, setting)
		}
	}
	return env
}
