package chart

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// snapshotAPI is what a cluster with the CRDs of snapshots has.
const snapshotAPI = "snapshot.storage.k8s.io/v1"

// TestSnapshotsWhereTheyCanBe has the snapshotter run by default where the cluster has the CRDs, and there only, with its role and
// its Lease; and look after deletions at an uninstall.
func TestSnapshotsWhereTheyCanBe(t *testing.T) {
	for _, test := range []struct {
		name    string
		enabled any
		apis    []string
		want    bool
	}{
		{"by default, without CRDs", nil, nil, false},
		{"by default, with CRDs", nil, []string{snapshotAPI}, true},
		{"by default, with those of an old version", nil, []string{"snapshot.storage.k8s.io/v1beta1"}, false},
		{"switched on, without CRDs", true, nil, true},
		{"switched off, with CRDs", false, []string{snapshotAPI}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			release := Release{Name: "rbd-csi", Namespace: "storage", APIs: test.apis, Values: map[string]any{}}
			if test.enabled != nil {
				release.Values["snapshots"] = map[string]any{"enabled": test.enabled}
			}
			objects := render(t, release)
			containers := one[*appsv1.Deployment](t, objects, "").Spec.Template.Spec.Containers
			runs := slices.ContainsFunc(containers, func(c corev1.Container) bool { return c.Name == "snapshotter" })
			mayTake := slices.ContainsFunc(one[*rbacv1.ClusterRole](t, objects, "-controller").Rules, func(r rbacv1.PolicyRule) bool {
				return slices.Contains(r.Resources, "volumesnapshotcontents/status")
			})
			mayLead := slices.ContainsFunc(one[*rbacv1.Role](t, objects, "").Rules, func(r rbacv1.PolicyRule) bool {
				return slices.Contains(r.ResourceNames, "external-snapshotter-leader-rbd-csi-io")
			})
			guarded := slices.ContainsFunc(of[*admissionregistrationv1.ValidatingAdmissionPolicy](objects), func(p *admissionregistrationv1.ValidatingAdmissionPolicy) bool {
				return strings.HasSuffix(p.Name, "-uninstall-snapshots")
			})
			if runs != test.want || mayTake != test.want || mayLead != test.want || guarded != test.want {
				t.Errorf("got snapshotter %v, its role %v, its Lease %v, its guard %v, want all of them %v", runs, mayTake, mayLead, guarded, test.want)
			}
		})
	}
}

// TestSnapshotMetadata is about the sidecar that tells what changed, and what it may.
func TestSnapshotMetadata(t *testing.T) {
	objects := render(t, releaseOf(t, "everything"))
	spec := one[*appsv1.Deployment](t, objects, "").Spec.Template.Spec
	sidecar := container(t, spec, "snapshot-metadata")
	wantArguments(t, sidecar, map[string]string{
		"--csi-address": "unix:///csi/csi.sock", "--http-endpoint": ":9815", "--port": "9816", "--audience": "other.example.com",
		"--tls-cert": "/etc/snapshot-metadata/tls.crt", "--tls-key": "/etc/snapshot-metadata/tls.key",
		"--max-streaming-duration-min": "10", "--kube-api-qps": "20", "--kube-api-burst": "40",
	})
	if _, elects := arguments(sidecar)["--leader-election"]; elects {
		t.Error("it elects a leader, and does not know that flag")
	}
	tls := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Secret != nil && v.Secret.SecretName == "metadata-tls" })
	mounted := tls >= 0 && slices.ContainsFunc(sidecar.VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.Name == spec.Volumes[tls].Name && m.MountPath == "/etc/snapshot-metadata" && m.ReadOnly
	})
	if !mounted {
		t.Errorf("got mounts %v, want the Secret at /etc/snapshot-metadata", sidecar.VolumeMounts)
	}
	service := one[*corev1.Service](t, objects, "-snapshot-metadata")
	if port := service.Spec.Ports[0]; port.Port != 7443 || port.TargetPort.String() != "metadata-grpc" {
		t.Errorf("Service: got port %d to %s, want 7443 to metadata-grpc", port.Port, port.TargetPort.String())
	}
	for _, want := range []string{"get snapshotmetadataservices [other.example.com]", "create tokenreviews []", "create subjectaccessreviews []"} {
		if may := permissions(one[*rbacv1.ClusterRole](t, objects, "-controller")); !slices.Contains(may, want) {
			t.Errorf("got permissions\n%s\nwant %s", strings.Join(may, "\n"), want)
		}
	}
	for _, may := range permissions(one[*rbacv1.ClusterRole](t, with(t, "everything", map[string]any{"snapshotMetadata.enabled": false}), "-controller")) {
		if strings.Contains(may, "review") || strings.Contains(may, "snapshotmetadata") {
			t.Errorf("switched off: got the permission to %s, want none", may)
		}
	}
}

// permissions lists what a role may, as verb, resource and names.
func permissions(role *rbacv1.ClusterRole) []string {
	var all []string
	for _, rule := range role.Rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				all = append(all, fmt.Sprint(verb, " ", resource, " ", rule.ResourceNames))
			}
		}
	}
	return all
}

// TestNotesSayWhetherThereAreSnapshots reads what Helm prints at the end.
func TestNotesSayWhetherThereAreSnapshots(t *testing.T) {
	classes := []any{map[string]any{"name": "daily", "default": true}}
	for _, test := range []struct {
		name   string
		values map[string]any
		apis   []string
		want   string
	}{
		{"without CRDs", nil, nil, "off, because the cluster has no snapshot.storage.k8s.io/v1"},
		{"with CRDs", nil, []string{snapshotAPI}, "Snapshots: on. There is no VolumeSnapshotClass yet"},
		{"with a class", map[string]any{"volumeSnapshotClasses": classes}, []string{snapshotAPI}, "Snapshots: on. VolumeSnapshotClasses: daily (default)."},
		{"on all the same", map[string]any{"snapshots": map[string]any{"enabled": true}}, nil, "the snapshotter waits until its CRDs are there"},
		{"switched off", map[string]any{"snapshots": map[string]any{"enabled": false}}, []string{snapshotAPI}, "Snapshots: off (snapshots.enabled)."},
	} {
		texts, err := Render(directory, Release{Name: "rbd-csi", Namespace: "storage", Values: test.values, APIs: test.apis})
		if err != nil {
			t.Fatal(err)
		}
		if notes := texts["templates/NOTES.txt"]; !strings.Contains(notes, test.want) {
			t.Errorf("%s: got\n%s\nwant it to say %q", test.name, notes, test.want)
		}
	}
}
