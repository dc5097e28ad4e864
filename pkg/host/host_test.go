package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem/filesystemtest"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/mappertest"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// A machine is a node: its kernel, as fakes, and the driver's process on it.
type machine struct {
	*Host
	ceph    *rbdtest.Ceph
	process *rbdtest.Process
	devices *mappertest.Fake
	files   *filesystemtest.Fake
	name    string
	dir     string
}

// A rack is machines that use one Ceph.
type rack struct {
	ceph  *rbdtest.Ceph
	store string
}

const gib = 1 << 30

var (
	kube   = volid.Pool{Cluster: "main", Pool: "kube"}
	nobody params.Credentials
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want checks an error's kind, and that its text has a word that helps the user.
func want(t *testing.T, what string, err error, kind fault.Kind, word string) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), word) {
		t.Errorf("%s: error %v, want kind %v and %q in its text", what, err, kind, word)
	}
}

// store is a controller of the volumes.
func store(ceph *rbdtest.Ceph) *volume.Store {
	return volume.NewStore(ceph.Process(), volume.Options{})
}

func specOf(name string) volume.CreateSpec {
	return volume.CreateSpec{
		Handle: volid.Image{Pool: kube, Name: name}, Request: name, Size: func(int64) (int64, error) { return gib, nil },
		Class: params.Class{Pool: kube, ObjectSize: 4 << 20, Features: params.DefaultFeatures},
		Fits:  func(bytes int64) bool { return bytes >= gib },
	}
}

func newCeph() *rbdtest.Ceph {
	ceph := rbdtest.New()
	ceph.AddCluster("main").AddUser("csi", "KEY").AddPool("kube")
	return ceph
}

// sizeOf returns how large an image is.
func sizeOf(ctx context.Context, ceph *rbdtest.Ceph, target mapper.Target) (int64, error) {
	pool, err := ceph.Process().Pool(ctx, target.Image.Pool, nobody)
	if err != nil {
		return 0, err
	}
	header, err := pool.Header(ctx, target.ImageID)
	return header.Layout.Bytes, err
}

func newRack(t *testing.T) rack { return rack{ceph: newCeph(), store: t.TempDir()} }

func (r rack) machine(t *testing.T, name string) *machine {
	m := &machine{ceph: r.ceph, files: filesystemtest.NewFake(), name: name, dir: t.TempDir()}
	sizes := func(ctx context.Context, target mapper.Target) (int64, error) {
		return sizeOf(ctx, r.ceph, target)
	}
	m.devices = mappertest.NewFake(r.store, filepath.Join(r.store, name), sizes)
	must(t, os.MkdirAll(filepath.Join(r.store, name), 0o700))
	m.devices.Held(func(path string) bool {
		uses, _ := m.files.Uses(t.Context(), path)
		return len(uses) > 0
	})
	m.restart()
	return m
}

// restart begins a new process of the driver on the same kernel.
func (m *machine) restart() {
	m.devices.Restart()
	m.files.Restart()
	m.process = m.ceph.Process()
	m.Host = New(Options{
		Node: m.name, Boot: "boot-" + m.name, Clusters: m.process,
		Access: func(name string, as params.Credentials) (cluster.Access, error) {
			return cluster.Access{Cluster: name, Credentials: as}, nil
		},
		Mappers: []mapper.Mapper{m.devices},
		Files:   m.files,
	})
}

func (m *machine) staging() string { return filepath.Join(m.dir, "staging") }
func (m *machine) target() string  { return filepath.Join(m.dir, "target") }

// attached makes a volume and attaches it to the machine.
func (m *machine) attached(t *testing.T, name string) StageSpec {
	t.Helper()
	return m.attachedAs(t, specOf(name))
}

func (m *machine) attachedAs(t *testing.T, spec volume.CreateSpec) StageSpec {
	t.Helper()
	d := store(m.ceph)
	_, err := d.Create(t.Context(), spec, nobody)
	must(t, err)
	right, err := d.Attach(t.Context(), spec.Handle, volume.AttachSpec{Node: m.name, Mode: "single", Single: true}, nobody)
	must(t, err)
	return StageSpec{
		Handle: spec.Handle, Path: m.staging(), Generation: right.Generation, ImageID: right.ImageID,
		Mapper: params.Auto, Format: FormatSpec{Type: filesystem.Ext4},
	}
}

