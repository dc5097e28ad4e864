package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// How long to wait for a component, on a machine that does other things besides.
const (
	startLimit = time.Minute
	readyLimit = 3 * time.Minute
)

func (s *state) startEtcd() error {
	client, peer := "https://"+s.Address+":2379", "https://"+s.Address+":2380"
	return s.start(etcd, s.binary(etcd),
		"--name="+s.Node, "--data-dir="+s.data(etcd),
		// The data is gone with the folder, and must not wait for the disk.
		"--unsafe-no-fsync",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster="+s.Node+"="+peer,
		"--client-cert-auth", "--trusted-ca-file="+s.pki("ca.crt"), "--cert-file="+s.pki("etcd.crt"), "--key-file="+s.pki("etcd.key"),
		"--peer-client-cert-auth", "--peer-trusted-ca-file="+s.pki("ca.crt"), "--peer-cert-file="+s.pki("etcd.crt"), "--peer-key-file="+s.pki("etcd.key"))
}

func (s *state) startAPIServer() error {
	// How long pods stay on a node that is lost, where they do not say it themselves.
	toleration := "300"
	if s.Guests > 0 {
		toleration = "5"
	}
	return s.start(apiserver, s.binary(apiserver),
		"--default-not-ready-toleration-seconds="+toleration, "--default-unreachable-toleration-seconds="+toleration,
		"--bind-address="+s.Address, "--advertise-address="+s.Address, "--secure-port=6443",
		"--etcd-servers=https://"+s.Address+":2379", "--etcd-cafile="+s.pki("ca.crt"),
		"--etcd-certfile="+s.pki("apiserver-to-etcd.crt"), "--etcd-keyfile="+s.pki("apiserver-to-etcd.key"),
		"--tls-cert-file="+s.pki("apiserver.crt"), "--tls-private-key-file="+s.pki("apiserver.key"),
		"--client-ca-file="+s.pki("ca.crt"), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true", "--service-cluster-ip-range="+serviceSubnet+".0/24",
		"--kubelet-certificate-authority="+s.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--kubelet-client-certificate="+s.pki("apiserver-to-kubelet.crt"), "--kubelet-client-key="+s.pki("apiserver-to-kubelet.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+s.pki("service-accounts.pub"), "--service-account-signing-key-file="+s.pki("service-accounts.key"))
}

// startController starts the controller manager or the scheduler. There is one of each, so nobody has to be elected,
// and nobody asks them for figures.
func (s *state) startController(name string, more ...string) error {
	config := s.kubeconfig(name)
	return s.start(name, s.binary(name), append([]string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--leader-elect=false", "--secure-port=0",
	}, more...)...)
}

func (s *state) startControllers() error {
	flags := []string{
		"--use-service-account-credentials", "--root-ca-file=" + s.pki("ca.crt"),
		"--service-account-private-key-file=" + s.pki("service-accounts.key"),
	}
	if s.Guests > 0 {
		flags = append(flags, "--node-monitor-period=1s", "--node-monitor-grace-period=8s")
	}
	if err := s.startController(controllers, flags...); err != nil {
		return err
	}
	return s.startController(scheduler)
}

func (s *state) startProxy() error {
	return s.start(proxy, s.binary(proxy),
		"--kubeconfig="+s.kubeconfig(proxy), "--hostname-override="+s.Node, "--proxy-mode=iptables",
		// Answers of a pod on the same bridge would otherwise reach the asking pod past the rules that
		// restore the service's address, unless the kernel's br_netfilter is on.
		"--masquerade-all", "--cluster-cidr="+s.Subnet+".0/24",
		// The machine's settings for connection tracking stay as they are.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
		"--healthz-bind-address="+s.Address+":10256", "--metrics-bind-address="+s.Address+":10249")
}

func (s *state) startNames() error {
	return s.start(names, s.binary(names), "-kubeconfig="+s.kubeconfig(names), "-listen="+s.Address+":53")
}

