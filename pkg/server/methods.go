package server

import "github.com/container-storage-interface/spec/lib/go/csi"

// A method is what the chain knows of one CSI method. Fields are named as in
// csi.proto.
type method struct {
	// class says how the join layer runs it.
	class class
	// level is the verbosity at which a request that went well is logged.
	level int
	// required lists the fields that must be set, and set all the way down
	// where inner says so.
	required []string
	// whole lists the fields that may be absent, but not half filled in.
	whole []string
	// queue is the field whose value works queue by: at most one work runs per
	// value and service. Only for the class working.
	queue string
}

// A class says how a method is run.
type class int

const (
	// instant methods answer from memory. They run in the goroutine of their request.
	instant class = iota
	// reading methods ask the cluster or the kernel and change nothing. They
	// run apart from their request, so that the caller can be let go when its
	// deadline comes, and their context ends with the caller. They are not
	// joined: the answer to a question asked before a change was made must not
	// go to someone who asks after it.
	reading
	// streaming methods read too, and send their answer piece by piece. They run in the
	// goroutine of their request, because nothing may be sent on a stream once that
	// has returned, and are bounded together with the reading ones.
	streaming
	// working methods change something. They queue, repeats join, and they go
	// on when their caller has left.
	working
)

// The verbosities of package klog that requests use: a change to a machine or
// a cluster, a look at one, and what is asked all the time.
const (
	change = 2
	look   = 4
	often  = 5
)

