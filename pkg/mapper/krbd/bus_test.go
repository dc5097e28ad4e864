package krbd

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

const (
	testFSID = "11111111-2222-3333-4444-555555555555"
	testPool = 7
)

// A bus is a kernel with rbd and a cluster behind it, whose sysfs is a folder. Its devices are
// hard links to the images' files. It takes the place of the process that writes.
type bus struct {
	t      *testing.T
	folder string

	mutex   sync.Mutex
	images  map[string]*busImage // by name
	devices map[int]*busDevice
	nonces  int
	users   map[string]string // keys by user
	may     map[string]bool   // who may open images
	orders  []Order
	// stuck keeps orders from ending, and a kill from ending their process: "" is none, otherwise
	// it is in their path. Killable lets a kill end it.
	stuck    string
	killable bool
	// after says that stuck orders have done their work when they get stuck.
	after bool
	thaw  chan struct{}
}

type busImage struct {
	id    string
	bytes int64
	errno unix.Errno // what mapping it ends with
	said  []string   // by the kernel
}

type busDevice struct {
	image *busImage
	file  string // the image's
	path  string
	dead  bool
	held  bool
}

func newBus(t *testing.T) *bus {
	t.Helper()
	b := &bus{
		t: t, folder: t.TempDir(),
		images: make(map[string]*busImage), devices: make(map[int]*busDevice),
		users: map[string]string{"kube": "a key", "stranger": "another key"}, may: map[string]bool{"kube": true},
		thaw: make(chan struct{}),
	}
	for _, folder := range []string{"sys/bus/rbd/devices", "sys/block", "dev", "images"} {
		b.check(os.MkdirAll(b.path(folder), 0o755))
	}
	b.file("sys/bus/rbd/supported_features", "0x1bf")
	b.file("sys/bus/rbd/add_single_major", "")
	b.file("mountinfo", "")
	return b
}

func (b *bus) path(name string) string { return filepath.Join(b.folder, name) }

func (b *bus) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Error(err)
	}
}

func (b *bus) file(name, content string) {
	b.check(os.WriteFile(b.path(name), []byte(content+"\n"), 0o600))
}

// kernel is what a mapper sees.
func (b *bus) kernel() kernel {
	return kernel{
		sys: b.path("sys"), dev: b.path("dev"), mountinfo: b.path("mountinfo"),
		release: func() string { return "6.1.0-test" }, root: func() bool { return true },
		keyrings: func() error { return nil },
		node: func(path string, _, _ int) error {
			_, err := os.Lstat(path)
			return err
		},
		writable: func(path string) error { return unix.Access(path, unix.W_OK) },
	}
}

func (b *bus) mapper() *Mapper {
	m := New(Options{Directory: b.path("locks"), Start: b.start})
	m.kernel = b.kernel()
	return m
}

// image makes an image and returns a request for it.
func (b *bus) image(bytes int64) mapper.Request {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	id := fmt.Sprintf("ab%d", len(b.images))
	name := "pvc-" + id
	b.images[name] = &busImage{id: id, bytes: bytes}
	return mapper.Request{
		Target: mapper.Target{
			Image: volid.Image{Pool: volid.Pool{Cluster: "main", Pool: "kube"}, Name: name},
			FSID:  testFSID, PoolID: testPool, ImageID: id,
		},
		Access: cluster.Access{
			Cluster: "main", Monitors: "[v2:10.0.0.1:3300,v1:10.0.0.1:6789]",
			Credentials: params.Credentials{User: "kube", Key: keyOf("a key")},
		},
	}
}

func keyOf(text string) params.Secret {
	return params.NewSecret(base64.StdEncoding.EncodeToString([]byte(text)))
}

func (b *bus) with(do func()) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	do()
}

// start is a [Start].
func (b *bus) start(orders []Order, _ *os.File) (Work, error) {
	results := make(chan Result, len(orders))
	killed := make(chan struct{})
	var all sync.WaitGroup
	b.with(func() { b.orders = append(b.orders, orders...) })
	for i, order := range orders {
		all.Go(func() {
			var result Result
			carryOut := func() { b.with(func() { result = b.carryOut(order) }) }
			if b.after {
				carryOut()
				carryOut = func() {}
			}
			if b.waits(order, killed) {
				return
			}
			carryOut()
			result.Index, result.Path = i, order.Path
			results <- result
		})
	}
	go func() {
		all.Wait()
		close(results)
	}()
	return Work{Results: results, Kill: sync.OnceFunc(func() { close(killed) })}, nil
}

// waits reports whether an order was killed before it did anything.
func (b *bus) waits(order Order, killed <-chan struct{}) bool {
	b.mutex.Lock()
	stuck, killable := b.stuck != "" && strings.Contains(order.Path, b.stuck), b.killable
	b.mutex.Unlock()
	if !stuck {
		return false
	}
	if !killable {
		killed = nil
	}
	select {
	case <-killed:
		return true
	case <-b.thaw:
		return false
	}
}

func (b *bus) carryOut(order Order) Result {
	failed := func(errno unix.Errno, said ...string) Result {
		return Result{Step: stepWrite, Errno: errno, Kernel: said}
	}
	switch name := filepath.Base(order.Path); name {
	case "add_single_major":
		return b.add(order, failed)
	case "remove_single_major":
		text, force := strings.CutSuffix(order.Text, " force")
		number, _ := strconv.Atoi(text)
		return failed(b.remove(number, force))
	case "refresh":
		number, _ := strconv.Atoi(filepath.Base(filepath.Dir(order.Path)))
		return failed(b.refresh(number))
	default:
		return failed(unix.ENOENT)
	}
}

