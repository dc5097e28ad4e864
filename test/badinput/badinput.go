// Package badinput is a table of requests that cannot be served: each has the gRPC
// code that it must get, words that its error must have, and leaves the pool as
// it was. It runs against the driver in memory and against the real one.
package badinput

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Driver is what the table is run against.
type Driver struct {
	Controller csi.ControllerClient
	Groups     csi.GroupControllerClient
	Metadata   csi.SnapshotMetadataClient
	Node       csi.NodeClient
	Pool       volid.Pool
	User       string // one that the cluster knows, without client.
	Tools      Tools  // past the driver
	Directory  string // for paths
}

// Tools do past the driver what people do with rbd and rados; a part of rbdtest.Tools.
type Tools interface {
	// Create makes an image as `rbd create` does.
	Create(image volid.Image, layout rbd.Layout) (id string, err error)
	// Objects returns what exists in a pool, sorted.
	Objects(at volid.Pool) ([]string, error)
}

const (
	gib = 1 << 30
	tib = 1 << 40
)

// deadline is what a request may take. A wrong key must be answered within it, too.
const deadline = 20 * time.Second

// Run runs the table. The pool may be used by nobody else meanwhile.
func Run(t *testing.T, d Driver) {
	volume := d.made(t)
	made := d.copied(t, volume)
	before := d.objects(t)
	for _, rows := range []map[string]row{
		names(), sizes(), parameters(), credentials(d.User), d.handles(volume), capabilities(volume), d.paths(volume),
		d.snapshots(made), d.snapshotHandles(made), restores(made), d.groups(made), changes(made),
	} {
		for _, name := range slices.Sorted(maps.Keys(rows)) {
			t.Run(name, func(t *testing.T) { d.check(t, rows[name], before) })
		}
	}
	t.Run("an image of someone else", func(t *testing.T) { d.foreign(t) })
	d.remove(t, made)
}

// A row is a request that cannot be served.
type row struct {
	code codes.Code
	word string // its error must contain it
	// One of these is set.
	create func(r *csi.CreateVolumeRequest)
	call   func(ctx context.Context, d Driver) error
}

// made makes the volume that rows refer to, and returns its handle.
func (d Driver) made(t *testing.T) string {
	t.Helper()
	made, err := d.Controller.CreateVolume(t.Context(), d.good())
	if err != nil {
		t.Fatalf("create a good volume: %v", err)
	}
	return made.GetVolume().GetVolumeId()
}

// good returns a request that can be served.
func (d Driver) good() *csi.CreateVolumeRequest {
	r := &csi.CreateVolumeRequest{
		Name:               "pvc-of-the-table",
		CapacityRange:      &csi.CapacityRange{RequiredBytes: gib},
		VolumeCapabilities: []*csi.VolumeCapability{mount("ext4", csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)},
		Parameters:         map[string]string{"cluster": d.Pool.Cluster, "pool": d.Pool.Pool},
	}
	if d.Pool.Namespace != "" {
		r.Parameters["namespace"] = d.Pool.Namespace
	}
	return r
}

// check makes the request and looks at its answer, and whether the pool is as before.
func (d Driver) check(t *testing.T, r row, before []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	var err error
	if r.call != nil {
		err = r.call(ctx, d)
	} else {
		request := d.good()
		request.Name = "pvc-bad"
		r.create(request)
		_, err = d.Controller.CreateVolume(ctx, request)
	}
	if got := status.Code(err); got != r.code || !strings.Contains(status.Convert(err).Message(), r.word) {
		t.Errorf("got %v: %v\nwant %v with %q in its text", got, err, r.code, r.word)
	}
	if after := d.settled(t, before); !slices.Equal(before, after) {
		t.Errorf("the pool holds\n%s\nwant as before\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// settling is how long a claim that was undone may take to be gone from the trash, too.
const settling = 15 * time.Second

// settled returns what the pool holds when that is as wanted, or when it has settled.
func (d Driver) settled(t *testing.T, want []string) []string {
	t.Helper()
	for deadline := time.Now().Add(settling); ; {
		if got := d.objects(t); slices.Equal(got, want) || time.Now().After(deadline) {
			return got
		}
	}
}

func (d Driver) objects(t *testing.T) []string {
	t.Helper()
	objects, err := d.Tools.Objects(d.Pool)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func mount(kind string, mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: kind}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
	}
}

func block(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
	}
}

// names are requests' names; odd ones that can be had are in badinput_test.go.
func names() map[string]row {
	named := func(name string) func(r *csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) { r.Name = name }
	}
	return map[string]row{
		"name/empty":     {codes.InvalidArgument, "name", named(""), nil},
		"name/129 bytes": {codes.InvalidArgument, "128", named(strings.Repeat("n", 129)), nil},
	}
}

