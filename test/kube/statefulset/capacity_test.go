package statefulset_test

import (
	"context"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// TestCapacity has the scheduler ask whether the pool has room (CSIStorageCapacity), before it binds a claim whose class waits for
// the first consumer.
func TestCapacity(t *testing.T) {
	t.Parallel()
	s := tell(t, "capacity")
	s.makeClass(class{name: "capacity", fields: "volumeBindingMode: WaitForFirstConsumer"})
	s.Await("the room of the class is published", func(ctx context.Context) (bool, string, error) {
		out, err := s.Lab.Kube.Kubectl(ctx, nil, "get", "csistoragecapacities", "--namespace", lab.Namespace,
			"--output", `jsonpath={.items[?(@.storageClassName=="capacity")].capacity}`)
		return out != "", "there is none", err
	})

	s.part("a claim for which there is room waits for its pod, and is bound then", func(s *story) {
		s.Apply(claim{name: "small", class: "capacity"}.String())
		s.describes("pvc/small", "Pending", "WaitForFirstConsumer")
		s.Apply(pod("small", "small", ""))
		s.Ready("small")
		s.hasImage(s.bound("small"), true)
	})
	s.part("a pod with a claim that is larger than the pool is not scheduled, and says so", func(s *story) {
		s.Apply(claim{name: "large", class: "capacity", size: "1Ti"}.String() + "---\n" + pod("large", "large", ""))
		s.describes("pod/large", "Pending", "did not have enough free storage")
		s.Same("volume of the large claim", s.claim("large").Spec.VolumeName, "")
	})
}