func (b *bus) add(order Order, failed func(unix.Errno, ...string) Result) Result {
	fields := strings.Fields(order.Text)
	if len(fields) != 5 || fields[4] != headSnapshot {
		return failed(unix.EINVAL)
	}
	options := strings.Split(fields[1], ",")
	user := valueOf(options, "name")
	image, ok := b.images[fields[3]]
	switch {
	case valueOf(options, "key") != order.KeyName || !slices.Contains(options, "noshare"):
		return failed(unix.EPERM)
	case string(order.Key) != b.users[user]:
		return failed(unix.EACCES)
	case !b.may[user]:
		return failed(unix.EPERM)
	case !ok:
		return failed(unix.ENOENT)
	case image.errno != 0:
		return failed(image.errno, image.said...)
	}
	number := 0
	for b.devices[number] != nil {
		number++
	}
	b.appear(number, image, fields, options, order.Text)
	return Result{}
}

// appear makes the files of a device.
func (b *bus) appear(number int, image *busImage, fields, options []string, line string) {
	b.nonces++
	device := &busDevice{image: image, file: b.path("images/" + image.id), path: b.path(fmt.Sprintf("dev/rbd%d", number))}
	b.devices[number] = device
	b.resize(device)
	b.check(os.Link(device.file, device.path))
	folder := fmt.Sprintf("sys/bus/rbd/devices/%d", number)
	b.check(os.MkdirAll(b.path(folder), 0o755))
	b.check(os.MkdirAll(b.path(fmt.Sprintf("sys/block/rbd%d/holders", number)), 0o755))
	readOnly := "0"
	if slices.Contains(options, "ro") {
		readOnly = "1"
	}
	b.file(fmt.Sprintf("sys/block/rbd%d/ro", number), readOnly)
	for name, content := range map[string]string{
		"current_snap": "-", "major": "252", "minor": strconv.Itoa(number * 16),
		"client_addr":  fmt.Sprintf("10.0.0.9:0/%d", b.nonces),
		"cluster_fsid": testFSID, "pool_id": strconv.Itoa(testPool), "pool": fields[2], "pool_ns": valueOf(options, "_pool_ns"),
		"name": fields[3], "image_id": image.id, "config_info": line, "size": strconv.FormatInt(image.bytes, 10), "refresh": "",
	} {
		b.file(folder+"/"+name, content)
	}
}

func (b *bus) resize(device *busDevice) {
	file, err := os.OpenFile(device.file, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = file.Truncate(device.image.bytes)
		b.check(file.Close())
	}
	b.check(err)
}

func (b *bus) remove(number int, force bool) unix.Errno {
	device := b.devices[number]
	switch {
	case device == nil:
		return unix.ENOENT
	case device.held && !force:
		return unix.EBUSY
	}
	delete(b.devices, number)
	b.check(os.Remove(device.path))
	b.check(os.RemoveAll(b.path(fmt.Sprintf("sys/bus/rbd/devices/%d", number))))
	b.check(os.RemoveAll(b.path(fmt.Sprintf("sys/block/rbd%d", number))))
	return 0
}

func (b *bus) refresh(number int) unix.Errno {
	device := b.devices[number]
	switch {
	case device == nil:
		return unix.ENOENT
	case device.dead:
		return unix.ESHUTDOWN
	}
	b.resize(device)
	b.file(fmt.Sprintf("sys/bus/rbd/devices/%d/size", number), strconv.FormatInt(device.image.bytes, 10))
	return 0
}

// at does something to a device.
func (b *bus) at(device mapper.Device, do func(*busDevice)) {
	b.with(func() {
		number, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(device.Path), "rbd"))
		b.check(err)
		do(b.devices[number])
	})
}

// kill makes a device dead; its path cannot be opened any more.
func (b *bus) kill(device mapper.Device) {
	b.at(device, func(d *busDevice) {
		d.dead = true
		b.check(os.Remove(d.path))
		b.check(os.Symlink(filepath.Base(d.path), d.path))
	})
}

func (b *bus) hold(device mapper.Device) (release func()) {
	b.at(device, func(d *busDevice) { d.held = true })
	return func() { b.at(device, func(d *busDevice) { d.held = false }) }
}

// texts returns what was written to the files of that name.
func (b *bus) texts(name string) []string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	var texts []string
	for _, order := range b.orders {
		if filepath.Base(order.Path) == name {
			texts = append(texts, order.Text)
		}
	}
	return texts
}

func wantKind(t *testing.T, what string, err error, want fault.Kind) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: got error %v, want kind %q", what, err, want)
	}
}

func wantText(t *testing.T, what string, err error, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want %q in it", what, err, want)
		}
	}
}

func mapped(t *testing.T, m *Mapper, request mapper.Request) mapper.Device {
	t.Helper()
	device, err := m.Map(t.Context(), request)
	if err != nil {
		t.Fatalf("Map: got %v, want no error", err)
	}
	return device
}

func devices(t *testing.T, m *Mapper) []mapper.Device {
	t.Helper()
	all, err := m.Devices(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatalf("Devices: got %v, want no error", err)
	}
	return all
}
