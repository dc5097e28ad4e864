package ceph

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

func TestOptionsCheck(t *testing.T) {
	long := "/" + strings.Repeat("x", maxSocketPath-len(longestSocket)-1)
	for _, test := range []struct {
		name string
		opts Options
		good bool
	}{
		{"zero", Options{}, true},
		{"largest", Options{OSDs: 3, Monitors: 3, Pools: []string{"a", "b.c-d_e"}, DataPool: "ec"}, true},
		{"no pool", Options{Pools: []string{}}, true},
		{"four OSDs", Options{OSDs: 4}, false},
		{"minus one OSD", Options{OSDs: -1}, false},
		{"four monitors", Options{Monitors: 4}, false},
		{"minus one monitor", Options{Monitors: -1}, false},
		{"OSD too small", Options{OSDBytes: minOSDBytes - 1}, false},
		{"smallest OSD", Options{OSDBytes: minOSDBytes}, true},
		{"propose interval", Options{ProposeInterval: time.Millisecond}, true},
		{"negative propose interval", Options{ProposeInterval: -1}, false},
		{"pool with a space", Options{Pools: []string{"a b"}}, false},
		{"pool that looks like an option", Options{Pools: []string{"--force"}}, false},
		{"pool without a name", Options{Pools: []string{""}}, false},
		{"pool twice", Options{Pools: []string{"a", "a"}}, false},
		{"data pool like a pool", Options{DataPool: "rbd"}, false},
		{"data pool with a slash", Options{DataPool: "a/b"}, false},
		{"namespace", Options{Namespaces: map[string][]string{"rbd": {"one", "two"}}}, true},
		{"namespace of another pool", Options{Namespaces: map[string][]string{"other": {"one"}}}, false},
		{"namespace with a slash", Options{Namespaces: map[string][]string{"rbd": {"a/b"}}}, false},
		{"relative folder", Options{Dir: "a"}, false},
		{"folder with dots", Options{Dir: "/a/../b"}, false},
		{"longest folder", Options{Dir: long}, true},
		{"folder too long", Options{Dir: long + "x"}, false},
		{"relative root", Options{Root: "a"}, false},
		{"address of another family", Options{Address: "::1"}, false},
		{"name for an address", Options{Address: "localhost"}, false},
		{"setting", Options{Conf: map[string]string{"osd heartbeat grace": "5"}}, true},
		{"setting that opens a section", Options{Conf: map[string]string{"[osd]": "5"}}, false},
		{"value of two lines", Options{Conf: map[string]string{"a": "1\n[osd]"}}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.opts.withDefaults().check()
			if good := err == nil; good != test.good {
				t.Errorf("got %v, want good %v", err, test.good)
			}
			if err != nil && !errors.Is(err, fault.Invalid) {
				t.Errorf("got %v, want a fault.Invalid", err)
			}
		})
	}
}

func TestConf(t *testing.T) {
	opts := Options{OSDs: 3, Monitors: 2, ProposeInterval: 50 * time.Millisecond,
		Conf: map[string]string{"mon allow pool delete": "false"}}.withDefaults()
	text := conf("/c", "the-fsid", &claim{base: 20032}, opts)
	for _, line := range []string{
		"fsid = the-fsid",
		"mon host = [v2:127.0.0.1:20033,v1:127.0.0.1:20034],[v2:127.0.0.1:20035,v1:127.0.0.1:20036]",
		"ms bind port min = 20040",
		"ms bind port max = 20095",
		"osd pool default size = 3",
		"osd pool default min size = 2",
		"auth client required = cephx",
		"log file = /c/$name.log",
		"paxos propose interval = 0.05",
		"mgr module path = /c/mgr-modules",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("got no line %q in\n%s", line, text)
		}
	}
	if ours, theirs := strings.Index(text, "mon allow pool delete = true"), strings.Index(text, "mon allow pool delete = false"); theirs < ours {
		t.Errorf("got the caller's setting at %d before ours at %d", theirs, ours)
	}
}

