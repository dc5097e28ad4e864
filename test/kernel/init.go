package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// runInit is the first process of a guest, in which the root is the machine's, by hostfs and
// read-only. It puts a layer in memory above it, sets the guest up, starts the agent and
// waits for whatever ends, for ever. What it prints goes to the console.
func runInit() error {
	address, machine, modules := os.Getenv(envAddress), os.Getenv(envMachine), os.Getenv(envModules)
	os.Clearenv()
	for name, value := range map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	for _, step := range []func() error{
		func() error { return layRoot(modules) },
		func() error { return showModules(modules) },
		func() error { return setUpNetwork(address, machine) },
		func() error { return run("modprobe", "-a", "rbd", "nbd") },
		func() error { return startAgent(address) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("set up the guest: %w", err)
		}
	}
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for processes: %w", err)
		}
	}
}

// A mount is one to make in the new root.
type mount struct{ source, target, kind, options string }

// layRoot makes the root one that can be written, in memory. It is a pivot and not a chroot,
// because the kernel looks for modprobe in the init's root.
func layRoot(modules string) error {
	if err := loadModule(filepath.Join(modules, "kernel/fs/overlayfs/overlay.ko")); err != nil {
		return err
	}
	const layer = "/mnt"
	if err := unix.Mount("layer", layer, "tmpfs", 0, "size=60%"); err != nil {
		return fmt.Errorf("mount memory: %w", err)
	}
	root := layer + "/root"
	for _, folder := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(layer, folder), 0o755); err != nil {
			return err
		}
	}
	mounts := []mount{
		{"overlay", root, "overlay", "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work"},
		{"proc", root + "/proc", "proc", ""},
		{"sysfs", root + "/sys", "sysfs", ""},
		{"devtmpfs", root + "/dev", "devtmpfs", ""},
		{"devpts", root + "/dev/pts", "devpts", ""},
		{"shm", root + "/dev/shm", "tmpfs", ""},
		{"run", root + "/run", "tmpfs", "mode=755"},
	}
	for _, one := range mounts {
		if err := os.MkdirAll(one.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(one.source, one.target, one.kind, 0, one.options); err != nil {
			return fmt.Errorf("mount %s: %w", one.target, err)
		}
	}
	return enterRoot(root)
}

func enterRoot(root string) error {
	const old = "/mnt" // in the new root
	if err := unix.PivotRoot(root, root+old); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount(old, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return nil
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// showModules puts the modules where modprobe looks, also from a container that is shown the folder.
func showModules(modules string) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	folder := filepath.Join("/lib/modules", unix.ByteSliceToString(name.Release[:]))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(modules, folder, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the modules at %s: %w", folder, err)
	}
	return nil
}

func setUpNetwork(address, machine string) error {
	if err := unix.Sethostname([]byte("guest-" + address[strings.LastIndexByte(address, '.')+1:])); err != nil {
		return err
	}
	for _, arguments := range []string{
		"link set lo up",
		fmt.Sprintf("addr add %s/%d dev vec0", address, addressBits),
		"link set vec0 up",
		"route add default via " + machine,
	} {
		if err := run("ip", strings.Fields(arguments)...); err != nil {
			return err
		}
	}
	return nil
}

// startAgent starts the agent as a process of its own: the init waits for everything that
// ends, and would take the agent's children away from it.
func startAgent(address string) error {
	agent := exec.Command("/proc/self/exe")
	agent.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%d", envAgent, address, agentPort))
	agent.Stdout, agent.Stderr = os.Stdout, os.Stderr
	return agent.Start()
}
