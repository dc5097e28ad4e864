package access_test

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/pkg/access"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

func accessMode(mode access.Mode) *csi.VolumeCapability_AccessMode {
	return &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_Mode(mode)}
}

func block(mode access.Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{AccessMode: accessMode(mode),
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}}
}

func mount(mode access.Mode, fsType string, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{AccessMode: accessMode(mode), AccessType: &csi.VolumeCapability_Mount{
		Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}}}
}

// wantRefused checks that err has the kind and names hint.
func wantRefused(t *testing.T, err error, kind fault.Kind, hint string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want %q", kind)
	}
	if got := fault.Of(err); got != kind || !strings.Contains(err.Error(), hint) {
		t.Errorf("got %q of kind %q, want kind %q and %q named", err, got, kind, hint)
	}
}

var allModes = []access.Mode{access.SingleNodeWriter, access.SingleNodeReader, access.MultiNodeReader,
	access.MultiNodeSingleWriter, access.MultiNodeMultiWriter, access.SingleNodeSingleWriter, access.SingleNodeMultiWriter}

func TestModes(t *testing.T) {
	for _, c := range []struct {
		mode       access.Mode
		singleNode bool
		writers    access.Writers
		onePublish bool
		filesystem bool
	}{
		{access.SingleNodeWriter, true, access.OneWriter, false, true},
		{access.SingleNodeReader, true, access.NoWriter, false, true},
		{access.MultiNodeReader, false, access.NoWriter, false, true},
		{access.MultiNodeSingleWriter, false, access.OneWriter, false, false},
		{access.MultiNodeMultiWriter, false, access.ManyWriters, false, false},
		{access.SingleNodeSingleWriter, true, access.OneWriter, true, true},
		{access.SingleNodeMultiWriter, true, access.OneWriter, false, true},
	} {
		t.Run(c.mode.String(), func(t *testing.T) {
			if got := c.mode.SingleNode(); got != c.singleNode {
				t.Errorf("single node: got %v, want %v", got, c.singleNode)
			}
			if got := c.mode.Writers(); got != c.writers {
				t.Errorf("writers: got %v, want %v", got, c.writers)
			}
			if got := c.mode.ReadOnly(); got != (c.writers == access.NoWriter) {
				t.Errorf("read-only: got %v", got)
			}
			if got := c.mode.OnePublish(); got != c.onePublish {
				t.Errorf("one publish: got %v, want %v", got, c.onePublish)
			}
			if _, err := access.Read(block(c.mode)); err != nil {
				t.Errorf("raw block: got %v, want none", err)
			}
			if _, err := access.Read(mount(c.mode, "")); (err == nil) != c.filesystem {
				t.Errorf("filesystem: got %v, want allowed: %v", err, c.filesystem)
			}
		})
	}
	if got, want := access.Mode(99).String(), "mode 99"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := len(csi.VolumeCapability_AccessMode_Mode_name), len(allModes)+1; got != want {
		t.Errorf("the specification has %d modes, want %d: look at the new one", got, want)
	}
}

