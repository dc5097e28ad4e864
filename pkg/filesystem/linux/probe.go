//go:build linux

package linux

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

const (
	// headSize is how much of the beginning of a device is read. All that blkid knows begins
	// in there, apart from what it looks for at the end.
	headSize = 1 << 20
	// tailSize is how much of the end is read. It is a multiple of every logical block
	// size, which direct reads have to keep to.
	tailSize = 4 << 10
)

// Exit codes of blkid(8) with -p.
const (
	blkidFound     = 0
	blkidNothing   = 2 // nothing found, and also: the device could not be read
	blkidAmbiguous = 8
)

// Probe implements filesystem.Host.
//
// blkid alone is no witness of nothing: it answers "nothing" for a device that it cannot
// open or read, and filesystems with years of data have been formatted over for it.
// So where it sees nothing both ends of the device are read, past the page cache, and
// all is done twice. Only if both times the same could be read and nothing was seen, and
// the bytes themselves show no ext4 and no xfs, is the answer "nothing". What it sees is there: that needs no other witness.
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

// A sight is what one look at a device showed.
type sight struct {
	head, tail []byte
	signature  filesystem.Signature
}

// agree returns fault.Unavailable unless two looks both saw nothing in the same bytes.
func agree(first, second sight) error {
	if first.signature != second.signature {
		return fmt.Errorf("two looks saw %q and %q: %w", first.signature, second.signature, fault.Unavailable)
	}
	if !bytes.Equal(first.head, second.head) || !bytes.Equal(first.tail, second.tail) {
		return fmt.Errorf("two looks read different data and saw no signature: %w", fault.Unavailable)
	}
	if kind := magic(second.head); kind != "" {
		return fmt.Errorf("blkid sees nothing where the data has the magic number of %s: %w", kind, fault.Unavailable)
	}
	return nil
}

// magic returns the filesystem whose magic number stands where that filesystem has it.
func magic(head []byte) filesystem.Type {
	const extSuperblock, extMagic = 1024, 56
	switch {
	case bytes.HasPrefix(head, []byte("XFSB")):
		return filesystem.XFS
	case len(head) >= extSuperblock+extMagic+2 && head[extSuperblock+extMagic] == 0x53 && head[extSuperblock+extMagic+1] == 0xef:
		return filesystem.Ext4
	}
	return ""
}

// look asks blkid, and where that sees nothing reads both ends of the device.
func (h *Host) look(ctx context.Context, device string) (sight, error) {
	node, err := nodeNumber(device)
	if err != nil {
		return sight{}, err
	}
	size, err := deviceSize(node)
	if err != nil {
		return sight{}, err
	}
	if size < tailSize {
		return sight{}, fmt.Errorf("probe %s: it has %d bytes, is it connected: %w", device, size, fault.Unavailable)
	}
	var seen sight
	if seen.signature, err = h.blkid(ctx, device); err != nil || !seen.signature.Empty() {
		return seen, err
	}
	if seen.head, err = h.read(ctx, device, 0, min(size, headSize)); err != nil {
		return sight{}, err
	}
	if seen.tail, err = h.read(ctx, device, size-tailSize, tailSize); err != nil {
		return sight{}, err
	}
	return seen, nil
}

// read reads a piece of a device, not more than headSize, with O_DIRECT: what the page
// cache has says nothing about the device of this moment.
func (h *Host) read(ctx context.Context, device string, offset, length int64) ([]byte, error) {
	dd := command{tool: "dd", about: device, limit: headSize, args: []string{
		"if=" + device, "iflag=direct,fullblock,skip_bytes", "status=none", "count=1",
		"skip=" + strconv.FormatInt(offset, 10), "bs=" + strconv.FormatInt(length, 10),
	}}
	r, err := h.children.run(ctx, dd)
	if err != nil {
		return nil, err
	}
	if r.code != 0 {
		return nil, fmt.Errorf("read %d bytes at %d: %w", length, offset, r.failed(dd, fault.Unavailable))
	}
	if int64(len(r.out)) != length {
		return nil, fmt.Errorf("read %s: %d of %d bytes at %d: %w", device, len(r.out), length, offset, fault.Unavailable)
	}
	return r.out, nil
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
