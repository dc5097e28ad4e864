package ceph

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The files of a cluster's folder. What is not named here belongs to the daemons.
const (
	lockFile    = "lock"         // locked by the supervisor while it lives
	controlFile = "control.sock" // where the supervisor takes requests
	stateFile   = "cluster.json" // what Attach needs to know; written last
	confFile    = "ceph.conf"    // for daemons and for the administrator
	keyringFile = "keyring"      // of client.admin
	modulesDir  = "mgr-modules"  // the manager's empty modules
	clustersDir = "clusters"     // one folder per user, see Cluster.ClusterDir
	managerName = "mgr.x"
	adminName   = "client.admin"
	// monitorsName is the user that all monitors share.
	monitorsName = "mon."
)

// A setting is a line of ceph.conf.
type setting struct{ name, value string }

// globalSettings are what makes a handful of daemons on one disk a healthy cluster.
// DIR is replaced by the folder.
var globalSettings = []setting{
	{"auth cluster required", "cephx"},
	{"auth service required", "cephx"},
	{"auth client required", "cephx"},
	// The default is to allow it for clients of 2021 and before, and to warn.
	{"auth allow insecure global id reclaim", "false"},

	{"run dir", "DIR"},
	{"log file", "DIR/$name.log"},
	{"admin socket", "DIR/$name.asok"},
	{"crash dir", "DIR/crash"},
	{"mon data", "DIR/mon.$id"},
	{"mgr data", "DIR/mgr.$id"},
	{"osd data", "DIR/osd.$id"},
	{"keyring", "DIR/$name/keyring"},
	// rocksdb tells its life's story at 4 into each log.
	{"debug rocksdb", "1/5"},

	// All OSDs are on one host, so copies go to different OSDs.
	{"osd crush chooseleaf type", "0"},
	{"osd pool default pg num", "8"},
	{"osd pool default pgp num", "8"},
	{"osd pool default pg autoscale mode", "off"},
	{"mon allow pool size one", "true"},
	{"mon warn on pool no redundancy", "false"},
	{"mon allow pool delete", "true"},
	// Test suites make many pools, and a single OSD carries them all.
	{"mon max pg per osd", "4000"},
	// The disk of a test machine may be nearly full.
	{"mon data avail warn", "2"},
	{"mon data avail crit", "1"},

	// The least that is allowed; with the autotuning of caches off, an OSD stays at
	// about 150 MB.
	{"osd memory target", "939524096"},
	{"bluestore cache autotune", "false"},
	{"bluestore cache size", "67108864"},
	// See "How it is so fast" in the package comment.
	{"bdev aio poll ms", "20"},
	{"bluestore fsck on mkfs", "false"},
	// Since 17 an OSD measures its disk for half a minute at its first start.
	{"osd mclock skip benchmark", "true"},
	// An OSD that is marked down for the sixth time in ten minutes ends itself. Tests mark one down that they had stopped.
	{"osd max markdown count", "1000"},
	// Nothing to learn about the class of a sparse file.
	{"osd class update on start", "false"},

	{"mgr initial modules", ""},
	// The state of placement groups goes from OSD to manager to monitor; at the
	// default of 5 s for each step a new cluster looks unhealthy for as long.
	{"mgr stats period", "1"},
	{"mgr tick period", "1"},
	{"mon mgr digest period", "1"},
}

// conf returns the text of the cluster's ceph.conf.
func conf(dir, fsid string, ports *claim, opts Options) string {
	monitors := make([]string, opts.Monitors)
	for i := range monitors {
		monitors[i] = ports.monitor(opts.Address, i)
	}
	first, last := ports.daemonPorts()
	settings := append([]setting{
		{"fsid", fsid},
		{"mon host", strings.Join(monitors, ",")},
		{"public addr", opts.Address},
		{"cluster addr", opts.Address},
		{"ms bind port min", fmt.Sprint(first)},
		{"ms bind port max", fmt.Sprint(last)},
		{"osd pool default size", fmt.Sprint(opts.OSDs)},
		{"osd pool default min size", fmt.Sprint(max(1, opts.OSDs-1))},
		{"bluestore block size", fmt.Sprint(opts.OSDBytes)},
	}, globalSettings...)
	if opts.ProposeInterval > 0 {
		settings = append(settings, setting{"paxos propose interval", fmt.Sprint(opts.ProposeInterval.Seconds())})
	}
	if !opts.ManagerModules {
		settings = append(settings, setting{"mgr module path", "DIR/" + modulesDir})
	}
	// Of a name that stands twice in a section, Ceph takes the last.
	for _, name := range slices.Sorted(maps.Keys(opts.Conf)) {
		settings = append(settings, setting{name, opts.Conf[name]})
	}
	var text strings.Builder
	section(&text, "global", settings)
	section(&text, "client", []setting{{"keyring", "DIR/" + keyringFile}, {"log file", "/dev/null"}, {"admin socket", ""}})
	return strings.ReplaceAll(text.String(), "DIR", dir)
}

