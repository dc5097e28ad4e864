// Package controller is the CSI Controller service: it reads a request, calls
// volume or snapshot, and answers. Missing fields, repetition, logs and codes are package
// server's; whether something can be done is for those two to say.
package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/access"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// A Service answers the Controller calls. Its methods may be called at once.
type Service struct {
	csi.UnimplementedControllerServer

	// Store holds the volumes.
	Store *volume.Store
	// DefaultCluster returns the cluster of classes that name none: the only one
	// that is configured, or "".
	DefaultCluster func(ctx context.Context) (string, error)
	// PublishedNodes says that ListVolumes tells which nodes each volume is attached to. The
	// external-attacher then lists all volumes every minute.
	PublishedNodes bool
}

// CreateVolume makes sure that the volume is there.
func (s *Service) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	spec, as, err := s.readCreate(ctx, req)
	if err != nil {
		return nil, err
	}
	made, err := s.Store.Create(ctx, spec, as)
	if err != nil {
		return nil, err
	}
	created := answerVolume(made)
	created.VolumeContext = spec.Class.VolumeContext.Map()
	created.ContentSource = req.GetVolumeContentSource()
	return &csi.CreateVolumeResponse{Volume: created}, nil
}

// DeleteVolume makes sure that the volume is gone. A handle that is not one of
// ours cannot name a volume of ours, so it is gone. One that is only misspelt may
// name a volume, and is refused.
func (s *Service) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	as, err := params.ParseSecrets(req.GetSecrets())
	if err != nil {
		return nil, err
	}
	handle, err := volid.ParseImage(req.GetVolumeId())
	if errors.Is(err, fault.NotFound) {
		klog.FromContext(ctx).Info("Nothing to delete", "reason", err.Error())
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, s.Store.Delete(ctx, handle, as)
}

// ControllerPublishVolume gives a node the right to use the volume.
func (s *Service) ControllerPublishVolume(ctx context.Context, req *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	handle, spec, as, err := readPublish(req)
	if err != nil {
		return nil, err
	}
	right, err := s.Store.Attach(ctx, handle, spec, as)
	if err != nil {
		return nil, err
	}
	return &csi.ControllerPublishVolumeResponse{
		PublishContext: params.PublishContext{Generation: right.Generation, ImageID: right.ImageID}.Map(),
	}, nil
}

// ControllerUnpublishVolume takes the right away; without a node, everyone's.
func (s *Service) ControllerUnpublishVolume(ctx context.Context, req *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	as, err := params.ParseSecrets(req.GetSecrets())
	if err != nil {
		return nil, err
	}
	handle, err := volid.ParseImage(req.GetVolumeId())
	if errors.Is(err, fault.NotFound) {
		klog.FromContext(ctx).Info("Nothing to detach", "reason", err.Error())
		return &csi.ControllerUnpublishVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &csi.ControllerUnpublishVolumeResponse{}, s.Store.Detach(ctx, handle, req.GetNodeId(), as)
}

// ValidateVolumeCapabilities confirms capabilities, context and parameters of a
// volume that is there.
func (s *Service) ValidateVolumeCapabilities(ctx context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	handle, as, err := readVolume(req.GetVolumeId(), req.GetSecrets())
	if err != nil {
		return nil, err
	}
	if _, err := s.Store.Get(ctx, handle, as); err != nil {
		return nil, err
	}
	if err := validate(req, handle); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      req.GetVolumeContext(),
		VolumeCapabilities: req.GetVolumeCapabilities(),
		Parameters:         req.GetParameters(),
	}}, nil
}

// ControllerExpandVolume makes the volume larger.
func (s *Service) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	handle, as, err := readVolume(req.GetVolumeId(), req.GetSecrets())
	if err != nil {
		return nil, err
	}
	grown, err := s.Store.Expand(ctx, handle, readExpand(req.GetCapacityRange()), as)
	if err != nil {
		return nil, err
	}
	// The node's part is cheap where there is nothing to do, and nobody else would grow a device that does not notice by itself.
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: grown.Bytes, NodeExpansionRequired: true}, nil
}

// ListVolumes lists the volumes of all visible pools, a page at a time.
func (s *Service) ListVolumes(ctx context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	if req.GetMaxEntries() < 0 {
		return nil, fmt.Errorf("max_entries %d is negative: %w", req.GetMaxEntries(), fault.Invalid)
	}
	page, next, err := s.Store.List(ctx, req.GetStartingToken(), int(req.GetMaxEntries()))
	if err != nil {
		return nil, err
	}
	listed := &csi.ListVolumesResponse{NextToken: next}
	for _, one := range page {
		entry := &csi.ListVolumesResponse_Entry{Volume: answerVolume(one)}
		if s.PublishedNodes {
			entry.Status = &csi.ListVolumesResponse_VolumeStatus{PublishedNodeIds: one.Nodes}
		}
		listed.Entries = append(listed.Entries, entry)
	}
	return listed, nil
}

// ControllerGetVolume returns one volume and the nodes that it is attached to.
func (s *Service) ControllerGetVolume(ctx context.Context, req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	handle, err := volid.ParseImage(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	found, err := s.Store.Get(ctx, handle, params.Credentials{})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{
		Volume: answerVolume(found),
		Status: &csi.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: found.Nodes},
	}, nil
}

// GetCapacity returns what the pool of a class can still take, or without
// parameters what the roomiest visible pool can.
func (s *Service) GetCapacity(ctx context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	if len(req.GetVolumeCapabilities()) > 0 {
		if _, err := access.ReadAll(req.GetVolumeCapabilities()); err != nil {
			return nil, err
		}
	}
	if len(req.GetParameters()) == 0 {
		available, err := s.Store.LargestCapacity(ctx)
		return &csi.GetCapacityResponse{AvailableCapacity: available}, err
	}
	class, err := s.readClass(ctx, req.GetParameters())
	if err != nil {
		return nil, err
	}
	available, err := s.Store.Capacity(ctx, class.Pool, class.DataPool, params.Credentials{})
	if errors.Is(err, fault.NotFound) {
		err = fmt.Errorf("%w: %w", fault.Invalid, err)
	}
	return &csi.GetCapacityResponse{AvailableCapacity: available}, err
}

// capabilities are what the service can always do.
var capabilities = []csi.ControllerServiceCapability_RPC_Type{
	csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
	csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
	csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
	csi.ControllerServiceCapability_RPC_GET_CAPACITY,
	csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	csi.ControllerServiceCapability_RPC_GET_VOLUME,
	csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
	csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
	csi.ControllerServiceCapability_RPC_GET_SNAPSHOT,
	csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
}

// ControllerGetCapabilities returns what the service can do.
func (s *Service) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	able := capabilities
	if s.PublishedNodes {
		able = append(slices.Clip(able), csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES)
	}
	told := &csi.ControllerGetCapabilitiesResponse{}
	for _, kind := range able {
		told.Capabilities = append(told.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: kind}},
		})
	}
	return told, nil
}

func answerVolume(v volume.Volume) *csi.Volume {
	return &csi.Volume{VolumeId: v.Handle.String(), CapacityBytes: v.Bytes}
}
