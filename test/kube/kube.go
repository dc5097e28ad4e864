// Package kube runs a real Kubernetes in a folder, without a container registry:
// etcd, the control plane, the kubelet and kube-proxy as processes of this machine, with
// containerd, runc, and the CNI plugins of the distribution. This machine is its only node, or there are several in guests.
//
//	cluster, err := kube.Up(ctx, kube.Options{Folder: folder, Progress: os.Stdout})
//	...
//	out, err := cluster.Kubectl(ctx, nil, "get", "nodes")
//	...
//	err = cluster.Down(ctx)
//
// Tests take [ForTest]. The command test/kube/cmd/kube builds what is run here, and does the
// same from a shell.
//
// # What is real
//
// The components are those of the release, with their defaults where nothing forbids it.
// Everybody proves who they are by a certificate or a service account's token; RBAC, the Node
// authorizer and NodeRestriction decide what they may do, so a chart that asks for too
// little fails here as it would elsewhere. What is missing: an enforcer of
// NetworkPolicy, and CoreDNS, for which package dns stands in.
//
// # Addresses
//
// The node's address is that of a bridge of its own ([Cluster.Address]), to which the pods are
// connected too. A Ceph that is to be reached from pods, and not only from those with
// hostNetwork, is started with that address (test/ceph, Options.Address).
//
// # Nodes in guests
//
// With [Options].Guests each node is in a small kernel of its own (test/kernel), which has krbd and can be lost as nodes are: see
// [Guest]. Kubelet and containerd run there, from this machine's files; the rest runs here.
//
//	this machine   10.88.77.1           etcd, control plane, kube-proxy, names
//	  bridge, taps
//	guests         10.88.77.11, .12     containerd, kubelet
//	  bridge, of which the guest's interface is a part
//	    pods       10.88.77.30 and up
//
// All are neighbours, so that there is nothing to route. Pods send what is for a service's address to this machine, whose rules pass it on.
// How soon the loss of a node is noticed, and its pods leave it, is seconds in place of minutes. A guest has one processor, on which
// system calls are slow: what runs in pods should be little.
//
// # Who owns what
//
// No process watches over the others. Each is started with the cluster's folder in its
// environment, and that is how it is found again: by this process, by another, or by a [Down]
// long after whoever began it was killed. Processes in pods are found by the cluster's
// cgroup, devices and mounts by their paths, guests by the names that they were given. [Down] removes what is found, and [Left] lists it.
package kube

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Version is the release of Kubernetes that the combined binary is made of.
const Version = "1.37.2"

// EnvCluster names the folder of a running cluster that [ForTest] uses instead of starting one.
const EnvCluster = "RBD_CSI_TEST_KUBE"

// DefaultKubeletRoot is the kubelet's root where nothing else is said. Several specs of
// Kubernetes' own storage suite have it built in.
const DefaultKubeletRoot = "/var/lib/kubelet"

// Options says what cluster to bring up, and where.
type Options struct {
	// Folder holds the cluster's state, logs and credentials; it is made. It must be an
	// absolute path, and short, because there are sockets in it (at most 107 bytes).
	Folder string
	// Binaries is the folder that `kube build` fills.
	Binaries string
	// Images is the folder whose archives (*.tar) are imported; `kube images` fills it.
	Images string
	// Archives are further ones.
	Archives []string
	// KubeletRoot is the kubelet's root; empty means DefaultKubeletRoot. It must be empty or
	// not exist: another kubelet's is refused.
	KubeletRoot string
	// Guests is how many nodes there are, each in a guest (see [Guest]); 0 means that this machine is the only node. At most MostGuests.
	Guests int
	// Progress, unless nil, is told each step and how long it took.
	Progress io.Writer
}

// A Cluster is a handle of a running cluster. Its methods may be called at the same time,
// except for Down.
type Cluster struct {
	state    state
	progress io.Writer
}

