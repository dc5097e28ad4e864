// Package group is the CSI GroupController service: it reads a request, calls snapshot, and
// answers, as package controller does.
package group

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/answer"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Service answers the GroupController calls. Its methods may be called at once.
type Service struct {
	csi.UnimplementedGroupControllerServer

	// Snapshots holds the snapshots and the groups of them.
	Snapshots *snapshot.Store
}

// GroupControllerGetCapabilities says that there are group snapshots.
func (s *Service) GroupControllerGetCapabilities(
	context.Context, *csi.GroupControllerGetCapabilitiesRequest,
) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	const able = csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{
		Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: &csi.GroupControllerServiceCapability_RPC{Type: able}},
	}}}, nil
}

// CreateVolumeGroupSnapshot makes sure that the snapshots of all volumes are there, of one moment.
func (s *Service) CreateVolumeGroupSnapshot(ctx context.Context, req *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	spec, as, err := readCreate(req)
	if err != nil {
		return nil, err
	}
	made, err := s.Snapshots.CreateGroup(ctx, spec, as)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: write(made)}, nil
}

// DeleteVolumeGroupSnapshot makes sure that all snapshots of the group are gone. A handle
// that is not one of ours cannot name a group of ours, so it is gone; one that is only
// misspelt is refused.
func (s *Service) DeleteVolumeGroupSnapshot(ctx context.Context, req *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	found, err := readNamed(req)
	if fault.Is(err, fault.NotFound) {
		klog.FromContext(ctx).Info("Nothing to delete", "reason", err.Error())
		return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, s.Snapshots.DeleteGroup(ctx, found.handle, found.members, found.as)
}

// GetVolumeGroupSnapshot returns one group.
func (s *Service) GetVolumeGroupSnapshot(ctx context.Context, req *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	wanted, err := readNamed(req)
	if err != nil {
		return nil, err
	}
	found, err := s.Snapshots.GetGroup(ctx, wanted.handle, wanted.members, wanted.as)
	if err != nil {
		return nil, err
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: write(found)}, nil
}

// readCreate reads a CreateVolumeGroupSnapshotRequest.
func readCreate(req *csi.CreateVolumeGroupSnapshotRequest) (snapshot.GroupSpec, params.Credentials, error) {
	spec := snapshot.GroupSpec{Request: req.GetName()}
	if err := params.CheckSnapshotClass(req.GetParameters()); err != nil {
		return spec, params.Credentials{}, err
	}
	for _, id := range req.GetSourceVolumeIds() {
		source, err := volid.ParseImage(id)
		if err != nil {
			return spec, params.Credentials{}, err
		}
		spec.Sources = append(spec.Sources, source)
	}
	as, err := params.ParseSecrets(req.GetSecrets())
	return spec, as, err
}

// A naming is what a request about a group that is there has.
type naming interface {
	GetGroupSnapshotId() string
	GetSnapshotIds() []string
	GetSecrets() map[string]string
}

// A named is a naming as it was read.
type named struct {
	handle  volid.Group
	members []volid.Snapshot
	as      params.Credentials
}

// readNamed reads which group a request is about. A handle that is not one of ours is
// fault.NotFound; a member that is not one of ours is a mismatch, and fault.Invalid.
func readNamed(req naming) (named, error) {
	as, err := params.ParseSecrets(req.GetSecrets())
	if err != nil {
		return named{}, err
	}
	handle, err := volid.ParseGroup(req.GetGroupSnapshotId())
	if err != nil {
		return named{}, err
	}
	read := named{handle: handle, as: as}
	for _, id := range req.GetSnapshotIds() {
		member, err := volid.ParseSnapshot(id)
		if err != nil {
			return named{}, fmt.Errorf("snapshot_ids: group snapshot %s has no such member: %w: %w", handle, fault.Invalid, err)
		}
		read.members = append(read.members, member)
	}
	return read, nil
}

// write returns a group as CSI has it. Its snapshots can be restored as soon as they are there.
func write(made snapshot.Group) *csi.VolumeGroupSnapshot {
	return &csi.VolumeGroupSnapshot{
		GroupSnapshotId: made.Handle.String(),
		Snapshots:       answer.Snapshots(made.Snapshots),
		CreationTime:    timestamppb.New(made.Time),
		ReadyToUse:      true,
	}
}
