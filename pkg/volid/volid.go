// Package volid holds the names by which volumes, snapshots and nodes are known
// outside the driver: the handles that Kubernetes keeps, the names that `rbd ls`
// shows, and the node IDs.
//
// A handle is the notation that Ceph's own tools use, with the cluster in front:
//
//	volume     CLUSTER:POOL[/NAMESPACE]/IMAGE
//	snapshot   CLUSTER:POOL[/NAMESPACE]/IMAGE@SNAPSHOT#IMAGEID
//	node       NAME:CHECKSUM
//
// Handles live for as long as the objects of Kubernetes that hold them, which is
// years, so the forms never change: a value that one release wrote is read by
// every later one. Each thing has exactly one spelling, because the sidecars
// compare handles as strings; a spelling that is understood but is not that one is
// refused with the right one in the error.
//
// # How 128 bytes are shared out
//
// The specification gives a handle 128 bytes ([MaxHandle]), and a volume is only
// useful if its snapshots have handles too:
//
//	volume handle + "@" + snapshot name + "#" + image ID <= 128
//
// An image ID has at most 14 bytes, and the shortest form that every snapshot name
// can take (see [SnapshotName]) has 28. So 1 + 28 + 1 + 14 = 44 bytes are kept free
// and a volume handle that we make has at most 84 ([MaxVolume]). The shortest
// form that every image name can take has 28 bytes as well, so that any volume name
// fits where "CLUSTER:POOL[/NAMESPACE]/" and the class's name prefix have at most 56
// bytes together. A claim of Kubernetes has a volume name of 40 bytes ("pvc-" and a UUID)
// and keeps it unchanged where they have at most 44; a snapshot ("snapshot-" and a
// UUID, 45 bytes) keeps its name where the volume handle has at most 67.
//
// Everything here is a pure function of its arguments and may be called from
// any goroutine.
package volid

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Lengths in bytes.
const (
	// MaxHandle is the longest volume or snapshot handle (CSI specification, Size Limits).
	MaxHandle = 128
	// MaxVolume is the longest volume handle that leaves room for snapshot handles.
	MaxVolume = MaxHandle - len("@") - hashedLength - len("#") - MaxImageID
	// MaxCluster is the longest name of a cluster.
	MaxCluster = 32
	// MaxImageID is the longest ID that librbd gives an image
	// (RBD_MAX_IMAGE_ID_LENGTH in Ceph's include/rbd_types.h).
	MaxImageID = 14
)

// A Pool is where images live: a pool of a cluster, and in it perhaps a namespace.
// The zero Namespace is the pool's default one.
type Pool struct {
	Cluster   string
	Pool      string
	Namespace string
}

// String returns CLUSTER:POOL[/NAMESPACE], which [ParsePool] reads.
func (p Pool) String() string {
	if p.Namespace == "" {
		return p.Cluster + ":" + p.Pool
	}
	return p.Cluster + ":" + p.Pool + "/" + p.Namespace
}

// Check returns an Invalid error that says what is wrong with which part of p, or nil.
func (p Pool) Check() error { return check(p) }

func (p Pool) checkParts() error {
	if err := CheckCluster(p.Cluster); err != nil {
		return err
	}
	if err := CheckName("pool", p.Pool); err != nil {
		return err
	}
	if p.Namespace == "" {
		return nil
	}
	return CheckName("namespace", p.Namespace)
}

// ParsePool reads what [Pool.String] writes. Anything else is Invalid, and the
// error names the right spelling where one is recognised.
func ParsePool(text string) (Pool, error) {
	return parse("pool", "CLUSTER:POOL[/NAMESPACE]", text, fault.Invalid, readPool)
}

// An Image is the RBD image of a volume, and its String is the volume's handle.
type Image struct {
	Pool
	Name string
}

// String returns the handle CLUSTER:POOL[/NAMESPACE]/IMAGE, which [ParseImage] reads.
func (i Image) String() string { return i.Pool.String() + "/" + i.Name }

// Check returns an Invalid error that says what is wrong with which part of i, or nil.
func (i Image) Check() error { return check(i) }

func (i Image) checkParts() error {
	if err := i.Pool.checkParts(); err != nil {
		return err
	}
	return CheckName("image", i.Name)
}

