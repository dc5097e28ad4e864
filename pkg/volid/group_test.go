package volid_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

const groupRequest = "groupsnapshot-9b1f7a52-63a8-4c0e-8f0d-1c2b3a4d5e6f"

// The handles that released versions have given out; see releasedImages.
var releasedGroups = map[string]volid.Group{
	"main:kube/@groupsnapshot-9b1f7a52-63a8-4c0e-8f0d-1c2b3a4d5e6f": {Pool: kube, Name: groupRequest},
	"rook-ceph:replicapool/tenant-a/@g":                             {Pool: tenant, Name: "g"},
	"main:kube/@a%2Fb":                                              {Pool: kube, Name: "a%2Fb"},
	"main:kube/@%hna3m6e52yqaosecqohgwv5dqqq":                       {Pool: kube, Name: "%hna3m6e52yqaosecqohgwv5dqqq"},
}

// The names that released versions gave to the groups of these requests in the pool kube.
var releasedGroupNames = map[string]string{
	groupRequest:                   groupRequest,
	"..":                           "%2E%2E",
	"a/b@c#d":                      "a%2Fb%40c%23d",
	strings.Repeat("a", 117):       strings.Repeat("a", 117),
	strings.Repeat("a", 128):       "%hna3m6e52yqaosecqohgwv5dqqq",
	strings.Repeat("ü", 64):        "%hjly46n6yp6iqnrseorddlpsveu",
	strings.Repeat("-", 117):       "%h5vtlqselc5qq5rrf7gf2cmvrwm",
	"%h" + strings.Repeat("a", 26): "%25h" + strings.Repeat("a", 26),
}

func TestReleasedGroupsAreReadForEver(t *testing.T) {
	asReleased(t, releasedGroups, volid.ParseGroup)
	for request, want := range releasedGroupNames {
		if got, err := volid.GroupName(kube, request); err != nil || got != want {
			t.Errorf("group name of %q: got %q, %v; want %q", request, got, err, want)
		}
	}
}

func TestParseGroupRefuses(t *testing.T) {
	for _, c := range []struct {
		name, handle string
		kind         fault.Kind
		hint         string
	}{
		{"empty", "", fault.NotFound, "not of the form"},
		{"a volume", "main:kube/img", fault.NotFound, ""},
		{"a snapshot", "main:kube/img@snap#10", fault.NotFound, ""},
		{"a snapshot without ID", "main:kube/img@snap", fault.NotFound, ""},
		{"a snapshot without image", "main:kube/@snap#10", fault.NotFound, `"#"`},
		{"a pool", "main:kube", fault.NotFound, ""},
		{"no name", "main:kube/@", fault.NotFound, "group snapshot is empty"},
		{"too many segments", "main:kube/ns/img/@g", fault.NotFound, ""},
		{"two at", "main:kube/@a@b", fault.NotFound, `"@"`},
		{"of ceph-csi", "0001-0009-rook-ceph-0000000000000002-0b6c2f0e", fault.NotFound, ""},
		{"empty namespace", "main:kube//@g", fault.Invalid, `"main:kube/@g"`},
		{"blanks", "Main:kube / @ g ", fault.Invalid, `"main:kube/@g"`},
		{"over-long", "main:kube/@" + strings.Repeat("g", 118), fault.Invalid, "129 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := volid.ParseGroup(c.handle)
			wantRefused(t, err, c.kind, c.hint)
			if got != (volid.Group{}) {
				t.Errorf("got %#v beside the error, want nothing", got)
			}
		})
	}
}

func TestGroupNamesRefused(t *testing.T) {
	for request, hint := range map[string]string{
		"": "empty", strings.Repeat("a", 129): "129 bytes", "a\xff": "UTF-8",
	} {
		_, err := volid.GroupName(kube, request)
		wantRefused(t, err, fault.Invalid, hint)
	}
	long := volid.Pool{Cluster: "c", Pool: strings.Repeat("p", 98)}
	if name, err := volid.GroupName(long, "g"); err != nil || name != "g" {
		t.Errorf("a short name where no hash fits: got %q, %v; want %q", name, err, "g")
	}
	_, err := volid.GroupName(long, groupRequest)
	wantRefused(t, err, fault.Invalid, "2 bytes too long")
}

// Wherever a volume has a handle with room for snapshots, any group of it has one too.
func TestGroupsFitWhereVolumesDo(t *testing.T) {
	pool := volid.Pool{Cluster: "c", Pool: strings.Repeat("p", 56-len("c:/"))}
	for _, request := range []string{groupRequest, strings.Repeat("g", 128), "/"} {
		name, err := volid.GroupName(pool, request)
		if err != nil {
			t.Errorf("group name of %q: got %v, want none", request, err)
			continue
		}
		want := volid.Group{Pool: pool, Name: name}
		if got, err := volid.ParseGroup(want.String()); err != nil || got != want {
			t.Errorf("group %q: got %v, %v; want it back", want, got, err)
		}
	}
}

// FuzzParseGroup checks the round trip, and that no text names two kinds of things.
func FuzzParseGroup(f *testing.F) {
	seed(f, releasedGroups)
	for _, text := range []string{"a:b/@c", "a:b/@c#1", "a:b//@c", "a:b/c/@d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		roundTrip(t, text, volid.ParseGroup, fault.NotFound, fault.Invalid)
		group, err := volid.ParseGroup(text)
		if err != nil {
			return
		}
		if err := group.Check(); err != nil || len(text) > volid.MaxHandle {
			t.Errorf("%q parses, %d bytes long, and its check says %v", text, len(text), err)
		}
		if _, err := volid.ParseImage(text); !errors.Is(err, fault.NotFound) {
			t.Errorf("%q is a group; as a volume it is %v, want not found", text, err)
		}
		if _, err := volid.ParseSnapshot(text); !errors.Is(err, fault.NotFound) {
			t.Errorf("%q is a group; as a snapshot it is %v, want not found", text, err)
		}
	})
}

// FuzzGroupName checks that handles made of names parse, and that no two requests share one.
func FuzzGroupName(f *testing.F) {
	for request := range releasedGroupNames {
		f.Add(request, request+"x", 5)
	}
	f.Fuzz(func(t *testing.T, one, other string, poolBytes int) {
		pool := volid.Pool{Cluster: "c", Pool: strings.Repeat("p", 1+(poolBytes&63))}
		name, err := volid.GroupName(pool, one)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("got %v, want it invalid", err)
			}
			return
		}
		want := volid.Group{Pool: pool, Name: name}
		if got, err := volid.ParseGroup(want.String()); err != nil || got != want {
			t.Fatalf("handle %q of request %q: got %v, %v", want, one, got, err)
		}
		if second, err := volid.GroupName(pool, other); err == nil && (second == name) != (one == other) {
			t.Errorf("requests %q and %q: got names %q and %q", one, other, name, second)
		}
	})
}
