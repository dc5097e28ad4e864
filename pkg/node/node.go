// Package node is the CSI Node service: it reads a request, calls package host,
// and answers. Missing fields, repetition, logs and codes are package server's;
// the order of steps on the node is package host's.
package node

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/pkg/announce"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/host"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Service answers the Node calls. Its methods may be called at once.
type Service struct {
	csi.UnimplementedNodeServer

	// Host stages and publishes volumes.
	Host *host.Host
	// Announcer tells pods how their volumes were mapped; nil: nobody does.
	Announcer *announce.Announcer
	// Node is this node's ID.
	Node volid.Node
	// MostVolumes is how many volumes the node takes; 0 sets no limit.
	MostVolumes int64
	// Segments is where the node is, by topology key; nil tells nothing. Volumes can be reached
	// from everywhere, so it serves only those in Kubernetes that count by segments,
	// such as CSIStorageCapacity.
	Segments map[string]string
}

// NodeStageVolume makes sure that the volume is mapped, formatted and mounted at
// the staging path.
func (s *Service) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	spec, as, err := readStage(req)
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, s.Host.Stage(ctx, spec, as)
}

// NodeUnstageVolume makes sure that the volume is neither mounted at the staging
// path nor mapped.
func (s *Service) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	handle, err := readAt(req.GetVolumeId(), req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	s.Announcer.Unstaged(handle)
	return &csi.NodeUnstageVolumeResponse{}, s.Host.Unstage(ctx, handle, req.GetStagingTargetPath())
}

// NodePublishVolume makes sure that the staged volume is seen at the target path.
func (s *Service) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	spec, err := readPublish(req)
	if err != nil {
		return nil, err
	}
	if err := s.Host.Publish(ctx, spec); err != nil {
		return nil, err
	}
	if pod, known := readPod(req.GetVolumeContext()); known {
		s.Announcer.Published(spec.Handle, pod)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume makes sure that nothing is mounted at the target path and
// that the path is gone.
func (s *Service) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	handle, err := readAt(req.GetVolumeId(), req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, s.Host.Unpublish(ctx, handle, req.GetTargetPath())
}

// NodeExpandVolume makes device and filesystem as large as the image.
func (s *Service) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	handle, err := readExpand(req)
	if err != nil {
		return nil, err
	}
	bytes, err := s.Host.ExpandOnNode(ctx, handle, req.GetVolumePath())
	return &csi.NodeExpandVolumeResponse{CapacityBytes: bytes}, err
}

// NodeGetVolumeStats measures the volume. What is used of a raw block volume is what its image has
// allocated, up to an hour ago; see host.Host.Usage.
func (s *Service) NodeGetVolumeStats(ctx context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	handle, err := readFound(req.GetVolumeId(), req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	usage, err := s.Host.Usage(ctx, handle, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: answerUsage(usage)}, nil
}

// NodeGetVolumeHealth tells what is wrong with the volume on this node.
func (s *Service) NodeGetVolumeHealth(ctx context.Context, req *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	handle, paths, err := readHealth(req)
	if err != nil {
		return nil, err
	}
	ailments, err := s.Host.Health(ctx, handle, paths...)
	if err != nil {
		return nil, err
	}
	health := &csi.VolumeHealth{VolumeId: req.GetVolumeId()}
	for _, one := range ailments {
		health.HealthStatuses = append(health.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{
			Status: csi.VolumeHealthErrorType_INACCESSIBLE, Reason: one.Reason, Message: one.Message,
		})
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// answerUsage leaves out what a block device has not.
func answerUsage(u filesystem.Usage) []*csi.VolumeUsage {
	bytes := &csi.VolumeUsage{Unit: csi.VolumeUsage_BYTES, Total: u.Total, Used: u.Used, Available: u.Available}
	if u.Block {
		return []*csi.VolumeUsage{bytes}
	}
	inodes := &csi.VolumeUsage{Unit: csi.VolumeUsage_INODES, Total: u.Inodes, Used: u.InodesUsed, Available: u.InodesAvailable}
	return []*csi.VolumeUsage{bytes, inodes}
}

// NodeGetInfo returns the node's ID, how many volumes it takes, and where it is.
func (s *Service) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	info := &csi.NodeGetInfoResponse{NodeId: s.Node.String(), MaxVolumesPerNode: s.MostVolumes}
	if len(s.Segments) > 0 {
		info.AccessibleTopology = &csi.Topology{Segments: s.Segments}
	}
	return info, nil
}

// capabilities are what the service can do, in the order of the specification.
var capabilities = []csi.NodeServiceCapability_RPC_Type{
	csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
	csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
	csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
	csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
}

// NodeGetCapabilities returns what the service can do.
func (s *Service) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	answer := &csi.NodeGetCapabilitiesResponse{}
	for _, kind := range capabilities {
		answer.Capabilities = append(answer.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: kind}},
		})
	}
	return answer, nil
}
