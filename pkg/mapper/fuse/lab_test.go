//go:build cgo

package fuse_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

// A lab is a pool of a real cluster, and a directory for mappings.
type lab struct {
	*ceph.Cluster
	user      params.Credentials
	stranger  params.Credentials // may connect and see no pool
	conn      *rados.Conn        // of the administrator
	ioctx     *rados.IOContext
	poolID    int64
	directory string
}

// newLab returns a pool of the cluster that all tests share. After the test it checks that
// nothing is left of it.
func newLab(t *testing.T) *lab {
	t.Helper()
	needRoot(t)
	return newLabOn(t, shared.ForTest(t, ceph.Options{}))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for mounts and loop devices")
	}
	if err := fuse.New(fuse.Options{}).Check(t.Context()); err != nil {
		t.Skipf("needs FUSE and loop devices: %v", err)
	}
}

func newLabOn(t *testing.T, cluster *ceph.Cluster) *lab {
	t.Helper()
	l := &lab{Cluster: cluster, directory: filepath.Join(t.TempDir(), "run")}
	l.user = l.addUser(t, ceph.ProfileRBD(l.Pool()))
	// Without any permission of the OSDs, a client of Ceph 20 waits for ever, the command rbd as well.
	l.stranger = l.addUser(t, ceph.Caps{Mon: "allow r", OSD: "profile rbd pool=another"})
	l.connect(t)
	t.Cleanup(func() {
		if !l.nothingLeft(t) {
			l.sweep(t)
		}
	})
	return l
}

func (l *lab) connect(t *testing.T) {
	t.Helper()
	conn, err := rados.NewConnWithUser("admin")
	must(t, err)
	must(t, conn.ReadConfigFile(l.Conf()))
	must(t, conn.SetConfigOption("keyring", l.AdminKeyring()))
	must(t, conn.Connect())
	t.Cleanup(conn.Shutdown)
	l.conn = conn
	l.ioctx, err = conn.OpenIOContext(l.Pool())
	must(t, err)
	t.Cleanup(l.ioctx.Destroy)
	l.poolID, err = conn.GetPoolByName(l.Pool())
	must(t, err)
}

// addUser makes a user whose name no other test has.
func (l *lab) addUser(t *testing.T, caps ceph.Caps) params.Credentials {
	t.Helper()
	name := fmt.Sprintf("user%d-%s", users.Add(1), l.Pool())
	key, err := l.AddUser(t.Context(), name, caps)
	must(t, err)
	t.Cleanup(func() { l.ceph(t, "auth", "rm", "client."+name) })
	return params.Credentials{User: name, Key: params.NewSecret(key)}
}

var users, images atomic.Int64

// ceph runs a command as the administrator.
func (l *lab) ceph(t *testing.T, arguments ...string) {
	t.Helper()
	_, err := l.Ceph(context.WithoutCancel(t.Context()), arguments...)
	must(t, err)
}

func run(t *testing.T, name string, arguments ...string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), name, arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(arguments, " "), err, output)
	}
	return strings.TrimSpace(string(output))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) mapper() *fuse.Mapper {
	return fuse.New(fuse.Options{Directory: l.directory, Launch: launch})
}

// image makes an image as the driver makes them, and removes it after the test.
func (l *lab) image(t *testing.T, bytes int64) mapper.Request {
	t.Helper()
	name := fmt.Sprintf("image %d?x,#%d", os.Getpid(), images.Add(1)) // as odd as a name may be
	options := rbd.NewRbdImageOptions()
	defer options.Destroy()
	must(t, options.SetUint64(rbd.ImageOptionFeatures,
		rbd.FeatureLayering|rbd.FeatureExclusiveLock|rbd.FeatureObjectMap|rbd.FeatureFastDiff|rbd.FeatureDeepFlatten))
	must(t, rbd.CreateImage(l.ioctx, name, uint64(bytes), options))
	t.Cleanup(func() { l.removeImage(t, name) })
	return l.request(t, name)
}

