package server

import (
	"context"
	"fmt"
	"runtime/debug"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// call runs a service's handler. A panic becomes an error of kind Internal;
// the stack goes to the log and the panic's text stays there, because nobody
// has checked what it contains. One bad request shall not end the others.
func call(ctx context.Context, req any, handler grpc.UnaryHandler, figures *metrics) (resp any, err error) {
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}
		figures.panics.Inc()
		klog.FromContext(ctx).Error(nil, "Panic", "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
		resp, err = nil, fmt.Errorf("the driver panicked, its log has the stack: %w", fault.Internal)
	}()
	return handler(ctx, req)
}
