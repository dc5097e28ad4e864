package chart

import (
	"strings"
	"testing"
	"time"

	"github.com/google/cel-go/cel"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// TestUninstallIsRefused evaluates the policies for volumes in all their states. The tests on a
// cluster see the whole of it: the hook, the bindings and Helm's error.
func TestUninstallIsRefused(t *testing.T) {
	pv := func(driver string, phase corev1.PersistentVolumePhase, policy corev1.PersistentVolumeReclaimPolicy, deleted bool) *corev1.PersistentVolume {
		volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"}}
		volume.Spec.PersistentVolumeReclaimPolicy, volume.Status.Phase = policy, phase
		if driver != "" {
			volume.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver}
		}
		if deleted {
			volume.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
		}
		return volume
	}
	attachment := func(driver string) *storagev1.VolumeAttachment {
		name := "pvc-1"
		return &storagev1.VolumeAttachment{Spec: storagev1.VolumeAttachmentSpec{Attacher: driver, NodeName: "n1", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &name}}}
	}
	content := func(kind, driver string, deleted bool) *unstructured.Unstructured {
		object := &unstructured.Unstructured{Object: map[string]any{"kind": kind, "spec": map[string]any{"driver": driver}}}
		object.SetName("content-1")
		if deleted {
			object.SetDeletionTimestamp(&metav1.Time{Time: time.Unix(1, 0)})
		}
		return object
	}
	inline := attachment("rbd-csi.io")
	inline.Spec.Source.PersistentVolumeName = nil
	const attached, deleting, snapshots, groups = "-uninstall-attached", "-uninstall-deleting", "-uninstall-snapshots", "-uninstall-groups"
	snapshotted := with(t, "", map[string]any{"snapshots.enabled": true, "volumeGroupSnapshotClasses": []any{map[string]any{"name": "a"}}})
	for _, test := range []struct {
		name   string
		policy string
		object runtime.Object
		want   string
	}{
		{"attached", attached, attachment("rbd-csi.io"), "volume pvc-1 is still attached to node n1; stop the pods that use it"},
		{"attached, without a PersistentVolume", attached, inline, "a volume is still attached to node n1; stop the pods that use it"},
		{"attached by another driver", attached, attachment("other"), ""},
		{"bound", deleting, pv("rbd-csi.io", corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete, false), ""},
		{"being deleted", deleting, pv("rbd-csi.io", corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete, true), "volume pvc-1 is being deleted; wait until it is gone"},
		{"about to be deleted", deleting, pv("rbd-csi.io", corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete, false), "volume pvc-1 is being deleted; wait until it is gone"},
		{"released and kept", deleting, pv("rbd-csi.io", corev1.VolumeReleased, corev1.PersistentVolumeReclaimRetain, false), ""},
		{"not looked at yet", deleting, pv("rbd-csi.io", "", corev1.PersistentVolumeReclaimRetain, false), ""},
		{"being deleted by another driver", deleting, pv("other", corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete, true), ""},
		{"being deleted, and of no driver", deleting, pv("", corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete, true), ""},
		{"a snapshot", snapshots, content("VolumeSnapshotContent", "rbd-csi.io", false), ""},
		{"a snapshot that is being deleted", snapshots, content("VolumeSnapshotContent", "rbd-csi.io", true), "snapshot content-1 is being deleted; wait until it is gone"},
		{"a snapshot of another driver", snapshots, content("VolumeSnapshotContent", "other", true), ""},
		{"a group snapshot that is being deleted", groups, content("VolumeGroupSnapshotContent", "rbd-csi.io", true), "group snapshot content-1 is being deleted; wait until it is gone"},
	} {
		t.Run(test.name, func(t *testing.T) {
			policy := one[*admissionregistrationv1.ValidatingAdmissionPolicy](t, snapshotted, test.policy)
			if kind := test.object.GetObjectKind().GroupVersionKind().Kind; kind != "" && policy.Spec.ParamKind.Kind != kind {
				t.Errorf("got a policy for each %s, want for each %s", policy.Spec.ParamKind.Kind, kind)
			}
			if got := refusal(t, policy, test.object); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestTheGuardStandsInNobodysWay: the policies count for the hook's ConfigMap only, and each is bound.
func TestTheGuardStandsInNobodysWay(t *testing.T) {
	for _, name := range cases {
		objects := render(t, releaseOf(t, name))
		hook := one[*corev1.ConfigMap](t, objects, "-uninstall")
		if hook.Annotations["helm.sh/hook"] != "pre-delete" {
			t.Errorf("got the hook %q, want pre-delete", hook.Annotations["helm.sh/hook"])
		}
		for _, policy := range of[*admissionregistrationv1.ValidatingAdmissionPolicy](objects) {
			if !strings.Contains(policy.Name, "-uninstall-") {
				continue
			}
			match := policy.Spec.MatchConstraints
			rule := match.ResourceRules[0]
			if len(match.ResourceRules) != 1 || len(rule.ResourceNames) != 1 || rule.ResourceNames[0] != hook.Name ||
				len(rule.Operations) != 1 || rule.Operations[0] != admissionregistrationv1.Create || rule.Resources[0] != "configmaps" ||
				match.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] != hook.Namespace {
				t.Errorf("%s: got %+v, want the creation of ConfigMap %s/%s only", policy.Name, match, hook.Namespace, hook.Name)
			}
			binding := one[*admissionregistrationv1.ValidatingAdmissionPolicyBinding](t, objects, policy.Name)
			if binding.Spec.PolicyName != policy.Name || *binding.Spec.ParamRef.ParameterNotFoundAction != admissionregistrationv1.AllowAction {
				t.Errorf("%s: got %+v, want it bound, and admitting when there is no volume", policy.Name, binding.Spec)
			}
		}
	}
	if got := len(of[*admissionregistrationv1.ValidatingAdmissionPolicy](with(t, "", map[string]any{"uninstallGuard.enabled": false}))); got != 0 {
		t.Errorf("switched off: got %d policies, want none", got)
	}
}

// refusal evaluates a policy for a parameter as the API server does, and returns why the request is refused, or "".
func refusal(t *testing.T, policy *admissionregistrationv1.ValidatingAdmissionPolicy, param runtime.Object) string {
	t.Helper()
	params, err := runtime.DefaultUnstructuredConverter.ToUnstructured(param)
	if err != nil {
		t.Fatal(err)
	}
	env, err := cel.NewEnv(cel.Variable("params", cel.DynType))
	if err != nil {
		t.Fatal(err)
	}
	evaluate := func(expression string) any {
		compiled, issues := env.Compile(expression)
		if issues.Err() != nil {
			t.Fatalf("%s: %v", policy.Name, issues.Err())
		}
		program, err := env.Program(compiled)
		if err != nil {
			t.Fatal(err)
		}
		value, _, err := program.Eval(map[string]any{"params": params})
		if err != nil {
			t.Fatalf("%s: %v", policy.Name, err)
		}
		return value.Value()
	}
	if validation := policy.Spec.Validations[0]; evaluate(validation.Expression) != true {
		return evaluate(validation.MessageExpression).(string)
	}
	return ""
}
