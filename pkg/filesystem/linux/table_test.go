//go:build linux

package linux

import (
	"strings"
	"testing"
)

// sampleTable has what is seen on nodes: a stack, in the order in which it was made and in
// another; a bind of a part; escapes; a bound device node; a filesystem that stopped itself.
const sampleTable = `27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
28 27 0:5 / /dev rw,nosuid - devtmpfs devtmpfs rw,size=1k
40 27 7:0 / /stack rw,relatime shared:1 - ext4 /dev/loop0 rw
41 40 7:1 / /stack rw,relatime - ext4 /dev/loop1 rw
42 41 7:2 / /stack ro,relatime - ext4 /dev/loop2 rw
52 51 7:5 / /tucked rw - ext4 /dev/loop5 rw
51 27 7:4 / /tucked rw - ext4 /dev/loop4 rw
60 27 7:6 / /kubelet/a\040b\134c rw,nosuid,noexec - xfs /dev/loop6 rw,nouuid
61 27 7:6 /data/sub /pod/volume ro,relatime master:3 - xfs /dev/loop6 rw,nouuid
62 27 0:5 /loop7 /pod/block rw,nosuid - devtmpfs devtmpfs rw,size=1k
63 27 7:8 / /errors rw,relatime - ext4 /dev/loop8 rw,emergency_ro
64 27 7:9 / /errors/old rw,relatime - ext4 /dev/loop9 ro
`

func sample(t *testing.T) table {
	t.Helper()
	mounts, err := parseTable([]byte(sampleTable))
	must(t, err)
	return mounts
}

func TestTop(t *testing.T) {
	mounts := sample(t)
	for path, want := range map[string]string{
		"/":                "/dev/vda",
		"/stack":           "/dev/loop2",
		"/tucked":          "/dev/loop5",
		`/kubelet/a b\c`:   "/dev/loop6",
		"/pod/block":       "devtmpfs",
		"/pod":             "",
		"/stack/":          "",
		`/kubelet/a\040b`:  "",
		"/kubelet/a b\\c/": "",
	} {
		got := ""
		if info := mounts.top(path); info != nil {
			got = info.Source
		}
		if got != want {
			t.Errorf("top of %q: got %q, want %q", path, got, want)
		}
	}
}

func TestRooted(t *testing.T) {
	mounts := sample(t)
	for _, c := range []struct{ path, device, root string }{
		{`/kubelet/a b\c`, "7:6", "/"},
		{`/kubelet/a b\c/data/sub`, "7:6", "/data/sub"},
		{"/pod/volume", "7:6", "/data/sub"},
		{"/pod/volume/x", "7:6", "/data/sub/x"},
		{"/pod/volumes", "254:0", "/pod/volumes"},
		{"/stack/x", "7:2", "/x"},
		{"/dev/loop3", "0:5", "/loop3"},
	} {
		device, root := mounts.rooted(c.path)
		if device.String() != c.device || root != c.root {
			t.Errorf("%s: got %s %s, want %s %s", c.path, device, root, c.device, c.root)
		}
	}
}

func TestReadOnly(t *testing.T) {
	mounts := sample(t)
	for path, want := range map[string][2]bool{ // the mount, and all in all
		"/":           {false, false},
		"/stack":      {true, true},
		"/pod/volume": {true, true},
		"/errors":     {false, true},
		"/errors/old": {false, true},
	} {
		info := mounts.top(path)
		if got := [2]bool{readOnlyHere(info), readOnly(info)}; got != want {
			t.Errorf("%s: got read-only %v, want %v", path, got, want)
		}
	}
}

func TestBelow(t *testing.T) {
	if got := strings.Join(sample(t).below("/errors"), " "); got != "/errors/old" {
		t.Errorf("below /errors: got %q, want /errors/old", got)
	}
}

func TestBindOptions(t *testing.T) {
	mounts := sample(t)
	for _, c := range []struct {
		name     string
		source   string
		wanted   []string
		readOnly bool
		want     string
	}{
		{"nothing asked for", `/kubelet/a b\c`, nil, false, "bind"},
		{"read-only keeps flags", `/kubelet/a b\c`, nil, true, "bind,nosuid,noexec,ro"},
		{"options keep flags", `/kubelet/a b\c/sub`, []string{"noatime"}, false, "bind,nosuid,noexec,noatime"},
		{"read-only wins", "/", []string{"rw"}, true, "bind,relatime,rw,ro"},
	} {
		got := strings.Join(bindOptions(mounts, source{path: c.source}, c.wanted, c.readOnly), ",")
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// FuzzTable checks that no text of a mount table makes the lookups fail.
func FuzzTable(f *testing.F) {
	f.Add(sampleTable, "/stack")
	f.Add("1 1 0:0 / / rw - a b c\n1 1 0:0 / / rw - a b c\n", "/")
	f.Add("1 2 0:0 / /a rw - a b c\n2 1 0:0 / /a rw - a b c\n", "/a")
	f.Fuzz(func(t *testing.T, text, path string) {
		mounts, err := parseTable([]byte(text))
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		top, holding := mounts.top(path), mounts.holding(path)
		if top != nil && (top.Mountpoint != path || holding != top) {
			t.Errorf("got top %+v of %q and %+v holding it", top, path, holding)
		}
		mounts.rooted(path)
		mounts.below(path)
	})
}
