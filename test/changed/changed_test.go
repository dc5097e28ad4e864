// Package changed rebuilds a device from what SnapshotMetadata says has changed, on a real Ceph and
// through the driver's socket, as a backup program does.
package changed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

func TestMain(m *testing.M) { os.Exit(ceph.Main(m)) }

const (
	cluster     = "lab"
	mebibyte    = 1 << 20
	volumeBytes = 64 * mebibyte
	// perMessage is few, so that one answer takes several messages.
	perMessage = 2
)

// A lab is a controller on a real Ceph.
type lab struct {
	*ceph.Cluster
	controller *driver.Process
}

func newLab(t *testing.T) *lab {
	c := ceph.ForTest(t, ceph.Options{})
	user := "changed-" + c.Pool()
	if _, err := c.AddUser(t.Context(), user, ceph.ProfileRBD(c.Pool())); err != nil {
		t.Fatal(err)
	}
	directory, err := c.ClusterDir(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := driver.Binary(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	folder, err := driver.NewFolder("rbd-csi-changed")
	if err != nil {
		t.Fatal(err)
	}
	d, err := driver.New(driver.Options{
		Binary: binary, Clusters: map[string]string{cluster: directory}, Folder: folder, Verbosity: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("take the driver down: %v", err)
		}
	})
	controller, err := d.Controller(t.Context(), "controller")
	if err != nil {
		t.Fatal(err)
	}
	return &lab{Cluster: c, controller: controller}
}

// rbd runs the command rbd and returns what it writes.
func (l *lab) rbd(t *testing.T, input []byte, arguments ...string) []byte {
	t.Helper()
	command, err := l.Command(t.Context(), "rbd", arguments...)
	if err != nil {
		t.Fatal(err)
	}
	var output, complaints bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = bytes.NewReader(input), &output, &complaints
	// The command is to end with this process, which it notices by the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := command.Run(); err != nil {
		t.Fatalf("rbd %s: %v: %s", strings.Join(arguments, " "), err, complaints.Bytes())
	}
	return output.Bytes()
}

// image returns a volume as rbd's commands name it, and a snapshot of it, whose handle ends
// in the image's ID.
func image(handle string) string {
	name := strings.TrimPrefix(handle, cluster+":")
	before, _, _ := strings.Cut(name, "#")
	return before
}

// A writer writes to a volume at random and knows what is in it.
type writer struct {
	lab    *lab
	volume string
	random *rand.Rand
	device []byte
}

// write writes some blocks, and gives up one data object.
func (w *writer) write(t *testing.T) {
	t.Helper()
	const blocks, blockBytes = 5, 64 << 10
	text := []byte("rbd diff v1\n")
	add := func(kind byte, numbers ...int) {
		text = append(text, kind)
		for _, number := range numbers {
			for shift := 0; shift < 64; shift += 8 {
				text = append(text, byte(number>>shift))
			}
		}
	}
	add('s', volumeBytes)
	for range blocks {
		offset := w.random.IntN(volumeBytes/blockBytes) * blockBytes
		block := make([]byte, blockBytes)
		for i := range block {
			block[i] = byte(w.random.Uint32())
		}
		add('w', offset, blockBytes)
		text = append(text, block...)
		copy(w.device[offset:], block)
	}
	object := w.random.IntN(volumeBytes/(4*mebibyte)) * 4 * mebibyte
	add('z', object, 4*mebibyte)
	clear(w.device[object : object+4*mebibyte])
	text = append(text, 'e')
	w.lab.rbd(t, text, "import-diff", "--no-progress", "-", image(w.volume))
}

