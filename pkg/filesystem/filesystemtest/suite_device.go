package filesystemtest

import (
	"context"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// contextOf returns the test's context without its end, for what is done in cleanups.
func contextOf(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }

var probeCases = []suiteCase{
	{"a blank device is empty", func(t *testing.T, b *bench) {
		b.wantSignature(t, b.Device(t, extSize), filesystem.Signature{})
	}},
	{"a device that cannot be read is not empty", func(t *testing.T, b *bench) {
		device := b.Device(t, extSize)
		b.Spoil(t, device)
		_, err := b.Host.Probe(t.Context(), device)
		wantKind(t, err, fault.Unavailable)
	}},
	{"a device that cannot be read is not formatted", func(t *testing.T, b *bench) {
		device := b.Device(t, extSize)
		b.Spoil(t, device)
		err := b.Host.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: oneUUID})
		wantKind(t, err, fault.Unavailable)
	}},
	{"a device that is not there", func(t *testing.T, b *bench) {
		_, err := b.Host.Probe(t.Context(), b.path("nothing"))
		wantKind(t, err, fault.Unavailable)
	}},
	{"a directory is no device", func(t *testing.T, b *bench) {
		_, err := b.Host.Probe(t.Context(), b.folder)
		wantKind(t, err, fault.Invalid)
	}},
	{"a relative path is no device", func(t *testing.T, b *bench) {
		_, err := b.Host.Probe(t.Context(), "dev/null")
		wantKind(t, err, fault.Invalid)
	}},
	{"a copy has the same signature", func(t *testing.T, b *bench) {
		device := b.Copy(t, b.made(t, filesystem.Ext4, oneUUID))
		b.wantSignature(t, device, filesystem.Signature{Type: "ext4", UUID: oneUUID})
	}},
	{"a mounted device has its signature", func(t *testing.T, b *bench) {
		device := b.mounted(t, b.path("target"))
		b.wantSignature(t, device, filesystem.Signature{Type: "ext4", UUID: oneUUID})
	}},
}

// refusals are formats that cannot be.
var refusals = []struct {
	name string
	spec filesystem.Format
	size int64
	want fault.Kind
}{
	{"no UUID", filesystem.Format{Type: filesystem.Ext4}, extSize, fault.Invalid},
	{"a UUID in capitals", filesystem.Format{Type: filesystem.Ext4, UUID: "AAAAAAAA-2222-4333-8444-555555555555"}, extSize, fault.Invalid},
	{"an unknown type", filesystem.Format{Type: "btrfs", UUID: oneUUID}, extSize, fault.Invalid},
	{"a device as an option", filesystem.Format{Type: filesystem.Ext4, UUID: oneUUID, Options: []string{"/dev/sda"}}, extSize, fault.Invalid},
	{"an unknown option", filesystem.Format{Type: filesystem.Ext4, UUID: oneUUID, Options: []string{"-Y"}}, extSize, fault.Invalid},
	{"force, ext4", filesystem.Format{Type: filesystem.Ext4, UUID: oneUUID, Options: []string{"-F"}}, extSize, fault.Invalid},
	{"force, xfs", filesystem.Format{Type: filesystem.XFS, UUID: oneUUID, Options: []string{"-f"}}, xfsSize, fault.Invalid},
	{"ext4 too small for a journal", filesystem.Format{Type: filesystem.Ext4, UUID: oneUUID}, 1 << 20, fault.OutOfRange},
	{"xfs too small", filesystem.Format{Type: filesystem.XFS, UUID: oneUUID}, 8 << 20, fault.OutOfRange},
}

