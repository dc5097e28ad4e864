// Package params reads the string maps that Kubernetes hands to the driver, and
// writes those that come back to it: one type and one parser for each map.
//
//	CreateVolume, GetCapacity: parameters     Class           ParseClass, Class.Map
//	volume_context                            VolumeContext   ParseVolumeContext, VolumeContext.Map
//	publish_context                           PublishContext  ParsePublishContext, PublishContext.Map
//	secrets                                   Credentials     ParseSecrets
//	mutable_parameters                        (none yet)      CheckMutable
//	CreateSnapshot and its group: parameters  (none yet)      CheckSnapshotClass
//
// Each map is a table of its keys, with the reading, the check and the writing of each
// beside the other. Three rules hold for all of them.
//
// A key with an empty value counts as not given, because templates that leave a
// value out often write the key with "".
//
// A key that is not known is refused by name where a person wrote the map for
// us alone (parameters, mutable parameters), since a misspelt key would otherwise be
// a default in silence. It is left alone where others write too (volume context,
// publish context, secrets).
//
// Whatever is refused is a fault.Invalid that names the key and says what is allowed. No
// error quotes the value of a secret or of a map option, or the value of an unknown key.
//
// Volume contexts are kept by Kubernetes for years, so what one release wrote is
// read by every later one. The package keeps no state; every function may be called
// from any goroutine.
package params

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// entry is a row of a table: one key of a map that is read into a T.
type entry[T any] struct {
	key string
	// peer is what classes written for ceph-csi call it, for the hint in an error.
	peer string
	// set checks value, which is not empty, and puts it into t.
	set func(t *T, value string) error
	// get returns the value that stands for t, and "" where it need not be
	// given because it is the default.
	get func(t T) string
}

// A table lists the keys of one map.
type table[T any] []entry[T]

// read puts the values of m into t. Unknown is asked about the keys that are not in the
// table; the first error in the order of the keys counts, so that a repeated
// request gets the same one.
func (table table[T]) read(t *T, m map[string]string, unknown func(key string) error) error {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		entry, known := table.find(key)
		if !known {
			if err := unknown(key); err != nil {
				return err
			}
			continue
		}
		if m[key] == "" {
			continue
		}
		if err := entry.set(t, m[key]); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// write returns the map that read would make t from.
func (table table[T]) write(t T) map[string]string {
	m := make(map[string]string, len(table))
	for _, entry := range table {
		if value := entry.get(t); value != "" {
			m[entry.key] = value
		}
	}
	return m
}

func (table table[T]) find(key string) (entry[T], bool) {
	i := slices.IndexFunc(table, func(e entry[T]) bool { return e.key == key })
	if i < 0 {
		return entry[T]{}, false
	}
	return table[i], true
}

// refuse returns the error for a key that is not in the table, with the key that was
// probably meant or else with all of them.
func (table table[T]) refuse(key string) error {
	if meant := table.meant(key); meant != "" {
		return invalid("unknown key %q: did you mean %q?", key, meant)
	}
	var keys []string
	for _, entry := range table {
		keys = append(keys, entry.key)
	}
	return invalid("unknown key %q: known are %s", key, strings.Join(keys, ", "))
}

// meant returns the nearest key that is at most two edits away from key, whatever the
// case of its letters and its dashes, or the one that ceph-csi calls so, or "".
func (table table[T]) meant(key string) string {
	nearest, least := "", 3
	for _, entry := range table {
		if key != "" && key == entry.peer {
			return entry.key
		}
		if n := edits(plainly(key), plainly(entry.key)); n < least {
			nearest, least = entry.key, n
		}
	}
	return nearest
}

// plainly returns key as it would be written without regard to case and separators.
func plainly(key string) string {
	return strings.ToLower(strings.NewReplacer("-", "", "_", "", " ", "").Replace(key))
}

// edits returns how many bytes have to be put in, taken out or changed to make b of
// a (the Levenshtein distance), or at least 3 where the lengths differ so much that it is not
// worth counting.
func edits(a, b string) int {
	if len(a) > len(b)+2 || len(b) > len(a)+2 {
		return 3
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// invalid returns an Invalid error with the text that format makes.
func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, fault.Invalid)...)
}

// oneOf returns an Invalid error unless value is one of allowed.
func oneOf(value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return invalid("%q is not one of %s", value, strings.Join(allowed, ", "))
}

// elements returns the parts of a comma list without the blanks around them, or an
// Invalid error if one is empty.
func elements(list string) ([]string, error) {
	var out []string
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			return nil, invalid("an element of the comma list is empty")
		}
		out = append(out, part)
	}
	return out, nil
}

// printable reports whether text is made of printable ASCII without blanks.
func printable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > unicode.MaxASCII || r == 0x7f })
}
