//go:build linux

package linux

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ext4File makes an ext4 in a file, with options of mkfs, and has debugfs do what it is told.
func ext4File(t *testing.T, options, told []string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ext4")
	tool(t, "mkfs.ext4", append(append([]string{"-q", "-U", someUUID}, options...), file, "16M")...)
	for _, one := range told {
		tool(t, "debugfs", "-w", "-R", one, file)
	}
	return file
}

func frontOf(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	must(t, err)
	return content[:frontSize]
}

// isCleanTo reports what e2fsck thinks of a copy of the file.
func isCleanTo(t *testing.T, file string) bool {
	t.Helper()
	path, err := find("e2fsck")
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	backup := filepath.Join(t.TempDir(), "copy")
	content, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(backup, content, 0o600))
	out, err := exec.CommandContext(t.Context(), path, "-p", backup).CombinedOutput()
	return err == nil && strings.HasPrefix(string(out), backup+": clean, ")
}

func TestClean(t *testing.T) {
	for _, c := range []struct {
		name          string
		options, told []string
		want, fsck    bool
	}{
		{name: "new", want: true, fsck: true},
		{name: "with another block size", options: []string{"-b", "1024"}, want: true, fsck: true},
		{name: "with errors", told: []string{"ssv state 3"}},
		{name: "not taken down", told: []string{"ssv state 0"}},
		{name: "an error on record", told: []string{"ssv error_count 3"}, fsck: true},
		{name: "a file without a name", told: []string{"ssv last_orphan 12"}},
		{name: "a journal to replay", told: []string{"feature needs_recovery"}},
		{name: "orphans in their file", options: []string{"-O", "orphan_file"}, told: []string{"feature orphan_present"}},
		{name: "a check due by mounts", told: []string{"ssv max_mnt_count 5", "ssv mnt_count 6"}},
		{name: "a check by mounts not due", told: []string{"ssv max_mnt_count 5"}, fsck: true},
		{name: "a check due by time", told: []string{"ssv checkinterval 10", "ssv lastcheck 20200101000000"}},
		{name: "without checksums", options: []string{"-O", "^metadata_csum"}, fsck: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := ext4File(t, c.options, c.told)
			if got := clean(frontOf(t, file)); got != c.want {
				t.Errorf("clean: got %t, want %t", got, c.want)
			}
			if got := isCleanTo(t, file); got != c.fsck {
				t.Errorf("e2fsck finds nothing to do: got %t, want %t", got, c.fsck)
			}
		})
	}
}

func TestProvenExt4(t *testing.T) {
	sound := frontOf(t, ext4File(t, nil, nil))
	if uuid, proven := provenExt4(sound); !proven || uuid != someUUID {
		t.Errorf("a new one: got %s, %t, want %s", uuid, proven, someUUID)
	}
	changed := func(at int, to byte) []byte {
		front := bytes.Clone(sound)
		front[at] = to
		return front
	}
	for name, front := range map[string][]byte{
		"nothing":                nil,
		"zeros":                  make([]byte, frontSize),
		"cut off":                sound[:superblockAt+superblockSize-1],
		"another bit":            changed(superblockAt+sUUID, sound[superblockAt+sUUID]^1),
		"another checksum":       changed(superblockAt+sSum, sound[superblockAt+sSum]^1),
		"something before it":    changed(512, 'L'),
		"a journal of its own":   frontOf(t, ext4File(t, []string{"-O", "journal_dev"}, nil)),
		"one without checksums":  frontOf(t, ext4File(t, []string{"-O", "^metadata_csum"}, nil)),
		"one of another program": frontOf(t, ext4File(t, nil, []string{"ssv flags 4"})),
	} {
		if uuid, proven := provenExt4(front); proven || clean(front) {
			t.Errorf("%s: got %s, want none", name, uuid)
		}
	}
}

func FuzzProvenExt4(f *testing.F) {
	f.Add(make([]byte, frontSize))
	f.Fuzz(func(t *testing.T, front []byte) {
		uuid, proven := provenExt4(front)
		if proven && !uuidForm.MatchString(uuid) {
			t.Errorf("got %q, want a UUID", uuid)
		}
		if clean(front) && !proven {
			t.Error("clean and not proven")
		}
		if blocks, size := extSize(front); blocks < 0 || size < 1 {
			t.Errorf("got %d blocks of %d", blocks, size)
		}
	})
}
