package volid_test

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// The names that released versions gave the images of these requests. A repeated
// request finds its image by them, so lines are added and never changed.
var releasedNames = map[string]string{
	claim:                    claim,
	"A.b_c-9":                "A.b_c-9",
	"...":                    "...",
	".":                      "%2E",
	"..":                     "%2E%2E",
	"-rf":                    "%2Drf",
	"a/b":                    "a%2Fb",
	"a@b:c d":                "a%40b%3Ac%20d",
	"100%":                   "100%25",
	"%h":                     "%25h",
	"größe":                  "gr%C3%B6%C3%9Fe",
	"a\nb":                   "a%0Ab",
	"\x00":                   "%00",
	strings.Repeat("a", 74):  strings.Repeat("a", 74),
	strings.Repeat("a", 75):  "%hrl4idpeirfn5twgovf22pudnya",
	strings.Repeat("a", 128): "%hna3m6e52yqaosecqohgwv5dqqq",
	strings.Repeat("/", 24):  strings.Repeat("%2F", 24),
	strings.Repeat("/", 25):  "%h5iorlqau2ndyapdpdn5aqyhkse",
}

func TestReleasedNamesStay(t *testing.T) {
	for request, want := range releasedNames {
		got, err := volid.ImageName(kube, "", request)
		if err != nil || got != want {
			t.Errorf("image name of %q: got %q, %v; want %q", request, got, err, want)
		}
	}
}

func TestImageNameKeepsThePrefix(t *testing.T) {
	for request, want := range map[string]string{
		claim:                    "prod-" + claim,
		"a/b":                    "prod-a%2Fb",
		"..":                     "prod-%2E%2E",
		strings.Repeat("a", 69):  "prod-" + strings.Repeat("a", 69),
		strings.Repeat("a", 128): "prod-%hna3m6e52yqaosecqohgwv5dqqq",
	} {
		if got, err := volid.ImageName(kube, "prod-", request); err != nil || got != want {
			t.Errorf("image name of %q: got %q, %v; want %q", request, got, err, want)
		}
	}
}

func TestLongestPrefix(t *testing.T) {
	prefix := "Zz-_." + strings.Repeat("p", 19)
	if got, err := volid.ImageName(kube, prefix, "Zz"); err != nil || got != prefix+"Zz" {
		t.Errorf("got %q, %v; want %q", got, err, prefix+"Zz")
	}
}

func TestNamesOfRequestsRefused(t *testing.T) {
	image := volid.Image{Pool: kube, Name: claim}
	for _, c := range []struct{ name, request, hint string }{
		{"empty", "", "empty"},
		{"129 bytes", strings.Repeat("a", 129), "129 bytes"},
		{"129 bytes in 65 characters", "a" + strings.Repeat("ü", 64), "129 bytes"},
		{"not UTF-8", "a\xff", "UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := volid.ImageName(kube, "", c.request)
			wantRefused(t, err, fault.Invalid, c.hint)
			_, err = volid.SnapshotName(image, c.request)
			wantRefused(t, err, fault.Invalid, c.hint)
		})
	}
	for _, prefix := range []string{"-a", "a/", "a b", "a%", "ü", strings.Repeat("p", 25)} {
		_, err := volid.ImageName(kube, prefix, claim)
		wantRefused(t, err, fault.Invalid, "name prefix")
	}
}

// The arithmetic of the package comment, at its bounds.
func TestRoom(t *testing.T) {
	poolOf := func(bytes int) volid.Pool {
		return volid.Pool{Cluster: "c", Pool: strings.Repeat("p", bytes-len("c:/"))}
	}
	for _, c := range []struct {
		name    string
		pool    volid.Pool
		request string
		want    string
	}{
		{"a claim keeps its name", poolOf(44), claim, claim},
		{"a claim is hashed", poolOf(45), claim, "%hfqcsfepwgabmhby7amxnpy7pou"},
		{"just fits", poolOf(56), claim, "%hfqcsfepwgabmhby7amxnpy7pou"},
		{"a short name fits where no hash does", poolOf(83), "a", "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			name, err := volid.ImageName(c.pool, "", c.request)
			if err != nil || name != c.want {
				t.Fatalf("got %q, %v; want %q", name, err, c.want)
			}
			wantSnapshots(t, volid.Image{Pool: c.pool, Name: name})
		})
	}
	_, err := volid.ImageName(poolOf(57), "", claim)
	wantRefused(t, err, fault.Invalid, "1 bytes too long")
	_, err = volid.ImageName(poolOf(50), "prefix-", claim)
	wantRefused(t, err, fault.Invalid, "1 bytes too long")
}