var formatCases = []suiteCase{
	{"each type shows its UUID", func(t *testing.T, b *bench) {
		b.wantSignature(t, b.made(t, filesystem.Ext4, oneUUID), filesystem.Signature{Type: "ext4", UUID: oneUUID})
		b.wantSignature(t, b.made(t, filesystem.XFS, otherUUID), filesystem.Signature{Type: "xfs", UUID: otherUUID})
	}},
	{"options of the caller", func(t *testing.T, b *bench) {
		device := b.Device(t, extSize)
		must(t, b.Host.Format(t.Context(), device, filesystem.Format{
			Type: filesystem.Ext4, UUID: oneUUID, Options: []string{"-i", "8192", "-E", "stride=4", "-Lname"},
		}))
		b.wantSignature(t, device, filesystem.Signature{Type: "ext4", UUID: oneUUID})
	}},
	{"refused", func(t *testing.T, b *bench) {
		for _, one := range refusals {
			t.Run(one.name, func(t *testing.T) {
				device := b.Device(t, one.size)
				wantKind(t, b.Host.Format(t.Context(), device, one.spec), one.want)
				b.wantSignature(t, device, filesystem.Signature{})
			})
		}
	}},
	{"never over a filesystem", func(t *testing.T, b *bench) {
		for _, kind := range []filesystem.Type{filesystem.Ext4, filesystem.XFS} {
			device := b.made(t, kind, oneUUID)
			for _, over := range []filesystem.Type{filesystem.Ext4, filesystem.XFS} {
				wantKind(t, b.Host.Format(t.Context(), device, filesystem.Format{Type: over, UUID: otherUUID}), fault.InUse)
				wantKind(t, b.Host.Format(t.Context(), device, filesystem.Format{Type: over, UUID: oneUUID}), fault.InUse)
			}
			b.wantSignature(t, device, filesystem.Signature{Type: string(kind), UUID: oneUUID})
		}
	}},
	{"again what was interrupted", func(t *testing.T, b *bench) {
		for _, kind := range []filesystem.Type{filesystem.Ext4, filesystem.XFS} {
			device := b.made(t, kind, oneUUID)
			must(t, b.Host.Format(t.Context(), device, filesystem.Format{Type: kind, UUID: oneUUID, Redo: true}))
			b.wantSignature(t, device, filesystem.Signature{Type: string(kind), UUID: oneUUID})
		}
	}},
	{"again where nothing was begun", func(t *testing.T, b *bench) {
		device := b.Device(t, extSize)
		must(t, b.Host.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: oneUUID, Redo: true}))
		b.wantSignature(t, device, filesystem.Signature{Type: "ext4", UUID: oneUUID})
	}},
	{"again never over another filesystem", func(t *testing.T, b *bench) {
		device := b.made(t, filesystem.Ext4, otherUUID)
		wantKind(t, b.Host.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: oneUUID, Redo: true}), fault.InUse)
		b.wantSignature(t, device, filesystem.Signature{Type: "ext4", UUID: otherUUID})
	}},
	{"never what is mounted", func(t *testing.T, b *bench) {
		path := b.path("target")
		device := b.mounted(t, path)
		err := b.Host.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: oneUUID, Redo: true})
		wantKind(t, err, fault.InUse)
		b.wantPoint(t, path, filesystem.Point{Device: device, Type: "ext4"})
	}},
}

var checkCases = []suiteCase{
	{"a new filesystem is sound", func(t *testing.T, b *bench) {
		must(t, b.Host.Check(t.Context(), b.made(t, filesystem.Ext4, oneUUID), filesystem.Ext4))
		must(t, b.Host.Check(t.Context(), b.made(t, filesystem.XFS, oneUUID), filesystem.XFS))
	}},
	{"one that was used is sound", func(t *testing.T, b *bench) {
		path := b.path("target")
		device := b.mounted(t, path)
		writeFile(t, path+"/file", "content")
		must(t, b.Host.Unmount(t.Context(), path))
		must(t, b.Host.Check(t.Context(), device, filesystem.Ext4))
	}},
	{"never while it is mounted", func(t *testing.T, b *bench) {
		wantKind(t, b.Host.Check(t.Context(), b.mounted(t, b.path("target")), filesystem.Ext4), fault.InUse)
		device := b.made(t, filesystem.XFS, otherUUID)
		b.mount(t, filesystem.Mount{Device: device, Path: b.path("other"), Type: filesystem.XFS})
		wantKind(t, b.Host.Check(t.Context(), device, filesystem.XFS), fault.InUse)
	}},
	{"a device without a filesystem", func(t *testing.T, b *bench) {
		wantKind(t, b.Host.Check(t.Context(), b.Device(t, extSize), filesystem.Ext4), fault.DataLoss)
	}},
	{"a device that cannot be read", func(t *testing.T, b *bench) {
		err := b.Host.Check(t.Context(), b.path("nothing"), filesystem.Ext4)
		wantKind(t, err, fault.Unavailable)
	}},
	{"an unknown type", func(t *testing.T, b *bench) {
		wantKind(t, b.Host.Check(t.Context(), b.Device(t, extSize), "btrfs"), fault.Invalid)
	}},
}
