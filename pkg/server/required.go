package server

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// checked turns a request away with Invalid if a required field is missing or
// a field is longer than CSI's general size limits allow. Whether the values
// make sense is for the services to say.
func checked(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	message := req.(proto.Message).ProtoReflect()
	if field := missing(message, methods[info.FullMethod]); field != "" {
		return nil, fmt.Errorf("%s is missing: %w", field, fault.Invalid)
	}
	if err := withinLimits(message); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

// missing returns the path of the first field that row requires and message
// lacks, like "volume_capabilities[0].access_mode", or an empty string.
func missing(message protoreflect.Message, row method) string {
	for _, name := range row.required {
		if path := missingIn(message, name); path != "" {
			return path
		}
	}
	for _, name := range row.whole {
		field := message.Descriptor().Fields().ByName(protoreflect.Name(name))
		if !message.Has(field) {
			continue
		}
		if path := missingWithin(message.Get(field).Message()); path != "" {
			return name + "." + path
		}
	}
	return ""
}

// missingIn returns the path of what is missing at or below the field or oneof
// name of message. Scalars that are zero, and empty lists and maps, are
// missing: proto3 does not carry them.
func missingIn(message protoreflect.Message, name string) string {
	field := message.Descriptor().Fields().ByName(protoreflect.Name(name))
	if field == nil { // a oneof: one of its fields must be set, and whole
		oneof := message.Descriptor().Oneofs().ByName(protoreflect.Name(name))
		if field = message.WhichOneof(oneof); field == nil {
			return name
		}
	}
	if !message.Has(field) {
		return name
	}
	switch {
	case field.IsList():
		return missingInList(message.Get(field).List(), field)
	case field.Message() != nil && !field.IsMap():
		if path := missingWithin(message.Get(field).Message()); path != "" {
			return string(field.Name()) + "." + path
		}
	}
	return ""
}

// missingInList looks into each element; an empty string is a missing one.
func missingInList(list protoreflect.List, field protoreflect.FieldDescriptor) string {
	for i := range list.Len() {
		element := fmt.Sprintf("%s[%d]", field.Name(), i)
		if field.Message() == nil {
			if field.Kind() == protoreflect.StringKind && list.Get(i).String() == "" {
				return element
			}
			continue
		}
		if path := missingWithin(list.Get(i).Message()); path != "" {
			return element + "." + path
		}
	}
	return ""
}

// missingWithin applies the table inner to message.
func missingWithin(message protoreflect.Message) string {
	for _, name := range inner[string(message.Descriptor().FullName())] {
		if path := missingIn(message, name); path != "" {
			return path
		}
	}
	return ""
}
