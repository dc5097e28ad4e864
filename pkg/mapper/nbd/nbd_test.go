package nbd

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

const testKey = "AQD0aGVsbG8gd29ybGQ="

func target() mapper.Target {
	return mapper.Target{
		Image: volid.Image{Pool: volid.Pool{Cluster: "main", Pool: "kube", Namespace: "team"}, Name: "pvc-1"},
		FSID:  "11111111-2222-3333-4444-555555555555", PoolID: 7, ImageID: "ab12",
	}
}

func wantKind(t *testing.T, what string, err error, want fault.Kind, words ...string) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: got error %v, want kind %q", what, err, want)
	}
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: got error %v, want %q in it", what, err, word)
		}
	}
}

// What versions of the driver have written into a device's cookie is understood for ever: add to
// this, edit nothing.
func TestCookiesOfReleases(t *testing.T) {
	const known = "rbd-csi:rw:11111111-2222-3333-4444-555555555555:7:ab12:main:kube/team/pvc-1"
	if got := cookie(target(), false); got != known {
		t.Errorf("cookie: got %s, want %s", got, known)
	}
	got, ours := parseCookie(known)
	if want := (entry{target: target()}); !ours || got != want {
		t.Errorf("parseCookie: got %+v, %t, want %+v", got, ours, want)
	}
	got, ours = parseCookie(strings.Replace(known, ":rw:", ":ro:", 1))
	if !ours || !got.readOnly {
		t.Errorf("parseCookie: got %+v, %t, want it read-only", got, ours)
	}
}

func FuzzParseCookie(f *testing.F) {
	f.Add(cookie(target(), true))
	f.Add("8c0b9e4a-7b5e-4b0e-9d7e-0d9d5c1a2b3c") // of `rbd device map -t nbd`
	f.Add("rbd-csi:rw::::")
	f.Fuzz(func(t *testing.T, text string) {
		one, ours := parseCookie(text)
		if !ours {
			return
		}
		again, ours := parseCookie(cookie(one.target, one.readOnly))
		if !ours || again != one {
			t.Errorf("parseCookie of what cookie wrote: got %+v, %t, want %+v", again, ours, one)
		}
	})
}

func TestCheckOptions(t *testing.T) {
	tests := []struct {
		option string
		well   bool
	}{
		{"rbd_qos_iops_limit=50", true}, {"rbd_cache_policy=writearound", false},
		{"exclusive", true}, {"reattach_timeout=300", true},
		{"exclusive=yes", false}, {"reattach_timeout=0", false}, {"reattach_timeout=x", false}, {"reattach_timeout", false},
		{"rbd_default_features=1", false}, {"keyring=/x", false}, {"ms_mode=crc", false},
	}
	for _, test := range tests {
		err := CheckOptions([]string{test.option})
		if test.well && err != nil {
			t.Errorf("%s: got %v, want no error", test.option, err)
		}
		if !test.well {
			wantKind(t, test.option, err, fault.Invalid, `"`+test.option+`"`)
		}
	}
}

func order() Order {
	return Order{
		Target: target(), Monitors: "10.0.0.1", Settings: "[global]\n", ReadOnly: true,
		Credentials: params.Credentials{User: "kube", Key: params.NewSecret(testKey)},
		Options:     []string{"rbd_qos_iops_limit=50", "exclusive", "reattach_timeout=300"},
		Directory:   "/run/x", Timeout: 20 * time.Second,
	}
}

func TestOrderOnThePipe(t *testing.T) {
	var pipe bytes.Buffer
	if err := order().Send(&pipe); err != nil {
		t.Fatal(err)
	}
	got, err := ReceiveOrder(&pipe)
	if err != nil || got.Credentials.Key.Reveal() != testKey || got.Credentials.User != "kube" ||
		got.Target != target() || !slices.Equal(got.Options, order().Options) || got.Timeout != order().Timeout {
		t.Errorf("ReceiveOrder: got %+v, %v, want what was sent", got, err)
	}
	_, err = ReceiveOrder(strings.NewReader(`{"Key": "` + testKey + `", "Options": 1}`))
	wantKind(t, "ReceiveOrder of something else", err, fault.Invalid)
	if strings.Contains(err.Error(), testKey) {
		t.Errorf("ReceiveOrder: got the key in %v", err)
	}
}

