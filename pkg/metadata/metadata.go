// Package metadata is the CSI SnapshotMetadata service: it reads a request, calls snapshot, and
// streams the answer.
//
// The ranges are of VARIABLE_LENGTH. They begin and end with whole data objects, but
// neighbours come as one range: a full volume is a single range and not one for each 4
// MiB, and the last object may be cut short by the end of the volume, which the
// constant size of FIXED_LENGTH does not allow.
package metadata

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// MostResults is how many ranges a message of the stream has at most, whatever is asked for: at
// up to 22 bytes each, a message of 10,000 is far below the 4 MiB that gRPC takes by default.
const MostResults = 10_000

const style = csi.BlockMetadataType_VARIABLE_LENGTH

// A Service answers the SnapshotMetadata calls. Its methods may be called at once.
type Service struct {
	csi.UnimplementedSnapshotMetadataServer

	// Snapshots holds the snapshots.
	Snapshots *snapshot.Store
}

// GetMetadataAllocated streams which parts of a snapshot were ever written.
func (s *Service) GetMetadataAllocated(req *csi.GetMetadataAllocatedRequest, stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	return s.stream(stream.Context(), req, req.GetSnapshotId(), "", func(bytes int64, blocks []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataAllocatedResponse{
			BlockMetadataType: style, VolumeCapacityBytes: bytes, BlockMetadata: blocks,
		})
	})
}

// GetMetadataDelta streams which parts of a snapshot differ from an earlier one of the same volume.
func (s *Service) GetMetadataDelta(req *csi.GetMetadataDeltaRequest, stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	return s.stream(stream.Context(), req, req.GetTargetSnapshotId(), req.GetBaseSnapshotId(), func(bytes int64, blocks []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataDeltaResponse{
			BlockMetadataType: style, VolumeCapacityBytes: bytes, BlockMetadata: blocks,
		})
	})
}

// An asking is what both requests have.
type asking interface {
	GetStartingOffset() int64
	GetMaxResults() int32
	GetSecrets() map[string]string
}

// A sender sends one message. bytes is the size of the volume.
type sender func(bytes int64, blocks []*csi.BlockMetadata) error

// stream sends what differs between two snapshots; "" as the base is the beginning. Where
// nothing does there is one message without ranges, for the size.
func (s *Service) stream(ctx context.Context, req asking, target, base string, send sender) error {
	spec, err := read(req, target, base)
	if err != nil {
		return err
	}
	as, err := params.ParseSecrets(req.GetSecrets())
	if err != nil {
		return err
	}
	most := pageOf(req.GetMaxResults())
	return s.Snapshots.Changed(ctx, spec, as, func(bytes int64, extents []rbd.Extent) error {
		for {
			page := extents[:min(most, len(extents))]
			if err := send(bytes, write(page)); err != nil {
				return err
			}
			if extents = extents[len(page):]; len(extents) == 0 {
				return nil
			}
		}
	})
}

// read reads what is to be compared. A handle that is not one of ours is fault.NotFound.
func read(req asking, target, base string) (snapshot.ChangedSpec, error) {
	spec := snapshot.ChangedSpec{Offset: req.GetStartingOffset()}
	if req.GetMaxResults() < 0 {
		return spec, fmt.Errorf("max_results %d is negative: %w", req.GetMaxResults(), fault.Invalid)
	}
	var err error
	if spec.To, err = volid.ParseSnapshot(target); err != nil || base == "" {
		return spec, err
	}
	from, err := volid.ParseSnapshot(base)
	spec.From = &from
	return spec, err
}

// pageOf returns how many ranges a message may have.
func pageOf(wanted int32) int {
	if wanted == 0 || wanted > MostResults {
		return MostResults
	}
	return int(wanted)
}

func write(extents []rbd.Extent) []*csi.BlockMetadata {
	blocks := make([]*csi.BlockMetadata, 0, len(extents))
	for _, one := range extents {
		blocks = append(blocks, &csi.BlockMetadata{ByteOffset: one.Offset, SizeBytes: one.Bytes})
	}
	return blocks
}
