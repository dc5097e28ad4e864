package story

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// AsRoot starts this program anew with sudo, in place of this process, with the named variables of the
// environment. It returns only with an error.
func AsRoot(variables ...string) error {
	sudo, err := exec.LookPath("sudo")
	if err != nil {
		return errors.New("it mounts filesystems, so run it as root")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// -H: what root builds goes into root's caches, and not among the user's files.
	args := []string{sudo, "-H", "--", "env"}
	for _, name := range variables {
		if value, ok := os.LookupEnv(name); ok {
			args = append(args, name+"="+value)
		}
	}
	return syscall.Exec(sudo, append(append(args, self), os.Args[1:]...), os.Environ())
}

// Alone keeps a second demonstration from getting in the way of the first, in what both would use, until it is
// closed. The lock is a socket in Linux' abstract namespace, which leaves no file and ends with the
// process (unix(7)).
func Alone(what string) (io.Closer, error) {
	lock, err := net.Listen("unix", "@rbd-csi-demo"+what)
	if err != nil {
		return nil, fmt.Errorf("another demo runs in %s: %w", what, err)
	}
	return lock, nil
}

// GrowingFilesystem is the one to choose if it shall grow while it is mounted: the driver's default, ext4, where that can.
// The kernel wants CAP_SYS_RESOURCE for that (ext4_resize_begin), which some virtual machines and containers
// withhold from root. A mounted xfs grows without.
func GrowingFilesystem() string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil || data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return "ext4"
	}
	return "xfs"
}