// clientConf returns what a client needs to find the monitors and nothing else, as
// `ceph config generate-minimal-conf` prints it.
func clientConf(fsid string, monitors []string) string {
	var text strings.Builder
	section(&text, "global", []setting{{"fsid", fsid}, {"mon_host", strings.Join(monitors, ",")}})
	return text.String()
}

func section(text *strings.Builder, name string, settings []setting) {
	fmt.Fprintf(text, "[%s]\n", name)
	for _, s := range settings {
		fmt.Fprintf(text, "%s = %s\n", s.name, s.value)
	}
}

// An entity is a user of cephx: a daemon or a client.
type entity struct {
	name string
	key  string
	caps []setting
}

// entities lists all who must be known before the first monitor starts.
func entities(opts Options) []entity {
	list := []entity{
		{name: monitorsName, caps: []setting{{"mon", "allow *"}}},
		{name: adminName, caps: []setting{{"mon", "allow *"}, {"osd", "allow *"}, {"mgr", "allow *"}, {"mds", "allow *"}}},
		{name: managerName, caps: []setting{{"mon", "allow profile mgr"}, {"osd", "allow *"}, {"mds", "allow *"}}},
	}
	for _, id := range opts.osds() {
		list = append(list, entity{name: osdName(id),
			caps: []setting{{"mon", "allow profile osd"}, {"mgr", "allow profile osd"}, {"osd", "allow *"}}})
	}
	return list
}

func osdName(id int) string         { return fmt.Sprintf("osd.%d", id) }
func monitorName(id string) string  { return "mon." + id }
func socketOf(dir, d string) string { return filepath.Join(dir, d+".asok") }

// keyring returns the text of a keyring with the keys, and the capabilities as well
// where the monitors are to read them.
func keyring(withCaps bool, list ...entity) string {
	var text strings.Builder
	for _, e := range list {
		fmt.Fprintf(&text, "[%s]\n\tkey = %s\n", e.name, e.key)
		for _, c := range e.caps {
			if withCaps {
				fmt.Fprintf(&text, "\tcaps %s = %q\n", c.name, c.value)
			}
		}
	}
	return text.String()
}

// alwaysOn are the modules that a manager of Ceph 16 to 20 loads whatever it is told;
// one that is missing is a HEALTH_ERR.
var alwaysOn = []string{
	"balancer", "crash", "devicehealth", "orchestrator", "pg_autoscaler",
	"progress", "rbd_support", "status", "telemetry", "volumes",
}

// mgrModule stands in for Ceph's mgr_module.py, which loads half of Python for each module and, on
// Debian 13, cannot be loaded at all (its PyO3 refuses sub-interpreters). It has what the manager
// calls of a module (PyModule::load and ActivePyModule in src/mgr of Ceph 16 to 20).
const mgrModule = `import ceph_module


class _Module:
    COMMANDS = []
    MODULE_OPTIONS = []
    NOTIFY_TYPES = []

    @classmethod
    def _register_commands(cls, module_name):
        pass

    @classmethod
    def _register_options(cls, module_name):
        pass

    @staticmethod
    def can_run():
        return True, ""

    def serve(self):
        pass

    def shutdown(self):
        pass

    def config_notify(self):
        pass


class MgrModule(_Module, ceph_module.BaseMgrModule):
    def __init__(self, module_name, py_modules_ptr, this_ptr):
        ceph_module.BaseMgrModule.__init__(self, py_modules_ptr, this_ptr)


class MgrStandbyModule(_Module, ceph_module.BaseMgrStandbyModule):
    def __init__(self, module_name, this_ptr):
        ceph_module.BaseMgrStandbyModule.__init__(self, this_ptr)
`

// emptyModule are the files of an empty module. The manager takes a folder for a module if it has a
// module.py, and then imports the folder.
var emptyModule = map[string]string{
	"__init__.py": "from .module import Module\n",
	"module.py":   "from mgr_module import MgrModule\n\n\nclass Module(MgrModule):\n    pass\n",
}

// writeModules makes the folder of empty modules.
func writeModules(dir string) error {
	for _, name := range alwaysOn {
		module := filepath.Join(dir, modulesDir, name)
		if err := os.MkdirAll(module, 0o755); err != nil {
			return err
		}
		for file, text := range emptyModule {
			if err := os.WriteFile(filepath.Join(module, file), []byte(text), 0o644); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(filepath.Join(dir, modulesDir, "mgr_module.py"), []byte(mgrModule), 0o644)
}
