package volid_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

var (
	kube    = volid.Pool{Cluster: "main", Pool: "kube"}
	tenant  = volid.Pool{Cluster: "rook-ceph", Pool: "replicapool", Namespace: "tenant-a"}
	claim   = "pvc-0b6c2f0e-7a0f-4a55-9d8e-3f1c0c5d2a11"
	snap    = "snapshot-5d1f8a34-0a4c-4c8d-bf2e-6d0f4b1f9e77"
	imageID = "1f3a9c77b2d0e4"
)

// The handles that released versions have given out. Lines are added and never
// changed or removed: Kubernetes still holds these.
var (
	releasedImages = map[string]volid.Image{
		"main:kube/pvc-0b6c2f0e-7a0f-4a55-9d8e-3f1c0c5d2a11": {Pool: kube, Name: claim},
		"rook-ceph:replicapool/tenant-a/prod-pvc-1":          {Pool: tenant, Name: "prod-pvc-1"},
		"main:kube/a%2Fb%20c":                                {Pool: kube, Name: "a%2Fb%20c"},
		"main:kube/%hy54wzfqwlhfibxzkagy4bjcqce":             {Pool: kube, Name: "%hy54wzfqwlhfibxzkagy4bjcqce"},
		"a.b-1:my pool/my image":                             {Pool: volid.Pool{Cluster: "a.b-1", Pool: "my pool"}, Name: "my image"},
		"1:.mgr/größe":                                       {Pool: volid.Pool{Cluster: "1", Pool: ".mgr"}, Name: "größe"},
		"zz9.a-z:kube/Zz":                                    {Pool: volid.Pool{Cluster: "zz9.a-z", Pool: "kube"}, Name: "Zz"},
		"c2345678901234567890123456789012:p/i":               {Pool: volid.Pool{Cluster: "c2345678901234567890123456789012", Pool: "p"}, Name: "i"},
		"main:kube/a:b#c":                                    {Pool: kube, Name: "a:b#c"},
	}
	releasedSnapshots = map[string]volid.Snapshot{
		"main:kube/img@snap#1f3a9c77b2d0e4": {Image: volid.Image{Pool: kube, Name: "img"}, Name: "snap", ImageID: imageID},
		"rook-ceph:replicapool/tenant-a/img@a#b#10": {
			Image: volid.Image{Pool: tenant, Name: "img"}, Name: "a#b", ImageID: "10"},
	}
	releasedPools = map[string]volid.Pool{
		"main:kube":                      kube,
		"rook-ceph:replicapool/tenant-a": tenant,
	}
	releasedNodes = map[string]volid.Node{
		"node-1:559cfe2a":               {Name: "node-1"},
		"ip-10-0-0-1.eu.local:8ab37db2": {Name: "ip-10-0-0-1.eu.local"},
	}
)

// asReleased checks that each text still parses to its value, and that the value still
// writes the text.
func asReleased[T interface {
	comparable
	String() string
}](t *testing.T, released map[string]T, parse func(string) (T, error)) {
	t.Helper()
	for text, want := range released {
		got, err := parse(text)
		if err != nil || got != want {
			t.Errorf("parse %q: got %#v, %v; want %#v", text, got, err, want)
		}
		if got := want.String(); got != text {
			t.Errorf("string of %#v: got %q, want %q", want, got, text)
		}
	}
}

func TestReleasedHandlesAreReadForEver(t *testing.T) {
	asReleased(t, releasedImages, volid.ParseImage)
	asReleased(t, releasedSnapshots, volid.ParseSnapshot)
	asReleased(t, releasedPools, volid.ParsePool)
	asReleased(t, releasedNodes, volid.ParseNode)
}

// wantRefused checks the kind of err, and that its text holds hint.
func wantRefused(t *testing.T, err error, kind fault.Kind, hint string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want %q", kind)
	}
	if got := fault.Of(err); got != kind {
		t.Errorf("got kind %q (%v), want %q", got, err, kind)
	}
	if !strings.Contains(err.Error(), hint) {
		t.Errorf("got error %q, want it to name %q", err, hint)
	}
}

