//go:build linux

package linux

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// TestToolsRefuse goes around all our own looking: the tools themselves must not write over anything.
func TestToolsRefuse(t *testing.T) {
	needRoot(t)
	h := newHost()
	for _, there := range []filesystem.Type{filesystem.Ext4, filesystem.XFS} {
		for _, over := range []filesystem.Type{filesystem.Ext4, filesystem.XFS} {
			t.Run(string(over)+" over "+string(there), func(t *testing.T) {
				device := newLoops(t).device(t, 320<<20)
				must(t, h.Format(t.Context(), device, filesystem.Format{Type: there, UUID: someUUID, Zeroed: true}))
				err := h.mkfs(t.Context(), device, filesystem.Format{Type: over, UUID: someUUID})
				wantKind(t, err, fault.InUse)
				wantSignature(t, h, device, filesystem.Signature{Type: string(there), UUID: someUUID})
			})
		}
	}
}

func TestFeatures(t *testing.T) {
	needRoot(t)
	h := newHost()
	device := newLoops(t).device(t, 64<<20)
	must(t, h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID, Zeroed: true}))
	about := tool(t, "tune2fs", "-l", device)
	for name, want := range map[string]string{
		"Filesystem features": "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg metadata_csum_seed " +
			"sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
		"Errors behavior": "Remount read-only", "Reserved block count": "0", "Block size": "4096",
	} {
		if got := valueOf(about, name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	device = newLoops(t).device(t, 320<<20)
	must(t, h.Format(t.Context(), device, filesystem.Format{Type: filesystem.XFS, UUID: someUUID, Zeroed: true}))
	about = tool(t, "xfs_db", "-r", "-c", "version", device)
	for _, want := range []string{"CRC", "FINOBT", "SPARSE_INODES", "REFLINK", "INOBTCNT", "BIGTIME"} {
		if !strings.Contains(about, want) {
			t.Errorf("features of xfs: got %s, want %s among them", about, want)
		}
	}
	for _, not := range []string{"RMAPBT", "NREXT64", "PARENT", "EXCHANGE", "METADIR"} {
		if strings.Contains(about, not) {
			t.Errorf("features of xfs: got %s, want no %s", about, not)
		}
	}
}

// valueOf returns what stands behind a name in the list that tune2fs prints.
func valueOf(list, name string) string {
	for line := range strings.Lines(list) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestZeroedWritesLittle is why Format.Zeroed exists: a thin volume stays thin.
func TestZeroedWritesLittle(t *testing.T) {
	needRoot(t)
	h := newHost()
	used := map[bool]int64{}
	for _, zeroed := range []bool{true, false} {
		l := newLoops(t)
		device := l.device(t, 8<<30)
		must(t, h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID, Zeroed: zeroed}))
		var stat syscall.Stat_t
		must(t, syscall.Stat(l.files[device], &stat))
		used[zeroed] = stat.Blocks * 512
	}
	if used[true] > 8<<20 || used[false] < 64<<20 {
		t.Errorf("8 GiB take %d bytes zeroed and %d not, want less than 8 MiB, and more than the journal's 64 MiB", used[true], used[false])
	}
}

// TestInterruptedFormat kills mkfs at many moments. Each time the same format has to be possible again,
// and the filesystem has to be sound then.
func TestInterruptedFormat(t *testing.T) {
	needRoot(t)
	h := newHost()
	for _, kind := range []filesystem.Type{filesystem.Ext4, filesystem.XFS} {
		t.Run(string(kind), func(t *testing.T) {
			device := newLoops(t).device(t, 2<<30)
			spec := filesystem.Format{Type: kind, UUID: someUUID, Redo: true}
			killed := 0
			for delay := time.Duration(0); delay < 60*time.Millisecond; delay += 3 * time.Millisecond {
				// The look before mkfs is left out, so that the clock runs for mkfs alone.
				must(t, h.clear(t.Context(), device, spec))
				ctx, cancel := context.WithTimeout(t.Context(), delay)
				err := h.mkfs(ctx, device, spec)
				cancel()
				if err != nil {
					wantKind(t, err, fault.Unknown)
					killed++
				}
				// What was killed still writes out what it had in the page cache.
				eventually(t, "the killed mkfs has ended", func() bool { running, _ := h.children.count(); return running == 0 })
			}
			if killed == 0 {
				t.Error("mkfs was never killed in the middle, want it to be")
			}
			must(t, h.Format(t.Context(), device, spec))
			must(t, h.Check(t.Context(), device, kind))
			path := filepath.Join(t.TempDir(), "target")
			must(t, h.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: kind}))
			must(t, h.Unmount(t.Context(), path))
		})
	}
}

