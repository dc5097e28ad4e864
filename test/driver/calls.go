package driver

import (
	"context"
	"maps"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A Claim is what a PersistentVolumeClaim and its StorageClass ask for.
type Claim struct {
	Volume     string // the PersistentVolume's name, pvc-UID
	Name       string // the claim's
	Namespace  string // the claim's
	Bytes      int64
	Parameters map[string]string // of the StorageClass
	Secrets    map[string]string
	Use        *csi.VolumeCapability // nil: ext4, ReadWriteOnce
	// OfSnapshot or OfVolume is the handle of the claim's data source; both "" for an empty volume.
	OfSnapshot, OfVolume string
}

// A Volume is what a PersistentVolume says: its name, its handle and its attributes.
type Volume struct {
	Name    string
	Handle  string
	Bytes   int64
	Context map[string]string
	Use     *csi.VolumeCapability // nil: ext4, ReadWriteOnce
}

// capability is how the volume is used: ext4 and ReadWriteOnce where nobody says.
func capability(use *csi.VolumeCapability) *csi.VolumeCapability {
	if use != nil {
		return use
	}
	return Filesystem("ext4")
}

// Filesystem returns what the sidecars make of ReadWriteOnce, and of the type of filesystem in the
// class, for a driver with the capability SINGLE_NODE_MULTI_WRITER, as this one.
func Filesystem(fsType string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	}
}

// Block returns what the sidecars make of ReadWriteOnce and volumeMode: Block.
func Block() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	}
}

// Create is external-provisioner's part (--extra-create-metadata) of a new claim: CreateVolume.
func (p *Process) Create(ctx context.Context, claim Claim) (Volume, error) {
	parameters := map[string]string{
		"csi.storage.k8s.io/pvc/name":      claim.Name,
		"csi.storage.k8s.io/pvc/namespace": claim.Namespace,
		"csi.storage.k8s.io/pv/name":       claim.Volume,
	}
	maps.Copy(parameters, claim.Parameters)
	answer, err := p.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name:                claim.Volume,
		CapacityRange:       &csi.CapacityRange{RequiredBytes: claim.Bytes},
		VolumeCapabilities:  []*csi.VolumeCapability{capability(claim.Use)},
		Parameters:          parameters,
		Secrets:             claim.Secrets,
		VolumeContentSource: claim.contentSource(),
	})
	if err != nil {
		return Volume{}, err
	}
	made := answer.GetVolume()
	volume := Volume{Name: claim.Volume, Handle: made.GetVolumeId(), Bytes: made.GetCapacityBytes(), Use: claim.Use, Context: map[string]string{}}
	maps.Copy(volume.Context, made.GetVolumeContext())
	// What the provisioner adds to the attributes of each PersistentVolume.
	volume.Context["storage.kubernetes.io/csiProvisionerIdentity"] = "1735689600000-8081-rbd-csi.io"
	return volume, nil
}

// Delete is external-provisioner's part of a released volume: DeleteVolume.
func (p *Process) Delete(ctx context.Context, volume Volume) error {
	_, err := p.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume.Handle})
	return err
}

// Attach is external-attacher's part of a VolumeAttachment: ControllerPublishVolume. It
// returns the context for Stage.
func (p *Process) Attach(ctx context.Context, volume Volume, nodeID string) (map[string]string, error) {
	answer, err := p.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
		VolumeId:         volume.Handle,
		NodeId:           nodeID,
		VolumeCapability: capability(volume.Use),
		VolumeContext:    volume.Context,
	})
	return answer.GetPublishContext(), err
}

// Detach is external-attacher's part of a VolumeAttachment that goes: ControllerUnpublishVolume.
func (p *Process) Detach(ctx context.Context, volume Volume, nodeID string) error {
	_, err := p.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: volume.Handle, NodeId: nodeID})
	return err
}

// Expand is external-resizer's part of a claim that grows: ControllerExpandVolume.
// It returns the new size in bytes.
func (p *Process) Expand(ctx context.Context, volume Volume, bytes int64) (int64, error) {
	answer, err := p.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId:         volume.Handle,
		CapacityRange:    &csi.CapacityRange{RequiredBytes: bytes},
		VolumeCapability: capability(volume.Use),
	})
	return answer.GetCapacityBytes(), err
}

// ID is the node's part of its registration: NodeGetInfo.
func (p *Process) ID(ctx context.Context) (string, error) {
	answer, err := p.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	return answer.GetNodeId(), err
}

// StagingPath returns where the node stages the volume, in place of kubelet's
// plugins/kubernetes.io/csi/DRIVER/HASH/globalmount.
func (p *Process) StagingPath(volume Volume) string {
	return filepath.Join(p.folder, "staging", volume.Name)
}

// TargetPath returns where a pod sees the volume, in place of kubelet's
// pods/UID/volumes/kubernetes.io~csi/VOLUME/mount.
func (p *Process) TargetPath(pod string) string { return filepath.Join(p.folder, "pods", pod, "data") }

// Stage is kubelet's first part of a volume on its node: NodeStageVolume.
// Attached is what Attach returned.
func (p *Process) Stage(ctx context.Context, volume Volume, attached map[string]string) error {
	staging := p.StagingPath(volume)
	if err := p.on.MkdirAll(ctx, staging); err != nil {
		return err
	}
	_, err := p.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId:          volume.Handle,
		StagingTargetPath: staging,
		VolumeCapability:  capability(volume.Use),
		VolumeContext:     volume.Context,
		PublishContext:    attached,
	})
	return err
}

// Publish is kubelet's part of a pod that starts: NodePublishVolume.
func (p *Process) Publish(ctx context.Context, volume Volume, attached map[string]string, pod string) error {
	target := p.TargetPath(pod)
	if err := p.on.MkdirAll(ctx, filepath.Dir(target)); err != nil {
		return err
	}
	_, err := p.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId:          volume.Handle,
		StagingTargetPath: p.StagingPath(volume),
		TargetPath:        target,
		VolumeCapability:  capability(volume.Use),
		VolumeContext:     volume.Context,
		PublishContext:    attached,
	})
	return err
}

// Unpublish is kubelet's part of a pod that goes: NodeUnpublishVolume. Afterwards kubelet
// removes the pod's folder.
func (p *Process) Unpublish(ctx context.Context, volume Volume, pod string) error {
	target := p.TargetPath(pod)
	_, err := p.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume.Handle, TargetPath: target})
	if err != nil {
		return err
	}
	return p.on.RemoveEmpty(ctx, filepath.Dir(target))
}

// Unstage is kubelet's last part of a volume on its node: NodeUnstageVolume.
// Afterwards kubelet removes the staging folder.
func (p *Process) Unstage(ctx context.Context, volume Volume) error {
	staging := p.StagingPath(volume)
	_, err := p.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: volume.Handle, StagingTargetPath: staging})
	if err != nil {
		return err
	}
	return p.on.RemoveEmpty(ctx, staging)
}

// ExpandOnNode is kubelet's part of a volume that grew: NodeExpandVolume.
func (p *Process) ExpandOnNode(ctx context.Context, volume Volume, pod string, bytes int64) error {
	_, err := p.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId:          volume.Handle,
		VolumePath:        p.TargetPath(pod),
		StagingTargetPath: p.StagingPath(volume),
		CapacityRange:     &csi.CapacityRange{RequiredBytes: bytes},
		VolumeCapability:  capability(volume.Use),
	})
	return err
}

// StillGoing reports whether the sidecars and kubelet take the error of a request for one
// whose work may be going on. They ask again after every error; these
// four mean that they also must not forget the volume.
func StillGoing(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}
