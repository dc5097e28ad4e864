package ceph

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// systemDirs are the folders of a Debian that must stay to be seen in a root when one of
// ours is shown below them.
var systemDirs = []string{"bin", "etc", "lib", "lib64", "sbin", "usr", "var"}

// mountView makes a root usable by chroot(2) in this process's mount namespace, which must be its
// own: /dev, /proc and /sys, and each of the given folders of ours at the same path.
// Nothing is seen outside the namespace, and nothing is left when its last process ends.
func mountView(root string, dirs ...string) error {
	// Otherwise systemd's shared mounts would carry ours back to the machine.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w: %w", fault.Unsupported, err)
	}
	// What runs in it may make mount namespaces of its own, for which / has to be a mount.
	if err := bind(root, root, 0); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := bind(dir, filepath.Join(root, dir), syscall.MS_REC); err != nil {
			return err
		}
	}
	covered := make(map[string]bool)
	for _, dir := range dirs {
		top, _, _ := strings.Cut(strings.TrimPrefix(dir, "/"), "/")
		if !covered[top] && !slices.Contains(systemDirs, top) {
			if err := cover(filepath.Join(root, top)); err != nil {
				return err
			}
			covered[top] = true
		}
		if err := show(root, dir); err != nil {
			return err
		}
	}
	return nil
}

// cover puts an empty file system in memory over a folder of the root, in which mount points can be
// made without leaving them in the root.
func cover(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

// show makes a file or folder of ours visible in the root at the same path.
func show(root, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	target := filepath.Join(root, path)
	if !info.IsDir() {
		return bind(path, target, 0)
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return bind(path, target, 0)
}

func bind(source, target string, flags uintptr) error {
	if err := syscall.Mount(source, target, "", syscall.MS_BIND|flags, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", source, target, err)
	}
	return nil
}

// ExecInRoot replaces this process by a program run in a root with the given folders of ours
// at the same paths, dir (one of them, or below one) being its working directory. It returns only
// with an error. The mounts are in a namespace that ends with the program and its children. It
// needs root.
func ExecInRoot(root string, dirs []string, dir string, env, argv []string) error {
	// A mount namespace and a root directory are properties of the thread, and
	// execve(2) keeps those of the thread that calls it.
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w: %w", fault.Unsupported, err)
	}
	if err := mountView(root, dirs...); err != nil {
		return err
	}
	if err := syscall.Chroot(root); err != nil {
		return fmt.Errorf("chroot to %s: %w", root, err)
	}
	if err := syscall.Chdir(dir); err != nil {
		return fmt.Errorf("change to %s: %w", dir, err)
	}
	path, err := findIn(env, argv[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, argv, env))
}

// findIn finds a program by the PATH in env, where exec.LookPath takes this process's.
func findIn(env []string, name string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		return name, nil
	}
	for _, setting := range env {
		list, ok := strings.CutPrefix(setting, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("program %q in the root: %w", name, fault.NotFound)
}
