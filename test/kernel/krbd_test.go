package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/krbd"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/mappertest"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/nbd"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

// writerArgument makes the test's program a writer of mapper krbd.
const writerArgument = "krbd-writer"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == writerArgument {
		os.Exit(fail(krbd.Serve(os.Stdin, os.Stdout)))
	}
	if len(os.Args) == 2 && os.Args[1] == workerArgument {
		os.Exit(fail(nbd.Serve(os.Stdin, os.Stdout)))
	}
	os.Exit(Main(m))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// needGuests skips a test, with the reason, where no guest can run.
func needGuests(t *testing.T) {
	t.Helper()
	if err := Lacks(); err != nil {
		t.Skip(err)
	}
}

// guestNumbers holds the numbers of guests that no test has: tests run beside each other.
var guestNumbers = func() chan int {
	numbers := make(chan int, mostGuests)
	for number := range mostGuests {
		numbers <- number + 1
	}
	return numbers
}()

// guestNumber returns the number for a guest of a test, which it has until all later cleanups have run.
func guestNumber(t *testing.T) int {
	t.Helper()
	number := <-guestNumbers
	t.Cleanup(func() { guestNumbers <- number })
	return number
}

// lab brings up Ceph and a guest, for one test, which runs beside others.
func lab(t *testing.T) (g *Guest, environment []string) {
	t.Helper()
	needGuests(t)
	t.Parallel()
	return quietLab(t)
}

