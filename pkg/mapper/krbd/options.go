package krbd

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A version is a release of Linux.
type version struct{ major, minor int }

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func (v version) before(other version) bool {
	return v.major < other.major || v.major == other.major && v.minor < other.minor
}

// parseVersion reads the beginning of what uname -r prints.
func parseVersion(release string) (version, bool) {
	var v version
	_, err := fmt.Sscanf(release, "%d.%d", &v.major, &v.minor)
	return v, err == nil
}

// An option is a map option that a class may choose.
type option struct {
	name  string
	since version
	// values says what its value may be; nil: it has none.
	values func(value string) bool
	wanted string // the same in words
}

// The names of options that this package itself looks at.
const (
	optionMode         = "ms_mode"
	optionMountTimeout = "mount_timeout"
)

// known are the map options of the kernel that a class may choose (rbd(8), "Kernel rbd (krbd)
// options"), with the versions from there. Left out are those that the driver sets: share and
// noshare, ro and rw, name, key and secret, fsid, ip and _pool_ns.
var known = []option{
	{"mount_timeout", version{2, 6}, seconds, "a number of seconds, 1 to 3600"},
	{"osdkeepalive", version{2, 6}, seconds, "a number of seconds, 1 to 3600"},
	{"osd_idle_ttl", version{2, 6}, seconds, "a number of seconds, 1 to 3600"},
	{"crc", version{2, 6}, nil, ""},
	{"nocrc", version{2, 6}, nil, ""},
	{"cephx_require_signatures", version{3, 19}, nil, ""},
	{"nocephx_require_signatures", version{3, 19}, nil, ""},
	{"tcp_nodelay", version{4, 0}, nil, ""},
	{"notcp_nodelay", version{4, 0}, nil, ""},
	{"queue_depth", version{4, 2}, number(1, 1<<20), "a number, 1 to 1048576"},
	{"cephx_sign_messages", version{4, 4}, nil, ""},
	{"nocephx_sign_messages", version{4, 4}, nil, ""},
	{"lock_on_read", version{4, 9}, nil, ""},
	{"osd_request_timeout", version{4, 12}, number(0, 3600), "a number of seconds, 0 (none) to 3600"},
	{"exclusive", version{4, 12}, nil, ""},
	{"lock_timeout", version{4, 17}, number(0, 3600), "a number of seconds, 0 (none) to 3600"},
	{"notrim", version{4, 17}, nil, ""},
	{"abort_on_full", version{5, 0}, nil, ""},
	{"alloc_size", version{5, 1}, powerOfTwo, "a power of two, 512 to 33554432"},
	{"crush_location", version{5, 8}, location, "TYPE:NAME|TYPE:NAME..., a host:a|rack:b for instance"},
	{"read_from_replica", version{5, 8}, oneOf("no", "balance", "localize"), "no, balance or localize"},
	{"compression_hint", version{5, 8}, oneOf("none", "compressible", "incompressible"), "none, compressible or incompressible"},
	{"ms_mode", version{5, 11}, oneOf("legacy", "crc", "secure", "prefer-crc", "prefer-secure"), "legacy, crc, secure, prefer-crc or prefer-secure"},
	{"rxbounce", version{5, 17}, nil, ""},
}

func oneOf(words ...string) func(string) bool {
	return func(value string) bool { return slices.Contains(words, value) }
}

func number(least, most int) func(string) bool {
	return func(value string) bool {
		n, err := strconv.Atoi(value)
		return err == nil && n >= least && n <= most && strconv.Itoa(n) == value
	}
}

func seconds(value string) bool { return number(1, 3600)(value) }

func powerOfTwo(value string) bool {
	n, _ := strconv.Atoi(value)
	return number(512, 32<<20)(value) && n&(n-1) == 0
}

func location(value string) bool {
	for pair := range strings.SplitSeq(value, "|") {
		kind, name, found := strings.Cut(pair, ":")
		if !found || !bucketName(kind) || !bucketName(name) {
			return false
		}
	}
	return true
}

// bucketName reports whether a text is a CRUSH name (is_valid_crush_name in Ceph's CrushWrapper).
func bucketName(text string) bool {
	return text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

// CheckOptions returns fault.Invalid, with its name, for an option that the kernel's client does
// not know, that the driver sets itself, that has a value which cannot be, or that is there
// twice. What the running kernel lacks Map says, with fault.Unsupported.
//
// An option is NAME or NAME=VALUE, and one of: abort_on_full, alloc_size, cephx_require_signatures,
// cephx_sign_messages, compression_hint, crc, crush_location, exclusive, lock_on_read, lock_timeout,
// mount_timeout, ms_mode, notrim, osd_idle_ttl, osd_request_timeout, osdkeepalive, queue_depth,
// read_from_replica, rxbounce, tcp_nodelay, and with "no" before it crc, tcp_nodelay
// and the two of cephx.
func CheckOptions(options []string) error {
	seen := make(map[string]bool)
	for _, text := range options {
		name, value, given := strings.Cut(text, "=")
		one, err := optionNamed(name)
		switch {
		case err != nil:
			return err
		case seen[name]:
			return fmt.Errorf("option %q of mapper krbd is there twice: %w", name, fault.Invalid)
		case one.values == nil && given:
			return fmt.Errorf("option %q of mapper krbd takes no value: %w", name, fault.Invalid)
		case one.values != nil && !one.values(value):
			return fmt.Errorf("option %q of mapper krbd: wanted is %s: %w", text, one.wanted, fault.Invalid)
		}
		seen[name] = true
	}
	return nil
}

func optionNamed(name string) (option, error) {
	for _, one := range known {
		if one.name == name {
			return one, nil
		}
	}
	names := make([]string, len(known))
	for i, one := range known {
		names[i] = one.name
	}
	slices.Sort(names)
	return option{}, fmt.Errorf("option %q of mapper krbd: wanted is one of %s: %w", name, strings.Join(names, ", "), fault.Invalid)
}

// valueOf returns the value of an option, or nothing if it was not chosen.
func valueOf(options []string, name string) string {
	for _, text := range options {
		if key, value, _ := strings.Cut(text, "="); key == name {
			return value
		}
	}
	return ""
}

// optionsLack says which option is too new for a kernel. One whose version cannot
// be read is left to say it itself.
func optionsLack(options []string, release string) error {
	running, ok := parseVersion(release)
	for _, text := range options {
		name, _, _ := strings.Cut(text, "=")
		one, err := optionNamed(name)
		if err == nil && ok && running.before(one.since) {
			return fmt.Errorf("option %q wants Linux %s, and this is %s: %w", name, one.since, release, fault.Unsupported)
		}
	}
	return nil
}
