package node

import (
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// What is not known stays 0, which the kubelet takes for unknown.
func TestAnswerUsage(t *testing.T) {
	for _, test := range []struct {
		name  string
		usage filesystem.Usage
		want  []*csi.VolumeUsage
	}{
		{"block device", filesystem.Usage{Block: true, Total: 10},
			[]*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: 10}}},
		{"block device of which more is known", filesystem.Usage{Block: true, Total: 10, Used: 4, Available: 6},
			[]*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: 10, Used: 4, Available: 6}}},
		{"filesystem", filesystem.Usage{Total: 10, Used: 4, Available: 5, Inodes: 9, InodesUsed: 2, InodesAvailable: 7},
			[]*csi.VolumeUsage{
				{Unit: csi.VolumeUsage_BYTES, Total: 10, Used: 4, Available: 5},
				{Unit: csi.VolumeUsage_INODES, Total: 9, Used: 2, Available: 7},
			}},
	} {
		got := answerUsage(test.usage)
		if len(got) != len(test.want) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
			continue
		}
		for at, one := range got {
			if one.String() != test.want[at].String() {
				t.Errorf("%s: got %v, want %v", test.name, one, test.want[at])
			}
		}
	}
}
