package librbd

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// blocklisted is what a client gets that stands in the cluster's blocklist
// (EBLOCKLISTED in src/include/ceph_fs.h; Ceph shows it as "Cannot send after
// transport endpoint shutdown").
const blocklisted = syscall.ESHUTDOWN

// kindOf is the one table from the error numbers of RADOS and RBD to kinds. A
// method that knows a number's meaning better looks at it first.
func kindOf(number syscall.Errno) fault.Kind {
	switch number {
	case syscall.ENOENT:
		return fault.NotFound
	case syscall.EEXIST:
		return fault.Exists
	case syscall.EBUSY, // watchers, or a lock that its owner keeps
		syscall.ENOTEMPTY, // snapshots
		syscall.EROFS,     // the owner of the exclusive lock refused
		syscall.EMLINK,    // member of a group
		syscall.EUCLEAN:   // being moved to the trash
		return fault.InUse
	case syscall.ECANCELED, // cmpomap: another value than expected
		syscall.ESTALE: // the class rbd: another state than expected
		return fault.Superseded
	case syscall.ETIMEDOUT: // rados_osd_op_timeout: it may be applied yet
		return fault.Unknown
	case syscall.ENOSPC, syscall.EDQUOT:
		return fault.Exhausted
	case syscall.EPERM, syscall.EACCES:
		return fault.Denied
	case syscall.ENOTCONN, blocklisted, syscall.ENOMEM, syscall.EAGAIN:
		return fault.Unavailable
	case syscall.EIO, syscall.EINTR:
		return fault.Unknown
	case syscall.EOPNOTSUPP, syscall.ENOSYS:
		return fault.Unsupported
	case syscall.EINVAL, syscall.ENAMETOOLONG, syscall.EDOM:
		return fault.Invalid
	case syscall.ERANGE, syscall.E2BIG, syscall.EFBIG:
		return fault.OutOfRange
	}
	return fault.Internal
}

// A code is what a call of librados or librbd returned, when that is negative.
type code int

// Error says what the number means.
func (c code) Error() string { return syscall.Errno(-c).Error() }

// ErrorCode is what kinds are read from.
func (c code) ErrorCode() int { return int(c) }

// number returns the error number in an error of go-ceph or a code, 0 when there is none.
// A compared range that differs (cmpext) has a number beyond all of errno.h.
func number(err error) syscall.Errno {
	var coded interface{ ErrorCode() int }
	if !errors.As(err, &coded) {
		return 0
	}
	return syscall.Errno(max(coded.ErrorCode(), -coded.ErrorCode()))
}

// is reports whether err has one of the numbers.
func is(err error, numbers ...syscall.Errno) bool {
	return slices.Contains(numbers, number(err))
}

// classified wraps an error that has a number with its kind. Errors that have a kind
// already stay as they are.
func classified(err error) error {
	if err == nil || hasKind(err) {
		return err
	}
	got := number(err)
	if got == 0 {
		return err
	}
	return fmt.Errorf("%w: %w", kindOf(got), err)
}

// hasKind reports whether a kind was given to err already.
func hasKind(err error) bool {
	var kind fault.Kind
	return errors.As(err, &kind)
}
