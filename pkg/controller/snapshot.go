package controller

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/answer"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// CreateSnapshot makes sure that the snapshot is there.
func (s *Service) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	spec, as, err := readSnapshot(req)
	if err != nil {
		return nil, err
	}
	made, err := s.Store.Snapshots().Create(ctx, spec, as)
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: answer.Snapshot(made)}, nil
}

// DeleteSnapshot makes sure that the snapshot is gone. A handle that is not one of
// ours cannot name a snapshot of ours, so it is gone; one that is only misspelt is
// refused.
func (s *Service) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	as, err := params.ParseSecrets(req.GetSecrets())
	if err != nil {
		return nil, err
	}
	handle, err := volid.ParseSnapshot(req.GetSnapshotId())
	if errors.Is(err, fault.NotFound) {
		klog.FromContext(ctx).Info("Nothing to delete", "reason", err.Error())
		return &csi.DeleteSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, s.Store.Snapshots().Delete(ctx, handle, as)
}

// GetSnapshot returns one snapshot.
func (s *Service) GetSnapshot(ctx context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	found, err := s.findSnapshot(ctx, req.GetSnapshotId(), req.GetSecrets())
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: answer.Snapshot(found)}, nil
}

// ListSnapshots lists the snapshots of all visible pools, those of one volume, or one alone, a
// page at a time.
func (s *Service) ListSnapshots(ctx context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	if req.GetMaxEntries() < 0 {
		return nil, fmt.Errorf("max_entries %d is negative: %w", req.GetMaxEntries(), fault.Invalid)
	}
	list := s.listAll
	switch {
	case req.GetSnapshotId() != "":
		list = s.listOne
	case req.GetSourceVolumeId() != "":
		list = s.listOf
	}
	page, next, err := list(ctx, req)
	if err != nil {
		return nil, err
	}
	listed := &csi.ListSnapshotsResponse{NextToken: next}
	for _, one := range answer.Snapshots(page) {
		listed.Entries = append(listed.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: one})
	}
	return listed, nil
}

func (s *Service) listAll(ctx context.Context, req *csi.ListSnapshotsRequest) ([]snapshot.Snapshot, string, error) {
	return s.Store.Snapshots().List(ctx, req.GetStartingToken(), int(req.GetMaxEntries()))
}

// listOf lists the snapshots of a volume, also of a deleted one. A volume that never was has none.
func (s *Service) listOf(ctx context.Context, req *csi.ListSnapshotsRequest) ([]snapshot.Snapshot, string, error) {
	source, err := volid.ParseImage(req.GetSourceVolumeId())
	if err != nil {
		return nil, "", unlessMissing(err)
	}
	return s.Store.Snapshots().ListOf(ctx, source, req.GetStartingToken(), int(req.GetMaxEntries()))
}

// listOne lists one snapshot, if it is there and of the volume that the request names.
func (s *Service) listOne(ctx context.Context, req *csi.ListSnapshotsRequest) ([]snapshot.Snapshot, string, error) {
	if req.GetStartingToken() != "" {
		return nil, "", fmt.Errorf("starting token %q: the list of one snapshot has no second page: %w", req.GetStartingToken(), fault.Superseded)
	}
	found, err := s.findSnapshot(ctx, req.GetSnapshotId(), req.GetSecrets())
	if err != nil {
		return nil, "", unlessMissing(err)
	}
	if source := req.GetSourceVolumeId(); source != "" && source != found.Source.String() {
		return nil, "", nil
	}
	return []snapshot.Snapshot{found}, "", nil
}

// unlessMissing returns err unless it says that something is not there, which in a list is
// no error.
func unlessMissing(err error) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func (s *Service) findSnapshot(ctx context.Context, id string, secrets map[string]string) (snapshot.Snapshot, error) {
	as, err := params.ParseSecrets(secrets)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	handle, err := volid.ParseSnapshot(id)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	return s.Store.Snapshots().Get(ctx, handle, as)
}

// readSnapshot reads a CreateSnapshotRequest.
func readSnapshot(req *csi.CreateSnapshotRequest) (snapshot.CreateSpec, params.Credentials, error) {
	if req.GetAccessibilityRequirements() != nil {
		err := fmt.Errorf("accessibility_requirements: a snapshot can be used wherever its volume can: %w", fault.Invalid)
		return snapshot.CreateSpec{}, params.Credentials{}, err
	}
	if err := params.CheckSnapshotClass(req.GetParameters()); err != nil {
		return snapshot.CreateSpec{}, params.Credentials{}, err
	}
	source, as, err := readVolume(req.GetSourceVolumeId(), req.GetSecrets())
	return snapshot.CreateSpec{Source: source, Request: req.GetName()}, as, err
}
