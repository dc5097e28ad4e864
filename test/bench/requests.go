package main

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

// parallel is how many requests are in flight where requests are sent in parallel.
const parallel = 32

func eachBare(do func(bare, string) error) batch { return manyBare(1, do) }

func parallelBare(do func(bare, string) error) batch { return manyBare(parallel, do) }

func manyBare(inFlight int, do func(bare, string) error) batch {
	return func(ctx context.Context, l *lab, images []image) (int64, error) {
		return 0, atOnce(ctx, inFlight, len(images), func(at int) error { return do(l.bare, images[at].name) })
	}
}

func eachOurs(do func(context.Context, *driver.Process, *image) error) batch { return manyOurs(1, do) }

func parallelOurs(do func(context.Context, *driver.Process, *image) error) batch {
	return manyOurs(parallel, do)
}

func manyOurs(inFlight int, do func(context.Context, *driver.Process, *image) error) batch {
	return func(ctx context.Context, l *lab, images []image) (int64, error) {
		return 0, atOnce(ctx, inFlight, len(images), func(at int) error { return do(ctx, l.controller, &images[at]) })
	}
}

func create(ctx context.Context, to *driver.Process, i *image) (err error) {
	i.volume, err = to.Create(ctx, claim(ours, i.name))
	return err
}

// claim is a claim of a volume in one of the driver's pools.
func claim(pool, volume string) driver.Claim {
	return driver.Claim{
		Volume: volume, Name: "data-web-0", Namespace: "default", Bytes: imageBytes,
		Parameters: map[string]string{"pool": pool},
	}
}

// aNode is no running one: a volume can be attached to a node all the same.
var aNode = volid.Node{Name: "node"}

func attach(ctx context.Context, to *driver.Process, i *image) (err error) {
	i.attached, err = to.Attach(ctx, i.volume, aNode.String())
	return err
}

func detach(ctx context.Context, to *driver.Process, i *image) error {
	return to.Detach(ctx, i.volume, aNode.String())
}

func get(ctx context.Context, to *driver.Process, i *image) error {
	_, err := to.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: i.volume.Handle})
	return err
}

// list lists all volumes at once; there are as many rows as images.
func list(ctx context.Context, l *lab, images []image) (int64, error) {
	answer, err := l.controller.ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err == nil && len(answer.GetEntries()) != len(images) {
		err = fmt.Errorf("got %d rows, want %d", len(answer.GetEntries()), len(images))
	}
	return 0, err
}

func expandBare(b bare, name string) error { return b.expand(name, 2*imageBytes) }

func expand(ctx context.Context, to *driver.Process, i *image) error {
	_, err := to.Expand(ctx, i.volume, 2*imageBytes)
	return err
}

// The names that the bare side gives to what is made of an image.
const (
	bareSnapshot = "snapshot"
	ownSnapshot  = "own" // taken for a clone of a volume, and removed
)

func plainName(of string) string    { return of }
func restoredName(of string) string { return of + "-restored" }
func clonedName(of string) string   { return of + "-cloned" }

func plainVolume(i image) driver.Volume    { return i.volume }
func restoredVolume(i image) driver.Volume { return i.restored }
func clonedVolume(i image) driver.Volume   { return i.cloned }

func snapshotBare(b bare, name string) error { return b.snapshot(name, bareSnapshot) }

func snapshot(ctx context.Context, to *driver.Process, i *image) (err error) {
	i.snapshot, err = snapshotOf(ctx, to, i.volume, "snapshot-"+i.name)
	return err
}

// snapshotOf is external-snapshotter's part of a VolumeSnapshot: CreateSnapshot.
func snapshotOf(ctx context.Context, to *driver.Process, volume driver.Volume, name string) (string, error) {
	answer, err := to.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: volume.Handle, Name: name})
	if err == nil && !answer.GetSnapshot().GetReadyToUse() {
		err = fmt.Errorf("snapshot %s of %s is not ready to use", name, volume.Handle)
	}
	return answer.GetSnapshot().GetSnapshotId(), err
}

// listSnapshots lists all snapshots at once; there are as many rows as images.
func listSnapshots(ctx context.Context, l *lab, images []image) (int64, error) {
	answer, err := l.controller.ListSnapshots(ctx, &csi.ListSnapshotsRequest{})
	if err == nil && len(answer.GetEntries()) != len(images) {
		err = fmt.Errorf("got %d rows, want %d", len(answer.GetEntries()), len(images))
	}
	return 0, err
}

func restoreBare(b bare, name string) error { return b.clone(name, bareSnapshot, restoredName(name)) }

