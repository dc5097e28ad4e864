package server

import (
	"context"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// check passes a request through the checks and the codes only.
func check(fullMethod string, req proto.Message) error {
	checks := chain(coded, checked)
	_, err := checks(context.Background(), req, &grpc.UnaryServerInfo{FullMethod: fullMethod},
		func(context.Context, any) (any, error) { return nil, nil })
	return err
}

// TestEachRequiredField takes each required field out of a full request.
func TestEachRequiredField(t *testing.T) {
	eachMethod(func(name string, descriptor protoreflect.MethodDescriptor) {
		if err := check(name, filled(t, descriptor, "secret")); err != nil {
			t.Errorf("%s with all fields: got %v, want no error", name, err)
		}
		for _, field := range methods[name].required {
			t.Run(name+" "+field, func(t *testing.T) {
				req := filled(t, descriptor, "secret")
				req.ProtoReflect().Clear(descriptor.Input().Fields().ByName(protoreflect.Name(field)))
				expectStatus(t, check(name, req), codes.InvalidArgument, field+" is missing")
			})
		}
	})
}

func TestRequiredWithin(t *testing.T) {
	capability := func(change func(*csi.VolumeCapability)) *csi.VolumeCapability {
		one := mountCapability()
		change(one)
		return one
	}
	noType := capability(func(c *csi.VolumeCapability) { c.AccessType = nil })
	noMode := capability(func(c *csi.VolumeCapability) { c.AccessMode = nil })
	unknownMode := capability(func(c *csi.VolumeCapability) { c.AccessMode.Mode = csi.VolumeCapability_AccessMode_UNKNOWN })
	create := func(change func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
		req := createRequest("pvc-1", 1)
		change(req)
		return req
	}
	from := func(source *csi.VolumeContentSource) *csi.CreateVolumeRequest {
		return create(func(req *csi.CreateVolumeRequest) { req.VolumeContentSource = source })
	}

	for _, test := range []struct {
		name   string
		method string
		req    proto.Message
		want   string // what is missing; empty if nothing
	}{
		{"second capability without type", csi.Controller_CreateVolume_FullMethodName,
			create(func(req *csi.CreateVolumeRequest) { req.VolumeCapabilities = append(req.VolumeCapabilities, noType) }),
			"volume_capabilities[1].access_type"},
		{"capability without mode", csi.Controller_CreateVolume_FullMethodName,
			create(func(req *csi.CreateVolumeRequest) { req.VolumeCapabilities[0] = noMode }),
			"volume_capabilities[0].access_mode"},
		{"capability with unknown mode", csi.Controller_ValidateVolumeCapabilities_FullMethodName,
			&csi.ValidateVolumeCapabilitiesRequest{VolumeId: "v", VolumeCapabilities: []*csi.VolumeCapability{unknownMode}},
			"volume_capabilities[0].access_mode.mode"},
		{"one capability without mode", csi.Node_NodeStageVolume_FullMethodName,
			&csi.NodeStageVolumeRequest{VolumeId: "v", StagingTargetPath: "/s", VolumeCapability: noMode},
			"volume_capability.access_mode"},
		{"capacity asks with unknown mode", csi.Controller_GetCapacity_FullMethodName,
			&csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{unknownMode}}, ""},
		{"optional capability not whole", csi.Node_NodeExpandVolume_FullMethodName,
			&csi.NodeExpandVolumeRequest{VolumeId: "v", VolumePath: "/p", VolumeCapability: noMode}, ""},
		{"empty source", csi.Controller_CreateVolume_FullMethodName,
			from(&csi.VolumeContentSource{}), "volume_content_source.type"},
		{"source snapshot without ID", csi.Controller_CreateVolume_FullMethodName,
			from(&csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{}}}),
			"volume_content_source.snapshot.snapshot_id"},
		{"source volume without ID", csi.Controller_CreateVolume_FullMethodName,
			from(&csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{}}}),
			"volume_content_source.volume.volume_id"},
		{"source volume", csi.Controller_CreateVolume_FullMethodName,
			from(&csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: "v"}}}),
			""},
		{"unpublish from all nodes", csi.Controller_ControllerUnpublishVolume_FullMethodName,
			&csi.ControllerUnpublishVolumeRequest{VolumeId: "v"}, ""},
		{"delete a group without its snapshots", csi.GroupController_DeleteVolumeGroupSnapshot_FullMethodName,
			&csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: "g"}, ""},
		{"empty volume in a group", csi.GroupController_CreateVolumeGroupSnapshot_FullMethodName,
			&csi.CreateVolumeGroupSnapshotRequest{Name: "g", SourceVolumeIds: []string{"v", ""}}, "source_volume_ids[1]"},
		{"publish without staging path", csi.Node_NodePublishVolume_FullMethodName,
			&csi.NodePublishVolumeRequest{VolumeId: "v", TargetPath: "/t", VolumeCapability: mountCapability()}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := check(test.method, test.req)
			if test.want == "" {
				expectStatus(t, err, codes.OK, "")
				return
			}
			expectStatus(t, err, codes.InvalidArgument, test.want+" is missing")
		})
	}
}

