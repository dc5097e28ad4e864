//go:build linux

package linux

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// A dialect is what there is to know of one mkfs.
type dialect struct {
	fixed  []string // arguments that come first and that nobody changes, before the UUID's
	uuid   func(uuid string) setting
	own    []setting // the driver's own options, without those that depend on the device
	plain  string    // letters that stand alone
	valued string    // letters that take a value
	lists  string    // those of valued whose value is a list, to which options of the caller are added
}

// A setting is an option of mkfs: a letter and its value, a list for some letters.
type setting struct {
	letter byte
	values []string
}

// extFeatures are all features of a new ext4, whatever mke2fs.conf of this release has:
// mke2fs 1.47 would add orphan_file, with which a kernel before 5.15 mounts a filesystem that
// was not unmounted only for reading. Every one of these is in Linux 4.18.
var extFeatures = []string{"none", "has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit",
	"flex_bg", "sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize", "metadata_csum", "metadata_csum_seed"}

// dialects has the options for volumes that hold databases on thin RBD images.
//
// ext4: blocks of 4 KiB also in a small volume, for it may grow; no reserve for root, who is
// nobody special in a pod; read-only once the metadata is seen to be damaged, rather than
// further damage.
//
// xfs: the features of Linux 5.10 (bigtime and inobtcount are of 5.10, reflink of 4.9);
// a class for older kernels gives "-m bigtime=0,inobtcount=0". The reverse mapping tree costs
// writes and serves scrubbing only.
//
// Neither discards the device: a new image has nothing to give back, and on a large one it
// would take a request for each of its objects.
var dialects = map[filesystem.Type]dialect{
	filesystem.Ext4: {
		fixed: []string{"-q"},
		uuid:  func(uuid string) setting { return setting{'U', []string{uuid}} },
		own: []setting{
			{'b', []string{"4096"}}, {'m', []string{"0"}}, {'e', []string{"remount-ro"}}, {'O', extFeatures},
		},
		plain: "DjKqv", valued: "bCeEgGiIJLmNOT", lists: "EO",
	},
	filesystem.XFS: {
		fixed: []string{"-q", "-K"},
		uuid:  func(uuid string) setting { return setting{'m', []string{"uuid=" + uuid}} },
		own: []setting{
			{'m', []string{"crc=1", "finobt=1", "rmapbt=0", "reflink=1", "bigtime=1", "inobtcount=1"}},
			{'i', []string{"sparse=1", "nrext64=0"}},
		},
		plain: "Kq", valued: "bdilLmns", lists: "bdilmns",
	},
}

// latecomers are features of xfs that newer tools turn on by themselves and that older
// tools do not know (exchange, parent: xfsprogs 6.10, Linux 6.10).
var latecomers = []setting{{'i', []string{"exchange=0"}}, {'n', []string{"parent=0"}}, {'m', []string{"metadir=0"}}}

// arguments returns the arguments of mkfs, without the device. The caller's options come after the
// driver's own and win over them, one by one: "-O ^metadata_csum" takes one feature away
// and leaves the others. The usage is what mkfs.xfs says of itself.
func arguments(spec filesystem.Format, usage string) ([]string, error) {
	speaks, known := dialects[spec.Type]
	if !known {
		return nil, fmt.Errorf("filesystem %q: %w", spec.Type, fault.Invalid)
	}
	theirs, err := speaks.read(spec.Options)
	if err != nil {
		return nil, fmt.Errorf("options of mkfs.%s: %w", spec.Type, err)
	}
	settings := slices.Clone(speaks.own)
	settings = speaks.add(settings, perDevice(spec))
	for _, late := range latecomers {
		if strings.Contains(usage, late.values[0]+"|1") {
			settings = speaks.add(settings, late)
		}
	}
	for _, one := range theirs {
		settings = speaks.add(settings, one)
	}
	// The UUID comes last, so that nothing wins over it.
	settings = speaks.add(settings, speaks.uuid(spec.UUID))

	args := slices.Clone(speaks.fixed)
	for _, s := range settings {
		args = append(args, "-"+string(s.letter))
		if len(s.values) > 0 {
			args = append(args, strings.Join(s.values, ","))
		}
	}
	return args, nil
}

// perDevice returns the options that depend on what the device holds.
//
// ext4's inode tables and journal have to read as zeros. On a device that does already,
// nothing is written. On another the inode tables are left to the kernel, which clears them
// after the first mount (lazy_itable_init), and the journal is cleared at once: what an
// interrupted mke2fs left there must never be replayed.
func perDevice(spec filesystem.Format) setting {
	switch {
	case spec.Type != filesystem.Ext4:
		return setting{}
	case spec.Zeroed:
		return setting{'E', []string{"nodiscard", "assume_storage_prezeroed=1"}}
	default:
		return setting{'E', []string{"nodiscard", "lazy_itable_init=1", "lazy_journal_init=0"}}
	}
}

// read takes the words of a command line apart as getopt does: "-m0", "-m 0" and "-qm 0" are
// all possible. A word that is no option would be taken for a device, and is fault.Invalid
// as any unknown letter is.
func (d dialect) read(words []string) ([]setting, error) {
	var settings []setting
	for i := 0; i < len(words); i++ {
		letters, isOption := strings.CutPrefix(words[i], "-")
		if !isOption || letters == "" {
			return nil, fmt.Errorf("%q is not an option: %w", words[i], fault.Invalid)
		}
		for ; letters != ""; letters = letters[1:] {
			letter := letters[0]
			if strings.IndexByte(d.plain, letter) >= 0 {
				settings = append(settings, setting{letter: letter})
				continue
			}
			if strings.IndexByte(d.valued, letter) < 0 {
				return nil, fmt.Errorf("%q: -%c is not allowed: %w", words[i], letter, fault.Invalid)
			}
			value := letters[1:]
			if value == "" {
				if i++; i == len(words) {
					return nil, fmt.Errorf("-%c lacks its value: %w", letter, fault.Invalid)
				}
				value = words[i]
			}
			settings = append(settings, d.setting(letter, value))
			break
		}
	}
	return settings, nil
}

func (d dialect) setting(letter byte, value string) setting {
	if strings.IndexByte(d.lists, letter) >= 0 {
		return setting{letter, strings.Split(value, ",")}
	}
	return setting{letter, []string{value}}
}

// add puts one setting after others. Of two with the same letter the later wins; for a
// list that goes for each element by its name.
func (d dialect) add(to []setting, s setting) []setting {
	if s.letter == 0 {
		return to
	}
	at := slices.IndexFunc(to, func(other setting) bool { return other.letter == s.letter })
	if at < 0 {
		return append(to, s)
	}
	to = slices.Clone(to)
	if strings.IndexByte(d.lists, s.letter) < 0 {
		to[at] = s
		return to
	}
	kept := slices.DeleteFunc(slices.Clone(to[at].values), func(value string) bool {
		return slices.ContainsFunc(s.values, func(other string) bool { return nameOf(other) == nameOf(value) })
	})
	to[at] = setting{s.letter, append(kept, s.values...)}
	return to
}

// nameOf returns the name of an element: of "size=512" and of "^size" it is size.
func nameOf(element string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(element, "^"), "=")
	return name
}