func TestParseImageRefuses(t *testing.T) {
	long := strings.Repeat("x", 200)
	for _, c := range []struct {
		name, handle string
		kind         fault.Kind
		hint         string
	}{
		{"empty", "", fault.NotFound, "not of the form"},
		{"a word", "fake-vol-id", fault.NotFound, "not of the form"},
		{"of ceph-csi", "0001-0009-rook-ceph-0000000000000002-0b6c2f0e-7a0f-4a55-9d8e-3f1c0c5d2a11", fault.NotFound, ""},
		{"of EBS", "vol-0a1b2c3d4e5f", fault.NotFound, ""},
		{"of GCE", "projects/p/zones/z/disks/d", fault.NotFound, ""},
		{"of Azure", "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/d", fault.NotFound, ""},
		{"of NFS", "nfs.example#share#pvc-1##", fault.NotFound, ""},
		{"of the kernel", "/dev/rbd0", fault.NotFound, ""},
		{"truncated in the cluster", "mai", fault.NotFound, ""},
		{"truncated after the colon", "main:", fault.NotFound, ""},
		{"truncated in the pool", "main:kub", fault.NotFound, ""},
		{"truncated after the pool", "main:kube/", fault.NotFound, ""},
		{"only separators", "://", fault.NotFound, ""},
		{"no cluster", ":kube/img", fault.NotFound, "cluster is empty"},
		{"too many segments", "main:kube/ns/img/more", fault.NotFound, ""},
		{"a snapshot", "main:kube/img@snap#10", fault.NotFound, `"@"`},
		{"odd first letter of the cluster", "_main:kube/img", fault.NotFound, "_main"},
		{"odd cluster", "ma_in:kube/img", fault.NotFound, "ma_in"},
		{"cluster ends in a dash", "main-:kube/img", fault.NotFound, "main-"},
		{"cluster begins with a dot", ".main:kube/img", fault.NotFound, ".main"},
		{"long cluster", strings.Repeat("c", 33) + ":kube/img", fault.NotFound, "1 to 32"},
		{"umlaut in the cluster", "mün:kube/img", fault.NotFound, ""},
		{"newline inside", "main:kube/im\ng", fault.NotFound, "cannot be printed"},
		{"NUL", "main:kube/im\x00g", fault.NotFound, "cannot be printed"},
		{"right-to-left override", "main:kube/im\u202eg", fault.NotFound, "cannot be printed"},
		{"no-break space inside", "main:kube/im\u00a0g", fault.NotFound, "cannot be printed"},
		{"not UTF-8", "main:kube/im\xffg", fault.NotFound, "UTF-8"},
		{"long and strange", "main:kube/\x01" + long, fault.NotFound, "cannot be printed"},
		{"empty namespace", "main:kube//img", fault.Invalid, `"main:kube/img"`},
		{"slash at the end", "main:kube/img/", fault.Invalid, `"main:kube/img"`},
		{"slash before the pool", "main:/kube/img", fault.Invalid, `"main:kube/img"`},
		{"blank before", " main:kube/img", fault.Invalid, `"main:kube/img"`},
		{"newline after", "main:kube/img\n", fault.Invalid, `"main:kube/img"`},
		{"blanks inside", "main: kube / ns / img", fault.Invalid, `"main:kube/ns/img"`},
		{"upper case in the cluster", "Main:kube/Img", fault.Invalid, `"main:kube/Img"`},
		{"129 bytes", "main:kube/" + strings.Repeat("x", 119), fault.Invalid, "129 bytes where the CSI specification allows 128"},
		{"over-long", "main:kube/" + long, fault.Invalid, "128"},
		{"over-long and not canonical", "Main:kube//" + long, fault.Invalid, "128"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := volid.ParseImage(c.handle)
			wantRefused(t, err, c.kind, c.hint)
			if got != (volid.Image{}) {
				t.Errorf("got %#v beside the error, want nothing", got)
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("got an error of %d bytes, want it short", len(err.Error()))
			}
		})
	}
}

func TestParseImageTakes128Bytes(t *testing.T) {
	handle := "main:kube/" + strings.Repeat("x", 118)
	image, err := volid.ParseImage(handle)
	if err != nil || image.String() != handle {
		t.Errorf("got %q, %v; want the handle of %d bytes back", image, err, len(handle))
	}
}

func TestParseSnapshotRefuses(t *testing.T) {
	for _, c := range []struct {
		name, handle string
		kind         fault.Kind
		hint         string
	}{
		{"empty", "", fault.NotFound, "not of the form"},
		{"a volume", "main:kube/img", fault.NotFound, ""},
		{"no ID", "main:kube/img@snap", fault.NotFound, ""},
		{"hash before the at", "main:kube/i#1@snap", fault.NotFound, ""},
		{"empty ID", "main:kube/img@snap#", fault.NotFound, "image ID"},
		{"odd ID", "main:kube/img@snap#1_2", fault.NotFound, "image ID"},
		{"long ID", "main:kube/img@snap#123456789012345", fault.NotFound, "image ID"},
		{"empty name", "main:kube/img@#10", fault.NotFound, "snapshot is empty"},
		{"two at", "main:kube/img@a@b#10", fault.NotFound, `"@"`},
		{"slash in the name", "main:kube/img@a/b#10", fault.NotFound, `"/"`},
		{"of ceph-csi", "0001-0009-rook-ceph-0000000000000002-0b6c2f0e", fault.NotFound, ""},
		{"empty namespace", "main:kube//img@snap#10", fault.Invalid, `"main:kube/img@snap#10"`},
		{"blanks", "main:kube/img @ snap # 10 ", fault.Invalid, `"main:kube/img@snap#10"`},
		{"over-long", "main:kube/img@" + strings.Repeat("s", 128) + "#10", fault.Invalid, "128"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := volid.ParseSnapshot(c.handle)
			wantRefused(t, err, c.kind, c.hint)
		})
	}
}

func TestParsePoolRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, hint string }{
		{"empty", "", "not of the form"},
		{"no colon", "kube", "not of the form"},
		{"an image", "main:kube/ns/img", "not of the form"},
		{"empty pool", "main:", "not of the form"},
		{"empty namespace", "main:kube/", `"main:kube"`},
		{"upper case", "MAIN:kube", `"main:kube"`},
		{"long", "main:" + strings.Repeat("p", 124), "128"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := volid.ParsePool(c.text)
			wantRefused(t, err, fault.Invalid, c.hint)
		})
	}
}

func TestCheckSaysWhichPart(t *testing.T) {
	good := volid.Snapshot{Image: volid.Image{Pool: tenant, Name: "img"}, Name: "snap", ImageID: imageID}
	if err := good.Check(); err != nil {
		t.Fatalf("check of %v: got %v, want none", good, err)
	}
	for hint, spoil := range map[string]func(*volid.Snapshot){
		"cluster":  func(s *volid.Snapshot) { s.Cluster = "A" },
		"pool":     func(s *volid.Snapshot) { s.Pool.Pool = "" },
		"namespac": func(s *volid.Snapshot) { s.Namespace = "a/b" },
		"image ":   func(s *volid.Snapshot) { s.Image.Name = "a@b" },
		"snapshot": func(s *volid.Snapshot) { s.Name = " a" },
		"image ID": func(s *volid.Snapshot) { s.ImageID = "-" },
		"handle":   func(s *volid.Snapshot) { s.Name = strings.Repeat("n", 128) },
	} {
		bad := good
		spoil(&bad)
		wantRefused(t, bad.Check(), fault.Invalid, hint)
	}
}

func TestNode(t *testing.T) {
	node := volid.Node{Name: strings.Repeat("n", 183)}
	if got := len(node.String()); got != 192 || volid.MaxNode != 192 || node.Check() != nil {
		t.Errorf("longest node ID: got %d bytes, %v; want %d", got, node.Check(), volid.MaxNode)
	}
	for _, name := range []string{"", "a b", "a:b", "ü", "a\n", node.Name + "n"} {
		wantRefused(t, volid.Node{Name: name}.Check(), fault.Invalid, "node")
	}
	for _, id := range []string{"", "node-1", "some-fake-node-id", "node-1:", ":559cfe2a", "node-1:559cfe20",
		"node-1:559CFE2A", "node-2:559cfe2a", "node-1:559cfe2a ", volid.Node{Name: "a:b"}.String(),
		volid.Node{Name: node.Name + "n"}.String()} {
		_, err := volid.ParseNode(id)
		wantRefused(t, err, fault.NotFound, "node ID")
	}
}

// roundTrip checks that what parses is written as it was read, and that what is
// refused has one of the kinds that the parser promises.
func roundTrip[T interface{ String() string }](t *testing.T, text string, parse func(string) (T, error), kinds ...fault.Kind) {
	got, err := parse(text)
	if err == nil {
		if got.String() != text {
			t.Errorf("parse %q: got %q back", text, got.String())
		}
		return
	}
	for _, kind := range kinds {
		if fault.Is(err, kind) {
			return
		}
	}
	t.Errorf("parse %q: got %v, want one of %v", text, err, kinds)
}

func seed[T any](f *testing.F, released map[string]T) {
	for text := range released {
		f.Add(text)
	}
	for _, text := range []string{"", ":", "a:b/c", " A:b//c ", "a:b/c@d#1", "a:b/c@d#e#1", "a:\xff/b", "n:00000000"} {
		f.Add(text)
	}
}

func FuzzParseImage(f *testing.F) {
	seed(f, releasedImages)
	f.Fuzz(func(t *testing.T, text string) {
		roundTrip(t, text, volid.ParseImage, fault.NotFound, fault.Invalid)
		image, err := volid.ParseImage(text)
		if err != nil {
			return
		}
		if err := image.Check(); err != nil || len(text) > volid.MaxHandle {
			t.Errorf("%q parses, %d bytes long, and its check says %v", text, len(text), err)
		}
		if _, err := volid.ParsePool(image.Pool.String()); err != nil {
			t.Errorf("%q parses, and its pool does not: %v", text, err)
		}
	})
}

func FuzzParseSnapshot(f *testing.F) {
	seed(f, releasedSnapshots)
	f.Fuzz(func(t *testing.T, text string) {
		roundTrip(t, text, volid.ParseSnapshot, fault.NotFound, fault.Invalid)
		if snapshot, err := volid.ParseSnapshot(text); err == nil {
			if _, err := volid.ParseImage(snapshot.Image.String()); err != nil {
				t.Errorf("%q parses, and its image does not: %v", text, err)
			}
			if _, err := volid.ParseImage(text); !errors.Is(err, fault.NotFound) {
				t.Errorf("%q is a snapshot; as a volume it is %v, want not found", text, err)
			}
		}
	})
}

func FuzzParsePool(f *testing.F) {
	seed(f, releasedPools)
	f.Fuzz(func(t *testing.T, text string) { roundTrip(t, text, volid.ParsePool, fault.Invalid) })
}

func FuzzParseNode(f *testing.F) {
	seed(f, releasedNodes)
	f.Fuzz(func(t *testing.T, text string) { roundTrip(t, text, volid.ParseNode, fault.NotFound) })
}
