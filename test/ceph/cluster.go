package ceph

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Cluster is a handle to a running cluster. All methods may be called at the same
// time from several goroutines, and from several processes by [Attach].
type Cluster struct {
	admin admin
	state state
	pools []string
	data  string

	// What only the process that started the cluster has: the supervisor, which it
	// waits for, and the write end of the pipe that says it is alive. The latter is a
	// plain number because an *os.File is closed when nobody refers to it any more.
	supervisor *exec.Cmd
	lifeline   int
}

// Start brings a cluster up as opts say and returns when it is healthy. When ctx ends before
// that, or anything fails, nothing is left. The cluster lives until [Cluster.Down] or
// until this process ends; see [Options.Detached]. Packages that are not installed, and a root
// that cannot be used here, are fault.Unsupported; a folder in use is fault.Exists.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	opts = opts.withDefaults()
	if err := opts.check(); err != nil {
		return nil, err
	}
	if err := canRun(opts.Root); err != nil {
		return nil, err
	}
	supervisor, lifeline, answer, err := startSupervisor(opts)
	if err != nil {
		return nil, fmt.Errorf("start a supervisor: %w", err)
	}
	state, err := awaitAnswer(ctx, lifeline, answer)
	if err != nil || opts.Detached {
		closeFD(&lifeline)
	}
	if err != nil {
		_ = supervisor.Wait()
		return nil, err
	}
	c := attached(state)
	c.supervisor, c.lifeline = supervisor, lifeline
	return c, nil
}

// canRun says with fault.Unsupported why no cluster can run here.
func canRun(root string) error {
	if err := (tools{root: root}).check(); err != nil {
		return err
	}
	if root != "" && os.Geteuid() != 0 {
		return fmt.Errorf("a cluster in the root %s needs root: %w", root, fault.Unsupported)
	}
	return nil
}

// startSupervisor starts this executable once more as a supervisor. It returns the write
// end of the pipe that ties it to this process, with the options written, and the read end of
// the one on which it answers. The supervisor has a session of its own: Ctrl-C reaches the test,
// and the supervisor learns of it by the pipe.
func startSupervisor(opts Options) (cmd *exec.Cmd, lifeline int, answer *os.File, err error) {
	if os.Getenv(envSupervisor) != "" {
		return nil, 0, nil, fmt.Errorf("TestMain did not begin with ceph.Main, nor main with ceph.RunSupervisor: %w", fault.Internal)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, 0, nil, err
	}
	var alive [2]int
	if err := syscall.Pipe2(alive[:], syscall.O_CLOEXEC); err != nil {
		return nil, 0, nil, err
	}
	owner := os.NewFile(uintptr(alive[0]), "owner")
	defer owner.Close()
	answer, report, err := os.Pipe()
	if err != nil {
		syscall.Close(alive[1])
		return nil, 0, nil, err
	}
	defer report.Close()
	cmd = &exec.Cmd{
		Path: self, Args: []string{"rbd-csi-ceph-supervisor"}, Env: append(environment(), envSupervisor+"=1"),
		Stdin: owner, Stdout: report, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
		// Debian 13's ceph-osd looks for its classes at a path relative to this.
		Dir: "/",
	}
	if opts.Root != "" {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
	}
	if err = cmd.Start(); err == nil {
		err = sendOptions(alive[1], opts)
	}
	if err != nil {
		syscall.Close(alive[1])
		answer.Close()
		return nil, 0, nil, err
	}
	return cmd, alive[1], answer, nil
}

// sendOptions writes the options as one line of JSON. They are far smaller than a pipe holds,
// so that this does not wait for the reader.
func sendOptions(lifeline int, opts Options) error {
	text, err := json.Marshal(opts)
	if err != nil {
		return err
	}
	_, err = syscall.Write(lifeline, append(text, '\n'))
	return err
}

// awaitAnswer waits for the supervisor's one answer. When ctx ends first, it lets go of the
// lifeline, upon which the supervisor undoes what it began and answers too.
func awaitAnswer(ctx context.Context, lifeline int, answer *os.File) (state, error) {
	defer answer.Close()
	defer context.AfterFunc(ctx, func() { answer.SetReadDeadline(time.Now()) })()
	var got reply
	err := json.NewDecoder(answer).Decode(&got)
	switch {
	case ctx.Err() != nil:
		return state{}, fmt.Errorf("start a cluster: %w: %w", fault.Canceled, context.Cause(ctx))
	case errors.Is(err, io.EOF):
		return state{}, fmt.Errorf("the supervisor ended without an answer; TestMain must begin with ceph.Main: %w", fault.Internal)
	case err != nil:
		return state{}, fmt.Errorf("read the supervisor's answer: %w", err)
	case got.Failure != nil:
		return state{}, got.err()
	}
	return *got.State, nil
}

