package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/mappertest"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/nbd"
)

// workerArgument makes the test's program a worker of mapper nbd.
const workerArgument = "nbd-worker"

// needNBD skips a test, with the reason, where rbd-nbd is not installed.
func needNBD(t *testing.T) {
	t.Helper()
	needGuests(t)
	if _, err := exec.LookPath("rbd-nbd"); err != nil {
		t.Skip("rbd-nbd is not installed (test/setup.sh kernel)")
	}
}

// TestNBD runs the mappers' suite in a guest, with rbd-nbd.
func TestNBD(t *testing.T) {
	if !InGuest() {
		needNBD(t)
		g, environment := lab(t)
		inGuest(t, g, environment)
		return
	}
	b := newBench(t)
	mappertest.Suite(t, b.nbdFixture)
}

func (b *bench) nbdMapper() *nbd.Mapper {
	return nbd.New(nbd.Options{Launch: nbd.Command("/proc/self/exe", workerArgument), Bytes: b.bytes})
}

// bytes returns how large an image is.
func (b *bench) bytes(ctx context.Context, target mapper.Target) (int64, error) {
	said, err := b.RBD(ctx, "info", b.pool+"/"+target.Image.Name, "--format", "json")
	if err != nil {
		return 0, err
	}
	var info struct{ Size int64 }
	return info.Size, json.Unmarshal([]byte(said), &info)
}

func (b *bench) nbdFixture(t *testing.T) mappertest.Fixture {
	t.Helper()
	nothingOfNBD(t)
	t.Cleanup(func() { nothingOfNBD(t) })
	f := b.fixture(t)
	f.Mapper = b.nbdMapper()
	f.Restart = func() mapper.Mapper { return b.nbdMapper() }
	f.Image = func(t *testing.T, bytes int64) mapper.Request {
		request := b.image(t, bytes)
		request.Options = []string{"reattach_timeout=10"} // so long a dead device's I/O waits
		return request
	}
	f.Kill = func(t *testing.T, device mapper.Device) {
		for _, pid := range processesOf(t, device) {
			must(t, syscall.Kill(pid, syscall.SIGKILL))
		}
		awaitProcesses(t, device, 0)
	}
	f.Refusing = b.refusing
	return f
}

// refusing makes an image with a data pool of its own, which refuse removes. librbd may not notice it but by
// what it writes: its header, its lock and its object map are in the other pool.
func (b *bench) refusing(t *testing.T, bytes int64) (request mapper.Request, refuse func(mapper.Device)) {
	t.Helper()
	const headers, data = "refusing-headers", "refusing-data"
	remove := func(pool string) { b.ceph(t, "osd", "pool", "rm", pool, pool, "--yes-i-really-really-mean-it") }
	other := *b
	for _, pool := range []string{headers, data} {
		b.ceph(t, "osd", "pool", "create", pool, "8", "--autoscale-mode=off")
		t.Cleanup(func() { remove(pool) })
		b.rbd(t, "pool", "init", pool)
	}
	var info struct {
		ID int64 `json:"pool_id"`
	}
	must(t, json.Unmarshal([]byte(b.ceph(t, "osd", "pool", "get", headers, "all", "-f", "json")), &info))
	other.pool, other.poolID = headers, info.ID
	other.access.Credentials = b.user(t, "refusing", "mon", "profile rbd", "osd", "profile rbd pool="+headers+", profile rbd pool="+data)
	const name = "refusing"
	b.rbd(t, "create", headers+"/"+name, "--size", fmt.Sprintf("%dB", bytes), "--data-pool", data)
	return other.requestFor(t, "", name), func(mapper.Device) { remove(data) }
}

// processesOf returns the worker of a device and its rbd-nbd, in the order of their IDs.
func processesOf(t *testing.T, device mapper.Device) []int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	must(t, err)
	var pids []int
	seen := make(map[int]bool)
	for _, link := range links {
		file, err := os.Readlink(link)
		if err != nil || !strings.Contains(file, device.Target.ImageID+"/process") {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		must(t, err)
		if !seen[pid] {
			pids, seen[pid] = append(pids, pid), true
		}
	}
	return pids
}

// awaitProcesses waits until a device has so many processes.
func awaitProcesses(t *testing.T, device mapper.Device, want int) []int {
	t.Helper()
	for {
		pids := processesOf(t, device)
		if len(pids) == want {
			return pids
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("processes of %s: got %v for ever, want %d", device.Path, pids, want)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// nothingOfNBD checks what the kernel says, not what the mapper does.
func nothingOfNBD(t *testing.T) {
	t.Helper()
	backends, err := filepath.Glob("/sys/block/nbd*/backend")
	must(t, err)
	for _, one := range backends {
		cookie, err := os.ReadFile(one)
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %s, want nothing", one, cookie)
		}
	}
	left, err := filepath.Glob(nbd.DefaultDirectory + "/*")
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left in %s: %v, want nothing", nbd.DefaultDirectory, left)
	}
}
