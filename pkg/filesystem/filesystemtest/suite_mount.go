package filesystemtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

var mountCases = []suiteCase{
	{"makes the directory and its parents", func(t *testing.T, b *bench) {
		path := b.path("some/folder/target")
		device := b.mounted(t, path)
		b.wantPoint(t, path, filesystem.Point{Device: device, Type: "ext4"})
		b.wantUses(t, device, path)
	}},
	{"a path with a blank and a backslash", func(t *testing.T, b *bench) {
		path := b.path("a b\\040c\td")
		device := b.mounted(t, path)
		b.wantPoint(t, path, filesystem.Point{Device: device, Type: "ext4"})
		must(t, b.Host.Unmount(t.Context(), path))
		b.wantNothing(t, path)
	}},
	{"again is success and mounts once", func(t *testing.T, b *bench) {
		path := b.path("target")
		device := b.mounted(t, path)
		must(t, b.Host.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4}))
		b.wantUses(t, device, path)
	}},
	{"again in another mode is refused", func(t *testing.T, b *bench) {
		path := b.path("target")
		device := b.mounted(t, path)
		err := b.Host.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4, ReadOnly: true})
		wantKind(t, err, fault.InUse)
		b.wantPoint(t, path, filesystem.Point{Device: device, Type: "ext4"})
	}},
	{"elsewhere in another mode is refused", func(t *testing.T, b *bench) {
		device := b.mounted(t, b.path("target"))
		err := b.Host.Mount(t.Context(), filesystem.Mount{Device: device, Path: b.path("other"), Type: filesystem.Ext4, ReadOnly: true})
		wantKind(t, err, fault.InUse)
		b.wantNothing(t, b.path("other"))
	}},
	{"read-only", func(t *testing.T, b *bench) {
		path := b.path("target")
		device := b.made(t, filesystem.Ext4, oneUUID)
		mount := filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4, ReadOnly: true}
		b.mount(t, mount)
		b.wantPoint(t, path, filesystem.Point{Device: device, Type: "ext4", ReadOnly: true})
		must(t, b.Host.Mount(t.Context(), mount))
		mount.ReadOnly = false
		wantKind(t, b.Host.Mount(t.Context(), mount), fault.InUse)
	}},
	{"read-only of a copy that was in use", func(t *testing.T, b *bench) {
		for _, kind := range []filesystem.Type{filesystem.Ext4, filesystem.XFS} {
			device, path := b.made(t, kind, oneUUID), b.path("read "+string(kind))
			b.mount(t, filesystem.Mount{Device: device, Path: b.path("written " + string(kind)), Type: kind})
			writeThrough(t, b.path("written "+string(kind))+"/marker", "written")
			copied := b.Copy(t, device)
			b.Protect(t, copied)
			mount := filesystem.Mount{Device: copied, Path: path, Type: kind, ReadOnly: true, Options: []string{"nouuid"}}
			if kind == filesystem.Ext4 {
				mount.Options = nil
			}
			err := b.Host.Mount(t.Context(), mount)
			wantKind(t, err, fault.InUse)
			if !errors.Is(err, filesystem.ErrReplay) {
				t.Errorf("mount of %s: got %v, want %v", kind, err, filesystem.ErrReplay)
			}
			b.wantNothing(t, path)
		}
	}},
	{"another device is mounted there", func(t *testing.T, b *bench) {
		path := b.path("target")
		device := b.mounted(t, path)
		other := b.made(t, filesystem.Ext4, otherUUID)
		err := b.Host.Mount(t.Context(), filesystem.Mount{Device: other, Path: path, Type: filesystem.Ext4})
		wantKind(t, err, fault.InUse)
		b.wantUses(t, device, path)
		b.wantUses(t, other)
	}},
	{"refused targets", func(t *testing.T, b *bench) {
		device := b.made(t, filesystem.Ext4, oneUUID)
		makeFolder(t, b.path("folder"))
		writeFile(t, b.path("file"), "")
		link(t, b.path("folder"), b.path("link"))
		link(t, b.path("nowhere"), b.path("dangling"))
		for _, path := range []string{b.path("file"), b.path("link"), b.path("dangling"), "relative", b.folder + "/x/../y", "/", ""} {
			err := b.Host.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4})
			wantKind(t, err, fault.Invalid)
		}
		b.wantUses(t, device)
	}},
	{"a link among the parents", func(t *testing.T, b *bench) {
		makeFolder(t, b.path("real"))
		link(t, b.path("real"), b.path("link"))
		device := b.mounted(t, b.path("link/target"))
		b.wantPoint(t, b.path("real/target"), filesystem.Point{Device: device, Type: "ext4"})
		point, found, err := b.Host.At(t.Context(), b.path("link/target"))
		if want := b.path("real/target"); err != nil || !found || point.Path != want {
			t.Errorf("at the linked path: got %+v, %t, %v, want %s as in the mount table", point, found, err, want)
		}
	}},
	{"a device without a filesystem", func(t *testing.T, b *bench) {
		path := b.path("target")
		err := b.Host.Mount(t.Context(), filesystem.Mount{Device: b.Device(t, extSize), Path: path, Type: filesystem.Ext4})
		wantKind(t, err, fault.Invalid)
		b.wantNothing(t, path)
	}},
	{"a device that is not there", func(t *testing.T, b *bench) {
		err := b.Host.Mount(t.Context(), filesystem.Mount{Device: b.path("nothing"), Path: b.path("target"), Type: filesystem.Ext4})
		wantKind(t, err, fault.Unavailable)
	}},
	{"the type is another", func(t *testing.T, b *bench) {
		device := b.made(t, filesystem.Ext4, oneUUID)
		err := b.Host.Mount(t.Context(), filesystem.Mount{Device: device, Path: b.path("target"), Type: filesystem.XFS})
		wantKind(t, err, fault.Invalid)
	}},
	{"a copy of an xfs wants nouuid", func(t *testing.T, b *bench) {
		device := b.made(t, filesystem.XFS, oneUUID)
		clone := b.Copy(t, device)
		b.mount(t, filesystem.Mount{Device: device, Path: b.path("one"), Type: filesystem.XFS})
		mount := filesystem.Mount{Device: clone, Path: b.path("two"), Type: filesystem.XFS}
		wantKind(t, b.Host.Mount(t.Context(), mount), fault.Invalid)
		mount.Options = []string{"nouuid"}
		b.mount(t, mount)
	}},
	{"what was written is there the next time", func(t *testing.T, b *bench) {
		for _, kind := range []filesystem.Type{filesystem.Ext4, filesystem.XFS} {
			device := b.made(t, kind, oneUUID)
			one, two := b.path("one "+string(kind)), b.path("two "+string(kind))
			b.mount(t, filesystem.Mount{Device: device, Path: one, Type: kind})
			writeFile(t, one+"/marker", "written")
			must(t, b.Host.Unmount(t.Context(), one))
			b.mount(t, filesystem.Mount{Device: device, Path: two, Type: kind})
			wantFile(t, two+"/marker", "written")
		}
	}},
	{"what was in the directory comes back", func(t *testing.T, b *bench) {
		path := b.path("target")
		makeFolder(t, path)
		writeFile(t, path+"/mine", "hidden")
		b.mounted(t, path)
		wantKind(t, b.Host.Unmount(t.Context(), path), fault.InUse)
		wantFile(t, path+"/mine", "hidden")
		must(t, os.RemoveAll(path))
	}},
	{"many at once", func(t *testing.T, b *bench) {
		var group sync.WaitGroup
		for i := range 6 {
			device := b.made(t, filesystem.Ext4, oneUUID)
			group.Go(func() {
				path := b.path(fmt.Sprintf("parallel/%d", i))
				for range 3 {
					if err := b.Host.Mount(contextOf(t), filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4}); err != nil {
						t.Errorf("mount: %v", err)
					}
					if err := b.Host.Unmount(contextOf(t), path); err != nil {
						t.Errorf("unmount: %v", err)
					}
				}
			})
		}
		group.Wait()
	}},
}

