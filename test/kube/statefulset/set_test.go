package statefulset_test

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// awaitSet waits until something holds for a StatefulSet.
func (s *story) awaitSet(name, what string, holds func(*appsv1.StatefulSet) bool) {
	s.Helper()
	s.Await("StatefulSet "+name+" "+what, func(ctx context.Context) (bool, string, error) {
		set, err := s.API.AppsV1().StatefulSets(s.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		return holds(set), fmt.Sprintf("%d replicas of %d, %d ready, %d updated", set.Status.Replicas, *set.Spec.Replicas,
			set.Status.ReadyReplicas, set.Status.UpdatedReplicas), nil
	})
}

// deleteGlobal deletes an object that is in no namespace, at the end of a test.
func (s *story) deleteGlobal(kind, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanLimit)
	defer cancel()
	if _, err := s.Lab.Kube.Kubectl(ctx, nil, "delete", kind, name, "--ignore-not-found", "--wait=false"); err != nil {
		s.Errorf("clean up: %v", err)
	}
}