// methods has a row for each method of CSI 1.13, in the order of csi.proto.
// Where a field is REQUIRED there and is not here, a comment gives the reason;
// REQUIRED fields of the types bool and integer cannot be seen to be missing.
var methods = map[string]method{
	csi.Identity_GetPluginInfo_FullMethodName:         {level: often},
	csi.Identity_GetPluginCapabilities_FullMethodName: {level: often},
	// Probe is instant so that a cluster that does not answer cannot use up
	// what reading requests share, fail the probe and have the driver killed.
	csi.Identity_Probe_FullMethodName: {level: often},

	csi.Controller_CreateVolume_FullMethodName: {
		class: working, level: change, queue: "name",
		required: []string{"name", "volume_capabilities"},
		whole:    []string{"volume_content_source"},
	},
	csi.Controller_DeleteVolume_FullMethodName: {
		class: working, level: change, queue: "volume_id",
		required: []string{"volume_id"},
	},
	csi.Controller_ControllerPublishVolume_FullMethodName: {
		class: working, level: change, queue: "volume_id",
		required: []string{"volume_id", "node_id", "volume_capability"},
	},
	csi.Controller_ControllerUnpublishVolume_FullMethodName: {
		class: working, level: change, queue: "volume_id",
		required: []string{"volume_id"}, // no node_id means all nodes
	},
	csi.Controller_ValidateVolumeCapabilities_FullMethodName: {
		class: reading, level: look,
		required: []string{"volume_id", "volume_capabilities"},
	},
	csi.Controller_ListVolumes_FullMethodName:                {class: reading, level: look},
	csi.Controller_ControllerListVolumeHealth_FullMethodName: {class: reading, level: often},
	csi.Controller_ControllerGetVolumeHealth_FullMethodName: {
		class: reading, level: often,
		required: []string{"volume_id"},
	},
	// external-provisioner asks with a capability whose access mode is
	// UNKNOWN, so the capabilities need not be whole.
	csi.Controller_GetCapacity_FullMethodName:               {class: reading, level: often},
	csi.Controller_ControllerGetCapabilities_FullMethodName: {level: often},
	csi.Controller_CreateSnapshot_FullMethodName: {
		class: working, level: change, queue: "source_volume_id",
		required: []string{"source_volume_id", "name"},
	},
	csi.Controller_DeleteSnapshot_FullMethodName: {
		class: working, level: change, queue: "snapshot_id",
		required: []string{"snapshot_id"},
	},
	csi.Controller_ListSnapshots_FullMethodName: {class: reading, level: look},
	csi.Controller_GetSnapshot_FullMethodName: {
		class: reading, level: look,
		required: []string{"snapshot_id"},
	},
	csi.Controller_ControllerExpandVolume_FullMethodName: {
		class: working, level: change, queue: "volume_id",
		required: []string{"volume_id", "capacity_range"},
	},
	csi.Controller_ControllerGetVolume_FullMethodName: {
		class: reading, level: look,
		required: []string{"volume_id"},
	},
	csi.Controller_ControllerModifyVolume_FullMethodName: {
		class: working, level: change, queue: "volume_id",
		required: []string{"volume_id", "mutable_parameters"},
	},

	csi.GroupController_GroupControllerGetCapabilities_FullMethodName: {level: often},
	csi.GroupController_CreateVolumeGroupSnapshot_FullMethodName: {
		class: working, level: change, queue: "name",
		required: []string{"name", "source_volume_ids"},
	},
	// snapshot_ids is REQUIRED for these two, but csi-sanity 5.6.0 deletes an
	// unknown group without it and expects success.
	csi.GroupController_DeleteVolumeGroupSnapshot_FullMethodName: {
		class: working, level: change, queue: "group_snapshot_id",
		required: []string{"group_snapshot_id"},
	},
	csi.GroupController_GetVolumeGroupSnapshot_FullMethodName: {
		class: reading, level: look,
		required: []string{"group_snapshot_id"},
	},

	csi.SnapshotMetadata_GetMetadataAllocated_FullMethodName: {
		class: streaming, level: look,
		required: []string{"snapshot_id"},
	},
	csi.SnapshotMetadata_GetMetadataDelta_FullMethodName: {
		class: streaming, level: look,
		required: []string{"base_snapshot_id", "target_snapshot_id"},
	},

	csi.Node_NodeStageVolume_FullMethodName: {
		class: working, level: change, queue: "volume_id",
		required: []string{"volume_id", "staging_target_path", "volume_capability"},
	},
	csi.Node_NodeUnstageVolume_FullMethodName: {
		class: working, level: change, queue: "volume_id",
		required: []string{"volume_id", "staging_target_path"},
	},
	// A missing staging_target_path is not here: the specification wants
	// FAILED_PRECONDITION for it, which is the node service's to say.
	csi.Node_NodePublishVolume_FullMethodName: {
		class: working, level: change, queue: "volume_id",
		required: []string{"volume_id", "target_path", "volume_capability"},
	},
	csi.Node_NodeUnpublishVolume_FullMethodName: {
		class: working, level: change, queue: "volume_id",
		required: []string{"volume_id", "target_path"},
	},
	csi.Node_NodeGetVolumeStats_FullMethodName: {
		class: reading, level: often,
		required: []string{"volume_id", "volume_path"},
	},
	csi.Node_NodeGetVolumeHealth_FullMethodName: {
		class: reading, level: often,
		required: []string{"volume_id"},
	},
	csi.Node_NodeGetStorageHealth_FullMethodName: {class: reading, level: often},
	csi.Node_NodeExpandVolume_FullMethodName: {
		class: working, level: change, queue: "volume_id",
		required: []string{"volume_id", "volume_path"},
	},
	csi.Node_NodeGetCapabilities_FullMethodName: {level: often},
	csi.Node_NodeGetInfo_FullMethodName:         {class: reading, level: look},
}

// inner lists, by message, what must be set in a message that a required or a
// whole field holds. "access_type" and "type" are the names of a oneof.
var inner = map[string][]string{
	"csi.v1.VolumeCapability":                   {"access_type", "access_mode"},
	"csi.v1.VolumeCapability.AccessMode":        {"mode"},
	"csi.v1.VolumeContentSource":                {"type"},
	"csi.v1.VolumeContentSource.SnapshotSource": {"snapshot_id"},
	"csi.v1.VolumeContentSource.VolumeSource":   {"volume_id"},
}