// wantSnapshots checks that any snapshot of image can be given a handle.
func wantSnapshots(t *testing.T, image volid.Image) {
	t.Helper()
	for _, request := range []string{snap, strings.Repeat("s", 128), "/"} {
		name, err := volid.SnapshotName(image, request)
		if err != nil {
			t.Errorf("snapshot name on %s of %d bytes: got %v, want none", image, len(image.String()), err)
			continue
		}
		want := volid.Snapshot{Image: image, Name: name, ImageID: imageID}
		if got, err := volid.ParseSnapshot(want.String()); err != nil || got != want {
			t.Errorf("snapshot %q: got %v, %v; want it back", want, got, err)
		}
	}
}

func TestSnapshotName(t *testing.T) {
	imageOf := func(bytes int) volid.Image {
		return volid.Image{Pool: kube, Name: strings.Repeat("i", bytes-len("main:kube/"))}
	}
	const hashed = "%hpaxzxrapjw3cjq2momtxte2kuq"
	for bytes, want := range map[int]string{67: snap, 68: hashed, volid.MaxVolume: hashed} {
		if got, err := volid.SnapshotName(imageOf(bytes), snap); err != nil || got != want {
			t.Errorf("on a volume handle of %d bytes: got %q, %v; want %q", bytes, got, err, want)
		}
		wantSnapshots(t, imageOf(bytes))
	}
	_, err := volid.SnapshotName(imageOf(volid.MaxVolume+1), snap)
	wantRefused(t, err, fault.Invalid, "1 bytes too long")
}

// undo returns the request that an unhashed name stands for.
func undo(t *testing.T, name string) string {
	t.Helper()
	request, err := url.PathUnescape(name)
	if err != nil {
		t.Errorf("unescape %q: %v", name, err)
	}
	return request
}

// FuzzImageName checks that names are safe to hold, that handles made of them parse
// and have room for snapshots, and that no two requests share a name.
func FuzzImageName(f *testing.F) {
	for request := range releasedNames {
		f.Add("", request, request+"x", 5)
		f.Add("prod-", request, "%h"+request, 60)
	}
	safe := regexp.MustCompile(`^([A-Za-z0-9._-]|%[0-9A-F]{2})+$|^%h[a-z2-7]{26}$`)
	f.Fuzz(func(t *testing.T, prefix, one, other string, poolBytes int) {
		pool := volid.Pool{Cluster: "c", Pool: strings.Repeat("p", 1+(poolBytes&63))}
		name, err := volid.ImageName(pool, prefix, one)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("got %v, want it invalid", err)
			}
			return
		}
		image := volid.Image{Pool: pool, Name: name}
		if got, err := volid.ParseImage(image.String()); err != nil || got != image {
			t.Fatalf("handle %q of request %q: got %v, %v", image, one, got, err)
		}
		wantSnapshots(t, image)
		form := strings.TrimPrefix(name, prefix)
		if !safe.MatchString(form) || form == "." || form == ".." || form[0] == '-' {
			t.Errorf("request %q: got unsafe name %q", one, form)
		}
		if !strings.HasPrefix(form, "%h") && undo(t, form) != one {
			t.Errorf("request %q: got name %q, which stands for %q", one, form, undo(t, form))
		}
		if second, err := volid.ImageName(pool, prefix, other); err == nil && (second == name) != (one == other) {
			t.Errorf("requests %q and %q: got names %q and %q", one, other, name, second)
		}
	})
}

// All requests of up to two of the bytes that matter to the forms have names of their own,
// and so have their hashes.
func TestShortRequestsNeverShareAName(t *testing.T) {
	letters := []string{"", "%", "h", "2", "F", "E", ".", "-", "/", "a", "\n", "ü"}
	seen := map[string]string{}
	for _, a := range letters {
		for _, b := range letters {
			for _, c := range letters {
				for _, tail := range []string{"", strings.Repeat("t", 100)} {
					request := a + b + c + tail
					name, err := volid.ImageName(kube, "", request)
					if before, taken := seen[name]; err == nil && taken && before != request {
						t.Errorf("requests %q and %q share the name %q", before, request, name)
					}
					seen[name] = request
				}
			}
		}
	}
	if want := 2000; len(seen) < want {
		t.Errorf("got %d names, want more than %d", len(seen), want)
	}
}

func ExampleImageName() {
	for _, request := range []string{"pvc-1", "a/b", strings.Repeat("x", 100)} {
		name, _ := volid.ImageName(volid.Pool{Cluster: "main", Pool: "kube"}, "", request)
		fmt.Println(name)
	}
	// Output:
	// pvc-1
	// a%2Fb
	// %hbhwln26ixtx4om7w6lwej54rvm
}