// Folder is where the cluster keeps its state; the logs are in its folder log.
func (c *Cluster) Folder() string { return c.state.Folder }

// Binaries is the folder with kubectl and the other commands.
func (c *Cluster) Binaries() string { return c.state.Binaries }

// Address is the IPv4 address on which the API server listens. Where this machine is the node, it is the node's.
func (c *Cluster) Address() string { return c.state.Address }

// Node is the name of the only node, or of the first in a guest.
func (c *Cluster) Node() string { return c.state.Node }

// Nodes are the names of all nodes.
func (c *Cluster) Nodes() []string {
	var names []string
	for _, n := range c.state.nodes() {
		names = append(names, n.name)
	}
	return names
}

// KubeletRoot is the kubelet's root folder.
func (c *Cluster) KubeletRoot() string { return c.state.KubeletRoot }

// Kubeconfig is the path of the administrator's configuration for kubectl and other clients.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.state.Folder, kubeconfigFile) }

// Environ is what to add to the environment of a command that uses the cluster:
// KUBECONFIG, a place for kubectl's cache, and a PATH in which kubectl comes first.
func (c *Cluster) Environ() []string {
	return []string{
		"KUBECONFIG=" + c.Kubeconfig(), "KUBECACHEDIR=" + c.state.data("kubectl"),
		"PATH=" + c.state.Binaries + ":" + os.Getenv("PATH"),
	}
}

// Kubectl runs kubectl as administrator and returns what it prints to standard output. The
// error has what it printed to standard error, and is fault.NotFound if the API server said
// so. Stdin may be nil.
func (c *Cluster) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	return c.state.kubectl(ctx, stdin, args...)
}

// Apply is `kubectl apply` of manifests in YAML.
func (c *Cluster) Apply(ctx context.Context, manifests string) error {
	_, err := c.Kubectl(ctx, strings.NewReader(manifests), "apply", "-f", "-")
	return err
}

// Import makes the images in archives (as package image, buildah, docker and ctr write them) known to the
// nodes, in containerd's namespace of the kubelet. A pod that names one, with the pull policy IfNotPresent or
// Never, uses it.
func (c *Cluster) Import(ctx context.Context, archives ...string) error {
	return c.state.importImages(ctx, archives)
}

// Tag gives an image that the nodes know a second name, or moves that name to it.
func (c *Cluster) Tag(ctx context.Context, image, name string) error {
	return c.state.tagImage(ctx, image, name)
}

// StopKubelet ends the kubelet as a restart of its service would; containers go on. It
// returns when the process is gone. A kubelet in a guest is not reached so, with fault.Unsupported.
func (c *Cluster) StopKubelet(ctx context.Context) error {
	if c.state.Guests > 0 {
		return fmt.Errorf("the kubelets are in guests: %w", fault.Unsupported)
	}
	return c.state.stop(ctx, kubelet)
}

// StartKubelet starts the kubelet again and waits until it answers. That the node is Ready
// then is not said: see WaitReady.
func (c *Cluster) StartKubelet(ctx context.Context) error {
	if c.state.Guests > 0 {
		return fmt.Errorf("the kubelets are in guests: %w", fault.Unsupported)
	}
	return c.state.startKubelet(ctx)
}

// WaitReady waits until each node says that it is ready, in a status that is not older than the call, and the
// kubelet knows the node's pods, so that commands can be run in them.
func (c *Cluster) WaitReady(ctx context.Context) error {
	return c.state.waitReady(ctx, c.state.nodes()...)
}

// Down ends the cluster: pods leave the node as in `kubectl drain`, so that drivers unmount
// their volumes, or guests are killed; then all that the cluster made is removed, and the folder with
// it. What a driver left mounted is unmounted by force. It is not an error if the cluster is half
// there, or gone already.
func (c *Cluster) Down(ctx context.Context) error {
	return Down(ctx, c.state.Folder, c.progress)
}