// ParseImage reads a volume handle. There are two kinds of error.
//
// NotFound: it is no handle of ours, so no volume has it. DeleteVolume answers OK
// then, and everything else NotFound, as the specification says of an
// unknown volume ID.
//
// Invalid: it is recognisably a handle written by hand with a mistake (blanks,
// upper case in the cluster, an empty namespace, over-long). It does not count as
// NotFound, because a deletion would then succeed and leave the image behind.
// The error names the right spelling.
func ParseImage(handle string) (Image, error) {
	return parse("volume", "CLUSTER:POOL[/NAMESPACE]/IMAGE", handle, fault.NotFound, readImage)
}

// A Snapshot is a snapshot of an image. ImageID tells the image from a later one of
// the same name, and finds it again after it was renamed.
type Snapshot struct {
	Image
	Name    string
	ImageID string
}

// String returns the handle CLUSTER:POOL[/NAMESPACE]/IMAGE@SNAPSHOT#IMAGEID, which
// [ParseSnapshot] reads.
func (s Snapshot) String() string { return s.Image.String() + "@" + s.Name + "#" + s.ImageID }

// Check returns an Invalid error that says what is wrong with which part of s, or nil.
func (s Snapshot) Check() error { return check(s) }

func (s Snapshot) checkParts() error {
	if err := s.Image.checkParts(); err != nil {
		return err
	}
	if err := CheckName("snapshot", s.Name); err != nil {
		return err
	}
	return CheckImageID(s.ImageID)
}

// ParseSnapshot reads a snapshot handle. Its errors are those of [ParseImage].
func ParseSnapshot(handle string) (Snapshot, error) {
	const form = "CLUSTER:POOL[/NAMESPACE]/IMAGE@SNAPSHOT#IMAGEID"
	return parse("snapshot", form, handle, fault.NotFound, readSnapshot)
}

// CheckCluster returns an Invalid error unless name can be that of a cluster: 1 to 32
// characters of a-z, 0-9, "-" and ".", the first and the last a letter or a digit.
// The name is also that of a directory, and a colon ends it in handles.
func CheckCluster(name string) error {
	if name == "" {
		return fmt.Errorf("cluster is empty: %w", fault.Invalid)
	}
	ends := isLowerOrDigit(name[0]) && isLowerOrDigit(name[len(name)-1])
	inside := strings.IndexFunc(name, func(r rune) bool {
		return r >= utf8.RuneSelf || !isLowerOrDigit(byte(r)) && r != '-' && r != '.'
	})
	if len(name) > MaxCluster || !ends || inside >= 0 {
		return fmt.Errorf("cluster %s: allowed are 1 to %d characters of a-z 0-9 - and . that begin and end with a letter or digit: %w",
			quote(name), MaxCluster, fault.Invalid)
	}
	return nil
}

// CheckName returns an Invalid error unless name can be that of a pool, a namespace,
// an image or a snapshot in a handle: printable text without "/" and "@" (which
// librbd and the notation refuse) and without a blank at either end. What says in
// the error which of these it is. Only the handle as a whole has a bound on its
// length: see [Image.Check].
func CheckName(what, name string) error {
	var why string
	switch {
	case name == "":
		return fmt.Errorf("%s is empty: %w", what, fault.Invalid)
	case !utf8.ValidString(name):
		why = "not valid UTF-8"
	case strings.ContainsAny(name, "/@"):
		why = `"/" and "@" are not allowed`
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		why = "characters that cannot be printed are not allowed"
	case strings.TrimSpace(name) != name:
		why = "a blank at either end is not allowed"
	default:
		return nil
	}
	return fmt.Errorf("%s %s: %s: %w", what, quote(name), why, fault.Invalid)
}

// CheckImageID returns an Invalid error unless id can be what librbd calls an
// image's ID: 1 to 14 letters and digits.
func CheckImageID(id string) error {
	odd := strings.ContainsFunc(id, func(r rune) bool { return r >= utf8.RuneSelf || !isAlphanumeric(byte(r)) })
	if id == "" || len(id) > MaxImageID || odd {
		return fmt.Errorf("image ID %s: allowed are 1 to %d letters and digits: %w", quote(id), MaxImageID, fault.Invalid)
	}
	return nil
}

