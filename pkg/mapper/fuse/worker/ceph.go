//go:build cgo

package worker

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ceph/go-ceph/rados"
	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
)

// cephImage is an open image of librbd with the connection that is its alone, so that
// the cluster can shut this one device out.
type cephImage struct {
	librbdImage
	connection *rados.Conn
	pool       *rados.IOContext
	header     string // the name of the header object
}

// openImage connects and opens the image by its ID. librbd takes the exclusive lock at the
// first write. What stays open after an error goes with the process.
func openImage(order fuse.Order, at *step) (opened, error) {
	at.set("read the settings")
	connection, err := configure(order)
	if err != nil {
		return opened{}, err
	}
	at.set("connect as client." + order.Credentials.User)
	if err := connect(connection, order); err != nil {
		return opened{}, err
	}
	pool, err := openPool(connection, order)
	if err != nil {
		return opened{}, err
	}
	at.set("open image " + order.Target.Image.String())
	image, err := openOrdered(pool, order)
	if err != nil {
		return opened{}, err
	}
	addresses, err := connection.GetAddrs()
	if err != nil {
		return opened{}, fmt.Errorf("read the client's address: %w: %w", fault.Unavailable, err)
	}
	client, err := fuse.Blocklistable(addresses)
	if err != nil {
		return opened{}, err
	}
	header := "rbd_header." + order.Target.ImageID
	return opened{&cephImage{image, connection, pool, header}, client}, nil
}

// settings are those of librados and librbd that hold whatever ceph.conf says.
func settings(order fuse.Order) []mapper.Setting {
	// Whole seconds; the order's own limit is kept elsewhere.
	seconds := strconv.Itoa(max(1, int(order.Timeout/time.Second)))
	return []mapper.Setting{
		{Key: "keyring", Value: "/dev/null"}, // the key below counts, whatever lies about on the node
		{Key: "client_mount_timeout", Value: seconds},
		{Key: "rados_mon_op_timeout", Value: "30"},
		// I/O waits for as long as the cluster needs: a write that timed out could still be
		// applied later, over a newer one.
		{Key: "rados_osd_op_timeout", Value: "0"},
		// Zero depends on it: rbd_writesame of zeros frees the space.
		{Key: "rbd_discard_on_zeroed_write_same", Value: "true"},
		{Key: "admin_socket", Value: ""}, // it would show the key
		{Key: "log_to_stderr", Value: "false"},
		{Key: "err_to_stderr", Value: "false"},
	}
}

func configure(order fuse.Order) (*rados.Conn, error) {
	connection, err := rados.NewConnWithUser(order.Credentials.User)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w: %w", fault.Unavailable, err)
	}
	if err := readSettings(connection, order.Settings); err != nil {
		return nil, fmt.Errorf("read ceph.conf of cluster %s: %w: %w", order.Target.Image.Cluster, fault.Unavailable, err)
	}
	if order.Monitors != "" {
		if err := connection.SetConfigOption("mon_host", order.Monitors); err != nil {
			return nil, fmt.Errorf("monitors %q: %w: %w", order.Monitors, fault.Unavailable, err)
		}
	}
	for _, s := range append(settings(order), mapper.HonestWrites()...) {
		if err := connection.SetConfigOption(s.Key, s.Value); err != nil {
			return nil, fmt.Errorf("set %s: %w: %w", s.Key, fault.Unsupported, err)
		}
	}
	for _, option := range order.Options {
		key, value, _ := strings.Cut(option, "=")
		if err := connection.SetConfigOption(key, value); err != nil {
			return nil, fmt.Errorf("option %q: librbd does not take it: %w: %w", option, fault.Invalid, err)
		}
	}
	if err := connection.SetConfigOption("key", order.Credentials.Key.Reveal()); err != nil {
		return nil, fmt.Errorf("key of client.%s: %w", order.Credentials.User, fault.Unauthenticated)
	}
	return connection, nil
}

