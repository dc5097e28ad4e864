// Package registrar makes the driver known to the kubelet of its node.
//
// The kubelet watches a directory for sockets of plug-ins. On each it calls
// GetInfo, connects to the CSI socket it is told there, and reports back. This
// package is that socket, and replaces the node-driver-registrar sidecar. The
// protocol is pluginregistration/v1 of k8s.io/kubelet.
package registrar

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/server"
)

// csiVersion is the version of CSI that the kubelet is told. It knows 1.x.y
// and wants a full version; all of 1.x is compatible.
const csiVersion = "1.0.0"

// A Plugin is a CSI driver as the kubelet is to know it.
type Plugin struct {
	// Driver is the name of the CSI driver, as in its CSIDriver object.
	Driver string
	// Endpoint is the path of the CSI socket as the kubelet sees it, which may
	// differ from where this process has it mounted.
	Endpoint string
}

// Socket returns where the registration socket of plugin belongs below the
// kubelet's root, which is /var/lib/kubelet by default.
func Socket(kubeletRoot string, plugin Plugin) string {
	return filepath.Join(kubeletRoot, "plugins_registry", plugin.Driver+"-reg.sock")
}

// Run registers plugin by the socket (see [Socket]) until ctx ends, and then
// removes the socket, by which the kubelet forgets the driver. Call it when the
// CSI socket listens: the kubelet calls that at once.
//
// If the kubelet reports that it could not register the driver, Run returns an
// error of kind Unavailable with the kubelet's reason. The process should end
// then: the kubelet looks again when the socket comes anew. A kubelet that
// restarts finds the socket and asks again by itself.
func Run(ctx context.Context, socket string, plugin Plugin) error {
	listener, err := server.Listen(socket)
	if err != nil {
		return fmt.Errorf("register driver %s: %w", plugin.Driver, err)
	}
	klog.FromContext(ctx).Info("Offering registration", "driver", plugin.Driver, "socket", socket)
	return serve(ctx, listener, plugin)
}

func serve(ctx context.Context, listener net.Listener, plugin Plugin) error {
	service := &service{plugin: plugin, log: klog.FromContext(ctx), refused: make(chan string, 1)}
	kubelet := grpc.NewServer()
	registration.RegisterRegistrationServer(kubelet, service)
	served := make(chan error, 1)
	go func() { served <- kubelet.Serve(listener) }()

	select {
	case err := <-served:
		return fmt.Errorf("register driver %s: %w: %w", plugin.Driver, fault.Unavailable, err)
	case reason := <-service.refused:
		kubelet.GracefulStop() // the kubelet gets its answer first
		<-served
		return fmt.Errorf("register driver %s: the kubelet refused: %s: %w", plugin.Driver, reason, fault.Unavailable)
	case <-ctx.Done():
		kubelet.Stop() // closes the listener, which removes the socket
		<-served
		return nil
	}
}

// service is what the kubelet calls.
type service struct {
	registration.UnimplementedRegistrationServer
	plugin  Plugin
	log     klog.Logger
	refused chan string // holds the first refusal, which Run returns
}

// GetInfo tells the kubelet which driver is where.
func (s *service) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	s.log.V(2).Info("Asked by the kubelet", "driver", s.plugin.Driver, "endpoint", s.plugin.Endpoint)
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              s.plugin.Driver,
		Endpoint:          s.plugin.Endpoint,
		SupportedVersions: []string{csiVersion},
	}, nil
}

// NotifyRegistrationStatus hears how it went.
func (s *service) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if status.GetPluginRegistered() {
		s.log.Info("Registered", "driver", s.plugin.Driver)
		return &registration.RegistrationStatusResponse{}, nil
	}
	select {
	case s.refused <- status.GetError():
	default:
	}
	return &registration.RegistrationStatusResponse{}, nil
}