func TestOptionsThatMakeNoFilesystem(t *testing.T) {
	needRoot(t)
	h := newHost()
	for _, options := range [][]string{{"-O", "nonsense"}, {"-E", "nonsense"}, {"-b", "77"}, {"-i", "1"}, {"-I", "77"}, {"-e", "x"}, {"-O", "journal_dev"}, {"-E", "offset=1048576"}} {
		t.Run("ext4 "+strings.Join(options, " "), func(t *testing.T) {
			err := h.Format(t.Context(), newLoops(t).device(t, 64<<20), filesystem.Format{Type: filesystem.Ext4, UUID: someUUID, Options: options})
			wantKind(t, err, fault.Invalid)
		})
	}
	for _, options := range [][]string{{"-m", "nonsense=1"}, {"-b", "size=77"}, {"-i", "size=3"}, {"-m", "crc=0"}, {"-d", "size=1t"}, {"-L", "01234567890123456"}} {
		t.Run("xfs "+strings.Join(options, " "), func(t *testing.T) {
			err := h.Format(t.Context(), newLoops(t).device(t, 320<<20), filesystem.Format{Type: filesystem.XFS, UUID: someUUID, Options: options})
			wantKind(t, err, fault.Invalid)
			if strings.Contains(err.Error(), "Usage") {
				t.Errorf("got %v, want it without the page of usage", err)
			}
		})
	}
}

func TestFsckKind(t *testing.T) {
	for _, c := range []struct {
		code int
		said string
		kind fault.Kind
		bad  bool
	}{
		{0, "", 0, false},
		{1, "FIXED.", 0, false},
		{2, "", 0, false},
		{3, "", 0, false},
		{4, "", fault.DataLoss, true},
		{12, "", fault.DataLoss, true},
		{8, "e2fsck: Input/output error", fault.Unavailable, true},
		{8, "e2fsck: Bad magic number in super-block while trying to open -", fault.DataLoss, true},
		{8, "/dev/loop0 is mounted. e2fsck: Cannot continue, aborting.", fault.InUse, true},
		{16, "Usage", fault.Unavailable, true},
		{32, "", fault.Unknown, true},
	} {
		kind, bad := fsckKind(result{code: c.code, out: []byte(c.said)})
		if kind != c.kind || bad != c.bad {
			t.Errorf("exit code %d %q: got %v, %t, want %v, %t", c.code, c.said, kind, bad, c.kind, c.bad)
		}
	}
}

// crashed returns a device as it is after its node lost power: a copy of one that is being written.
func crashed(t *testing.T, kind filesystem.Type) (h *Host, device string) {
	needRoot(t)
	h = newHost()
	l := newLoops(t)
	live, path := l.device(t, 320<<20), filepath.Join(t.TempDir(), "target")
	must(t, h.Format(t.Context(), live, filesystem.Format{Type: kind, UUID: someUUID, Zeroed: true}))
	must(t, h.Mount(t.Context(), filesystem.Mount{Device: live, Path: path, Type: kind}))
	must(t, os.WriteFile(path+"/file", []byte("synced"), 0o600))
	tool(t, "sync", path+"/file")
	file := filepath.Join(l.folder, "crashed")
	tool(t, "cp", "--sparse=always", l.files[live], file)
	must(t, h.Unmount(t.Context(), path))
	return h, l.attach(t, file)
}

func TestCrash(t *testing.T) {
	for _, kind := range []filesystem.Type{filesystem.Ext4, filesystem.XFS} {
		t.Run(string(kind), func(t *testing.T) {
			h, device := crashed(t, kind)
			must(t, h.Check(t.Context(), device, kind))
			path := filepath.Join(t.TempDir(), "target")
			must(t, h.Mount(t.Context(), filesystem.Mount{Device: device, Path: path, Type: kind}))
			if got, err := os.ReadFile(path + "/file"); err != nil || string(got) != "synced" {
				t.Errorf("the file that was synced: got %q, %v", got, err)
			}
			must(t, h.Unmount(t.Context(), path))
		})
	}
}

func TestCheckFindsDamage(t *testing.T) {
	needRoot(t)
	h := newHost()
	format := func(t *testing.T) string {
		device := newLoops(t).device(t, 64<<20)
		must(t, h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID}))
		return device
	}
	t.Run("no root directory", func(t *testing.T) {
		device := format(t)
		tool(t, "debugfs", "-w", "-R", "clri <2>", device)
		tool(t, "debugfs", "-w", "-R", "ssv state 2", device)
		wantKind(t, h.Check(t.Context(), device, filesystem.Ext4), fault.DataLoss)
	})
	t.Run("no superblock", func(t *testing.T) {
		device := format(t)
		writeAt(t, device, 0, make([]byte, 8192))
		wantKind(t, h.Check(t.Context(), device, filesystem.Ext4), fault.DataLoss)
	})
	t.Run("little, which is repaired", func(t *testing.T) {
		device := format(t)
		tool(t, "debugfs", "-w", "-R", "ssv free_blocks_count 1", device)
		tool(t, "debugfs", "-w", "-R", "ssv state 2", device)
		must(t, h.Check(t.Context(), device, filesystem.Ext4))
	})
	t.Run("the kernel refuses it", func(t *testing.T) {
		device := newLoops(t).device(t, 320<<20)
		must(t, h.Format(t.Context(), device, filesystem.Format{Type: filesystem.XFS, UUID: someUUID}))
		tool(t, "xfs_db", "-x", "-c", "sb 0", "-c", "write -d agblocks 5", device)
		err := h.Mount(t.Context(), filesystem.Mount{Device: device, Path: filepath.Join(t.TempDir(), "target"), Type: filesystem.XFS})
		if !errors.Is(err, fault.DataLoss) && !errors.Is(err, fault.Invalid) {
			t.Errorf("got %v, want data loss or invalid", err)
		}
	})
}