var bindCases = []suiteCase{
	{"a directory", func(t *testing.T, b *bench) {
		staged, path := b.path("staged"), b.path("pod/target")
		device := b.mounted(t, staged)
		writeFile(t, staged+"/marker", "written")
		bind := filesystem.Bind{Source: staged, Path: path}
		b.bind(t, bind)
		must(t, b.Host.Bind(t.Context(), bind))
		b.wantPoint(t, path, filesystem.Point{Device: device, Type: "ext4"})
		b.wantUses(t, device, staged, path)
		wantFile(t, path+"/marker", "written")
	}},
	{"a directory of the node", func(t *testing.T, b *bench) {
		makeFolder(t, b.path("folder"))
		b.bind(t, filesystem.Bind{Source: b.path("folder"), Path: b.path("target")})
		must(t, b.Host.Bind(t.Context(), filesystem.Bind{Source: b.path("folder"), Path: b.path("target")}))
		makeFolder(t, b.path("other"))
		wantKind(t, b.Host.Bind(t.Context(), filesystem.Bind{Source: b.path("other"), Path: b.path("target")}), fault.InUse)
	}},
	{"read-only, while the source is written", func(t *testing.T, b *bench) {
		staged, path := b.path("staged"), b.path("target")
		device := b.mounted(t, staged)
		bind := filesystem.Bind{Source: staged, Path: path, ReadOnly: true}
		b.bind(t, bind)
		must(t, b.Host.Bind(t.Context(), bind))
		b.wantPoint(t, path, filesystem.Point{Device: device, Type: "ext4", ReadOnly: true})
		b.wantPoint(t, staged, filesystem.Point{Device: device, Type: "ext4"})
		writeFile(t, staged+"/file", "still possible")
		bind.ReadOnly = false
		wantKind(t, b.Host.Bind(t.Context(), bind), fault.InUse)
	}},
	{"an interrupted read-only bind is finished", func(t *testing.T, b *bench) {
		staged, path := b.path("staged"), b.path("target")
		device := b.mounted(t, staged)
		b.bind(t, filesystem.Bind{Source: staged, Path: path})
		must(t, b.Host.Bind(t.Context(), filesystem.Bind{Source: staged, Path: path, ReadOnly: true}))
		b.wantPoint(t, path, filesystem.Point{Device: device, Type: "ext4", ReadOnly: true})
		b.wantUses(t, device, staged, path)
	}},
	{"of a read-only filesystem", func(t *testing.T, b *bench) {
		staged, path := b.path("staged"), b.path("target")
		device := b.made(t, filesystem.Ext4, oneUUID)
		b.mount(t, filesystem.Mount{Device: device, Path: staged, Type: filesystem.Ext4, ReadOnly: true})
		bind := filesystem.Bind{Source: staged, Path: path, ReadOnly: true}
		b.bind(t, bind)
		must(t, b.Host.Bind(t.Context(), bind))
		b.wantPoint(t, path, filesystem.Point{Device: device, Type: "ext4", ReadOnly: true})
	}},
	{"a device", func(t *testing.T, b *bench) {
		device, path, again := b.Device(t, extSize), b.path("staged/device"), b.path("pod/target")
		b.bind(t, filesystem.Bind{Source: device, Path: path})
		must(t, b.Host.Bind(t.Context(), filesystem.Bind{Source: device, Path: path}))
		b.wantPoint(t, path, filesystem.Point{Device: device})
		b.bind(t, filesystem.Bind{Source: path, Path: again})
		must(t, b.Host.Bind(t.Context(), filesystem.Bind{Source: path, Path: again}))
		b.wantPoint(t, again, filesystem.Point{Device: device})
		b.wantUses(t, device, path, again)
		must(t, b.Host.Unmount(t.Context(), path))
		b.wantNothing(t, path)
		b.wantUses(t, device, again)
	}},
	{"a device read-only", func(t *testing.T, b *bench) {
		device, path := b.Device(t, extSize), b.path("target")
		b.bind(t, filesystem.Bind{Source: device, Path: path, ReadOnly: true})
		must(t, b.Host.Bind(t.Context(), filesystem.Bind{Source: device, Path: path, ReadOnly: true}))
		b.wantPoint(t, path, filesystem.Point{Device: device, ReadOnly: true})
	}},
	{"another thing is there", func(t *testing.T, b *bench) {
		staged, other, path := b.path("staged"), b.path("other"), b.path("target")
		device := b.mounted(t, staged)
		second := b.made(t, filesystem.Ext4, otherUUID)
		b.mount(t, filesystem.Mount{Device: second, Path: other, Type: filesystem.Ext4})
		b.bind(t, filesystem.Bind{Source: staged, Path: path})
		wantKind(t, b.Host.Bind(t.Context(), filesystem.Bind{Source: other, Path: path}), fault.InUse)
		wantKind(t, b.Host.Bind(t.Context(), filesystem.Bind{Source: device, Path: path}), fault.InUse)
		b.wantUses(t, second, other)
	}},
	{"another device is there", func(t *testing.T, b *bench) {
		path := b.path("target")
		b.bind(t, filesystem.Bind{Source: b.Device(t, extSize), Path: path})
		wantKind(t, b.Host.Bind(t.Context(), filesystem.Bind{Source: b.Device(t, extSize), Path: path}), fault.InUse)
	}},
	{"refused", func(t *testing.T, b *bench) {
		makeFolder(t, b.path("folder"))
		makeFolder(t, b.path("target"))
		writeFile(t, b.path("file"), "")
		link(t, b.path("target"), b.path("link"))
		device := b.Device(t, extSize)
		for _, one := range []struct {
			bind filesystem.Bind
			want fault.Kind
		}{
			{filesystem.Bind{Source: b.path("nothing"), Path: b.path("target")}, fault.NotFound},
			{filesystem.Bind{Source: "relative", Path: b.path("target")}, fault.Invalid},
			{filesystem.Bind{Source: b.path("folder"), Path: "relative"}, fault.Invalid},
			{filesystem.Bind{Source: b.path("folder"), Path: b.path("file")}, fault.Invalid},
			{filesystem.Bind{Source: b.path("folder"), Path: b.path("link")}, fault.Invalid},
			{filesystem.Bind{Source: device, Path: b.path("target")}, fault.Invalid},
			{filesystem.Bind{Source: device, Path: b.path("link")}, fault.Invalid},
		} {
			wantKind(t, b.Host.Bind(t.Context(), one.bind), one.want)
		}
		b.wantUses(t, device)
	}},
}