func (l *lab) request(t *testing.T, name string) mapper.Request {
	t.Helper()
	image, err := rbd.OpenImageReadOnly(l.ioctx, name, rbd.NoSnapshot)
	must(t, err)
	defer func() { _ = image.Close() }()
	id, err := image.GetId()
	must(t, err)
	return mapper.Request{
		Target: mapper.Target{
			Image: volid.Image{Pool: volid.Pool{Cluster: "a", Pool: l.Pool()}, Name: name},
			FSID:  l.FSID(), PoolID: l.poolID, ImageID: id,
		},
		Access: cluster.Access{Cluster: "a", Conf: l.Conf(), Credentials: l.user},
	}
}

// removeImage removes an image. A worker that was killed would keep it for 30 s by its
// watch; blocklisting it ends that at once.
func (l *lab) removeImage(t *testing.T, name string) {
	t.Helper()
	eventually(t, "remove image "+name, func() error {
		err := rbd.RemoveImage(l.ioctx, name)
		if err != nil {
			for _, watcher := range l.watchers(t, name) {
				l.ceph(t, "osd", "blocklist", "add", watcher)
			}
		}
		return err
	})
}

// watchers returns the addresses of an image's watchers, as `rbd status` shows them.
func (l *lab) watchers(t *testing.T, name string) []string {
	t.Helper()
	image, err := rbd.OpenImageReadOnly(l.ioctx, name, rbd.NoSnapshot)
	must(t, err)
	defer func() { must(t, image.Close()) }()
	watchers, err := image.ListWatchers()
	must(t, err)
	var addresses []string
	for _, watcher := range watchers {
		addresses = append(addresses, watcher.Addr)
	}
	return addresses
}

// patience bounds what is waited for; a killed client is watched for 30 s.
const patience = 60 * time.Second

// eventually repeats until it succeeds, and reports whether it did.
func eventually(t *testing.T, what string, try func() error) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return true
		}
		select {
		case <-ctx.Done():
			t.Errorf("%s: got %v for %s, want no error", what, err, patience)
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (l *lab) resize(t *testing.T, request mapper.Request, bytes int64) {
	t.Helper()
	image, err := rbd.OpenImage(l.ioctx, request.Target.Image.Name, rbd.NoSnapshot)
	must(t, err)
	defer func() { must(t, image.Close()) }()
	must(t, image.Resize(uint64(bytes)))
}

func (l *lab) content(t *testing.T, request mapper.Request, offset, length int64) []byte {
	t.Helper()
	image, err := rbd.OpenImageReadOnly(l.ioctx, request.Target.Image.Name, rbd.NoSnapshot)
	must(t, err)
	defer func() { must(t, image.Close()) }()
	data := make([]byte, length)
	_, err = image.ReadAt(data, offset)
	must(t, err)
	return data
}

// objects counts the data objects of an image.
func (l *lab) objects(t *testing.T, request mapper.Request) int {
	t.Helper()
	count := 0
	prefix := "rbd_data." + request.Target.ImageID + "."
	must(t, l.ioctx.ListObjects(func(oid string) {
		if strings.HasPrefix(oid, prefix) {
			count++
		}
	}))
	return count
}

// place is the folder of a mapping.
func (l *lab) place(request mapper.Request) string {
	return filepath.Join(l.directory, fmt.Sprintf("%s.%d.%s", l.FSID(), l.poolID, request.Target.ImageID))
}

// workers returns the worker processes that are children of this test or orphans of it.
func workers(t *testing.T) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	var pids []int
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil || !strings.HasSuffix(string(content), "\x00"+workerArgument+"\x00") {
			continue
		}
		self, _ := os.Readlink("/proc/self/exe")
		if exe, _ := os.Readlink(filepath.Join(filepath.Dir(file), "exe")); exe != self {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		must(t, err)
		pids = append(pids, pid)
	}
	return pids
}

