package chart

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/sets"
)

// TestControllerHasNoPrivilege also covers the pod of `helm test`.
func TestControllerHasNoPrivilege(t *testing.T) {
	for _, name := range cases {
		for pod, template := range pods(render(t, releaseOf(t, name))) {
			if strings.HasPrefix(pod, "DaemonSet") {
				continue
			}
			spec := template.Spec
			if c := spec.SecurityContext; c == nil || !*c.RunAsNonRoot || *c.RunAsUser == 0 || c.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s: %s: got %+v, want a user that is not root, and seccomp", name, pod, c)
			}
			if spec.HostPID || spec.HostIPC || spec.HostNetwork != (name == "everything" && strings.HasPrefix(pod, "Deployment")) {
				t.Errorf("%s: %s: has namespaces of the host", name, pod)
			}
			for _, v := range spec.Volumes {
				if v.HostPath != nil {
					t.Errorf("%s: %s: mounts %s of the host, want nothing of it", name, pod, v.HostPath.Path)
				}
			}
			for _, c := range spec.Containers {
				s := c.SecurityContext
				if s == nil || *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem ||
					!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 || s.RunAsUser != nil {
					t.Errorf("%s: %s: container %s: got %+v, want no privilege, and the pod's user, whose socket it is", name, pod, c.Name, s)
				}
			}
		}
	}
}

// TestNodesHaveWhatTheyNeed looks at the pods on the nodes: privileged, but without the host's processes and without
// access to Kubernetes, but for the node plug-in that reports volumes that went bad.
func TestNodesHaveWhatTheyNeed(t *testing.T) {
	for _, name := range cases {
		objects := render(t, releaseOf(t, name))
		sets := of[*appsv1.DaemonSet](objects)
		if len(sets) != 2 {
			t.Fatalf("got %d DaemonSets, want 2", len(sets))
		}
		for _, set := range sets {
			spec := set.Spec.Template.Spec
			if spec.HostPID || spec.HostIPC || !spec.HostNetwork || spec.DNSPolicy != corev1.DNSClusterFirstWithHostNet {
				t.Errorf("%s: got hostPID %v, hostIPC %v, hostNetwork %v, dnsPolicy %s, want the host's network only", set.Name, spec.HostPID, spec.HostIPC, spec.HostNetwork, spec.DNSPolicy)
			}
			reports := strings.HasSuffix(set.Name, "-node") && name != "everything"
			if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken != reports {
				t.Errorf("%s: %s: gets a token: want %t", name, set.Name, reports)
			}
			if spec.PriorityClassName != "system-node-critical" {
				t.Errorf("%s: got priority %s, want system-node-critical", set.Name, spec.PriorityClassName)
			}
			if !slices.Equal(spec.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) {
				t.Errorf("%s: got tolerations %v, want all", set.Name, spec.Tolerations)
			}
			if len(spec.Containers) != 1 || len(spec.InitContainers) != 0 || !*spec.Containers[0].SecurityContext.Privileged {
				t.Errorf("%s: want one container, and that privileged", set.Name)
			}
			noNestedMounts(t, set.Name, spec.Containers[0])
		}
		for _, account := range of[*corev1.ServiceAccount](objects) {
			if account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
				t.Errorf("account %s: gives tokens to whoever uses it", account.Name)
			}
		}
	}
}

// noNestedMounts: what is mounted below a mount with Bidirectional propagation appears on the host, and stays.
func noNestedMounts(t *testing.T, name string, c corev1.Container) {
	t.Helper()
	for _, outer := range c.VolumeMounts {
		for _, inner := range c.VolumeMounts {
			if outer.MountPropagation != nil && strings.HasPrefix(inner.MountPath, outer.MountPath+"/") {
				t.Errorf("%s: %s is mounted below %s, whose mounts the host sees", name, inner.MountPath, outer.MountPath)
			}
		}
	}
}

// rules returns all rules of roles, each with the name of its role.
func rules(objects []object) map[string][]rbacv1.PolicyRule {
	all := map[string][]rbacv1.PolicyRule{}
	for _, role := range of[*rbacv1.ClusterRole](objects) {
		all["ClusterRole "+role.Name] = role.Rules
	}
	for _, role := range of[*rbacv1.Role](objects) {
		all["Role "+role.Namespace+"/"+role.Name] = role.Rules
	}
	return all
}

