package badinput

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// copies are what the rows about snapshots, restores, groups and changed blocks refer to.
type copies struct {
	volume, other string // two volumes
	older, newer  string // snapshots of volume
	foreign       string // a snapshot of other
	group         string // of volume and other
	member        string // its snapshot of volume
}

// The names of the requests that made them.
const (
	snapshotName = "snapshot-of-the-table"
	groupName    = "groupsnapshot-of-the-table"
)

// copied makes copies of a volume, and another volume.
func (d Driver) copied(t *testing.T, volume string) copies {
	t.Helper()
	request := d.good()
	request.Name = "pvc-beside-the-table"
	made, err := d.Controller.CreateVolume(t.Context(), request)
	if err != nil {
		t.Fatalf("create a second good volume: %v", err)
	}
	c := copies{volume: volume, other: made.GetVolume().GetVolumeId()}
	c.older = d.snapshot(t, snapshotName, volume)
	c.newer = d.snapshot(t, snapshotName+"-2", volume)
	c.foreign = d.snapshot(t, snapshotName+"-3", c.other)
	group, err := d.Groups.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{
		Name: groupName, SourceVolumeIds: []string{volume, c.other},
	})
	if err != nil {
		t.Fatalf("create a good group snapshot: %v", err)
	}
	c.group = group.GetGroupSnapshot().GetGroupSnapshotId()
	for _, one := range group.GetGroupSnapshot().GetSnapshots() {
		if one.GetSourceVolumeId() == volume {
			c.member = one.GetSnapshotId()
		}
	}
	return c
}

func (d Driver) snapshot(t *testing.T, name, volume string) string {
	t.Helper()
	made, err := d.Controller.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume})
	if err != nil {
		t.Fatalf("create a good snapshot: %v", err)
	}
	return made.GetSnapshot().GetSnapshotId()
}

// remove removes them again, and a volume before its snapshots.
func (d Driver) remove(t *testing.T, c copies) {
	t.Helper()
	deletions := []func(ctx context.Context, d Driver) error{
		deleteVolume(c.volume), deleteSnapshot(c.older), deleteSnapshot(c.newer), deleteSnapshot(c.foreign),
		deleteGroup(c.group), deleteVolume(c.other),
	}
	for i, deletion := range deletions {
		if err := deletion(t.Context(), d); err != nil {
			t.Errorf("deletion %d after the test: %v", i, err)
		}
	}
}

func deleteVolume(id string) func(ctx context.Context, d Driver) error {
	return func(ctx context.Context, d Driver) error {
		_, err := d.Controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
		return err
	}
}

func deleteSnapshot(id string) func(ctx context.Context, d Driver) error {
	return func(ctx context.Context, d Driver) error {
		_, err := d.Controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: id})
		return err
	}
}

func deleteGroup(id string, members ...string) func(ctx context.Context, d Driver) error {
	return func(ctx context.Context, d Driver) error {
		_, err := d.Groups.DeleteVolumeGroupSnapshot(ctx, &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: id, SnapshotIds: members})
		return err
	}
}

