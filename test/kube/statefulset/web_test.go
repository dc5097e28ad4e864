package statefulset_test

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// TestWeb is the life of the StatefulSet that everybody begins with.
func TestWeb(t *testing.T) {
	t.Parallel()
	s := tell(t, "web")
	s.Apply(web)

	s.part("each replica gets an image of its own, named after its volume", (*story).webHasImages)
	s.part("kubectl describe pod says how its volume was mapped, and why so", func(s *story) {
		s.describes("pod/web-0", "VolumeMapped", "with fuse: it is the first that works here; passed over mapper krbd: ")
	})
	s.part("a deleted pod comes back to its claim, and finds its data", (*story).webPodDeleted)
	s.part("scaled from 2 to 5, 1 and 3, each ordinal finds its data again", (*story).webScaled)
	s.part("a rolling update changes every pod, and no data", (*story).webUpdated)
}

func (s *story) webHasImages() {
	s.rolledOut("web")
	for i := range 2 {
		name := fmt.Sprintf("www-web-%d", i)
		volume := s.bound(name)
		s.hasImage(volume, true)
		claim := s.claim(name)
		if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName != lab.Class {
			s.Errorf("class of claim %s: got %v, want the default, %s", name, claim.Spec.StorageClassName, lab.Class)
		}
		s.publish(i)
		s.serves(i)
	}
}

// publish gives a replica's server a page of its own.
func (s *story) publish(i int) {
	s.Helper()
	s.Sh(webPod(i), "echo "+page(i)+" >/usr/share/nginx/html/index.html && sync")
}

// serves checks that a replica serves its page.
func (s *story) serves(i int) {
	s.Helper()
	s.Same("the page of "+webPod(i), s.In(webPod(i), "wget", "-q", "-O", "-", "http://127.0.0.1/index.html"), page(i))
}

func webPod(i int) string { return fmt.Sprintf("web-%d", i) }
func page(i int) string   { return fmt.Sprintf("this-is-replica-%d", i) }

func (s *story) webPodDeleted() {
	claim, pod := s.claim("www-web-0"), s.Ready("web-0")
	s.Kubectl("delete", "pod", "web-0", "--wait=false")
	again := s.ReadyAnew("web-0", string(pod.UID))
	s.Same("claim of web-0", again.Spec.Volumes[0].PersistentVolumeClaim.ClaimName, claim.Name)
	s.Same("UID of its claim", string(s.claim(claim.Name).UID), string(claim.UID))
	s.Same("volume of its claim", s.claim(claim.Name).Spec.VolumeName, claim.Spec.VolumeName)
	s.serves(0)
}

func (s *story) webScaled() {
	volumes := map[int]string{0: s.bound("www-web-0"), 1: s.bound("www-web-1")}
	s.scale("web", 5)
	for i := 2; i < 5; i++ {
		volumes[i] = s.bound(fmt.Sprintf("www-web-%d", i))
		s.hasImage(volumes[i], true)
		s.publish(i)
	}
	s.scale("web", 1)
	for i := range 5 {
		// Claims and images stay when their pods go.
		s.Same(fmt.Sprintf("volume %d", i), s.bound(fmt.Sprintf("www-web-%d", i)), volumes[i])
		s.hasImage(volumes[i], true)
	}
	s.scale("web", 3)
	for i := range 3 {
		s.Same(fmt.Sprintf("volume %d", i), s.bound(fmt.Sprintf("www-web-%d", i)), volumes[i])
		s.serves(i)
	}
}

func (s *story) webUpdated() {
	before := map[int]string{}
	for i := range 3 {
		before[i] = string(s.Ready(webPod(i)).UID)
	}
	s.Kubectl("patch", "statefulset", "web", "--patch", `{"spec":{"template":{"metadata":{"annotations":{"edition":"2"}}}}}`)
	s.rolledOut("web")
	for i := range 3 {
		pod := s.Ready(webPod(i))
		if string(pod.UID) == before[i] || pod.Annotations["edition"] != "2" {
			s.Errorf("pod %s after the update: UID %s, edition %q, want another than %s, of edition 2",
				pod.Name, pod.UID, pod.Annotations["edition"], before[i])
		}
		s.serves(i)
	}
}

// scale sets the number of replicas and waits until there are as many, all ready.
func (s *story) scale(name string, replicas int) {
	s.Helper()
	s.Kubectl("scale", "statefulset", name, fmt.Sprintf("--replicas=%d", replicas))
	s.rolledOut(name)
}

// rolledOut waits until a StatefulSet has the pods that it is to have, ready and of the newest template, and no other.
func (s *story) rolledOut(name string) {
	s.Helper()
	s.awaitSet(name, "is rolled out", func(set *appsv1.StatefulSet) bool {
		want, status := *set.Spec.Replicas, set.Status
		return status.ObservedGeneration == set.Generation && status.Replicas == want && status.ReadyReplicas == want &&
			status.UpdatedReplicas == want
	})
}