func TestRolesAreNarrow(t *testing.T) {
	for _, name := range cases {
		for role, list := range rules(render(t, releaseOf(t, name))) {
			for _, rule := range list {
				if words := slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs); slices.Contains(words, "*") || len(rule.NonResourceURLs) > 0 {
					t.Errorf("%s: %s: got a wildcard in %v", name, role, rule)
				}
				if slices.Contains(rule.Resources, "secrets") {
					inTeam := role == "Role team-a/storage-other-class-secrets" || role == "Role team-b/storage-other-class-secrets"
					if !inTeam || name != "everything" || !slices.Equal(rule.Verbs, []string{"get"}) {
						t.Errorf("%s: %s: may %v secrets, want that only in the namespaces of class secrets, and only get", name, role, rule.Verbs)
					}
				}
				for _, resource := range rule.Resources {
					if strings.Contains(resource, "pods/") || strings.HasPrefix(resource, "serviceaccounts") || slices.Contains(rule.Verbs, "escalate") || slices.Contains(rule.Verbs, "bind") || slices.Contains(rule.Verbs, "impersonate") {
						t.Errorf("%s: %s: may %v %s", name, role, rule.Verbs, resource)
					}
				}
			}
		}
	}
}

// TestRoleOfTheDefaults pins what the controller may in the whole cluster by default.
func TestRoleOfTheDefaults(t *testing.T) {
	got := sets.New[string]()
	for _, rule := range one[*rbacv1.ClusterRole](t, render(t, releaseOf(t, "")), "-controller").Rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				got.Insert(verb + " " + resource)
			}
		}
	}
	want := sets.New(
		"create events", "patch events",
		"get persistentvolumes", "list persistentvolumes", "watch persistentvolumes", "create persistentvolumes", "patch persistentvolumes", "delete persistentvolumes",
		"get persistentvolumeclaims", "list persistentvolumeclaims", "watch persistentvolumeclaims", "update persistentvolumeclaims", "patch persistentvolumeclaims/status",
		"get storageclasses", "list storageclasses", "watch storageclasses", "get volumeattributesclasses",
		"get volumeattachments", "list volumeattachments", "watch volumeattachments", "patch volumeattachments", "patch volumeattachments/status",
		"get csinodes", "list csinodes", "watch csinodes",
		"list volumesnapshotcontents", "list volumegroupsnapshotcontents", // the driver, to tell snapshots that belong to nobody
	)
	if !got.Equal(want) {
		t.Errorf("got beyond what is needed %v, and missing %v", got.Difference(want).UnsortedList(), want.Difference(got).UnsortedList())
	}
}

