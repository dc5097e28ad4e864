package main

import (
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// TestClusterOf has each kind of request that names a cluster, and some that do not.
func TestClusterOf(t *testing.T) {
	tests := []struct {
		request any
		want    string
	}{
		{&csi.CreateVolumeRequest{Name: "other:pvc-1", Parameters: map[string]string{"cluster": "main"}}, "main"},
		{&csi.CreateVolumeRequest{Name: "pvc-1"}, ""},
		{&csi.DeleteVolumeRequest{VolumeId: "main:kube/pvc-1"}, "main"},
		{&csi.ControllerPublishVolumeRequest{VolumeId: "main:kube/pvc-1", NodeId: "a:1"}, "main"},
		{&csi.CreateSnapshotRequest{SourceVolumeId: "main:kube/pvc-1", Parameters: map[string]string{"cluster": "other"}}, "main"},
		{&csi.DeleteSnapshotRequest{SnapshotId: "main:kube/pvc-1@1"}, "main"},
		{&csi.CreateVolumeGroupSnapshotRequest{SourceVolumeIds: []string{"main:kube/pvc-1", "main:kube/pvc-2"}}, "main"},
		{&csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: "main:kube/g", SnapshotIds: []string{"main:kube/pvc-1@1"}}, "main"},
		{&csi.NodeStageVolumeRequest{VolumeId: "main:kube/pvc-1"}, "main"},
		{&csi.NodeUnpublishVolumeRequest{VolumeId: "odd"}, "odd"},
		{&csi.ListVolumesRequest{}, ""},
	}
	for _, test := range tests {
		if got := clusterOf(test.request); got != test.want {
			t.Errorf("%T %v: got %q, want %q", test.request, test.request, got, test.want)
		}
	}
}
