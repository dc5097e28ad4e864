package badinput

import (
	"context"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/test/memory"
)

func inMemory(t *testing.T) Driver {
	t.Helper()
	return against(t, memory.Start(t))
}

func against(t *testing.T, driver *memory.Driver) Driver {
	t.Helper()
	connection, err := grpc.NewClient(driver.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return Driver{
		Controller: csi.NewControllerClient(connection),
		Groups:     csi.NewGroupControllerClient(connection),
		Metadata:   csi.NewSnapshotMetadataClient(connection),
		Node:       csi.NewNodeClient(connection),
		Pool:       memory.Pool,
		User:       "csi",
		Tools:      driver.Ceph,
		Directory:  t.TempDir(),
	}
}

func TestInMemory(t *testing.T) { Run(t, inMemory(t)) }

// TestCopiesStayInTheirCluster makes copies in another cluster of the same process.
func TestCopiesStayInTheirCluster(t *testing.T) {
	driver := memory.Start(t)
	driver.Ceph.AddCluster("far").AddUser("csi", "KEY").AddPool("kube")
	d := against(t, driver)
	volume := d.made(t)
	for name, source := range map[string]*csi.VolumeContentSource{
		"of a volume":   ofVolume(volume),
		"of a snapshot": ofSnapshot(d.snapshot(t, snapshotName, volume)),
	} {
		request := d.good()
		request.Name, request.Parameters["cluster"], request.VolumeContentSource = "pvc-far", "far", source
		_, err := d.Controller.CreateVolume(t.Context(), request)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "another cluster") {
			t.Errorf("%s: got %v, want %v that names the clusters", name, err, codes.InvalidArgument)
		}
	}
}

// TestOddNamesThatCanBeHad makes a volume, a snapshot and a group snapshot for each odd name, and
// all of the volumes are different.
func TestOddNamesThatCanBeHad(t *testing.T) {
	d := inMemory(t)
	seen := map[string]string{}
	for _, name := range []string{
		"pvc-0b6c", "a/b", "a@b", "a:b", "a b", " a", "ä", "a\nb", "..", ".", "-a", "%", "a%2Fb", "#",
		strings.Repeat("n", 128), strings.Repeat("n", 127), strings.Repeat("ä", 64),
	} {
		request := d.good()
		request.Name = name
		made, err := d.Controller.CreateVolume(t.Context(), request)
		if err != nil {
			t.Errorf("name %q: %v, want a volume", name, err)
			continue
		}
		id := made.GetVolume().GetVolumeId()
		if other, taken := seen[id]; taken {
			t.Errorf("names %q and %q have the same volume %q", name, other, id)
		}
		seen[id] = name
		if len(id) > 128 {
			t.Errorf("name %q: a handle of %d bytes, want at most 128", name, len(id))
		}
		snapshot := d.snapshot(t, name, id)
		if err := deleteSnapshot(snapshot)(t.Context(), d); err != nil {
			t.Errorf("name %q: delete the snapshot: %v", name, err)
		}
		group, err := d.Groups.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{
			Name: name, SourceVolumeIds: []string{id},
		})
		if err != nil {
			t.Errorf("name %q: %v, want a group snapshot", name, err)
			continue
		}
		handle := group.GetGroupSnapshot().GetGroupSnapshotId()
		if len(snapshot) > 128 || len(handle) > 128 {
			t.Errorf("name %q: handles %q and %q, want at most 128 bytes", name, snapshot, handle)
		}
		for _, deletion := range []func(ctx context.Context, d Driver) error{deleteVolume(id), deleteGroup(handle)} {
			if err := deletion(t.Context(), d); err != nil {
				t.Errorf("name %q: delete: %v", name, err)
			}
		}
	}
}