// TestRoleForFailover pins what the controller may besides when it moves pods off lost nodes.
func TestRoleForFailover(t *testing.T) {
	var usual, got []string
	for failover, all := range map[bool]*[]string{false: &usual, true: &got} {
		*all = permissions(one[*rbacv1.ClusterRole](t, with(t, "", map[string]any{"controller.failover": failover}), "-controller"))
	}
	got = slices.DeleteFunc(got, func(one string) bool { return slices.Contains(usual, one) })
	slices.Sort(got)
	want := []string{"delete pods []", "get nodes []", "list nodes []", "list pods []", "patch nodes []", "watch nodes []"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestWhoHasARole reads the bindings: the controller, and nodes that report volumes that went bad.
func TestWhoHasARole(t *testing.T) {
	for _, name := range cases {
		objects := render(t, releaseOf(t, name))
		var subjects []rbacv1.Subject
		for _, b := range of[*rbacv1.ClusterRoleBinding](objects) {
			if strings.HasSuffix(b.Name, "-node") && b.RoleRef.Name == b.Name && strings.HasSuffix(b.Subjects[0].Name, "-node") && len(b.Subjects) == 1 {
				continue // its role is TestRoleOfNodes's
			}
			subjects = append(subjects, b.Subjects...)
		}
		for _, b := range of[*rbacv1.RoleBinding](objects) {
			subjects = append(subjects, b.Subjects...)
		}
		if len(subjects) < 2 {
			t.Errorf("%s: got %d bindings, want at least those of the cluster and of the namespace", name, len(subjects))
		}
		for _, subject := range subjects {
			if subject.Kind != rbacv1.ServiceAccountKind || !strings.HasSuffix(subject.Name, "-controller") || subject.Namespace != releaseOf(t, name).Namespace {
				t.Errorf("%s: got %v bound to a role, want the controller only", name, subject)
			}
		}
	}
}

// TestRoleOfNodes pins what the node plug-in may: no more than its policy for volumes that went bad needs, and events of mappings.
func TestRoleOfNodes(t *testing.T) {
	for _, test := range []struct {
		policy string
		events bool
		want   []string
	}{
		{"off", false, nil},
		{"off", true, []string{"create events []"}},
		{"report", false, []string{"create events []", "list pods []"}},
		{"restart", true, []string{"create events []", "delete pods []", "list pods []"}},
	} {
		policy, want := test.policy, test.want
		objects := with(t, "", map[string]any{"node.heal": policy, "node.mappingEvents": test.events})
		if got := *one[*storagev1.CSIDriver](t, objects, "").Spec.PodInfoOnMount; got != test.events {
			t.Errorf("%s, %t: podInfoOnMount is %t", policy, test.events, got)
		}
		if got := *one[*appsv1.DaemonSet](t, objects, "-node").Spec.Template.Spec.AutomountServiceAccountToken; got != (want != nil) {
			t.Errorf("%s, %t: got a token: %t", policy, test.events, got)
		}
		var got []string
		for _, role := range of[*rbacv1.ClusterRole](objects) {
			if strings.HasSuffix(role.Name, "-node") {
				got = append(got, permissions(role)...)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", policy, got, want)
		}
		if arguments := one[*appsv1.DaemonSet](t, objects, "-node").Spec.Template.Spec.Containers[0].Args; !slices.Contains(arguments, "--heal="+policy) {
			t.Errorf("%s: got arguments %q, want --heal=%s among them", policy, arguments, policy)
		}
		var own []string
		for _, p := range of[*admissionregistrationv1.ValidatingAdmissionPolicy](objects) {
			if strings.HasSuffix(p.Name, "-own-pods") {
				own = append(own, p.Spec.MatchConditions[0].Expression)
			}
		}
		if narrowed := slices.Contains(own, "request.userInfo.username == 'system:serviceaccount:storage:rbd-csi-node'"); narrowed != (policy == "restart") {
			t.Errorf("%s: got policies for %q, want one that narrows the deletion of pods: %t", policy, own, policy == "restart")
		}
	}
}

// TestNetworkPolicy has the metrics' ports be open, and no others.
func TestNetworkPolicy(t *testing.T) {
	objects := render(t, releaseOf(t, "everything"))
	policy := one[*networkingv1.NetworkPolicy](t, objects, "-controller")
	ingress := policy.Spec.Ingress
	var metrics, want []string
	for _, port := range ingress[0].Ports {
		metrics = append(metrics, port.Port.String())
	}
	for _, c := range one[*appsv1.Deployment](t, objects, "").Spec.Template.Spec.Containers {
		want = append(want, c.Ports[0].Name)
	}
	slices.Sort(metrics)
	slices.Sort(want)
	if !slices.Equal(metrics, want) || len(ingress[0].From) != 1 {
		t.Errorf("got ports %v from %v, want %v from one peer", metrics, ingress[0].From, want)
	}
	if len(ingress) != 2 || len(ingress[1].Ports) != 1 || ingress[1].Ports[0].Port.String() != "metadata-grpc" || len(ingress[1].From) != 0 {
		t.Errorf("got rules %v, want a second one with the port for programs that make backups, from everywhere", ingress)
	}
	if without := one[*networkingv1.NetworkPolicy](t, with(t, "everything", map[string]any{"snapshotMetadata.enabled": false}), "-controller"); len(without.Spec.Ingress) != 1 {
		t.Errorf("without snapshotMetadata: got rules %v, want that for metrics only", without.Spec.Ingress)
	}
	if types := fmt.Sprint(policy.Spec.PolicyTypes); types != "[Ingress Egress]" {
		t.Errorf("got %s, want ingress and egress", types)
	}
	if types := fmt.Sprint(one[*networkingv1.NetworkPolicy](t, with(t, "", map[string]any{"networkPolicy.enabled": true}), "").Spec.PolicyTypes); types != "[Ingress]" {
		t.Errorf("without rules for egress: got %s, want ingress only, because no rule at all would be no connection at all", types)
	}
}
