package host

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// A reader is a machine that may read a volume.
type reader struct {
	*machine
	spec StageSpec
}

// readers are two machines that may read one volume, which is a copy of one that was in use.
func readers(t *testing.T) (a, b reader) {
	t.Helper()
	rack := newRack(t)
	a, b = reader{machine: rack.machine(t, "a")}, reader{machine: rack.machine(t, "b")}
	spec := a.attached(t, "pvc-1")
	must(t, a.Stage(t.Context(), spec, nobody))
	must(t, os.WriteFile(filepath.Join(a.staging(), "data"), []byte("kept"), 0o600))
	must(t, a.Unstage(t.Context(), spec.Handle, a.staging()))
	must(t, store(a.ceph).Detach(t.Context(), spec.Handle, "a", nobody))
	found, err := image.Find(t.Context(), a.process, spec.Handle, nobody)
	must(t, err)
	must(t, a.files.LeaveJournal(a.devices.File(targetOf(found))))
	for _, r := range []*reader{&a, &b} {
		r.files.Protected(r.devices.ReadOnly)
		r.spec = spec
		r.spec.ReadOnly, r.spec.Path = true, r.staging()
		r.attach(t)
	}
	return a, b
}

// attach lets a reader have the volume.
func (r *reader) attach(t *testing.T) {
	t.Helper()
	right, err := store(r.ceph).Attach(t.Context(), r.spec.Handle, volume.AttachSpec{Node: r.name, Mode: "readers", ReadOnly: true}, nobody)
	must(t, err)
	r.spec.Generation = right.Generation
}

func (r reader) stage(t *testing.T) error {
	t.Helper()
	return r.Stage(t.Context(), r.spec, nobody)
}

// reads checks that a reader has the volume, to read only, and the data in it.
func (r reader) reads(t *testing.T) {
	t.Helper()
	devices, err := r.devices.Devices(t.Context())
	must(t, err)
	if len(devices) != 1 || !devices[0].ReadOnly {
		t.Errorf("devices on %s: %+v, want one that is read-only", r.name, devices)
	}
	if points := r.files.Mounts(); len(points) != 1 || !points[0].ReadOnly {
		t.Errorf("mounts on %s: %+v, want one that is read-only", r.name, points)
	}
	if got, err := os.ReadFile(filepath.Join(r.staging(), "data")); err != nil || string(got) != "kept" {
		t.Errorf("data on %s: got %q, %v, want %q", r.name, got, err, "kept")
	}
	found, err := image.Find(t.Context(), r.ceph.Process(), r.spec.Handle, nobody)
	must(t, err)
	if entry, _ := found.Marks.Attachments.Of(r.name); entry.Replays || entry.Client != devices[0].Client {
		t.Errorf("record of %s: got %+v, want the client that reads", r.name, entry)
	}
}

// TestReplay has the first reader replay the journal, and the second find it done.
func TestReplay(t *testing.T) {
	a, b := readers(t)
	must(t, a.stage(t))
	a.reads(t)
	must(t, b.stage(t))
	b.reads(t)
	for _, call := range b.files.Calls() {
		if call.Method == "Check" {
			t.Errorf("the second reader replayed the journal too: %s", call)
		}
	}
	for _, r := range []reader{a, b} {
		must(t, r.Unstage(t.Context(), r.spec.Handle, r.staging()))
		r.wantClean(t)
	}
}

// TestReplayIsInterrupted has each call of the first reader fail or kill it. It finishes when it comes again. If it is lost, its attachment is
// taken away, and another does.
func TestReplayIsInterrupted(t *testing.T) {
	for _, port := range []string{"ceph", "mapper", "filesystem"} {
		for _, after := range []bool{false, true} {
			for _, kill := range []bool{false, true} {
				for _, lost := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/after=%t/kill=%t/lost=%t", port, after, kill, lost), func(t *testing.T) {
						for skip := 0; ; skip++ {
							a, b := readers(t)
							a.fail(port, after, kill, skip)
							if a.stage(t) == nil {
								return
							}
							next := a
							if lost {
								next = b
								must(t, detach(t, a))
							} else {
								a.restart()
								a.devices.Heal()
								a.files.Heal()
								a.files.Protected(a.devices.ReadOnly)
							}
							if err := next.stage(t); err != nil {
								t.Fatalf("after call %d failed: %v", skip+1, err)
							}
							next.reads(t)
						}
					})
				}
			}
		}
	}
}

// detach takes a lost reader's right away, at once.
func detach(t *testing.T, r reader) error {
	t.Helper()
	return volume.NewStore(r.ceph.Process(), volume.Options{Grace: -1}).Detach(t.Context(), r.spec.Handle, r.name, nobody)
}

// TestReplayIsAlone holds that nobody reads while a journal is replayed, and that none is while somebody reads or writes.
func TestReplayIsAlone(t *testing.T) {
	claim := func(r reader, replays bool) {
		found, err := image.Find(t.Context(), r.ceph.Process(), r.spec.Handle, nobody)
		must(t, err)
		_, err = found.Claim(t.Context(), image.Claim{Node: r.name, Generation: r.spec.Generation, Client: "10.0.0.1:0/7", Boot: "boot", Replays: replays})
		must(t, err)
	}
	t.Run("another replays", func(t *testing.T) {
		a, b := readers(t)
		claim(a, true)
		want(t, "Stage", b.stage(t), fault.Superseded, "node a is replaying")
		b.wantClean(t)
	})
	t.Run("another reads", func(t *testing.T) {
		a, b := readers(t)
		claim(a, false)
		want(t, "Stage", b.stage(t), fault.Superseded, "node a has it mapped")
		b.wantClean(t)
	})
	t.Run("somebody has it who is in no record", func(t *testing.T) {
		a, _ := readers(t)
		_, err := a.ceph.OpenAs(a.spec.Handle, "10.0.0.9:0/9")
		must(t, err)
		want(t, "Stage", a.stage(t), fault.InUse, "10.0.0.9:0/9")
		a.wantClean(t)
	})
}