// snapshots are requests about snapshots.
func (d Driver) snapshots(c copies) map[string]row {
	create := func(change func(r *csi.CreateSnapshotRequest)) func(ctx context.Context, d Driver) error {
		return func(ctx context.Context, d Driver) error {
			r := &csi.CreateSnapshotRequest{Name: "snapshot-bad", SourceVolumeId: c.volume}
			change(r)
			_, err := d.Controller.CreateSnapshot(ctx, r)
			return err
		}
	}
	list := func(r *csi.ListSnapshotsRequest) func(ctx context.Context, d Driver) error {
		return func(ctx context.Context, d Driver) error {
			_, err := d.Controller.ListSnapshots(ctx, r)
			return err
		}
	}
	of := func(id string) func(r *csi.CreateSnapshotRequest) {
		return func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = id }
	}
	return map[string]row{
		"snapshot/of another cluster": {code: codes.InvalidArgument, word: "nowhere", call: create(of("nowhere:kube/image"))},
		"snapshot/without a name":     {code: codes.InvalidArgument, word: "name", call: create(func(r *csi.CreateSnapshotRequest) { r.Name = "" })},
		"snapshot/without a volume":   {code: codes.InvalidArgument, word: "source_volume_id", call: create(of(""))},
		"snapshot/a name of 129 bytes": {code: codes.InvalidArgument, word: "128",
			call: create(func(r *csi.CreateSnapshotRequest) { r.Name = strings.Repeat("n", 129) })},
		"snapshot/a name that another volume's has": {code: codes.AlreadyExists, word: "snapshot",
			call: create(func(r *csi.CreateSnapshotRequest) { r.Name, r.SourceVolumeId = snapshotName, c.other })},
		"snapshot/an unknown parameter": {code: codes.InvalidArgument, word: "colour",
			call: create(func(r *csi.CreateSnapshotRequest) { r.Parameters = map[string]string{"colour": "red"} })},
		"snapshot/somewhere": {code: codes.InvalidArgument, word: "accessibility_requirements",
			call: create(func(r *csi.CreateSnapshotRequest) { r.AccessibilityRequirements = &csi.TopologyRequirement{} })},
		"snapshot/list a negative number": {code: codes.InvalidArgument, word: "max_entries", call: list(&csi.ListSnapshotsRequest{MaxEntries: -1})},
		"snapshot/list from a made-up token": {code: codes.Aborted, word: "token",
			call: list(&csi.ListSnapshotsRequest{StartingToken: "somewhere"})},
		"snapshot/list one from a token": {code: codes.Aborted, word: "token",
			call: list(&csi.ListSnapshotsRequest{SnapshotId: c.older, StartingToken: d.Pool.String() + "@s/a/"})},
		"snapshot/list of a volume from a made-up token": {code: codes.Aborted, word: "token",
			call: list(&csi.ListSnapshotsRequest{SourceVolumeId: c.volume, StartingToken: "somewhere"})},
	}
}

// snapshotHandles are snapshot IDs that name no snapshot of ours, in every request that has one.
func (d Driver) snapshotHandles(c copies) map[string]row {
	rows := map[string]row{}
	for name, odd := range map[string]struct {
		id         string
		gone, used codes.Code // of a deletion, and of the others
	}{
		"of another driver":   {"0001-0009-rook-ceph-0000000000000002-b9d6aa10-0242ac110004", codes.OK, codes.NotFound},
		"without the ID":      {c.older[:strings.LastIndex(c.older, "#")], codes.OK, codes.NotFound},
		"of a volume":         {c.volume, codes.OK, codes.NotFound},
		"of no image":         {d.Pool.String() + "/nowhere@snap#10", codes.OK, codes.NotFound},
		"of no snapshot":      {strings.Replace(c.older, "@", "@not-", 1), codes.OK, codes.NotFound},
		"of an earlier image": {c.older[:strings.LastIndex(c.older, "#")] + "#10", codes.OK, codes.NotFound},
		"of no pool":          {d.Pool.Cluster + ":nowhere/image@snap#10", codes.OK, codes.NotFound},
		// These may be misspelt names of a snapshot that is there.
		"over-long":      {strings.Replace(c.older, "@", "@"+strings.Repeat("x", 128), 1), codes.InvalidArgument, codes.InvalidArgument},
		"not canonical":  {strings.Replace(c.older, "/", "//", 1), codes.InvalidArgument, codes.InvalidArgument},
		"with a newline": {c.older + "\n", codes.InvalidArgument, codes.InvalidArgument},
		"of no cluster":  {"nowhere:kube/image@snap#10", codes.InvalidArgument, codes.InvalidArgument},
	} {
		rows["snapshot handle "+name+"/delete"] = row{code: odd.gone, call: deleteSnapshot(odd.id)}
		rows["snapshot handle "+name+"/get"] = row{code: odd.used, call: func(ctx context.Context, d Driver) error {
			_, err := d.Controller.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: odd.id})
			return err
		}}
		rows["snapshot handle "+name+"/restore"] = row{code: odd.used, create: func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = ofSnapshot(odd.id)
		}}
		rows["snapshot handle "+name+"/allocated"] = row{code: odd.used, call: allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: odd.id})}
		rows["snapshot handle "+name+"/changed since"] = row{code: odd.used, call: changed(&csi.GetMetadataDeltaRequest{
			BaseSnapshotId: odd.id, TargetSnapshotId: odd.id,
		})}
	}
	return rows
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

