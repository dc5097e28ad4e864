package server

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// kindCodes is the one table from kinds of failure to gRPC codes.
//
// What a code means is what Kubernetes does with it. external-provisioner,
// -attacher, -snapshotter, -resizer and the kubelet all take Canceled,
// DeadlineExceeded, Unavailable and Aborted as "may still be going on": they
// ask again with the same request and forget nothing. Every other code is
// final: the operation is over and did nothing that has to be undone. After a
// final code for CreateVolume a claim that is deleted is not followed by
// DeleteVolume, and after one for NodeStageVolume no NodeUnstageVolume need
// follow. They all ask again after a final code too, while the object is there.
// (Read in the functions checkError, isFinalError, isCSIFinalError and
// IsFinalError of the five.)
var kindCodes = map[fault.Kind]codes.Code{
	// Final. A defect may well leave something half made; what a retry of the
	// request does not finish, the search for orphans finds.
	fault.Internal: codes.Internal,
	// Final. The resizer records an expansion or modification as infeasible.
	fault.Invalid: codes.InvalidArgument,
	// Final. Infeasible for the resizer, too; the user may ask for less.
	fault.OutOfRange: codes.OutOfRange,
	// Final. Lets a detach or an unstage be taken for done by some callers,
	// and an expansion for infeasible: only for what is certainly gone.
	fault.NotFound: codes.NotFound,
	// Final. The name is taken; only an operator can help.
	fault.Exists: codes.AlreadyExists,
	// Final. What the specification wants for a volume published to another
	// node. The attacher retries; after an expansion the resizer and the
	// kubelet wait until no pod uses the volume, which is the right moment.
	fault.InUse: codes.FailedPrecondition,
	// Not final, retried at once with back-off: someone else was faster.
	fault.Superseded: codes.Aborted,
	// Final for the provisioner, which may let the scheduler choose another
	// node; not final for the others. The kubelet counts this code from
	// ControllerPublishVolume as "no more volumes fit on this node", so a
	// service must not let a full pool come out of that method as Exhausted.
	fault.Exhausted: codes.ResourceExhausted,
	// Final. Caps or keys have to be changed first.
	fault.Denied:          codes.PermissionDenied,
	fault.Unauthenticated: codes.Unauthenticated,
	// Not final, although nothing was done this time: an earlier attempt of
	// the same request may have done something.
	fault.Unavailable: codes.Unavailable,
	// Not final, and the only honest answer while the work goes on.
	fault.Unknown: codes.DeadlineExceeded,
	// Not final. Seldom seen by anyone, because the caller is gone.
	fault.Canceled: codes.Canceled,
	// Final, with a message that says what is lacking. Not Unimplemented:
	// that speaks of the method, and callers stop calling it for all volumes.
	fault.Unsupported: codes.FailedPrecondition,
	// Final. Nothing gets better by trying; a human decides.
	fault.DataLoss: codes.DataLoss,
}

// grpcStatus is what an error that is a status has.
type grpcStatus interface{ GRPCStatus() *status.Status }

// coded gives the error of a request its gRPC code. It is the only place where
// a status is made.
func coded(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if err != nil {
		return nil, withCode(err)
	}
	return resp, nil
}

// withCode returns err as a status, unless it is one.
func withCode(err error) error {
	if _, ok := err.(grpcStatus); ok {
		return err
	}
	return status.Error(codeOf(err), err.Error())
}

// codeOf returns the code of a request's result. An error that is a status
// itself keeps its code: the generated code answers a method that a service
// leaves out with Unimplemented.
func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	if made, ok := err.(grpcStatus); ok {
		return made.GRPCStatus().Code()
	}
	code, ok := kindCodes[fault.Of(err)]
	if !ok {
		return codes.Internal
	}
	return code
}
