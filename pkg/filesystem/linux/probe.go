//go:build linux

package linux

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

const (
	// headSize is how much of the beginning of a device is read. All that blkid knows begins
	// in there (the last to begin is VMFS, after 2 MiB), apart from what it looks for at the end.
	headSize = 4 << 20
	// tailSize is how much of the end is read: all that blkid looks for there lies in it (ZFS has labels
	// in the last half MiB).
	tailSize = 1 << 20
)

// Exit codes of blkid(8) with -p.
const (
	blkidFound     = 0
	blkidNothing   = 2 // nothing found, and also: the device could not be read
	blkidAmbiguous = 8
)

// Probe implements filesystem.Host.
//
// An ext4 whose superblock has the right checksum is there: that needs no other witness. What
// else is there blkid says. But it is no witness of nothing: it answers "nothing" for a device that it cannot
// open or read, and filesystems with years of data have been formatted over for it.
// So where nothing is seen both ends of the device are read, past the page cache, and
// all is done twice. Only if both times the same could be read and nothing was seen, and
// the bytes themselves show no ext4 and no xfs, is the answer "nothing". Where blkid could
// see only zeros it is not asked.
func (h *Host) Probe(ctx context.Context, device string) (filesystem.Signature, error) {
	if err := begin(ctx, device); err != nil {
		return filesystem.Signature{}, err
	}
	first, err := h.look(ctx, device)
	if err != nil || !first.signature.Empty() {
		return first.signature, err
	}
	second, err := h.look(ctx, device)
	if err != nil {
		return filesystem.Signature{}, err
	}
	if err := agree(first, second); err != nil {
		return filesystem.Signature{}, fmt.Errorf("probe %s: %w", device, err)
	}
	return filesystem.Signature{}, nil
}

// A look is what was seen of a device once: a signature, or else both of its ends.
type look struct {
	signature filesystem.Signature
	ends      Sight
}

// agree returns fault.Unavailable unless two looks both saw nothing in the same bytes.
func agree(first, second look) error {
	if first.signature != second.signature {
		return fmt.Errorf("two looks saw %q and %q: %w", first.signature, second.signature, fault.Unavailable)
	}
	if !bytes.Equal(first.ends.Sum, second.ends.Sum) {
		return fmt.Errorf("two looks read different data and saw no signature: %w", fault.Unavailable)
	}
	if kind := magic(second.ends.Front); kind != "" {
		return fmt.Errorf("blkid sees nothing where the data has the magic number of %s: %w", kind, fault.Unavailable)
	}
	return nil
}

// magic returns the filesystem whose magic number stands where that filesystem has it.
func magic(front []byte) filesystem.Type {
	switch {
	case bytes.HasPrefix(front, []byte("XFSB")):
		return filesystem.XFS
	case len(front) >= superblockAt+sMagic+2 && superblock(front[superblockAt:]).short(sMagic) == extMagic:
		return filesystem.Ext4
	}
	return ""
}

// blank reports whether bytes are all zero.
func blank(data []byte) bool { return len(bytes.TrimLeft(data, "\x00")) == 0 }

// look reads the front of a device, and both ends where that shows no ext4. blkid is asked about what is not blank.
func (h *Host) look(ctx context.Context, device string) (look, error) {
	size, err := h.sizeOf(device)
	if err != nil {
		return look{}, err
	}
	front, err := h.read(ctx, device, Piece{0, frontSize})
	if err != nil {
		return look{}, err
	}
	if uuid, proven := provenExt4(front.Front); proven {
		return look{signature: filesystem.Signature{Type: string(filesystem.Ext4), UUID: uuid}}, nil
	}
	seen := look{}
	if !front.Zeros {
		if seen.signature, err = h.blkid(ctx, device); err != nil || !seen.signature.Empty() {
			return seen, err
		}
	}
	head, tail := min(size, headSize), min(size, tailSize)
	if seen.ends, err = h.read(ctx, device, Piece{0, head}, Piece{size - tail, tail}); err != nil {
		return look{}, err
	}
	if front.Zeros && !seen.ends.Zeros {
		seen.signature, err = h.blkid(ctx, device)
	}
	return seen, err
}

// sizeOf returns the size of a device in bytes; fault.Unavailable if it is too small to be one that is connected.
func (h *Host) sizeOf(device string) (int64, error) {
	node, err := nodeNumber(device)
	if err != nil {
		return 0, err
	}
	size, err := deviceSize(node)
	if err == nil && size < frontSize {
		err = fmt.Errorf("look at %s: it has %d bytes, is it connected: %w", device, size, fault.Unavailable)
	}
	return size, err
}

// blkid asks blkid(8) for signatures of every kind, not looking into its cache.
func (h *Host) blkid(ctx context.Context, device string) (filesystem.Signature, error) {
	blkid := command{tool: "blkid", about: device,
		args: []string{"-p", "-u", "filesystem,raid,crypto,other", "-o", "export", device}}
	r, err := h.children.run(ctx, blkid)
	if err != nil {
		return filesystem.Signature{}, err
	}
	switch r.code {
	case blkidFound:
		found := parseExport(string(r.out))
		if found.Empty() {
			return found, r.failed(blkid, fault.Unavailable)
		}
		return found, nil
	case blkidNothing:
		return filesystem.Signature{}, nil
	case blkidAmbiguous:
		return filesystem.Signature{Type: filesystem.Ambiguous}, nil
	}
	return filesystem.Signature{}, r.failed(blkid, fault.Unavailable)
}

// parseExport reads the lines KEY=VALUE of blkid. A partition table counts only where there is
// no filesystem: some filesystems begin with something that looks like one.
func parseExport(text string) filesystem.Signature {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	if values["TYPE"] != "" {
		return filesystem.Signature{Type: values["TYPE"], UUID: values["UUID"]}
	}
	if values["PTTYPE"] != "" {
		return filesystem.Signature{Type: values["PTTYPE"], UUID: values["PTUUID"]}
	}
	return filesystem.Signature{}
}