func closeFD(fd *int) {
	if *fd > 0 {
		_ = syscall.Close(*fd)
		*fd = 0
	}
}

// Attach returns a handle to the cluster that runs in dir. If none does it is
// fault.NotFound or fault.Unavailable.
func Attach(ctx context.Context, dir string) (*Cluster, error) {
	text, err := os.ReadFile(filepath.Join(dir, stateFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no cluster runs in %s: %w", dir, fault.NotFound)
	case err != nil:
		return nil, fmt.Errorf("attach to the cluster in %s: %w", dir, err)
	}
	var state state
	if err := json.Unmarshal(text, &state); err != nil {
		return nil, fmt.Errorf("read %s of %s: %w: %w", stateFile, dir, fault.Internal, err)
	}
	c := attached(state)
	if _, err := c.Daemons(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// attached makes the handle for a state. It reaches the tools of another root through the
// supervisor, in whose mount namespace that root has /proc, /dev and the folder.
func attached(state state) *Cluster {
	opts := state.Options
	t := tools{env: environment()}
	if opts.Root != "" {
		t.root = filepath.Join(fmt.Sprintf("/proc/%d/root", state.Supervisor), opts.Root)
	}
	return &Cluster{
		admin: admin{tools: t, dir: opts.Dir, osds: opts.OSDs, keyType: state.KeyType},
		state: state,
		pools: opts.Pools,
		data:  opts.DataPool,
	}
}

// Down ends the cluster and removes its folder. It returns when processes, ports
// and files are gone; a cluster that is gone already is no error. Any handle may call it.
func (c *Cluster) Down(ctx context.Context) error {
	if err := TakeDown(ctx, c.Dir()); err != nil {
		return err
	}
	if c.supervisor != nil {
		// It says how it ended in its log only; a second call finds that it was waited for.
		_ = c.supervisor.Wait()
		closeFD(&c.lifeline)
	}
	return nil
}

// TakeDown ends the cluster in dir, also one that is still coming up, or removes what a killed
// one left there. No such folder is no error, and a folder that is not a cluster's is left alone.
func TakeDown(ctx context.Context, dir string) error {
	_, err := control(ctx, dir, request{Verb: verbDown})
	if errors.Is(err, fault.Unavailable) {
		err = removeStale(dir)
	}
	if errors.Is(err, fault.Exists) {
		err = interrupt(ctx, dir)
	}
	if err != nil {
		return fmt.Errorf("take the cluster in %s down: %w", dir, err)
	}
	return nil
}

// Dir is the cluster's folder: ceph.conf, the administrator's keyring, the daemons' logs
// (NAME.log, NAME.out), their admin sockets (NAME.asok) and data.
func (c *Cluster) Dir() string { return c.state.Options.Dir }

// Conf is the path of the ceph.conf for the administrator; CEPH_CONF may be set to it.
func (c *Cluster) Conf() string { return c.admin.conf() }

// AdminKeyring is the path of the keyring of client.admin.
func (c *Cluster) AdminKeyring() string { return filepath.Join(c.Dir(), keyringFile) }

// FSID is the cluster's identifier, a UUID.
func (c *Cluster) FSID() string { return c.state.FSID }

// Monitors are the monitors' addresses, "[v2:IP:PORT,v1:IP:PORT]" each.
func (c *Cluster) Monitors() []string { return c.state.Monitors }

// Version is the release of the daemons, as "16.2.15".
func (c *Cluster) Version() string { return c.state.Version }

// Release is the first number of the version.
func (c *Cluster) Release() int { return c.state.Release }

// Root is the root directory of the daemons, empty for this machine's; see [Options.Root].
func (c *Cluster) Root() string { return c.state.Options.Root }

// Took is how long the bring-up took.
func (c *Cluster) Took() time.Duration { return c.state.Took }

// OSDs is how many OSDs there are; their daemons are named osd.0 and so on.
func (c *Cluster) OSDs() int { return c.state.Options.OSDs }

// Pool is the first of Pools.
func (c *Cluster) Pool() string { return c.pools[0] }

// Pools are the replicated pools that the handle was made with, in the order of
// [Options.Pools]. A handle of [ForTest] to a shared cluster has pools with names of
// their own in place of those asked for.
func (c *Cluster) Pools() []string { return c.pools }

// DataPool is the erasure-coded pool that goes with Pools, or empty.
func (c *Cluster) DataPool() string { return c.data }

// Ceph runs `ceph ARGS...` as client.admin and returns its standard output.
func (c *Cluster) Ceph(ctx context.Context, args ...string) (string, error) {
	return c.admin.ceph(ctx, args...)
}

// RBD runs `rbd ARGS...` as client.admin and returns its standard output.
func (c *Cluster) RBD(ctx context.Context, args ...string) (string, error) {
	return c.admin.rbd(ctx, args...)
}

// Rados runs `rados ARGS...` as client.admin and returns its standard output.
func (c *Cluster) Rados(ctx context.Context, args ...string) (string, error) {
	return c.admin.rados(ctx, args...)
}

// Command prepares any program to be run among the cluster's own tools, with CEPH_CONF set: in
// the root of a cluster that has one. It ends with ctx or with this process if it is run from a
// thread that stays, see runtime.LockOSThread.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	cmd, err := c.admin.tools.command(ctx, name, args...)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(cmd.Env, "CEPH_CONF="+c.Conf())
	return cmd, nil
}

// CreatePool makes a replicated pool, ready for RBD, and waits until it serves.
func (c *Cluster) CreatePool(ctx context.Context, name string) error {
	if err := checkName("pool", name); err != nil {
		return err
	}
	return c.admin.createPool(ctx, name)
}

// CreateDataPool makes an erasure-coded pool, see [Options.DataPool].
func (c *Cluster) CreateDataPool(ctx context.Context, name string) error {
	if err := checkName("pool", name); err != nil {
		return err
	}
	return c.admin.createDataPool(ctx, name)
}

// RemovePool removes a pool and all that is in it.
func (c *Cluster) RemovePool(ctx context.Context, name string) error {
	return c.admin.removePool(ctx, name)
}

// CreateNamespace makes a RADOS namespace in a replicated pool.
func (c *Cluster) CreateNamespace(ctx context.Context, pool, namespace string) error {
	if err := checkName("namespace", namespace); err != nil {
		return err
	}
	return c.admin.createNamespace(ctx, pool, namespace)
}

// WaitHealthy waits until the manager is active, all OSDs are up, all placement groups are
// active and clean and the cluster says HEALTH_OK.
func (c *Cluster) WaitHealthy(ctx context.Context) error { return c.admin.awaitHealth(ctx, 0) }

// Caps are what a user may do, one text for each kind of daemon; an empty one grants nothing.
type Caps struct{ Mon, OSD, Mgr string }

// ProfileRBD returns the capabilities that the driver's users have: "profile rbd" for
// the pools, each as POOL or POOL/NAMESPACE; for all pools if none is named.
func ProfileRBD(pools ...string) Caps {
	if len(pools) == 0 {
		return Caps{Mon: "profile rbd", OSD: "profile rbd", Mgr: "profile rbd"}
	}
	grants := make([]string, len(pools))
	for i, place := range pools {
		pool, namespace, found := strings.Cut(place, "/")
		grants[i] = "profile rbd pool=" + pool
		if found {
			grants[i] += " namespace=" + namespace
		}
	}
	all := strings.Join(grants, ", ")
	return Caps{Mon: "profile rbd", OSD: all, Mgr: all}
}

// AddUser makes client.NAME with the capabilities and returns its key. A user that exists must
// have the same capabilities.
func (c *Cluster) AddUser(ctx context.Context, name string, caps Caps) (key string, err error) {
	if err := checkName("user", name); err != nil {
		return "", err
	}
	args := []string{"auth", "get-or-create-key", "client." + name}
	for _, grant := range []setting{{"mon", caps.Mon}, {"osd", caps.OSD}, {"mgr", caps.Mgr}} {
		if grant.value != "" {
			args = append(args, grant.name, grant.value)
		}
	}
	if c.admin.keyType != "" {
		args = append(args, "--key_type", c.admin.keyType)
	}
	text, err := c.Ceph(ctx, args...)
	return strings.TrimSpace(text), err
}

// ClusterDir writes the directory from which the driver reads a cluster, with `ceph.conf` (the
// monitors and nothing else) and `keyring` (that user's), and returns its path. The user
// exists, as "admin" does.
func (c *Cluster) ClusterDir(ctx context.Context, user string) (string, error) {
	if err := checkName("user", user); err != nil {
		return "", err
	}
	key, err := c.Ceph(ctx, "auth", "print-key", "client."+user)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(c.Dir(), clustersDir, user)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	ring := keyring(false, entity{name: "client." + user, key: strings.TrimSpace(key)})
	if err := os.WriteFile(filepath.Join(dir, keyringFile), []byte(ring), 0o600); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, confFile), []byte(clientConf(c.FSID(), c.Monitors())), 0o644)
}