// fence kills the worker of an image and has the cluster forget it at once. Otherwise its
// lock holds the next writer up for the 30 s that its watch lasts.
func (l *lab) fence(t *testing.T, device mapper.Device) {
	t.Helper()
	l.kill(t, mapper.Request{Target: device.Target})
	l.ceph(t, "osd", "blocklist", "add", device.Client)
}

// refusing makes an image with a data pool of its own, which refuse removes. librbd may not notice it but by
// what it writes: its header, its lock and its object map are in the other pool.
func (l *lab) refusing(t *testing.T, bytes int64) (request mapper.Request, refuse func(mapper.Device)) {
	t.Helper()
	headers, data := l.Pool()+"-headers", l.Pool()+"-data"
	for _, pool := range []string{headers, data} {
		must(t, l.CreatePool(t.Context(), pool))
		t.Cleanup(func() { must(t, l.RemovePool(context.WithoutCancel(t.Context()), pool)) })
	}
	other := *l
	var err error
	other.ioctx, err = l.conn.OpenIOContext(headers)
	must(t, err)
	t.Cleanup(other.ioctx.Destroy)
	other.poolID, err = l.conn.GetPoolByName(headers)
	must(t, err)
	other.user = l.addUser(t, ceph.ProfileRBD(headers, data))
	const name = "refusing"
	_, err = l.RBD(t.Context(), "create", headers+"/"+name, "--size", fmt.Sprintf("%dB", bytes), "--data-pool", data)
	must(t, err)
	request = other.request(t, name)
	request.Target.Image.Pool.Pool = headers
	return request, func(mapper.Device) { must(t, l.RemovePool(t.Context(), data)) }
}

// kill kills the worker of an image and waits until it is gone.
func (l *lab) kill(t *testing.T, request mapper.Request) {
	t.Helper()
	pid := status(t, l, request).PID
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	must(t, unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
	ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for ended[0].Revents == 0 {
		if _, err := unix.Poll(ended, int(patience.Milliseconds())); err != nil && err != unix.EINTR {
			must(t, err)
		}
	}
}

// loops returns the loop devices of mappings in the lab's directory. They are asked by the
// name that was given to them, because a path changes when it is unmounted.
func (l *lab) loops(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop")
	must(t, err)
	var found []string
	for _, file := range files {
		path := "/dev/" + filepath.Base(filepath.Dir(file))
		device, err := os.Open(path)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
		if err == nil {
			name := unix.ByteSliceToString(info.File_name[:])
			if strings.HasPrefix(l.directory+"/", name) || strings.HasPrefix(name, l.directory) {
				found = append(found, path)
			}
		}
		_ = device.Close()
	}
	return found
}

// nothingLeft checks for loop devices, mounts, processes and folders.
func (l *lab) nothingLeft(t *testing.T) bool {
	t.Helper()
	return eventually(t, "look for what is left", func() error {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(l.directory))
		if err != nil {
			return err
		}
		if len(mounts) > 0 {
			return fmt.Errorf("%d mounts, the first is %s", len(mounts), mounts[0].Mountpoint)
		}
		if loops := l.loops(t); len(loops) > 0 {
			return fmt.Errorf("loop devices %q", loops)
		}
		if pids := workers(t); len(pids) > 0 {
			return fmt.Errorf("workers %v", pids)
		}
		folders, err := os.ReadDir(l.directory)
		if len(folders) > 0 {
			return fmt.Errorf("folders %v, %w", folders, err)
		}
		return nil
	})
}

// sweep removes what a failed test left, so that the tests after it do not fail for it.
func (l *lab) sweep(t *testing.T) {
	t.Helper()
	for _, pid := range workers(t) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	for _, path := range l.loops(t) {
		if device, err := os.Open(path); err == nil {
			_ = unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0)
			_ = device.Close()
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(l.directory))
	must(t, err)
	for _, mount := range mounts {
		_ = unix.Unmount(mount.Mountpoint, unix.MNT_DETACH)
	}
	eventually(t, "sweep", func() error {
		if pids := workers(t); len(pids) > 0 {
			return fmt.Errorf("workers %v", pids)
		}
		return nil
	})
}
