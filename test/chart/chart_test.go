package chart

import (
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
)

func TestLint(t *testing.T) {
	for _, name := range cases {
		t.Run(or(name, "default"), func(t *testing.T) {
			if err := Lint(directory, releaseOf(t, name)); err != nil {
				t.Error(err)
			}
		})
	}
}

func or(name, other string) string {
	if name == "" {
		return other
	}
	return name
}

// TestEveryObject reads every object strictly and looks at what all of them have in common.
func TestEveryObject(t *testing.T) {
	for _, name := range cases {
		t.Run(or(name, "default"), func(t *testing.T) {
			release := releaseOf(t, name)
			seen := map[string]bool{}
			for _, o := range render(t, release) {
				accessor, err := meta.Accessor(o.Object)
				if err != nil {
					t.Fatal(err)
				}
				if seen[o.name()+accessor.GetNamespace()] {
					t.Errorf("%s: is there twice", o.name())
				}
				seen[o.name()+accessor.GetNamespace()] = true
				for _, key := range []string{"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component", "helm.sh/chart"} {
					if accessor.GetLabels()[key] == "" {
						t.Errorf("%s: got no label %s, want one", o.name(), key)
					}
				}
				if wide := clusterWide(o); wide != (accessor.GetNamespace() == "") {
					t.Errorf("%s: got namespace %q, want one only if it is not of the whole cluster", o.name(), accessor.GetNamespace())
				}
			}
		})
	}
}

// clusterWide returns whether an object is in no namespace.
func clusterWide(o object) bool {
	kind := o.GetObjectKind().GroupVersionKind().Kind
	return slices.Contains([]string{
		"CSIDriver", "StorageClass", "VolumeSnapshotClass", "VolumeGroupSnapshotClass", "SnapshotMetadataService",
		"ClusterRole", "ClusterRoleBinding",
		"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
	}, kind)
}

