package filesystemtest

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// smallest is how large a device has to be for each type.
var smallest = map[filesystem.Type]int64{filesystem.Ext4: 8 << 20, filesystem.XFS: 300 << 20}

// Probe implements filesystem.Host.
func (f *Fake) Probe(ctx context.Context, device string) (found filesystem.Signature, err error) {
	err = f.do(ctx, Call{Method: "Probe", About: device}, func(*Fault) error {
		if err := plain(device); err != nil {
			return err
		}
		stands, err := f.load(device)
		if err != nil || f.known(device).blind {
			return err
		}
		found = filesystem.Signature{Type: stands.Type, UUID: stands.UUID}
		return nil
	})
	if err != nil {
		return filesystem.Signature{}, err
	}
	return found, nil
}

// Format implements filesystem.Host.
func (f *Fake) Format(ctx context.Context, device string, spec filesystem.Format) error {
	return f.do(ctx, Call{Method: "Format", About: device}, func(struck *Fault) error {
		if err := firstOf(plain(device), mountable(spec.Type), checkOptions(spec.Options)); err != nil {
			return err
		}
		if !isUUID(spec.UUID) {
			return fmt.Errorf("UUID %q: %w", spec.UUID, fault.Invalid)
		}
		stands, err := f.load(device)
		if err != nil {
			return err
		}
		size, err := f.size(device)
		switch {
		case err != nil:
			return err
		case f.mounted(device):
			return fmt.Errorf("format %s: it is mounted: %w", device, fault.InUse)
		case stands.Type != "" && (!spec.Redo || stands.UUID != spec.UUID):
			return fmt.Errorf("format %s: it holds %s %s: %w", device, stands.Type, stands.UUID, fault.InUse)
		case size < smallest[spec.Type]:
			return fmt.Errorf("format %s: %d bytes are too small for %s: %w", device, size, spec.Type, fault.OutOfRange)
		}
		unfinished := struck != nil && struck.When == During
		return f.save(device, disk{Type: string(spec.Type), UUID: spec.UUID, Bytes: size, Unfinished: unfinished})
	})
}

// checkOptions refuses what no mkfs of ours takes: words that are no options, and force.
func checkOptions(options []string) error {
	const letters = "bCDdeEgGiIjJKlLmnNOqsTv"
	for i := 0; i < len(options); i++ {
		word := options[i]
		if len(word) < 2 || word[0] != '-' || !strings.Contains(letters, word[1:2]) {
			return fmt.Errorf("option %q of mkfs: %w", word, fault.Invalid)
		}
		if len(word) == 2 && !strings.Contains("DjKqv", word[1:]) {
			i++ // its value
		}
	}
	return nil
}

// Check implements filesystem.Host.
func (f *Fake) Check(ctx context.Context, device string, kind filesystem.Type) error {
	return f.do(ctx, Call{Method: "Check", About: device}, func(*Fault) error {
		if err := firstOf(plain(device), mountable(kind)); err != nil {
			return err
		}
		stands, err := f.load(device)
		switch {
		case err != nil:
			return err
		case f.mounted(device):
			return fmt.Errorf("check %s: it is mounted: %w", device, fault.InUse)
		case kind == filesystem.Ext4 && (f.known(device).damaged || stands.Type != string(kind) || stands.Unfinished):
			return fmt.Errorf("check %s: errors are left: %w", device, fault.DataLoss)
		}
		return nil
	})
}

// Mount implements filesystem.Host.
func (f *Fake) Mount(ctx context.Context, m filesystem.Mount) error {
	return f.do(ctx, Call{Method: "Mount", About: m.Path}, func(*Fault) error {
		if err := firstOf(plain(m.Path), plain(m.Device), mountable(m.Type)); err != nil {
			return err
		}
		path, err := resolveMaking(m.Path)
		if err != nil {
			return err
		}
		readOnly := m.ReadOnly || slices.Contains(m.Options, "ro")
		wanted := &mount{
			point: filesystem.Point{Path: path, Device: m.Device, Type: string(m.Type), ReadOnly: readOnly},
			root:  "/",
		}
		if there := f.top(path); there != nil {
			if there.same(wanted) && there.point.ReadOnly == readOnly {
				return nil
			}
			return there.occupies()
		}
		stands, err := f.load(m.Device)
		if err != nil {
			return err
		}
		if err := f.admits(stands, m, readOnly); err != nil {
			return err
		}
		if err := makeTarget(path, true); err != nil {
			return err
		}
		if err := f.journal(m.Device, stands, !readOnly); err != nil {
			return err
		}
		return f.attach(wanted, stands.Files)
	})
}