// thing is a Pool, an Image or a Snapshot.
type thing interface {
	String() string
	checkParts() error
}

// check returns an Invalid error if a part of t is wrong or t is too long as a whole.
func check(t thing) error {
	if err := t.checkParts(); err != nil {
		return err
	}
	return checkLength(t)
}

func checkLength(t thing) error {
	text := t.String()
	if len(text) > MaxHandle {
		return fmt.Errorf("handle %s: %d bytes where the CSI specification allows %d: %w",
			quote(text), len(text), MaxHandle, fault.Invalid)
	}
	return nil
}

// parse reads text generously and then insists that it was the one right
// spelling. Strange is the kind for text that cannot be read at all.
func parse[T thing](what, form, text string, strange fault.Kind, read func(string) (T, bool)) (T, error) {
	var none T
	meant, ok := read(text)
	if !ok {
		return none, fmt.Errorf("%s %s is not of the form %s: %w", what, quote(text), form, strange)
	}
	if err := meant.checkParts(); err != nil {
		return none, fmt.Errorf("%s %s is not of the form %s: %w: %w", what, quote(text), form, strange, err)
	}
	if err := checkLength(meant); err != nil {
		return none, err
	}
	if right := meant.String(); right != text {
		return none, fmt.Errorf("%s %s is to be written %s: %w", what, quote(text), quote(right), fault.Invalid)
	}
	return meant, nil
}

// readPool reads CLUSTER:POOL[/NAMESPACE] in any spelling.
func readPool(text string) (Pool, bool) {
	cluster, segments, ok := split(text)
	switch {
	case ok && len(segments) == 1:
		return Pool{Cluster: cluster, Pool: segments[0]}, true
	case ok && len(segments) == 2:
		return Pool{Cluster: cluster, Pool: segments[0], Namespace: segments[1]}, true
	}
	return Pool{}, false
}

// readImage reads CLUSTER:POOL[/NAMESPACE]/IMAGE in any spelling.
func readImage(text string) (Image, bool) {
	cluster, segments, ok := split(text)
	switch {
	case ok && len(segments) == 2:
		return Image{Pool{Cluster: cluster, Pool: segments[0]}, segments[1]}, true
	case ok && len(segments) == 3:
		return Image{Pool{Cluster: cluster, Pool: segments[0], Namespace: segments[1]}, segments[2]}, true
	}
	return Image{}, false
}

// readSnapshot reads CLUSTER:POOL[/NAMESPACE]/IMAGE@SNAPSHOT#IMAGEID in any
// spelling. An image's name holds no "@" and an ID no "#", so the first "@" and the
// last "#" part them, whatever the snapshot's name holds.
func readSnapshot(text string) (Snapshot, bool) {
	before, after, hasAt := strings.Cut(text, "@")
	hash := strings.LastIndexByte(after, '#')
	image, ok := readImage(before)
	if !hasAt || hash < 0 || !ok {
		return Snapshot{}, false
	}
	name, id := strings.TrimSpace(after[:hash]), strings.TrimSpace(after[hash+1:])
	return Snapshot{Image: image, Name: name, ImageID: id}, true
}

// split returns the cluster and what stands between the slashes, each without
// blanks around it, and without empty parts.
func split(text string) (cluster string, segments []string, ok bool) {
	cluster, rest, ok := strings.Cut(text, ":")
	for segment := range strings.SplitSeq(rest, "/") {
		if segment = strings.TrimSpace(segment); segment != "" {
			segments = append(segments, segment)
		}
	}
	return strings.ToLower(strings.TrimSpace(cluster)), segments, ok
}

// quote returns text in quotation marks, and only the beginning if it is over-long.
func quote(text string) string {
	if len(text) > 2*MaxHandle {
		return fmt.Sprintf("%q...", text[:MaxHandle])
	}
	return fmt.Sprintf("%q", text)
}

func isLowerOrDigit(b byte) bool { return 'a' <= b && b <= 'z' || '0' <= b && b <= '9' }

func isAlphanumeric(b byte) bool { return isLowerOrDigit(b) || 'A' <= b && b <= 'Z' }