// wantClean checks that the machine has nothing of any volume.
func (m *machine) wantClean(t *testing.T) {
	t.Helper()
	devices, err := m.devices.Devices(t.Context())
	must(t, err)
	if points := m.files.Mounts(); len(devices)+len(points) > 0 {
		t.Errorf("left on %s: devices %v, mounts %v, want none", m.name, devices, points)
	}
}

func TestVolumeLives(t *testing.T) {
	rack := newRack(t)
	a, b := rack.machine(t, "a"), rack.machine(t, "b")
	ctx := t.Context()
	spec := a.attached(t, "pvc-1")
	must(t, a.Stage(ctx, spec, nobody))
	must(t, a.Publish(ctx, PublishSpec{Handle: spec.Handle, Staged: a.staging(), Path: a.target()}))
	must(t, os.WriteFile(filepath.Join(a.target(), "data"), []byte("kept"), 0o600))

	want(t, "unstage while published", a.Unstage(ctx, spec.Handle, a.staging()), fault.InUse, "")
	must(t, a.Unpublish(ctx, spec.Handle, a.target()))
	must(t, a.Unstage(ctx, spec.Handle, a.staging()))
	a.wantClean(t)
	must(t, store(rack.ceph).Detach(ctx, spec.Handle, "a", nobody))

	moved := b.attached(t, "pvc-1")
	must(t, b.Stage(ctx, moved, nobody))
	must(t, b.Publish(ctx, PublishSpec{Handle: spec.Handle, Staged: b.staging(), Path: b.target()}))
	if got, err := os.ReadFile(filepath.Join(b.target(), "data")); err != nil || string(got) != "kept" {
		t.Errorf("on the other node: %q, error %v, want %q", got, err, "kept")
	}
	want(t, "stage on the first node, late", a.Stage(ctx, spec, nobody), fault.InUse, "not attached")
	a.wantClean(t)
}

// TestEachStepOnTheNodeFails fails every call that staging, publishing and taking
// down make, of each port, before and after it took effect and by killing the process, and
// repeats the request with a new process.
func TestEachStepOnTheNodeFails(t *testing.T) {
	up := func(ctx context.Context, m *machine, spec StageSpec) error {
		if err := m.Stage(ctx, spec, nobody); err != nil {
			return err
		}
		return m.Publish(ctx, PublishSpec{Handle: spec.Handle, Staged: m.staging(), Path: m.target()})
	}
	down := func(ctx context.Context, m *machine, spec StageSpec) error {
		if err := m.Unpublish(ctx, spec.Handle, m.target()); err != nil {
			return err
		}
		return m.Unstage(ctx, spec.Handle, m.staging())
	}
	type request func(ctx context.Context, m *machine, spec StageSpec) error
	for name, test := range map[string]struct{ before, request request }{
		"up":   {nil, up},
		"down": {up, down},
	} {
		for _, port := range []string{"ceph", "mapper", "filesystem"} {
			for _, after := range []bool{false, true} {
				for _, kill := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s/after=%t/kill=%t", name, port, after, kill), func(t *testing.T) {
						for skip := 0; ; skip++ {
							m := newRack(t).machine(t, "a")
							spec := m.attached(t, "pvc-1")
							if test.before != nil {
								must(t, test.before(t.Context(), m, spec))
							}
							m.fail(port, after, kill, skip)
							if err := test.request(t.Context(), m, spec); err == nil {
								if skip == 0 && !fired(m, port) {
									t.Fatalf("the request made no call of %s", port)
								}
								return
							}
							m.restart()
							m.devices.Heal()
							m.files.Heal()
							if err := test.request(t.Context(), m, spec); err != nil {
								t.Fatalf("repeated after call %d failed: %v", skip+1, err)
							}
							m.wantAfter(t, name, spec)
						}
					})
				}
			}
		}
	}
}

// fired reports whether a port was called at all.
func fired(m *machine, port string) bool {
	switch port {
	case "ceph":
		return len(m.process.Calls()) > 0
	case "mapper":
		return len(m.devices.Calls()) > 0
	}
	return len(m.files.Calls()) > 0
}

