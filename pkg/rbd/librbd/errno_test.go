package librbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	cephrbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// coded is an error with a number, as go-ceph's.
type coded int

func (c coded) Error() string  { return fmt.Sprintf("ret=%d", int(c)) }
func (c coded) ErrorCode() int { return int(c) }

func TestKinds(t *testing.T) {
	for _, one := range []struct {
		number syscall.Errno
		want   fault.Kind
	}{
		{syscall.ENOENT, fault.NotFound}, {syscall.EEXIST, fault.Exists},
		{syscall.EBUSY, fault.InUse}, {syscall.ENOTEMPTY, fault.InUse}, {syscall.EROFS, fault.InUse},
		{syscall.EMLINK, fault.InUse}, {syscall.EUCLEAN, fault.InUse},
		{syscall.ECANCELED, fault.Superseded}, {syscall.ESTALE, fault.Superseded},
		{syscall.ETIMEDOUT, fault.Unknown}, {syscall.EIO, fault.Unknown},
		{syscall.ENOSPC, fault.Exhausted}, {syscall.EDQUOT, fault.Exhausted},
		{syscall.EPERM, fault.Denied}, {syscall.EACCES, fault.Denied},
		{syscall.ESHUTDOWN, fault.Unavailable}, {syscall.ENOTCONN, fault.Unavailable},
		{syscall.EOPNOTSUPP, fault.Unsupported}, {syscall.ENOSYS, fault.Unsupported},
		{syscall.EINVAL, fault.Invalid}, {syscall.EDOM, fault.Invalid}, {syscall.EFBIG, fault.OutOfRange},
		{syscall.ENOTTY, fault.Internal},
	} {
		for name, err := range map[string]error{
			"plain":     coded(-one.number),
			"positive":  coded(one.number),
			"wrapped":   fmt.Errorf("open: %w", coded(-one.number)),
			"joined":    errors.Join(nil, coded(-one.number)),
			"operation": code(-one.number),
		} {
			if got := fault.Of(classified(err)); got != one.want || number(err) != one.number {
				t.Errorf("%s %s: got %v and number %d, want %v", name, one.number, got, number(err), one.want)
			}
		}
	}
}

func TestClassified(t *testing.T) {
	if got := fault.Of(classified(cephrbd.ErrNotFound)); got != fault.NotFound {
		t.Errorf("go-ceph's own error: got %v, want %v", got, fault.NotFound)
	}
	decided := fmt.Errorf("%w: %w", fault.Unsupported, coded(-22))
	if got := classified(decided); got != decided {
		t.Errorf("an error with a kind: got %v, want it unchanged", got)
	}
	if got := classified(context.Canceled); got != context.Canceled {
		t.Errorf("an error without a number: got %v, want it unchanged", got)
	}
	if classified(nil) != nil {
		t.Error("nil: got an error")
	}
}

func TestRefused(t *testing.T) {
	for _, one := range []struct {
		number syscall.Errno
		want   fault.Kind
	}{
		{syscall.EACCES, fault.Unauthenticated}, {syscall.EPERM, fault.Unauthenticated}, {syscall.EOPNOTSUPP, fault.Unauthenticated},
		{syscall.ENOENT, fault.Unavailable}, {syscall.EINVAL, fault.Unavailable},
		{syscall.ETIMEDOUT, fault.Unavailable}, {syscall.EIO, fault.Unavailable}, {syscall.ENOTTY, fault.Unavailable},
	} {
		if got := fault.Of(refused(coded(-one.number))); got != one.want {
			t.Errorf("%s: got %v, want %v", one.number, got, one.want)
		}
	}
}
