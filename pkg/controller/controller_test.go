package controller

import (
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// With LIST_VOLUMES_PUBLISHED_NODES the attacher lists all volumes every minute, so it is
// claimed only where that was wanted.
func TestPublishedNodesAreOptional(t *testing.T) {
	claimed := func(s *Service) []csi.ControllerServiceCapability_RPC_Type {
		answer, err := s.ControllerGetCapabilities(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var kinds []csi.ControllerServiceCapability_RPC_Type
		for _, one := range answer.GetCapabilities() {
			kinds = append(kinds, one.GetRpc().GetType())
		}
		return kinds
	}
	const nodes = csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES
	for range 2 { // the second time shows that the first left nothing behind
		with, without := claimed(&Service{PublishedNodes: true}), claimed(&Service{})
		if slices.Contains(without, nodes) || !slices.Equal(with, append(without, nodes)) {
			t.Errorf("got %v with published nodes and %v without, want only that one to differ", with, without)
		}
	}
}
