package server

import (
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// asksNothing lists the methods that have no required field that could be seen
// to be missing.
var asksNothing = []string{
	"/csi.v1.Identity/GetPluginInfo",
	"/csi.v1.Identity/GetPluginCapabilities",
	"/csi.v1.Identity/Probe",
	"/csi.v1.Controller/ListVolumes",
	"/csi.v1.Controller/ControllerListVolumeHealth",
	"/csi.v1.Controller/GetCapacity",
	"/csi.v1.Controller/ControllerGetCapabilities",
	"/csi.v1.Controller/ListSnapshots",
	"/csi.v1.GroupController/GroupControllerGetCapabilities",
	"/csi.v1.Node/NodeGetStorageHealth",
	"/csi.v1.Node/NodeGetCapabilities",
	"/csi.v1.Node/NodeGetInfo",
}

func TestEveryMethodHasARow(t *testing.T) {
	rest := maps.Clone(methods)
	eachMethod(func(name string, descriptor protoreflect.MethodDescriptor) {
		method, ok := methods[name]
		if !ok {
			t.Errorf("%s has no row", name)
			return
		}
		delete(rest, name)
		if got, want := len(method.required) == 0, slices.Contains(asksNothing, name); got != want {
			t.Errorf("%s: got nothing required %v, want %v", name, got, want)
		}
		if method.level == 0 {
			t.Errorf("%s has no level", name)
		}
		if got, want := method.queue != "", method.class == working; got != want {
			t.Errorf("%s: got a queue field %v, want %v", name, got, want)
		}
		if got, want := method.class == streaming, descriptor.IsStreamingServer(); got != want {
			t.Errorf("%s: got the class streaming %v, want %v", name, got, want)
		}
		fields := slices.Concat(method.required, method.whole)
		if method.queue != "" {
			fields = append(fields, method.queue)
			if !slices.Contains(method.required, method.queue) {
				t.Errorf("%s queues by %s, which is not required", name, method.queue)
			}
		}
		for _, field := range fields {
			if descriptor.Input().Fields().ByName(protoreflect.Name(field)) == nil {
				t.Errorf("%s: %s has no field %s", name, descriptor.Input().FullName(), field)
			}
		}
	})
	for name := range rest {
		t.Errorf("%s is no method of CSI", name)
	}
}
