package chart

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// arguments returns the flags of a container with their values, and the sub-command under "".
func arguments(c corev1.Container) map[string]string {
	flags := map[string]string{}
	for _, argument := range c.Args {
		name, value, _ := strings.Cut(argument, "=")
		if !strings.HasPrefix(name, "--") {
			name, value = "", argument
		}
		flags[name] = value
	}
	return flags
}

// wantArguments fails for each flag that has another value.
func wantArguments(t *testing.T, c corev1.Container, want map[string]string) {
	t.Helper()
	got := arguments(c)
	for flag, value := range want {
		if have, ok := got[flag]; !ok || have != value {
			t.Errorf("container %s: got %s %q (given: %v), want %q", c.Name, flag, have, ok, value)
		}
	}
}

func TestControllerArguments(t *testing.T) {
	deployment := one[*appsv1.Deployment](t, render(t, releaseOf(t, "cluster")), "")
	spec := deployment.Spec.Template.Spec
	if *deployment.Spec.Replicas != 2 || len(spec.TopologySpreadConstraints) != 1 || spec.PriorityClassName != "system-cluster-critical" {
		t.Errorf("got %d replicas, spread %v, priority %s", *deployment.Spec.Replicas, spec.TopologySpreadConstraints, spec.PriorityClassName)
	}
	driver := container(t, spec, "driver")
	wantArguments(t, driver, map[string]string{
		"": "controller", "--driver-name": "rbd-csi.io", "--endpoint": "unix:///csi/csi.sock", "--clusters": "/etc/rbd-csi/clusters",
		"--http": ":9808", "--purge-workers": "4", "--purge-every": "5m", "--flatten-depth": "8",
	})
	for _, asked := range []string{"--published-nodes", "--failover"} {
		if _, on := arguments(driver)[asked]; on {
			t.Errorf("got %s by default, want it asked for", asked)
		}
	}
	if driver.LivenessProbe.HTTPGet.Path != "/healthz" || driver.ReadinessProbe.HTTPGet.Path != "/readyz" {
		t.Errorf("got probes of %s and %s", driver.LivenessProbe.HTTPGet.Path, driver.ReadinessProbe.HTTPGet.Path)
	}
	for _, name := range []string{"provisioner", "attacher", "resizer"} {
		sidecar := container(t, spec, name)
		wantArguments(t, sidecar, map[string]string{
			"--csi-address": "unix:///csi/csi.sock", "--leader-election": "", "--leader-election-namespace": "$(NAMESPACE)",
			"--kube-api-qps": "20", "--kube-api-burst": "40",
		})
		if path := sidecar.LivenessProbe.HTTPGet.Path; path != "/healthz/leader-election" {
			t.Errorf("%s: got the probe %s, want that of the leader election", name, path)
		}
		if endpoint, port := arguments(sidecar)["--http-endpoint"], fmt.Sprintf(":%d", sidecar.Ports[0].ContainerPort); endpoint != port {
			t.Errorf("%s: listens on %s, and its port is %s", name, endpoint, port)
		}
	}
	wantArguments(t, container(t, spec, "provisioner"), map[string]string{"--extra-create-metadata": "", "--timeout": "60s", "--default-fstype": "ext4", "--worker-threads": "100"})
	wantArguments(t, container(t, spec, "attacher"), map[string]string{"--timeout": "60s", "--worker-threads": "50", "--retry-interval-max": "30s"})
	// The resizer's --timeout would count for all of its calls, and is not what the value says.
	wantArguments(t, container(t, spec, "resizer"), map[string]string{"--resize-timeout": "60s", "--workers": "20", "--handle-volume-inuse-error": "false"})
	if _, on := arguments(container(t, spec, "provisioner"))["--enable-capacity"]; on || len(spec.Containers) != 4 {
		t.Errorf("got %d containers and capacity %v by default, want 4 and none", len(spec.Containers), on)
	}
}

