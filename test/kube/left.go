package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kernel"
)

// Left lists what a cluster in folder has on this machine: processes, mounts, cgroups, loop devices,
// network interfaces and namespaces, chains of iptables, and files outside of the
// folder. After Down it is empty.
func Left(ctx context.Context, folder string) ([]string, error) {
	s, err := load(folder)
	if errors.Is(err, fault.NotFound) {
		s, err = &state{Folder: folder, KubeletRoot: DefaultKubeletRoot}, nil
	}
	if err != nil {
		return nil, err
	}
	rules, err := chains(ctx)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, process := range processes(folder, "") {
		left = append(left, fmt.Sprintf("process %d (%s)", process.Pid, command(process.Pid)))
	}
	left = appendAll(left, "mount", mountsBelow(folder))
	left = appendAll(left, "interface", taps())
	if bridgeOwner() == folder {
		left = append(left, "interface "+bridgeName)
	}
	left = appendAll(left, "chain", rules)
	if s.Guests > 0 {
		return left, nil
	}
	return append(left, s.leftOfPods()...), nil
}

// leftOfPods lists what pods have on this machine, where it is the node.
func (s *state) leftOfPods() []string {
	var left []string
	for _, process := range confined() {
		left = append(left, fmt.Sprintf("process %d (%s)", process.Pid, command(process.Pid)))
	}
	left = appendAll(left, "mount", mountsBelow(s.KubeletRoot))
	left = appendAll(left, "cgroup", cgroupFolders())
	left = appendAll(left, "loop device", loopDevices(s.Folder, s.KubeletRoot))
	for _, r := range records() {
		left = append(left, "network namespace "+r.namespace, "file "+r.path)
	}
	left = appendAll(left, "file", s.logLinks())
	if exists(s.KubeletRoot) {
		left = append(left, "file "+s.KubeletRoot)
	}
	return left
}

func appendAll(list []string, what string, names []string) []string {
	for _, name := range names {
		list = append(list, what+" "+name)
	}
	return list
}

// loopDevices are those whose files are below one of the folders.
func loopDevices(folders ...string) []string {
	backings, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil
	}
	var found []string
	for _, backing := range backings {
		file, err := os.ReadFile(backing)
		if err != nil {
			continue
		}
		for _, folder := range folders {
			if strings.HasPrefix(string(file), folder+"/") {
				found = append(found, strings.Split(backing, "/")[3])
			}
		}
	}
	return found
}

// chains are kube-proxy's in all tables of iptables, for both versions of IP.
func chains(ctx context.Context) ([]string, error) {
	var found []string
	for _, tool := range []string{"iptables", "ip6tables"} {
		rules, err := run(ctx, tool+"-save")
		if err != nil {
			return nil, err
		}
		table := ""
		for line := range strings.Lines(rules) {
			switch fields := strings.Fields(line); {
			case strings.HasPrefix(line, "*"):
				table = fields[0][1:]
			case strings.HasPrefix(line, ":KUBE-"):
				found = append(found, tool+" "+table+" "+fields[0][1:])
			}
		}
	}
	return found, nil
}

// missingForGuests says likewise what it lacks to have nodes in guests.
func missingForGuests() []string {
	var missing []string
	if err := kernel.Lacks(); err != nil {
		missing = append(missing, err.Error())
	}
	return append(missing, missingTools(map[string]string{"crun": "crun", "mkfs.ext4": "e2fsprogs"})...)
}

// otherKubelet is the number of a process that is a kubelet and not of a cluster of ours, or 0.
func otherKubelet() int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && command(pid) == kubelet {
			return pid
		}
	}
	return 0
}

// Missing says what this machine lacks to run a cluster, in words for a user; nothing if it is empty.
func Missing(binaries string) []string {
	var missing []string
	if os.Getuid() != 0 {
		missing = append(missing, "root is needed, for namespaces, mounts and rules of iptables")
	}
	missing = append(missing, missingTools(map[string]string{
		"containerd": "containerd", "ctr": "containerd", "containerd-shim-runc-v2": "containerd", "runc": "runc",
		"iptables-save": "iptables", "ip6tables-save": "iptables", "ip": "iproute2", "mount": "mount",
	})...)
	if !exists(filepath.Join(cniPlugins, "bridge")) {
		missing = append(missing, "there is no "+cniPlugins+"/bridge (Debian: containernetworking-plugins)")
	}
	if _, err := exec.LookPath(filepath.Join(binaries, "kubernetes")); err != nil {
		missing = append(missing, "there is no "+binaries+"/kubernetes (make kube builds it)")
	}
	return missing
}

// missingTools says which tools are not there, with the packages of Debian that have them.
func missingTools(packages map[string]string) []string {
	var missing []string
	for tool, pkg := range packages {
		if lookTool(tool) == "" {
			missing = append(missing, fmt.Sprintf("%s is not installed (Debian: %s)", tool, pkg))
		}
	}
	return missing
}
