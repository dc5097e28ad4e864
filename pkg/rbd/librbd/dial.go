package librbd

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// dial makes a connection and returns the cluster's FSID with it. When that fails
// without a reason it finds out why: one monitor that is down is enough for librados to
// forget that the others refused the key. It then goes on asking until the time is
// up (ETIMEDOUT), or says that nothing was found (ENOENT).
func dial(access cluster.Access, options Options) (*rados.Conn, string, error) {
	who := "connect to cluster " + access.Cluster + " as client." + access.User
	if err := checkKey(access.Key.Reveal()); err != nil {
		return nil, "", fmt.Errorf("%s: %w: %w", who, fault.Unauthenticated, err)
	}
	conn, hosts, err := attempt(access, options.Connect, options.Operation, "")
	switch {
	case hasKind(err):
	case is(err, syscall.ETIMEDOUT), is(err, syscall.ENOENT) && hosts != "":
		conn, err = dialEach(access, options, hosts)
	case err != nil:
		err = refused(err)
	}
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", who, err)
	}
	fsid, err := conn.GetFSID()
	if err != nil {
		conn.Shutdown()
		return nil, "", fmt.Errorf("%s: ask for the FSID: %w", who, classified(err))
	}
	return conn, fsid, nil
}

// addressOf returns the connection's address as a blocklist names it (rados_getaddrs). It closes a
// connection that has none.
func addressOf(conn *rados.Conn) (string, error) {
	addresses, err := conn.GetAddrs()
	if err != nil {
		conn.Shutdown()
		return "", fmt.Errorf("ask for the client's address: %w", classified(err))
	}
	return rbd.ClientOf(addresses), nil
}

// attempt connects once, to the cluster's monitors or to the one given. It
// also returns the option mon_host. An error without a kind is that of rados_connect.
func attempt(access cluster.Access, connect, operation time.Duration, host string) (*rados.Conn, string, error) {
	conn, err := rados.NewConnWithUser(access.User)
	if err != nil {
		return nil, "", fmt.Errorf("%w: make a client: %w", fault.Unavailable, err)
	}
	err = configure(conn, access, connect, operation, host)
	hosts, _ := conn.GetConfigOption("mon_host")
	if err == nil {
		err = conn.Connect()
	}
	if err != nil {
		discard(conn)
		return nil, hosts, err
	}
	return conn, hosts, nil
}

// configure reads ceph.conf and sets what a client of this driver needs
// whatever stands in there. The key is set here, in memory, and no keyring is
// read.
func configure(conn *rados.Conn, access cluster.Access, connect, operation time.Duration, host string) error {
	// Before it has read a file librados logs to standard error, whatever is set below (seen
	// with 16.2), so without a ceph.conf it reads one with nothing in it.
	conf := cmp.Or(access.Conf, os.DevNull)
	if err := conn.ReadConfigFile(conf); err != nil {
		return fmt.Errorf("%w: read %s: %w", fault.Unavailable, conf, err)
	}
	must := []struct{ option, value string }{
		{"keyring", ""}, {"keyfile", ""}, {"key", access.Key.Reveal()},
		{"client_mount_timeout", seconds(connect)},
		{"rados_mon_op_timeout", seconds(connect)},
		{"rados_osd_op_timeout", seconds(operation)},
		{"rbd_default_clone_format", "2"},
		// Not rbd_blocklist_expire_seconds: with 16.2 librbd fails to break a lock (EINVAL) when it is set, because
		// librados sends the number in quotes. So whose lock is broken is shut out for an hour only; see volume.KeepFences.
	}
	if host == "" {
		host = access.Monitors
	}
	if host != "" {
		must = append(must, struct{ option, value string }{"mon_host", host})
	}
	for _, one := range must {
		if err := conn.SetConfigOption(one.option, one.value); err != nil {
			// Not with the value: it may be the key.
			return fmt.Errorf("%w: set the option %s: %w", fault.Internal, one.option, err)
		}
	}
	for _, option := range append(frugal(), attentive()...) {
		// An option that this release does not know is one that it does not need.
		_ = conn.SetConfigOption(option[0], option[1])
	}
	return nil
}

