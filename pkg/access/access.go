// Package access reads from a request how a volume is to be used and how large it is to be.
//
// It judges by the request alone, asks nobody and keeps no state; every function may
// be called from any goroutine. Capabilities that cannot be had are Invalid, as the
// specification says of a field that is not supported; sizes that cannot be had
// are OutOfRange.
package access

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Mode says how many nodes use a volume at once, and which of them write. The numbers
// are those of the specification's AccessMode.
type Mode int

// The modes, and what Kubernetes calls them.
const (
	SingleNodeWriter       = Mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)        // ReadWriteOnce of old
	SingleNodeReader       = Mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)   // not in Kubernetes
	MultiNodeReader        = Mode(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)    // ReadOnlyMany
	MultiNodeSingleWriter  = Mode(csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER)  // not in Kubernetes
	MultiNodeMultiWriter   = Mode(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)   // ReadWriteMany
	SingleNodeSingleWriter = Mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER) // ReadWriteOncePod
	SingleNodeMultiWriter  = Mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)  // ReadWriteOnce
)

// Writers says how many nodes may write to a volume at once.
type Writers int

// The numbers of writing nodes.
const (
	NoWriter Writers = iota
	OneWriter
	ManyWriters
)

// traits is a row of the table of modes.
type traits struct {
	name       string
	singleNode bool
	writers    Writers
	onePublish bool
}

var modes = map[Mode]traits{
	SingleNodeWriter:       {"single node writer", true, OneWriter, false},
	SingleNodeReader:       {"single node reader", true, NoWriter, false},
	MultiNodeReader:        {"multi node reader", false, NoWriter, false},
	MultiNodeSingleWriter:  {"multi node single writer", false, OneWriter, false},
	MultiNodeMultiWriter:   {"multi node multi writer", false, ManyWriters, false},
	SingleNodeSingleWriter: {"single node single writer", true, OneWriter, true},
	SingleNodeMultiWriter:  {"single node multi writer", true, OneWriter, false},
}

// String returns the mode's name in words.
func (m Mode) String() string {
	if row, known := modes[m]; known {
		return row.name
	}
	return fmt.Sprintf("mode %d", int(m))
}

// SingleNode reports whether the volume may be attached to one node only at a time.
func (m Mode) SingleNode() bool { return modes[m].singleNode }

// Writers returns how many nodes may write at once. Several workloads on one node are
// one writer, because there the kernel keeps them apart.
func (m Mode) Writers() Writers { return modes[m].writers }

// ReadOnly reports whether nobody writes.
func (m Mode) ReadOnly() bool { return modes[m].writers == NoWriter }

// OnePublish reports whether the volume may be published at one path only at a time, to one
// workload.
func (m Mode) OnePublish() bool { return modes[m].onePublish }

// A Capability is one way in which a volume is to be used.
type Capability struct {
	// Block means a raw block device; otherwise there is a filesystem.
	Block bool
	// FSType is ext4, xfs or "" for whichever the volume is made with. Always "" with Block.
	FSType string
	// MountFlags are options for the mount, as given. The specification counts them among
	// what may be sensitive, so they stay out of logs and errors.
	MountFlags []string
	// Mode says who uses the volume at once.
	Mode Mode
}

// The filesystems that can be asked for.
var filesystems = []string{"ext4", "xfs"}

// maxFlags bounds the mount flags in bytes (CSI specification, MountVolume.mount_flags).
const maxFlags = 4 << 10

// wrongFlags are words that the mount command takes for another task than mounting a
// filesystem of a device.
var wrongFlags = []string{"bind", "rbind", "move", "remount", "loop", "shared", "rshared", "slave", "rslave",
	"private", "rprivate", "unbindable", "runbindable"}

// Read reads one capability. What is not supported, not understood or contradicts itself
// is Invalid, with the reason.
func Read(c *csi.VolumeCapability) (Capability, error) {
	mode := Mode(c.GetAccessMode().GetMode())
	if _, known := modes[mode]; !known {
		return Capability{}, invalid("volume capability: access mode is missing or unknown: %d", int(mode))
	}
	switch kind := c.GetAccessType().(type) {
	case *csi.VolumeCapability_Block:
		return Capability{Block: true, Mode: mode}, nil
	case *csi.VolumeCapability_Mount:
		return readMount(kind.Mount, mode)
	}
	return Capability{}, invalid("volume capability: neither block nor mount")
}