// startKubelet starts the kubelet and waits until it answers.
func (s *state) startKubelet(ctx context.Context) error {
	if s.runs(kubelet) {
		return fmt.Errorf("the kubelet runs: %w", fault.Exists)
	}
	n := s.nodes()[0]
	if err := s.start(kubelet, s.binary(kubelet), s.kubeletFlags(n)...); err != nil {
		return err
	}
	return s.await(ctx, kubelet, startLimit, n.kubeletAnswers)
}

func (s *state) kubeletFlags(n node) []string {
	flags := []string{
		"--config=" + s.kubeletConfigFile(n), "--kubeconfig=" + s.kubeconfig(n.of(kubelet)), "--root-dir=" + n.kubeletRoot,
		"--hostname-override=" + n.name, "--node-ip=" + n.address, "--v=2",
	}
	if n.number > 0 {
		flags = append(flags, "--housekeeping-interval=1m") // like the settings below
	}
	return flags
}

func (n node) kubeletAnswers(ctx context.Context) error {
	return ask(ctx, http.DefaultClient, "http://"+n.address+":10248/healthz")
}

// kubeletConfig is a KubeletConfiguration (kubelet.config.k8s.io/v1beta1); JSON is YAML.
func (s *state) kubeletConfig(n node) map[string]any {
	config := map[string]any{
		"apiVersion":               "kubelet.config.k8s.io/v1beta1",
		"kind":                     "KubeletConfiguration",
		"address":                  n.address,
		"port":                     10250,
		"readOnlyPort":             0,
		"healthzBindAddress":       n.address,
		"healthzPort":              10248,
		"tlsCertFile":              s.pki(n.of("kubelet-server") + ".crt"),
		"tlsPrivateKeyFile":        s.pki(n.of("kubelet-server") + ".key"),
		"authentication":           map[string]any{"anonymous": on(false), "webhook": on(true), "x509": map[string]any{"clientCAFile": s.pki("ca.crt")}},
		"authorization":            map[string]any{"mode": "Webhook"},
		"containerRuntimeEndpoint": "unix://" + n.runtimeSocket(),
		"clusterDNS":               []string{s.Address},
		"clusterDomain":            clusterDomain,
		"resolvConf":               "",
		"cgroupRoot":               n.cgroup,
		"cgroupDriver":             "cgroupfs",
		// Machines with version 1 still are what tests run on.
		"failCgroupV1":           false,
		"failSwapOn":             false,
		"makeIPTablesUtilChains": false,
		"podLogsDir":             filepath.Join(n.data, "pods"),
		"volumePluginDir":        filepath.Join(n.data, "volume-plugins"),
		// The disk may be nearly full, and images are not to be had again.
		"evictionHard":                map[string]any{"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%"},
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
		// Tests look at what the node says of itself and its volumes.
		"nodeStatusUpdateFrequency": "5s",
		"volumeStatsAggPeriod":      "10s",
		"syncFrequency":             "10s",
	}
	if n.number > 0 {
		maps.Copy(config, guestSettings())
	}
	return config
}

// guestSettings are what a kubelet in a guest is told else.
func guestSettings() map[string]any {
	return map[string]any{
		// The loss of a node is to be noticed soon. The controllers are told likewise (see startControllers).
		"nodeLeaseDurationSeconds": 8,
		// There is no controller cpuset, with which the kubelet would do so.
		"enforceNodeAllocatable": []string{"none"},
		// System calls cost twenty times as much as elsewhere, and looking around is made of them.
		"volumeStatsAggPeriod": "1m",
		"syncFrequency":        "1m",
	}
}

func on(enabled bool) map[string]any { return map[string]any{"enabled": enabled} }

func (s *state) kubeletConfigFile(n node) string { return s.config(n.of(kubelet) + ".json") }

