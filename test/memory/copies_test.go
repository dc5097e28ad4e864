package memory_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/test/memory"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	// object is how large the data objects of volumes are.
	object = 4 * mib
)

// A client asks the services of a driver about copies.
type client struct {
	csi.ControllerClient
	csi.GroupControllerClient
	csi.SnapshotMetadataClient
	csi.NodeClient

	t      *testing.T
	driver *memory.Driver
}

func start(t *testing.T) client {
	t.Helper()
	driver := memory.Start(t)
	connection, err := grpc.NewClient(driver.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return client{
		ControllerClient: csi.NewControllerClient(connection), GroupControllerClient: csi.NewGroupControllerClient(connection),
		SnapshotMetadataClient: csi.NewSnapshotMetadataClient(connection), NodeClient: csi.NewNodeClient(connection),
		t: t, driver: driver,
	}
}

// call makes a request that has to succeed.
func call[Q, A any](c client, method func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) A {
	c.t.Helper()
	answer, err := method(c.t.Context(), request)
	if err != nil {
		c.t.Fatalf("%T %v: %v", request, request, err)
	}
	return answer
}

// volume makes a volume, a copy of the source if there is one.
func (c client) volume(name string, bytes int64, source *csi.VolumeContentSource) *csi.Volume {
	c.t.Helper()
	return call(c, c.CreateVolume, &csi.CreateVolumeRequest{
		Name:                name,
		CapacityRange:       &csi.CapacityRange{RequiredBytes: bytes},
		VolumeCapabilities:  []*csi.VolumeCapability{writer()},
		Parameters:          map[string]string{"pool": memory.Pool.Pool},
		VolumeContentSource: source,
	}).GetVolume()
}

func writer() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

func (c client) snapshot(name, volume string) *csi.Snapshot {
	c.t.Helper()
	return call(c, c.CreateSnapshot, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume}).GetSnapshot()
}

func (c client) write(volume string, offset int64, text string) {
	c.t.Helper()
	if err := c.driver.Ceph.WriteAt(c.image(volume), offset, text); err != nil {
		c.t.Fatal(err)
	}
}

func (c client) expectText(volume string, offset int64, want string) {
	c.t.Helper()
	got, err := c.driver.Ceph.ReadAt(c.image(volume), offset, len(want))
	if err != nil || got != want {
		c.t.Errorf("volume %s at %d: got %q, %v; want %q", volume, offset, got, err, want)
	}
}

func (c client) image(volume string) volid.Image {
	c.t.Helper()
	image, err := volid.ParseImage(volume)
	if err != nil {
		c.t.Fatal(err)
	}
	return image
}

// expectEmpty deletes what is named, in that order, and looks what is left.
func (c client) expectEmpty(ids ...string) {
	c.t.Helper()
	for _, id := range ids {
		switch {
		case strings.Contains(id, "/@"):
			call(c, c.DeleteVolumeGroupSnapshot, &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: id})
		case strings.Contains(id, "@"):
			call(c, c.DeleteSnapshot, &csi.DeleteSnapshotRequest{SnapshotId: id})
		default:
			call(c, c.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: id})
		}
	}
	c.driver.AwaitPurge(c.t)
	left, err := c.driver.Ceph.Objects(memory.Pool)
	if err != nil || slices.ContainsFunc(left, func(line string) bool { return line != "rbd_csi.index complete 1" }) {
		c.t.Errorf("left in the pool: %q, %v; want nothing", left, err)
	}
}

func ofSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id},
	}}
}

func ofVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id},
	}}
}

