package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

const (
	drainLimit   = time.Minute
	unmountLimit = 30 * time.Second
)

// Down removes the cluster in folder, also if it is only half there, and says what it does on
// out, which may be nil.
func Down(ctx context.Context, folder string, out io.Writer) error {
	if err := checkFolder(folder); err != nil {
		return err
	}
	if !exists(folder) {
		return nil
	}
	unlock, err := lock(folder)
	if err != nil {
		return err
	}
	defer unlock()
	unlockMachine, err := lockMachine()
	if err != nil {
		return err
	}
	defer unlockMachine()
	say := progress.NewNarrator(out, "kube")
	if err := removeLeft(ctx, folder, say); err != nil {
		return err
	}
	say.Line("the cluster is down, and %s is removed", folder)
	return os.RemoveAll(folder)
}

// removeLeft takes down what is left of a cluster in folder. A folder that is not a cluster's is not touched.
func removeLeft(ctx context.Context, folder string, say *progress.Narrator) error {
	s, err := load(folder)
	if errors.Is(err, fault.NotFound) {
		return checkForeign(folder)
	}
	if err != nil {
		return err
	}
	if err := s.tearDown(ctx, say); err != nil {
		return err
	}
	return os.RemoveAll(s.data("log"))
}

// checkForeign refuses a folder in which there is something else than what a cluster leaves.
func checkForeign(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if name := entry.Name(); name != lockFile && name != "log" {
			return fmt.Errorf("folder %s is not a cluster's, there is %s in it: %w", folder, name, fault.Exists)
		}
	}
	return nil
}

// tearDown removes everything but the lock and the logs. Each step is tried whatever
// became of those before; the state is removed last, and only if all went well, so that it can be repeated.
func (s *state) tearDown(ctx context.Context, say *progress.Narrator) error {
	if owner := bridgeOwner(); owner != "" && owner != s.Folder {
		// After a reboot, say: what the machine has only one of is by now another cluster's.
		say.Line("a cluster of %s runs; only the folder is removed", owner)
		return errors.Join(s.endAll(ctx), unmountBelow(s.Folder), s.removeFiles())
	}
	s.drain(ctx, say)
	var errs []error
	for _, step := range []struct {
		done string
		run  func(context.Context) error
	}{
		{"the kubelet and the controllers have ended", s.endNodeAndControllers},
		{"pods have ended", func(ctx context.Context) error { s.endPods(ctx, say); return nil }},
		{"no processes are left", s.endAll},
		{"no rules of iptables are left", s.removeRules},
		{"no mounts, cgroups, interfaces and files are left", s.removeTraces},
	} {
		if err := step.run(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		say.Line("%s", step.done)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.removeFiles()
}

// drain makes pods leave the node while there still is a driver to unmount their volumes. DaemonSets, of which
// a node's driver is one, stay. Where that cannot be done, the rest is done by force. Guests need none of it: what is mounted there
// goes with them.
func (s *state) drain(ctx context.Context, say *progress.Narrator) {
	if s.Guests > 0 || !s.Ready || !s.runs(apiserver) || !s.runs(etcd) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	if err := s.reviveNode(ctx); err != nil {
		say.Line("the node cannot be drained: %v", err)
		return
	}
	_, err := s.kubectl(ctx, nil, "drain", s.Node, "--ignore-daemonsets", "--delete-emptydir-data", "--force",
		"--disable-eviction", "--grace-period=1", "--timeout="+drainLimit.String())
	if err != nil {
		say.Line("pods do not leave by themselves: %v", err)
		return
	}
	patience, cancel := context.WithTimeout(ctx, unmountLimit)
	defer cancel()
	err = poll(patience, func() (bool, error) { return len(s.volumes()) == 0, nil })
	if err != nil {
		say.Line("volumes stay mounted: %s", strings.Join(s.volumes(), " "))
		return
	}
	say.Line("pods have left the node, and their volumes are unmounted")
}

// reviveNode starts containerd and the kubelet again if they were stopped or killed.
func (s *state) reviveNode(ctx context.Context) error {
	if err := s.ensureRuntime(ctx); err != nil {
		return err
	}
	if !s.runs(kubelet) {
		return s.startKubelet(ctx)
	}
	return nil
}

// volumes are the mounts of volumes that drivers made for the kubelet.
func (s *state) volumes() []string {
	return slices.DeleteFunc(mountsBelow(s.KubeletRoot), func(path string) bool {
		return !strings.Contains(path, "kubernetes.io~csi") &&
			!strings.Contains(path, "plugins/kubernetes.io/csi/")
	})
}

func (s *state) endNodeAndControllers(ctx context.Context) error {
	var errs []error
	for _, name := range []string{kubelet, controllers, scheduler, proxy, names} {
		errs = append(errs, s.stop(ctx, name))
	}
	return errors.Join(errs...)
}

// endPods removes pods through containerd, which is started for it if it was killed. Where that cannot be done,
// the steps that follow find what is left of pods.
func (s *state) endPods(ctx context.Context, say *progress.Narrator) {
	if s.Guests > 0 || !exists(s.containerdConfig(s.nodes()[0])) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	err := s.ensureRuntime(ctx)
	if err == nil {
		err = s.removePods(ctx)
	}
	if err != nil {
		say.Line("containerd does not end pods: %v", err)
	}
}

// endAll ends all that is left, guests and containerd's shims included.
func (s *state) endAll(ctx context.Context) error {
	patience := grace
	if s.Guests > 0 {
		patience = time.Second // it would wait for kubelets in guests to close their connections
	}
	return errors.Join(
		s.end(ctx, apiserver, patience),
		s.killGuests(),
		s.stop(ctx, etcd),
		s.stop(ctx, containerd),
		s.stop(ctx, ""),
	)
}

// removeRules removes the chains of kube-proxy. Its own way to do that leaves KUBE-FIREWALL.
func (s *state) removeRules(ctx context.Context) error {
	if there, err := chains(ctx); err != nil || len(there) == 0 {
		return err
	}
	// It says so of every chain that is not there.
	cleanup := exec.CommandContext(ctx, s.binary(proxy), "--cleanup")
	cleanup.Env = []string{"PATH=" + s.path()}
	out, failed := cleanup.CombinedOutput()
	const firewall = "KUBE-FIREWALL"
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, from := range []string{"INPUT", "OUTPUT"} {
			_, _ = run(ctx, tool, "-w", "-D", from, "-j", firewall)
		}
		_, _ = run(ctx, tool, "-w", "-F", firewall)
		_, _ = run(ctx, tool, "-w", "-X", firewall)
	}
	left, err := chains(ctx)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("remove chains %s: %w: %v: %s", strings.Join(left, ", "), fault.Internal, failed, out)
	}
	return err
}

