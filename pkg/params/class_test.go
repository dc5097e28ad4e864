package params_test

import (
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

var (
	pool = map[string]string{"pool": "kube"}

	// plain is what the shortest class is read as.
	plain = params.Class{
		Pool:          volid.Pool{Cluster: "main", Pool: "kube"},
		Features:      params.DefaultFeatures,
		ObjectSize:    4 << 20,
		VolumeContext: params.VolumeContext{Mapper: params.Auto},
	}
	full = params.Class{
		Pool:            volid.Pool{Cluster: "main", Pool: "kube", Namespace: "tenant a"},
		DataPool:        "ec",
		Features:        params.Layering | params.ExclusiveLock | params.ObjectMap,
		ObjectSize:      8 << 20,
		StripeUnit:      64 << 10,
		StripeCount:     16,
		ImageNamePrefix: "prod-",
		VolumeContext: params.VolumeContext{
			Mapper:      params.NBD,
			MapOptions:  []string{"rxbounce", "ms_mode=prefer-crc", "crush_location=host:a|rack:b=c"},
			FSType:      params.XFS,
			MkfsOptions: []string{"-m", "reflink=1", "-K"},
		},
		Owner: params.Owner{Claim: "data-web-0", ClaimNamespace: "default", Volume: "pvc-1"},
	}
)

// The parameters of classes that worked with a released version. Lines are added and
// never changed or removed: clusters hold such classes, and images such fingerprints.
var releasedClasses = []struct {
	name        string
	parameters  map[string]string
	class       params.Class
	fingerprint string
}{
	{"shortest", map[string]string{"cluster": "main", "pool": "kube"}, plain, "1-6ebdbbbbc7f6af90"},
	{"full", map[string]string{
		"cluster": "main", "pool": "kube", "namespace": "tenant a", "dataPool": "ec",
		"imageFeatures": "layering,exclusive-lock,object-map", "objectSize": "8Mi",
		"stripeUnit": "64Ki", "stripeCount": "16", "imageNamePrefix": "prod-", "mapper": "nbd",
		"mapOptions": "rxbounce,ms_mode=prefer-crc,crush_location=host:a|rack:b=c",
		"fsType":     "xfs", "mkfsOptions": "-m reflink=1 -K",
		"csi.storage.k8s.io/pvc/name": "data-web-0", "csi.storage.k8s.io/pvc/namespace": "default",
		"csi.storage.k8s.io/pv/name": "pvc-1"}, full, "1-db819d0b34513d6d"},
}

func TestReleasedClassesAreReadForEver(t *testing.T) {
	for _, c := range releasedClasses {
		got, err := params.ParseClass(c.parameters, "")
		if err != nil || !reflect.DeepEqual(got, c.class) {
			t.Errorf("%s: got %+v, %v; want %+v", c.name, got, err, c.class)
		}
		if got := c.class.Map(); !maps.Equal(got, c.parameters) {
			t.Errorf("%s: got map %v, want %v", c.name, got, c.parameters)
		}
		if got := c.class.Fingerprint(); got != c.fingerprint {
			t.Errorf("%s: got fingerprint %q, want %q", c.name, got, c.fingerprint)
		}
	}
}

// Other ways to write a class, and what they come to.
func TestParseClass(t *testing.T) {
	changed := func(change func(*params.Class)) params.Class {
		c := plain
		change(&c)
		return c
	}
	for _, c := range []struct {
		name  string
		more  []string
		class params.Class
	}{
		{"default cluster", nil, plain},
		{"named cluster", []string{"cluster", "other"}, changed(func(c *params.Class) { c.Pool.Cluster = "other" })},
		{"empty values are not given", []string{"cluster", "", "namespace", "", "dataPool", "", "imageFeatures", "",
			"objectSize", "", "stripeUnit", "", "stripeCount", "", "mapper", "", "mapOptions", "", "fsType", "",
			"mkfsOptions", "", "imageNamePrefix", "", params.KeyClaim, ""}, plain},
		{"defaults spelt out", []string{"mapper", "auto", "objectSize", "4194304",
			"imageFeatures", "deep-flatten, fast-diff,object-map,exclusive-lock,layering,layering"}, plain},
		{"no striping", []string{"objectSize", "4Mi", "stripeUnit", "4096K", "stripeCount", "1"}, plain},
		{"metadata of a newer provisioner", []string{"csi.storage.k8s.io/pvc/uid", "1"}, plain},
		{"4M", []string{"objectSize", "4M"}, plain},
		{"smallest objects", []string{"objectSize", "4096"}, changed(func(c *params.Class) { c.ObjectSize = 4 << 10 })},
		{"largest objects", []string{"objectSize", "32Mi"}, changed(func(c *params.Class) { c.ObjectSize = 32 << 20 })},
		{"small stripes", []string{"stripeUnit", "512", "stripeCount", "1024"},
			changed(func(c *params.Class) { c.StripeUnit, c.StripeCount = 512, 1024 })},
		{"one column of small stripes", []string{"stripeUnit", "1024", "stripeCount", "1"},
			changed(func(c *params.Class) { c.StripeUnit, c.StripeCount = 1<<10, 1 })},
		{"whole objects in columns", []string{"objectSize", "1Mi", "stripeUnit", "1048576", "stripeCount", "4"},
			changed(func(c *params.Class) { c.ObjectSize, c.StripeUnit, c.StripeCount = 1<<20, 1<<20, 4 })},
		{"several writers", []string{"imageFeatures", "layering"},
			changed(func(c *params.Class) { c.Features = params.Layering })},
		{"options for xfs, whose name comes with the request", []string{"mkfsOptions", " -d agcount=4\n"},
			changed(func(c *params.Class) { c.MkfsOptions = []string{"-d", "agcount=4"} })},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := params.ParseClass(with(pool, c.more...), "main")
			if err != nil || !reflect.DeepEqual(got, c.class) {
				t.Fatalf("got %+v, %v; want %+v", got, err, c.class)
			}
			again, err := params.ParseClass(got.Map(), "")
			if err != nil || !reflect.DeepEqual(again, got) {
				t.Errorf("read back: got %+v, %v; want %+v", again, err, got)
			}
		})
	}
}

func TestParseClassRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		more []string
		hint []string
	}{
		{"no pool", []string{"pool", ""}, []string{"pool: required"}},
		{"pool with a slash", []string{"pool", "a/b"}, []string{"pool", `"/"`}},
		{"pool with an at", []string{"pool", "a@b"}, []string{"pool"}},
		{"pool with a line end", []string{"pool", "kube\n"}, []string{"pool", "printed"}},
		{"pool with a blank", []string{"pool", "kube "}, []string{"pool", "blank"}},
		{"blank pool", []string{"pool", " "}, []string{"pool", "blank"}},
		{"cluster in upper case", []string{"cluster", "Main"}, []string{"cluster", "a-z"}},
		{"cluster with a slash", []string{"cluster", "../etc"}, []string{"cluster"}},
		{"namespace with a slash", []string{"namespace", "a/b"}, []string{"namespace"}},
		{"data pool with a slash", []string{"dataPool", "a/b"}, []string{"dataPool"}},
		{"unknown feature", []string{"imageFeatures", "layering,fancy"}, []string{"imageFeatures", "fancy", "exclusive-lock"}},
		{"striping as a feature", []string{"imageFeatures", "layering,striping"}, []string{"imageFeatures"}},
		{"empty feature", []string{"imageFeatures", "layering,,exclusive-lock"}, []string{"imageFeatures", "empty"}},
		{"object map without lock", []string{"imageFeatures", "layering,object-map"}, []string{"object-map needs exclusive-lock"}},
		{"fast diff without object map", []string{"imageFeatures", "exclusive-lock,fast-diff"}, []string{"fast-diff needs object-map"}},
		{"journaling without lock", []string{"imageFeatures", "journaling"}, []string{"journaling needs exclusive-lock"}},
		{"journaling", []string{"imageFeatures", "exclusive-lock,journaling"}, []string{"journals", "rbd feature enable"}},
		{"object size 0", []string{"objectSize", "0"}, []string{"objectSize", "4Ki", "32Mi"}},
		{"object size 1", []string{"objectSize", "1"}, []string{"objectSize"}},
		{"object size negative", []string{"objectSize", "-4096"}, []string{"objectSize"}},
		{"object size no power of two", []string{"objectSize", "3Mi"}, []string{"objectSize", "power of two"}},
		{"object size too small", []string{"objectSize", "2048"}, []string{"objectSize"}},
		{"object size too large", []string{"objectSize", "64Mi"}, []string{"objectSize"}},
		{"object size in GiB", []string{"objectSize", "1Gi"}, []string{"objectSize"}},
		{"object size with a fraction", []string{"objectSize", "0.5Mi"}, []string{"objectSize"}},
		{"object size with a blank", []string{"objectSize", "4 Mi"}, []string{"objectSize"}},
		{"object size immense", []string{"objectSize", "99999999999999999999Mi"}, []string{"objectSize"}},
		{"object size that overflows", []string{"objectSize", "4294967295Mi"}, []string{"objectSize"}},
		{"stripe unit alone", []string{"stripeUnit", "4096"}, []string{"stripeUnit and stripeCount"}},
		{"stripe count alone", []string{"stripeCount", "4"}, []string{"stripeUnit and stripeCount"}},
		{"stripe unit does not divide", []string{"stripeUnit", "3Ki", "stripeCount", "2"}, []string{"stripeUnit", "4Mi"}},
		{"stripe unit above the object", []string{"stripeUnit", "8Mi", "stripeCount", "2"}, []string{"stripeUnit", "4Mi"}},
		{"stripe unit 0", []string{"stripeUnit", "0", "stripeCount", "2"}, []string{"stripeUnit"}},
		{"stripe count 0", []string{"stripeUnit", "4096", "stripeCount", "0"}, []string{"stripeCount"}},
		{"stripe count too large", []string{"stripeUnit", "4096", "stripeCount", "1025"}, []string{"stripeCount", "1024"}},
		{"unknown mapper", []string{"mapper", "rbd-nbd"}, []string{"mapper", "auto, krbd, nbd, fuse"}},
		{"mapper in upper case", []string{"mapper", "KRBD"}, []string{"mapper"}},
		{"unknown filesystem", []string{"fsType", "btrfs"}, []string{"fsType", "ext4, xfs"}},
		{"ext3", []string{"fsType", "ext3"}, []string{"fsType", "ext4, xfs"}},
		{"mkfs options of the other filesystem", []string{"fsType", "xfs", "mkfsOptions", "-E nodiscard"}, []string{"mkfsOptions", "mkfs.xfs"}},
		{"mkfs options of neither", []string{"mkfsOptions", "-F"}, []string{"mkfsOptions", "-F", "written over"}},
		{"prefix with a slash", []string{"imageNamePrefix", "a/"}, []string{"imageNamePrefix"}},
		{"prefix with an escape", []string{"imageNamePrefix", "a%2F"}, []string{"imageNamePrefix"}},
		{"prefix too long", []string{"imageNamePrefix", strings.Repeat("p", 25)}, []string{"imageNamePrefix", "24"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := params.ParseClass(with(pool, c.more...), "main")
			wantInvalid(t, err, append(c.hint, "storage class")...)
			if !reflect.DeepEqual(got, params.Class{}) {
				t.Errorf("got %+v beside the error, want nothing", got)
			}
		})
	}
	_, err := params.ParseClass(pool, "")
	wantInvalid(t, err, "cluster: required")
	_, err = params.ParseClass(nil, "main")
	wantInvalid(t, err, "pool: required")
}