// fail makes one call of a port fail.
func (m *machine) fail(port string, after, kill bool, skip int) {
	switch port {
	case "ceph":
		when := map[bool]rbdtest.When{false: rbdtest.Before, true: rbdtest.After}[after]
		m.process.Fail(rbdtest.Fault{When: when, Kill: kill, Skip: skip})
	case "mapper":
		when := map[bool]mappertest.When{false: mappertest.Before, true: mappertest.After}[after]
		m.devices.Fail(mappertest.Fault{When: when, Kill: kill, Skip: skip})
	case "filesystem":
		when := map[bool]filesystemtest.When{false: filesystemtest.During, true: filesystemtest.After}[after]
		m.files.Fail(filesystemtest.Fault{When: when, Kill: kill, Skip: skip})
	}
}

// wantAfter checks what a request leaves on the machine and in the image's marks.
func (m *machine) wantAfter(t *testing.T, name string, spec StageSpec) {
	t.Helper()
	found, err := image.Find(t.Context(), m.ceph.Process(), spec.Handle, nobody)
	must(t, err)
	client := m.recorded(t, found)
	if name == "down" {
		m.wantClean(t)
		if client != "" {
			t.Errorf("client %q is still recorded, want none", client)
		}
		return
	}
	devices, err := m.devices.Devices(t.Context())
	must(t, err)
	if len(devices) != 1 || client != devices[0].Client {
		t.Errorf("devices %v, client %q recorded, want one device and its client", devices, client)
	}
	if points := m.files.Mounts(); len(points) != 2 {
		t.Errorf("mounts %v, want the staging and the target path", points)
	}
	if format, _ := found.Format(); !format.Done {
		t.Errorf("format mark %+v, want it done", format)
	}
}

// recorded returns the client that the image's marks have for this machine.
func (m *machine) recorded(t *testing.T, i image.Image) string {
	t.Helper()
	pool, err := m.ceph.Process().Pool(t.Context(), i.Handle().Pool, nobody)
	must(t, err)
	header, err := pool.Header(t.Context(), i.ID)
	must(t, err)
	var record struct {
		Nodes []struct{ Node, Client string }
	}
	must(t, json.Unmarshal([]byte(header.Meta[rbd.MetaPrefix+"attachments"]), &record))
	for _, entry := range record.Nodes {
		if entry.Node == m.name {
			return entry.Client
		}
	}
	return ""
}

// formats counts how often mkfs ran.
func (m *machine) formats() int {
	n := 0
	for _, call := range m.files.Calls() {
		if call.Method == "Format" && call.Err == nil {
			n++
		}
	}
	return n
}

func TestFormatOnce(t *testing.T) {
	other := filesystem.Signature{Type: "ext4", UUID: "11111111-2222-4333-8444-555555555555"}
	lvm := filesystem.Signature{Type: "LVM2_member", UUID: "x"}
	for name, test := range map[string]struct {
		// prepare is given the machine, the staged image's device and its image, which was never staged or (with again) was.
		again   bool
		prepare func(t *testing.T, m *machine, i image.Image, file string)
		kind    fault.Kind
		word    string // "" for success
		formats int
	}{
		"fresh":     {formats: 1},
		"formatted": {again: true},
		"formatted, shows nothing": {
			again: true,
			prepare: func(t *testing.T, m *machine, _ image.Image, file string) {
				must(t, os.Truncate(file, 0))
				must(t, os.Truncate(file, gib))
			},
			kind: fault.DataLoss, word: "was formatted ext4",
		},
		"formatted, shows another filesystem of the type": {
			again:   true,
			prepare: func(t *testing.T, m *machine, _ image.Image, file string) { must(t, m.files.Put(file, other)) },
		},
		"formatted, shows something else": {
			again:   true,
			prepare: func(t *testing.T, m *machine, _ image.Image, file string) { must(t, m.files.Put(file, lvm)) },
			kind:    fault.InUse, word: "LVM2_member",
		},
		"never formatted, holds data": {
			prepare: func(t *testing.T, m *machine, i image.Image, _ string) { must(t, m.ceph.Write(i.Handle())) },
			kind:    fault.InUse, word: "holds data",
		},
		"never formatted, shows a filesystem": {
			prepare: func(t *testing.T, m *machine, _ image.Image, file string) { must(t, m.files.Put(file, other)) },
		},
		"never formatted, shows something else": {
			prepare: func(t *testing.T, m *machine, _ image.Image, file string) { must(t, m.files.Put(file, lvm)) },
			kind:    fault.InUse, word: "LVM2_member",
		},
		"half formatted, shows nothing": {
			prepare: func(t *testing.T, m *machine, i image.Image, _ string) { halfFormat(t, i, halfUUID) },
			formats: 1,
		},
		"half formatted, shows its own beginnings": {
			prepare: func(t *testing.T, m *machine, i image.Image, file string) {
				halfFormat(t, i, other.UUID)
				must(t, m.files.Put(file, other))
			},
			formats: 1,
		},
		"half formatted, shows another filesystem": {
			prepare: func(t *testing.T, m *machine, i image.Image, file string) {
				halfFormat(t, i, halfUUID)
				must(t, m.files.Put(file, other))
			},
			kind: fault.InUse, word: other.UUID,
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newRack(t).machine(t, "a")
			ctx := t.Context()
			spec := m.attached(t, "pvc-1")
			found, err := image.Find(ctx, m.process, spec.Handle, nobody)
			must(t, err)
			device, err := m.devices.Map(ctx, mapper.Request{Target: targetOf(found)})
			must(t, err)
			if test.again {
				must(t, m.Stage(ctx, spec, nobody))
				must(t, m.Unstage(ctx, spec.Handle, spec.Path))
			} else {
				must(t, m.devices.Unmap(ctx, device))
			}
			if test.prepare != nil {
				test.prepare(t, m, found, m.devices.File(targetOf(found)))
			}
			m.files.Reset()
			err = m.Stage(ctx, spec, nobody)
			if test.word != "" {
				want(t, "stage", err, test.kind, test.word)
				m.wantClean(t)
			} else {
				must(t, err)
			}
			if got := m.formats(); got != test.formats {
				t.Errorf("mkfs ran %d times, want %d", got, test.formats)
			}
		})
	}
}

