//go:build linux

package linux

import (
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// extBase is what every ext4 gets that the caller does not change.
const extBase = "-O none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit," +
	"flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed"

func TestArguments(t *testing.T) {
	const newUsage = "/* inode size */ [-i perblock=n,exchange=0|1] /* naming */ [-n size=num,parent=0|1] [-m metadir=0|1]"
	for _, c := range []struct {
		name, usage string
		spec        filesystem.Format
		want        string
	}{
		{
			name: "ext4 on an image without objects",
			spec: filesystem.Format{Type: filesystem.Ext4, Zeroed: true},
			want: "-q -b 4096 -m 0 -e remount-ro " + extBase + " -E nodiscard,assume_storage_prezeroed=1 -U " + someUUID,
		}, {
			name: "ext4 on a device that may hold anything",
			spec: filesystem.Format{Type: filesystem.Ext4, Redo: true},
			want: "-q -b 4096 -m 0 -e remount-ro " + extBase + " -E nodiscard,lazy_itable_init=1,lazy_journal_init=0 -U " + someUUID,
		}, {
			name: "ext4 with options that replace and that add",
			spec: filesystem.Format{Type: filesystem.Ext4, Zeroed: true, Options: []string{"-m1", "-b", "1024", "-T", "news"}},
			want: "-q -b 1024 -m 1 -e remount-ro " + extBase + " -E nodiscard,assume_storage_prezeroed=1 -T news -U " + someUUID,
		}, {
			name: "ext4 with one feature less and one extended option more",
			spec: filesystem.Format{Type: filesystem.Ext4, Zeroed: true, Options: []string{"-O", "^64bit,casefold", "-Estride=4,discard"}},
			want: "-q -b 4096 -m 0 -e remount-ro " + strings.Replace(extBase, ",64bit", "", 1) +
				",^64bit,casefold -E nodiscard,assume_storage_prezeroed=1,stride=4,discard -U " + someUUID,
		}, {
			name: "ext4 with letters in one word",
			spec: filesystem.Format{Type: filesystem.Ext4, Zeroed: true, Options: []string{"-Dqm", "2", "-jL", "name"}},
			want: "-q -b 4096 -m 2 -e remount-ro " + extBase + " -E nodiscard,assume_storage_prezeroed=1 -D -q -j -L name -U " + someUUID,
		}, {
			name: "xfs",
			spec: filesystem.Format{Type: filesystem.XFS, Zeroed: true},
			want: "-q -K -m crc=1,finobt=1,rmapbt=0,reflink=1,bigtime=1,inobtcount=1,uuid=" + someUUID + " -i sparse=1,nrext64=0",
		}, {
			name:  "xfs with tools that know more",
			usage: newUsage,
			spec:  filesystem.Format{Type: filesystem.XFS},
			want: "-q -K -m crc=1,finobt=1,rmapbt=0,reflink=1,bigtime=1,inobtcount=1,metadir=0,uuid=" + someUUID +
				" -i sparse=1,nrext64=0,exchange=0 -n parent=0",
		}, {
			name:  "xfs with options of the caller",
			usage: newUsage,
			spec:  filesystem.Format{Type: filesystem.XFS, Options: []string{"-m", "bigtime=0,rmapbt=1", "-i", "exchange=1,size=1024", "-L", "a,b"}},
			want: "-q -K -m crc=1,finobt=1,reflink=1,inobtcount=1,metadir=0,bigtime=0,rmapbt=1,uuid=" + someUUID +
				" -i sparse=1,nrext64=0,exchange=1,size=1024 -n parent=0 -L a,b",
		}, {
			name: "no option wins over the UUID",
			spec: filesystem.Format{Type: filesystem.XFS, Options: []string{"-m", "uuid=00000000-0000-0000-0000-000000000000"}},
			want: "-q -K -m crc=1,finobt=1,rmapbt=0,reflink=1,bigtime=1,inobtcount=1,uuid=" + someUUID + " -i sparse=1,nrext64=0",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.UUID = someUUID
			args, err := arguments(c.spec, c.usage)
			if got := strings.Join(args, " "); err != nil || got != c.want {
				t.Errorf("got  %s, %v\nwant %s", got, err, c.want)
			}
		})
	}
}

func TestArgumentsRefused(t *testing.T) {
	for _, c := range []struct {
		name    string
		kind    filesystem.Type
		options []string
	}{
		{"another type", "btrfs", nil},
		{"a device", filesystem.Ext4, []string{"/dev/sda"}},
		{"a size", filesystem.Ext4, []string{"-q", "1000"}},
		{"a word that would do with a hyphen", filesystem.Ext4, []string{"m0"}},
		{"a hyphen", filesystem.Ext4, []string{"-"}},
		{"an empty word", filesystem.Ext4, []string{""}},
		{"a long option", filesystem.Ext4, []string{"--force"}},
		{"the end of options", filesystem.XFS, []string{"--", "/dev/sda"}},
		{"force", filesystem.Ext4, []string{"-F"}},
		{"force among others", filesystem.Ext4, []string{"-qF"}},
		{"force for xfs", filesystem.XFS, []string{"-f"}},
		{"a UUID", filesystem.Ext4, []string{"-U", "random"}},
		{"another type by mke2fs", filesystem.Ext4, []string{"-t", "ext3"}},
		{"content from a folder", filesystem.Ext4, []string{"-d", "/etc"}},
		{"another device for real-time", filesystem.XFS, []string{"-r", "rtdev=/dev/sda"}},
		{"a file of options", filesystem.XFS, []string{"-c", "options=/etc/passwd"}},
		{"no value", filesystem.Ext4, []string{"-m"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args, err := arguments(filesystem.Format{Type: c.kind, UUID: someUUID, Options: c.options}, "")
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("got %q, %v, want it invalid", args, err)
			}
		})
	}
}

// FuzzArguments checks that whatever the caller's options are, no word of the command line can
// be taken for a device, and the UUID and no force are among them.
func FuzzArguments(f *testing.F) {
	f.Add("-m 0 -E stride=4", true)
	f.Add("-qm0 -O ^64bit", true)
	f.Add("-m crc=1 -i size=512", false)
	f.Add("/dev/sda", false)
	f.Fuzz(func(t *testing.T, words string, ext bool) {
		spec := filesystem.Format{Type: filesystem.XFS, UUID: someUUID, Options: strings.Fields(words)}
		if ext {
			spec.Type = filesystem.Ext4
		}
		args, err := arguments(spec, "")
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v, want it invalid", err)
			}
			return
		}
		valued := dialects[spec.Type].valued + "U"
		foundUUID := false
		for i := 0; i < len(args); i++ {
			if len(args[i]) != 2 || args[i][0] != '-' || strings.ContainsAny(args[i], "Ff") {
				t.Fatalf("word %d of %q is no option that is allowed", i, args)
			}
			if strings.IndexByte(valued, args[i][1]) >= 0 {
				i++
				foundUUID = foundUUID || strings.HasSuffix(args[i], someUUID)
			}
		}
		if !foundUUID {
			t.Errorf("got %q, want the UUID %s in it", args, someUUID)
		}
	})
}