func TestFingerprint(t *testing.T) {
	all := map[string]string{plain.Fingerprint(): "the shortest class"}
	for _, pair := range [][2]string{
		{"cluster", "other"}, {"pool", "b"}, {"namespace", "b"}, {"dataPool", "b"}, {"imageFeatures", "layering"},
		{"objectSize", "8Mi"}, {"mapper", "krbd"}, {"mapOptions", "a"}, {"fsType", "xfs"}, {"fsType", "ext4"},
		{"mkfsOptions", "-K"}, {"imageNamePrefix", "b"},
	} {
		class, err := params.ParseClass(with(pool, pair[0], pair[1]), "main")
		if err != nil {
			t.Fatal(err)
		}
		print := class.Fingerprint()
		if other, taken := all[print]; taken {
			t.Errorf("%v has the fingerprint of %s", pair, other)
		}
		all[print] = pair[0]
	}
	owned := plain
	owned.Owner = full.Owner
	if got, want := owned.Fingerprint(), plain.Fingerprint(); got != want {
		t.Errorf("of another owner: got %q, want %q", got, want)
	}
}

// Sizes are written in the shortest way.
func TestSizesAreWrittenInOneWay(t *testing.T) {
	for given, want := range map[string]string{"1536": "1536", "1536K": "1536Ki", "3M": "3Mi"} {
		_, err := params.ParseClass(with(pool, "stripeUnit", given, "stripeCount", "2"), "main")
		wantInvalid(t, err, "stripeUnit: "+want+" does not divide")
	}
	for given, want := range map[string]string{"1": "1", "512": "512", "1024": "1Ki", "2K": "2Ki",
		"1024Ki": "1Mi", "1M": "1Mi", "2097152": "2Mi", "32M": "32Mi"} {
		class, err := params.ParseClass(with(pool, "objectSize", "32Mi", "stripeUnit", given, "stripeCount", "2"), "main")
		if err != nil || class.Map()["stripeUnit"] != want {
			t.Errorf("size %s: got %q, %v; want %q", given, class.Map()["stripeUnit"], err, want)
		}
	}
}

