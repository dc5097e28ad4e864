package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/demo/story"
	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

const (
	// installLimit is how long Helm waits for the pods, and registerLimit how long the kubelet may take to ask a
	// new socket what driver it is.
	installLimit  = 3 * time.Minute
	registerLimit = time.Minute
)

// values are what the chart is installed with, beside its defaults. Snapshots are on because the cluster has their API.
func values(f findings, filesystem string, metadata map[string]any) map[string]any {
	// An image that was built anew has the old one's tag, and pods would not be replaced for it.
	image := map[string]any{Driver + "/image-id": f.id}
	return map[string]any{
		// What others put into the trash is freed after less time than by default: tests wait for it.
		"controller": map[string]any{"podAnnotations": image, "extraArgs": []any{"--purge-every=10s"}},
		// Likewise what went bad under a pod.
		"node": map[string]any{"podAnnotations": image, "heal": "restart", "extraArgs": []any{"--heal-every=2s"}},
		// There is no registry: what is not imported is not to be had.
		"image": map[string]any{"repository": f.repository, "tag": f.tag, "pullPolicy": "Never"},
		"clusters": []any{
			map[string]any{"name": Cluster, "secretName": ClusterSecret},
			map[string]any{"name": Rook, "rook": map[string]any{}},
		},
		"storageClasses": []any{map[string]any{
			"name": Class, "default": true, "cluster": Cluster, "pool": Pool,
			"parameters": map[string]any{"csi.storage.k8s.io/fstype": filesystem},
		}},
		"volumeSnapshotClasses":      []any{map[string]any{"name": SnapshotClass, "default": true}},
		"volumeGroupSnapshotClasses": []any{map[string]any{"name": SnapshotClass, "default": true}},
		"snapshotMetadata":           metadata,
		"classSecretNamespaces":      []any{SecretsNamespace},
		// The scheduler asks whether the pool has room.
		"csiDriver": map[string]any{"storageCapacity": true},
		// What was refused is tried again, and room is asked for, after less time than by default: tests wait for it. And
		// Kubernetes' own suite looks for the room of a class with immediate binding, which no scheduler asks for.
		"sidecars": map[string]any{
			"provisioner": map[string]any{
				"retryIntervalMax": "10s", "capacityPollInterval": "10s", "extraArgs": []any{"--capacity-for-immediate-binding"},
			},
			"snapshotter": map[string]any{"retryIntervalMax": "10s"},
		},
	}
}

// filesystem is that of the default class. Where root lacks CAP_SYS_RESOURCE, no mounted ext4 grows; in a guest it does not.
func (l *Lab) filesystem() string {
	if len(l.Kube.Guests()) > 0 {
		return "ext4"
	}
	return story.GrowingFilesystem()
}

// lighten changes values for nodes in guests, which have one slow processor each: when one is lost, the other has to run all that both
// ran. So there is one controller, without the sidecars for snapshots.
func lighten(values map[string]any) {
	if controller, ok := values["controller"].(map[string]any); ok {
		controller["replicas"] = 1
	}
	values["snapshots"] = map[string]any{"enabled": false}
	for _, name := range []string{"volumeSnapshotClasses", "volumeGroupSnapshotClasses", "snapshotMetadata"} {
		delete(values, name)
	}
}

// ValuesFile is the path of the values that the chart is installed with, for `helm upgrade --values`.
func (l *Lab) ValuesFile() string { return filepath.Join(l.folder(), "values.yaml") }

