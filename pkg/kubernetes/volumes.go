package kubernetes

import (
	"cmp"
	"context"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Volume is a PersistentVolume of a CSI driver.
type Volume struct {
	Name, UID string // of the PersistentVolume
	Driver    string
	Handle    string
	// Claim is what it is bound to, as NAMESPACE/NAME; empty: nothing yet.
	Claim string
	Made  time.Time // when the object was made
	// Going says that the object is being deleted, or its claim was and the volume goes with it (reclaimPolicy Delete).
	Going bool
}

// Volumes returns the PersistentVolumes of a driver, or of all CSI drivers for "". It costs a request for each 500 PersistentVolumes of the
// cluster, whosever they are.
func (c *Client) Volumes(ctx context.Context, driver string) ([]Volume, error) {
	var found []Volume
	for one, err := range list[volumeObject](ctx, c, "/api/v1/persistentvolumes", nil) {
		if err != nil {
			return nil, err
		}
		if one.Spec.CSI == nil || driver != "" && one.Spec.CSI.Driver != driver {
			continue
		}
		found = append(found, one.volume())
	}
	return found, nil
}

// volumeObject is what is read of a PersistentVolume.
type volumeObject struct {
	Metadata struct {
		Name, UID         string
		CreationTimestamp time.Time
		DeletionTimestamp *time.Time
	}
	Spec struct {
		CSI *struct {
			Driver       string
			VolumeHandle string
		}
		ClaimRef                      *struct{ Namespace, Name string }
		PersistentVolumeReclaimPolicy string
	}
	Status struct{ Phase string }
}

func (o volumeObject) volume() Volume {
	released := o.Status.Phase == "Released" || o.Status.Phase == "Failed"
	volume := Volume{
		Name: o.Metadata.Name, UID: o.Metadata.UID,
		Made:  o.Metadata.CreationTimestamp,
		Going: o.Metadata.DeletionTimestamp != nil || released && o.Spec.PersistentVolumeReclaimPolicy == "Delete",
	}
	if csi := o.Spec.CSI; csi != nil {
		volume.Driver, volume.Handle = csi.Driver, csi.VolumeHandle
	}
	if claim := o.Spec.ClaimRef; claim != nil {
		volume.Claim = claim.Namespace + "/" + claim.Name
	}
	return volume
}

// A Snapshot is a VolumeSnapshotContent of a driver, or what a VolumeGroupSnapshotContent says of one of its snapshots.
type Snapshot struct {
	Name   string // of the object
	Driver string
	// Handle is empty while the snapshot, or the group, is being made.
	Handle string
	Made   time.Time // when the object was made
	Going  bool      // it is being deleted
}

// Snapshots returns the VolumeSnapshotContents of a driver, or of all drivers for ""; none where the cluster does not have that kind of objects.
func (c *Client) Snapshots(ctx context.Context, driver string) ([]Snapshot, error) {
	return c.snapshots(ctx, driver, "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents")
}

// GroupedSnapshots returns the snapshots that the VolumeGroupSnapshotContents of a driver name, or of all drivers for "", likewise, and one
// without a handle for each of them that names none yet. A VolumeSnapshotContent of each is made after that.
func (c *Client) GroupedSnapshots(ctx context.Context, driver string) ([]Snapshot, error) {
	// The second is what there is where the definitions of these objects are older.
	for _, version := range []string{"v1", "v1beta2"} {
		found, err := c.snapshots(ctx, driver, "/apis/groupsnapshot.storage.k8s.io/"+version+"/volumegroupsnapshotcontents")
		if err != nil || found != nil {
			return found, err
		}
	}
	return nil, nil
}

// snapshots returns what the objects at a path say of snapshots; nil if there is no such path.
func (c *Client) snapshots(ctx context.Context, driver, path string) ([]Snapshot, error) {
	found := []Snapshot{}
	for one, err := range list[snapshotObject](ctx, c, path, nil) {
		if fault.Is(err, fault.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if driver != "" && one.Spec.Driver != driver {
			continue
		}
		for _, handle := range one.handles() {
			found = append(found, Snapshot{
				Name: one.Metadata.Name, Driver: one.Spec.Driver, Handle: handle,
				Made: one.Metadata.CreationTimestamp, Going: one.Metadata.DeletionTimestamp != nil,
			})
		}
	}
	return found, nil
}

// snapshotObject is what is read of a VolumeSnapshotContent or a VolumeGroupSnapshotContent. Its spec has the handles of snapshots that
// were there before it, its status those of snapshots that were made for it.
type snapshotObject struct {
	Metadata struct {
		Name              string
		CreationTimestamp time.Time
		DeletionTimestamp *time.Time
	}
	Spec struct {
		Driver string
		Source struct {
			SnapshotHandle       string
			GroupSnapshotHandles struct{ VolumeSnapshotHandles []string }
		}
	}
	Status struct {
		SnapshotHandle         string
		VolumeSnapshotInfoList []struct{ SnapshotHandle string }
	}
}

// handles are those of its snapshots, or an empty one.
func (o snapshotObject) handles() []string {
	var handles []string
	for _, one := range o.Status.VolumeSnapshotInfoList {
		handles = append(handles, one.SnapshotHandle)
	}
	source := o.Spec.Source
	switch {
	case len(handles) > 0:
		return handles
	case len(source.GroupSnapshotHandles.VolumeSnapshotHandles) > 0:
		return source.GroupSnapshotHandles.VolumeSnapshotHandles
	default:
		return []string{cmp.Or(o.Status.SnapshotHandle, source.SnapshotHandle)}
	}
}
