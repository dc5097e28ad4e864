package dns

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// timeout is shorter than a client's patience, which is 5 s (resolv.conf(5)).
const timeout = 3 * time.Second

// A Cluster resolves names by asking an API server.
type Cluster struct {
	// Server is its URL, and Client one that proves to it who we are.
	Server string
	Client *http.Client
}

// Open reads a kubeconfig that has one cluster and one user, with the certificates in it, written as JSON.
func Open(kubeconfig string) (*Cluster, error) {
	text, err := os.ReadFile(kubeconfig)
	if err != nil {
		return nil, err
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server    string
				Authority []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			}
		}
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", kubeconfig, fault.Invalid, err)
	}
	if len(config.Clusters) != 1 || len(config.Users) != 1 {
		return nil, fmt.Errorf("read %s: not one cluster and one user: %w", kubeconfig, fault.Invalid)
	}
	cluster, user := config.Clusters[0].Cluster, config.Users[0].User
	pair, err := tls.X509KeyPair(user.Certificate, user.Key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", kubeconfig, fault.Invalid, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cluster.Authority)
	settings := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
	return &Cluster{
		Server: cluster.Server,
		Client: &http.Client{Timeout: timeout, Transport: &http.Transport{TLSClientConfig: settings}},
	}, nil
}

// headless is the address of a service that has none (ServiceSpec.clusterIP).
const headless = "None"

// Resolve returns a service's address, or those of its pods if it is headless or one pod is asked for.
func (c *Cluster) Resolve(ctx context.Context, name Name) ([]netip.Addr, error) {
	var service struct {
		Spec struct {
			ClusterIP string
		}
	}
	if err := c.get(ctx, "/api/v1/namespaces/"+url.PathEscape(name.Namespace)+"/services/"+url.PathEscape(name.Service), &service); err != nil {
		return nil, err
	}
	if name.Host == "" && service.Spec.ClusterIP != headless {
		address, err := netip.ParseAddr(service.Spec.ClusterIP)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w: %w", name.Service, fault.NotFound, err)
		}
		return []netip.Addr{address}, nil
	}
	addresses, err := c.pods(ctx, name)
	if err == nil && name.Host != "" && len(addresses) == 0 {
		err = fmt.Errorf("pod %s of service %s: %w", name.Host, name.Service, fault.NotFound)
	}
	return addresses, err
}

// pods returns the addresses of a service's pods, or of the one with the name.
func (c *Cluster) pods(ctx context.Context, name Name) ([]netip.Addr, error) {
	var slices struct {
		Items []struct {
			Endpoints []struct {
				Addresses  []netip.Addr
				Hostname   string
				Conditions struct{ Ready *bool }
			}
		}
	}
	selector := url.QueryEscape("kubernetes.io/service-name=" + name.Service)
	path := "/apis/discovery.k8s.io/v1/namespaces/" + url.PathEscape(name.Namespace) + "/endpointslices?labelSelector=" + selector
	if err := c.get(ctx, path, &slices); err != nil {
		return nil, err
	}
	var found []netip.Addr
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			// Without a condition it is ready (EndpointConditions). With publishNotReadyAddresses the
			// controller itself says so of every pod.
			ready := endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready
			if !ready || name.Host != "" && name.Host != endpoint.Hostname {
				continue
			}
			for _, address := range endpoint.Addresses {
				if address.Is4() {
					found = append(found, address)
				}
			}
		}
	}
	return found, nil
}

func (c *Cluster) get(ctx context.Context, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Server+path, nil)
	if err != nil {
		return err
	}
	answer, err := c.Client.Do(request)
	if err != nil {
		return fmt.Errorf("%w: %w", fault.Unavailable, err)
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
		return json.NewDecoder(answer.Body).Decode(into)
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w", path, fault.NotFound)
	default:
		return fmt.Errorf("%s: %s: %w", path, answer.Status, fault.Unavailable)
	}
}
