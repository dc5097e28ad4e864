package node

import (
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

func TestCheckSegments(t *testing.T) {
	for _, test := range []struct {
		key, value string
		good       bool
	}{
		{"topology.rbd-csi.io/reach", "all", true},
		{"a/b", "1", true},
		{"rbd-csi.io/" + strings.Repeat("n", 63), strings.Repeat("v", 63), true},
		{"rbd-csi.io/" + strings.Repeat("n", 64), "all", false},
		{"rbd-csi.io/reach", strings.Repeat("v", 64), false},
		{"reach", "all", false},
		{"rbd-csi.io/", "all", false},
		{"/reach", "all", false},
		{"Rbd-csi.io/reach", "all", false},
		{"rbd-csi.io/reach", "", false},
		{"rbd-csi.io/reach", "a b", false},
		{"rbd-csi.io/reach", "-", false},
	} {
		err := CheckSegments(map[string]string{test.key: test.value})
		if test.good && err != nil || !test.good && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s=%s: got %v, want it taken: %t", test.key, test.value, err, test.good)
		}
	}
	if err := CheckSegments(nil); err != nil {
		t.Errorf("no segments: got %v, want no error", err)
	}
}

// Only a node that was told where it is says so.
func TestSegments(t *testing.T) {
	for _, segments := range []map[string]string{nil, {"a/b": "c"}} {
		info, err := (&Service{Segments: segments}).NodeGetInfo(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.GetAccessibleTopology(); (got != nil) != (segments != nil) || got.GetSegments()["a/b"] != segments["a/b"] {
			t.Errorf("with %v: got %v", segments, got)
		}
	}
}