func TestLimits(t *testing.T) {
	const create = csi.Controller_CreateVolume_FullMethodName
	flags := func(size int) *csi.VolumeCapability {
		one := mountCapability()
		one.GetMount().MountFlags = []string{"sync", strings.Repeat("x", size-len("sync"))}
		return one
	}
	named := func(size int) *csi.CreateVolumeRequest { return createRequest(strings.Repeat("n", size), 1) }
	with := func(change func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
		req := createRequest("pvc-1", 1)
		change(req)
		return req
	}
	pairs := func(size int) map[string]string {
		return map[string]string{"a": "b", "k": strings.Repeat("x", size-3)}
	}
	for _, test := range []struct {
		name   string
		method string
		req    proto.Message
		want   string // what is too long; empty if nothing
	}{
		{"longest name", create, named(128), ""},
		{"name too long", create, named(129), "name has 129 bytes"},
		{"name too long in bytes", create, createRequest(strings.Repeat("ä", 65), 1), "name has 130 bytes"},
		{"largest map", create, with(func(r *csi.CreateVolumeRequest) { r.Parameters = pairs(4096) }), ""},
		{"map too large", create, with(func(r *csi.CreateVolumeRequest) { r.Parameters = pairs(4097) }), "parameters has 4097 bytes"},
		{"secrets too large", create, with(func(r *csi.CreateVolumeRequest) { r.Secrets = pairs(4097) }), "secrets has 4097 bytes"},
		{"most mount flags", create, with(func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = flags(4096) }), ""},
		{"too many mount flags", create, with(func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = flags(4097) }), "mount_flags has 4097 bytes"},
		{"too many mount flags on the node", csi.Node_NodeStageVolume_FullMethodName,
			&csi.NodeStageVolumeRequest{VolumeId: "v", StagingTargetPath: "/s", VolumeCapability: flags(4097)}, "mount_flags has 4097 bytes"},
		{"name of a snapshot too long", csi.Controller_CreateSnapshot_FullMethodName,
			&csi.CreateSnapshotRequest{SourceVolumeId: "v", Name: strings.Repeat("n", 129)}, "name has 129 bytes"},
		{"name of a group too long", csi.GroupController_CreateVolumeGroupSnapshot_FullMethodName,
			&csi.CreateVolumeGroupSnapshotRequest{SourceVolumeIds: []string{"v"}, Name: strings.Repeat("n", 129)}, "name has 129 bytes"},
		{"secrets of a stream too large", csi.SnapshotMetadata_GetMetadataDelta_FullMethodName,
			&csi.GetMetadataDeltaRequest{BaseSnapshotId: "s", TargetSnapshotId: "t", Secrets: pairs(4097)}, "secrets has 4097 bytes"},
		{"long handle", csi.Controller_DeleteVolume_FullMethodName, &csi.DeleteVolumeRequest{VolumeId: strings.Repeat("v", 129)}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := check(test.method, test.req)
			if test.want == "" {
				expectStatus(t, err, codes.OK, "")
				return
			}
			expectStatus(t, err, codes.InvalidArgument, test.want)
		})
	}
}