// TestControllerWithEverything looks at what is off by default.
func TestControllerWithEverything(t *testing.T) {
	spec := one[*appsv1.Deployment](t, render(t, releaseOf(t, "everything")), "").Spec.Template.Spec
	provisioner := container(t, spec, "provisioner")
	wantArguments(t, provisioner, map[string]string{"--enable-capacity": "", "--immediate-topology": "false", "--capacity-ownerref-level": "2", "--capacity-poll-interval": "1m"})
	var env []string
	for _, variable := range provisioner.Env {
		env = append(env, variable.Name+"="+variable.ValueFrom.FieldRef.FieldPath)
	}
	if want := []string{"NAMESPACE=metadata.namespace", "POD_NAME=metadata.name"}; !slices.Equal(env, want) {
		t.Errorf("provisioner: got environment %v, want %v", env, want)
	}
	wantArguments(t, container(t, spec, "snapshotter"), map[string]string{"--timeout": "60s", "--worker-threads": "20", "--retry-interval-max": "30s"})
	wantArguments(t, container(t, spec, "driver"), map[string]string{"--one": "", "--two": "2", "--published-nodes": "", "--failover": "", "--flatten-depth": "3", "--driver-name": "other.example.com", "--v": "4", "--topology": ""})
	if !spec.HostNetwork || spec.TopologySpreadConstraints[0].MaxSkew != 2 || spec.Affinity == nil || len(spec.Tolerations) != 1 {
		t.Errorf("got hostNetwork %v, spread %v, affinity %v, tolerations %v", spec.HostNetwork, spec.TopologySpreadConstraints, spec.Affinity, spec.Tolerations)
	}
}

func TestNodeArguments(t *testing.T) {
	for _, test := range []struct {
		values string
		root   string
		want   map[string]string
		probe  string
	}{
		{"cluster", "/var/lib/kubelet", map[string]string{"--kubelet-root": "/var/lib/kubelet", "--kubelet-endpoint": "/var/lib/kubelet/plugins/rbd-csi.io/csi.sock", "--http": ":9809", "--max-volumes": "0", "--load-modules": ""}, ""},
		{"everything", "/var/lib/k0s/kubelet", map[string]string{"--kubelet-root": "/var/lib/k0s/kubelet", "--kubelet-endpoint": "/var/lib/k0s/kubelet/plugins/other.example.com/csi.sock", "--http": "127.0.0.1:9819", "--max-volumes": "100", "--one": "", "--topology": "topology.other.example.com/reach=all"}, "127.0.0.1"},
	} {
		set := one[*appsv1.DaemonSet](t, render(t, releaseOf(t, test.values)), "-node")
		c := set.Spec.Template.Spec.Containers[0]
		wantArguments(t, c, test.want)
		wantArguments(t, c, map[string]string{
			"": "node", "--node-name": "$(NODE_NAME)", "--endpoint": "unix:///csi/csi.sock", "--clusters": "/etc/rbd-csi/clusters",
			"--run-directory": "/run/rbd-csi", "--workers": "/run/rbd-csi/workers.sock",
		})
		if _, loads := arguments(c)["--load-modules"]; loads != (test.values == "cluster") {
			t.Errorf("%s: got --load-modules %t, want it where node.loadModules is not false", test.values, loads)
		}
		if got := c.LivenessProbe.HTTPGet.Host; got != test.probe {
			t.Errorf("%s: got the probe on %q, want %q", test.values, got, test.probe)
		}
		host := hostPaths(set)
		for path, want := range map[string]string{
			test.root:      test.root + " Bidirectional",
			"/csi":         strings.TrimSuffix(arguments(c)["--kubelet-endpoint"], "/csi.sock"),
			"/run/rbd-csi": "/run/rbd-csi Bidirectional",
			"/dev":         "/dev", "/sys": "/sys", "/lib/modules": "/lib/modules read-only", "/etc/selinux": "/etc/selinux read-only",
		} {
			if host[path] != want {
				t.Errorf("%s: at %s: got %q of the host, want %q", test.values, path, host[path], want)
			}
		}
	}
	if set := one[*appsv1.DaemonSet](t, with(t, "", map[string]any{"csiDriver.seLinuxMount": false}), "-node"); hostPaths(set)["/etc/selinux"] != "" {
		t.Error("without seLinuxMount: /etc/selinux is mounted, want it left alone")
	}
}