const halfUUID = "99999999-2222-4333-8444-555555555555"

// halfFormat writes the mark of a format that was interrupted.
func halfFormat(t *testing.T, i image.Image, uuid string) {
	t.Helper()
	_, err := i.RecordFormat(t.Context(), image.Format{Type: "ext4", UUID: uuid})
	must(t, err)
}

func TestUnreadableAndBlindDevicesAreNeverFormatted(t *testing.T) {
	for name, spoil := range map[string]func(m *machine, path string){
		"unreadable": func(m *machine, path string) { m.files.Unreadable(path, true) },
		"blind":      func(m *machine, path string) { m.files.Blind(path, true) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newRack(t).machine(t, "a")
			spec := m.attached(t, "pvc-1")
			must(t, m.Stage(t.Context(), spec, nobody))
			devices, err := m.devices.Devices(t.Context())
			must(t, err)
			must(t, m.Unstage(t.Context(), spec.Handle, spec.Path))
			spoil(m, devices[0].Path) // the next mapping gets the same path
			m.files.Reset()
			if err := m.Stage(t.Context(), spec, nobody); err == nil {
				t.Error("stage succeeded, want an error")
			}
			if n := m.formats(); n != 0 {
				t.Errorf("mkfs ran %d times, want 0", n)
			}
		})
	}
}

func TestDeadDeviceIsReplaced(t *testing.T) {
	m := newRack(t).machine(t, "a")
	ctx := t.Context()
	spec := m.attached(t, "pvc-1")
	must(t, m.Stage(ctx, spec, nobody))
	found, err := image.Find(ctx, m.process, spec.Handle, nobody)
	must(t, err)
	m.devices.Die(targetOf(found), "its client was blocklisted")
	publish := PublishSpec{Handle: spec.Handle, Staged: m.staging(), Path: m.target()}
	want(t, "publish a dead device", m.Publish(ctx, publish), fault.Unavailable, "blocklisted")
	_, err = m.Usage(ctx, spec.Handle, m.staging())
	want(t, "measure a dead device", err, fault.Unavailable, "blocklisted")
	must(t, m.Stage(ctx, spec, nobody))
	must(t, m.Publish(ctx, publish))
	if n := m.formats(); n != 1 {
		t.Errorf("mkfs ran %d times, want once", n)
	}
}

