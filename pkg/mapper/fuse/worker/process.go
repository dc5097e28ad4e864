package worker

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
)

// hardenProcess keeps the process able to serve when the node is short of memory: then
// the kernel wants to write to the device that this process serves, and must not wait for
// the process, nor the process for the kernel. Each of these wants a capability, and the
// device works without it when memory is plenty, so a refusal is told and no error.
func hardenProcess(log *events) {
	flusher, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	if err != nil || flusher != 1 {
		log.add("the launcher could not set PR_SET_IO_FLUSHER (CAP_SYS_RESOURCE, Linux 5.6)")
	}
	// On fault: thread stacks and Go's arenas are large and mostly never touched.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		log.add(fmt.Sprintf("memory is not locked (CAP_IPC_LOCK): %v", err))
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		log.add(fmt.Sprintf("the out-of-memory killer may take the worker (CAP_SYS_RESOURCE): %v", err))
	}
}

// detachStandardFiles lets go of the driver's pipes.
func detachStandardFiles() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	for _, standard := range []int{unix.Stdin, unix.Stdout, unix.Stderr} {
		if err := unix.Dup3(int(null.Fd()), standard, 0); err != nil {
			return err
		}
	}
	return nil
}

// closeOnExec keeps a process that this one would start from holding the FUSE connection: it
// would keep a device that nobody serves any more from dying. go-fuse opens it without O_CLOEXEC when it
// mounts by mount(2) (mountDirect in mount_linux.go, v2.12), and keeps it to itself.
func closeOnExec(device string) error {
	const own = "/proc/self/fd"
	descriptors, err := os.ReadDir(own)
	if err != nil {
		return err
	}
	for _, one := range descriptors {
		number, err := strconv.Atoi(one.Name())
		if target, _ := os.Readlink(filepath.Join(own, one.Name())); err == nil && target == device {
			unix.CloseOnExec(number)
		}
	}
	return nil
}

// setCapacity has the kernel take the size of a loop device from its file again.
func setCapacity(path string) error {
	// The driver has attached it, perhaps in a pod with another /dev.
	if err := fuse.EnsureLoopNode(path); err != nil {
		return err
	}
	device, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = device.Close() }()
	return unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0)
}

// maxEvents bounds the messages that are kept.
const maxEvents = 20

// events are the latest messages of the process, for its status.
type events struct {
	mutex sync.Mutex
	texts []string
}

func (e *events) add(text string) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.texts = append(e.texts, time.Now().UTC().Format(time.RFC3339)+" "+text)
	if len(e.texts) > maxEvents {
		e.texts = append([]string(nil), e.texts[1:]...)
	}
}

// Write takes a line of go-fuse's log.
func (e *events) Write(line []byte) (int, error) {
	e.add(string(line))
	return len(line), nil
}

func (e *events) all() []string {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return append([]string(nil), e.texts...)
}

// A step is what the process is doing, for the error that says where it hung.
type step struct {
	mutex sync.Mutex
	what  string
	since time.Time
}

func (s *step) set(what string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.what, s.since = what, time.Now()
}

func (s *step) now() (what string, since time.Time) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.what, s.since
}
