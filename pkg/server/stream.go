package server

import (
	"context"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// streamed passes a method that streams its answer through the same chain as
// the others. All such methods of CSI take one request; it is received here,
// shown to the chain, and handed to the service when that asks for it.
func (s *Server) streamed(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	req, err := receive(stream, info.FullMethod)
	if err != nil {
		return withCode(err)
	}
	unary := &grpc.UnaryServerInfo{Server: service, FullMethod: info.FullMethod}
	_, err = s.unary(stream.Context(), req, unary, func(ctx context.Context, _ any) (any, error) {
		return nil, handler(service, &replay{ServerStream: stream, ctx: ctx, req: req})
	})
	return err
}

// receive reads the request of a stream into a message of the method's type.
func receive(stream grpc.ServerStream, fullMethod string) (proto.Message, error) {
	name := strings.ReplaceAll(strings.TrimPrefix(fullMethod, "/"), "/", ".")
	descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, fmt.Errorf("look up method %s: %w: %w", name, fault.Internal, err)
	}
	input := descriptor.(protoreflect.MethodDescriptor).Input()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(input.FullName())
	if err != nil {
		return nil, fmt.Errorf("look up message %s: %w: %w", input.FullName(), fault.Internal, err)
	}
	req := kind.New().Interface()
	return req, stream.RecvMsg(req)
}

// A replay is a stream whose only request was received already.
type replay struct {
	grpc.ServerStream
	ctx context.Context
	req proto.Message
}

// Context returns the context that the chain made, with its logger.
func (r *replay) Context() context.Context { return r.ctx }

// SendMsg sends a piece of the answer, unless the request's time is over: a caller who reads
// slowly would hold the request for ever otherwise.
func (r *replay) SendMsg(message any) error {
	if err := r.ctx.Err(); err != nil {
		return fmt.Errorf("send the next piece of the answer: %w", err)
	}
	if err := r.ServerStream.SendMsg(message); err != nil {
		return fmt.Errorf("send the next piece of the answer: %w: %w", fault.Canceled, err)
	}
	return nil
}

// RecvMsg hands the request over, once.
func (r *replay) RecvMsg(message any) error {
	if r.req == nil {
		return io.EOF
	}
	proto.Merge(message.(proto.Message), r.req)
	r.req = nil
	return nil
}