// TestPublishRevives publishes a volume whose device died since it was staged.
func TestPublishRevives(t *testing.T) {
	m := newRack(t).machine(t, "a")
	ctx := t.Context()
	spec := m.attached(t, "pvc-1")
	must(t, m.Stage(ctx, spec, nobody))
	publish := PublishSpec{Handle: spec.Handle, Staged: m.staging(), Path: m.target(), Stage: &spec}
	must(t, m.Publish(ctx, publish))
	found, err := image.Find(ctx, m.process, spec.Handle, nobody)
	must(t, err)
	if ailments, err := m.Health(ctx, spec.Handle, m.staging()); len(ailments) > 0 || err != nil {
		t.Errorf("health: %v, error %v, want nothing wrong", ailments, err)
	}
	m.devices.Die(targetOf(found), "its client was blocklisted")
	ailments, err := m.Health(ctx, spec.Handle)
	must(t, err)
	if len(ailments) != 1 || ailments[0].Reason != DeviceDead || !strings.Contains(ailments[0].Message, "blocklisted") {
		t.Errorf("health of a dead device: %v, want %s and why", ailments, DeviceDead)
	}

	second := publish
	second.Path += "2"
	want(t, "publish beside a pod with the dead device", m.Publish(ctx, second), fault.Unavailable, m.target())
	must(t, m.Unpublish(ctx, spec.Handle, m.target()))
	must(t, m.Publish(ctx, second))
	if ailments, err := m.Health(ctx, spec.Handle, m.staging(), second.Path); len(ailments) > 0 || err != nil {
		t.Errorf("health after it was staged anew: %v, error %v, want nothing wrong", ailments, err)
	}

	m.devices.Die(targetOf(found), "its client was blocklisted")
	must(t, m.Publish(ctx, second)) // the same pod again: its mount is the dead device's, and taken away
	must(t, m.Unpublish(ctx, spec.Handle, second.Path))
	must(t, m.Unstage(ctx, spec.Handle, m.staging()))
	_, err = m.Health(ctx, spec.Handle)
	want(t, "health of what is not here", err, fault.NotFound, "not mapped")
}

// TestPublishChecksAnew publishes a volume whose filesystem went read-only since it was staged.
func TestPublishChecksAnew(t *testing.T) {
	m := newRack(t).machine(t, "a")
	ctx := t.Context()
	spec := m.attached(t, "pvc-1")
	must(t, m.Stage(ctx, spec, nobody))
	publish := PublishSpec{Handle: spec.Handle, Staged: m.staging(), Path: m.target(), Stage: &spec}
	must(t, m.Publish(ctx, publish))
	m.files.Stop(m.device(t))
	second := publish
	second.Path += "2"
	want(t, "publish beside a pod with the old mount", m.Publish(ctx, second), fault.Unavailable, m.target())
	must(t, m.Unpublish(ctx, spec.Handle, m.target()))
	m.files.Reset()
	must(t, m.Publish(ctx, second))
	if !slices.ContainsFunc(m.files.Calls(), func(c filesystemtest.Call) bool { return c.Method == "Check" }) {
		t.Error("the filesystem was not checked, want it checked before it is mounted anew")
	}
	if point, _, err := m.files.At(ctx, second.Path); err != nil || point.ReadOnly {
		t.Errorf("got %+v, %v, want it mounted to write", point, err)
	}
}

// device is the only device of the machine.
func (m *machine) device(t *testing.T) string {
	t.Helper()
	devices, err := m.devices.Devices(t.Context())
	must(t, err)
	if len(devices) != 1 {
		t.Fatalf("got the devices %v, want one", devices)
	}
	return devices[0].Path
}

// TestAiling finds the volumes on the node that something is wrong with, and where they are mounted.
func TestAiling(t *testing.T) {
	m := newRack(t).machine(t, "a")
	ctx := t.Context()
	wantAiling := func(when, reason string, paths ...string) {
		t.Helper()
		ailing, err := m.Ailing(ctx)
		must(t, err)
		if reason == "" && len(ailing) > 0 {
			t.Errorf("%s: got %v, want nothing", when, ailing)
		}
		if reason == "" {
			return
		}
		if len(ailing) != 1 || ailing[0].Reason != reason || !slices.Equal(ailing[0].Paths, paths) || ailing[0].Volume.Name != "pvc-1" {
			t.Errorf("%s: got %+v, want %s of pvc-1 at %q", when, ailing, reason, paths)
		}
	}
	wantAiling("nothing is here", "")
	spec := m.attached(t, "pvc-1")
	must(t, m.Stage(ctx, spec, nobody))
	must(t, m.Publish(ctx, PublishSpec{Handle: spec.Handle, Staged: m.staging(), Path: m.target()}))
	wantAiling("all is well", "")
	m.files.Stop(m.device(t))
	wantAiling("the filesystem stopped", FilesystemReadOnly, m.staging(), m.target())
	found, err := image.Find(ctx, m.process, spec.Handle, nobody)
	must(t, err)
	m.devices.Die(targetOf(found), "its client was blocklisted")
	wantAiling("the device died", DeviceDead, m.staging(), m.target())
	must(t, m.Unpublish(ctx, spec.Handle, m.target()))
	must(t, m.files.Unmount(ctx, m.staging()))
	wantAiling("nobody has it any more", "")
}

