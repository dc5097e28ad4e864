package kernel

import (
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rounds is how often a cost is measured; the least of them counts.
const rounds = 20

// TestKRBDCost measures what mapping and unmapping cost above the two bare writes to sysfs, in
// the same guest. It is told and not judged: a guest's system calls are many times as dear as
// those of a real machine, and the process that writes is made of them.
func TestKRBDCost(t *testing.T) {
	if !InGuest() {
		g, environment := lab(t)
		inGuest(t, g, environment)
		return
	}
	b := newBench(t)
	t.Run("map and unmap", func(t *testing.T) {
		ourMap, ourUnmap := b.ourCost(t)
		bareMap, bareUnmap := b.bareCost(t)
		t.Logf("map %s, bare %s; unmap %s, bare %s", ourMap, bareMap, ourUnmap, bareUnmap)
	})
}

func (b *bench) ourCost(t *testing.T) (mapping, unmapping time.Duration) {
	t.Helper()
	request, m := b.image(t, 64*mebibyte), b.mapper()
	for i := range rounds {
		begun := time.Now()
		device, err := m.Map(t.Context(), request)
		must(t, err)
		mapping = least(i, mapping, time.Since(begun))
		begun = time.Now()
		must(t, m.Unmap(t.Context(), device))
		unmapping = least(i, unmapping, time.Since(begun))
	}
	return mapping, unmapping
}

// bareCost writes the same line from this process.
func (b *bench) bareCost(t *testing.T) (mapping, unmapping time.Duration) {
	t.Helper()
	request := b.image(t, 64*mebibyte)
	device := b.mapped(t, request)
	line, err := os.ReadFile("/sys/bus/rbd/devices/" + strings.TrimPrefix(device.Path, "/dev/rbd") + "/config_info")
	must(t, err)
	must(t, b.mapper().Unmap(t.Context(), device))
	_, name, _ := strings.Cut(string(line), "key=")
	name, _, _ = strings.Cut(name, ",")
	key, err := base64.StdEncoding.DecodeString(b.access.Key.Reveal())
	must(t, err)
	id, err := unix.AddKey("ceph", name, key, unix.KEY_SPEC_USER_SESSION_KEYRING)
	must(t, err)
	defer func() {
		_, err := unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_USER_SESSION_KEYRING, 0, 0)
		must(t, err)
	}()
	for i := range rounds {
		begun := time.Now()
		must(t, os.WriteFile("/sys/bus/rbd/add_single_major", []byte(strings.TrimSpace(string(line))), 0))
		mapping = least(i, mapping, time.Since(begun))
		begun = time.Now()
		must(t, os.WriteFile("/sys/bus/rbd/remove_single_major", fmt.Append(nil, strings.TrimPrefix(device.Path, "/dev/rbd")), 0))
		unmapping = least(i, unmapping, time.Since(begun))
	}
	return mapping, unmapping
}

func least(round int, known, another time.Duration) time.Duration {
	if round == 0 || another < known {
		return another.Round(time.Millisecond / 10)
	}
	return known
}
