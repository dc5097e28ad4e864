package ceph

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Environment variables that change what the tests of a whole run use.
const (
	// EnvCluster names the folder of a running cluster that [ForTest] uses
	// instead of starting one, as `make ceph` prints it.
	EnvCluster = "RBD_CSI_TEST_CEPH"
	// EnvRoot names a root, see [Options.Root], for the clusters of [ForTest]
	// that do not name one themselves.
	EnvRoot = "RBD_CSI_TEST_CEPH_ROOT"
)

// Options says what cluster to start. The zero value is a cluster of one monitor, one
// manager and one OSD with the replicated pool "rbd".
type Options struct {
	// Dir is the cluster's folder. It must be empty or not exist, or be what a
	// killed cluster left. Empty means a new folder below os.TempDir(). It must be
	// short, because Unix sockets in it have paths of at most 107 bytes.
	Dir string
	// OSDs is how many OSDs to run, 1 to 3; 0 means 1. Replicated pools have as
	// many copies as there are OSDs.
	OSDs int
	// Monitors is how many monitors to run, 1 to 3; 0 means 1.
	Monitors int
	// Pools are the replicated pools to make, ready for RBD; nil means "rbd".
	Pools []string
	// DataPool, unless empty, is an erasure-coded pool (k=2, m=1, overwrites
	// allowed) for the data of images. With fewer than three OSDs several shards
	// lie on one OSD, which Ceph does without complaint when its CRUSH rule says so.
	DataPool string
	// Namespaces are RADOS namespaces to make, by replicated pool.
	Namespaces map[string][]string
	// OSDBytes is the size of each OSD's sparse backing file; 0 means 10 GiB.
	OSDBytes int64
	// Root, unless empty, is the root directory of another Debian with another
	// release of Ceph, made by root.sh. Daemons and tools are run in it by
	// chroot(2), which needs root and CAP_SYS_ADMIN.
	Root string
	// Address is the local IPv4 address to bind to; empty means 127.0.0.1.
	Address string
	// ProposeInterval is how long the monitors gather changes before they commit
	// them (paxos_propose_interval). 0 leaves it at Ceph's 1 s; 50 ms makes
	// snapshots and pools much quicker. Leave it alone where time is measured.
	ProposeInterval time.Duration
	// OldKeys makes keys of the type aes also on releases whose default is
	// aes256k (19.2.6, 20.2.4), so that clients of older releases can connect.
	OldKeys bool
	// ManagerModules loads Ceph's own manager modules, for `rbd task`, schedules
	// and the like. They cost some seconds and their operations count.
	ManagerModules bool
	// Conf are further settings for the [global] section of ceph.conf; they
	// take precedence over ours.
	Conf map[string]string
	// Detached lets the cluster outlive the process that starts it.
	Detached bool
}

const (
	defaultPool     = "rbd"
	defaultAddress  = "127.0.0.1"
	defaultOSDBytes = 10 << 30
	// minOSDBytes leaves BlueStore room for its own log and database.
	minOSDBytes = 1 << 30
	// longestSocket is the longest name of a socket in the folder.
	longestSocket = "/control.sock"
	// maxSocketPath is the size of sun_path in struct sockaddr_un less its final zero.
	maxSocketPath = 107
)

// plainName is what we allow as a name of a pool, namespace or user: a part of what
// Ceph allows, without what would need quoting in a configuration file.
var plainName = regexp.MustCompile(`^[A-Za-z0-9_.][A-Za-z0-9_.-]*$`)

// settingName is what may stand to the left of the equals sign in ceph.conf.
var settingName = regexp.MustCompile(`^[a-z][a-z0-9_ ]*$`)

// withDefaults returns the options with every zero replaced by what it stands for.
func (o Options) withDefaults() Options {
	o.OSDs = cmp.Or(o.OSDs, 1)
	o.Monitors = cmp.Or(o.Monitors, 1)
	o.OSDBytes = cmp.Or(o.OSDBytes, defaultOSDBytes)
	o.Address = cmp.Or(o.Address, defaultAddress)
	if o.Pools == nil {
		o.Pools = []string{defaultPool}
	}
	return o
}

// check refuses what cannot work, with fault.Invalid. The defaults are set.
func (o Options) check() error {
	switch {
	case o.OSDs < 1 || o.OSDs > 3:
		return fmt.Errorf("%d OSDs, not 1 to 3: %w", o.OSDs, fault.Invalid)
	case o.Monitors < 1 || o.Monitors > 3:
		return fmt.Errorf("%d monitors, not 1 to 3: %w", o.Monitors, fault.Invalid)
	case o.OSDBytes < minOSDBytes:
		return fmt.Errorf("OSDs of %d bytes, not %d or more: %w", o.OSDBytes, minOSDBytes, fault.Invalid)
	case o.ProposeInterval < 0:
		return fmt.Errorf("a propose interval of %s: %w", o.ProposeInterval, fault.Invalid)
	}
	if ip, err := netip.ParseAddr(o.Address); err != nil || !ip.Is4() {
		return fmt.Errorf("address %q is not an IPv4 address: %w", o.Address, fault.Invalid)
	}
	if err := o.checkNames(); err != nil {
		return err
	}
	for name, value := range o.Conf {
		if !settingName.MatchString(name) || strings.ContainsAny(value, "\n#;") {
			return fmt.Errorf("setting %q = %q: %w", name, value, fault.Invalid)
		}
	}
	return o.checkDir()
}

// checkNames checks pools and namespaces.
func (o Options) checkNames() error {
	pools := slices.Clone(o.Pools)
	if o.DataPool != "" {
		pools = append(pools, o.DataPool)
	}
	for i, pool := range pools {
		if err := checkName("pool", pool); err != nil {
			return err
		}
		if slices.Contains(pools[:i], pool) {
			return fmt.Errorf("pool %q twice: %w", pool, fault.Invalid)
		}
	}
	for pool, namespaces := range o.Namespaces {
		if !slices.Contains(o.Pools, pool) {
			return fmt.Errorf("namespaces of pool %q, which is not a replicated pool to make: %w", pool, fault.Invalid)
		}
		for _, namespace := range namespaces {
			if err := checkName("namespace", namespace); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkName(what, name string) error {
	if !plainName.MatchString(name) {
		return fmt.Errorf("%s %q is not made of letters, digits, '_', '.' and '-': %w", what, name, fault.Invalid)
	}
	return nil
}

// checkDir checks that the two folders are absolute and the first short enough.
func (o Options) checkDir() error {
	for _, dir := range []string{o.Dir, o.Root} {
		if dir != "" && (!filepath.IsAbs(dir) || filepath.Clean(dir) != dir) {
			return fmt.Errorf("folder %q is not a clean absolute path: %w", dir, fault.Invalid)
		}
	}
	if len(o.Dir)+len(longestSocket) > maxSocketPath {
		return fmt.Errorf("folder %q is too long for sockets in it, more than %d bytes: %w",
			o.Dir, maxSocketPath-len(longestSocket), fault.Invalid)
	}
	return nil
}

// osds are the identifiers of the OSDs: 0, 1, 2.
func (o Options) osds() []int {
	ids := make([]int, o.OSDs)
	for i := range ids {
		ids[i] = i
	}
	return ids
}

// monitors are the identifiers of the monitors: a, b, c.
func (o Options) monitors() []string { return []string{"a", "b", "c"}[:o.Monitors] }

// pools is how many pools there are to be.
func (o Options) pools() int {
	if o.DataPool != "" {
		return len(o.Pools) + 1
	}
	return len(o.Pools)
}
