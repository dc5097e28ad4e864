package badinput

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// handles are volume IDs that name no volume of ours, in every request that has one.
func (d Driver) handles(volume string) map[string]row {
	rows := map[string]row{}
	for name, odd := range map[string]struct {
		id         string
		gone, used codes.Code // of requests that end the volume's use, and of the others
	}{
		"of another driver": {"0001-0009-rook-ceph-0000000000000002-b9d6aa10-0242ac110004", codes.OK, codes.NotFound},
		"truncated":         {volume[:strings.Index(volume, "/")], codes.OK, codes.NotFound},
		"with a snapshot":   {volume + "@snap", codes.OK, codes.NotFound},
		"of no image":       {d.Pool.String() + "/nowhere", codes.OK, codes.NotFound},
		"of no pool":        {d.Pool.Cluster + ":nowhere/image", codes.OK, codes.NotFound},
		// These may be misspelt names of a volume that is there.
		"over-long":      {volume + strings.Repeat("x", 128), codes.InvalidArgument, codes.InvalidArgument},
		"not canonical":  {strings.Replace(volume, "/", "//", 1), codes.InvalidArgument, codes.InvalidArgument},
		"with a newline": {volume + "\n", codes.InvalidArgument, codes.InvalidArgument},
	} {
		rows["handle "+name+"/delete"] = row{code: odd.gone, call: func(ctx context.Context, d Driver) error {
			_, err := d.Controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: odd.id})
			return err
		}}
		rows["handle "+name+"/detach"] = row{code: odd.gone, call: func(ctx context.Context, d Driver) error {
			_, err := d.Controller.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: odd.id, NodeId: d.nodeID(ctx)})
			return err
		}}
		for request, call := range d.requests(odd.id) {
			want := odd.used
			if strings.HasPrefix(request, "measure") || strings.HasPrefix(request, "grow") {
				want = codes.NotFound // nothing is found at the path, whatever the handle
			}
			rows["handle "+name+"/"+request] = row{code: want, call: call}
		}
	}
	rows["handle of no cluster/delete"] = row{code: codes.InvalidArgument, word: "nowhere", call: func(ctx context.Context, d Driver) error {
		_, err := d.Controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "nowhere:kube/image"})
		return err
	}}
	return rows
}

// requests are those that have a volume ID and fail where there is no such volume.
func (d Driver) requests(id string) map[string]func(ctx context.Context, d Driver) error {
	capability := mount("ext4", csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
	path := filepath.Join(d.Directory, "nowhere")
	return map[string]func(ctx context.Context, d Driver) error{
		"attach": func(ctx context.Context, d Driver) error {
			_, err := d.Controller.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
				VolumeId: id, NodeId: d.nodeID(ctx), VolumeCapability: capability,
			})
			return err
		},
		"expand": func(ctx context.Context, d Driver) error {
			_, err := d.Controller.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
				VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * gib},
			})
			return err
		},
		"validate": func(ctx context.Context, d Driver) error {
			_, err := d.Controller.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{
				VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{capability},
			})
			return err
		},
		"snapshot": func(ctx context.Context, d Driver) error {
			_, err := d.Controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snapshot-bad", SourceVolumeId: id})
			return err
		},
		"clone": func(ctx context.Context, d Driver) error {
			request := d.good()
			request.Name, request.VolumeContentSource = "pvc-bad", ofVolume(id)
			_, err := d.Controller.CreateVolume(ctx, request)
			return err
		},
		"get": func(ctx context.Context, d Driver) error {
			_, err := d.Controller.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
			return err
		},
		"stage": func(ctx context.Context, d Driver) error {
			_, err := d.Node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
				VolumeId: id, StagingTargetPath: path, VolumeCapability: capability,
				PublishContext: map[string]string{"generation": "1", "imageID": "v0123456789abc"},
			})
			return err
		},
		"grow on the node": func(ctx context.Context, d Driver) error {
			_, err := d.Node.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: path})
			return err
		},
		"measure": func(ctx context.Context, d Driver) error {
			_, err := d.Node.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: path})
			return err
		},
	}
}

// nodeID returns the node's ID, or "" where it does not answer; the request then fails in another way.
func (d Driver) nodeID(ctx context.Context) string {
	info, err := d.Node.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil {
		return ""
	}
	return info.GetNodeId()
}

