package mapper

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// settingPrefixes begin the settings of librbd that a class may choose: those that change how fast
// an image is, and none that changes what is promised for its data.
var settingPrefixes = []string{"rbd_cache", "rbd_readahead_", "rbd_qos_", "rbd_read_from_replica_policy"}

// A Setting is one of librbd's.
type Setting struct{ Key, Value string }

// String returns KEY=VALUE.
func (s Setting) String() string { return s.Key + "=" + s.Value }

const (
	cachePolicy  = "rbd_cache_policy"
	writeThrough = "writethrough"
)

// HonestWrites are the settings with which librbd says of a write that it is done when the cluster has
// it, and not before. A mapper on librbd holds them whatever ceph.conf says; with rbd_cache=true in a class
// there is a cache for reads.
//
// By default librbd says so at once (rbd_cache_policy=writearound, Ceph 16 to 20), and a write that the
// cluster refuses meanwhile is told to nobody but to a flush that waits for it: one that comes a moment later
// succeeds (WriteAroundObjectDispatch::flush returns early when nothing is under way). A database would take
// that for synced. The page cache is above the device, and so there is nothing to gain from it.
func HonestWrites() []Setting {
	return []Setting{{"rbd_cache", "false"}, {cachePolicy, writeThrough}}
}

// CheckSetting returns fault.Invalid for an option that is not KEY=VALUE with a KEY that begins with
// rbd_cache, rbd_readahead_, rbd_qos_ or rbd_read_from_replica_policy and has lower-case letters, digits and
// underlines alone, and for one that HonestWrites rules out. Whether librbd knows the key and takes the value
// is not looked at.
func CheckSetting(option string) error {
	key, value, _ := strings.Cut(option, "=")
	begins := func(prefix string) bool { return strings.HasPrefix(key, prefix) }
	// Ceph takes other characters in place of an underline too.
	other := func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') }
	switch {
	case value == "" || !slices.ContainsFunc(settingPrefixes, begins) || strings.ContainsFunc(key, other):
		return fmt.Errorf("wanted is KEY=VALUE with a KEY that begins with %s: %w", strings.Join(settingPrefixes, ", "), fault.Invalid)
	case key == cachePolicy && value != writeThrough:
		return fmt.Errorf("only %s=%s tells every error of a write to a sync: %w", cachePolicy, writeThrough, fault.Invalid)
	}
	return nil
}