func restore(ctx context.Context, to *driver.Process, i *image) (err error) {
	i.restored, err = copyOf(ctx, to, restoredName(i.name), fromSnapshot(i.snapshot))
	return err
}

// cloneBare is what a copy of a volume takes: a snapshot, a clone of it, and its removal.
func cloneBare(b bare, name string) error {
	if err := b.snapshot(name, ownSnapshot); err != nil {
		return err
	}
	if err := b.clone(name, ownSnapshot, clonedName(name)); err != nil {
		return err
	}
	return b.removeSnapshot(name, ownSnapshot)
}

func clone(ctx context.Context, to *driver.Process, i *image) (err error) {
	i.cloned, err = copyOf(ctx, to, clonedName(i.name), &csi.VolumeContentSource{
		Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: i.volume.Handle}},
	})
	return err
}

func fromSnapshot(handle string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{
		Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: handle}},
	}
}

// copyOf is external-provisioner's part of a claim with a dataSource: CreateVolume. It asks for the
// size that the sources have after expand.
func copyOf(ctx context.Context, to *driver.Process, name string, source *csi.VolumeContentSource) (driver.Volume, error) {
	asked := claim(ours, name)
	parameters := map[string]string{
		"csi.storage.k8s.io/pvc/name":      asked.Name,
		"csi.storage.k8s.io/pvc/namespace": asked.Namespace,
		"csi.storage.k8s.io/pv/name":       asked.Volume,
	}
	maps.Copy(parameters, asked.Parameters)
	answer, err := to.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name:                name,
		CapacityRange:       &csi.CapacityRange{RequiredBytes: 2 * imageBytes},
		VolumeCapabilities:  []*csi.VolumeCapability{driver.Filesystem("ext4")},
		Parameters:          parameters,
		VolumeContentSource: source,
	})
	made := answer.GetVolume()
	return driver.Volume{Name: name, Handle: made.GetVolumeId(), Bytes: made.GetCapacityBytes(), Context: made.GetVolumeContext()}, err
}

func removeSnapshotBare(b bare, name string) error { return b.removeSnapshot(name, bareSnapshot) }

func deleteSnapshot(ctx context.Context, to *driver.Process, i *image) error {
	_, err := to.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: i.snapshot})
	return err
}

// removeBare removes the images of these names.
func removeBare(named func(string) string) batch {
	return func(ctx context.Context, l *lab, images []image) (int64, error) {
		var names []string
		for _, image := range images {
			names = append(names, named(image.name))
		}
		return l.bare.removeAll(ctx, names)
	}
}

// deleteAll deletes these volumes and waits until the trash is empty.
func deleteAll(which func(image) driver.Volume) batch {
	return func(ctx context.Context, l *lab, images []image) (looks int64, err error) {
		for _, image := range images {
			if err := l.controller.Delete(ctx, which(image)); err != nil {
				return 0, err
			}
		}
		return l.awaitFree(ctx, ours)
	}
}

// awaitFree waits until the trash of a pool is empty. Each look into it is an operation.
func (l *lab) awaitFree(ctx context.Context, pool string) (looks int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		empty, err := l.trash.empty(pool)
		looks++
		if err != nil || empty {
			return looks, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return looks, fmt.Errorf("wait until the trash is empty: %w", ctx.Err())
		}
	}
}

// family makes on both sides, for each image, a volume, a snapshot of it, and a volume of that.
func family(ctx context.Context, l *lab, images []image) (int64, error) {
	for _, step := range []batch{
		eachBare(bare.create), parallelBare(snapshotBare), eachBare(restoreBare),
		eachOurs(create), parallelOurs(snapshot), eachOurs(restore),
	} {
		if _, err := step(ctx, l, images); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// removeFamilyBare removes them the other way round, the only one that librbd has.
func removeFamilyBare(ctx context.Context, l *lab, images []image) (besides int64, err error) {
	for _, step := range []batch{removeBare(restoredName), parallelBare(removeSnapshotBare), removeBare(plainName)} {
		more, err := step(ctx, l, images)
		if besides += more; err != nil {
			return besides, err
		}
	}
	return besides, nil
}

// deleteFamily deletes them in the order in which they were made, which leaves most to be
// done later: the volume is kept for its snapshot, and the snapshot for its clone.
func deleteFamily(ctx context.Context, l *lab, images []image) (int64, error) {
	for i := range images {
		if err := l.controller.Delete(ctx, images[i].volume); err != nil {
			return 0, err
		}
	}
	if _, err := parallelOurs(deleteSnapshot)(ctx, l, images); err != nil {
		return 0, err
	}
	return deleteAll(restoredVolume)(ctx, l, images)
}