func sizes() map[string]row {
	sized := func(required, limit int64) func(r *csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}
		}
	}
	return map[string]row{
		"size/negative":                  {codes.InvalidArgument, "negative", sized(-1, 0), nil},
		"size/negative limit":            {codes.InvalidArgument, "negative", sized(gib, -1), nil},
		"size/limit below required":      {codes.InvalidArgument, "above limit_bytes", sized(2*gib, gib), nil},
		"size/limit of 1 byte":           {codes.OutOfRange, "smallest", sized(0, 1), nil},
		"size/1 byte and a limit of 1":   {codes.OutOfRange, "smallest", sized(1, 1), nil},
		"size/no multiple of 512 within": {codes.OutOfRange, "512", sized(gib+1, gib+2), nil},
		"size/2^63-1":                    {codes.OutOfRange, "largest", sized(1<<63-1, 0), nil},
		"size/2^63-1 and as limit":       {codes.OutOfRange, "largest", sized(1<<63-1, 1<<63-1), nil},
		"size/more than an object map":   {codes.OutOfRange, "largest", sized(977*tib, 0), nil},
		"size/xfs in 100 MiB": {codes.OutOfRange, "smallest", func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{LimitBytes: 100 << 20}
			r.VolumeCapabilities = []*csi.VolumeCapability{mount("xfs", csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)}
		}, nil},
		"size/of a repeat, above the limit": {codes.AlreadyExists, "bytes", func(r *csi.CreateVolumeRequest) {
			r.Name = "pvc-of-the-table"
			r.CapacityRange = &csi.CapacityRange{LimitBytes: gib / 2}
		}, nil},
	}
}

func parameters() map[string]row {
	with := func(pairs ...string) func(r *csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) {
			for i := 0; i < len(pairs); i += 2 {
				r.Parameters[pairs[i]] = pairs[i+1]
			}
		}
	}
	invalid := func(word string, pairs ...string) row { return row{codes.InvalidArgument, word, with(pairs...), nil} }
	return map[string]row{
		"parameters/unknown key":                    invalid("colour", "colour", "red"),
		"parameters/misspelt key":                   invalid("objectSize", "objectsize", "4Mi"),
		"parameters/of the peer":                    invalid("cluster", "clusterID", "main"),
		"parameters/no pool":                        {codes.InvalidArgument, "pool", func(r *csi.CreateVolumeRequest) { delete(r.Parameters, "pool") }, nil},
		"parameters/unknown cluster":                invalid("nowhere", "cluster", "nowhere"),
		"parameters/missing pool":                   invalid("nowhere", "pool", "nowhere"),
		"parameters/missing namespace":              invalid("nowhere", "namespace", "nowhere"),
		"parameters/missing data pool":              invalid("nowhere", "dataPool", "nowhere"),
		"parameters/pool with a slash":              invalid("pool", "pool", "a/b"),
		"parameters/unknown feature":                invalid("flying", "imageFeatures", "layering,flying"),
		"parameters/fast-diff without object-map":   invalid("object-map", "imageFeatures", "layering,exclusive-lock,fast-diff"),
		"parameters/a writer without the lock":      invalid("exclusive-lock", "imageFeatures", "layering"),
		"parameters/object size of 3 MiB":           invalid("power of two", "objectSize", "3Mi"),
		"parameters/object size of 64 MiB":          invalid("objectSize", "objectSize", "64Mi"),
		"parameters/stripe unit without count":      invalid("stripeCount", "stripeUnit", "64Ki"),
		"parameters/stripe unit that does not fit":  invalid("stripeUnit", "stripeUnit", "3Ki", "stripeCount", "4"),
		"parameters/unknown mapper":                 invalid("mapper", "mapper", "iscsi"),
		"parameters/a key in the map options":       invalid("secret", "mapOptions", "secret=AQ"),
		"parameters/unknown filesystem":             invalid("fsType", "fsType", "ntfs"),
		"parameters/filesystem against the request": invalid("xfs", "fsType", "xfs"),
		"parameters/mkfs that would force":          invalid("mkfsOptions", "mkfsOptions", "-F"),
		"parameters/prefix with a slash":            invalid("prefix", "imageNamePrefix", "a/"),
		"parameters/other ones in a repeat": {codes.AlreadyExists, "parameters", func(r *csi.CreateVolumeRequest) {
			r.Name = "pvc-of-the-table"
			r.Parameters["objectSize"] = "8Mi"
		}, nil},
		"parameters/mutable ones": {codes.InvalidArgument, "iops", func(r *csi.CreateVolumeRequest) {
			r.MutableParameters = map[string]string{"iops": "1"}
		}, nil},
	}
}

func credentials(user string) map[string]row {
	as := func(pairs ...string) func(r *csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) {
			r.Secrets = map[string]string{}
			for i := 0; i < len(pairs); i += 2 {
				r.Secrets[pairs[i]] = pairs[i+1]
			}
		}
	}
	const wrongKey = "AQBeRz5nAAAAABAAq1m8l9Y2yPW8y0mHk3O7Zw=="
	return map[string]row{
		"credentials/user without key": {codes.InvalidArgument, "userKey", as("userID", user), nil},
		"credentials/key without user": {codes.InvalidArgument, "userID", as("userKey", wrongKey), nil},
		"credentials/malformed key":    {codes.InvalidArgument, "userKey", as("userID", user, "userKey", "?"), nil},
		"credentials/wrong key":        {codes.Unauthenticated, user, as("userID", user, "userKey", wrongKey), nil},
		"credentials/unknown user":     {codes.Unauthenticated, "nobody", as("userID", "nobody", "userKey", wrongKey), nil},
	}
}