var unmountCases = []suiteCase{
	{"removes the directory, and again", func(t *testing.T, b *bench) {
		path := b.path("target")
		device := b.mounted(t, path)
		must(t, b.Host.Unmount(t.Context(), path))
		b.wantNothing(t, path)
		b.wantUses(t, device)
		must(t, b.Host.Unmount(t.Context(), path))
	}},
	{"what is not there", func(t *testing.T, b *bench) {
		must(t, b.Host.Unmount(t.Context(), b.path("target")))
		must(t, b.Host.Unmount(t.Context(), b.path("no/parent/target")))
	}},
	{"what is not mounted and empty", func(t *testing.T, b *bench) {
		makeFolder(t, b.path("folder"))
		writeFile(t, b.path("file"), "")
		must(t, b.Host.Unmount(t.Context(), b.path("folder")))
		must(t, b.Host.Unmount(t.Context(), b.path("file")))
		b.wantNothing(t, b.path("folder"))
		b.wantNothing(t, b.path("file"))
	}},
	{"what is not empty stays", func(t *testing.T, b *bench) {
		makeFolder(t, b.path("folder"))
		writeFile(t, b.path("folder/file"), "kept")
		wantKind(t, b.Host.Unmount(t.Context(), b.path("folder")), fault.InUse)
		wantKind(t, b.Host.Unmount(t.Context(), b.path("folder/file")), fault.InUse)
		wantFile(t, b.path("folder/file"), "kept")
	}},
	{"a link is not followed", func(t *testing.T, b *bench) {
		path := b.path("target")
		device := b.mounted(t, path)
		link(t, path, b.path("link"))
		link(t, b.path("nowhere"), b.path("dangling"))
		wantKind(t, b.Host.Unmount(t.Context(), b.path("link")), fault.Invalid)
		wantKind(t, b.Host.Unmount(t.Context(), b.path("dangling")), fault.Invalid)
		b.wantPoint(t, path, filesystem.Point{Device: device, Type: "ext4"})
		if !exists(b.path("link")) || !exists(b.path("dangling")) {
			t.Error("a link was removed, want both left alone")
		}
	}},
	{"refused paths", func(t *testing.T, b *bench) {
		for _, path := range []string{"", "/", "relative", b.folder + "/../x", b.folder + "/"} {
			wantKind(t, b.Host.Unmount(t.Context(), path), fault.Invalid)
		}
	}},
	{"a bind leaves its source mounted", func(t *testing.T, b *bench) {
		staged, path := b.path("staged"), b.path("target")
		device := b.mounted(t, staged)
		b.bind(t, filesystem.Bind{Source: staged, Path: path})
		writeFile(t, path+"/marker", "written")
		must(t, b.Host.Unmount(t.Context(), path))
		b.wantNothing(t, path)
		b.wantUses(t, device, staged)
		wantFile(t, staged+"/marker", "written")
	}},
	{"a busy one", func(t *testing.T, b *bench) {
		path := b.path("target")
		device := b.mounted(t, path)
		release := b.Hold(t, path)
		wantKind(t, b.Host.Unmount(t.Context(), path), fault.InUse)
		b.wantUses(t, device, path)
		release()
		must(t, b.Host.Unmount(t.Context(), path))
		b.wantNothing(t, path)
	}},
	{"one with another below", func(t *testing.T, b *bench) {
		path := b.path("target")
		b.mounted(t, path)
		second := b.made(t, filesystem.Ext4, otherUUID)
		b.mount(t, filesystem.Mount{Device: second, Path: path + "/below", Type: filesystem.Ext4})
		wantKind(t, b.Host.Unmount(t.Context(), path), fault.InUse)
	}},
}