// TestDefaults pins which objects there are by default: each of them is something that a cluster's owner has to accept.
func TestDefaults(t *testing.T) {
	var got []string
	for _, o := range render(t, releaseOf(t, "")) {
		got = append(got, o.name())
	}
	slices.Sort(got)
	want := []string{
		"CSIDriver rbd-csi.io",
		"ClusterRole storage-rbd-csi-controller",
		"ClusterRole storage-rbd-csi-node",
		"ClusterRoleBinding storage-rbd-csi-controller",
		"ClusterRoleBinding storage-rbd-csi-node",
		"ConfigMap rbd-csi-uninstall",
		"DaemonSet rbd-csi-node",
		"DaemonSet rbd-csi-workers",
		"Deployment rbd-csi-controller",
		"PodDisruptionBudget rbd-csi-controller",
		"Role rbd-csi-controller",
		"RoleBinding rbd-csi-controller",
		"Service rbd-csi-controller-metrics",
		"Service rbd-csi-node-metrics",
		"ServiceAccount rbd-csi-controller",
		"ServiceAccount rbd-csi-node",
		"ServiceAccount rbd-csi-workers",
		"ValidatingAdmissionPolicy storage-rbd-csi-uninstall-attached",
		"ValidatingAdmissionPolicy storage-rbd-csi-uninstall-deleting",
		"ValidatingAdmissionPolicyBinding storage-rbd-csi-uninstall-attached",
		"ValidatingAdmissionPolicyBinding storage-rbd-csi-uninstall-deleting",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got objects\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestCSIDriver(t *testing.T) {
	spec := one[*storagev1.CSIDriver](t, render(t, releaseOf(t, "")), "rbd-csi.io").Spec
	for _, field := range []struct {
		name      string
		got, want any
	}{
		{"attachRequired", *spec.AttachRequired, true},
		{"podInfoOnMount", *spec.PodInfoOnMount, true},
		{"fsGroupPolicy", *spec.FSGroupPolicy, storagev1.FileFSGroupPolicy},
		{"seLinuxMount", *spec.SELinuxMount, true},
		{"storageCapacity", *spec.StorageCapacity, false},
		{"requiresRepublish", *spec.RequiresRepublish, false},
		{"volumeLifecycleModes", fmt.Sprint(spec.VolumeLifecycleModes), "[Persistent]"},
		{"nodeAllocatableUpdatePeriodSeconds", spec.NodeAllocatableUpdatePeriodSeconds == nil, true},
	} {
		if field.got != field.want {
			t.Errorf("%s: got %v, want %v", field.name, field.got, field.want)
		}
	}
	all := one[*storagev1.CSIDriver](t, render(t, releaseOf(t, "everything")), "").Spec
	if !*all.StorageCapacity || all.NodeAllocatableUpdatePeriodSeconds == nil || *all.NodeAllocatableUpdatePeriodSeconds != 60 {
		t.Errorf("got storageCapacity %v and nodeAllocatableUpdatePeriodSeconds %v, want true and 60", *all.StorageCapacity, all.NodeAllocatableUpdatePeriodSeconds)
	}
}

// TestSelectors has each selector find the pods that it is for, and no others.
func TestSelectors(t *testing.T) {
	for _, name := range cases {
		objects := render(t, releaseOf(t, name))
		selectors := map[string]map[string]string{}
		for _, s := range of[*corev1.Service](objects) {
			selectors["Service "+s.Name] = s.Spec.Selector
		}
		for _, b := range of[*policyv1.PodDisruptionBudget](objects) {
			selectors["PodDisruptionBudget "+b.Name] = b.Spec.Selector.MatchLabels
		}
		for _, p := range of[*networkingv1.NetworkPolicy](objects) {
			selectors["NetworkPolicy "+p.Name] = p.Spec.PodSelector.MatchLabels
		}
		for _, d := range of[*appsv1.Deployment](objects) {
			selectors["Deployment "+d.Name] = d.Spec.Selector.MatchLabels
		}
		for _, d := range of[*appsv1.DaemonSet](objects) {
			selectors["DaemonSet "+d.Name] = d.Spec.Selector.MatchLabels
		}
		for what, selector := range selectors {
			var found []string
			for pod, template := range pods(objects) {
				if labels.SelectorFromSet(selector).Matches(labels.Set(template.Labels)) {
					found = append(found, pod)
				}
			}
			if len(found) != 1 || part(found[0]) != part(what) {
				t.Errorf("%s: %s: got pods of %v, want those of the same part only", or(name, "default"), what, found)
			}
		}
	}
}

// part returns which part of the driver an object is named after. The controllers answer what changed between snapshots.
func part(name string) string {
	name = strings.ReplaceAll(name, "-snapshot-metadata", "-controller")
	for _, part := range []string{"controller", "node", "workers"} {
		if strings.Contains(name, "-"+part) {
			return part
		}
	}
	return ""
}

// TestNothingThatChangesIsInATemplate renders two versions of the chart: an upgrade changes the image and nothing else.
func TestNothingThatChangesIsInATemplate(t *testing.T) {
	copied := filepath.Join(t.TempDir(), "rbd-csi")
	if err := os.CopyFS(copied, os.DirFS(directory)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(copied, "Chart.yaml")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.ReplaceAll(string(content), "ersion: "+version(t), "ersion: 99.1.0")
	if err := os.WriteFile(file, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"templates/node/daemonset.yaml", "templates/workers/daemonset.yaml", "templates/controller/deployment.yaml"} {
		release := releaseOf(t, "cluster")
		before, after := template(t, directory, release, path), template(t, copied, release, path)
		if before == after {
			t.Errorf("%s: got the same image for another version, want another", path)
		}
		if renamed := strings.ReplaceAll(after, "rbd-csi:99.1.0", "rbd-csi:"+version(t)); renamed != before {
			t.Errorf("%s: the pods' template changes with the version:\n%s", path, after)
		}
		// A changed Secret is read by the driver itself.
		release.Values["storageClasses"] = nil
		if other := template(t, directory, release, path); other != before {
			t.Errorf("%s: the pods' template changes with the StorageClasses", path)
		}
	}
}

// template returns the pods' template of an object, as text.
func template(t *testing.T, directory string, release Release, path string) string {
	t.Helper()
	texts, err := Render(directory, release)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range pods(read(t, path, texts[path])) {
		content, err := yaml.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	t.Fatalf("%s has no pods", path)
	return ""
}

func TestStorageClasses(t *testing.T) {
	objects := render(t, releaseOf(t, "everything"))
	fast := one[*storagev1.StorageClass](t, objects, "fast")
	wantParameters := map[string]string{
		"cluster": "a.b", "pool": "nvme", "fsType": "xfs", "objectSize": "8Mi",
		"csi.storage.k8s.io/provisioner-secret-name":      "user",
		"csi.storage.k8s.io/provisioner-secret-namespace": "team-a",
	}
	if !maps.Equal(fast.Parameters, wantParameters) {
		t.Errorf("parameters: got %v, want %v", fast.Parameters, wantParameters)
	}
	got := fmt.Sprint(fast.Provisioner, *fast.ReclaimPolicy, *fast.VolumeBindingMode, *fast.AllowVolumeExpansion, fast.MountOptions,
		len(fast.AllowedTopologies), fast.Annotations["storageclass.kubernetes.io/is-default-class"], fast.Annotations["note"])
	want := fmt.Sprint("other.example.com", "Retain", "WaitForFirstConsumer", false, []string{"discard", "noatime"}, 1, "true", "a: b")
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	slow := one[*storagev1.StorageClass](t, objects, "slow")
	got = fmt.Sprint(*slow.ReclaimPolicy, *slow.VolumeBindingMode, *slow.AllowVolumeExpansion, slow.Annotations)
	if want := fmt.Sprint("Delete", "Immediate", true, map[string]string{}); got != want {
		t.Errorf("defaults: got %s, want %s", got, want)
	}
}

func TestObjectsOfOthersCRDs(t *testing.T) {
	found := map[string]*unstructured.Unstructured{}
	for _, o := range of[*unstructured.Unstructured](render(t, releaseOf(t, "everything"))) {
		found[o.GetAPIVersion()+" "+o.GetKind()] = o
	}
	class, group := found["snapshot.storage.k8s.io/v1 VolumeSnapshotClass"], found["groupsnapshot.storage.k8s.io/v1 VolumeGroupSnapshotClass"]
	metadata, monitor := found["cbt.storage.k8s.io/v1beta1 SnapshotMetadataService"], found["monitoring.coreos.com/v1 ServiceMonitor"]
	if class == nil || group == nil || metadata == nil || monitor == nil || len(found) != 4 {
		t.Fatalf("got %v, want classes of snapshots and of group snapshots, a SnapshotMetadataService and a ServiceMonitor", slices.Collect(maps.Keys(found)))
	}
	if class.Object["driver"] != "other.example.com" || class.Object["deletionPolicy"] != "Retain" {
		t.Errorf("VolumeSnapshotClass: got %v", class.Object)
	}
	if group.Object["driver"] != "other.example.com" || fmt.Sprint(group.Object["parameters"]) != "map[b:2]" || len(group.GetAnnotations()) != 0 {
		t.Errorf("VolumeGroupSnapshotClass: got %v", group.Object)
	}
	const text = "-----BEGIN CERTIFICATE-----\nnot-a-certificate\n-----END CERTIFICATE-----\n"
	want := map[string]any{"address": "other-snapshot-metadata.storage:7443", "audience": "other.example.com", "caCert": base64.StdEncoding.EncodeToString([]byte(text))}
	if spec := metadata.Object["spec"]; metadata.GetName() != "other.example.com" || !reflect.DeepEqual(spec, want) {
		t.Errorf("SnapshotMetadataService: got %s with %v, want that of the driver, with %v", metadata.GetName(), spec, want)
	}
	monitorsAll(t, monitor)
}

// monitorsAll checks that a ServiceMonitor asks each port of the Services for metrics, and no other.
func monitorsAll(t *testing.T, monitor *unstructured.Unstructured) {
	t.Helper()
	var got, want []string
	endpoints, _, err := unstructured.NestedSlice(monitor.Object, "spec", "endpoints")
	if err != nil {
		t.Fatal(err)
	}
	for _, endpoint := range endpoints {
		got = append(got, fmt.Sprint(endpoint.(map[string]any)["port"]))
	}
	for _, service := range of[*corev1.Service](render(t, releaseOf(t, "everything"))) {
		if !strings.HasSuffix(service.Name, "-metrics") {
			continue
		}
		for _, port := range service.Spec.Ports {
			want = append(want, port.Name)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if want = slices.Compact(want); !slices.Equal(got, want) {
		t.Errorf("ServiceMonitor: got ports %v, want %v", got, want)
	}
}

// TestPortsDiffer: on the host's network all ports of the driver may meet on one node.
func TestPortsDiffer(t *testing.T) {
	ports := map[int32]string{}
	for pod, template := range pods(with(t, "everything", map[string]any{"node.httpPort": int64(9809)})) {
		for _, c := range template.Spec.Containers {
			for _, port := range c.Ports {
				if other := ports[port.ContainerPort]; other != "" {
					t.Errorf("port %d: is that of %s and of %s in %s", port.ContainerPort, other, c.Name, pod)
				}
				ports[port.ContainerPort] = c.Name
			}
		}
	}
	if len(ports) != 8 {
		t.Errorf("got %d ports, want 8: %v", len(ports), ports)
	}
}

func TestOneReplicaHasNoBudget(t *testing.T) {
	for replicas, want := range map[int64]int{1: 0, 2: 1} {
		got := len(of[*policyv1.PodDisruptionBudget](with(t, "", map[string]any{"controller.replicas": replicas})))
		if got != want {
			t.Errorf("%d replicas: got %d PodDisruptionBudgets, want %d", replicas, got, want)
		}
	}
}

// TestImage says which image the driver's containers have.
func TestImage(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	const image = "ghcr.io/rbd-csi/rbd-csi"
	for _, test := range []struct {
		name    string
		over    map[string]any
		want    string
		workers string
	}{
		{"the chart's version", nil, image + ":" + version(t), image + ":" + version(t)},
		{"a tag", map[string]any{"image.tag": "x", "image.repository": "r/i"}, "r/i:x", "r/i:x"},
		{"a digest", map[string]any{"image.digest": digest, "image.tag": "x"}, image + "@" + digest, image + "@" + digest},
		{"workers that stay", map[string]any{"workers.image.tag": "old", "image.tag": "x"}, image + ":x", image + ":old"},
		{"workers that stay, beside a digest", map[string]any{"workers.image.tag": "old", "image.digest": digest}, image + "@" + digest, image + ":old"},
		{"workers from elsewhere", map[string]any{"workers.image.repository": "r/w", "workers.image.digest": digest}, image + ":" + version(t), "r/w@" + digest},
	} {
		for pod, template := range pods(with(t, "cluster", test.over)) {
			want := test.want
			if strings.HasSuffix(pod, "-workers") {
				want = test.workers
			}
			if got := template.Spec.Containers[0].Image; got != want {
				t.Errorf("%s: %s: got %s, want %s", test.name, pod, got, want)
			}
		}
	}
}
