package krbd

import (
	"errors"
	"io"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/errand"
)

// Serve is the process that writes; see [errand.Serve].
func Serve(from io.Reader, to io.Writer) error {
	return errand.Serve(from, to, func(index int, order Order) Result {
		defer clear(order.Key)
		result := carryOut(order)
		result.Index, result.Path = index, order.Path
		return result
	})
}

// carryOut carries one order out, in a thread that is its own: the keyring and the network
// namespace belong to the thread, and both end with it, because it is never unlocked.
func carryOut(order Order) Result {
	runtime.LockOSThread()
	log := openLog()
	defer log.close()
	step, err := obey(order)
	if err == nil {
		return Result{}
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		errno = unix.EIO
	}
	return Result{Step: step, Errno: errno, Kernel: log.since()}
}

func obey(order Order) (step string, err error) {
	if order.NetworkNamespace != "" {
		if err := enter(order.NetworkNamespace); err != nil {
			return stepNamespace, err
		}
	}
	if order.KeyName != "" {
		if err := addKey(order.KeyName, order.Key); err != nil {
			return stepKey, err
		}
	}
	return stepWrite, write(order.Path, order.Text)
}

func enter(namespace string) error {
	file, err := os.Open(namespace)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	return unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
}

// addKey adds a key to the thread's own keyring, where request_key(9) of libceph's get_secret
// looks first, and from which nobody else can read it.
func addKey(name string, key []byte) error {
	_, err := unix.AddKey("ceph", name, key, unix.KEY_SPEC_THREAD_KEYRING)
	return err
}

// write writes in one piece, as sysfs wants it. os.File would write the rest of a short write
// as a second request.
func write(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	_, err = unix.Write(fd, []byte(text))
	return err
}

// A kernelLog reads what the kernel logs from now on (/dev/kmsg), for the reasons that a number alone
// does not tell. Without the right to read it there are none.
type kernelLog struct{ fd int }

func openLog() kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return kernelLog{-1}
	}
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		_ = unix.Close(fd)
		return kernelLog{-1}
	}
	return kernelLog{fd}
}

func (k kernelLog) close() {
	if k.fd >= 0 {
		_ = unix.Close(k.fd)
	}
}

// maxLines bounds what is kept, from the end.
const maxLines = 6

// since returns the lines of rbd and libceph. Each read is one record:
// PRIORITY,SEQUENCE,TIME,FLAGS;TEXT (Documentation/ABI/testing/dev-kmsg).
func (k kernelLog) since() []string {
	var lines []string
	record := make([]byte, 8192)
	for k.fd >= 0 {
		n, err := unix.Read(k.fd, record)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR) {
			continue // lines were overwritten before they were read
		}
		if err != nil || n <= 0 {
			break
		}
		if line, ours := logLine(string(record[:n])); ours && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines[max(0, len(lines)-maxLines):]
}

func logLine(record string) (line string, ours bool) {
	_, text, _ := strings.Cut(record, ";")
	line, _, _ = strings.Cut(text, "\n")
	ours = strings.HasPrefix(line, "rbd: ") || strings.HasPrefix(line, "libceph: ") || strings.HasPrefix(line, "ceph: ")
	return line, ours && !ordinary.MatchString(line)
}

// ordinary is what libceph says of every client that comes to be.
var ordinary = regexp.MustCompile(`^libceph: (mon\d+ .* session established|client\d+ fsid .*)$`)