// capabilities are uses that no volume can have.
func capabilities(volume string) map[string]row {
	const (
		writer = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
		many   = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	)
	use := func(list ...*csi.VolumeCapability) func(r *csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = list }
	}
	grouped := mount("ext4", writer)
	grouped.GetMount().VolumeMountGroup = "1000"
	flagged := mount("ext4", writer)
	flagged.GetMount().MountFlags = []string{"ro", "rw"}
	return map[string]row{
		"use/none":                             {codes.InvalidArgument, "volume_capabilities", use(), nil},
		"use/a filesystem on many nodes":       {codes.InvalidArgument, "raw block", use(mount("ext4", many)), nil},
		"use/block and a filesystem":           {codes.InvalidArgument, "both", use(block(writer), mount("ext4", writer)), nil},
		"use/ext4 and xfs":                     {codes.InvalidArgument, "both", use(mount("ext4", writer), mount("xfs", writer)), nil},
		"use/an unknown filesystem":            {codes.InvalidArgument, "btrfs", use(mount("btrfs", writer)), nil},
		"use/no access mode":                   {codes.InvalidArgument, "access_mode", use(&csi.VolumeCapability{AccessType: block(writer).AccessType}), nil},
		"use/no access type":                   {codes.InvalidArgument, "access_type", use(&csi.VolumeCapability{AccessMode: block(writer).AccessMode}), nil},
		"use/a mount group":                    {codes.InvalidArgument, "mount group", use(grouped), nil},
		"use/read-only and read-write at once": {codes.InvalidArgument, "ro and rw", use(flagged), nil},
		"use/attach to a made-up node": {code: codes.NotFound, word: "node", call: func(ctx context.Context, d Driver) error {
			_, err := d.Controller.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
				VolumeId: volume, NodeId: "worker-1:00000000", VolumeCapability: block(writer),
			})
			return err
		}},
		"use/expand to a negative size": {code: codes.InvalidArgument, word: "negative", call: func(ctx context.Context, d Driver) error {
			_, err := d.Controller.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
				VolumeId: volume, CapacityRange: &csi.CapacityRange{RequiredBytes: -1},
			})
			return err
		}},
		"use/expand beyond an object map": {code: codes.OutOfRange, word: "largest", call: func(ctx context.Context, d Driver) error {
			_, err := d.Controller.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
				VolumeId: volume, CapacityRange: &csi.CapacityRange{RequiredBytes: 1<<63 - 1},
			})
			return err
		}},
		"use/shrink": {code: codes.OutOfRange, word: "shrink", call: func(ctx context.Context, d Driver) error {
			_, err := d.Controller.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
				VolumeId: volume, CapacityRange: &csi.CapacityRange{LimitBytes: gib / 2},
			})
			return err
		}},
	}
}

// paths are places where a volume cannot be.
func (d Driver) paths(volume string) map[string]row {
	stage := func(path string, attached map[string]string) func(ctx context.Context, d Driver) error {
		return func(ctx context.Context, d Driver) error {
			_, err := d.Node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
				VolumeId: volume, StagingTargetPath: path, PublishContext: attached,
				VolumeCapability: mount("ext4", csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER),
			})
			return err
		}
	}
	publish := func(path string) func(ctx context.Context, d Driver) error {
		return func(ctx context.Context, d Driver) error {
			_, err := d.Node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
				VolumeId: volume, StagingTargetPath: filepath.Join(d.Directory, "staging"), TargetPath: path,
				VolumeCapability: mount("ext4", csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER),
			})
			return err
		}
	}
	unpublish := func(path string) func(ctx context.Context, d Driver) error {
		return func(ctx context.Context, d Driver) error {
			_, err := d.Node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: path})
			return err
		}
	}
	link := filepath.Join(d.Directory, "link")
	_ = os.Symlink(d.Directory, link)
	occupied := filepath.Join(d.Directory, "occupied")
	_ = os.MkdirAll(filepath.Join(occupied, "something"), 0o755)
	attached := map[string]string{"generation": "1", "imageID": "v0123456789abc"}
	return map[string]row{
		"path/stage at a relative one":         {code: codes.InvalidArgument, word: "absolute", call: stage("staging", attached)},
		"path/stage at one with dots":          {code: codes.InvalidArgument, word: "clean", call: stage("/a/../b", attached)},
		"path/stage without a publish context": {code: codes.InvalidArgument, word: "generation", call: stage("/staging", nil)},
		"path/stage an old attachment":         {code: codes.FailedPrecondition, word: "attached", call: stage(filepath.Join(d.Directory, "s"), attached)},
		"path/publish at a relative one":       {code: codes.InvalidArgument, word: "absolute", call: publish("target")},
		"path/publish what is not staged":      {code: codes.FailedPrecondition, word: "stage", call: publish(filepath.Join(d.Directory, "t"))},
		"path/unpublish a symbolic link":       {code: codes.InvalidArgument, word: "link", call: unpublish(link)},
		"path/unpublish a full directory":      {code: codes.FailedPrecondition, word: "occupied", call: unpublish(occupied)},
	}
}

// foreign makes an image as someone else would, under the name that a request will have.
func (d Driver) foreign(t *testing.T) {
	const name = "pvc-of-someone-else"
	layout := rbd.Layout{Bytes: gib, ObjectBytes: 4 << 20, Features: rbd.Layering | rbd.ExclusiveLock}
	image := volid.Image{Pool: d.Pool, Name: name}
	if _, err := d.Tools.Create(image, layout); err != nil {
		t.Fatal(err)
	}
	before := d.objects(t)
	d.check(t, row{code: codes.AlreadyExists, word: "not made by this driver", create: func(r *csi.CreateVolumeRequest) { r.Name = name }}, before)
	d.check(t, row{code: codes.FailedPrecondition, word: "not made by this driver", call: func(ctx context.Context, d Driver) error {
		_, err := d.Controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: image.String()})
		return err
	}}, before)
	if code := status.Code(d.requests(image.String())["get"](t.Context(), d)); code != codes.OK {
		t.Errorf("get the image: %v, want OK", code)
	}
}