// install imports the driver's image, makes the Secret and installs the chart.
func (l *Lab) install(ctx context.Context, f findings, more map[string]any, say *progress.Narrator) error {
	if !f.imported {
		if err := l.Kube.Import(ctx, f.archive); err != nil {
			return err
		}
	}
	say.Line("the driver's image %s:%s", f.repository, f.tag)
	if err := l.applySecrets(ctx); err != nil {
		return fmt.Errorf("make the Secrets: %w", err)
	}
	metadata, err := l.metadataValues()
	if err != nil {
		return err
	}
	all := values(f, l.filesystem(), metadata)
	if len(l.Kube.Guests()) > 0 {
		lighten(all)
	}
	text, err := yaml.Marshal(all)
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.ValuesFile(), text, 0o644); err != nil {
		return err
	}
	if err := l.Upgrade(ctx, more); err != nil {
		return err
	}
	say.Line("the chart is installed, and the driver is registered at %s", strings.Join(l.Kube.Nodes(), ", "))
	return nil
}

// applySecrets makes the namespaces, the Secret with the monitors' addresses and the driver's key, and those of other programs. The
// keys go by standard input, which nobody else sees.
func (l *Lab) applySecrets(ctx context.Context) error {
	folder, err := l.Ceph.ClusterDir(ctx, User)
	if err != nil {
		return err
	}
	data := map[string]string{}
	for _, name := range []string{"ceph.conf", "keyring"} {
		text, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return err
		}
		data[name] = base64.StdEncoding.EncodeToString(text)
	}
	rook, err := l.rookObjects(filepath.Join(folder, "keyring"))
	if err != nil {
		return err
	}
	metadata, err := l.metadataObject()
	if err != nil {
		return err
	}
	return l.Kube.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: Namespace
metadata:
  name: %[1]s
  labels: {pod-security.kubernetes.io/enforce: privileged}
---
apiVersion: v1
kind: Namespace
metadata: {name: %[2]s}
---
apiVersion: v1
kind: Secret
metadata: {name: %[3]s, namespace: %[1]s}
data:
  ceph.conf: %[4]s
  keyring: %[5]s
---
`, Namespace, SecretsNamespace, ClusterSecret, data["ceph.conf"], data["keyring"])+rook+"---\n"+metadata)
}

var (
	keyLine  = regexp.MustCompile(`key\s*=\s*(\S+)`)
	version1 = regexp.MustCompile(`v1:([^,\]]+)`)
)

// rookObjects are the ConfigMap and the Secrets that Rook makes for a CephCluster, under its names.
func (l *Lab) rookObjects(keyring string) (string, error) {
	text, err := os.ReadFile(keyring)
	if err != nil {
		return "", err
	}
	key := keyLine.FindSubmatch(text)
	if key == nil {
		return "", fmt.Errorf("%s holds no key: %w", keyring, fault.Invalid)
	}
	var endpoints []string
	for i, monitor := range l.Ceph.Monitors() {
		address := version1.FindStringSubmatch(monitor)
		if address == nil {
			return "", fmt.Errorf("monitor %s has no address of version 1: %w", monitor, fault.Invalid)
		}
		endpoints = append(endpoints, string(rune('a'+i))+"="+address[1])
	}
	var objects strings.Builder
	fmt.Fprintf(&objects, `apiVersion: v1
kind: ConfigMap
metadata: {name: rook-ceph-mon-endpoints, namespace: %s}
data: {data: %q}
`, Namespace, strings.Join(endpoints, ","))
	for _, name := range []string{"rook-csi-rbd-provisioner", "rook-csi-rbd-node"} {
		fmt.Fprintf(&objects, `---