func TestClientConfHoldsNothingElse(t *testing.T) {
	want := "[global]\nfsid = the-fsid\nmon_host = one,two\n"
	if got := clientConf("the-fsid", []string{"one", "two"}); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestKeyring(t *testing.T) {
	e := entity{name: "client.x", key: "KEY", caps: []setting{{"mon", "allow r"}}}
	if got, want := keyring(true, e), "[client.x]\n\tkey = KEY\n\tcaps mon = \"allow r\"\n"; got != want {
		t.Errorf("with capabilities: got %q, want %q", got, want)
	}
	if got, want := keyring(false, e), "[client.x]\n\tkey = KEY\n"; got != want {
		t.Errorf("without: got %q, want %q", got, want)
	}
}

func TestSharedRule(t *testing.T) {
	for _, test := range []struct {
		osds int
		want []string
	}{
		{1, []string{"indep 1", "indep 1", "indep 1"}},
		{2, []string{"indep 2", "indep 1"}},
	} {
		text := sharedRule(test.osds)
		var got []string
		for line := range strings.Lines(text) {
			if _, step, ok := strings.Cut(line, "step choose "); ok {
				got = append(got, strings.TrimSuffix(strings.TrimSpace(step), " type osd"))
			}
		}
		if strings.Join(got, ", ") != strings.Join(test.want, ", ") {
			t.Errorf("%d OSDs: got steps %q, want %q", test.osds, got, test.want)
		}
	}
}

func TestProfileRBD(t *testing.T) {
	for _, test := range []struct {
		name  string
		pools []string
		want  string
	}{
		{"all pools", nil, "profile rbd"},
		{"one pool", []string{"a"}, "profile rbd pool=a"},
		{"pool and namespace", []string{"a", "b/c"}, "profile rbd pool=a, profile rbd pool=b namespace=c"},
	} {
		if got := ProfileRBD(test.pools...); got != (Caps{Mon: "profile rbd", OSD: test.want, Mgr: test.want}) {
			t.Errorf("%s: got %+v, want OSD and manager %q", test.name, got, test.want)
		}
	}
}

func TestClaimsDoNotMeet(t *testing.T) {
	first, err := claimPorts(defaultAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer first.release()
	if listener, err := claimBlock(defaultAddress, first.base); err == nil {
		listener.Close()
		t.Errorf("got the claimed block %d a second time", first.base)
	}
	stranger, err := listen(defaultAddress, first.base+portBlock-1)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	first.release()
	if listener, err := claimBlock(defaultAddress, first.base); err == nil {
		listener.Close()
		t.Errorf("got block %d although a port of it is in use", first.base)
	}
}

func TestToolsNameWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Start(t.Context(), Options{})
	if !errors.Is(err, fault.Unsupported) {
		t.Fatalf("got %v, want a fault.Unsupported", err)
	}
	for _, pkg := range []string{"ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common", "ceph-base"} {
		if !strings.Contains(err.Error(), pkg) {
			t.Errorf("got %q, want it to name %s", err, pkg)
		}
	}
	if got := strings.Count(err.Error(), "ceph-common"); got != 1 {
		t.Errorf("got ceph-common %d times, want once", got)
	}
}

func TestStatusMissing(t *testing.T) {
	var healthy status
	healthy.Health.Status = "HEALTH_OK"
	healthy.MgrMap.Available = true
	healthy.OSDMap.Up = 1
	healthy.PGMap.Pools, healthy.PGMap.PGs = 1, 8
	type states = []struct {
		Name  string `json:"state_name"`
		Count int    `json:"count"`
	}
	healthy.PGMap.States = states{{"active+clean", 8}}
	for _, test := range []struct {
		name   string
		change func(*status)
		want   string
	}{
		{"healthy", func(*status) {}, ""},
		{"no manager", func(s *status) { s.MgrMap.Available = false }, "no active manager"},
		{"OSD down", func(s *status) { s.OSDMap.Up = 0 }, "0 of 1 OSDs up"},
		{"pool not yet reported", func(s *status) { s.PGMap.Pools = 0 }, "0 of 1 pools"},
		{"peering", func(s *status) { s.PGMap.States = states{{"peering", 8}} }, "0 of 8 placement groups active and clean"},
		{"warning", func(s *status) { s.Health.Status = "HEALTH_WARN" }, "HEALTH_WARN: "},
	} {
		now := healthy
		test.change(&now)
		if got := now.missing(1, 1); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}
