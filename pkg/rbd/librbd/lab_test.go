package librbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

// shared is the Ceph of most tests here.
var shared = ceph.Share(ceph.Options{ProposeInterval: 50 * time.Millisecond})

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

// A lab is a real Ceph with what the tests here need: pools of the test's own, a
// namespace, users, and a directory in which the driver finds it.
type lab struct {
	*ceph.Cluster
	tools
	directory cluster.Directory
	name      string // of the cluster in the directory
}

const (
	labPool      = "kube"
	labOther     = "other"
	labNamespace = "team"
	labData      = "ec"
	labUser      = "driver"
)

// newLab returns pools on the shared cluster.
func newLab(t *testing.T) *lab {
	t.Helper()
	return labOn(t, shared.ForTest(t, ceph.Options{
		Pools: []string{labPool, labOther}, DataPool: labData, Namespaces: map[string][]string{labPool: {labNamespace}},
	}))
}

// ownLab returns a cluster for one test alone, which may break it.
func ownLab(t *testing.T, options ceph.Options) *lab {
	t.Helper()
	options.Pools = []string{labPool}
	options.ProposeInterval = 50 * time.Millisecond
	return labOn(t, ceph.ForTest(t, options))
}

func labOn(t *testing.T, c *ceph.Cluster) *lab {
	t.Helper()
	l := &lab{Cluster: c, tools: tools{dataPool: c.DataPool(), conf: c.Conf()}}
	l.user(t, labUser, ceph.ProfileRBD())
	home, err := c.ClusterDir(t.Context(), labUser)
	if err != nil {
		t.Fatal(err)
	}
	l.directory, l.name = cluster.Directory(filepath.Dir(home)), filepath.Base(home)
	if l.conn, err = rados.NewConn(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.conn.ReadConfigFile(c.Conf()), l.conn.Connect()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.conn.Shutdown)
	return l
}