func TestRead(t *testing.T) {
	flags := []string{"noatime", "ro,discard", "context=\"system_u:object_r:x\""}
	if _, err := access.Read(mount(access.SingleNodeWriter, "", strings.Repeat("a", 4096))); err != nil {
		t.Errorf("4096 bytes of flags: got %v, want none", err)
	}
	want := access.Capability{FSType: "xfs", MountFlags: flags, Mode: access.SingleNodeSingleWriter}
	if got, err := access.Read(mount(access.SingleNodeSingleWriter, "xfs", flags...)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestReadRefuses(t *testing.T) {
	const one = access.SingleNodeWriter
	group := mount(one, "")
	group.GetMount().VolumeMountGroup = "1000"
	for _, c := range []struct {
		name       string
		capability *csi.VolumeCapability
		hint       string
	}{
		{"nil", nil, "access mode"},
		{"empty", &csi.VolumeCapability{}, "access mode"},
		{"no access mode", &csi.VolumeCapability{AccessType: block(one).AccessType}, "access mode"},
		{"unknown access mode", block(0), "access mode"},
		{"access mode of the future", block(8), "access mode"},
		{"negative access mode", block(-1), "access mode"},
		{"no access type", &csi.VolumeCapability{AccessMode: accessMode(one)}, "neither block nor mount"},
		{"filesystem for many writers", mount(access.MultiNodeMultiWriter, "ext4"), "multi node multi writer"},
		{"filesystem for one writer and readers", mount(access.MultiNodeSingleWriter, ""), "raw block"},
		{"ext3", mount(one, "ext3"), "ext4, xfs"},
		{"upper case", mount(one, "EXT4"), "ext4, xfs"},
		{"a path", mount(one, "../xfs"), "ext4, xfs"},
		{"mount group", group, "mount group"},
		{"line end in a flag", mount(one, "", "noatime", "a\nb"), "mount flag 2"},
		{"NUL in a flag", mount(one, "", "a\x00b"), "mount flag 1"},
		{"not UTF-8", mount(one, "", "a\xff"), "mount flag 1"},
		{"empty flag", mount(one, "", ""), "mount flag 1"},
		{"empty word", mount(one, "", "a,,b"), "mount flag 1"},
		{"blank around a word", mount(one, "", "a, b"), "mount flag 1"},
		{"ro and rw", mount(one, "", "ro", "noatime,rw"), "ro and rw"},
		{"rw for readers", mount(access.MultiNodeReader, "", "rw"), "rw contradicts"},
		{"bind", mount(one, "", "bind"), "bind"},
		{"remount", mount(one, "", "noatime,remount"), "remount"},
		{"loop", mount(one, "", "loop=/dev/loop0"), "loop"},
		{"flags too long", mount(one, "", strings.Repeat("a", 4097)), "4096"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := access.Read(c.capability)
			wantRefused(t, err, fault.Invalid, c.hint)
		})
	}
	if _, err := access.Read(mount(one, "", "top-secret\n")); strings.Contains(err.Error(), "top-secret") {
		t.Errorf("got error %q, want it not to quote a mount flag", err)
	}
}

func TestReadAll(t *testing.T) {
	for _, c := range []struct {
		name         string
		list         []*csi.VolumeCapability
		block        bool
		fsType       string
		singleWriter bool
	}{
		{"one writer", []*csi.VolumeCapability{mount(access.SingleNodeWriter, "ext4")}, false, "ext4", true},
		{"a writer or readers", []*csi.VolumeCapability{mount(access.MultiNodeReader, ""), mount(access.SingleNodeWriter, "xfs")}, false, "xfs", true},
		{"readers", []*csi.VolumeCapability{mount(access.MultiNodeReader, "")}, false, "", false},
		{"blocks for many", []*csi.VolumeCapability{block(access.MultiNodeMultiWriter)}, true, "", false},
		{"blocks in each mode", []*csi.VolumeCapability{block(access.MultiNodeMultiWriter), block(access.SingleNodeMultiWriter)}, true, "", true},
		{"same filesystem twice", []*csi.VolumeCapability{mount(access.SingleNodeWriter, "xfs"), mount(access.SingleNodeReader, "xfs")}, false, "xfs", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := access.ReadAll(c.list)
			if err != nil || len(got) != len(c.list) {
				t.Fatalf("got %v, %v; want all of them", got, err)
			}
			if got.Block() != c.block || got.FSType() != c.fsType || got.SingleWriter() != c.singleWriter {
				t.Errorf("got block %v, filesystem %q, single writer %v; want %v, %q, %v",
					got.Block(), got.FSType(), got.SingleWriter(), c.block, c.fsType, c.singleWriter)
			}
		})
	}
}