func TestCopies(t *testing.T) {
	c := start(t)
	volume := c.volume("pvc-1", gib, nil).GetVolumeId()
	c.write(volume, 5*object, "before")
	snapshot := c.snapshot("snapshot-1", volume)
	c.write(volume, 5*object, "after!")
	if again := c.snapshot("snapshot-1", volume); !proto.Equal(again, snapshot) {
		t.Errorf("the same snapshot again: got %v, want %v", again, snapshot)
	}
	got := call(c, c.GetSnapshot, &csi.GetSnapshotRequest{SnapshotId: snapshot.GetSnapshotId()}).GetSnapshot()
	if !proto.Equal(got, snapshot) || !snapshot.GetReadyToUse() || snapshot.GetSizeBytes() != gib ||
		snapshot.GetSourceVolumeId() != volume || !snapshot.GetCreationTime().IsValid() || snapshot.GetGroupSnapshotId() != "" {
		t.Errorf("got snapshot %v and then %v, want it ready, of %s, with its size and time", snapshot, got, volume)
	}

	restored := c.volume("pvc-2", 2*gib, ofSnapshot(snapshot.GetSnapshotId()))
	cloned := c.volume("pvc-3", 0, ofVolume(volume))
	for _, one := range []struct {
		volume *csi.Volume
		source *csi.VolumeContentSource
		bytes  int64
		text   string
	}{
		{restored, ofSnapshot(snapshot.GetSnapshotId()), 2 * gib, "before"},
		{cloned, ofVolume(volume), gib, "after!"},
	} {
		if !proto.Equal(one.volume.GetContentSource(), one.source) || one.volume.GetCapacityBytes() != one.bytes {
			t.Errorf("got %v, want a copy of %v with %d bytes", one.volume, one.source, one.bytes)
		}
		c.expectText(one.volume.GetVolumeId(), 5*object, one.text)
	}
	c.expectEmpty(volume, snapshot.GetSnapshotId(), cloned.GetVolumeId(), restored.GetVolumeId())
}

