package statefulset_test

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// TestOrphans takes the PersistentVolume from a volume of a class that keeps them, and has the doctor find and remove what is left.
func TestOrphans(t *testing.T) {
	t.Parallel()
	s := tell(t, "orphans")
	s.makeClass(class{name: "orphans", fields: "reclaimPolicy: Retain"})
	s.Apply(claim{name: "kept", class: "orphans"}.String() + "---\n" + pod("writer", "kept", ""))
	s.Ready("writer")
	volume := s.bound("kept")
	object, err := s.API.CoreV1().PersistentVolumes().Get(s.Context(), volume, metav1.GetOptions{})
	s.Must(err)
	handle := object.Spec.CSI.VolumeHandle

	s.part("a volume in use is no orphan, and cannot be removed as one", func(s *story) {
		found, _ := s.doctor(s.Context())
		s.lacks(found, handle)
		if _, err := s.doctor(s.Context(), "remove", handle); err == nil || !strings.Contains(err.Error(), "of claim orphans/kept has it") {
			s.Errorf("remove of a volume in use: got %v, want an error that tells its claim", err)
		}
	})
	s.part("without its PersistentVolume it is one", func(s *story) {
		s.delete("pod/writer", "persistentvolumeclaim/kept")
		s.awaitPhase(volume, "Released")
		s.deleteGlobal("persistentvolume", volume)
		s.hasImage(volume, true)
		s.Await("the doctor finds it, says how to remove it, and fails", func(ctx context.Context) (bool, string, error) {
			found, err := s.doctor(ctx)
			told := strings.Contains(found, "no PersistentVolume has this volume") && strings.Contains(found, "rbd-csi doctor remove "+handle)
			return told && err != nil, "it says:\n" + found, nil
		})
	})
	s.part("and is removed when it is named", func(s *story) {
		s.Await("it is removed", func(ctx context.Context) (bool, string, error) {
			_, err := s.doctor(ctx, "remove", handle)
			if err != nil { // as long as the node has not let go of it
				return false, err.Error(), nil
			}
			return true, "", nil
		})
		s.imageGone(volume)
	})
}

// doctor runs the doctor in a controller's pod, to whom everything is old enough. Other stories may be found by it, too.
func (s *story) doctor(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"exec", "--namespace", lab.Namespace, "--container", "driver", "deployment/" + lab.Release + "-controller", "--",
		"rbd-csi", "doctor", "--grace", "1ms"}, args...)
	return s.Lab.Kube.Kubectl(ctx, nil, args...)
}