// quietLab is lab for a test that measures, and therefore runs alone.
func quietLab(t *testing.T) (g *Guest, environment []string) {
	t.Helper()
	needGuests(t)
	number := guestNumber(t)
	c := ceph.ForTest(t, ceph.Options{Address: machineAddress, ProposeInterval: 50 * time.Millisecond})
	server, environment, err := ServeCluster(c)
	must(t, err)
	t.Cleanup(func() { _ = server.Close() })
	g, err = Boot(t.Context(), GuestOptions{Number: number, Folder: c.Dir()})
	must(t, err)
	t.Cleanup(func() {
		if err := g.Kill(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	t.Log(g)
	return g, environment
}

// TestKRBD runs the mappers' suite in a guest.
func TestKRBD(t *testing.T) {
	if !InGuest() {
		g, environment := lab(t)
		inGuest(t, g, environment)
		return
	}
	b := newBench(t)
	mappertest.Suite(t, b.fixture)
}

// A bench is what tests in a guest have of the cluster.
type bench struct {
	Cluster
	fsid     string
	pool     string
	poolID   int64
	access   cluster.Access
	stranger params.Credentials
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{Cluster: ClusterInGuest(), pool: "rbd"}
	b.fsid = b.ceph(t, "fsid")
	var pools []struct {
		Name string `json:"poolname"`
		ID   int64  `json:"poolnum"`
	}
	must(t, json.Unmarshal([]byte(b.ceph(t, "osd", "lspools", "-f", "json")), &pools))
	for _, one := range pools {
		if one.Name == b.pool {
			b.poolID = one.ID
		}
	}
	b.access = cluster.Access{
		Cluster: "main", Monitors: b.monitors(t),
		Credentials: b.user(t, "krbd", "mon", "profile rbd", "osd", "profile rbd pool="+b.pool),
	}
	b.stranger = b.user(t, "stranger", "mon", "allow r")
	return b
}

// monitors returns the monitors as mon_host has them.
func (b *bench) monitors(t *testing.T) string {
	t.Helper()
	var dump struct {
		Mons []struct {
			Addresses struct {
				Vector []struct{ Type, Addr string } `json:"addrvec"`
			} `json:"public_addrs"`
		}
	}
	must(t, json.Unmarshal([]byte(b.ceph(t, "mon", "dump", "-f", "json")), &dump))
	var all []string
	for _, mon := range dump.Mons {
		var each []string
		for _, one := range mon.Addresses.Vector {
			each = append(each, one.Type+":"+one.Addr)
		}
		all = append(all, "["+strings.Join(each, ",")+"]")
	}
	return strings.Join(all, ",")
}

func (b *bench) user(t *testing.T, name string, caps ...string) params.Credentials {
	t.Helper()
	key := b.ceph(t, append([]string{"auth", "get-or-create-key", "client." + name}, caps...)...)
	return params.Credentials{User: name, Key: params.NewSecret(key)}
}

func (b *bench) ceph(t *testing.T, arguments ...string) string {
	t.Helper()
	output, err := b.Ceph(context.WithoutCancel(t.Context()), arguments...)
	must(t, err)
	return strings.TrimSpace(output)
}

func (b *bench) rbd(t *testing.T, arguments ...string) string {
	t.Helper()
	output, err := b.RBD(context.WithoutCancel(t.Context()), arguments...)
	must(t, err)
	return output
}

func (b *bench) mapper() *krbd.Mapper {
	return krbd.New(krbd.Options{Start: krbd.Command("/proc/self/exe", writerArgument)})
}

var images atomic.Int64

// features are those that the driver gives its images.
const features = "layering,exclusive-lock,object-map,fast-diff,deep-flatten"

// image makes an image as the driver makes them, and removes it after the test.
func (b *bench) image(t *testing.T, bytes int64) mapper.Request {
	t.Helper()
	return b.imageWith(t, bytes, features)
}

func (b *bench) imageWith(t *testing.T, bytes int64, features string) mapper.Request {
	t.Helper()
	name := fmt.Sprintf("pvc-%d?x;#%d", os.Getpid(), images.Add(1)) // as odd as the kernel takes them
	place := b.pool + "/" + name
	b.rbd(t, "create", place, "--size", fmt.Sprintf("%dB", bytes), "--image-feature", features)
	t.Cleanup(func() { b.rbd(t, "rm", "--no-progress", place) })
	return b.requestFor(t, "", name)
}

// requestFor returns a request for an image that exists.
func (b *bench) requestFor(t *testing.T, namespace, name string) mapper.Request {
	t.Helper()
	image := volid.Image{Pool: volid.Pool{Cluster: "main", Pool: b.pool, Namespace: namespace}, Name: name}
	_, place, _ := strings.Cut(image.String(), ":")
	var info struct{ ID string }
	must(t, json.Unmarshal([]byte(b.rbd(t, "info", place, "--format", "json")), &info))
	return mapper.Request{
		Target: mapper.Target{Image: image, FSID: b.fsid, PoolID: b.poolID, ImageID: info.ID},
		Access: b.access,
	}
}

func (b *bench) fixture(t *testing.T) mappertest.Fixture {
	t.Helper()
	nothingMapped(t)
	t.Cleanup(func() { nothingMapped(t) })
	return mappertest.Fixture{
		Mapper:  b.mapper(),
		Restart: func() mapper.Mapper { return b.mapper() },
		Image:   b.image,
		Resize:  b.resize,
		Content: func(t *testing.T, request mapper.Request, offset, length int64) []byte {
			whole := b.rbd(t, "export", "--no-progress", b.pool+"/"+request.Target.Image.Name, "-")
			return []byte(whole[offset : offset+length])
		},
		Kill: b.fence,
		Refusing: func(t *testing.T, bytes int64) (mapper.Request, func(mapper.Device)) {
			return b.image(t, bytes), func(device mapper.Device) { b.fence(t, device) }
		},
		Hold:     mappertest.HoldDevice,
		Stranger: b.stranger,
	}
}

// resize makes an image larger. Ceph's tool calls it wrong if it has the size already.
func (b *bench) resize(t *testing.T, request mapper.Request, bytes int64) {
	t.Helper()
	place := b.pool + "/" + request.Target.Image.Name
	var info struct{ Size int64 }
	must(t, json.Unmarshal([]byte(b.rbd(t, "info", place, "--format", "json")), &info))
	if info.Size != bytes {
		b.rbd(t, "resize", "--no-progress", place, "--size", fmt.Sprintf("%dB", bytes))
	}
}

// fence makes a device dead. It first makes sure that the last object of the image exists:
// one that the object map knows to be absent the kernel reads as zeros by itself, fenced or not.
func (b *bench) fence(t *testing.T, device mapper.Device) {
	t.Helper()
	file, err := os.OpenFile(device.Path, os.O_WRONLY|syscall.O_SYNC, 0)
	must(t, err)
	end, err := file.Seek(-4096, io.SeekEnd)
	must(t, err)
	_, err = file.WriteAt([]byte("exists"), end)
	must(t, errors.Join(err, file.Close()))
	b.ceph(t, "osd", "blocklist", "add", device.Client)
}

// nothingMapped checks what the kernel says, not what the mapper does.
func nothingMapped(t *testing.T) {
	t.Helper()
	devices, err := os.ReadDir("/sys/bus/rbd/devices")
	must(t, err)
	for _, one := range devices {
		name, _ := os.ReadFile("/sys/bus/rbd/devices/" + one.Name() + "/name")
		t.Errorf("rbd%s is mapped, the image %s, want nothing", one.Name(), name)
	}
}