// admits returns what the kernel says against mounting what stands on a device.
func (f *Fake) admits(stands disk, m filesystem.Mount, readOnly bool) error {
	otherwise := func(other *mount) bool {
		return other.point.Device == m.Device && other.from == "" && other.point.Type != "" && other.point.ReadOnly != readOnly
	}
	switch {
	case stands.Type != string(m.Type), stands.Unfinished:
		return fmt.Errorf("mount %s: wrong type %s or bad superblock: %w", m.Device, m.Type, fault.Invalid)
	case f.known(m.Device).damaged:
		return fmt.Errorf("mount %s: structure needs cleaning: %w", m.Device, fault.DataLoss)
	case f.protected(m.Device) && !readOnly:
		return fmt.Errorf("mount %s: it is write-protected: %w", m.Device, fault.Invalid)
	case f.protected(m.Device) && stands.Journal:
		return fmt.Errorf("mount %s: %w: %w", m.Device, filesystem.ErrReplay, fault.InUse)
	case slices.ContainsFunc(f.mounts, otherwise):
		return fmt.Errorf("mount %s: it is mounted with read-only %t: %w", m.Device, !readOnly, fault.InUse)
	case m.Type != filesystem.XFS || slices.Contains(m.Options, "nouuid"):
		return nil
	}
	for _, other := range f.mounts {
		if other.point.Type == string(filesystem.XFS) && other.point.Device != m.Device && other.uuid == stands.UUID {
			return fmt.Errorf("mount %s: %s with the same UUID is mounted: %w", m.Device, other.point.Device, fault.Invalid)
		}
	}
	return nil
}

// journal notes whether there is one to be replayed. Nothing is written to a device that can only be read.
func (f *Fake) journal(device string, stands disk, yes bool) error {
	if stands.Journal == yes || f.protected(device) {
		return nil
	}
	stands.Journal = yes
	return f.save(device, stands)
}

// Bind implements filesystem.Host.
func (f *Fake) Bind(ctx context.Context, b filesystem.Bind) error {
	return f.do(ctx, Call{Method: "Bind", About: b.Path}, func(*Fault) error {
		if err := firstOf(plain(b.Path), plain(b.Source)); err != nil {
			return err
		}
		wanted, err := f.source(b.Source)
		if err != nil {
			return err
		}
		path, err := resolveMaking(b.Path)
		if err != nil {
			return err
		}
		readOnly := b.ReadOnly || slices.Contains(b.Options, "ro")
		if there := f.top(path); there != nil {
			switch {
			case !there.same(wanted) || there.bindReadOnly && !readOnly:
				return there.occupies()
			case readOnly:
				there.bindReadOnly, there.point.ReadOnly = true, true
			}
			return nil
		}
		folder := wanted.point.Type != ""
		if err := makeTarget(path, folder); err != nil {
			return err
		}
		wanted.bindReadOnly = readOnly
		wanted.point.ReadOnly = wanted.point.ReadOnly || readOnly
		wanted.point.Path = path
		var files map[string][]byte
		if folder {
			if files, err = gather(wanted.from, wanted.hidden); err != nil {
				return err
			}
		}
		return f.attach(wanted, files)
	})
}

// Unmount implements filesystem.Host.
func (f *Fake) Unmount(ctx context.Context, path string) error {
	return f.do(ctx, Call{Method: "Unmount", About: path}, func(*Fault) error {
		if err := plain(path); err != nil {
			return err
		}
		resolved, found, err := resolve(path)
		if err != nil || !found {
			return err
		}
		for {
			there := f.top(resolved)
			if there == nil {
				return removeTarget(resolved)
			}
			if err := f.detach(there); err != nil {
				return err
			}
		}
	})
}

