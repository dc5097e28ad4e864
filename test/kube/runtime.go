package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

const (
	// network is the name of the pods' network; what CNI remembers of a pod begins with it.
	network = "rbd-csi-kube"
	// cniResults is where containerd's CNI library remembers for each container what it did; there is
	// no setting for it.
	cniResults = "/var/lib/cni/results"
	cniPlugins = "/usr/lib/cni"
	// PauseImage is the image of every pod's first container.
	PauseImage = "registry.k8s.io/pause:3.10.2"
)

// containerdConfig is for containerd 1.6 and 1.7, which Debian 12 and 13 have; a 2.x reads it too and
// converts it. Runc cannot set an oom_score_adj below its own without CAP_SYS_RESOURCE, which
// machines for tests may lack, and then no container starts: hence restrict_oom_score_adj.
var containerdConfig = template.Must(template.New("containerd").Parse(`version = 2
root = "{{.Data}}/root"
state = "{{.Volatile}}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{{.Socket}}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Volatile}}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Pause}}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{{.Plugins}}"
    conf_dir = "{{.Network}}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "{{.Runtime}}"
        Root = "{{.Volatile}}/runc"
`))

func (s *state) containerdConfig(n node) string { return s.config(n.of(containerd) + ".toml") }

func (s *state) writeRuntimeConfig(n node) error {
	folder := s.config(n.of("cni"))
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	var text bytes.Buffer
	err := containerdConfig.Execute(&text, map[string]string{
		"Data": filepath.Join(n.data, containerd), "Volatile": filepath.Join(n.volatile, containerd), "Socket": n.runtimeSocket(),
		"Pause": PauseImage, "Plugins": cniPlugins, "Network": folder, "Runtime": n.runtime(),
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.containerdConfig(n), text.Bytes(), 0o600); err != nil {
		return err
	}
	plugins, err := json.MarshalIndent(s.network(n), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "10-bridge.conflist"), plugins, 0o600)
}

// runtime is what starts containers. In a guest every system call and every page that is touched first takes ten times as long, and
// runc, which starts itself twice for a container, half a second to two; crun, which is small, takes a fifth of that.
func (n node) runtime() string {
	if n.number > 0 {
		return lookTool("crun")
	}
	return lookTool("runc")
}

// network connects pods to our bridge. The default route leads to it, because the addresses of services
// are nobody's and have to pass the rules of this machine. In hairpin mode a pod
// reaches itself by its service's address. The pods of a guest are connected to a bridge there, of which the guest's interface is a part;
// there are no rules in guests, and thus no ports of nodes that lead to pods.
func (s *state) network(n node) map[string]any {
	addresses := map[string]any{
		"type": "host-local", "dataDir": filepath.Join(n.volatile, "addresses"),
		"ranges": []any{[]any{map[string]any{
			"subnet": s.Subnet + ".0/24", "gateway": s.Address,
			"rangeStart": podAddress(s.Subnet, n.firstPod), "rangeEnd": podAddress(s.Subnet, n.lastPod),
		}}},
	}
	plugins := []any{
		map[string]any{
			"type": "bridge", "bridge": bridgeName, "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "ipam": addresses,
		},
		map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
	}
	if n.number > 0 {
		addresses["routes"] = []any{map[string]any{"dst": "0.0.0.0/0"}}
		plugins = []any{map[string]any{"type": "bridge", "bridge": guestBridge, "ipam": addresses}}
	}
	return map[string]any{"cniVersion": "1.0.0", "name": network, "plugins": plugins}
}

func podAddress(subnet string, last int) string { return fmt.Sprintf("%s.%d", subnet, last) }

// ensureRuntime starts the containerd of the node that is this machine, unless it runs, and waits until it answers.
func (s *state) ensureRuntime(ctx context.Context) error { return s.startRuntime(ctx, s.nodes()[0]) }