var tableCases = []suiteCase{
	{"nothing is mounted", func(t *testing.T, b *bench) {
		makeFolder(t, b.path("folder"))
		for _, path := range []string{b.path("folder"), b.path("nothing"), b.path("no/parent")} {
			if point, found, err := b.Host.At(t.Context(), path); err != nil || found {
				t.Errorf("at %s: got %+v, %t, %v, want nothing", path, point, found, err)
			}
		}
		b.wantUses(t, b.Device(t, extSize))
	}},
	{"only the exact path", func(t *testing.T, b *bench) {
		path := b.path("target")
		b.mounted(t, path)
		makeFolder(t, path+"/folder")
		link(t, path, b.path("link"))
		for _, other := range []string{path + "/folder", b.folder, b.path("link")} {
			if point, found, err := b.Host.At(t.Context(), other); err != nil || found {
				t.Errorf("at %s: got %+v, %t, %v, want nothing", other, point, found, err)
			}
		}
	}},
	{"refused paths", func(t *testing.T, b *bench) {
		_, _, err := b.Host.At(t.Context(), "relative")
		wantKind(t, err, fault.Invalid)
		_, err = b.Host.Uses(t.Context(), "relative")
		wantKind(t, err, fault.Invalid)
		_, err = b.Host.Uses(t.Context(), b.path("nothing"))
		wantKind(t, err, fault.Unavailable)
	}},
}