func TestArguments(t *testing.T) {
	got := strings.Join(order().arguments("", 3, 4), " ")
	for _, want := range []string{
		"map -f --try-netlink", "--cookie rbd-csi:ro:", "--read-only", "--rbd_qos_iops_limit=50", "--exclusive", "--reattach-timeout 300",
		"--rbd_cache=false --rbd_cache_policy=writethrough --rbd_qos", "--mon_host=10.0.0.1", "-c /proc/self/fd/3", "--keyring /proc/self/fd/4", "--id kube", "kube/team/pvc-1",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("arguments: got %s, want %s in it", got, want)
		}
	}
	if strings.Contains(got, testKey) {
		t.Errorf("arguments: got the key in %s", got)
	}
	if got := order().arguments("/dev/nbd3", 3, 4); got[0] != "attach" || !slices.Contains(got, "/dev/nbd3") {
		t.Errorf("arguments to take a device over: got %v", got)
	}
}

// What rbd-nbd of Ceph 16 was seen to say.
func TestFailed(t *testing.T) {
	tests := []struct {
		name, said string
		kind       fault.Kind
		want       string // in the error
	}{
		{"no image", "rbd-nbd: failed to map, status: (2) No such file or directory", fault.NotFound, "gone"},
		{"wrong key", "-1 monclient(hunting): handle_auth_bad_method server allowed_methods [2] but i only support [2,1]\nfailed to fetch mon config (--no-mon-config to skip)", fault.Unauthenticated, "refuse"},
		{"silence", "failed to fetch mon config (--no-mon-config to skip)", fault.Unavailable, "the cluster did not answer"},
		{"no permission", "rbd: error opening image pvc-1: (1) Operation not permitted", fault.Denied, "may not open"},
		{"an option", "rbd-nbd: unknown args: --rbd_qos_x=1", fault.Invalid, "one of the options"},
		{"something else", "terminate called", fault.Unavailable, "ended"},
		{"its key", "it has " + testKey, fault.Unavailable, "(key)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := &worker{order: order(), server: &server{command: exec.Command("true"), errors: &tail{}}}
			_, _ = w.server.errors.Write([]byte(test.said))
			err := w.failed()
			wantKind(t, "failed", err, test.kind, test.want)
			if strings.Contains(err.Error(), testKey) {
				t.Errorf("failed: got the key in %v", err)
			}
		})
	}
}

func TestLogLines(t *testing.T) {
	const log = "2026-11-29T22:53:43.052+0000 4a684a40  1 --  start start\n" +
		"2026-11-29T22:53:43.062+0000 4a684a40  1 --2-  >> [v2:10.77.0.1:3300/0,v1:10.77.0.1:6789/0] conn(0x55 0x55 unknown :-1 s=NONE).connect\n" +
		"2026-11-29T22:53:43.070+0000 4a684a40  1 -- 10.77.0.11:0/858021323 <== mon.0 v2:10.77.0.1:3300/0 1 ==== mon_map magic: 0 v1 ====\n" +
		"2026-11-29T22:53:43.090+0000 4a684a40  1 -- 10.77.0.11:0/2461435339 --> [v2:10.77.0.1:6802/1,v1:10.77.0.1:6803/1] -- osd_op(unknown.0.0:5 2.1c 2:3::rbd_header.107d6b8b4567:head [watch watch cookie 94] snapc 0=[] ondisk+write) v8\n"
	for text, want := range map[string][]string{
		log: {"10.77.0.11:0/2461435339", "107d6b8b4567"},
		"1 -- [fd00::1]:0/12 --> [v2:x] -- osd_op(1 1.c 1:3::rbd_header.ab:head [watch watch cookie 9] x": {"[fd00::1]:0/12", "ab"},
	} {
		if got := watchLine.FindStringSubmatch(text); got == nil || !slices.Equal(got[1:], want) {
			t.Errorf("watchLine: got %q, want %q", got, want)
		}
	}
}