func (s *state) writeKubeletConfig(n node) error {
	text, err := json.MarshalIndent(s.kubeletConfig(n), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(s.kubeletConfigFile(n), text, 0o600)
}

func (s *state) waitEtcd(ctx context.Context) error {
	client, err := s.client("apiserver-to-etcd")
	if err != nil {
		return err
	}
	return s.await(ctx, etcd, startLimit, func(ctx context.Context) error {
		return ask(ctx, client, "https://"+s.Address+":2379/health")
	})
}

func (s *state) waitAPIServer(ctx context.Context) error {
	client, err := s.client(adminName)
	if err != nil {
		return err
	}
	return s.await(ctx, apiserver, readyLimit, func(ctx context.Context) error {
		return ask(ctx, client, s.server()+"/readyz")
	})
}

// waitReady waits for a status of each node that was written after the call and says ready, and until the kubelets
// know the nodes' pods: one that was just started learns of them a moment later, and until then
// refuses to show their logs or to run commands in them.
func (s *state) waitReady(ctx context.Context, nodes ...node) error {
	// The status has whole seconds.
	since := time.Now().Truncate(time.Second)
	for _, n := range nodes {
		err := s.awaitKubelet(ctx, n, readyLimit, func(ctx context.Context) error {
			if err := s.nodeReady(ctx, n.name, since); err != nil {
				return err
			}
			return s.podsKnown(ctx, n.name)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// awaitKubelet is await for a node's kubelet, or, of one in a guest, for as long as the guest runs.
func (s *state) awaitKubelet(ctx context.Context, n node, limit time.Duration, done func(context.Context) error) error {
	if n.number == 0 {
		return s.await(ctx, kubelet, limit, done)
	}
	return s.awaitInGuest(ctx, n, kubelet, limit, done)
}

func (s *state) nodeReady(ctx context.Context, name string, since time.Time) error {
	const condition = `jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime} {.message}{end}`
	out, err := s.kubectl(ctx, nil, "get", "node", name, "-o", condition)
	if err != nil {
		return err
	}
	var status, said string
	if _, err := fmt.Sscan(out, &status, &said); err != nil {
		return fmt.Errorf("%s has no condition Ready: %w", name, fault.Unavailable)
	}
	at, err := time.Parse(time.RFC3339, said)
	if err != nil || status != "True" || at.Before(since) {
		return fmt.Errorf("%s is not ready: %s: %w", name, out, fault.Unavailable)
	}
	return nil
}

func (s *state) podsKnown(ctx context.Context, name string) error {
	var wanted, known podList
	out, err := s.kubectl(ctx, nil, "get", "pods", "--all-namespaces", "--field-selector=spec.nodeName="+name, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &wanted)
	}
	if err != nil {
		return err
	}
	if out, err = s.kubectl(ctx, nil, "get", "--raw", "/api/v1/nodes/"+name+"/proxy/pods"); err == nil {
		err = json.Unmarshal([]byte(out), &known)
	}
	if err != nil {
		return err
	}
	for _, pod := range wanted.Items {
		if !slices.Contains(known.Items, pod) {
			return fmt.Errorf("the kubelet of %s does not know of pod %s yet: %w", name, pod.Metadata.Name, fault.Unavailable)
		}
	}
	return nil
}

// A podList is what podsKnown compares.
type podList struct {
	Items []struct{ Metadata struct{ Name, UID string } }
}

// client makes an HTTP client that proves to be one of the cluster's parties.
func (s *state) client(file string) (*http.Client, error) {
	pair, err := tls.LoadX509KeyPair(s.pki(file+".crt"), s.pki(file+".key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(s.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}},
	}, nil
}

// ask is without error if a page is there.
func ask(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, lastWords))
		return fmt.Errorf("%s: %s: %w: %s", url, answer.Status, fault.Unavailable, text)
	}
	return nil
}

// makeFolders makes the folders that the components do not make themselves.
func (s *state) makeFolders() error {
	for _, name := range []string{"pki", "config", "log", etcd, containerd, "pods", "volume-plugins", guestsFolder} {
		// etcd complains about others' access to its folder.
		if err := os.MkdirAll(s.data(name), 0o700); err != nil {
			return err
		}
	}
	return nil
}
