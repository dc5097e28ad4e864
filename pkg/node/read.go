package node

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/pkg/access"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/host"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// readStage reads a NodeStageVolumeRequest.
func readStage(req *csi.NodeStageVolumeRequest) (host.StageSpec, params.Credentials, error) {
	fail := func(err error) (host.StageSpec, params.Credentials, error) {
		return host.StageSpec{}, params.Credentials{}, err
	}
	handle, err := readAt(req.GetVolumeId(), req.GetStagingTargetPath())
	if err != nil {
		return fail(err)
	}
	as, err := params.ParseSecrets(req.GetSecrets())
	if err != nil {
		return fail(err)
	}
	use, err := access.Read(req.GetVolumeCapability())
	if err != nil {
		return fail(err)
	}
	class, err := params.ParseVolumeContext(req.GetVolumeContext())
	if err != nil {
		return fail(err)
	}
	attached, err := params.ParsePublishContext(req.GetPublishContext())
	if err != nil {
		return fail(err)
	}
	format, err := readFormat(use, class)
	if err != nil {
		return fail(err)
	}
	return host.StageSpec{
		Handle:     handle,
		Path:       req.GetStagingTargetPath(),
		Block:      use.Block,
		ReadOnly:   use.Mode.ReadOnly(),
		Generation: attached.Generation,
		ImageID:    attached.ImageID,
		Mapper:     class.Mapper,
		MapOptions: class.MapOptions,
		Format:     format,
		MountFlags: use.MountFlags,
	}, as, nil
}

// readFormat reads which filesystem a volume gets. A block volume gets none.
func readFormat(use access.Capability, class params.VolumeContext) (host.FormatSpec, error) {
	if use.Block {
		return host.FormatSpec{}, nil
	}
	kind, err := class.Filesystem(use.FSType)
	return host.FormatSpec{Type: filesystem.Type(kind), Options: class.MkfsOptions}, err
}

// readPublish reads a NodePublishVolumeRequest.
func readPublish(req *csi.NodePublishVolumeRequest) (host.PublishSpec, error) {
	handle, err := readAt(req.GetVolumeId(), req.GetTargetPath())
	if err != nil {
		return host.PublishSpec{}, err
	}
	if req.GetStagingTargetPath() == "" {
		return host.PublishSpec{}, fmt.Errorf("staging_target_path is missing: %w", fault.InUse)
	}
	if err := checkPath(req.GetStagingTargetPath()); err != nil {
		return host.PublishSpec{}, err
	}
	use, err := access.Read(req.GetVolumeCapability())
	if err != nil {
		return host.PublishSpec{}, err
	}
	as, err := params.ParseSecrets(req.GetSecrets())
	if err != nil {
		return host.PublishSpec{}, err
	}
	return host.PublishSpec{
		Handle:     handle,
		Staged:     req.GetStagingTargetPath(),
		Path:       req.GetTargetPath(),
		Block:      use.Block,
		ReadOnly:   req.GetReadonly() || use.Mode.ReadOnly(),
		Sole:       use.Mode.OnePublish(),
		MountFlags: use.MountFlags,
		Stage:      restaging(req),
		As:         as,
	}, nil
}

// restaging returns how the volume would be staged now, as far as a request to publish tells; nil: it
// does not, as when nothing was attached.
func restaging(req *csi.NodePublishVolumeRequest) *host.StageSpec {
	spec, _, err := readStage(&csi.NodeStageVolumeRequest{
		VolumeId: req.GetVolumeId(), StagingTargetPath: req.GetStagingTargetPath(), VolumeCapability: req.GetVolumeCapability(),
		VolumeContext: req.GetVolumeContext(), PublishContext: req.GetPublishContext(),
	})
	if err != nil {
		return nil
	}
	return &spec
}

// readPod reads which pod a volume is published for. Kubernetes tells it in the volume context where the CSIDriver object has
// podInfoOnMount; whoever else calls does not.
func readPod(volumeContext map[string]string) (kubernetes.Pod, bool) {
	pod := kubernetes.Pod{
		Namespace: volumeContext["csi.storage.k8s.io/pod.namespace"],
		Name:      volumeContext["csi.storage.k8s.io/pod.name"],
		UID:       volumeContext["csi.storage.k8s.io/pod.uid"],
	}
	return pod, pod.Namespace != "" && pod.Name != "" && pod.UID != ""
}

// readExpand reads a NodeExpandVolumeRequest. How large the volume becomes is
// what its image says; the range can only contradict itself.
func readExpand(req *csi.NodeExpandVolumeRequest) (volid.Image, error) {
	if wanted := req.GetCapacityRange(); wanted != nil {
		if _, err := access.Size(wanted, access.MinBlock, 1<<62); err != nil {
			return volid.Image{}, err
		}
	}
	return readFound(req.GetVolumeId(), req.GetVolumePath())
}

// readFound reads a handle and a path where the volume should be found. At a path
// that cannot be a mount point there is no volume, which is fault.NotFound.
func readFound(id, path string) (volid.Image, error) {
	handle, err := readAt(id, path)
	if errors.Is(err, fault.Invalid) {
		err = fmt.Errorf("%w: %w", fault.NotFound, err)
	}
	return handle, err
}

// readHealth reads a NodeGetVolumeHealthRequest, both paths of which may be missing.
func readHealth(req *csi.NodeGetVolumeHealthRequest) (volid.Image, []string, error) {
	var paths []string
	handle, err := volid.ParseImage(req.GetVolumeId())
	for _, path := range []string{req.GetStagingTargetPath(), req.GetVolumePublishPath()} {
		if path == "" || err != nil {
			continue
		}
		_, err = readFound(req.GetVolumeId(), path)
		paths = append(paths, path)
	}
	if fault.Is(err, fault.Invalid) {
		err = fmt.Errorf("%w: %w", fault.NotFound, err)
	}
	return handle, paths, err
}

// readAt reads a handle and a path where the volume is, or is to be.
func readAt(id, path string) (volid.Image, error) {
	handle, err := volid.ParseImage(id)
	if err != nil {
		return volid.Image{}, err
	}
	return handle, checkPath(path)
}

// checkPath refuses paths that mean something else somewhere else.
func checkPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("path %q is not an absolute, clean path: %w", path, fault.Invalid)
	}
	return nil
}