// hostPaths returns what of the host is mounted where, and how.
func hostPaths(set *appsv1.DaemonSet) map[string]string {
	spec := set.Spec.Template.Spec
	found := map[string]string{}
	for _, mount := range spec.Containers[0].VolumeMounts {
		for _, volume := range spec.Volumes {
			if volume.Name != mount.Name || volume.HostPath == nil {
				continue
			}
			how := volume.HostPath.Path
			if mount.MountPropagation != nil {
				how += " " + string(*mount.MountPropagation)
			}
			if mount.ReadOnly {
				how += " read-only"
			}
			found[mount.MountPath] = how
		}
	}
	return found
}

// TestWorkersAreLeftAlone is about what would end them.
func TestWorkersAreLeftAlone(t *testing.T) {
	for _, name := range cases {
		objects := render(t, releaseOf(t, name))
		workers, node := one[*appsv1.DaemonSet](t, objects, "-workers"), one[*appsv1.DaemonSet](t, objects, "-node")
		if got := workers.Spec.UpdateStrategy.Type; got != appsv1.OnDeleteDaemonSetStrategyType {
			t.Errorf("got update strategy %s, want OnDelete", got)
		}
		if got := node.Spec.UpdateStrategy.Type; got != appsv1.RollingUpdateDaemonSetStrategyType {
			t.Errorf("node: got update strategy %s, want RollingUpdate", got)
		}
		spec := workers.Spec.Template.Spec
		c := spec.Containers[0]
		if _, limited := c.Resources.Limits[corev1.ResourceMemory]; limited {
			t.Error("got a limit of memory, want none")
		}
		if c.LivenessProbe != nil || c.StartupProbe != nil {
			t.Error("got a probe that would end them, want none")
		}
		if *spec.TerminationGracePeriodSeconds < 600 {
			t.Errorf("got %d s to end in, want at least 600", *spec.TerminationGracePeriodSeconds)
		}
		wantArguments(t, c, map[string]string{"": "workers", "--v": "2", "--socket": arguments(node.Spec.Template.Spec.Containers[0])["--workers"]})
		host := hostPaths(workers)
		if host["/run/rbd-csi"] != "/run/rbd-csi Bidirectional" || host["/dev"] != "/dev" || len(host) != 2 {
			t.Errorf("got %v of the host, want /run/rbd-csi with Bidirectional, and /dev", host)
		}
		// A pod of one and none of the other on a node would be of no use.
		same := node.Spec.Template.Spec
		if got, want := fmt.Sprint(spec.NodeSelector, spec.Tolerations, spec.Affinity), fmt.Sprint(same.NodeSelector, same.Tolerations, same.Affinity); got != want {
			t.Errorf("got placed by %s, want as the node plug-in, %s", got, want)
		}
		// A cluster that is added would have to be mounted, and the pod be replaced for it.
		if got := clusterFiles(t, spec); got != nil {
			t.Errorf("got clusters %v mounted, want none", got)
		}
	}
}

// clusterFiles returns the files below /etc/rbd-csi/clusters, each with its source and mode.
func clusterFiles(t *testing.T, spec corev1.PodSpec) []string {
	t.Helper()
	var files []string
	for _, volume := range spec.Volumes {
		if volume.Name != "clusters" {
			continue
		}
		for _, source := range volume.Projected.Sources {
			switch {
			case source.Secret != nil:
				for _, item := range source.Secret.Items {
					files = append(files, fmt.Sprintf("%s secret %s %s %o", item.Path, source.Secret.Name, item.Key, *volume.Projected.DefaultMode))
				}
			case source.ConfigMap != nil:
				for _, item := range source.ConfigMap.Items {
					files = append(files, fmt.Sprintf("%s configmap %s %s %o", item.Path, source.ConfigMap.Name, item.Key, *volume.Projected.DefaultMode))
				}
			}
		}
	}
	mounted := slices.ContainsFunc(spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.Name == "clusters" && m.MountPath == "/etc/rbd-csi/clusters" && m.ReadOnly
	})
	if mounted != (len(files) > 0) {
		t.Errorf("got clusters mounted %v, with %d files", mounted, len(files))
	}
	return files
}