var growCases = []suiteCase{
	{"to the size of the device, in use", func(t *testing.T, b *bench) {
		for _, one := range []struct {
			kind filesystem.Type
			size int64
		}{{filesystem.Ext4, extSize}, {filesystem.XFS, xfsSize}} {
			t.Run(describe(one.kind, one.size), func(t *testing.T) {
				b.needGrow(t, one.kind)
				path := b.path("target " + string(one.kind))
				device := b.made(t, one.kind, oneUUID)
				b.mount(t, filesystem.Mount{Device: device, Path: path, Type: one.kind})
				b.wantTotal(t, path, one.size/2, one.size)
				must(t, b.Host.Grow(t.Context(), device, path, one.kind))
				writeFile(t, path+"/marker", "written")
				b.Resize(t, device, 3*one.size)
				must(t, b.Host.Grow(t.Context(), device, path, one.kind))
				b.wantTotal(t, path, 2*one.size, 3*one.size)
				must(t, b.Host.Grow(t.Context(), device, path, one.kind))
				wantFile(t, path+"/marker", "written")
			})
		}
	}},
	{"at a bind", func(t *testing.T, b *bench) {
		b.needGrow(t, filesystem.Ext4)
		staged, path := b.path("staged"), b.path("target")
		device := b.mounted(t, staged)
		b.bind(t, filesystem.Bind{Source: staged, Path: path})
		b.Resize(t, device, 3*extSize)
		must(t, b.Host.Grow(t.Context(), device, path, filesystem.Ext4))
		b.wantTotal(t, staged, 2*extSize, 3*extSize)
	}},
	{"an ext4 that is not mounted", func(t *testing.T, b *bench) {
		path := b.path("target")
		device := b.mounted(t, path)
		writeFile(t, path+"/marker", "written")
		wantKind(t, b.Host.Grow(t.Context(), device, "", filesystem.Ext4), fault.InUse)
		must(t, b.Host.Unmount(t.Context(), path))
		b.Resize(t, device, 3*extSize)
		must(t, b.Host.Grow(t.Context(), device, "", filesystem.Ext4))
		must(t, b.Host.Grow(t.Context(), device, "", filesystem.Ext4))
		b.mount(t, filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4})
		b.wantTotal(t, path, 2*extSize, 3*extSize)
		wantFile(t, path+"/marker", "written")
		wantKind(t, b.Host.Grow(t.Context(), device, "", filesystem.XFS), fault.Invalid)
	}},
	{"refused", func(t *testing.T, b *bench) {
		device := b.made(t, filesystem.Ext4, oneUUID)
		path := b.path("target")
		wantKind(t, b.Host.Grow(t.Context(), device, path, filesystem.Ext4), fault.NotFound)
		b.mount(t, filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4, ReadOnly: true})
		wantKind(t, b.Host.Grow(t.Context(), device, path, filesystem.Ext4), fault.InUse)
		wantKind(t, b.Host.Grow(t.Context(), device, path, filesystem.XFS), fault.Invalid)
		wantKind(t, b.Host.Grow(t.Context(), device, path, "btrfs"), fault.Invalid)
		wantKind(t, b.Host.Grow(t.Context(), b.Device(t, extSize), path, filesystem.Ext4), fault.NotFound)
		must(t, b.Host.Unmount(t.Context(), path))
	}},
}

