// Package steps has what tests do in a namespace of a lab, so that a test reads as a list of them.
package steps

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// Steps are those of one test. Each ends the test if it cannot be done.
type Steps struct {
	*testing.T

	Lab *lab.Lab
	// API is what conditions are looked at with: kubectl takes a fifth of a second of a processor to start, which is then missing
	// where something is being waited for.
	API       kubernetes.Interface
	Namespace string
	// Limit is how long each step may take.
	Limit time.Duration
}

// Begin makes a namespace for a test. Who ends the test deletes it.
func Begin(t *testing.T, l *lab.Lab, namespace string, limit time.Duration) Steps {
	t.Helper()
	s := Steps{T: t, Lab: l, Namespace: namespace, Limit: limit}
	config, err := clientcmd.BuildConfigFromFlags("", l.Kube.Kubeconfig())
	s.Must(err)
	// Tests poll, and several of them at once.
	config.QPS, config.Burst = 200, 400
	s.API, err = kubernetes.NewForConfig(config)
	s.Must(err)
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	_, err = s.API.CoreV1().Namespaces().Create(t.Context(), object, metav1.CreateOptions{})
	s.Must(err)
	return s
}

// Must ends the test if there is an error.
func (s *Steps) Must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// Same checks that something is what it has to be.
func (s *Steps) Same(what, got, want string) {
	s.Helper()
	if got != want {
		s.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// Await waits until a condition holds, and says how long that took; it fails with how things are if that takes too long.
func (s *Steps) Await(what string, done func(context.Context) (bool, string, error)) {
	s.Helper()
	begun := time.Now()
	s.Must(lab.Await(s.Context(), s.Limit, what, done))
	s.Logf("%4.1f s until %s", time.Since(begun).Seconds(), what)
}

// Kubectl runs kubectl in the namespace.
func (s *Steps) Kubectl(args ...string) string {
	s.Helper()
	out, err := s.Lab.Kube.Kubectl(s.Context(), nil, append([]string{"--namespace", s.Namespace}, args...)...)
	s.Must(err)
	return out
}

// Apply is `kubectl apply` of manifests in the namespace.
func (s *Steps) Apply(manifests string) {
	s.Helper()
	_, err := s.Lab.Kube.Kubectl(s.Context(), strings.NewReader(manifests), "--namespace", s.Namespace, "apply", "-f", "-")
	s.Must(err)
}

// In runs a command in a pod's first container and returns what it prints, without blanks around it.
func (s *Steps) In(pod string, command ...string) string {
	s.Helper()
	return strings.TrimSpace(s.Kubectl(append([]string{"exec", pod, "--"}, command...)...))
}

// Sh runs a shell's line in a pod.
func (s *Steps) Sh(pod, line string) string {
	s.Helper()
	return s.In(pod, "sh", "-c", line)
}

// Pod returns a pod that there is.
func (s *Steps) Pod(name string) *corev1.Pod {
	s.Helper()
	pod, err := s.API.CoreV1().Pods(s.Namespace).Get(s.Context(), name, metav1.GetOptions{})
	s.Must(err)
	return pod
}

// Ready waits until a pod is ready, and returns it.
func (s *Steps) Ready(name string) *corev1.Pod {
	s.Helper()
	return s.ReadyAnew(name, "")
}

// ReadyAnew waits until a pod is ready that is not the one with that UID.
func (s *Steps) ReadyAnew(name, than string) *corev1.Pod {
	s.Helper()
	var pod *corev1.Pod
	s.Await("pod "+name+" is ready", func(ctx context.Context) (bool, string, error) {
		found, err := s.API.CoreV1().Pods(s.Namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, "there is no such pod", nil
		}
		if err != nil {
			return false, "", err
		}
		pod = found
		return string(pod.UID) != than && IsReady(pod), fmt.Sprintf("it is %s", pod.Status.Phase), nil
	})
	return pod
}

// IsReady says whether a pod is ready, and not about to go.
func IsReady(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
