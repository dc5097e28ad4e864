package statefulset_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
	"github.com/rbd-csi/rbd-csi/test/kube/steps"
)

// claimsAtOnce is how many claims are made at once.
const claimsAtOnce = 8

// TestControllerDies takes both controllers away while they make volumes. Whoever comes after them finishes what they began, and
// makes nothing twice. Ceph stands still meanwhile, so that all requests are on their way, and what they sent is done only when
// nobody waits for it any more.
func TestControllerDies(t *testing.T) {
	s := tell(t, "controller-dies")
	s.part("its processes are killed", func(s *story) {
		s.provisionsDespite("killed", func() { s.kill("controller") })
	})
	s.part("its pods are deleted by force", func(s *story) {
		s.provisionsDespite("deleted", func() {
			s.Kubectl("delete", "pods", "--namespace", lab.Namespace, "--selector", "app.kubernetes.io/component=controller",
				"--force", "--grace-period", "0")
		})
	})
}

// provisionsDespite makes claims while Ceph stands still, causes a disturbance when a volume is being made for each, has Ceph go
// on, and checks that each gets its one image.
func (s *story) provisionsDespite(name string, disturb func()) {
	s.Helper()
	const osd = "osd.0"
	before := s.images()
	s.Must(s.Lab.Ceph.Freeze(s.Context(), osd))
	thaw := sync.OnceFunc(func() {
		if err := s.Lab.Ceph.Thaw(context.Background(), osd); err != nil {
			s.Errorf("thaw %s: %v", osd, err)
		}
	})
	defer thaw()
	var claims strings.Builder
	for i := range claimsAtOnce {
		claims.WriteString(claim{name: fmt.Sprintf("%s-%d", name, i)}.String() + "---\n")
	}
	s.Apply(claims.String())
	s.beingMade(name)
	disturb()
	thaw()
	want := slices.Clone(before)
	for i := range claimsAtOnce {
		want = append(want, s.bound(fmt.Sprintf("%s-%d", name, i)))
	}
	s.controllersReady()
	slices.Sort(want)
	if got := s.images(); !slices.Equal(got, want) {
		s.Errorf("images in the pool: got %q, want those of the volumes and no other, %q", got, want)
	}
	if trash, err := s.Lab.Trash(s.Context()); err != nil || len(trash) > 0 {
		s.Errorf("trash of the pool: got %q, error %v, want none", trash, err)
	}
}

// beingMade waits until the provisioner has begun with each claim, and checks that it is done with none.
func (s *story) beingMade(name string) {
	s.Helper()
	s.Await("all volumes are being made", func(ctx context.Context) (bool, string, error) {
		events, err := s.API.CoreV1().Events(s.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=Provisioning"})
		if err != nil {
			return false, "", err
		}
		begun := map[string]bool{}
		for _, event := range events.Items {
			if strings.HasPrefix(event.InvolvedObject.Name, name+"-") {
				begun[event.InvolvedObject.Name] = true
			}
		}
		return len(begun) == claimsAtOnce, fmt.Sprintf("%d are", len(begun)), nil
	})
	for i := range claimsAtOnce {
		s.Same("phase of a claim while Ceph stands still", string(s.claim(fmt.Sprintf("%s-%d", name, i)).Status.Phase), "Pending")
	}
}

// controllersReady waits until as many controllers are ready as there are to be.
func (s *story) controllersReady() {
	s.Helper()
	const replicas = 2
	s.Await("the controllers are ready", func(ctx context.Context) (bool, string, error) {
		pods, err := s.driverPods(ctx, "controller")
		ready := slices.DeleteFunc(pods, func(pod corev1.Pod) bool { return !steps.IsReady(&pod) })
		return len(ready) == replicas, fmt.Sprintf("%d of %d are", len(ready), replicas), err
	})
}