// frugal are options that keep a client small and silent: no socket, no log, no
// cache, and as few threads as can be. This client only controls; it carries no
// data of volumes.
func frugal() [][2]string {
	options := [][2]string{
		{"admin_socket", ""}, {"log_file", ""}, {"log_to_file", "false"}, {"log_to_stderr", "false"},
		{"err_to_stderr", "false"}, {"log_to_syslog", "false"}, {"err_to_syslog", "false"},
		{"log_max_new", "100"}, {"log_max_recent", "1"}, {"mon_client_log_to_stderr", "false"},
		{"ms_async_op_threads", "1"}, {"librados_thread_count", "1"},
		{"rbd_cache", "false"}, {"rbd_op_threads", "1"}, {"perf", "false"},
	}
	for _, subsystem := range []string{
		"asok", "auth", "context", "finisher", "lockdep", "monc", "ms", "objecter", "perfcounter", "rados", "rbd", "striper",
		"throttle", "timer", "tp", "neorados", "objectcacher", "journaler", "mgrc",
	} {
		options = append(options, [2]string{"debug_" + subsystem, "0/0"})
	}
	return options
}

// attentive are options with which a client soon finds an OSD that was restarted. librados has the address of each OSD from the map of
// the cluster and, while it has nothing to do, no newer map: it tries the old address at intervals of up to 15 s (ms_max_backoff). That
// there might be a newer map it thinks of at a tick, of an operation without an answer for objecter_timeout (Objecter::tick), by
// default 5 and 10 s: requests that came 7 s after the OSD was killed were answered 15 s after it was back. A client that carries data
// pings whom it watches at every tick, and asks for the next map too; this one watches nothing for long.
func attentive() [][2]string {
	return [][2]string{{"objecter_tick_interval", "2"}, {"objecter_timeout", "2"}}
}

func seconds(d time.Duration) string {
	return strconv.FormatInt(int64(max(d, time.Second)/time.Second), 10)
}

// refused says what an error of rados_connect means. ENOENT is not "not found":
// it says that no monitor is known.
func refused(err error) error {
	switch number(err) {
	case syscall.EACCES, syscall.EPERM, syscall.EKEYREJECTED:
		return fmt.Errorf("%w: the monitors do not know the user or its key (compare with `ceph auth get`)", fault.Unauthenticated)
	case syscall.EOPNOTSUPP:
		return fmt.Errorf("%w: the monitors and this client agree on no way to authenticate", fault.Unauthenticated)
	case syscall.ENOENT:
		return fmt.Errorf("%w: neither ceph.conf (mon_host) nor mon-endpoints names a monitor", fault.Unavailable)
	case syscall.EINVAL:
		return fmt.Errorf("%w: the monitors' names in ceph.conf (mon_host) or mon-endpoints cannot be resolved, "+
			"or this release of Ceph does not know the key's type", fault.Unavailable)
	}
	return fmt.Errorf("%w: %w", fault.Unavailable, classified(err))
}

// dialEach asks those monitors one by one that answer at all.
func dialEach(access cluster.Access, options Options, hosts string) (*rados.Conn, error) {
	const (
		mostAsked = 3
		alone     = 2 * time.Second
	)
	ctx, cancel := context.WithTimeout(context.Background(), options.Connect)
	defer cancel()
	reached := answering(ctx, parseMonitors(hosts))
	if len(reached) == 0 {
		return nil, fmt.Errorf("%w: no monitor answers at %s", fault.Unavailable, hosts)
	}
	var names []string
	for _, one := range reached[:min(len(reached), mostAsked)] {
		conn, _, err := attempt(access, alone, options.Operation, one.entry)
		if err == nil {
			return conn, nil
		}
		if judged := refused(err); fault.Is(judged, fault.Unauthenticated) {
			return nil, judged
		}
		names = append(names, one.entry)
	}
	return nil, fmt.Errorf("%w: the monitors at %s answer and serve nobody, perhaps they have no quorum",
		fault.Unavailable, strings.Join(names, " "))
}
