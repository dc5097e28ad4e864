package identity

import (
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

func TestServices(t *testing.T) {
	answer, err := (&Service{}).GetPluginCapabilities(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []csi.PluginCapability_Service_Type
	for _, one := range answer.GetCapabilities() {
		if one.GetService() != nil {
			got = append(got, one.GetService().GetType())
		}
	}
	want := []csi.PluginCapability_Service_Type{
		csi.PluginCapability_Service_CONTROLLER_SERVICE,
		csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE,
		csi.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got services %v, want %v", got, want)
	}
}

// The capability goes with the nodes' accessible_topology: one without the other is an error
// in the spec, and the provisioner would do the wrong thing.
func TestTopology(t *testing.T) {
	for _, topology := range []bool{false, true} {
		s := &Service{Topology: topology}
		answer, err := s.GetPluginCapabilities(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(answer.GetCapabilities(), func(c *csi.PluginCapability) bool {
			return c.GetService().GetType() == csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS
		})
		if got != topology {
			t.Errorf("with Topology %t: got the capability %t, want %t", topology, got, topology)
		}
	}
}