func TestPublish(t *testing.T) {
	m := newRack(t).machine(t, "a")
	ctx := t.Context()
	spec := m.attached(t, "pvc-1")
	publish := PublishSpec{Handle: spec.Handle, Staged: m.staging(), Path: m.target(), Sole: true}
	want(t, "publish before stage", m.Publish(ctx, publish), fault.InUse, "stage it first")
	must(t, m.Stage(ctx, spec, nobody))
	must(t, m.Publish(ctx, publish))
	must(t, m.Publish(ctx, publish))
	second := publish
	second.Path += "2"
	want(t, "publish for a second pod", m.Publish(ctx, second), fault.InUse, m.target())
	other := publish
	other.Handle = specOf("pvc-2").Handle
	want(t, "publish another volume from there", m.Publish(ctx, other), fault.InUse, "is another")
	_, err := m.Usage(ctx, spec.Handle, m.dir)
	want(t, "measure where nothing is mounted", err, fault.NotFound, "nothing is mounted")
	must(t, m.Unpublish(ctx, spec.Handle, m.target()))
	must(t, m.Unpublish(ctx, spec.Handle, m.target()))
}

func TestBlockVolume(t *testing.T) {
	m := newRack(t).machine(t, "a")
	ctx := t.Context()
	spec := m.attached(t, "pvc-1")
	spec.Block, spec.Format = true, FormatSpec{}
	must(t, m.Stage(ctx, spec, nobody))
	must(t, m.Stage(ctx, spec, nobody))
	must(t, m.Publish(ctx, PublishSpec{Handle: spec.Handle, Staged: m.staging(), Path: m.target(), Block: true}))
	usage, err := m.Usage(ctx, spec.Handle, m.target())
	if err != nil || !usage.Block || usage.Total != gib {
		t.Errorf("usage %+v, error %v, want a block device of %d bytes", usage, err, gib)
	}
	_, err = store(m.ceph).Expand(ctx, spec.Handle, volume.ExpandSpec{To: func(int64, int64) (int64, error) { return 2 * gib, nil }}, nobody)
	must(t, err)
	for _, path := range []string{m.staging(), m.target()} {
		if bytes, err := m.ExpandOnNode(ctx, spec.Handle, path); err != nil || bytes != 2*gib {
			t.Errorf("expand at %s: %d bytes, error %v, want %d", path, bytes, err, 2*gib)
		}
	}
	if n := m.formats(); n != 0 {
		t.Errorf("mkfs ran %d times, want 0", n)
	}
	must(t, m.Unpublish(ctx, spec.Handle, m.target()))
	must(t, m.Unstage(ctx, spec.Handle, m.staging()))
	m.wantClean(t)
}

func TestStageWhatCannotBe(t *testing.T) {
	m := newRack(t).machine(t, "a")
	ctx := t.Context()
	spec := m.attached(t, "pvc-1")
	with := func(change func(s *StageSpec)) StageSpec {
		changed := spec
		change(&changed)
		return changed
	}
	for name, test := range map[string]struct {
		spec StageSpec
		kind fault.Kind
		word string
	}{
		"no such volume":     {with(func(s *StageSpec) { s.Handle.Name = "pvc-2" }), fault.NotFound, "pvc-2"},
		"no such pool":       {with(func(s *StageSpec) { s.Handle.Pool.Pool = "none" }), fault.NotFound, "none"},
		"no such cluster":    {with(func(s *StageSpec) { s.Handle.Cluster = "none" }), fault.Invalid, "none"},
		"another life":       {with(func(s *StageSpec) { s.ImageID = "vother" }), fault.InUse, "vother"},
		"an old generation":  {with(func(s *StageSpec) { s.Generation++ }), fault.InUse, "not attached"},
		"no such mapper":     {with(func(s *StageSpec) { s.Mapper = params.NBD }), fault.Unsupported, "nbd"},
		"read only, no data": {with(func(s *StageSpec) { s.ReadOnly = true }), fault.InUse, "read only"},
	} {
		want(t, name, m.Stage(ctx, test.spec, nobody), test.kind, test.word)
		m.wantClean(t)
	}
	wanted := errors.New("no")
	m.devices.Fail(mappertest.Fault{Method: "Check", Err: wanted, Times: mappertest.Always})
	if err := m.Stage(ctx, spec, nobody); !errors.Is(err, wanted) {
		t.Errorf("stage where no mapper works: error %v, want what the mapper lacks", err)
	}
	if left := m.files.Calls(); slices.ContainsFunc(left, func(c filesystemtest.Call) bool { return strings.HasPrefix(c.Method, "Format") }) {
		t.Errorf("calls %v, want no Format", left)
	}
}