func FuzzAttributes(f *testing.F) {
	f.Add(attribute(7, []byte("nbd\x00")), uint16(7))
	f.Add([]byte{3, 0, 0, 0}, uint16(0))
	f.Fuzz(func(t *testing.T, attributes []byte, kind uint16) {
		if value, found := find(attributes, kind); found && len(value) > len(attributes) {
			t.Errorf("find: got %d bytes out of %d", len(value), len(attributes))
		}
		whole := append(attribute(kind, []byte("abc")), attributes...)
		if value, found := find(whole, kind); !found || string(value) != "abc" {
			t.Errorf("find: got %q, %t, want abc", value, found)
		}
	})
}

// shell is a Launch whose worker is a shell script.
func shell(script string) Launch { return Command("/bin/sh", "-c", script) }

func TestLaunch(t *testing.T) {
	wantKind(t, "no answer", shell("exit 1")(t.Context(), order()), fault.Unavailable, "without an answer")
	wantKind(t, "an error", shell(`echo '{"Kind":"not found","Error":"x is gone"}'; exit 1`)(t.Context(), order()), fault.NotFound, "x is gone")
	if err := shell(`echo '{"Kind":"","Error":""}'; sleep 0`)(t.Context(), order()); err != nil {
		t.Errorf("serving: got %v, want no error", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	wantKind(t, "silent", shell("read x; exec sleep 5")(ctx, order()), fault.Unavailable, "did not answer")
	wantKind(t, "no time", shell("exit 0")(ctx, order()), fault.Unavailable)
}

// One request at a time works on an image, and its end removes the lock.
func TestPlaceLock(t *testing.T) {
	m := New(Options{Directory: t.TempDir()})
	at, err := m.place(target())
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := at.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = at.lock(ctx)
	wantKind(t, "lock of what is locked", err, fault.Unavailable)
	unlock()
	unlock, err = at.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if left, _ := filepath.Glob(at.path + "*"); len(left) > 0 {
		t.Errorf("left: %v, want nothing", left)
	}
	for _, wrong := range []mapper.Target{{FSID: "../x", ImageID: "ab"}, {FSID: "11", PoolID: -1, ImageID: "ab"}, {FSID: "11", ImageID: "../x"}} {
		_, err := m.place(wrong)
		wantKind(t, "place", err, fault.Invalid)
	}
}

// What lacks is told all at once.
func TestCheck(t *testing.T) {
	folder := t.TempDir()
	t.Setenv("PATH", folder)
	k := kernel{sys: t.TempDir()}
	wantKind(t, "nothing there", k.check(t.Context(), false), fault.Unsupported, "root", "modprobe nbd", "install the package rbd-nbd")
	for _, path := range []string{"module/nbd"} {
		if err := os.MkdirAll(filepath.Join(k.sys, path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(folder, bin)
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho --cookie --reattach-timeout\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := k.check(t.Context(), true); err != nil {
		t.Errorf("all there: got %v, want no error", err)
	}
}

// Only devices of ours are listed, and a request that cannot be is refused before anything is done.
func TestDevicesOfOthers(t *testing.T) {
	sys := t.TempDir()
	m := New(Options{Directory: t.TempDir(), Launch: shell("exit 1")})
	m.kernel = kernel{sys: sys, dev: t.TempDir()}
	for name, content := range map[string]string{"nbd0": "8c0b9e4a-7b5e", "nbd1": cookie(target(), false)} {
		if err := os.MkdirAll(filepath.Join(sys, "block", name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, "block", name, "backend"), []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	devices, err := m.Devices(t.Context())
	if err != nil || len(devices) != 1 || !devices[0].Target.Same(target()) || devices[0].Dead != "its rbd-nbd is gone" {
		t.Errorf("Devices: got %+v, %v, want that of the image, dead", devices, err)
	}
	_, err = m.Map(t.Context(), mapper.Request{Target: target(), Access: cluster.Access{}})
	wantKind(t, "Map without a user", err, fault.Unauthenticated)
}