// restores are volumes that cannot be made of a snapshot or a volume. The sources have a GiB.
func restores(c copies) map[string]row {
	of := func(source *csi.VolumeContentSource, required, limit int64) func(r *csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = source
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}
		}
	}
	return map[string]row{
		"restore/of nothing":                {codes.InvalidArgument, "volume_content_source", of(&csi.VolumeContentSource{}, gib, 0), nil},
		"restore/of an empty snapshot ID":   {codes.InvalidArgument, "snapshot_id", of(ofSnapshot(""), gib, 0), nil},
		"restore/of an empty volume ID":     {codes.InvalidArgument, "volume_id", of(ofVolume(""), gib, 0), nil},
		"restore/smaller than the snapshot": {codes.OutOfRange, "the source has", of(ofSnapshot(c.older), gib/2, 0), nil},
		"restore/with a limit below":        {codes.OutOfRange, "the source has", of(ofSnapshot(c.older), 0, gib/2), nil},
		"restore/smaller than the volume":   {codes.OutOfRange, "the source has", of(ofVolume(c.volume), gib/2, gib/2), nil},
		"restore/of a volume of no cluster": {codes.InvalidArgument, "nowhere", of(ofVolume("nowhere:kube/image"), gib, 0), nil},
		"restore/without layering": {codes.InvalidArgument, "layering", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = ofSnapshot(c.older)
			r.Parameters["imageFeatures"] = "exclusive-lock"
		}, nil},
		"restore/the name of an empty volume": {codes.AlreadyExists, "source", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = ofSnapshot(c.foreign)
			r.Name = "pvc-of-the-table"
		}, nil},
		"restore/a volume of the volume alone": {codes.AlreadyExists, "source", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = ofVolume(c.other)
			r.Name = "pvc-of-the-table"
		}, nil},
	}
}

// groups are requests about group snapshots.
func (d Driver) groups(c copies) map[string]row {
	create := func(change func(r *csi.CreateVolumeGroupSnapshotRequest)) func(ctx context.Context, d Driver) error {
		return func(ctx context.Context, d Driver) error {
			r := &csi.CreateVolumeGroupSnapshotRequest{Name: "groupsnapshot-bad", SourceVolumeIds: []string{c.volume, c.other}}
			change(r)
			_, err := d.Groups.CreateVolumeGroupSnapshot(ctx, r)
			return err
		}
	}
	of := func(ids ...string) func(ctx context.Context, d Driver) error {
		return create(func(r *csi.CreateVolumeGroupSnapshotRequest) { r.SourceVolumeIds = ids })
	}
	get := func(id string, members ...string) func(ctx context.Context, d Driver) error {
		return func(ctx context.Context, d Driver) error {
			_, err := d.Groups.GetVolumeGroupSnapshot(ctx, &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: id, SnapshotIds: members})
			return err
		}
	}
	none := d.Pool.String() + "/@nowhere"
	return map[string]row{
		"group/without a name": {code: codes.InvalidArgument, word: "name",
			call: create(func(r *csi.CreateVolumeGroupSnapshotRequest) { r.Name = "" })},
		"group/a name of 129 bytes": {code: codes.InvalidArgument, word: "128",
			call: create(func(r *csi.CreateVolumeGroupSnapshotRequest) { r.Name = strings.Repeat("n", 129) })},
		"group/an unknown parameter": {code: codes.InvalidArgument, word: "colour",
			call: create(func(r *csi.CreateVolumeGroupSnapshotRequest) { r.Parameters = map[string]string{"colour": "red"} })},
		"group/the name of other volumes": {code: codes.AlreadyExists, word: "group snapshot",
			call: create(func(r *csi.CreateVolumeGroupSnapshotRequest) {
				r.Name, r.SourceVolumeIds = groupName, []string{c.volume}
			})},
		"group/of no volumes":                {code: codes.InvalidArgument, word: "source_volume_ids", call: of()},
		"group/of an empty handle":           {code: codes.InvalidArgument, word: "source_volume_ids[1]", call: of(c.volume, "")},
		"group/of a volume twice":            {code: codes.InvalidArgument, word: "twice", call: of(c.volume, c.other, c.volume)},
		"group/of two pools":                 {code: codes.InvalidArgument, word: "pool", call: of(c.volume, d.Pool.Cluster+":nowhere/image")},
		"group/with a missing volume":        {code: codes.NotFound, word: "nowhere", call: of(c.volume, d.Pool.String()+"/nowhere")},
		"group/with one of another driver":   {code: codes.NotFound, word: "vol-0a1b", call: of(c.volume, "vol-0a1b")},
		"group/of no cluster":                {code: codes.InvalidArgument, word: "nowhere", call: of("nowhere:kube/image")},
		"group/delete another driver's":      {code: codes.OK, call: deleteGroup("group-0a1b")},
		"group/delete one that is not there": {code: codes.OK, call: deleteGroup(none)},
		"group/delete a misspelt one":        {code: codes.InvalidArgument, word: c.group, call: deleteGroup(strings.Replace(c.group, "/", "//", 1))},
		"group/delete with a foreign member": {code: codes.InvalidArgument, word: "snapshot", call: deleteGroup(c.group, c.member, c.foreign)},
		"group/delete with a made-up member": {code: codes.InvalidArgument, word: "snap-0a1b", call: deleteGroup(c.group, "snap-0a1b")},
		"group/get another driver's":         {code: codes.NotFound, word: "group-0a1b", call: get("group-0a1b")},
		"group/get one that is not there":    {code: codes.NotFound, word: "nowhere", call: get(none)},
		"group/get with a foreign member":    {code: codes.InvalidArgument, word: "snapshot", call: get(c.group, c.member, c.foreign)},
		"group/get with a made-up member":    {code: codes.InvalidArgument, word: "snap-0a1b", call: get(c.group, "snap-0a1b")},
	}
}