apiVersion: v1
kind: Secret
metadata: {name: %s, namespace: %s}
stringData: {userID: %s, userKey: %q}
`, name, Namespace, User, key[1])
	}
	return objects.String(), nil
}

// Upgrade installs the chart, or changes its values: those of [Lab.ValuesFile] with the given ones merged over them, which may be
// nil. It returns when the pods are ready and each node's CSINode lists the driver. What an earlier Upgrade gave
// besides is forgotten.
func (l *Lab) Upgrade(ctx context.Context, more map[string]any) error {
	return l.upgrade(ctx, l.chart(), more)
}

// UpgradeTo is Upgrade to a release of another version: chart and driver are those of the tree, packed and
// tagged as that version. Upgrade goes back to the tree's.
func (l *Lab) UpgradeTo(ctx context.Context, version string) error {
	text, err := os.ReadFile(l.ValuesFile())
	if err != nil {
		return err
	}
	var installed struct {
		Image struct{ Repository, Tag string }
	}
	if err := yaml.Unmarshal(text, &installed); err != nil {
		return fmt.Errorf("read %s: %w", l.ValuesFile(), err)
	}
	image := installed.Image.Repository
	if err := l.Kube.Tag(ctx, image+":"+installed.Image.Tag, image+":"+version); err != nil {
		return err
	}
	if _, err := l.Helm(ctx, "package", l.chart(), "--version", version, "--app-version", version, "--destination", l.folder()); err != nil {
		return err
	}
	packed := filepath.Join(l.folder(), "rbd-csi-"+version+".tgz")
	return l.upgrade(ctx, packed, map[string]any{"image": map[string]any{"tag": version}})
}

func (l *Lab) upgrade(ctx context.Context, chart string, more map[string]any) error {
	args := []string{
		"upgrade", Release, chart, "--install", "--namespace", Namespace,
		// The other way of waiting, Helm 4's own, also waits for the pods of the workers to be of the newest template,
		// which are replaced by hand only.
		"--wait=legacy", "--timeout", installLimit.String(), "--values", l.ValuesFile(),
	}
	if more != nil {
		text, err := yaml.Marshal(more)
		if err != nil {
			return err
		}
		path := filepath.Join(l.folder(), "more.yaml")
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
		args = append(args, "--values", path)
	}
	if _, err := l.Helm(ctx, args...); err != nil {
		return err
	}
	if err := l.awaitPods(ctx); err != nil {
		return err
	}
	return l.AwaitDriver(ctx)
}

// awaitPods waits until all of the driver's pods are ready. Helm is content with as many as an upgrade may take away at a
// time, which of a single node's is none.
func (l *Lab) awaitPods(ctx context.Context) error {
	for _, args := range [][]string{
		{"rollout", "status", "deployment/" + Release + "-controller"},
		{"rollout", "status", "daemonset/" + Release + "-node"},
		{"wait", "pods", "--for", "condition=Ready", "--selector", "app.kubernetes.io/component=workers"},
	} {
		_, err := l.Kube.Kubectl(ctx, nil, append(args, "--namespace", Namespace, "--timeout", installLimit.String())...)
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) top() string   { return l.places.Top() }
func (l *Lab) chart() string { return filepath.Join(l.top(), "charts", "rbd-csi") }

// Helm runs helm as administrator and returns what it prints to standard output. The error has what it printed to
// standard error.
func (l *Lab) Helm(ctx context.Context, args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(l.top(), "build", "helm"), args...)
	own := filepath.Join(l.folder(), "helm")
	cmd.Env = append(os.Environ(), append(l.Kube.Environ(),
		"HELM_CACHE_HOME="+own, "HELM_CONFIG_HOME="+own, "HELM_DATA_HOME="+own)...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("helm %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// AwaitDriver waits until each node's CSINode lists the driver: before, no pod with a volume of it starts there.
func (l *Lab) AwaitDriver(ctx context.Context) error {
	for _, node := range l.Kube.Nodes() {
		if err := l.awaitDriver(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) awaitDriver(ctx context.Context, node string) error {
	return Await(ctx, registerLimit, "the CSINode of "+node+" lists "+Driver, func(ctx context.Context) (bool, string, error) {
		out, err := l.Kube.Kubectl(ctx, nil, "get", "csinode", node, "-o", "jsonpath={.spec.drivers[*].name}")
		found := false
		for name := range strings.FieldsSeq(out) {
			found = found || name == Driver
		}
		return found, "it lists " + cmp.Or(out, "none"), ignore(err, fault.NotFound)
	})
}
