package answer_test

import (
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rbd-csi/rbd-csi/pkg/answer"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

func TestSnapshots(t *testing.T) {
	pool := volid.Pool{Cluster: "main", Pool: "kube"}
	source := volid.Image{Pool: pool, Name: "pvc-1"}
	moment := time.Unix(1_700_000_000, 5)
	alone := snapshot.Snapshot{
		Handle: volid.Snapshot{Image: source, Name: "s", ImageID: "10"}, Source: source, Bytes: 7, Time: moment,
	}
	member := alone
	member.Group = volid.Group{Pool: pool, Name: "g"}
	got := answer.Snapshots([]snapshot.Snapshot{alone, member})
	want := csi.Snapshot{
		SnapshotId: "main:kube/pvc-1@s#10", SourceVolumeId: "main:kube/pvc-1", SizeBytes: 7,
		CreationTime: timestamppb.New(moment), ReadyToUse: true,
	}
	for i, group := range []string{"", "main:kube/@g"} {
		want.GroupSnapshotId = group
		if !proto.Equal(got[i], &want) {
			t.Errorf("snapshot %d: got %v, want %v", i, got[i], &want)
		}
	}
}