// addBadData adds an erasure-coded pool that differs from the data pool only in
// that it cannot overwrite, and returns its name.
func (l *lab) addBadData(t *testing.T) string {
	t.Helper()
	name := l.DataPool() + "-plain"
	value := func(option string) string {
		_, value, _ := strings.Cut(l.run(t, "osd", "pool", "get", l.DataPool(), option), ": ")
		return value
	}
	l.run(t, "osd", "pool", "create", name, "8", "8", "erasure", value("erasure_code_profile"), value("crush_rule"))
	t.Cleanup(func() {
		if err := l.RemovePool(context.WithoutCancel(t.Context()), name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// run runs the command ceph as administrator.
func (l *lab) run(t *testing.T, args ...string) string {
	t.Helper()
	output, err := l.Ceph(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(output)
}

// place returns the test's pool, and namespace its namespace.
func (l *lab) place() volid.Pool { return volid.Pool{Cluster: l.name, Pool: l.Pool()} }

func (l *lab) namespace() volid.Pool {
	return volid.Pool{Cluster: l.name, Pool: l.Pool(), Namespace: labNamespace}
}

// other returns another pool.
func (l *lab) other() volid.Pool { return volid.Pool{Cluster: l.name, Pool: l.Pools()[1]} }

// user makes a user and returns its credentials.
func (l *lab) user(t *testing.T, name string, caps ceph.Caps) params.Credentials {
	t.Helper()
	key, err := l.AddUser(t.Context(), name, caps)
	if err != nil {
		t.Fatal(err)
	}
	return params.Credentials{User: name, Key: params.NewSecret(key)}
}

// clusters returns an adapter that is closed when the test ends.
func (l *lab) clusters(t *testing.T, options Options) *Clusters {
	t.Helper()
	c := New(l.directory, options)
	t.Cleanup(func() { closeIt(t, c) })
	return c
}

func closeIt(t *testing.T, c *Clusters) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
}

// open returns a place as a new process sees it.
func (l *lab) open(t *testing.T, place volid.Pool) *pool {
	t.Helper()
	opened, err := l.clusters(t, Options{}).Pool(t.Context(), place, params.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	return opened.(*pool)
}

// until waits for a condition and fails the test with what otherwise is the case. It waits for
// longer than librbd does before it asks for a lock again, see member.lock.
func until(t *testing.T, condition func() bool, otherwise func() string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(otherwise())
		}
	}
}

// tools are rbdtest.Tools on a real Ceph.
type tools struct {
	conn     *rados.Conn // as administrator
	dataPool string
	conf     string // the path of its ceph.conf
}

var _ rbdtest.Tools = tools{}

// context opens a place; the caller destroys it.
func (l tools) context(place volid.Pool) (at, error) {
	io, err := l.conn.OpenIOContext(place.Pool)
	if err != nil {
		return at{}, err
	}
	io.SetNamespace(place.Namespace)
	return at{IOContext: io}, nil
}

// in does something in a place.
func (l tools) in(place volid.Pool, call func(at) error) error {
	a, err := l.context(place)
	if err != nil {
		return err
	}
	defer a.Destroy()
	return call(a)
}

// image does something with an open image.
func (l tools) image(image volid.Image, call func(at, *cephrbd.Image) error) error {
	return l.in(image.Pool, func(a at) error {
		opened, err := cephrbd.OpenImage(a.IOContext, image.Name, cephrbd.NoSnapshot)
		if err != nil {
			return fmt.Errorf("open %s: %w", image, err)
		}
		err = call(a, opened)
		if closed := opened.Close(); err == nil {
			err = closed
		}
		return err
	})
}

func (l tools) Create(image volid.Image, layout rbd.Layout) (id string, err error) {
	options := imageOptions(layout.Features)
	defer options.Destroy()
	order := uint64(0)
	for 1<<order < layout.ObjectBytes {
		order++
	}
	_ = options.SetUint64(cephrbd.ImageOptionOrder, order)
	if layout.StripeCount > 1 {
		_ = options.SetUint64(cephrbd.ImageOptionStripeUnit, uint64(layout.StripeUnit))
		_ = options.SetUint64(cephrbd.ImageOptionStripeCount, uint64(layout.StripeCount))
	}
	if layout.DataPool != "" {
		_ = options.SetString(cephrbd.ImageOptionDataPool, layout.DataPool)
	}
	err = l.in(image.Pool, func(a at) error {
		if err := cephrbd.CreateImage(a.IOContext, image.Name, uint64(layout.Bytes), options); err != nil {
			return err
		}
		id, err = a.text(idPrefix+image.Name, "get_id", nil)
		return err
	})
	return id, err
}

func imageOptions(features rbd.Features) *cephrbd.ImageOptions {
	options := cephrbd.NewRbdImageOptions()
	_ = options.SetUint64(cephrbd.ImageOptionFeatures, uint64(features&^(rbd.StripingV2|rbd.DataPool)))
	return options
}

func (l tools) Snapshot(image volid.Image, snapshot string) error {
	return l.image(image, func(_ at, i *cephrbd.Image) error {
		_, err := i.CreateSnapshot(snapshot)
		return err
	})
}

func (l tools) RemoveSnapshots(image volid.Image) error {
	return l.image(image, func(_ at, i *cephrbd.Image) error { return removeSnapshots(i) })
}

func removeSnapshots(image *cephrbd.Image) error {
	snapshots, err := image.GetSnapshotNames()
	if err != nil {
		return err
	}
	for _, snapshot := range snapshots {
		if err := image.GetSnapshot(snapshot.Name).Remove(); err != nil {
			return err
		}
	}
	return nil
}

func (l tools) Clone(source volid.Image, name string) (id string, err error) {
	snapshot := "for-" + rbd.NewID()
	if err := l.Snapshot(source, snapshot); err != nil {
		return "", err
	}
	var features uint64
	err = l.image(source, func(_ at, i *cephrbd.Image) error {
		features, err = i.GetFeatures()
		return err
	})
	if err != nil {
		return "", err
	}
	options := imageOptions(rbd.Features(features) & knownFeatures)
	defer options.Destroy()
	_ = options.SetUint64(cephrbd.ImageOptionCloneFormat, 2)
	err = l.in(source.Pool, func(a at) error {
		if err := cephrbd.CloneImage(a.IOContext, source.Name, snapshot, a.IOContext, name, options); err != nil {
			return err
		}
		id, err = a.text(idPrefix+name, "get_id", nil)
		return err
	})
	return id, err
}

func (l tools) SetMeta(image volid.Image, key, value string) error {
	return l.image(image, func(_ at, i *cephrbd.Image) error { return i.SetMetadata(key, value) })
}

func (l tools) Write(image volid.Image) error {
	return l.image(image, func(_ at, i *cephrbd.Image) error {
		if _, err := i.WriteAt(slices.Repeat([]byte("d"), 4096), 0); err != nil {
			return err
		}
		return i.Flush()
	})
}

func (l tools) WriteAt(image volid.Image, offset int64, text string) error {
	return l.image(image, func(_ at, i *cephrbd.Image) error {
		if _, err := i.WriteAt([]byte(text), offset); err != nil {
			return err
		}
		return i.Flush()
	})
}

func (l tools) ReadAt(image volid.Image, offset int64, bytes int) (text string, err error) {
	data := make([]byte, bytes)
	err = l.image(image, func(_ at, i *cephrbd.Image) error {
		n, err := i.ReadAt(data, offset)
		data = data[:n]
		return err
	})
	return string(data), err
}

func (l tools) Discard(image volid.Image, offset, bytes int64) error {
	return l.image(image, func(_ at, i *cephrbd.Image) error {
		_, err := i.Discard(uint64(offset), uint64(bytes))
		return err
	})
}

func (l tools) RemoveIndex(place volid.Pool) error {
	return l.in(place, func(a at) error { return a.remove(index) })
}

func (l tools) Hold(image volid.Image) (release func(), err error) {
	a, err := l.context(image.Pool)
	if err != nil {
		return nil, err
	}
	held, err := cephrbd.OpenImage(a.IOContext, image.Name, cephrbd.NoSnapshot)
	if err != nil {
		return nil, err
	}
	features, err := held.GetFeatures()
	if err == nil && rbd.Features(features).Has(rbd.ExclusiveLock) {
		err = held.LockAcquire(cephrbd.LockModeExclusive)
	}
	return func() {
		_ = held.Close()
		a.Destroy()
	}, err
}

// Open implements rbdtest.Tools with a connection of the client's own.
func (l tools) Open(image volid.Image) (rbdtest.Client, error) {
	conn, err := rados.NewConn()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(conn.ReadConfigFile(l.conf), conn.Connect()); err != nil {
		return nil, err
	}
	client := &openClient{tools: tools{conn: conn}}
	if client.at, err = client.context(image.Pool); err != nil {
		return nil, err
	}
	if client.image, err = cephrbd.OpenImage(client.IOContext, image.Name, cephrbd.NoSnapshot); err != nil {
		return nil, err
	}
	addresses, err := conn.GetAddrs()
	client.address = rbd.ClientOf(addresses)
	return client, err
}

// openClient is a client that has an image open.
type openClient struct {
	tools
	at
	image   *cephrbd.Image
	address string
}

func (o *openClient) Address() string { return o.address }

func (o *openClient) Write(text string) error {
	_, err := o.image.WriteAt([]byte(text), 0)
	return errors.Join(err, o.image.Flush())
}

func (o *openClient) Close() {
	_ = o.image.Close()
	o.Destroy()
	o.tools.conn.Shutdown()
}

func (l tools) RemoveTrashedSnapshots(place volid.Pool, id string) error {
	return l.in(place, func(a at) error {
		image, err := cephrbd.OpenImageById(a.IOContext, id, cephrbd.NoSnapshot)
		if err != nil {
			return err
		}
		defer image.Close()
		return removeSnapshots(image)
	})
}

func (l tools) Trash(image volid.Image) error {
	return l.in(image.Pool, func(a at) error { return cephrbd.GetImage(a.IOContext, image.Name).Trash(0) })
}

func (l tools) HalfTrash(image volid.Image) error {
	return l.in(image.Pool, func(a at) error {
		id, err := a.text(idPrefix+image.Name, "get_id", nil)
		if err != nil {
			return err
		}
		return a.write(trash, func(op *writeOp) {
			now := time.Now()
			op.exec(class, "trash_add", new(writer).text(id).versioned(2, func(w *writer) {
				w.u8(trashUser).text(image.Name).time(now).time(now).u8(trashMoving)
			}).bytes)
		})
	})
}

func (l tools) HalfPurge(place volid.Pool, id string, step int) error {
	return l.in(place, func(a at) error {
		if err := a.remove(headerPrefix + id); err != nil || step == 1 {
			return err
		}
		return a.remove(mapPrefix + id)
	})
}

// MapObjects reads what rbd.object_map_load answers: a BitVector, which begins with
// a header that holds the number of entries.
func (l tools) MapObjects(place volid.Pool, id string) (objects int64, err error) {
	err = l.in(place, func(a at) error {
		answer, err := a.ask(mapPrefix+id, "object_map_load", nil)
		if err != nil {
			return err
		}
		answer.u32() // length of the header
		answer.versioned(func(_ uint8, r *reader) { objects = int64(r.u64()) })
		return answer.err
	})
	return objects, err
}

func (l tools) Objects(place volid.Pool) (lines []string, err error) {
	for _, name := range []string{place.Pool, l.dataPool} {
		err := l.in(volid.Pool{Pool: name, Namespace: place.Namespace}, func(a at) error {
			found, err := a.objects(name == place.Pool)
			lines = append(lines, found...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}

// objects lists a pool; in a data pool there are only data objects of ours. Those
// that only snapshots hold are left out: when the last is removed the OSDs remove
// them in their own time.
func (a at) objects(all bool) (lines []string, err error) {
	var data []string
	err = a.ListObjects(func(object string) {
		if strings.HasPrefix(object, dataPrefix) {
			data = append(data, object)
			return
		}
		for _, prefix := range []string{idPrefix, headerPrefix, mapPrefix, overwriteCheck} {
			if strings.HasPrefix(object, prefix) {
				lines = append(lines, object)
			}
		}
	})
	for _, object := range data {
		if _, gone := a.Stat(object); gone == nil {
			parts := strings.Split(object, ".") // rbd_data.[pool.]ID.number
			lines = append(lines, dataPrefix+parts[len(parts)-2])
		}
	}
	if err != nil || !all {
		return lines, err
	}
	entries, err := a.ask(directory, "dir_list", new(writer).text("").u64(pageSize).bytes)
	if err == nil {
		for range entries.count() {
			lines = append(lines, fmt.Sprintf("rbd_directory %s %s", entries.text(), entries.text()))
		}
	}
	trashed, err := a.trashPage("")
	for _, entry := range trashed {
		lines = append(lines, fmt.Sprintf("rbd_trash %s %s", entry.ID, entry.Name))
	}
	return lines, err
}
