package server

import (
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// CSI's general limits, in bytes ("Size Limits" in the specification), and the
// one that MountVolume.mount_flags states for itself.
const (
	maxName       = 128
	maxMap        = 4 << 10
	maxMountFlags = 4 << 10
)

// withinLimits returns an error of kind Invalid if the name, a string map or
// the mount flags of a request are longer than the specification allows.
//
// Of the strings only the name is looked at. It is what we make handles from.
// An over-long handle is one that we never gave out, which is for the services
// to answer: deleting it succeeds, anything else does not find it. Paths and
// node IDs have limits of their own.
func withinLimits(message protoreflect.Message) error {
	var err error
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Name() == "name":
			err = within(string(field.Name()), len(value.String()), maxName)
		case field.IsMap():
			err = within(string(field.Name()), mapSize(value.Map()), maxMap)
		case field.Name() == "volume_capability":
			err = mountFlagsWithin(value.Message())
		case field.Name() == "volume_capabilities":
			for i := 0; i < value.List().Len() && err == nil; i++ {
				err = mountFlagsWithin(value.List().Get(i).Message())
			}
		}
		return err == nil
	})
	return err
}

func within(field string, size, limit int) error {
	if size <= limit {
		return nil
	}
	return fmt.Errorf("%s has %d bytes, and at most %d are allowed: %w", field, size, limit, fault.Invalid)
}

// mapSize returns the bytes of all keys and values of a map from string to string.
func mapSize(pairs protoreflect.Map) int {
	size := 0
	pairs.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		size += len(key.String()) + len(value.String())
		return true
	})
	return size
}

// mountFlagsWithin adds up the mount flags of a VolumeCapability.
func mountFlagsWithin(capability protoreflect.Message) error {
	mount := capability.Descriptor().Fields().ByName("mount")
	if !capability.Has(mount) {
		return nil
	}
	volume := capability.Get(mount).Message()
	flags := volume.Get(volume.Descriptor().Fields().ByName("mount_flags")).List()
	size := 0
	for i := range flags.Len() {
		size += len(flags.Get(i).String())
	}
	return within("mount_flags", size, maxMountFlags)
}
