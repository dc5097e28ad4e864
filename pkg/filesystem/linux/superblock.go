//go:build linux

package linux

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// A superblock is that of an ext4 (struct ext4_super_block in fs/ext4/ext4.h), as it stands on a device: integers are
// little-endian.
type superblock []byte

const (
	superblockAt   = 1024 // where it begins on a device
	superblockSize = 1024
)

// Where the fields are, and what is in them.
const (
	sBlocks, sBlocksHigh       = 0x04, 0x150
	sLogBlockSize, mostLog     = 0x18, 6
	sMaxMountCount             = 0x36
	sMagic, extMagic           = 0x38, 0xef53
	sState, valid, withErrors  = 0x3a, 0x1, 0x2
	sCheckInterval             = 0x44
	sIncompatible              = 0x60
	journalDevice, needsReplay = 0x8, 0x4
	is64bit                    = 0x80
	sReadOnlyCompatible        = 0x64
	metadataSum, orphansFound  = 0x400, 0x10000
	sUUID                      = 0x68
	sLastOrphan                = 0xe8
	sFlags, forTests           = 0x160, 0x4
	sSumType, crc32c           = 0x175, 1
	sErrorCount                = 0x194
	sSum                       = 0x3fc
)

func (s superblock) short(at int) uint16 { return binary.LittleEndian.Uint16(s[at:]) }
func (s superblock) long(at int) uint32  { return binary.LittleEndian.Uint32(s[at:]) }

// superblockIn returns the superblock in the beginning of a device, if there is one.
func superblockIn(front []byte) (superblock, bool) {
	if magic(front) != filesystem.Ext4 || len(front) < superblockAt+superblockSize {
		return nil, false
	}
	return superblock(front[superblockAt:][:superblockSize]), true
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// provenExt4 returns the UUID of an ext4 whose superblock has the right checksum, on a device that has nothing before
// it, where other formats begin. blkid(8) would see the same.
func provenExt4(front []byte) (uuid string, proven bool) {
	s, found := superblockIn(front)
	if !found || !blank(front[:superblockAt]) {
		return "", false
	}
	// The kernel's crc32c begins with ones and does not turn the result over, as crc32.Checksum does.
	sum := ^crc32.Checksum(s[:sSum], castagnoli)
	if s.long(sReadOnlyCompatible)&metadataSum == 0 || s[sSumType] != crc32c || s.long(sSum) != sum {
		return "", false
	}
	if s.long(sIncompatible)&journalDevice != 0 || s.long(sFlags)&forTests != 0 {
		return "", false
	}
	u := s[sUUID:]
	return fmt.Sprintf("%x-%x-%x-%x-%x", []byte(u[0:4]), []byte(u[4:6]), []byte(u[6:8]), []byte(u[8:10]), []byte(u[10:16])), true
}

// clean reports that an ext4 was taken down in order and that `e2fsck -p` would find nothing to do: there is no journal to
// replay, no file without a name to remove, no error on record, and no check due by the number of mounts or by time.
func clean(front []byte) bool {
	if _, proven := provenExt4(front); !proven {
		return false
	}
	s, _ := superblockIn(front)
	switch {
	case s.short(sState)&(valid|withErrors) != valid, s.long(sErrorCount) != 0:
		return false
	case s.long(sIncompatible)&needsReplay != 0, s.long(sReadOnlyCompatible)&orphansFound != 0, s.long(sLastOrphan) != 0:
		return false
	}
	return int16(s.short(sMaxMountCount)) <= 0 && s.long(sCheckInterval) == 0
}

// extSize returns the number of blocks in the superblock of an ext4 and their size, none where there is no superblock. One
// that was resized a moment ago may say less than is true.
func extSize(front []byte) (blocks, blockSize int64) {
	s, found := superblockIn(front)
	if !found || s.long(sLogBlockSize) > mostLog {
		return 0, 1
	}
	blocks = int64(s.long(sBlocks))
	if s.long(sIncompatible)&is64bit != 0 {
		blocks |= int64(s.long(sBlocksHigh)) << 32
	}
	return blocks, 1024 << s.long(sLogBlockSize)
}