// needGrow skips a case that this node cannot do.
func (b *bench) needGrow(t *testing.T, kind filesystem.Type) {
	t.Helper()
	if kind == filesystem.Ext4 && b.NoExt4Grow != "" {
		t.Skip("skipped: ext4 cannot grow here: " + b.NoExt4Grow)
	}
}

// wantTotal checks the size of the filesystem mounted at a path.
func (b *bench) wantTotal(t *testing.T, path string, least, most int64) {
	t.Helper()
	usage, err := b.Host.Usage(t.Context(), path)
	must(t, err)
	wantUsage(t, usage, least, most)
}

var usageCases = []suiteCase{
	{"a filesystem", func(t *testing.T, b *bench) {
		path := b.path("target")
		b.mounted(t, path)
		before, err := b.Host.Usage(t.Context(), path)
		must(t, err)
		wantUsage(t, before, extSize/2, extSize)
		writeFile(t, path+"/file", string(make([]byte, 1<<20)))
		after, err := b.Host.Usage(t.Context(), path)
		must(t, err)
		if after.Used < before.Used+1<<20 || after.InodesUsed != before.InodesUsed+1 {
			t.Errorf("usage after writing 1 MiB into one file: got %+v, before %+v", after, before)
		}
	}},
	{"a block device", func(t *testing.T, b *bench) {
		device, path := b.Device(t, extSize), b.path("target")
		b.bind(t, filesystem.Bind{Source: device, Path: path})
		usage, err := b.Host.Usage(t.Context(), path)
		must(t, err)
		if want := (filesystem.Usage{Block: true, Total: extSize}); usage != want {
			t.Errorf("usage: got %+v, want %+v", usage, want)
		}
	}},
	{"nothing is mounted", func(t *testing.T, b *bench) {
		_, err := b.Host.Usage(t.Context(), b.folder)
		wantKind(t, err, fault.NotFound)
		_, err = b.Host.Usage(t.Context(), b.path("nothing"))
		wantKind(t, err, fault.NotFound)
		_, err = b.Host.Usage(t.Context(), "relative")
		wantKind(t, err, fault.Invalid)
	}},
}

var contextCases = []suiteCase{
	{"nothing is begun when the context has ended", func(t *testing.T, b *bench) {
		device, path := b.made(t, filesystem.Ext4, oneUUID), b.path("target")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		calls := map[string]func() error{
			"Probe": func() error { _, err := b.Host.Probe(ctx, device); return err },
			"Format": func() error {
				return b.Host.Format(ctx, device, filesystem.Format{Type: filesystem.Ext4, UUID: oneUUID, Redo: true})
			},
			"Check": func() error { return b.Host.Check(ctx, device, filesystem.Ext4) },
			"Mount": func() error {
				return b.Host.Mount(ctx, filesystem.Mount{Device: device, Path: path, Type: filesystem.Ext4})
			},
			"Bind":    func() error { return b.Host.Bind(ctx, filesystem.Bind{Source: b.folder, Path: path}) },
			"Unmount": func() error { return b.Host.Unmount(ctx, path) },
			"At":      func() error { _, _, err := b.Host.At(ctx, path); return err },
			"Uses":    func() error { _, err := b.Host.Uses(ctx, device); return err },
			"Grow":    func() error { return b.Host.Grow(ctx, device, path, filesystem.Ext4) },
			"Usage":   func() error { _, err := b.Host.Usage(ctx, path); return err },
		}
		for name, call := range calls {
			if err := call(); !fault.Is(err, fault.Canceled) {
				t.Errorf("%s: got %v, want it canceled", name, err)
			}
		}
		b.wantNothing(t, path)
	}},
}
