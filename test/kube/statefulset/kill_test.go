package statefulset_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// podCgroup is in the path of the cgroups of all pods of a lab; see package kube.
const podCgroup = "/rbd-csi-kube/"

// kill ends the driver's processes of one sub-command by SIGKILL: those in pods, because there may be others on the machine.
func (s *story) kill(command string) {
	s.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	s.Must(err)
	killed := 0
	for _, path := range paths {
		words := bytes.Split(readable(path), []byte{0})
		if len(words) < 2 || filepath.Base(string(words[0])) != "rbd-csi" || string(words[1]) != command {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		s.Must(err)
		process, err := os.FindProcess(pid)
		s.Must(err)
		// The handle was opened before this is read, so it is that process.
		if !bytes.Contains(readable(fmt.Sprintf("/proc/%d/cgroup", pid)), []byte(podCgroup)) {
			continue
		}
		s.Must(process.Signal(syscall.SIGKILL))
		killed++
	}
	if killed == 0 {
		s.Fatalf("processes of rbd-csi %s in pods: got none", command)
	}
}

// readable is what is in a file, or nothing if it has gone.
func readable(path string) []byte {
	text, _ := os.ReadFile(path)
	return text
}