func TestClusters(t *testing.T) {
	for _, test := range []struct {
		values           string
		controller, node []string
	}{
		{"", nil, nil},
		{
			"cluster",
			[]string{"ceph/ceph.conf secret rbd-csi-ceph ceph.conf 440", "ceph/keyring secret rbd-csi-ceph keyring 440"},
			[]string{"ceph/ceph.conf secret rbd-csi-ceph ceph.conf 400", "ceph/keyring secret rbd-csi-ceph keyring 400"},
		},
		{
			"rook",
			[]string{
				"rook/mon-endpoints configmap rook-ceph-mon-endpoints data 440",
				"rook/userID secret rook-csi-rbd-provisioner userID 440", "rook/userKey secret rook-csi-rbd-provisioner userKey 440",
				"outside/mon-endpoints configmap endpoints data 440",
				"outside/userID secret provisioner userID 440", "outside/userKey secret provisioner userKey 440",
				"outside/ceph.conf configmap settings ceph.conf 440",
			},
			[]string{
				"rook/mon-endpoints configmap rook-ceph-mon-endpoints data 400",
				"rook/userID secret rook-csi-rbd-node userID 400", "rook/userKey secret rook-csi-rbd-node userKey 400",
				"outside/mon-endpoints configmap endpoints data 400",
				"outside/userID secret nodes userID 400", "outside/userKey secret nodes userKey 400",
				"outside/ceph.conf configmap settings ceph.conf 400",
			},
		},
		{
			"everything",
			[]string{
				"a.b/ceph.conf secret ceph-ab ceph.conf 440", "a.b/keyring secret ceph-ab keyring 440",
				"text/ceph.conf secret other-cluster-text ceph.conf 440", "text/keyring secret other-cluster-text keyring 440",
			},
			[]string{
				"a.b/ceph.conf secret ceph-ab ceph.conf 400", "a.b/keyring secret ceph-ab keyring 400",
				"text/ceph.conf secret other-cluster-text ceph.conf 400", "text/keyring secret other-cluster-text keyring 400",
			},
		},
	} {
		objects := render(t, releaseOf(t, test.values))
		if got := clusterFiles(t, one[*appsv1.Deployment](t, objects, "").Spec.Template.Spec); !slices.Equal(got, test.controller) {
			t.Errorf("%s: controller: got\n%s\nwant\n%s", test.values, strings.Join(got, "\n"), strings.Join(test.controller, "\n"))
		}
		if got := clusterFiles(t, one[*appsv1.DaemonSet](t, objects, "-node").Spec.Template.Spec); !slices.Equal(got, test.node) {
			t.Errorf("%s: node: got\n%s\nwant\n%s", test.values, strings.Join(got, "\n"), strings.Join(test.node, "\n"))
		}
	}
	secret := one[*corev1.Secret](t, render(t, releaseOf(t, "everything")), "")
	if got := string(secret.Data["ceph.conf"]) + string(secret.Data["keyring"]); got != "[global]\nmon_host = 10.0.0.1\n[client.kube]\nkey = not-a-key\n" {
		t.Errorf("Secret %s: got %q", secret.Name, got)
	}
}

// TestOfTheVolume is about `helm test`.
func TestOfTheVolume(t *testing.T) {
	for values, want := range map[string]int{"": 0, "cluster": 1} {
		if got := len(of[*corev1.Pod](render(t, releaseOf(t, values)))); got != want {
			t.Errorf("%q: got %d pods of helm test, want %d", values, got, want)
		}
	}
	objects := with(t, "cluster", map[string]any{"test.storageClass": "another"})
	claim := one[*corev1.PersistentVolumeClaim](t, objects, "-test")
	pod := one[*corev1.Pod](t, objects, "-test")
	if *claim.Spec.StorageClassName != "another" || pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != claim.Name || pod.Spec.RestartPolicy != corev1.RestartPolicyNever {
		t.Errorf("got claim %+v and pod %+v", claim.Spec, pod.Spec)
	}
	for _, annotations := range []map[string]string{claim.Annotations, pod.Annotations} {
		if annotations["helm.sh/hook"] != "test" || !strings.Contains(annotations["helm.sh/hook-delete-policy"], "before-hook-creation") {
			t.Errorf("got annotations %v, want those of a test that can be repeated", annotations)
		}
	}
}
