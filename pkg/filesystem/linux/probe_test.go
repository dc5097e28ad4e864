//go:build linux

package linux

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

func TestParseExport(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       filesystem.Signature
	}{
		{"ext4", "DEVNAME=/dev/loop0\nUUID=u\nVERSION=1.0\nTYPE=ext4\nUSAGE=filesystem\n", filesystem.Signature{Type: "ext4", UUID: "u"}},
		{"a partition table", "DEVNAME=/dev/loop0\nPTUUID=p\nPTTYPE=gpt\n", filesystem.Signature{Type: "gpt", UUID: "p"}},
		{"a filesystem that looks like one too", "PTTYPE=dos\nTYPE=vfat\n", filesystem.Signature{Type: "vfat"}},
		{"only the name", "DEVNAME=/dev/loop0\n", filesystem.Signature{}},
		{"odd lines", "\n=\nTYPE\nUUID=u=v\nTYPE=a b\n", filesystem.Signature{Type: "a b", UUID: "u=v"}},
	} {
		if got := parseExport(c.text); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func FuzzParseExport(f *testing.F) {
	f.Add("TYPE=ext4\nUUID=u\n")
	f.Fuzz(func(t *testing.T, text string) {
		if got := parseExport(text); got.Empty() && (strings.HasPrefix(text, "TYPE=e\n") || strings.HasPrefix(text, "PTTYPE=d\n")) {
			t.Errorf("%q: got nothing, want a type", text)
		}
	})
}

func TestAgree(t *testing.T) {
	zeros, other := make([]byte, 4096), bytes.Repeat([]byte{7}, 4096)
	ext := make([]byte, 4096)
	ext[1024+56], ext[1024+57] = 0x53, 0xef
	xfs := append([]byte("XFSB"), zeros...)
	at := func(front []byte) look { return look{ends: Sight{Front: front, Sum: front}} }
	seen := filesystem.Signature{Type: "ext4", UUID: someUUID}
	for _, c := range []struct {
		name          string
		first, second look
		fails         bool
	}{
		{"nothing twice", at(zeros), at(zeros), false},
		{"foreign data twice", at(other), at(other), false},
		{"come", look{}, look{signature: seen}, true},
		{"other data", at(zeros), at(other), true},
		{"the number of ext4", at(ext), at(ext), true},
		{"the number of xfs", at(xfs), at(xfs), true},
		{"a short beginning", at([]byte("XFS")), at([]byte("XFS")), false},
	} {
		err := agree(c.first, c.second)
		if (err != nil) != c.fails || err != nil && !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: got %v, want it unavailable: %t", c.name, err, c.fails)
		}
	}
}

// Whatever is in one of the pieces, the last included, makes it another sight, and none that is blank.
func TestSightIsOfAllPieces(t *testing.T) {
	needRoot(t)
	h, device := newHost(), newLoops(t).device(t, 64<<20)
	ends := []Piece{{0, headSize}, {64<<20 - tailSize, tailSize}}
	before, err := h.read(t.Context(), device, ends...)
	must(t, err)
	if !before.Zeros || !blank(before.Front) || len(before.Front) != frontSize {
		t.Errorf("a blank device: got %+v, want zeros", before)
	}
	for _, offset := range []int64{0, headSize - 512, 64<<20 - tailSize, 64<<20 - 512} {
		writeAt(t, device, offset, []byte("data"))
		after, err := h.read(t.Context(), device, ends...)
		must(t, err)
		if after.Zeros || bytes.Equal(after.Sum, before.Sum) {
			t.Errorf("data at %d: got the sum %x and zeros %t, want another sum and none", offset, after.Sum, after.Zeros)
		}
		writeAt(t, device, offset, make([]byte, 4))
	}
}

// writeAt writes to the beginning of a device past a filesystem that may be there.
func writeAt(t *testing.T, device string, offset int64, data []byte) {
	t.Helper()
	file, err := os.OpenFile(device, os.O_WRONLY, 0)
	must(t, err)
	defer file.Close()
	_, err = file.WriteAt(data, offset)
	must(t, err)
	must(t, file.Sync())
}

func TestProbeForeign(t *testing.T) {
	needRoot(t)
	h := newHost()
	table := make([]byte, 512)
	copy(table[446:], []byte{0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0}) // sectors 2048 to 6143
	copy(table[510:], []byte{0x55, 0xaa})
	t.Run("a partition table", func(t *testing.T) {
		device := newLoops(t).device(t, 64<<20)
		writeAt(t, device, 0, table)
		wantSignature(t, h, device, filesystem.Signature{Type: "dos"})
		err := h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID})
		wantKind(t, err, fault.InUse)
	})
	t.Run("two filesystems", func(t *testing.T) {
		l := newLoops(t)
		device, other := l.device(t, 64<<20), l.device(t, 320<<20)
		must(t, h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID}))
		must(t, h.Format(t.Context(), other, filesystem.Format{Type: filesystem.XFS, UUID: someUUID}))
		seen, err := h.read(t.Context(), other, Piece{0, frontSize})
		must(t, err)
		writeAt(t, device, 0, seen.Front[:512])
		wantSignature(t, h, device, filesystem.Signature{Type: filesystem.Ambiguous})
	})
	t.Run("a superblock that is not whole", func(t *testing.T) {
		device := newLoops(t).device(t, 64<<20)
		writeAt(t, device, 0, []byte("XFSB"))
		_, err := h.Probe(t.Context(), device)
		wantKind(t, err, fault.Unavailable)
		err = h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID})
		wantKind(t, err, fault.Unavailable)
	})
	t.Run("one that begins further back", func(t *testing.T) {
		device := newLoops(t).device(t, 64<<20)
		writeAt(t, device, 32<<10, []byte("\x01CD001\x01")) // ISO 9660 has 16 free sectors of 2 KiB before it
		wantSignature(t, h, device, filesystem.Signature{Type: "iso9660"})
		err := h.Format(t.Context(), device, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID})
		wantKind(t, err, fault.InUse)
	})
	t.Run("data without a signature", func(t *testing.T) {
		device := newLoops(t).device(t, 64<<20)
		for _, offset := range []int64{64 << 10, 0, 64<<20 - 512} {
			writeAt(t, device, offset, []byte("data"))
			wantSignature(t, h, device, filesystem.Signature{})
		}
	})
	t.Run("through a symbolic link", func(t *testing.T) {
		device, link := newLoops(t).device(t, 64<<20), filepath.Join(t.TempDir(), "link")
		must(t, os.Symlink(device, link))
		must(t, h.Format(t.Context(), link, filesystem.Format{Type: filesystem.Ext4, UUID: someUUID}))
		wantSignature(t, h, device, filesystem.Signature{Type: "ext4", UUID: someUUID})
	})
}

func wantSignature(t *testing.T, h *Host, device string, want filesystem.Signature) {
	t.Helper()
	got, err := h.Probe(t.Context(), device)
	if err != nil || got != want {
		t.Errorf("probe of %s: got %+v, %v, want %+v", device, got, err, want)
	}
}

func wantKind(t *testing.T, err error, want fault.Kind) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("got error %v, want one of kind %q", err, want)
	}
}