// At implements filesystem.Host.
func (f *Fake) At(ctx context.Context, path string) (point filesystem.Point, found bool, err error) {
	err = f.do(ctx, Call{Method: "At", About: path}, func(*Fault) error {
		there, err := f.at(path)
		if there != nil {
			point, found = there.point, true
		}
		return err
	})
	if err != nil {
		return filesystem.Point{}, false, err
	}
	return point, found, nil
}

// Uses implements filesystem.Host.
func (f *Fake) Uses(ctx context.Context, device string) (points []filesystem.Point, err error) {
	err = f.do(ctx, Call{Method: "Uses", About: device}, func(*Fault) error {
		if err := plain(device); err != nil {
			return err
		}
		if !f.known(device).named && !exists(device) {
			return fmt.Errorf("device %s: %w", device, fault.Unavailable)
		}
		for _, m := range f.mounts {
			if m.point.Device == device {
				points = append(points, m.point)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return points, nil
}

// Grow implements filesystem.Host.
func (f *Fake) Grow(ctx context.Context, device, path string, kind filesystem.Type) error {
	return f.do(ctx, Call{Method: "Grow", About: device}, func(*Fault) error {
		if err := firstOf(plain(device), mountable(kind)); err != nil {
			return err
		}
		size, err := f.size(device)
		if err != nil {
			return err
		}
		if path == "" {
			if err := f.growsUnmounted(device, kind); err != nil {
				return err
			}
			return f.grow(device, size)
		}
		there, err := f.at(path)
		switch {
		case err != nil:
			return err
		case there == nil || there.point.Device != device || there.point.Type == "":
			return fmt.Errorf("grow: %s is not mounted at %s: %w", device, path, fault.NotFound)
		case there.point.Type != string(kind):
			return fmt.Errorf("grow: %s holds %s and not %s: %w", device, there.point.Type, kind, fault.Invalid)
		case there.point.ReadOnly:
			return fmt.Errorf("grow: %s is mounted read-only: %w", device, fault.InUse)
		}
		return f.grow(device, size)
	})
}

// growsUnmounted says why a filesystem cannot grow where it is not mounted, or nil.
func (f *Fake) growsUnmounted(device string, kind filesystem.Type) error {
	stands, err := f.load(device)
	switch {
	case err != nil:
		return err
	case kind != filesystem.Ext4 || stands.Type != string(kind):
		return fmt.Errorf("grow %s: it holds %q, and %s grows while it is mounted only: %w", device, stands.Type, kind, fault.Invalid)
	case f.mounted(device):
		return fmt.Errorf("grow %s: it is mounted: %w", device, fault.InUse)
	}
	return nil
}

// grow makes the filesystem as large as the device.
func (f *Fake) grow(device string, size int64) error {
	stands, err := f.load(device)
	if err != nil || stands.Bytes >= size {
		return err
	}
	stands.Bytes = size
	return f.save(device, stands)
}

// Usage implements filesystem.Host.
func (f *Fake) Usage(ctx context.Context, path string) (usage filesystem.Usage, err error) {
	err = f.do(ctx, Call{Method: "Usage", About: path}, func(*Fault) error {
		there, err := f.at(path)
		if err != nil {
			return err
		}
		if there == nil {
			return fmt.Errorf("measure: nothing is mounted at %s: %w", path, fault.NotFound)
		}
		if there.point.Type == "" {
			usage.Block = true
			usage.Total, err = f.size(there.point.Device)
			return err
		}
		stands, err := f.load(there.point.Device)
		if err != nil {
			return err
		}
		files, err := gather(filepath.Clean(path), there.hidden)
		usage = measure(stands.Bytes, files)
		return err
	})
	if err != nil {
		return filesystem.Usage{}, err
	}
	return usage, nil
}

// measure makes up figures that go together.
func measure(bytes int64, files map[string][]byte) filesystem.Usage {
	const perInode, block = 16 << 10, 4 << 10
	u := filesystem.Usage{Total: bytes, Inodes: bytes / perInode, InodesUsed: 1 + int64(len(files))}
	for _, content := range files {
		u.Used += (int64(len(content)) + block - 1) / block * block
	}
	u.Available = u.Total - u.Used
	u.InodesAvailable = u.Inodes - u.InodesUsed
	return u
}