// removeTraces removes what the cluster has of the machine. Pods' processes have to be gone before their
// mounts, and those before the folders they are in.
func (s *state) removeTraces(ctx context.Context) error {
	if s.Guests > 0 {
		// What pods have is in the guests.
		return errors.Join(unmountBelow(s.Folder), s.removeBridge(ctx), s.restoreSysctls(), s.removeMadeFolders())
	}
	return errors.Join(
		removeCgroups(ctx),
		unmountBelow(s.Folder),
		unmountBelow(s.KubeletRoot),
		forgetPods(),
		s.removeBridge(ctx),
		s.restoreSysctls(),
		s.removeLinks(),
		removeTree(s.KubeletRoot),
		s.removeMadeFolders(),
	)
}

// mountsBelow are the mount points at and below a path, as often as something is mounted there, inner ones last.
func mountsBelow(path string) []string {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return nil
	}
	points := make([]string, 0, len(mounts))
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	slices.Sort(points)
	return points
}

func unmountBelow(path string) error {
	var errs []error
	for _, point := range slices.Backward(mountsBelow(path)) {
		errs = append(errs, unmount(point))
	}
	return errors.Join(errs...)
}

// unmount unmounts what is mounted at path, and if it is in use takes it out of sight.
func unmount(path string) error {
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	// With several mounts on another, an earlier call may have taken this one along.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// removeTree removes a folder and everything in it, unless something is still mounted there: then that would be
// removed, too.
func removeTree(path string) error {
	if left := mountsBelow(path); len(left) > 0 {
		return fmt.Errorf("remove %s: still mounted: %s: %w", path, strings.Join(left, " "), fault.InUse)
	}
	return os.RemoveAll(path)
}

// removeLinks removes the kubelet's links to the logs of our pods.
func (s *state) removeLinks() error {
	var errs []error
	for _, link := range s.logLinks() {
		errs = append(errs, removeFile(link))
	}
	return errors.Join(errs...)
}

func (s *state) logLinks() []string {
	links, err := filepath.Glob("/var/log/containers/*.log")
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(links, func(link string) bool {
		target, err := os.Readlink(link)
		return err != nil || !strings.HasPrefix(target, s.Folder+"/")
	})
}

// removeMadeFolders removes the shared folders that were not there before, if nobody else uses them by now.
func (s *state) removeMadeFolders() error {
	var errs []error
	for _, folder := range s.MadeFolders {
		err := unix.Rmdir(folder)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: folder, Err: err})
		}
	}
	return errors.Join(errs...)
}

// removeFiles removes what is in the folder, the state last, and leaves the lock and the logs.
func (s *state) removeFiles() error {
	entries, err := os.ReadDir(s.Folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if name := entry.Name(); name != lockFile && name != stateFile && name != "log" {
			if err := removeTree(s.data(name)); err != nil {
				return err
			}
		}
	}
	return removeFile(filepath.Join(s.Folder, stateFile))
}