func TestADeviceIsRebuiltFromDeltas(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	volume, err := l.controller.Create(ctx, driver.Claim{
		Volume: "pvc-0b6c2f0e-7a0f-4a55-9d8e-3f1c0c5d2a11", Name: "data", Namespace: "default", Bytes: volumeBytes,
		Parameters: map[string]string{"pool": l.Pool()},
	})
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := &writer{lab: l, volume: volume.Handle, random: rand.New(rand.NewPCG(seed, 0)), device: make([]byte, volumeBytes)}
	var snapshots []driver.Snapshot
	rebuilt := make([]byte, volumeBytes)
	for i := range 4 {
		w.write(t)
		taken, err := l.controller.TakeSnapshot(ctx, fmt.Sprintf("snapshot-%d", i), volume.Handle)
		if err != nil {
			t.Fatal(err)
		}
		snapshots = append(snapshots, taken)
		state := l.rbd(t, nil, "export", "--no-progress", image(taken.Handle), "-")
		if !bytes.Equal(state, w.device) {
			t.Fatalf("snapshot %d is not what was written", i)
		}
		var ranges []*csi.BlockMetadata
		if i == 0 {
			ranges = l.allocated(t, taken, 0)
		} else {
			ranges = l.delta(t, snapshots[i-1], taken, 0)
		}
		apply(t, rebuilt, state, ranges)
		if !bytes.Equal(rebuilt, state) {
			t.Fatalf("after %d deltas the rebuilt device differs", i)
		}
	}
	l.resumes(t, snapshots)
	for _, taken := range snapshots {
		if err := l.controller.DropSnapshot(ctx, taken); err != nil {
			t.Error(err)
		}
	}
	if err := l.controller.Delete(ctx, volume); err != nil {
		t.Error(err)
	}
}

// apply copies ranges from one device to another.
func apply(t *testing.T, to, from []byte, ranges []*csi.BlockMetadata) {
	t.Helper()
	total := int64(0)
	for _, one := range ranges {
		copy(to[one.GetByteOffset():], from[one.GetByteOffset():one.GetByteOffset()+one.GetSizeBytes()])
		total += one.GetSizeBytes()
	}
	if total == 0 || total >= volumeBytes {
		t.Errorf("%d bytes in %d ranges, want some and not all of %d", total, len(ranges), volumeBytes)
	}
}

// resumes begins in the middle of each range that a whole answer has: what comes is the rest of it.
func (l *lab) resumes(t *testing.T, snapshots []driver.Snapshot) {
	t.Helper()
	first, last := snapshots[0], snapshots[len(snapshots)-1]
	whole := l.delta(t, first, last, 0)
	for _, one := range whole {
		middle := one.GetByteOffset() + one.GetSizeBytes()/2
		rest := l.delta(t, first, last, middle)
		want := slices.IndexFunc(whole, func(w *csi.BlockMetadata) bool { return w.GetByteOffset()+w.GetSizeBytes() > middle })
		if len(rest) != len(whole)-want {
			t.Errorf("from %d on: %d ranges, want the last %d of %d", middle, len(rest), len(whole)-want, len(whole))
		}
	}
}

func (l *lab) allocated(t *testing.T, of driver.Snapshot, from int64) []*csi.BlockMetadata {
	t.Helper()
	stream, err := l.controller.GetMetadataAllocated(t.Context(), &csi.GetMetadataAllocatedRequest{
		SnapshotId: of.Handle, StartingOffset: from, MaxResults: perMessage,
	})
	if err != nil {
		t.Fatal(err)
	}
	return received(t, stream)
}

func (l *lab) delta(t *testing.T, base, target driver.Snapshot, from int64) []*csi.BlockMetadata {
	t.Helper()
	stream, err := l.controller.GetMetadataDelta(t.Context(), &csi.GetMetadataDeltaRequest{
		BaseSnapshotId: base.Handle, TargetSnapshotId: target.Handle, StartingOffset: from, MaxResults: perMessage,
	})
	if err != nil {
		t.Fatal(err)
	}
	return received(t, stream)
}

// An answer is a message of either stream.
type answer interface {
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*csi.BlockMetadata
}

// received returns the ranges of all messages, which have to be in order and apart.
func received[T any, P interface {
	*T
	answer
}](t *testing.T, stream grpc.ServerStreamingClient[T]) []*csi.BlockMetadata {
	t.Helper()
	var all []*csi.BlockMetadata
	for end := int64(0); ; {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		said := P(message)
		if said.GetVolumeCapacityBytes() != volumeBytes || len(said.GetBlockMetadata()) > perMessage {
			t.Errorf("message: %d bytes, %d ranges; want %d and at most %d",
				said.GetVolumeCapacityBytes(), len(said.GetBlockMetadata()), volumeBytes, perMessage)
		}
		for _, one := range said.GetBlockMetadata() {
			if one.GetByteOffset() < end {
				t.Errorf("range at %d begins before the end of the last one, %d", one.GetByteOffset(), end)
			}
			end = one.GetByteOffset() + one.GetSizeBytes()
		}
		all = append(all, said.GetBlockMetadata()...)
	}
}
