package statefulset_test

import (
	"context"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestClaimRetention is about persistentVolumeClaimRetentionPolicy of a StatefulSet, of both kinds.
func TestClaimRetention(t *testing.T) {
	t.Parallel()
	s := tell(t, "retention")
	s.Apply(together(
		set{name: "gone", replicas: 2, spec: "persistentVolumeClaimRetentionPolicy: {whenScaled: Delete, whenDeleted: Delete}"},
		set{name: "kept", replicas: 2, spec: "persistentVolumeClaimRetentionPolicy: {whenScaled: Retain, whenDeleted: Retain}"},
	))
	s.rolledOut("gone")
	s.rolledOut("kept")
	for _, pod := range []string{"gone-0", "kept-0", "kept-1"} {
		s.Sh(pod, "echo "+pod+" >/data/word && sync")
	}
	gone := []string{s.bound("data-gone-0"), s.bound("data-gone-1")}
	kept := []string{s.bound("data-kept-0"), s.bound("data-kept-1")}

	s.part("whenScaled", func(s *story) {
		s.scale("gone", 1)
		s.scale("kept", 1)
		s.claimGone("data-gone-1")
		s.imageGone(gone[1])
		s.Same("the word of gone-0", s.In("gone-0", "cat", "/data/word"), "gone-0")
		s.Same("volume of kept-1", s.bound("data-kept-1"), kept[1])
	})
	s.part("whenDeleted", func(s *story) {
		s.delete("statefulset/gone", "statefulset/kept")
		s.claimGone("data-gone-0")
		s.imageGone(gone[0])
		for i, name := range []string{"data-kept-0", "data-kept-1"} {
			s.Same("volume of "+name, s.bound(name), kept[i])
			s.hasImage(kept[i], true)
		}
	})
	s.part("a new StatefulSet of the name takes what was kept", func(s *story) {
		s.Apply(set{name: "kept", replicas: 2}.String())
		s.rolledOut("kept")
		for _, pod := range []string{"kept-0", "kept-1"} {
			s.Same("the word of "+pod, s.In(pod, "cat", "/data/word"), pod)
		}
	})
}

// claimGone waits until there is no claim of that name.
func (s *story) claimGone(name string) {
	s.Helper()
	s.Await("claim "+name+" is gone", func(ctx context.Context) (bool, string, error) {
		_, err := s.API.CoreV1().PersistentVolumeClaims(s.Namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, "", nil
		}
		return false, "it is there", err
	})
}

// TestReclaimRetain deletes a claim whose volume is to be kept, and gives the volume to another one.
func TestReclaimRetain(t *testing.T) {
	t.Parallel()
	s := tell(t, "reclaim-retain")
	s.makeClass(class{name: "reclaim-retain", fields: "reclaimPolicy: Retain"})
	s.Apply(claim{name: "old", class: "reclaim-retain"}.String() + "---\n" + pod("writer", "old", ""))
	s.Ready("writer")
	volume := s.bound("old")
	s.Sh("writer", "echo precious >/data/word && sync")

	s.part("the volume and its image outlast the claim", func(s *story) {
		s.delete("pod/writer", "persistentvolumeclaim/old")
		s.awaitPhase(volume, "Released")
		s.hasImage(volume, true)
	})
	s.part("released by hand, it is bound by a new claim, with the data", func(s *story) {
		s.Kubectl("patch", "persistentvolume", volume, "--type", "json", "--patch", `[{"op":"remove","path":"/spec/claimRef"}]`)
		s.awaitPhase(volume, "Available")
		s.Apply(claim{name: "new", class: "reclaim-retain", spec: "volumeName: " + volume}.String() + "---\n" + pod("reader", "new", ""))
		s.Ready("reader")
		s.Same("volume of the new claim", s.bound("new"), volume)
		s.Same("the word in it", s.In("reader", "cat", "/data/word"), "precious")
	})
	s.part("with the policy changed, it goes with its claim", func(s *story) {
		s.Kubectl("patch", "persistentvolume", volume, "--patch", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
		s.delete("pod/reader", "persistentvolumeclaim/new")
		s.imageGone(volume)
	})
}

// awaitPhase waits until a volume is in one of its phases: Available, Bound, Released.
func (s *story) awaitPhase(volume string, phases ...string) {
	s.Helper()
	s.Await("volume "+volume+" is "+phases[0], func(ctx context.Context) (bool, string, error) {
		object, err := s.API.CoreV1().PersistentVolumes().Get(ctx, volume, metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		return slices.Contains(phases, string(object.Status.Phase)), "it is " + string(object.Status.Phase), nil
	})
}