func TestFeaturesAreWrittenInOneOrder(t *testing.T) {
	const want = "layering,exclusive-lock,object-map,fast-diff,deep-flatten"
	if got := params.DefaultFeatures.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := params.Journaling; uint64(got) != 64 {
		t.Errorf("journaling: got bits %d, want 64", got)
	}
	if got := params.DefaultFeatures; uint64(got) != 61 {
		t.Errorf("got bits %d, want 61 as librbd's rbd_default_features", got)
	}
}

// FuzzParseClass reads a good class with two keys changed or added.
func FuzzParseClass(f *testing.F) {
	for _, c := range releasedClasses {
		for key, value := range c.parameters {
			f.Add(key, value, "mapper", "krbd")
		}
	}
	f.Add("objectSize", "4294967295Mi", "stripeUnit", "3K")
	f.Add("imageFeatures", "layering, ,", "mkfsOptions", "-qm")
	f.Fuzz(func(t *testing.T, key, value, key2, value2 string) {
		class, err := params.ParseClass(with(pool, key, value, key2, value2), "main")
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v, want it invalid", err)
			}
			return
		}
		again, err := params.ParseClass(class.Map(), "")
		if err != nil || !reflect.DeepEqual(again, class) {
			t.Errorf("read back: got %+v, %v; want %+v", again, err, class)
		}
		if again.Fingerprint() != class.Fingerprint() {
			t.Errorf("got fingerprints %q and %q for one class", again.Fingerprint(), class.Fingerprint())
		}
		if err := class.Pool.Check(); err != nil && len(class.Pool.String()) <= volid.MaxHandle {
			t.Errorf("class is accepted, and its pool is not: %v", err)
		}
	})
}
