package crash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"time"
)

const (
	// Two data objects, and three: a clone that is larger than its source has one that the source lacks.
	smallBytes = 8 << 20
	largeBytes = 12 << 20
	blockBytes = 64 << 10
)

// blockOffsets are where blocks are written: in either of the first two data objects, so that a
// clone has objects of its own beside its parent's.
var blockOffsets = []int64{0, 1 << 20, 4 << 20, 8<<20 - blockBytes}

// A content is what an image holds: some blocks of random bytes, and zeroes. It does not change.
type content struct {
	bytes  int64
	blocks map[int64]uint64 // seeds by offset
}

// with returns the content with one block more, or another one.
func (c content) with(offset int64, seed uint64) content {
	blocks := map[int64]uint64{offset: seed}
	for at, old := range c.blocks {
		if at != offset {
			blocks[at] = old
		}
	}
	return content{bytes: c.bytes, blocks: blocks}
}

// grown returns the content of a clone of that size.
func (c content) grown(bytes int64) content { return content{bytes: bytes, blocks: c.blocks} }

func block(seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, 0))
	made := make([]byte, 0, blockBytes)
	for len(made) < blockBytes {
		made = binary.LittleEndian.AppendUint64(made, random.Uint64())
	}
	return made
}

// sum returns the checksum of the whole image.
func (c content) sum() [sha256.Size]byte {
	image := make([]byte, c.bytes)
	for offset, seed := range c.blocks {
		copy(image[offset:], block(seed))
	}
	return sha256.Sum256(image)
}

// diff returns the content in the format that `rbd import-diff` reads
// (doc/dev/rbd-diff.rst in Ceph's sources).
func (c content) diff() []byte {
	text := append([]byte("rbd diff v1\ns"), binary.LittleEndian.AppendUint64(nil, uint64(c.bytes))...)
	for _, offset := range slices.Sorted(maps.Keys(c.blocks)) {
		text = binary.LittleEndian.AppendUint64(append(text, 'w'), uint64(offset))
		text = binary.LittleEndian.AppendUint64(text, blockBytes)
		text = append(text, block(c.blocks[offset])...)
	}
	return append(text, 'e')
}

// write gives a volume its content. Blocks that are not in it stay as they are.
func (w *world) write(ctx context.Context, handle string, c content) error {
	return w.rbd(ctx, c.diff(), nil, "import-diff", "--no-progress", "-", spec(handle))
}

// compare fails unless a volume has the content.
//
// A clone whose flatten was killed at its very end cannot be opened until the next process has ended that (volume.Store.part).
func (w *world) compare(ctx context.Context, handle string, want content) error {
	var sum hash.Hash
	for deadline := time.Now().Add(flattenedAnew); ; time.Sleep(flattenedAnew / 100) {
		sum = sha256.New()
		err := w.rbd(ctx, nil, sum, "export", "--no-progress", spec(handle), "-")
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "failed to open parent image") || time.Now().After(deadline) {
			return err
		}
	}
	if got, want := sum.Sum(nil), want.sum(); !bytes.Equal(got, want[:]) {
		return fmt.Errorf("content of %s: got checksum %x, want %x", handle, got, want)
	}
	return nil
}

// flattenedAnew is how long a clone may take to be opened again.
const flattenedAnew = 20 * time.Second

// spec returns what `rbd` calls the image of a handle.
func spec(handle string) string { return strings.TrimPrefix(handle, cluster+":") }

// rbd runs `rbd`. The command gets the input, and the sum what it writes.
func (w *world) rbd(ctx context.Context, input []byte, sum hash.Hash, arguments ...string) error {
	command, err := w.cluster.Command(ctx, "rbd", arguments...)
	if err != nil {
		return err
	}
	var complaints bytes.Buffer
	command.Stdin, command.Stderr = bytes.NewReader(input), &complaints
	if sum != nil {
		command.Stdout = sum
	}
	// The command is to end with this process, which it notices by the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := command.Run(); err != nil {
		return fmt.Errorf("rbd %s: %w: %s", strings.Join(arguments, " "), err, complaints.Bytes())
	}
	return nil
}
