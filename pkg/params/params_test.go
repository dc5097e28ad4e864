package params_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// with returns a copy of m with more keys.
func with(m map[string]string, pairs ...string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// wantInvalid checks that err is Invalid and names all of hints.
func wantInvalid(t *testing.T, err error, hints ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("got no error, want it invalid with %q", hints)
		return
	}
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v of kind %q, want it invalid", err, fault.Of(err))
	}
	for _, hint := range hints {
		if !strings.Contains(err.Error(), hint) {
			t.Errorf("got error %q, want it to name %q", err, hint)
		}
	}
}

// wantHidden checks that err does not quote text.
func wantHidden(t *testing.T, err error, text string) {
	t.Helper()
	if err != nil && strings.Contains(err.Error(), text) {
		t.Errorf("got error %q, want it not to quote %q", err, text)
	}
}

func TestUnknownKeysAreRefusedByName(t *testing.T) {
	for key, hint := range map[string]string{
		"Pool":                    `did you mean "pool"?`,
		"poool":                   `did you mean "pool"?`,
		"pol":                     `did you mean "pool"?`,
		"datapool":                `did you mean "dataPool"?`,
		"data-pool":               `did you mean "dataPool"?`,
		"image_features":          `did you mean "imageFeatures"?`,
		"imageFeature":            `did you mean "imageFeatures"?`,
		"fstype":                  `did you mean "fsType"?`,
		"mapOption":               `did you mean "mapOptions"?`,
		"mapoptoins":              `did you mean "mapOptions"?`,
		"nmaespace":               `did you mean "namespace"?`,
		"clusterID":               `did you mean "cluster"?`,
		"mounter":                 `did you mean "mapper"?`,
		"radosNamespace":          `did you mean "namespace"?`,
		"volumeNamePrefix":        `did you mean "imageNamePrefix"?`,
		"mapp":                    `did you mean "mapper"?`,
		"mapperxx":                `did you mean "mapper"?`,
		"mapperxxx":               "known are cluster, pool,",
		"xxxpper":                 "known are cluster, pool,",
		"cluxxxr":                 "known are cluster, pool,",
		"encrypted":               "known are cluster, pool,",
		"":                        "known are cluster, pool,",
		"csi.storage.k8s.oi":      "known are cluster, pool,",
		strings.Repeat("z", 1000): "known are cluster, pool,",
	} {
		_, err := params.ParseClass(with(pool, key, "the-value"), "main")
		wantInvalid(t, err, key, hint)
		wantHidden(t, err, "the-value")
	}
}

func TestTheSameErrorEachTime(t *testing.T) {
	bad := with(pool, "zzz", "1", "mapper", "no", "objectSize", "1", "aaa", "1")
	_, first := params.ParseClass(bad, "main")
	for range 50 {
		if _, err := params.ParseClass(bad, "main"); err.Error() != first.Error() {
			t.Fatalf("got %q after %q, want the same", err, first)
		}
	}
}

func TestCheckSnapshotClass(t *testing.T) {
	for name, parameters := range map[string]map[string]string{
		"none":            nil,
		"of the snapshot": {"csi.storage.k8s.io/volumesnapshot/name": "s", "csi.storage.k8s.io/volumesnapshot/namespace": "n", "csi.storage.k8s.io/volumesnapshotcontent/name": "c"},
		"of the group":    {"csi.storage.k8s.io/volumegroupsnapshot/name": "g", "csi.storage.k8s.io/volumegroupsnapshotcontent/name": "c"},
		"of the secret":   {"csi.storage.k8s.io/snapshotter-secret-name": "s", "csi.storage.k8s.io/snapshotter-secret-namespace": "n"},
	} {
		if err := params.CheckSnapshotClass(parameters); err != nil {
			t.Errorf("%s: got %v, want none", name, err)
		}
	}
	wantInvalid(t, params.CheckSnapshotClass(map[string]string{"pool": "kube", "clusterID": "main"}), "snapshot class", `"clusterID"`)
	wantInvalid(t, params.CheckSnapshotClass(map[string]string{"pool": ""}), `"pool"`)
}

func TestMutableParametersAreRefused(t *testing.T) {
	if err := params.CheckMutable(nil); err != nil {
		t.Errorf("no parameters: got %v, want none", err)
	}
	wantInvalid(t, params.CheckMutable(map[string]string{"iops": "100"}), "mutable", `"iops"`)
	wantInvalid(t, params.CheckMutable(map[string]string{"pool": ""}), `"pool"`)
}
