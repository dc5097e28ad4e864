// Package identity is the CSI Identity service: who the driver is and which
// services it offers. It asks nobody.
package identity

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A Service answers the Identity calls. Its methods may be called at once.
type Service struct {
	csi.UnimplementedIdentityServer

	// Name is the driver's name, as in StorageClass.provisioner.
	Name string
	// Version is the driver's version.
	Version string
	// Topology says that nodes tell where they are (NodeGetInfo, accessible_topology).
	Topology bool
	// Ready reports whether the process can serve; nil means that it always can.
	Ready func(ctx context.Context) (bool, error)
}

// GetPluginInfo returns name and version.
func (s *Service) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: s.Name, VendorVersion: s.Version}, nil
}

// services are those that the driver has beside Identity and Node. A process claims them for
// the driver as a whole: csi-sanity asks the node's what the controller's can do.
var services = []csi.PluginCapability_Service_Type{
	csi.PluginCapability_Service_CONTROLLER_SERVICE,
	csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE,
	csi.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE,
}

// GetPluginCapabilities says which services there are, that volumes grow while in use, and with
// Topology VOLUME_ACCESSIBILITY_CONSTRAINTS, which the spec demands of a driver whose nodes
// have an accessible_topology.
func (s *Service) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	service := func(kind csi.PluginCapability_Service_Type) *csi.PluginCapability {
		return &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: kind}}}
	}
	online := &csi.PluginCapability{Type: &csi.PluginCapability_VolumeExpansion_{
		VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE},
	}}
	capabilities := []*csi.PluginCapability{online}
	for _, kind := range services {
		capabilities = append(capabilities, service(kind))
	}
	if s.Topology {
		capabilities = append(capabilities, service(csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS))
	}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: capabilities}, nil
}

// Probe answers whether the process is ready.
func (s *Service) Probe(ctx context.Context, _ *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	if s.Ready == nil {
		return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
	}
	ready, err := s.Ready(ctx)
	if err != nil {
		return nil, err
	}
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(ready)}, nil
}
