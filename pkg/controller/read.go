package controller

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/pkg/access"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// readCreate reads a CreateVolumeRequest. It asks nobody but the folder of clusters.
func (s *Service) readCreate(ctx context.Context, req *csi.CreateVolumeRequest) (spec volume.CreateSpec, as params.Credentials, err error) {
	if err := params.CheckMutable(req.GetMutableParameters()); err != nil {
		return spec, as, err
	}
	if as, err = params.ParseSecrets(req.GetSecrets()); err != nil {
		return spec, as, err
	}
	if spec.Class, err = s.readClass(ctx, req.GetParameters()); err != nil {
		return spec, as, err
	}
	use, err := readUse(req.GetVolumeCapabilities(), spec.Class)
	if err != nil {
		return spec, as, err
	}
	if spec.Source, err = readSource(req.GetVolumeContentSource(), use); err != nil {
		return spec, as, err
	}
	if err := readName(req.GetName(), &spec); err != nil {
		return spec, as, err
	}
	return spec, as, readSize(req.GetCapacityRange(), use, &spec)
}

// readClass reads the parameters of a class.
func (s *Service) readClass(ctx context.Context, parameters map[string]string) (params.Class, error) {
	byDefault, err := s.DefaultCluster(ctx)
	if err != nil {
		return params.Class{}, err
	}
	return params.ParseClass(parameters, byDefault)
}

// A use is how a volume is going to be used, as far as its making depends on that.
type use struct {
	filesystem string // "" for a raw block device
}

// readUse checks that a volume of the class can be used as the capabilities say.
func readUse(list []*csi.VolumeCapability, class params.Class) (use, error) {
	all, err := access.ReadAll(list)
	if err != nil {
		return use{}, err
	}
	if all.SingleWriter() && !class.Features.Has(params.ExclusiveLock) {
		return use{}, fmt.Errorf("imageFeatures: a volume with a single writer needs exclusive-lock: %w", fault.Invalid)
	}
	if all.Block() {
		return use{}, nil
	}
	kind, err := class.Filesystem(all.FSType())
	return use{filesystem: kind}, err
}

// readSource reads what a volume is to be a copy of, nil for nothing. A handle that is not one of
// ours is fault.NotFound.
func readSource(from *csi.VolumeContentSource, use use) (*volume.Source, error) {
	source := &volume.Source{Filesystem: use.filesystem}
	switch kind := from.GetType().(type) {
	case nil:
		return nil, nil
	case *csi.VolumeContentSource_Snapshot:
		handle, err := volid.ParseSnapshot(kind.Snapshot.GetSnapshotId())
		source.Snapshot = &handle
		return source, err
	case *csi.VolumeContentSource_Volume:
		handle, err := volid.ParseImage(kind.Volume.GetVolumeId())
		source.Volume = &handle
		return source, err
	}
	return nil, fmt.Errorf("volume_content_source: neither a snapshot nor a volume: %w", fault.Invalid)
}

// readName reads the name of the request, which the image's follows from.
func readName(name string, spec *volume.CreateSpec) error {
	image, err := volid.ImageName(spec.Class.Pool, spec.Class.ImageNamePrefix, name)
	spec.Request, spec.Handle = name, volid.Image{Pool: spec.Class.Pool, Name: image}
	return err
}

// readSize reads how large the volume is to be. What depends on the size of a source is
// asked when that is known; a range that nothing can have is refused at once.
func readSize(wanted *csi.CapacityRange, use use, spec *volume.CreateSpec) error {
	least := access.MinBytes(use.filesystem)
	most := access.MaxBytes(spec.Class.ObjectSize, spec.Class.StripeCount)
	spec.Size = func(content int64) (int64, error) { return access.CopySize(wanted, content, least, most) }
	spec.Fits = func(bytes int64) bool { return access.Covers(wanted, bytes) }
	_, err := spec.Size(0)
	return err
}

// readVolume reads what most requests have: a handle and secrets.
func readVolume(id string, secrets map[string]string) (volid.Image, params.Credentials, error) {
	handle, err := volid.ParseImage(id)
	if err != nil {
		return volid.Image{}, params.Credentials{}, err
	}
	as, err := params.ParseSecrets(secrets)
	return handle, as, err
}

// readPublish reads a ControllerPublishVolumeRequest. A node that cannot be one
// of ours is fault.NotFound.
func readPublish(req *csi.ControllerPublishVolumeRequest) (volid.Image, volume.AttachSpec, params.Credentials, error) {
	handle, as, err := readVolume(req.GetVolumeId(), req.GetSecrets())
	if err != nil {
		return handle, volume.AttachSpec{}, as, err
	}
	capability, err := access.Read(req.GetVolumeCapability())
	if err != nil {
		return handle, volume.AttachSpec{}, as, err
	}
	if _, err := volid.ParseNode(req.GetNodeId()); err != nil {
		return handle, volume.AttachSpec{}, as, err
	}
	if req.GetReadonly() {
		return handle, volume.AttachSpec{}, as, fmt.Errorf("readonly: use a read-only access mode: %w", fault.Invalid)
	}
	return handle, volume.AttachSpec{
		Node:     req.GetNodeId(),
		Mode:     capability.Mode.String(),
		Single:   capability.Mode.SingleNode(),
		ReadOnly: capability.Mode.ReadOnly(),
	}, as, nil
}

// validate says why a volume cannot be used as asked, or nil.
func validate(req *csi.ValidateVolumeCapabilitiesRequest, handle volid.Image) error {
	if _, err := access.ReadAll(req.GetVolumeCapabilities()); err != nil {
		return err
	}
	if _, err := params.ParseVolumeContext(req.GetVolumeContext()); err != nil {
		return err
	}
	if len(req.GetParameters()) == 0 {
		return nil
	}
	_, err := params.ParseClass(req.GetParameters(), handle.Cluster)
	return err
}

// readExpand reads how large a volume is to become. One that is large enough stays as it is.
func readExpand(wanted *csi.CapacityRange) volume.ExpandSpec {
	return volume.ExpandSpec{To: func(bytes, most int64) (int64, error) {
		if access.Covers(wanted, bytes) {
			return bytes, nil
		}
		if limit := wanted.GetLimitBytes(); limit > 0 && limit < bytes && wanted.GetRequiredBytes() <= limit {
			return 0, fmt.Errorf("capacity range: limit_bytes %d is below the present size %d, and volumes do not shrink: %w",
				limit, bytes, fault.OutOfRange)
		}
		return access.Size(wanted, access.MinBlock, most)
	}}
}
