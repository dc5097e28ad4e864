// Package kernel tests the ways of mapping that need a kernel with rbd or nbd in a small kernel
// of its own, which this machine's need not have: User-Mode Linux, from Debian's packages (see
// fetch.sh). It runs as an ordinary program, without virtualisation, and is up in seconds.
//
//	machine            10.77.0.1    Ceph, and the program that runs the tests
//	  bridge, taps
//	guests             10.77.0.11, 10.77.0.12
//	                   this machine's files, with a layer in memory above them
//
// Other programs boot guests, too, on a [Network] of theirs: test/kube has its nodes in them. Such guests stay when the program that
// booted them ends, until somebody who finds them ([Find]) ends them.
//
// A guest sees the machine's files, so the test's own program runs in it: it is the guest's init,
// then the agent that runs commands there, and at last the test (see [InGuest]). What a test
// in a guest has to do with the cluster it asks the machine for (see [Cluster]), where Ceph's
// tools are twenty times as quick.
//
// # What is left when a test dies
//
// Nothing: [Main] starts the program once more in namespaces of its own for processes, the network and
// mounts. When the tests end, however that is, the kernel ends all processes in them,
// Ceph and guests included, and with the namespaces go bridge and taps.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

// The environment of the roles that this program has.
const (
	// envInside marks the process in namespaces of its own.
	envInside = "RBD_CSI_KERNEL_INSIDE"
	// envAddress, on the kernel's command line, makes it a guest's init.
	envAddress = "RBD_CSI_KERNEL_ADDRESS"
	// envMachine, beside it, is the machine's address.
	envMachine = "RBD_CSI_KERNEL_MACHINE"
	// envModules is where the init finds the kernel's modules.
	envModules = "RBD_CSI_KERNEL_MODULES"
	// envAgent makes it the agent; its value is the address to listen on.
	envAgent = "RBD_CSI_KERNEL_AGENT"
	// envCluster makes it a test in a guest; its value is where the machine's [Cluster] is.
	envCluster = "RBD_CSI_KERNEL_CLUSTER"
)

// The addresses.
const (
	machineAddress = "10.77.0.1"
	addressBits    = 24
	agentPort      = 7000
)

// RunGuest returns at once, except in a guest's init and agent, which it is then. A program that boots guests begins with it,
// or with [Main], because guests run the program that boots them.
func RunGuest() {
	switch {
	case os.Getenv(envAddress) != "":
		os.Exit(fail(runInit()))
	case os.Getenv(envAgent) != "":
		os.Exit(fail(serveAgent(os.Getenv(envAgent))))
	}
}

// Main is what TestMain hands to os.Exit. It does not return in a guest's init and agent.
func Main(m *testing.M) int {
	RunGuest()
	if InGuest() {
		return m.Run()
	}
	ceph.RunSupervisor()
	if os.Getenv(envInside) != "" {
		if err := settle(); err != nil {
			return fail(err)
		}
		return m.Run()
	}
	if Lacks() != nil {
		return m.Run() // the tests tell the reason and skip
	}
	code, err := enter()
	if err != nil {
		return fail(err)
	}
	return code
}

func fail(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// InGuest reports whether this is a test in a guest.
func InGuest() bool { return os.Getenv(envCluster) != "" }

// Lacks says with fault.Unsupported why no guest can run on this machine, or returns nil.
func Lacks() error {
	var lacks []string
	if os.Geteuid() != 0 {
		lacks = append(lacks, "it needs root, for namespaces and a bridge")
	}
	if runtime.GOARCH != "amd64" {
		lacks = append(lacks, "Debian has User-Mode Linux for amd64 alone")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		lacks = append(lacks, "it needs /dev/net/tun (modprobe tun)")
	}
	for _, tool := range []string{"ip", "modprobe"} {
		if _, err := exec.LookPath(tool); err != nil {
			lacks = append(lacks, "it needs the command "+tool+" (test/setup.sh kernel)")
		}
	}
	if _, err := findParts(); err != nil {
		lacks = append(lacks, err.Error())
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("no guest can run here: %s: %w", strings.Join(lacks, "; "), fault.Unsupported)
}

// EnvKernel names the folder that fetch.sh has filled, if it is not build/kernel.
const EnvKernel = "RBD_CSI_KERNEL"

// parts are what fetch.sh fetches.
type parts struct{ linux, modules string }

func findParts() (parts, error) {
	folder := os.Getenv(EnvKernel)
	if folder == "" {
		_, source, _, _ := runtime.Caller(0)
		folder = filepath.Join(filepath.Dir(source), "../../build/kernel")
	}
	found := parts{linux: filepath.Join(folder, "linux")}
	if _, err := os.Stat(found.linux); err != nil {
		return parts{}, fmt.Errorf("it needs User-Mode Linux in %s (test/kernel/fetch.sh)", folder)
	}
	var err error
	found.modules, err = filepath.EvalSymlinks(filepath.Join(folder, "modules"))
	return found, err
}

// enter runs this program once more, in namespaces of its own, and returns its exit status. It dies
// with this process, and with it, being their first one, all processes in its namespace.
func enter() (code int, err error) {
	runtime.LockOSThread() // the death signal is tied to the thread
	defer runtime.UnlockOSThread()
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Args[0] = os.Args[0]
	command.Env = append(os.Environ(), envInside+"=1")
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = command.Run()
	if ended, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(1, ended.ExitCode()), nil
	}
	if err != nil {
		return 1, fmt.Errorf("enter namespaces of our own: %w", err)
	}
	return 0, nil
}

// settle makes the new namespaces fit to live in: /proc shows their processes, and
// the network is the machine's end of the bridge.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, arguments := range []string{
		"link set lo up",
		"link add " + ownNetwork.Bridge + " type bridge",
		fmt.Sprintf("addr add %s/%d dev %s", ownNetwork.Machine, addressBits, ownNetwork.Bridge),
		"link set " + ownNetwork.Bridge + " up",
	} {
		if err := run("ip", strings.Fields(arguments)...); err != nil {
			return err
		}
	}
	return nil
}

func run(name string, arguments ...string) error {
	output, err := exec.Command(name, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