// changes are requests for changed blocks.
func changes(c copies) map[string]row {
	return map[string]row{
		"changes/of no snapshot":  {code: codes.InvalidArgument, word: "snapshot_id", call: allocated(&csi.GetMetadataAllocatedRequest{})},
		"changes/negative offset": {code: codes.OutOfRange, word: "offset", call: allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: c.older, StartingOffset: -1})},
		"changes/offset behind the end": {code: codes.OutOfRange, word: "offset",
			call: allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: c.older, StartingOffset: gib + 1})},
		"changes/negative number": {code: codes.InvalidArgument, word: "max_results",
			call: allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: c.older, MaxResults: -1})},
		"changes/no base":   {code: codes.InvalidArgument, word: "base_snapshot_id", call: changed(&csi.GetMetadataDeltaRequest{TargetSnapshotId: c.newer})},
		"changes/no target": {code: codes.InvalidArgument, word: "target_snapshot_id", call: changed(&csi.GetMetadataDeltaRequest{BaseSnapshotId: c.older})},
		"changes/the wrong order": {code: codes.InvalidArgument, word: "older",
			call: changed(&csi.GetMetadataDeltaRequest{BaseSnapshotId: c.newer, TargetSnapshotId: c.older})},
		"changes/since itself": {code: codes.InvalidArgument, word: "older",
			call: changed(&csi.GetMetadataDeltaRequest{BaseSnapshotId: c.older, TargetSnapshotId: c.older})},
		"changes/since another volume's": {code: codes.InvalidArgument, word: "another volume",
			call: changed(&csi.GetMetadataDeltaRequest{BaseSnapshotId: c.foreign, TargetSnapshotId: c.newer})},
		"changes/since one that is not there": {code: codes.NotFound, word: "not-",
			call: changed(&csi.GetMetadataDeltaRequest{BaseSnapshotId: strings.Replace(c.older, "@", "@not-", 1), TargetSnapshotId: c.newer})},
		"changes/since, offset behind the end": {code: codes.OutOfRange, word: "offset",
			call: changed(&csi.GetMetadataDeltaRequest{BaseSnapshotId: c.older, TargetSnapshotId: c.newer, StartingOffset: gib + 1})},
	}
}

func allocated(r *csi.GetMetadataAllocatedRequest) func(ctx context.Context, d Driver) error {
	return func(ctx context.Context, d Driver) error {
		stream, err := d.Metadata.GetMetadataAllocated(ctx, r)
		for err == nil {
			_, err = stream.Recv()
		}
		return unlessEnd(err)
	}
}

func changed(r *csi.GetMetadataDeltaRequest) func(ctx context.Context, d Driver) error {
	return func(ctx context.Context, d Driver) error {
		stream, err := d.Metadata.GetMetadataDelta(ctx, r)
		for err == nil {
			_, err = stream.Recv()
		}
		return unlessEnd(err)
	}
}

func unlessEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