func (s *state) startRuntime(ctx context.Context, n node) error {
	if !s.runs(containerd) {
		if err := s.start(containerd, lookTool(containerd), "--config="+s.containerdConfig(n)); err != nil {
			return err
		}
	}
	return s.await(ctx, containerd, startLimit, func(ctx context.Context) error {
		return withRuntime(n, func(client cri.RuntimeServiceClient) error {
			_, err := client.Version(ctx, &cri.VersionRequest{})
			return err
		})
	})
}

// withRuntime calls f with a connection to a node's containerd on this machine.
func withRuntime(n node, f func(cri.RuntimeServiceClient) error) error {
	conn, err := grpc.NewClient("unix://"+n.runtimeSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(cri.NewRuntimeServiceClient(conn))
}

func (s *state) importImages(ctx context.Context, archives []string) error {
	for _, archive := range archives {
		if err := s.images(ctx, "import", archive); err != nil {
			return fmt.Errorf("import %s: %w", archive, err)
		}
	}
	return nil
}

func (s *state) tagImage(ctx context.Context, image, name string) error {
	if err := s.images(ctx, "tag", "--force", image, name); err != nil {
		return fmt.Errorf("tag %s as %s: %w", image, name, err)
	}
	return nil
}

// images runs `ctr images` in the kubelet's namespace, on all nodes.
func (s *state) images(ctx context.Context, args ...string) error {
	return s.eachNode(func(n node) error { return s.imagesOn(ctx, n, args...) })
}

func (s *state) imagesOn(ctx context.Context, n node, args ...string) error {
	args = append([]string{"--address", n.runtimeSocket(), "--namespace", "k8s.io", "images"}, args...)
	if n.number > 0 {
		_, err := s.inGuest(ctx, n, append([]string{"ctr"}, args...)...)
		return err
	}
	_, err := run(ctx, "ctr", args...)
	return err
}

// removePods ends all pods through containerd, which gives their addresses and network namespaces back.
func (s *state) removePods(ctx context.Context) error {
	return withRuntime(s.nodes()[0], func(client cri.RuntimeServiceClient) error {
		list, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		if err != nil {
			return fmt.Errorf("list pods: %w", err)
		}
		var errs []error
		for _, pod := range list.GetItems() {
			_, err := client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.GetId()})
			if err == nil {
				_, err = client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.GetId()})
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("remove pod %s: %w", pod.GetMetadata().GetName(), err))
			}
		}
		return errors.Join(errs...)
	})
}

// A record is what CNI remembers of a container.
type record struct {
	path      string
	namespace string
}

// records returns what CNI remembers of the cluster's pods. After removePods that is nothing.
func records() []record {
	files, err := filepath.Glob(filepath.Join(cniResults, "*"))
	if err != nil {
		return nil
	}
	var found []record
	for _, path := range files {
		var content struct {
			NetworkName string `json:"networkName"`
			NetNS       string `json:"netns"`
		}
		text, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(text, &content) != nil {
			continue
		}
		if content.NetworkName == network {
			found = append(found, record{path: path, namespace: content.NetNS})
		}
	}
	return found
}

// forgetPods removes the network namespaces of pods, and CNI's memory of them, where containerd could not any more.
func forgetPods() error {
	var errs []error
	for _, r := range records() {
		if strings.HasPrefix(filepath.Base(r.namespace), "cni-") && exists(r.namespace) {
			errs = append(errs, unmount(r.namespace), removeFile(r.namespace))
		}
		id := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(r.path), network+"-"), "-eth0")
		errs = append(errs, removeFile(r.path), removeFile(filepath.Join(cniResults, "cni-loopback-"+id+"-lo")))
	}
	return errors.Join(errs...)
}

// kubectl runs kubectl as administrator.
func (s *state) kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, s.binary("kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig(adminName), "KUBECACHEDIR="+s.data("kubectl"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &said
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	kind := fault.Unknown
	if strings.Contains(said.String(), "(NotFound)") {
		kind = fault.NotFound
	}
	return out.String(), fmt.Errorf("kubectl %s: %w: %w: %s", strings.Join(args, " "), kind, err, strings.TrimSpace(said.String()))
}
