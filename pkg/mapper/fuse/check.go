package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

const (
	fuseDevice  = "/dev/fuse"
	loopControl = "/dev/loop-control"
)

// oldest is the oldest Linux with LOOP_CONFIGURE, which sets up a loop device in one step.
var oldest = [2]int{5, 8}

// Check reports what this node lacks with fault.Unsupported: everything that it lacks,
// not only the first thing. Opening the two device nodes loads their modules where the
// kernel can.
func (m *Mapper) Check(context.Context) error {
	var lacks []string
	for _, one := range []func() string{lacksRoot, lacksKernel, lacksFuse, lacksLoop} {
		if lack := one(); lack != "" {
			lacks = append(lacks, lack)
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", strings.Join(lacks, "; "), fault.Unsupported)
}

func lacksRoot() string {
	if os.Geteuid() != 0 {
		return "it needs to run as root"
	}
	return ""
}

func lacksKernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "the kernel does not tell its version"
	}
	release := unix.ByteSliceToString(name.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return "" // a version of its own kind: LOOP_CONFIGURE will tell
	}
	if major < oldest[0] || major == oldest[0] && minor < oldest[1] {
		return fmt.Sprintf("the kernel is %s and %d.%d is needed", release, oldest[0], oldest[1])
	}
	return ""
}

func lacksFuse() string { return lacksDevice(fuseDevice, "fuse") }
func lacksLoop() string { return lacksDevice(loopControl, "loop") }

// lacksDevice tries to open a node. Its module may be built in, so /proc/modules would not tell.
func lacksDevice(path, module string) string {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	switch {
	case err == nil:
		_ = file.Close()
		return ""
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Sprintf("%s is missing (modprobe %s)", path, module)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Sprintf("%s may not be opened (a container has to be privileged)", path)
	}
	return err.Error()
}