func readMount(mount *csi.VolumeCapability_MountVolume, mode Mode) (Capability, error) {
	c := Capability{FSType: mount.GetFsType(), MountFlags: mount.GetMountFlags(), Mode: mode}
	switch {
	case mode.Writers() != NoWriter && !mode.SingleNode():
		return Capability{}, invalid("volume capability: a filesystem cannot be had for %s, because ext4 and xfs can be mounted by one node only while it writes; use a raw block volume", mode)
	case mount.GetVolumeMountGroup() != "":
		return Capability{}, invalid("volume capability: a mount group is not supported: ext4 and xfs have no such mount option")
	case c.FSType != "" && !slices.Contains(filesystems, c.FSType):
		return Capability{}, invalid("volume capability: filesystem %q is not one of %s", c.FSType, strings.Join(filesystems, ", "))
	}
	if err := checkFlags(c.MountFlags, mode); err != nil {
		return Capability{}, fmt.Errorf("volume capability: %w", err)
	}
	return c, nil
}

// checkFlags checks mount flags, each of which may be a comma list. Errors name the place
// of a flag and not its text.
func checkFlags(flags []string, mode Mode) error {
	size, reads, writes := 0, false, false
	for i, flag := range flags {
		size += len(flag)
		if !utf8.ValidString(flag) || strings.ContainsFunc(flag, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return invalid("mount flag %d has characters that cannot be printed", i+1)
		}
		for word := range strings.SplitSeq(flag, ",") {
			name, _, _ := strings.Cut(word, "=")
			switch {
			case strings.TrimSpace(word) != word || word == "":
				return invalid("mount flag %d is empty or has a blank at an end", i+1)
			case slices.Contains(wrongFlags, name):
				return invalid("mount flag %d: %s is no option of a filesystem", i+1, name)
			}
			reads, writes = reads || word == "ro", writes || word == "rw"
		}
	}
	switch {
	case size > maxFlags:
		return invalid("mount flags: %d bytes where the CSI specification allows %d", size, maxFlags)
	case reads && writes:
		return invalid("mount flags: ro and rw contradict each other")
	case writes && mode.ReadOnly():
		return invalid("mount flags: rw contradicts the access mode %s", mode)
	}
	return nil
}

// Capabilities are all the ways in which one volume is to be usable, one at a time.
type Capabilities []Capability

// ReadAll reads the capabilities of a volume: at least one. Besides what [Read] refuses,
// those are Invalid that no one volume can have together: raw block and a filesystem,
// because the data of either destroys the other, and two types of filesystem. Different
// access modes go together.
func ReadAll(list []*csi.VolumeCapability) (Capabilities, error) {
	if len(list) == 0 {
		return nil, invalid("volume capabilities: none")
	}
	var all Capabilities
	for _, one := range list {
		capability, err := Read(one)
		if err != nil {
			return nil, err
		}
		if len(all) > 0 && capability.Block != all[0].Block {
			return nil, invalid("volume capabilities: one volume cannot be both raw block and a filesystem")
		}
		before := all.FSType()
		if before != "" && capability.FSType != "" && capability.FSType != before {
			return nil, invalid("volume capabilities: one volume cannot be both %s and %s", before, capability.FSType)
		}
		all = append(all, capability)
	}
	return all, nil
}

// Block reports whether the volume is to be a raw block device.
func (c Capabilities) Block() bool {
	return slices.ContainsFunc(c, func(one Capability) bool { return one.Block })
}

// FSType returns the filesystem that the volume is to have, or "" if nothing says.
func (c Capabilities) FSType() string {
	for _, one := range c {
		if one.FSType != "" {
			return one.FSType
		}
	}
	return ""
}

// SingleWriter reports whether some use relies on one node being the only one that writes. The
// image needs the exclusive-lock feature then, without which a superseded writer
// cannot be stopped.
func (c Capabilities) SingleWriter() bool {
	return slices.ContainsFunc(c, func(one Capability) bool { return one.Mode.Writers() == OneWriter })
}

// invalid returns an Invalid error with the text that format makes.
func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, fault.Invalid)...)
}
