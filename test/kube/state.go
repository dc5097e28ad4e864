package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// The files of a cluster's folder. Each component has a folder besides.
const (
	lockFile       = "lock"         // locked while somebody brings the cluster up or takes it down
	stateFile      = "cluster.json" // see state
	kubeconfigFile = "kubeconfig"   // the administrator's
)

// DefinitionsFolder is where below the binaries the definitions of the snapshots' resources lie.
const DefinitionsFolder = "definitions"

// The components, by the names of their commands.
const (
	etcd        = "etcd"
	apiserver   = "kube-apiserver"
	controllers = "kube-controller-manager"
	scheduler   = "kube-scheduler"
	kubelet     = "kubelet"
	proxy       = "kube-proxy"
	names       = "dns"
	containerd  = "containerd"
)

const (
	adminName = "admin"
	nodeName  = "node-a"
	// bridgeName is the interface of the node and of the pods; see network.go.
	bridgeName = "rbd-csi-kube"
	// cgroupName is the folder below which the kubelet makes those of pods. A kubelet ends all
	// pods below its own that it does not know, so it must not be the machine's root.
	cgroupName = "rbd-csi-kube"
	// longestSocket is the longest path of a socket in the folder, and maxSocketPath the size of
	// sun_path in struct sockaddr_un less its final zero.
	longestSocket = "/containerd/containerd.sock.ttrpc"
	maxSocketPath = 107
)

// A state is what has to be known to use the cluster and to take it down. It is
// written before anything outside of the folder is changed, and again when all is up.
type state struct {
	Folder      string
	Binaries    string
	KubeletRoot string
	// Node is the first node's name.
	Node string
	// Guests is how many nodes there are, each in a guest; 0 means that this machine is the only node.
	Guests int
	// Address is the bridge's, and Subnet that of the pods around it, as 10.88.77.
	Address string
	Subnet  string
	// Sysctls are the settings of the machine before.
	Sysctls map[string]string
	// MadeFolders are those of sharedFolders that were not there before.
	MadeFolders []string
	// Ready says that the cluster was brought up to the end.
	Ready bool
}

func (s *state) pki(file string) string    { return filepath.Join(s.Folder, "pki", file) }
func (s *state) config(file string) string { return filepath.Join(s.Folder, "config", file) }
func (s *state) data(name string) string   { return filepath.Join(s.Folder, name) }
func (s *state) log(name string) string    { return filepath.Join(s.Folder, "log", name+".log") }
func (s *state) server() string            { return "https://" + s.Address + ":6443" }
func (s *state) binary(name string) string { return filepath.Join(s.Binaries, name) }
func (s *state) path() string              { return s.Binaries + ":/usr/sbin:/usr/bin:/sbin:/bin" }

// save writes the state so that a reader sees the old or the new one.
func (s *state) save() error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(s.Folder, stateFile)
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// load reads the state of the cluster in folder; fault.NotFound if there is none.
func load(folder string) (*state, error) {
	text, err := os.ReadFile(filepath.Join(folder, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no cluster in %s: %w", folder, fault.NotFound)
	}
	if err != nil {
		return nil, err
	}
	s := new(state)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", filepath.Join(folder, stateFile), fault.Invalid, err)
	}
	return s, nil
}

// lock makes the folder and keeps others from bringing a cluster up in it, or taking it down,
// until the returned function is called or the process ends.
func lock(folder string) (func(), error) {
	if err := checkFolder(folder); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(folder, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		text, _ := os.ReadFile(file.Name())
		file.Close()
		return nil, fmt.Errorf("the cluster in %s is being brought up or taken down by process %s: %w",
			folder, strings.TrimSpace(string(text)), fault.InUse)
	}
	err = file.Truncate(0)
	if err == nil {
		_, err = file.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	}
	return func() { file.Close() }, err
}

// lockMachine keeps others from bringing a cluster up, or taking one down, in any folder: they look at what the
// machine has only one of. The lock is a name in the kernel (an abstract socket, unix(7)), which is gone
// with the process. fault.InUse means that another is at it.
func lockMachine() (func(), error) {
	listener, err := net.Listen("unix", "@rbd-csi-test-kube")
	if err != nil {
		return nil, fmt.Errorf("another cluster is being brought up or taken down: %w: %w", fault.InUse, err)
	}
	return func() { listener.Close() }, nil
}

func checkFolder(folder string) error {
	if !filepath.IsAbs(folder) || filepath.Clean(folder) != folder {
		return fmt.Errorf("folder %q is not a clean absolute path: %w", folder, fault.Invalid)
	}
	if len(folder)+len(longestSocket) > maxSocketPath {
		return fmt.Errorf("folder %q is too long for sockets in it, more than %d bytes: %w",
			folder, maxSocketPath-len(longestSocket), fault.Invalid)
	}
	return nil
}
