package volid

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Lengths in bytes.
const (
	// MaxRequest is the longest name that a request may give a volume or snapshot
	// (CSI specification, Size Limits).
	MaxRequest = 128
	// MaxPrefix is the longest prefix that a class may put before its images' names.
	MaxPrefix = 24

	// hashedLength is the length of "%h" and 16 bytes in base32.
	hashedLength = len("%h") + 26
)

// ImageName returns the name in pool of the image for the volume that a request calls
// request, with the class's prefix in front (empty, or what [CheckPrefix] allows).
// It follows from its arguments alone, so a repeated request finds its own
// earlier work, and two different requests in one class never have the same name. The
// first of three forms is taken that leaves the handle within [MaxVolume]:
//
//	plain     pvc-0b6c...         the request's name, if A-Z a-z 0-9 . _ - are enough for it
//	escaped   a%2Fb               each other byte as % and two upper-case hexadecimal digits
//	hashed    %hc3ab8f...         % and h and 128 bits of its SHA-256 in lower-case base32
//
// No two forms collide: the plain one has no %, and "h" is no hexadecimal digit. The
// names "." and ".." and a leading "-" are escaped too, because shells and rbd's
// command line take them for something else. Names that begin with the prefix, %
// and another lower-case letter than h are never returned and are free for the
// driver's own scratch and tombstone images.
//
// A request name that is empty, longer than 128 bytes or not valid UTF-8, a wrong
// prefix, and a pool whose names are so long that no form fits, are Invalid.
// Classes with different prefixes can share a name ("a" and "bc", "ab" and "c"): an
// image's own record of its request tells whose it is.
func ImageName(pool Pool, prefix, request string) (string, error) {
	if err := checkRequest(request); err != nil {
		return "", fmt.Errorf("name of the volume: %w", err)
	}
	if err := CheckPrefix(prefix); err != nil {
		return "", err
	}
	before := len(pool.String()) + len("/") + len(prefix)
	name, excess := fit(request, MaxVolume-before)
	if excess > 0 {
		return "", fmt.Errorf("names of cluster, pool, namespace and name prefix in %s/%s are together %d bytes too long for a handle of %d with snapshots: %w",
			pool, prefix, excess, MaxHandle, fault.Invalid)
	}
	return prefix + name, nil
}

// SnapshotName returns the name of the RBD snapshot of image for the snapshot that a
// request calls request. The forms and the errors are those of [ImageName], with
// [MaxHandle] as the bound for the snapshot's handle. The form depends on the length
// of image's handle, so one request can have different names on different images.
//
// An image whose handle is longer than [MaxVolume], which only one made by
// hand can be, may have no room for snapshots, and that is Invalid.
func SnapshotName(image Image, request string) (string, error) {
	if err := checkRequest(request); err != nil {
		return "", fmt.Errorf("name of the snapshot: %w", err)
	}
	around := len(image.String()) + len("@") + len("#") + MaxImageID
	name, excess := fit(request, MaxHandle-around)
	if excess > 0 {
		return "", fmt.Errorf("volume %s is %d bytes too long for its snapshots to have handles of %d: %w",
			image, excess, MaxHandle, fault.Invalid)
	}
	return name, nil
}

// CheckPrefix returns an Invalid error unless prefix can stand before image names: at
// most 24 characters of A-Z a-z 0-9 . _ -, not beginning with "-". It may be empty.
func CheckPrefix(prefix string) error {
	odd := strings.ContainsFunc(prefix, func(r rune) bool { return r >= utf8.RuneSelf || !isPlain(byte(r)) })
	if len(prefix) > MaxPrefix || odd || strings.HasPrefix(prefix, "-") {
		return fmt.Errorf("name prefix %s: allowed are up to %d characters of A-Z a-z 0-9 . _ - that do not begin with -: %w",
			quote(prefix), MaxPrefix, fault.Invalid)
	}
	return nil
}

func checkRequest(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("empty: %w", fault.Invalid)
	case len(name) > MaxRequest:
		return fmt.Errorf("%d bytes where the CSI specification allows %d: %w", len(name), MaxRequest, fault.Invalid)
	case !utf8.ValidString(name):
		return fmt.Errorf("%s is not valid UTF-8: %w", quote(name), fault.Invalid)
	}
	return nil
}

// fit returns the first form of request with at most room bytes, or by how many
// bytes the shortest of them exceeds it.
func fit(request string, room int) (name string, excess int) {
	escaped := escape(request)
	if len(escaped) <= room {
		return escaped, 0
	}
	if hashedLength <= room {
		return hash(request), 0
	}
	return "", min(len(escaped), hashedLength) - room
}

// escape returns request with each byte that is not plain as %XX. It is request
// itself where all are.
func escape(request string) string {
	dots := request == "." || request == ".."
	var out strings.Builder
	for i := range len(request) {
		b := request[i]
		if !isPlain(b) || dots || b == '-' && i == 0 {
			fmt.Fprintf(&out, "%%%02X", b)
		} else {
			out.WriteByte(b)
		}
	}
	return out.String()
}

// hash returns %h and the first 128 bits of request's SHA-256 in base32.
func hash(request string) string {
	sum := sha256.Sum256([]byte(request))
	text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16])
	return "%h" + strings.ToLower(text)
}

func isPlain(b byte) bool { return isAlphanumeric(b) || b == '.' || b == '_' || b == '-' }
