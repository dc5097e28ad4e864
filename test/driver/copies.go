package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// A Snapshot is what a VolumeSnapshotContent says.
type Snapshot struct {
	Name   string // that of the request, snapshot-UID
	Handle string
	Source string // the handle of the volume
	Bytes  int64
	Group  string // the handle of the group snapshot that it was taken with, "" for none
}

// A Group is what a VolumeGroupSnapshotContent says.
type Group struct {
	Name    string // that of the request, groupsnapshot-UID
	Handle  string
	Members []Snapshot
}

// contentSource returns what the claim's dataSource becomes in the request.
func (c Claim) contentSource() *csi.VolumeContentSource {
	switch {
	case c.OfSnapshot != "":
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: c.OfSnapshot},
		}}
	case c.OfVolume != "":
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: c.OfVolume},
		}}
	}
	return nil
}

// TakeSnapshot is csi-snapshotter's part (--extra-create-metadata) of a new VolumeSnapshot:
// CreateSnapshot.
func (p *Process) TakeSnapshot(ctx context.Context, name, volume string) (Snapshot, error) {
	answer, err := p.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{
		Name: name, SourceVolumeId: volume,
		Parameters: map[string]string{
			"csi.storage.k8s.io/volumesnapshot/name":        "of-" + name,
			"csi.storage.k8s.io/volumesnapshot/namespace":   "default",
			"csi.storage.k8s.io/volumesnapshotcontent/name": "snapcontent-" + name,
		},
	})
	if err != nil {
		return Snapshot{}, err
	}
	made := asSnapshot(answer.GetSnapshot())
	made.Name = name
	return made, nil
}

// DropSnapshot is csi-snapshotter's part of a VolumeSnapshotContent that goes: DeleteSnapshot.
func (p *Process) DropSnapshot(ctx context.Context, snapshot Snapshot) error {
	_, err := p.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snapshot.Handle})
	return err
}

// TakeGroup is csi-snapshotter's part of a new VolumeGroupSnapshot: CreateVolumeGroupSnapshot.
func (p *Process) TakeGroup(ctx context.Context, name string, volumes ...string) (Group, error) {
	answer, err := p.CreateVolumeGroupSnapshot(ctx, &csi.CreateVolumeGroupSnapshotRequest{
		Name: name, SourceVolumeIds: volumes,
		Parameters: map[string]string{
			"csi.storage.k8s.io/volumegroupsnapshot/name":        "of-" + name,
			"csi.storage.k8s.io/volumegroupsnapshot/namespace":   "default",
			"csi.storage.k8s.io/volumegroupsnapshotcontent/name": "groupsnapcontent-" + name,
		},
	})
	if err != nil {
		return Group{}, err
	}
	made := Group{Name: name, Handle: answer.GetGroupSnapshot().GetGroupSnapshotId()}
	for _, one := range answer.GetGroupSnapshot().GetSnapshots() {
		made.Members = append(made.Members, asSnapshot(one))
	}
	return made, nil
}

// DropGroup is csi-snapshotter's part of a VolumeGroupSnapshotContent that goes:
// DeleteVolumeGroupSnapshot.
func (p *Process) DropGroup(ctx context.Context, group Group) error {
	request := &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: group.Handle}
	for _, one := range group.Members {
		request.SnapshotIds = append(request.SnapshotIds, one.Handle)
	}
	_, err := p.DeleteVolumeGroupSnapshot(ctx, request)
	return err
}

// Snapshots lists all snapshots, a page of so many after the other: ListSnapshots.
func (p *Process) Snapshots(ctx context.Context, page int32) ([]Snapshot, error) {
	var all []Snapshot
	for token := ""; ; {
		answer, err := p.ListSnapshots(ctx, &csi.ListSnapshotsRequest{MaxEntries: page, StartingToken: token})
		if err != nil {
			return nil, err
		}
		for _, entry := range answer.GetEntries() {
			all = append(all, asSnapshot(entry.GetSnapshot()))
		}
		if token = answer.GetNextToken(); token == "" {
			return all, nil
		}
	}
}

// Volumes lists the handles of all volumes, a page of so many after the other: ListVolumes.
func (p *Process) Volumes(ctx context.Context, page int32) ([]string, error) {
	var all []string
	for token := ""; ; {
		answer, err := p.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: page, StartingToken: token})
		if err != nil {
			return nil, fmt.Errorf("list volumes: %w", err)
		}
		for _, entry := range answer.GetEntries() {
			all = append(all, entry.GetVolume().GetVolumeId())
		}
		if token = answer.GetNextToken(); token == "" {
			return all, nil
		}
	}
}

func asSnapshot(answer *csi.Snapshot) Snapshot {
	return Snapshot{
		Handle: answer.GetSnapshotId(), Source: answer.GetSourceVolumeId(),
		Bytes: answer.GetSizeBytes(), Group: answer.GetGroupSnapshotId(),
	}
}
