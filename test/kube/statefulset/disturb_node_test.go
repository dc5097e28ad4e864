package statefulset_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
	"github.com/rbd-csi/rbd-csi/test/kube/steps"
)

// TestNodePluginRestarts takes the node plug-in away in every way that there is, under pods that write all the
// while. What serves their volumes is not its pod, and must not notice.
func TestNodePluginRestarts(t *testing.T) {
	s := tell(t, "plugin-restarts")
	s.Apply(set{name: "log", replicas: 2, command: writing}.String())
	writers := []*writer{s.writes("log-0"), s.writes("log-1")}
	workers := s.driverPod("workers")

	for _, disturbance := range []struct {
		title string
		cause func(*story)
	}{
		{"its pod is deleted", func(s *story) {
			s.Kubectl("delete", "pod", "--namespace", lab.Namespace, s.driverPod("node").Name)
		}},
		{"its process is killed", func(s *story) { s.kill("node") }},
		{"its DaemonSet is restarted", func(s *story) {
			s.Kubectl("rollout", "restart", "daemonset/rbd-csi-node", "--namespace", lab.Namespace)
		}},
		{"the chart is upgraded with another value", func(s *story) {
			s.Must(s.Lab.Upgrade(s.Context(), map[string]any{"node": map[string]any{"maxVolumes": 100}}))
		}},
		{"the chart and the driver are upgraded to another version", func(s *story) {
			s.Must(s.Lab.UpgradeTo(s.Context(), nextVersion))
			s.ofVersion("node", nextVersion)
			s.ofVersion("controller", nextVersion)
		}},
		{"and back", func(s *story) { s.Must(s.Lab.Upgrade(s.Context(), nil)) }},
	} {
		s.part(disturbance.title, func(s *story) {
			before := s.driverPod("node")
			disturbance.cause(s)
			s.replaced(before)
			for _, w := range writers {
				w.goesOn(s)
				w.unharmed(s)
			}
			s.Same("UID of the workers' pod", string(s.driverPod("workers").UID), string(workers.UID))
		})
	}
	s.part("then a deleted pod comes back to its log, and a new one starts", func(s *story) {
		s.Kubectl("delete", "pod", "log-0", "--wait=false")
		s.ReadyAnew("log-0", string(writers[0].pod.UID))
		s.writes("log-0").goesOn(s)
		s.wholeLog("log-0")
		s.scale("log", 3)
		s.writes("log-2").goesOn(s)
	})
}

// nextVersion is a version of chart and driver that comes after any that the tree has.
const nextVersion = "1000.0.0"

// ofVersion wants the driver in the pods of a component to be of a version.
func (s *story) ofVersion(component, version string) {
	s.Helper()
	pods, err := s.driverPods(s.Context(), component)
	s.Must(err)
	for _, pod := range pods {
		of := func(c corev1.Container) bool { return strings.HasSuffix(c.Image, "rbd-csi:"+version) }
		if pod.DeletionTimestamp == nil && !slices.ContainsFunc(pod.Spec.Containers, of) {
			s.Errorf("%s: got no container of version %s, want one", pod.Name, version)
		}
	}
}

// TestKubeletRestarts stops the kubelet under a pod that writes.
func TestKubeletRestarts(t *testing.T) {
	s := tell(t, "kubelet-restarts")
	s.Apply(set{name: "log", replicas: 1, command: writing}.String())
	w := s.writes("log-0")

	s.part("the pod writes on without a kubelet", func(s *story) {
		s.Must(s.Lab.Kube.StopKubelet(s.Context()))
		w.goesOn(s)
	})
	s.part("and with the new one", func(s *story) {
		s.Must(s.Lab.Kube.StartKubelet(s.Context()))
		s.Must(s.Lab.Kube.WaitReady(s.Context()))
		s.Must(s.Lab.AwaitDriver(s.Context()))
		s.Ready("log-0")
		w.goesOn(s)
		w.unharmed(s)
	})
	s.part("which knows how to unmount what the old one mounted", func(s *story) {
		s.Kubectl("delete", "pod", "log-0", "--wait=false")
		s.ReadyAnew("log-0", string(w.pod.UID))
		s.writes("log-0").goesOn(s)
		s.wholeLog("log-0")
	})
}

// driverPod is the driver's only pod of a component that is not about to go.
func (s *story) driverPod(component string) *corev1.Pod {
	s.Helper()
	var found *corev1.Pod
	s.Await("the driver has one pod "+component, func(ctx context.Context) (bool, string, error) {
		pods, err := s.driverPods(ctx, component)
		if err != nil || len(pods) != 1 {
			return false, fmt.Sprintf("there are %d", len(pods)), err
		}
		found = &pods[0]
		return steps.IsReady(found), "it is not ready", nil
	})
	return found
}

func (s *story) driverPods(ctx context.Context, component string) ([]corev1.Pod, error) {
	list, err := s.API.CoreV1().Pods(lab.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=" + component})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// replaced waits until the node plug-in is ready and registered, and is another than it was: another pod, or another
// container of it.
func (s *story) replaced(before *corev1.Pod) {
	s.Helper()
	s.Await("the node plug-in is another", func(ctx context.Context) (bool, string, error) {
		pods, err := s.driverPods(ctx, "node")
		if err != nil || len(pods) != 1 {
			return false, fmt.Sprintf("there are %d pods of it", len(pods)), err
		}
		now := &pods[0]
		return steps.IsReady(now) && containerOf(now) != containerOf(before), fmt.Sprintf("%s is %s", now.Name, now.Status.Phase), nil
	})
	s.Must(s.Lab.AwaitDriver(s.Context()))
}

// containerOf is the ID of a pod's first container.
func containerOf(pod *corev1.Pod) string {
	if len(pod.Status.ContainerStatuses) == 0 {
		return ""
	}
	return pod.Status.ContainerStatuses[0].ContainerID
}
