package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

const (
	cgroups = "/sys/fs/cgroup"
	// serviceSubnet is that of the services' addresses, which exist only in rules of iptables.
	serviceSubnet = "10.96.0"
	// The bridge takes the first of these subnets that the machine does not use.
	firstSubnet, lastSubnet = 77, 97
)

// serviceAddress is the n-th address for services; the first is the API server's.
func serviceAddress(n int) string { return fmt.Sprintf("%s.%d", serviceSubnet, n) }

// sysctls are the settings that the kubelet, the CNI bridge and kube-proxy change for the whole machine.
func sysctls() []string {
	return []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
		"net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet",
	}
}

// readSysctls returns the settings as they are. Those that this kernel lacks are left out.
func readSysctls() map[string]string {
	settings := map[string]string{}
	for _, name := range sysctls() {
		if value, err := os.ReadFile("/proc/sys/" + name); err == nil {
			settings[name] = strings.TrimSpace(string(value))
		}
	}
	return settings
}

// forwardPackets has the machine pass packets on, which where its own pods are connected to the bridge the CNI plugin does: those to the
// addresses of services come from guests and go to guests.
func forwardPackets() error {
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

func (s *state) restoreSysctls() error {
	var errs []error
	for name, value := range s.Sysctls {
		if now, err := os.ReadFile("/proc/sys/" + name); err == nil && strings.TrimSpace(string(now)) == value {
			continue
		}
		errs = append(errs, os.WriteFile("/proc/sys/"+name, []byte(value), 0o644))
	}
	return errors.Join(errs...)
}

// sharedFolders are those outside of the cluster's in which containerd, the CNI plugins and the kubelet write
// whatever their settings are; inner ones first.
func sharedFolders() []string {
	return []string{
		"/run/containerd/runc/k8s.io", "/run/containerd/runc", "/run/containerd/s", "/run/containerd/fifo", "/run/containerd",
		cniResults, filepath.Dir(cniResults), "/var/run/netns", "/var/log/containers",
		"/opt/containerd/bin", "/opt/containerd/lib", "/opt/containerd",
	}
}

// takeSubnet finds a subnet for the bridge of which the machine has no address.
func takeSubnet() (string, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for third := firstSubnet; third <= lastSubnet; third++ {
		subnet := fmt.Sprintf("10.88.%d", third)
		_, whole, err := net.ParseCIDR(subnet + ".0/24")
		if err != nil {
			return "", err
		}
		if !slices.ContainsFunc(addresses, func(a net.Addr) bool { return overlaps(a, whole) }) {
			return subnet, nil
		}
	}
	return "", fmt.Errorf("find a subnet from 10.88.%d to 10.88.%d: %w", firstSubnet, lastSubnet, fault.Exhausted)
}

func overlaps(address net.Addr, subnet *net.IPNet) bool {
	own, ok := address.(*net.IPNet)
	return ok && (subnet.Contains(own.IP) || own.Contains(subnet.IP))
}

// makeBridge makes the interface that is the node's address. Loopback would not do: neither
// the kubelet nor the API server takes it for an address. The alias says whose it is.
func (s *state) makeBridge(ctx context.Context) error {
	for _, args := range [][]string{
		{"link", "add", bridgeName, "type", "bridge"},
		{"link", "set", "dev", bridgeName, "alias", s.Folder},
		{"address", "add", s.Address + "/24", "dev", bridgeName},
		{"link", "set", "dev", bridgeName, "up"},
	} {
		if _, err := run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// bridgeOwner is the folder of the cluster whose the bridge is; it is empty if there is no bridge.
func bridgeOwner() string {
	alias, err := os.ReadFile(filepath.Join("/sys/class/net", bridgeName, "ifalias"))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if owner := strings.TrimSpace(string(alias)); err == nil && owner != "" {
		return owner
	}
	return "an unknown folder"
}

func (s *state) removeBridge(ctx context.Context) error {
	if bridgeOwner() != s.Folder {
		return nil
	}
	_, err := run(ctx, "ip", "link", "delete", bridgeName)
	return err
}

// cgroupFolders are the cluster's cgroups that there are, one for each hierarchy.
func cgroupFolders() []string {
	found, err := filepath.Glob(filepath.Join(cgroups, "*", cgroupName))
	if err != nil {
		return nil
	}
	if unified := filepath.Join(cgroups, cgroupName); exists(unified) {
		found = append(found, unified)
	}
	return found
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// makeCgroups makes the cluster's cgroup in every hierarchy. With version 2 there is one.
func makeCgroups() error {
	if exists(filepath.Join(cgroups, "cgroup.controllers")) {
		return makeUnifiedCgroup()
	}
	hierarchies, err := filepath.Glob(filepath.Join(cgroups, "*", "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, file := range hierarchies {
		if err := os.MkdirAll(filepath.Join(filepath.Dir(file), cgroupName), 0o755); err != nil {
			return err
		}
	}
	return fillCPUSet()
}

// makeUnifiedCgroup makes the one of version 2, with every controller that the machine has: the kubelet refuses a
// cgroup that lacks one. They stay enabled below the root, where an init may have enabled them before.
func makeUnifiedCgroup() error {
	controllers, err := os.ReadFile(filepath.Join(cgroups, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(controllers)) {
		if err := os.WriteFile(filepath.Join(cgroups, "cgroup.subtree_control"), []byte("+"+name), 0o644); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(cgroups, cgroupName), 0o755)
}

// fillCPUSet gives the cluster's cgroup all processors and memory: version 1 begins with
// none, and no process can be put where there are none.
func fillCPUSet() error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(cgroups, "cpuset", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(cgroups, "cpuset", cgroupName, name), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// confined returns the processes in the cluster's cgroups: those of pods.
func confined() []*os.Process {
	var found []*os.Process
	seen := map[int]bool{}
	for _, folder := range cgroupFolders() {
		_ = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.Name() != "cgroup.procs" {
				return nil
			}
			text, _ := os.ReadFile(path)
			for line := range strings.FieldsSeq(string(text)) {
				var pid int
				if _, err := fmt.Sscan(line, &pid); err != nil || seen[pid] {
					continue
				}
				seen[pid] = true
				if process, err := os.FindProcess(pid); err == nil {
					found = append(found, process)
				}
			}
			return nil
		})
	}
	return found
}

// removeCgroups ends what is in the cluster's cgroups and removes them, inner ones first.
func removeCgroups(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	var last error
	err := poll(ctx, func() (bool, error) {
		signalAll(confined(), unix.SIGKILL)
		last = nil
		for _, folder := range cgroupFolders() {
			last = errors.Join(last, removeCgroup(folder))
		}
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("remove cgroups: %w: %w", err, last)
	}
	return nil
}

func removeCgroup(folder string) error {
	var inner []string
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			inner = append(inner, path)
		}
		return nil
	})
	for _, path := range slices.Backward(inner) {
		// A cgroup is removed by rmdir(2) although there are files in it.
		if removed := unix.Rmdir(path); removed != nil && !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, &fs.PathError{Op: "rmdir", Path: path, Err: removed})
		}
	}
	return err
}