func TestReadAllRefuses(t *testing.T) {
	const one = access.SingleNodeWriter
	for _, c := range []struct {
		name string
		list []*csi.VolumeCapability
		hint string
	}{
		{"none", nil, "none"},
		{"nil among them", []*csi.VolumeCapability{block(one), nil}, "access mode"},
		{"block and filesystem", []*csi.VolumeCapability{block(one), mount(one, "")}, "both raw block"},
		{"filesystem and block", []*csi.VolumeCapability{mount(one, ""), block(one)}, "both raw block"},
		{"two filesystems", []*csi.VolumeCapability{mount(one, "ext4"), mount(one, ""), mount(one, "xfs")}, "both ext4 and xfs"},
		{"one that cannot be", []*csi.VolumeCapability{mount(one, ""), mount(access.MultiNodeMultiWriter, "")}, "multi writer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := access.ReadAll(c.list)
			wantRefused(t, err, fault.Invalid, c.hint)
		})
	}
}

func FuzzRead(f *testing.F) {
	f.Add(int32(1), true, "ext4", "noatime", "ro,rw", "")
	f.Add(int32(5), true, "", "", "bind", "1000")
	f.Add(int32(7), false, "", "", "", "")
	f.Fuzz(func(t *testing.T, mode int32, isMount bool, fsType, flag, flag2, group string) {
		one := block(access.Mode(mode))
		if isMount {
			one = mount(access.Mode(mode), fsType, flag, flag2)
			one.GetMount().VolumeMountGroup = group
		}
		got, err := access.Read(one)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v, want it invalid", err)
			}
			return
		}
		if !slices.Contains(allModes, got.Mode) || got.Block == isMount {
			t.Errorf("got %+v of mode %d, mount %v", got, mode, isMount)
		}
		if isMount && (group != "" || got.Mode.Writers() == access.ManyWriters || !slices.Contains([]string{"", "ext4", "xfs"}, got.FSType)) {
			t.Errorf("got %+v, which cannot be", got)
		}
	})
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	// most is that of the default object size: 256,000,000 of 4 MiB.
	most = 256_000_000 * 4 * mib
)

func capacity(required, limit int64) *csi.CapacityRange {
	return &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}
}

func TestSize(t *testing.T) {
	for _, c := range []struct {
		name  string
		ask   *csi.CapacityRange
		least int64
		want  int64
	}{
		{"nothing asked", nil, mib, gib},
		{"both zero", capacity(0, 0), mib, gib},
		{"one byte", capacity(1, 0), mib, mib},
		{"one byte of ext4", capacity(1, 0), access.MinExt4, 16 * mib},
		{"one byte of xfs", capacity(1, 0), access.MinXFS, 300 * mib},
		{"whole", capacity(gib, 0), mib, gib},
		{"rounded up", capacity(gib+1, 0), mib, gib + mib},
		{"decimal gigabyte", capacity(1_000_000_000, 0), mib, 954 * mib},
		{"exact", capacity(gib, gib), mib, gib},
		{"exact, not whole", capacity(1_000_000_000, 1_000_000_000), mib, 1_000_000_000},
		{"exact, 512 bytes above", capacity(gib+512, gib+512), mib, gib + 512},
		{"limit below the next MiB", capacity(gib+1, gib+4096), mib, gib + 512},
		{"limit at the next MiB", capacity(gib+1, gib+mib), mib, gib + mib},
		{"limit above", capacity(gib, 2*gib), mib, gib},
		{"limit alone, large", capacity(0, 5*gib), mib, gib},
		{"limit alone, small", capacity(0, 100*mib), mib, 100 * mib},
		{"limit alone, not whole", capacity(0, 100*mib+1), mib, 100 * mib},
		{"limit alone, the smallest", capacity(0, mib), mib, mib},
		{"limit alone, largest number", capacity(0, math.MaxInt64), mib, gib},
		{"limit alone, the smallest xfs", capacity(0, 300*mib), access.MinXFS, 300 * mib},
		{"the largest", capacity(most, 0), mib, most},
		{"rounded up to the largest", capacity(most-1, math.MaxInt64), mib, most},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := access.Size(c.ask, c.least, most)
			if err != nil || got != c.want {
				t.Fatalf("got %d, %v; want %d", got, err, c.want)
			}
			if !access.Covers(c.ask, got) {
				t.Errorf("size %d does not cover the range that it was made for", got)
			}
		})
	}
}

func TestSizeRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		ask   *csi.CapacityRange
		least int64
		kind  fault.Kind
		hint  string
	}{
		{"negative", capacity(-1, 0), mib, fault.Invalid, "required_bytes -1"},
		{"most negative", capacity(math.MinInt64, 0), mib, fault.Invalid, "negative"},
		{"negative limit", capacity(0, -1), mib, fault.Invalid, "limit_bytes -1"},
		{"negative limit below what is required", capacity(gib, -1), mib, fault.Invalid, "limit_bytes -1"},
		{"both negative", capacity(-2, -1), mib, fault.Invalid, "required_bytes -2"},
		{"crossed", capacity(2, 1), mib, fault.Invalid, "above limit_bytes"},
		{"above the largest", capacity(most+1, 0), mib, fault.OutOfRange, "largest"},
		{"largest number", capacity(math.MaxInt64, 0), mib, fault.OutOfRange, "largest"},
		{"exactly the largest number", capacity(math.MaxInt64, math.MaxInt64), mib, fault.OutOfRange, "largest"},
		{"limit below the smallest", capacity(0, mib-1), mib, fault.OutOfRange, "smallest"},
		{"limit of one byte", capacity(1, 1), mib, fault.OutOfRange, "smallest"},
		{"limit below the smallest ext4", capacity(mib, 8*mib), access.MinExt4, fault.OutOfRange, "smallest"},
		{"limit below the smallest xfs", capacity(mib, 299*mib), access.MinXFS, fault.OutOfRange, "314572800"},
		{"no sector within", capacity(gib+1, gib+511), mib, fault.OutOfRange, "no multiple of 512"},
		{"exact, no sector", capacity(gib+1, gib+1), mib, fault.OutOfRange, "no multiple of 512"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := access.Size(c.ask, c.least, most)
			wantRefused(t, err, c.kind, c.hint)
			if c.kind == fault.Invalid && access.Covers(c.ask, gib) {
				t.Errorf("an impossible range is covered")
			}
		})
	}
}

