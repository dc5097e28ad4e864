package filesystemtest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// files is a fixture whose devices are regular files.
func files(t *testing.T) Fixture {
	fake, folder, count := NewFake(), t.TempDir(), 0
	device := func(t *testing.T, bytes int64) string {
		count++
		file, err := os.CreateTemp(folder, "device")
		must(t, err)
		must(t, file.Truncate(bytes))
		must(t, file.Close())
		return file.Name()
	}
	return Fixture{
		Host:   fake,
		Device: device,
		Copy: func(t *testing.T, of string) string {
			from, err := os.Open(of)
			must(t, err)
			defer from.Close()
			info, err := from.Stat()
			must(t, err)
			copied := device(t, info.Size())
			to, err := os.OpenFile(copied, os.O_WRONLY, 0)
			must(t, err)
			defer to.Close()
			_, err = io.CopyN(to, from, min(info.Size(), 1<<20))
			must(t, err)
			return copied
		},
		Resize:  func(t *testing.T, device string, bytes int64) { must(t, os.Truncate(device, bytes)) },
		Protect: func(_ *testing.T, device string) { fake.protect(device) },
		Spoil:   func(_ *testing.T, device string) { fake.Unreadable(device, true) },
		Hold: func(t *testing.T, path string) func() {
			release, err := fake.Hold(path)
			must(t, err)
			return release
		},
	}
}

// names is a fixture whose devices are names.
func names(t *testing.T) Fixture {
	fake, count := NewFake(), 0
	device := func(_ *testing.T, bytes int64) string {
		count++
		path := fmt.Sprintf("/dev/fake%d", count)
		fake.Device(path, bytes)
		return path
	}
	fixture := files(t)
	fixture.Host, fixture.Device = fake, device
	fixture.Copy = func(t *testing.T, of string) string {
		fake.mu.Lock()
		stands, size := fake.known(of).disk, fake.known(of).size
		fake.mu.Unlock()
		copied := device(t, size)
		must(t, fake.Put(copied, filesystem.Signature{Type: stands.Type, UUID: stands.UUID}))
		if stands.Journal {
			must(t, fake.LeaveJournal(copied))
		}
		return copied
	}
	fixture.Protect = func(_ *testing.T, device string) { fake.protect(device) }
	fixture.Resize = func(_ *testing.T, device string, bytes int64) { fake.Resize(device, bytes) }
	fixture.Spoil = func(_ *testing.T, device string) { fake.Unreadable(device, true) }
	fixture.Hold = func(t *testing.T, path string) func() {
		release, err := fake.Hold(path)
		must(t, err)
		return release
	}
	return fixture
}

// protect lets one device be read only.
func (f *Fake) protect(device string) {
	f.Protected(func(path string) bool { return path == device })
}

func TestFakeWithFiles(t *testing.T) { Suite(t, files) }

func TestFakeWithNames(t *testing.T) { Suite(t, names) }

func TestFilesystemGoesWithTheFile(t *testing.T) {
	fixture := files(t)
	b := &bench{Fixture: fixture, folder: t.TempDir()}
	device, path := b.made(t, filesystem.Ext4, oneUUID), b.path("target")
	b.mount(t, filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4})
	must(t, os.MkdirAll(filepath.Join(path, "folder"), 0o750))
	writeFile(t, path+"/folder/file", "content")
	must(t, b.Host.Unmount(t.Context(), path))
	moved := b.path("moved")
	must(t, os.Rename(device, moved))

	other := &bench{Fixture: Fixture{Host: NewFake()}, folder: t.TempDir()}
	other.wantSignature(t, moved, filesystem.Signature{Type: "ext4", UUID: oneUUID})
	other.mount(t, filesystem.Mount{Device: moved, Path: other.path("target"), Type: filesystem.Ext4})
	wantFile(t, other.path("target/folder/file"), "content")
}

func TestOneCallFails(t *testing.T) {
	fake, folder := NewFake(), t.TempDir()
	fake.Device("/dev/one", extSize)
	format := func() error {
		return fake.Format(t.Context(), "/dev/one", filesystem.Format{Type: filesystem.Ext4, UUID: oneUUID, Redo: true})
	}
	signature := func() filesystem.Signature {
		found, err := fake.Probe(t.Context(), "/dev/one")
		must(t, err)
		return found
	}
	mount := func() error {
		return fake.Mount(t.Context(), filesystem.Mount{Device: "/dev/one", Path: folder + "/target", Type: filesystem.Ext4})
	}

	fake.Fail(Fault{Method: "Format", When: Before})
	wantKind(t, format(), fault.Unavailable)
	if got := signature(); !got.Empty() {
		t.Errorf("after a fault before Format: got %+v, want nothing", got)
	}
	fake.Fail(Fault{Method: "Format", About: "/dev/one", When: During})
	wantKind(t, format(), fault.Unknown)
	wantKind(t, mount(), fault.Invalid)
	must(t, format())
	fake.Fail(Fault{Method: "Mount", When: After, Err: fault.Canceled, Skip: 1})
	must(t, mount())
	wantKind(t, mount(), fault.Canceled)
	fake.Fail(Fault{Method: "Unmount", About: "/another"})
	must(t, fake.Unmount(t.Context(), folder+"/target"))
}

func TestKilledProcess(t *testing.T) {
	fake, path := NewFake(), t.TempDir()+"/target"
	fake.Device("/dev/one", extSize)
	must(t, fake.Put("/dev/one", filesystem.Signature{Type: "ext4", UUID: oneUUID}))
	fake.Fail(Fault{Method: "Mount", When: After, Kill: true})
	err := fake.Mount(t.Context(), filesystem.Mount{Device: "/dev/one", Path: path, Type: filesystem.Ext4})
	wantKind(t, err, fault.Unavailable)
	wantKind(t, fake.Unmount(t.Context(), path), fault.Unavailable)
	if !fake.Killed() || len(fake.Mounts()) != 1 {
		t.Errorf("got killed %t and mounts %+v, want the process dead and the mount made", fake.Killed(), fake.Mounts())
	}
	fake.Restart()
	must(t, fake.Unmount(t.Context(), path))
	if got := fake.Mounts(); len(got) != 0 {
		t.Errorf("mounts: got %+v, want none", got)
	}
}

func TestBlindDevice(t *testing.T) {
	fake := NewFake()
	fake.Device("/dev/one", extSize)
	must(t, fake.Put("/dev/one", filesystem.Signature{Type: "ext4", UUID: oneUUID}))
	fake.Blind("/dev/one", true)
	if got, err := fake.Probe(t.Context(), "/dev/one"); err != nil || !got.Empty() {
		t.Errorf("probe of a blind device: got %+v, %v, want nothing", got, err)
	}
	fake.Blind("/dev/one", false)
	if got, err := fake.Probe(t.Context(), "/dev/one"); err != nil || got.UUID != oneUUID {
		t.Errorf("probe: got %+v, %v, want the filesystem", got, err)
	}
}

func TestDamagedDevice(t *testing.T) {
	fake := NewFake()
	fake.Device("/dev/one", extSize)
	must(t, fake.Put("/dev/one", filesystem.Signature{Type: "ext4", UUID: oneUUID}))
	fake.Damage("/dev/one", true)
	wantKind(t, fake.Check(t.Context(), "/dev/one", filesystem.Ext4), fault.DataLoss)
	mount := filesystem.Mount{Device: "/dev/one", Path: t.TempDir() + "/target", Type: filesystem.Ext4}
	wantKind(t, fake.Mount(t.Context(), mount), fault.DataLoss)
}
