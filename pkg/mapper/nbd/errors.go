package nbd

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// kinds are what the numbers mean that rbd-nbd says when it cannot map. Numbers that are not here
// mean that it may work another time.
var kinds = map[unix.Errno]struct {
	kind fault.Kind
	text string
}{
	unix.ENOENT:     {fault.NotFound, "the image, its pool or its namespace is gone"},
	unix.EACCES:     {fault.Unauthenticated, "the monitors refuse the user or the key"},
	unix.EPERM:      {fault.Denied, "the user may not open the image"},
	unix.EROFS:      {fault.InUse, "another client holds the image exclusively"},
	unix.EBUSY:      {fault.InUse, "another client holds the image's lock"},
	unix.EINVAL:     {fault.Unsupported, "librbd refuses an option or a property of the image"},
	unix.ENOSYS:     {fault.Unsupported, "the image has a feature that librbd lacks"},
	unix.EOPNOTSUPP: {fault.Unsupported, "the image has a feature that librbd lacks"},
	unix.ETIMEDOUT:  {fault.Unavailable, "the cluster did not answer"},
}

// number is how Ceph's programs write an error number: (2) No such file or directory.
var number = regexp.MustCompile(`\((\d+)\) [A-Z]`)

// failed says why rbd-nbd ended in place of serving.
func (w *worker) failed() error {
	said := w.server.errors.String()
	if key := w.order.Credentials.Key.Reveal(); key != "" {
		said = strings.ReplaceAll(said, key, "(key)")
	}
	if strings.Contains(said, "unknown args") || strings.Contains(said, "unrecognized") {
		// Of what it does not know it names the last word only, which is the image.
		return fmt.Errorf("%s on this node does not know one of the options %q (it says: %s): %w", bin, w.order.Options, said, fault.Invalid)
	}
	if strings.Contains(said, "handle_auth_bad_method") {
		return fmt.Errorf("the monitors refuse the user or the key (%s says: %s): %w", bin, said, fault.Unauthenticated)
	}
	// The last number is nearest to what was asked; those before it can be of what librbd went on after.
	var errno unix.Errno
	switch found := number.FindAllStringSubmatch(said, -1); {
	case len(found) > 0:
		last, _ := strconv.Atoi(found[len(found)-1][1])
		errno = unix.Errno(last)
	case strings.Contains(said, "failed to fetch mon config"): // all that it says at the end of client_mount_timeout
		errno = unix.ETIMEDOUT
	default:
		return fmt.Errorf("%s ended, %s (it says: %s): %w", bin, w.server.command.ProcessState, said, fault.Unavailable)
	}
	meaning, ok := kinds[errno]
	if !ok {
		meaning.kind, meaning.text = fault.Unavailable, bin+" answers an error"
	}
	return fmt.Errorf("%s (%s says: %s): %w", meaning.text, bin, said, meaning.kind)
}
