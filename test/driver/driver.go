// Package driver runs the driver on a test cluster as Kubernetes would: the
// sub-commands of the binary as processes of their own, any number of
// controllers and nodes side by side, each with a socket to call.
//
//	d, err := driver.New(driver.Options{Binary: path, Clusters: map[string]string{"name": directory}, Folder: "/run/x"})
//	defer d.Close()
//	controller, err := d.Controller(ctx, "controller")
//	node, err := d.Node(ctx, "node-a")
//	volume, err := controller.CreateVolume(ctx, claim)
//
// A process can be killed and started again under running volumes: the workers
// of its mappings go on, as they do in Kubernetes. The functions in calls.go make the requests
// that the sidecars and kubelet make; those in left.go see what is left on the
// machine, and take it away.
//
// It is for tests, for the demonstration and for measurements, on Linux.
package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
)

// Options say what to run and where.
type Options struct {
	// Binary is the path of rbd-csi; see [Binary].
	Binary string
	// Clusters holds the directory of each cluster, with ceph.conf and keyring, by the name
	// that the cluster has in handles.
	Clusters map[string]string
	// Folder holds a folder for each process, and is made. Its path has to be
	// short, because a socket's may have 107 bytes, and free of symbolic links,
	// because it is compared with those that the kernel tells.
	Folder string
	// Verbosity is that of the processes' logs, 0 to 5.
	Verbosity int
}

// A Driver starts processes. Its methods may be called at once.
type Driver struct {
	options Options

	mutex     sync.Mutex
	processes []*Process
}

// NewFolder makes a folder below os.TempDir for [Options], with the prefix and this process's
// ID in its name. Folders with the prefix of processes that are gone, because a test was
// killed or ran out of time, are swept away first.
func NewFolder(prefix string) (string, error) {
	path := filepath.Join(os.TempDir(), prefix)
	stale, err := filepath.Glob(path + "-[0-9]*-*")
	if err != nil {
		return "", fmt.Errorf("make a folder: %w", err)
	}
	for _, folder := range stale {
		owner, _, _ := strings.Cut(strings.TrimPrefix(folder, path+"-"), "-")
		if _, err := os.Stat("/proc/" + owner); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := Sweep(folder); err != nil {
			return "", fmt.Errorf("make a folder: sweep a stale one: %w", err)
		}
	}
	folder, err := os.MkdirTemp("", fmt.Sprintf("%s-%d-", prefix, os.Getpid()))
	if err != nil {
		return "", fmt.Errorf("make a folder: %w", err)
	}
	return filepath.EvalSymlinks(folder)
}

// clustersFolder is what --clusters is set to: links to the clusters' directories.
const clustersFolder = "clusters"

// New makes the folder, and returns a Driver of which nothing runs yet.
func New(options Options) (*Driver, error) {
	clusters := filepath.Join(options.Folder, clustersFolder)
	if err := os.MkdirAll(clusters, 0o755); err != nil {
		return nil, fmt.Errorf("make the driver's folder: %w", err)
	}
	for name, directory := range options.Clusters {
		if err := os.Symlink(directory, filepath.Join(clusters, name)); err != nil {
			return nil, fmt.Errorf("make the driver's folder: %w", err)
		}
	}
	return &Driver{options: options}, nil
}

// Folder returns the folder of one process; the logs are in it.
func (d *Driver) Folder(name string) string { return filepath.Join(d.options.Folder, name) }

// Close kills all processes, unmounts and detaches everything below the folder by
// force, ends the workers, and removes the folder. It asks no cluster, so
// it also works when that is gone. What was written and not flushed is lost.
func (d *Driver) Close() error {
	d.mutex.Lock()
	processes := d.processes
	d.mutex.Unlock()
	var failed []error
	for _, p := range processes {
		failed = append(failed, p.Kill(), p.connection.Close())
	}
	return errors.Join(append(failed, Sweep(d.options.Folder))...)
}

// KeepLogs copies the logs of all processes into a directory, which is made, and
// returns their paths.
func (d *Driver) KeepLogs(directory string) ([]string, error) {
	logs, err := filepath.Glob(filepath.Join(d.options.Folder, "*", logFile))
	if err != nil {
		return nil, fmt.Errorf("keep logs: %w", err)
	}
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return nil, fmt.Errorf("keep logs: %w", err)
	}
	var kept []string
	for _, log := range logs {
		content, err := os.ReadFile(log)
		if err != nil {
			return kept, fmt.Errorf("keep logs: %w", err)
		}
		path := filepath.Join(directory, filepath.Base(filepath.Dir(log))+".log")
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return kept, fmt.Errorf("keep logs: %w", err)
		}
		kept = append(kept, path)
	}
	return kept, nil
}

// buildTags returns the tags that this program was built with, which are right for
// the installed Ceph if it contains go-ceph, and what the caller was told otherwise.
func buildTags() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, setting := range info.Settings {
		if setting.Key == "-tags" {
			return setting.Value
		}
	}
	return ""
}
