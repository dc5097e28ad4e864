package filesystemtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// A Fixture is a node to run the [Suite] on. What its functions make is taken down by the test's
// cleanup, mounts that a test left included.
type Fixture struct {
	Host filesystem.Host
	// Device makes a device of so many bytes that reads as zeros.
	Device func(t *testing.T, bytes int64) string
	// Copy makes another device with the same content, as a clone of an image is.
	Copy func(t *testing.T, device string) string
	// Resize makes a device larger.
	Resize func(t *testing.T, device string, bytes int64)
	// Protect makes a device read-only.
	Protect func(t *testing.T, device string)
	// Spoil makes it impossible to read the end of a device.
	Spoil func(t *testing.T, device string)
	// Hold keeps the filesystem mounted at a path busy until release is called.
	Hold func(t *testing.T, path string) (release func())
	// NoExt4Grow is why this node cannot grow an ext4 that is mounted, or "".
	NoExt4Grow string
}

// Sizes of devices; large enough for mkfs of that type.
const (
	extSize = 64 << 20
	xfsSize = 320 << 20
)

// UUIDs of filesystems.
const (
	oneUUID   = "11111111-2222-4333-8444-555555555555"
	otherUUID = "99999999-8888-4777-8666-555555555555"
)

// Suite checks everything that filesystem.Host promises on a fixture of its own for each case.
func Suite(t *testing.T, fixture func(t *testing.T) Fixture) {
	groups := map[string][]suiteCase{
		"Probe": probeCases, "Format": formatCases, "Check": checkCases, "Mount": mountCases, "Bind": bindCases,
		"Unmount": unmountCases, "Table": tableCases, "Grow": growCases, "Usage": usageCases, "Context": contextCases,
	}
	for name, cases := range groups {
		t.Run(name, func(t *testing.T) {
			for _, one := range cases {
				t.Run(one.name, func(t *testing.T) {
					one.run(t, &bench{Fixture: fixture(t), folder: t.TempDir()})
				})
			}
		})
	}
}

type suiteCase struct {
	name string
	run  func(t *testing.T, b *bench)
}

// A bench is a fixture with a folder for targets and the few things that every case does.
type bench struct {
	Fixture
	folder string
}

// path returns the path of a target.
func (b *bench) path(name string) string { return filepath.Join(b.folder, name) }

// made returns a device with a filesystem.
func (b *bench) made(t *testing.T, kind filesystem.Type, uuid string) string {
	t.Helper()
	size := int64(extSize)
	if kind == filesystem.XFS {
		size = xfsSize
	}
	device := b.Device(t, size)
	must(t, b.Host.Format(t.Context(), device, filesystem.Format{Type: kind, UUID: uuid, Zeroed: true}))
	return device
}

// mounted mounts a new ext4 at a path and returns its device.
func (b *bench) mounted(t *testing.T, path string) string {
	t.Helper()
	device := b.made(t, filesystem.Ext4, oneUUID)
	b.mount(t, filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4})
	return device
}

// mount mounts, and unmounts at the end of the test.
func (b *bench) mount(t *testing.T, m filesystem.Mount) {
	t.Helper()
	must(t, b.Host.Mount(t.Context(), m))
	b.unmountAtEnd(t, m.Path)
}

// bind binds, and unmounts at the end of the test.
func (b *bench) bind(t *testing.T, one filesystem.Bind) {
	t.Helper()
	must(t, b.Host.Bind(t.Context(), one))
	b.unmountAtEnd(t, one.Path)
}

func (b *bench) unmountAtEnd(t *testing.T, path string) {
	ctx := contextOf(t)
	t.Cleanup(func() {
		if err := b.Host.Unmount(ctx, path); err != nil {
			t.Errorf("unmount %s at the end: %v", path, err)
		}
	})
}

// wantPoint checks what is mounted at a path.
func (b *bench) wantPoint(t *testing.T, path string, want filesystem.Point) {
	t.Helper()
	want.Path = path
	got, found, err := b.Host.At(t.Context(), path)
	must(t, err)
	if !found || got != want {
		t.Errorf("at %s: got %+v, found %t, want %+v", path, got, found, want)
	}
}

// wantNothing checks that nothing is mounted at a path and that nothing is there.
func (b *bench) wantNothing(t *testing.T, path string) {
	t.Helper()
	got, found, err := b.Host.At(t.Context(), path)
	must(t, err)
	if found {
		t.Errorf("at %s: got %+v, want nothing mounted", path, got)
	}
	if exists(path) {
		t.Errorf("%s is still there, want it gone", path)
	}
}

// wantUses checks the paths at which a device is mounted.
func (b *bench) wantUses(t *testing.T, device string, want ...string) {
	t.Helper()
	points, err := b.Host.Uses(t.Context(), device)
	must(t, err)
	var got []string
	for _, point := range points {
		got = append(got, point.Path)
		if point.Device != device {
			t.Errorf("uses of %s: got one of %s at %s", device, point.Device, point.Path)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("uses of %s: got %q, want %q", device, got, want)
	}
}

// wantSignature checks what stands on a device.
func (b *bench) wantSignature(t *testing.T, device string, want filesystem.Signature) {
	t.Helper()
	got, err := b.Host.Probe(t.Context(), device)
	must(t, err)
	if got != want {
		t.Errorf("probe of %s: got %+v, want %+v", device, got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("got %v, want no error", err)
	}
}

// wantKind checks the kind of an error.
func wantKind(t *testing.T, err error, want fault.Kind) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("got error %v, want one of kind %q", err, want)
	}
}

// wantFile checks a file's content; "" stands for no file.
func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("read %s: %v", path, err)
	}
	if string(got) != want {
		t.Errorf("content of %s: got %q, want %q", path, got, want)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o640))
}

// writeThrough returns when the content is on the device, or in its journal.
func writeThrough(t *testing.T, path, content string) {
	t.Helper()
	file, err := os.Create(path)
	must(t, err)
	_, err = file.WriteString(content)
	must(t, errors.Join(err, file.Sync(), file.Close()))
}

func makeFolder(t *testing.T, path string) {
	t.Helper()
	must(t, os.MkdirAll(path, 0o750))
}

func link(t *testing.T, to, path string) {
	t.Helper()
	must(t, os.Symlink(to, path))
}

// wantUsage checks that the figures of a filesystem go together.
func wantUsage(t *testing.T, got filesystem.Usage, least, most int64) {
	t.Helper()
	sane := !got.Block && got.Total >= least && got.Total <= most && got.Used >= 0 && got.Available > 0 &&
		got.Used+got.Available <= got.Total && got.Inodes > 0 && got.InodesUsed+got.InodesAvailable == got.Inodes
	if !sane {
		t.Errorf("usage: got %+v, want a total between %d and %d and figures that add up", got, least, most)
	}
}

// describe names a signature in a test's name.
func describe(kind filesystem.Type, size int64) string {
	return fmt.Sprintf("%s of %d MiB", kind, size>>20)
}
