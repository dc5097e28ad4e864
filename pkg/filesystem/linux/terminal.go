//go:build linux

package linux

import (
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// runInTerminal runs a process whose input and output are a terminal on which "n" was
// typed already. What it writes there goes to out.
//
// mke2fs needs it: only when both its input and its output are a terminal does it look
// for a filesystem on the device and ask before it writes over one. Without a
// terminal it writes over everything, force or no force (e2fsprogs 1.47, isatty in
// PRS of misc/mke2fs.c).
func runInTerminal(process *exec.Cmd, out io.Writer) error {
	ours, theirs, err := openTerminal()
	if err != nil {
		return fmt.Errorf("open a terminal: %w: %w", fault.Unavailable, err)
	}
	defer ours.Close()
	process.Stdin, process.Stdout = theirs, theirs
	err = process.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		// The end is EIO, when the last process has closed its side.
		_, _ = io.Copy(out, ours)
	}()
	err = process.Wait()
	<-copied
	return err
}

// openTerminal makes a pseudo-terminal, pty(7), without echo, with the answer typed.
func openTerminal() (ours, theirs *os.File, err error) {
	ours, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			ours.Close()
		}
	}()
	raw, err := ours.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var peer int
	controlled := raw.Control(func(fd uintptr) { peer, err = openPeer(int(fd)) })
	if err = firstOf(controlled, err); err != nil {
		return nil, nil, err
	}
	theirs = os.NewFile(uintptr(peer), "terminal")
	if _, err = ours.WriteString("n\n"); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// openPeer opens the other side of a pseudo-terminal. TIOCGPTPEER does it without a path,
// so that it does not matter where devpts is mounted.
func openPeer(ours int) (int, error) {
	if err := unix.IoctlSetPointerInt(ours, unix.TIOCSPTLCK, 0); err != nil {
		return 0, err
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(ours), unix.TIOCGPTPEER,
		unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return 0, errno
	}
	settings, err := unix.IoctlGetTermios(int(peer), unix.TCGETS)
	if err == nil {
		settings.Lflag &^= unix.ECHO
		err = unix.IoctlSetTermios(int(peer), unix.TCSETS, settings)
	}
	if err != nil {
		unix.Close(int(peer))
		return 0, err
	}
	return int(peer), nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
