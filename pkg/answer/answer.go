// Package answer writes what the policy found as messages of CSI, for the services that
// answer with the same things.
package answer

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Snapshot returns a snapshot as CSI has it. It can be restored as soon as it is there, so it
// is always ready to use.
func Snapshot(s snapshot.Snapshot) *csi.Snapshot {
	made := &csi.Snapshot{
		SnapshotId:     s.Handle.String(),
		SourceVolumeId: s.Source.String(),
		SizeBytes:      s.Bytes,
		CreationTime:   timestamppb.New(s.Time),
		ReadyToUse:     true,
	}
	if s.Group != (volid.Group{}) {
		made.GroupSnapshotId = s.Group.String()
	}
	return made
}

// Snapshots returns all of them, in their order.
func Snapshots(all []snapshot.Snapshot) []*csi.Snapshot {
	made := make([]*csi.Snapshot, 0, len(all))
	for _, one := range all {
		made = append(made, Snapshot(one))
	}
	return made
}