func TestCopySize(t *testing.T) {
	for _, c := range []struct {
		name    string
		ask     *csi.CapacityRange
		content int64
		least   int64
		want    int64 // 0: refused
		hint    string
	}{
		{"nothing asked", nil, 3 * gib, mib, 3 * gib, ""},
		{"nothing asked, and not whole", nil, gib + 512, mib, gib + mib, ""},
		{"nothing asked, and small", nil, 8 * mib, mib, 8 * mib, ""},
		{"the same", capacity(2*gib, 0), 2 * gib, mib, 2 * gib, ""},
		{"exactly the same", capacity(gib+512, gib+512), gib + 512, mib, gib + 512, ""},
		{"larger", capacity(5*gib, 0), 2 * gib, mib, 5 * gib, ""},
		{"a limit above", capacity(0, 5*gib), 2 * gib, mib, 2 * gib, ""},
		{"smaller than the filesystem needs", nil, 8 * mib, access.MinExt4, access.MinExt4, ""},
		{"no source", nil, 0, mib, gib, ""},
		{"less than the source", capacity(gib, 0), 2 * gib, mib, 0, "the source has 2147483648 bytes"},
		{"less and a limit above", capacity(gib, 3*gib), 2 * gib, mib, 0, "the source has"},
		{"a limit below the source", capacity(0, gib), 2 * gib, mib, 0, "limit_bytes"},
		{"a source beyond the largest", nil, most + 1, mib, 0, "the source has"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := access.CopySize(c.ask, c.content, c.least, most)
			if c.want == 0 {
				wantRefused(t, err, fault.OutOfRange, c.hint)
				return
			}
			if err != nil || got != c.want {
				t.Errorf("got %d, %v; want %d", got, err, c.want)
			}
		})
	}
	for _, impossible := range []*csi.CapacityRange{capacity(-1, 0), capacity(0, -1), capacity(2*gib, gib)} {
		_, err := access.CopySize(impossible, gib, mib, most)
		wantRefused(t, err, fault.Invalid, "capacity range")
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		name string
		ask  *csi.CapacityRange
		size int64
		want bool
	}{
		{"nothing asked", nil, mib, true},
		{"both zero", capacity(0, 0), mib, true},
		{"exact", capacity(gib, gib), gib, true},
		{"larger than required", capacity(gib, 0), 2 * gib, true},
		{"smaller than required", capacity(gib, 0), gib - 1, false},
		{"at the limit", capacity(0, gib), gib, true},
		{"above the limit", capacity(0, gib), gib + 1, false},
		{"crossed", capacity(2, 1), 2, false},
		{"negative", capacity(-1, 0), gib, false},
	} {
		if got := access.Covers(c.ask, c.size); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestBounds(t *testing.T) {
	for fsType, want := range map[string]int64{"": mib, "ext4": 16 * mib, "xfs": 300 * mib} {
		if got := access.MinBytes(fsType); got != want || got%access.Step != 0 {
			t.Errorf("smallest with %q: got %d, want %d", fsType, got, want)
		}
	}
	for _, c := range []struct{ objectSize, stripeCount, want int64 }{
		{4 * mib, 0, most},
		{4 * mib, 1, most},
		{4 * kib, 0, 1_000_000 * mib},
		{32 * mib, 0, 8 * most},
		{4 * mib, 3, 255_999_999 * 4 * mib},
		{4 * mib, 1024, 256_000_000 * 4 * mib},
		{4 * mib, 1023, 255_999_612 * 4 * mib},
	} {
		if got := access.MaxBytes(c.objectSize, c.stripeCount); got != c.want {
			t.Errorf("largest with objects of %d and %d stripes: got %d, want %d", c.objectSize, c.stripeCount, got, c.want)
		}
	}
}

// FuzzSize checks that a size is what was asked for, and that one is found wherever
// there is one.
func FuzzSize(f *testing.F) {
	for _, n := range []int64{0, 1, -1, 511, 512, mib, gib + 1, most, math.MaxInt64, math.MinInt64} {
		f.Add(n, int64(0), true)
		f.Add(n, n, false)
		f.Add(int64(1), n, true)
	}
	f.Fuzz(func(t *testing.T, required, limit int64, xfs bool) {
		least := int64(access.MinBlock)
		if xfs {
			least = access.MinXFS
		}
		got, err := access.Size(capacity(required, limit), least, most)
		impossible := required < 0 || limit < 0 || limit > 0 && required > limit
		if err != nil {
			if impossible != fault.Is(err, fault.Invalid) || !impossible && !fault.Is(err, fault.OutOfRange) {
				t.Fatalf("got %v for %d to %d", err, required, limit)
			}
			top := int64(most)
			if limit > 0 {
				top = min(top, limit)
			}
			if floor := top - top%512; !impossible && floor >= max(required, least) {
				t.Errorf("got %v for %d to %d, and %d is within", err, required, limit, floor)
			}
			return
		}
		if impossible || !access.Covers(capacity(required, limit), got) || got < least || got > most || got%512 != 0 {
			t.Errorf("got %d for %d to %d", got, required, limit)
		}
		if again, err := access.Size(capacity(got, limit), least, most); err != nil || again != got {
			t.Errorf("size of %d: got %d, %v; want it unchanged", got, again, err)
		}
	})
}