func TestStageGrowsWhatCannotGrowMounted(t *testing.T) {
	m := newRack(t).machine(t, "a")
	ctx := t.Context()
	spec := m.attached(t, "pvc-1")
	must(t, m.Stage(ctx, spec, nobody))
	must(t, m.Unstage(ctx, spec.Handle, spec.Path))
	_, err := store(m.ceph).Expand(ctx, spec.Handle, volume.ExpandSpec{To: func(int64, int64) (int64, error) { return 2 * gib, nil }}, nobody)
	must(t, err)
	m.files.Fail(filesystemtest.Fault{Method: "Grow", Err: fault.Unsupported})
	must(t, m.Stage(ctx, spec, nobody))
	if usage, err := m.Usage(ctx, spec.Handle, spec.Path); err != nil || usage.Total < 2*gib*9/10 {
		t.Errorf("usage %+v, error %v, want about %d bytes", usage, err, 2*gib)
	}
}

func TestUnstageLeavesTheUsersFiles(t *testing.T) {
	m := newRack(t).machine(t, "a")
	ctx := t.Context()
	spec := m.attached(t, "pvc-1")
	must(t, m.Stage(ctx, spec, nobody))
	file := filepath.Join(spec.Path, blockFile)
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, m.Unstage(ctx, spec.Handle, spec.Path))
	must(t, m.Stage(ctx, spec, nobody))
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the user's empty file %s: %v, want it kept", blockFile, err)
	}
}

// nameless is a mapper whose devices have lost their names, as what a killed Map leaves has.
type nameless struct{ *mappertest.Fake }

func (n nameless) Devices(ctx context.Context) ([]mapper.Device, error) {
	devices, err := n.Fake.Devices(ctx)
	for i := range devices {
		devices[i].Target.Image = volid.Image{}
	}
	return devices, err
}

func TestUnstageFindsWhatLostItsName(t *testing.T) {
	m := newRack(t).machine(t, "a")
	ctx := t.Context()
	spec := m.attached(t, "pvc-1")
	other := m.attached(t, "pvc-2")
	for _, handle := range []volid.Image{spec.Handle, other.Handle} {
		found, err := image.Find(ctx, m.process, handle, nobody)
		must(t, err)
		_, err = m.devices.Map(ctx, mapper.Request{Target: targetOf(found)})
		must(t, err)
	}
	m.mappers = []mapper.Mapper{nameless{m.devices}}
	must(t, m.Unstage(ctx, spec.Handle, spec.Path))
	left, err := m.devices.Devices(ctx)
	must(t, err)
	if len(left) != 1 || left[0].Target.Image != other.Handle {
		t.Errorf("devices %v, want only that of %s", left, other.Handle)
	}
}

func TestAnXFSMountsBesideItsCopy(t *testing.T) {
	for name, test := range map[string]struct {
		kind        filesystem.Type
		flags, want []string
	}{
		"ext4":           {filesystem.Ext4, []string{"noatime"}, []string{"noatime"}},
		"xfs":            {filesystem.XFS, []string{"noatime"}, []string{"noatime", "nouuid"}},
		"xfs, asked for": {filesystem.XFS, []string{"nouuid"}, []string{"nouuid"}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := StageSpec{Format: FormatSpec{Type: test.kind}, MountFlags: test.flags}
			if got := mountOptions(spec); !slices.Equal(got, test.want) {
				t.Errorf("options %q, want %q", got, test.want)
			}
		})
	}
}