// readSettings has librados read the text of a ceph.conf. It only takes a path
// (rados_conf_read_file), so the text is put into a file without a name, even an empty one:
// librados logs to standard error until it has read a file.
func readSettings(connection *rados.Conn, text string) error {
	fd, err := unix.MemfdCreate("ceph.conf", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "ceph.conf")
	defer func() { _ = file.Close() }()
	if _, err := file.WriteString(text); err != nil {
		return err
	}
	return connection.ReadConfigFile("/proc/self/fd/" + strconv.Itoa(fd))
}

// connectKinds: EACCES is what the monitors say to a wrong key and to an unknown user,
// EINVAL what librados says to a key that is none. ENOENT means that no monitor is
// known, which is not "not found".
var connectKinds = map[unix.Errno]fault.Kind{
	unix.EACCES: fault.Unauthenticated,
	unix.EPERM:  fault.Unauthenticated,
	unix.EINVAL: fault.Unauthenticated,
}

// connect also makes sure that this is the cluster that was meant.
func connect(connection *rados.Conn, order fuse.Order) error {
	if err := connection.Connect(); err != nil {
		return fmt.Errorf("connect to cluster %s as client.%s: %w: %w",
			order.Target.Image.Cluster, order.Credentials.User, kindOf(err, connectKinds), err)
	}
	fsid, err := connection.GetFSID()
	if err != nil {
		return fmt.Errorf("read the fsid of cluster %s: %w: %w", order.Target.Image.Cluster, fault.Unavailable, err)
	}
	if fsid != order.Target.FSID {
		return fmt.Errorf("cluster %s is %s and the image belongs to %s: %w",
			order.Target.Image.Cluster, fsid, order.Target.FSID, fault.Invalid)
	}
	return nil
}

var openKinds = map[unix.Errno]fault.Kind{
	unix.ENOENT:     fault.NotFound,
	unix.EPERM:      fault.Denied,
	unix.EACCES:     fault.Denied,
	unix.ENOSYS:     fault.Unsupported,
	unix.EOPNOTSUPP: fault.Unsupported,
}

// openPool opens the pool by its ID: its name may be another one by now.
func openPool(connection *rados.Conn, order fuse.Order) (*rados.IOContext, error) {
	name, err := connection.GetPoolByID(order.Target.PoolID)
	if err != nil {
		return nil, fmt.Errorf("pool %d: %w: %w", order.Target.PoolID, kindOf(err, openKinds), err)
	}
	pool, err := connection.OpenIOContext(name)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w: %w", name, kindOf(err, openKinds), err)
	}
	pool.SetNamespace(order.Target.Image.Namespace)
	return pool, nil
}

// openOrdered opens the image of an order, and makes sure that it is that one.
func openOrdered(pool *rados.IOContext, order fuse.Order) (librbdImage, error) {
	image, err := openByID(pool, order.Target.ImageID, order.ReadOnly)
	if err != nil {
		return librbdImage{}, fmt.Errorf("open image %s, ID %s: %w: %w",
			order.Target.Image, order.Target.ImageID, kindOf(err, openKinds), err)
	}
	id, err := image.id()
	if err != nil || id != order.Target.ImageID {
		return librbdImage{}, fmt.Errorf("open image %s: it has the ID %q and %q is wanted: %w: %w",
			order.Target.Image, id, order.Target.ImageID, fault.Unavailable, err)
	}
	return image, nil
}

func kindOf(err error, kinds map[unix.Errno]fault.Kind) fault.Kind {
	if kind, ok := kinds[errno(err)]; ok {
		return kind
	}
	return fault.Unavailable
}

// Probe looks at the image's header object (rados_stat): one operation.
func (c *cephImage) Probe() error {
	_, err := c.pool.Stat(c.header)
	return err
}

// Close closes the image (rbd_close) and the connection.
func (c *cephImage) Close() error {
	err := c.close()
	c.pool.Destroy()
	c.connection.Shutdown()
	return err
}
