//go:build linux

package linux

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

const (
	// blameTime is how long the search for holders may take.
	blameTime = time.Second
	// blameLimit is how many holders are named.
	blameLimit = 5
)

// blame says in words who keeps a mount busy: mounts below it, and processes with a file
// open, a working directory or a root in it. It sees the processes of its own PID
// namespace only, and none that has only mapped a file.
//
// Only links and tables in /proc are read. /proc/PID/exe, maps and cmdline are left alone: they
// want the lock of the process's memory, which a process that hangs may hold.
func (h *Host) blame(ctx context.Context, mounts table, busy *mountinfo.Info) string {
	if below := mounts.below(busy.Mountpoint); len(below) > 0 {
		return "mounted below it: " + listed(below)
	}
	until := time.Now().Add(blameTime)
	names := newHolders(numberOf(busy), busy.Root)
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		if ctx.Err() != nil || time.Now().After(until) || len(names.found) > blameLimit {
			break
		}
		names.ask(process)
	}
	if len(names.found) == 0 {
		return "no process that can be seen from here holds it"
	}
	return "held by " + listed(names.found)
}

// listed returns the first few words as one list.
func listed(words []string) string {
	if len(words) > blameLimit {
		return strings.Join(words[:blameLimit], ", ") + " and others"
	}
	return strings.Join(words, ", ")
}

// holders collects the processes that hold something of a filesystem.
type holders struct {
	device number
	root   string
	paths  map[string][]string // by mount namespace: where that filesystem is seen in it
	found  []string
}

func newHolders(device number, root string) *holders {
	return &holders{device: device, root: root, paths: map[string][]string{}}
}

// ask looks at one process, a folder in /proc. A process that ends meanwhile holds nothing.
func (o *holders) ask(process string) {
	namespace, err := os.Readlink(process + "/ns/mnt")
	if err != nil {
		return
	}
	if _, known := o.paths[namespace]; !known {
		o.paths[namespace] = o.seenIn(process)
	}
	paths := o.paths[namespace]
	if len(paths) == 0 {
		return
	}
	links := []string{process + "/cwd", process + "/root"}
	files, _ := os.ReadDir(process + "/fd")
	for _, file := range files {
		links = append(links, process+"/fd/"+file.Name())
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err == nil && within(target, paths) {
			o.found = append(o.found, nameProcess(process)+" ("+target+")")
			return
		}
	}
}

// seenIn returns where a process sees the filesystem, or what of it is mounted.
func (o *holders) seenIn(process string) []string {
	mounts, err := readTable(process + "/mountinfo")
	if err != nil {
		return nil
	}
	var paths []string
	for _, info := range mounts {
		if numberOf(info) == o.device && (info.Root == o.root || strings.HasPrefix(info.Root, strings.TrimSuffix(o.root, "/")+"/")) {
			paths = append(paths, info.Mountpoint)
		}
	}
	return paths
}

// within reports whether a path is one of the folders or in one.
func within(path string, folders []string) bool {
	for _, folder := range folders {
		if path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/") {
			return true
		}
	}
	return false
}

// nameProcess returns a process's name and number.
func nameProcess(process string) string {
	pid, _ := strconv.Atoi(filepath.Base(process))
	name, err := os.ReadFile(process + "/comm")
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("%s[%d]", strings.TrimSpace(string(name)), pid)
}
