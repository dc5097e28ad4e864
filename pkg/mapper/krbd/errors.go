package krbd

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
)

// kinds are what the numbers mean that the kernel answers when it is to map. Numbers that are
// not here mean that it may work another time.
var kinds = map[unix.Errno]struct {
	kind fault.Kind
	text string
}{
	unix.ENOENT:    {fault.NotFound, "the image, its pool or its namespace is gone"},
	unix.EACCES:    {fault.Unauthenticated, "the monitors refuse the user or the key"},
	unix.EPERM:     {fault.Denied, "the user may not open the image"},
	unix.EROFS:     {fault.InUse, "another client holds the image exclusively"},
	unix.EBUSY:     {fault.InUse, "another client holds the image's lock"},
	unix.EINVAL:    {fault.Unsupported, "the kernel refuses an option or a property of the image"},
	unix.ENXIO:     {fault.Unsupported, "the image has a feature that the kernel lacks"},
	unix.ETIMEDOUT: {fault.Unavailable, "the cluster did not answer; are the monitors' addresses right, and the ports those of ms_mode?"},
	unix.ESHUTDOWN: {fault.Unavailable, "the new client's address is on the cluster's blocklist"},
}

// addError says why an image could not be mapped.
func (m *Mapper) addError(result Result, request mapper.Request) error {
	switch {
	case result.Errno == 0:
		return nil
	case result.Step == stepKey:
		return keyError(result)
	case result.Step == stepNamespace:
		return fmt.Errorf("%s %s: %w: %w", stepNamespace, m.options.NetworkNamespace, fault.Unsupported, result.Errno)
	}
	said := saidOf(result.Kernel, request.Target.Image.Name)
	if features, ok := unsupportedIn(said); ok {
		return m.lackError(features.String())
	}
	if m.kernel.missing() {
		return fmt.Errorf("the kernel has no rbd (modprobe rbd): %w", fault.Unsupported)
	}
	meaning, ok := kinds[result.Errno]
	if !ok {
		meaning.kind, meaning.text = fault.Unavailable, "the kernel answers an error"
	}
	if result.Errno == unix.ENXIO {
		meaning.text += ", which has " + m.kernel.supported().String()
	}
	return fmt.Errorf("%s%s: %w: %w", meaning.text, quoted(said), meaning.kind, result.Errno)
}

// keyError says why a key could not be handed to the kernel.
func keyError(result Result) error {
	switch result.Errno {
	case unix.EINVAL:
		return fmt.Errorf("the kernel does not take the user's key, which is damaged or of a type that it lacks (aes256k wants Linux 7.0): %w: %w", fault.Unsupported, result.Errno)
	case unix.ENODEV:
		return fmt.Errorf("the kernel has no rbd (modprobe rbd): %w: %w", fault.Unsupported, result.Errno)
	case unix.EPERM, unix.ENOSYS:
		return fmt.Errorf("the kernel's keyring cannot be used (a container has to be privileged): %w: %w", fault.Unsupported, result.Errno)
	}
	return fmt.Errorf("%s: %w: %w", stepKey, fault.Unavailable, result.Errno)
}

// removeError says why a device could not be unmapped. One that is not there any more is unmapped.
func removeError(result Result, one entry) error {
	switch result.Errno {
	case 0, unix.ENOENT:
		return nil
	case unix.EINPROGRESS:
		return fmt.Errorf("%s is being unmapped by somebody else: %w", one.path(), fault.Unavailable)
	}
	return fmt.Errorf("unmap %s%s: %w: %w", one.path(), quoted(result.Kernel), fault.Unavailable, result.Errno)
}

// refreshError says why a device could not read its image's header.
func refreshError(result Result, one entry) error {
	if result.Errno == 0 {
		return nil
	}
	if dead := deadBy(result); dead != "" {
		return fmt.Errorf("%s is dead, %s: %w", one.path(), dead, fault.Unavailable)
	}
	return fmt.Errorf("%s does not read its image's header%s: %w: %w", one.path(), quoted(result.Kernel), fault.Unavailable, result.Errno)
}

// saidOf leaves out what the kernel has said of other images.
func saidOf(lines []string, image string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		about, found := strings.CutPrefix(line, "rbd: image ")
		return found && !strings.HasPrefix(about, image+": ")
	})
}

// quoted is what the kernel has said, for an error.
func quoted(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return fmt.Sprintf(" (the kernel says: %s)", strings.Join(lines, "; "))
}

// unsupported is the kernel's word for features that it lacks (rbd_dev_v2_header_onetime and
// __rbd_dev_v2_get_features in drivers/block/rbd.c).
var unsupported = regexp.MustCompile(`unsupported features: (0x[0-9a-f]+)`)

func unsupportedIn(lines []string) (features, bool) {
	for _, line := range lines {
		match := unsupported.FindStringSubmatch(line)
		if match == nil {
			continue
		}
		bits, err := strconv.ParseUint(match[1], 0, 64)
		return features(bits), err == nil
	}
	return 0, false
}

// features are those of an image or of a kernel, as bits (RBD_FEATURE_* in Ceph's
// include/rbd/features.h).
type features uint64

// feature is one of them, with the first Linux that has it; the zero version: none has.
type feature struct {
	bit   features
	name  string
	since version
}

// allFeatures has the versions of rbd(8) and of the kernel's own history.
var allFeatures = []feature{
	{1 << 0, "layering", version{3, 10}},
	{1 << 1, "striping", version{4, 17}},
	{1 << 2, "exclusive-lock", version{4, 9}},
	{1 << 3, "object-map", version{5, 3}},
	{1 << 4, "fast-diff", version{5, 3}},
	{1 << 5, "deep-flatten", version{5, 1}},
	{1 << 6, "journaling", version{}},
	{1 << 7, "data-pool", version{4, 11}},
	{1 << 8, "operations", version{4, 16}},
	{1 << 9, "migrating", version{}},
	{1 << 10, "non-primary", version{}},
	{1 << 11, "dirty-cache", version{}},
}

// String lists the names, each with the version that has it.
func (f features) String() string {
	var names []string
	for _, one := range allFeatures {
		switch {
		case f&one.bit == 0:
			continue
		case one.since == version{}:
			names = append(names, one.name+" (no Linux has it)")
		default:
			names = append(names, fmt.Sprintf("%s (since Linux %s)", one.name, one.since))
		}
		f &^= one.bit
	}
	if f != 0 {
		names = append(names, fmt.Sprintf("%#x", uint64(f)))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
