package krbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// oldest is the oldest Linux that will do: it has namespaces (the file pool_ns), and all files
// of sysfs by which a device is found.
var oldest = version{4, 19}

// needed are the features without which volumes of the driver cannot be mapped: a
// single writer's have exclusive-lock, because the fence builds on it.
const needed features = 1<<0 | 1<<2

// incompatible are the features without which an image cannot even be read
// (RBD_FEATURES_INCOMPATIBLE in Ceph's include/rbd/features.h): layering, striping and data-pool.
const incompatible features = 1<<0 | 1<<1 | 1<<7

// Check reports what this node lacks with fault.Unsupported: everything that it lacks, not only
// the first thing. It loads no module; `modprobe rbd` does, once after each boot.
func (m *Mapper) Check(context.Context) error {
	var lacks []string
	for _, one := range []func() string{m.kernel.lacksRoot, m.kernel.lacksVersion, m.kernel.lacksBus, m.kernel.lacksFeatures, m.kernel.lacksKeyrings} {
		if lack := one(); lack != "" {
			lacks = append(lacks, lack)
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", strings.Join(lacks, "; "), fault.Unsupported)
}

func (k kernel) lacksRoot() string {
	if !k.root() {
		return "it needs to run as root"
	}
	return ""
}

func (k kernel) lacksVersion() string {
	running, ok := parseVersion(k.release())
	if ok && running.before(oldest) {
		return fmt.Sprintf("the kernel is %s and %s is needed", k.release(), oldest)
	}
	return "" // a version of its own kind is told by what it lacks
}

// missing reports that the module is not there.
func (k kernel) missing() bool {
	_, err := os.Stat(k.bus(""))
	return err != nil
}

func (k kernel) lacksBus() string {
	path := k.bus("add_single_major")
	err := k.writable(path)
	switch {
	case err == nil:
		return ""
	case k.missing():
		return fmt.Sprintf("%s is missing (modprobe rbd, and CONFIG_BLK_DEV_RBD in the kernel)", k.bus(""))
	case errors.Is(err, unix.ENOENT):
		return fmt.Sprintf("%s is missing, which Linux has since 3.14", path)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Sprintf("%s may not be written (a container has to be privileged)", path)
	}
	return fmt.Sprintf("%s: %v", path, err)
}

// supported returns the features that the kernel says it has; none if it does not say.
func (k kernel) supported() features {
	content, err := os.ReadFile(k.bus("supported_features"))
	if err != nil {
		return 0
	}
	bits, err := strconv.ParseUint(strings.TrimSpace(string(content)), 0, 64)
	if err != nil {
		return 0
	}
	return features(bits)
}

func (k kernel) lacksFeatures() string {
	if k.missing() {
		return ""
	}
	if lack := needed &^ k.supported(); lack != 0 {
		return "the kernel lacks features of images: " + lack.String()
	}
	return ""
}

// CheckFeatures reports the features of an image that the running kernel lacks, with the Linux that
// has them; see [mapper.Selective]. Since 5.5 the kernel does not look at most of them when it only reads.
func (m *Mapper) CheckFeatures(image uint64, readOnly bool) error {
	supported := m.kernel.supported()
	lack := features(image) &^ supported
	if readOnly {
		lack &= incompatible
	}
	if lack == 0 || supported == 0 {
		return nil
	}
	return m.lackError(lack.String())
}

// lackError says that an image has features which the kernel does not have.
func (m *Mapper) lackError(lack string) error {
	return fmt.Errorf("the image has features that Linux %s lacks: %s; it has %s: %w",
		m.kernel.release(), lack, m.kernel.supported(), fault.Unsupported)
}

func (k kernel) lacksKeyrings() string {
	err := k.keyrings()
	switch {
	case err == nil:
		return ""
	case errors.Is(err, unix.ENOSYS):
		return "the kernel has no keyrings (CONFIG_KEYS)"
	}
	return fmt.Sprintf("the kernel's keyrings cannot be used, a container has to be privileged: %v", err)
}

// keyrings asks for a keyring without making one: ENOKEY says that there is none, and that
// the call is allowed.
func keyrings() error {
	_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if errors.Is(err, unix.ENOKEY) {
		return nil
	}
	return err
}

func release() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}
