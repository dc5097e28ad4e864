package kubernetes

import (
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

// A Snapshot is a VolumeSnapshotContent of a driver.
type Snapshot struct {
	Name   string // of the VolumeSnapshotContent
	Driver string
	// Handle is empty while the snapshot is being made.
	Handle string
	Made   time.Time // when the object was made
	Going  bool      // it is being deleted
}

// Snapshots returns the VolumeSnapshotContents of a driver, or of all drivers for ""; none where the cluster does not have that kind of objects.
func (c *Client) Snapshots(ctx context.Context, driver string) ([]Snapshot, error) {
	type object struct {
		Metadata struct {
			Name              string
			CreationTimestamp time.Time
			DeletionTimestamp *time.Time
		}
		Spec struct {
			Driver string
			Source struct{ SnapshotHandle string }
		}
		Status struct{ SnapshotHandle string }
	}
	var found []Snapshot
	for one, err := range list[object](ctx, c, "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents", nil) {
		if fault.Is(err, fault.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if driver != "" && one.Spec.Driver != driver {
			continue
		}
		handle := one.Status.SnapshotHandle
		if handle == "" {
			handle = one.Spec.Source.SnapshotHandle
		}
		found = append(found, Snapshot{
			Name: one.Metadata.Name, Driver: one.Spec.Driver, Handle: handle,
			Made: one.Metadata.CreationTimestamp, Going: one.Metadata.DeletionTimestamp != nil,
		})
	}
	return found, nil
}