func TestListSnapshots(t *testing.T) {
	c := start(t)
	var volumes, snapshots []string
	for i := range 3 {
		volumes = append(volumes, c.volume(fmt.Sprintf("pvc-%d", i), gib, nil).GetVolumeId())
	}
	for i := range 7 {
		snapshots = append(snapshots, c.snapshot(fmt.Sprintf("snapshot-%d", i), volumes[i%3]).GetSnapshotId())
	}
	list := func(r *csi.ListSnapshotsRequest) []string {
		var got []string
		for {
			page := call(c, c.ListSnapshots, r)
			if n := len(page.GetEntries()); r.MaxEntries > 0 && n > int(r.MaxEntries) {
				t.Errorf("got a page of %d, want at most %d", n, r.MaxEntries)
			}
			for _, one := range page.GetEntries() {
				got = append(got, one.GetSnapshot().GetSnapshotId())
			}
			if r.StartingToken = page.GetNextToken(); r.StartingToken == "" {
				return got
			}
		}
	}
	for name, test := range map[string]struct {
		ask  *csi.ListSnapshotsRequest
		want []string
	}{
		"all":                       {&csi.ListSnapshotsRequest{}, snapshots},
		"in pages of 2":             {&csi.ListSnapshotsRequest{MaxEntries: 2}, snapshots},
		"in pages of 7":             {&csi.ListSnapshotsRequest{MaxEntries: 7}, snapshots},
		"of a volume":               {&csi.ListSnapshotsRequest{SourceVolumeId: volumes[0]}, []string{snapshots[0], snapshots[3], snapshots[6]}},
		"of a volume, one by one":   {&csi.ListSnapshotsRequest{SourceVolumeId: volumes[0], MaxEntries: 1}, []string{snapshots[0], snapshots[3], snapshots[6]}},
		"of none that is there":     {&csi.ListSnapshotsRequest{SourceVolumeId: memory.Pool.String() + "/nowhere"}, nil},
		"of another driver's":       {&csi.ListSnapshotsRequest{SourceVolumeId: "vol-0a1b"}, nil},
		"one":                       {&csi.ListSnapshotsRequest{SnapshotId: snapshots[4]}, snapshots[4:5]},
		"one, and its volume":       {&csi.ListSnapshotsRequest{SnapshotId: snapshots[4], SourceVolumeId: volumes[1]}, snapshots[4:5]},
		"one, and another volume":   {&csi.ListSnapshotsRequest{SnapshotId: snapshots[4], SourceVolumeId: volumes[0]}, nil},
		"one that is not there":     {&csi.ListSnapshotsRequest{SnapshotId: strings.Replace(snapshots[4], "@", "@not-", 1)}, nil},
		"one of another driver":     {&csi.ListSnapshotsRequest{SnapshotId: "snap-0a1b"}, nil},
		"one of a pool that is not": {&csi.ListSnapshotsRequest{SnapshotId: "main:nowhere/a@b#10"}, nil},
	} {
		if got := list(test.ask); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestGroups(t *testing.T) {
	c := start(t)
	request := &csi.CreateVolumeGroupSnapshotRequest{Name: "groupsnapshot-1"}
	for i := range 3 {
		id := c.volume(fmt.Sprintf("pvc-%d", i), gib, nil).GetVolumeId()
		c.write(id, 0, id)
		request.SourceVolumeIds = append(request.SourceVolumeIds, id)
	}
	group := call(c, c.CreateVolumeGroupSnapshot, request).GetGroupSnapshot()
	again := call(c, c.CreateVolumeGroupSnapshot, request).GetGroupSnapshot()
	if !proto.Equal(group, again) {
		t.Errorf("the same group again: got %v, want %v", again, group)
	}
	if !group.GetReadyToUse() || !group.GetCreationTime().IsValid() || len(group.GetSnapshots()) != 3 {
		t.Errorf("got %v, want it ready, with a time and 3 snapshots", group)
	}
	members := &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: group.GetGroupSnapshotId()}
	for i, member := range group.GetSnapshots() {
		if member.GetGroupSnapshotId() != group.GetGroupSnapshotId() || !member.GetReadyToUse() {
			t.Errorf("member %d: got %v, want it ready and of the group %s", i, member, group.GetGroupSnapshotId())
		}
		alone := call(c, c.GetSnapshot, &csi.GetSnapshotRequest{SnapshotId: member.GetSnapshotId()}).GetSnapshot()
		if !proto.Equal(alone, member) {
			t.Errorf("member %d alone: got %v, want %v", i, alone, member)
		}
		restored := c.volume(fmt.Sprintf("pvc-restored-%d", i), gib, ofSnapshot(member.GetSnapshotId()))
		c.expectText(restored.GetVolumeId(), 0, member.GetSourceVolumeId())
		members.SnapshotIds = append(members.SnapshotIds, member.GetSnapshotId())
		request.SourceVolumeIds = append(request.SourceVolumeIds, restored.GetVolumeId())
	}
	if found := call(c, c.GetVolumeGroupSnapshot, members).GetGroupSnapshot(); !proto.Equal(found, group) {
		t.Errorf("get: got %v, want %v", found, group)
	}
	c.expectEmpty(append(request.SourceVolumeIds, group.GetGroupSnapshotId())...)
}

// A piece is a range of a stream.
type piece struct{ offset, bytes int64 }

// A message is one of a stream of changed blocks.
type message interface {
	GetBlockMetadataType() csi.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*csi.BlockMetadata
}

// pieces reads a stream of a volume of a GiB to its end.
func pieces[M message](t *testing.T, receive func() (M, error), most int) (got []piece) {
	t.Helper()
	for messages := 0; ; messages++ {
		one, err := receive()
		if errors.Is(err, io.EOF) && messages > 0 {
			return got
		}
		if err != nil {
			t.Fatalf("message %d: %v, want one at least", messages, err)
		}
		if one.GetBlockMetadataType() != csi.BlockMetadataType_VARIABLE_LENGTH || one.GetVolumeCapacityBytes() != gib {
			t.Errorf("got type %v and capacity %d, want ranges of variable length and %d",
				one.GetBlockMetadataType(), one.GetVolumeCapacityBytes(), gib)
		}
		if n := len(one.GetBlockMetadata()); n > most {
			t.Errorf("got a message with %d ranges, want at most %d", n, most)
		}
		for _, block := range one.GetBlockMetadata() {
			got = append(got, piece{block.GetByteOffset(), block.GetSizeBytes()})
		}
	}
}

// The changed blocks of a volume that is written in objects 1, 3, 4 and the last, then a snapshot, in
// objects 3, 6 and 8, then another.
func TestChangedBlocks(t *testing.T) {
	c := start(t)
	volume := c.volume("pvc-1", gib, nil).GetVolumeId()
	for _, at := range []int64{1, 3, 4, gib/object - 1} {
		c.write(volume, at*object+100, "x")
	}
	older := c.snapshot("snapshot-1", volume).GetSnapshotId()
	for _, at := range []int64{3, 6, 8} {
		c.write(volume, at*object, "y")
	}
	newer := c.snapshot("snapshot-2", volume).GetSnapshotId()
	same := c.snapshot("snapshot-3", volume).GetSnapshotId()
	end := piece{gib - object, object}
	for name, test := range map[string]struct {
		base, target string
		offset       int64
		want         []piece
	}{
		"allocated":                   {"", older, 0, []piece{{object, object}, {3 * object, 2 * object}, end}},
		"allocated from an object":    {"", older, 3 * object, []piece{{3 * object, 2 * object}, end}},
		"allocated from the end":      {"", older, gib, nil},
		"changed":                     {older, newer, 0, []piece{{3 * object, object}, {6 * object, object}, {8 * object, object}}},
		"changed from behind a range": {older, newer, 4 * object, []piece{{6 * object, object}, {8 * object, object}}},
		"nothing changed":             {newer, same, 0, nil},
	} {
		for _, most := range []int{0, 1, 2, 1 << 30} {
			t.Run(fmt.Sprintf("%s, %d in a message", name, most), func(t *testing.T) {
				var got []piece
				bound := most
				if most == 0 {
					bound = 10_000
				}
				if test.base == "" {
					stream, err := c.GetMetadataAllocated(t.Context(), &csi.GetMetadataAllocatedRequest{
						SnapshotId: test.target, StartingOffset: test.offset, MaxResults: int32(most),
					})
					if err != nil {
						t.Fatal(err)
					}
					got = pieces(t, stream.Recv, bound)
				} else {
					stream, err := c.GetMetadataDelta(t.Context(), &csi.GetMetadataDeltaRequest{
						BaseSnapshotId: test.base, TargetSnapshotId: test.target, StartingOffset: test.offset, MaxResults: int32(most),
					})
					if err != nil {
						t.Fatal(err)
					}
					got = pieces(t, stream.Recv, bound)
				}
				if !slices.Equal(got, test.want) {
					t.Errorf("got %v, want %v", got, test.want)
				}
			})
		}
	}
	c.expectEmpty(volume, older, newer, same)
}

func TestPublishedNodes(t *testing.T) {
	c := start(t)
	attached, alone := c.volume("pvc-1", gib, nil).GetVolumeId(), c.volume("pvc-2", gib, nil).GetVolumeId()
	node := call(c, c.NodeGetInfo, &csi.NodeGetInfoRequest{}).GetNodeId()
	call(c, c.ControllerPublishVolume, &csi.ControllerPublishVolumeRequest{VolumeId: attached, NodeId: node, VolumeCapability: writer()})
	want := map[string][]string{attached: {node}, alone: nil}
	for _, entry := range call(c, c.ListVolumes, &csi.ListVolumesRequest{}).GetEntries() {
		id, status := entry.GetVolume().GetVolumeId(), entry.GetStatus()
		if status == nil || !slices.Equal(status.GetPublishedNodeIds(), want[id]) {
			t.Errorf("volume %s: got status %v, want nodes %q", id, status, want[id])
		}
	}
}
