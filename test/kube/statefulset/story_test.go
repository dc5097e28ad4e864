package statefulset_test

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

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
	"github.com/rbd-csi/rbd-csi/test/kube/steps"
)

// How long something may take before a test fails. Everything takes seconds on a machine that has nothing else to do.
const (
	limit      = 2 * time.Minute
	cleanLimit = 2 * time.Minute
	lookLimit  = 30 * time.Second
)

// A story is a test in a namespace of its own. Its methods fail the test, so that it reads as a list of steps.
type story struct {
	steps.Steps

	// volumes are the names of all volumes that claims of the namespace had; their images have the same names.
	volumes map[string]bool
	// snapshots are the UIDs of all snapshots of the namespace; their names in Ceph have these in them.
	snapshots map[string]bool
}

// tell begins a story in a new namespace of that name, which is deleted at its end.
func tell(t *testing.T, namespace string) *story {
	t.Helper()
	s := &story{Steps: steps.Begin(t, shared.ForTest(t), namespace, limit), volumes: map[string]bool{}, snapshots: map[string]bool{}}
	t.Cleanup(s.end)
	return s
}

// part runs a part of the story. The parts after one that failed make no sense any more and are not run.
func (s *story) part(title string, play func(*story)) {
	s.Helper()
	ok := s.Run(title, func(t *testing.T) {
		part := *s
		part.T = t
		play(&part)
	})
	if !ok {
		s.FailNow()
	}
}

// end shows how things are if the test failed, deletes what uses volumes, and checks that no image of it is left. The
// namespace itself is not waited for: that takes Kubernetes some ten seconds more.
func (s *story) end() {
	if s.Failed() {
		s.look()
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanLimit)
	defer cancel()
	s.rememberVolumes(ctx)
	s.rememberSnapshots(ctx)
	// A claim that waits for its copy keeps the snapshot, so claims are deleted first.
	_, err := s.Lab.Kube.Kubectl(ctx, nil, "delete", "--namespace", s.Namespace, "--all", "--wait", "--timeout", cleanLimit.String(),
		"statefulsets,pods,persistentvolumeclaims,volumegroupsnapshots,volumesnapshots")
	if err == nil {
		err = lab.Await(ctx, cleanLimit, "the images and snapshots of namespace "+s.Namespace+" are gone", func(ctx context.Context) (bool, string, error) {
			left, err := s.remaining(ctx)
			return len(left) == 0, "there are " + strings.Join(left, ", "), err
		})
	}
	if err != nil {
		s.Errorf("clean up: %v", err)
		s.look()
	}
	if err := s.API.CoreV1().Namespaces().Delete(ctx, s.Namespace, metav1.DeleteOptions{}); err != nil {
		s.Errorf("delete namespace %s: %v", s.Namespace, err)
	}
}

// look prints what an operator would look at.
func (s *story) look() {
	ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
	defer cancel()
	s.Log(s.Lab.Look(ctx, s.Namespace))
}

// rememberVolumes notes which volumes the claims have by now.
func (s *story) rememberVolumes(ctx context.Context) {
	list, err := s.API.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		s.Errorf("list volumes: %v", err)
		return
	}
	for _, volume := range list.Items {
		ref := volume.Spec.ClaimRef
		made := volume.Annotations["pv.kubernetes.io/provisioned-by"] == lab.Driver
		if made && ref != nil && ref.Namespace == s.Namespace {
			s.volumes[volume.Name] = true
		}
	}
}

// remaining are the story's images that are still in the pool or in its trash, and its snapshots.
func (s *story) remaining(ctx context.Context) ([]string, error) {
	images, err := s.Lab.Images(ctx)
	if err != nil {
		return nil, err
	}
	trash, err := s.Lab.Trash(ctx)
	if err != nil {
		return nil, err
	}
	images = slices.DeleteFunc(append(images, trash...), func(name string) bool { return !s.volumes[name] })
	snapshots, err := s.remainingSnapshots(ctx)
	return append(images, snapshots...), err
}

func (s *story) claim(name string) *corev1.PersistentVolumeClaim {
	s.Helper()
	claim, err := s.API.CoreV1().PersistentVolumeClaims(s.Namespace).Get(s.Context(), name, metav1.GetOptions{})
	s.Must(err)
	return claim
}

// bound waits until a claim has a volume and returns the volume's name.
func (s *story) bound(name string) string {
	s.Helper()
	var volume string
	s.Await("claim "+name+" is bound", func(ctx context.Context) (bool, string, error) {
		claim, err := s.API.CoreV1().PersistentVolumeClaims(s.Namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, "there is no such claim", nil
		}
		if err != nil {
			return false, "", err
		}
		volume = claim.Spec.VolumeName
		return claim.Status.Phase == corev1.ClaimBound, string(claim.Status.Phase), nil
	})
	s.volumes[volume] = true
	return volume
}

// delete deletes objects, as kind/name, and waits until they are gone.
func (s *story) delete(objects ...string) {
	s.Helper()
	s.Kubectl(append([]string{"delete", "--wait", "--timeout", limit.String()}, objects...)...)
}

// images are the images of the pool.
func (s *story) images() []string {
	s.Helper()
	images, err := s.Lab.Images(s.Context())
	s.Must(err)
	return images
}

// hasImage checks whether the pool has an image of that name.
func (s *story) hasImage(name string, want bool) {
	s.Helper()
	if images := s.images(); slices.Contains(images, name) != want {
		s.Errorf("is there an image %s in pool %s: got %t, want %t; there are %q", name, lab.Pool, !want, want, images)
	}
}

// imageGone waits until an image is neither in the pool nor in the trash.
func (s *story) imageGone(name string) {
	s.Helper()
	s.Await("image "+name+" is gone", func(ctx context.Context) (bool, string, error) {
		images, err := s.Lab.Images(ctx)
		if err != nil {
			return false, "", err
		}
		trash, err := s.Lab.Trash(ctx)
		return !slices.Contains(images, name) && !slices.Contains(trash, name), "it is there", err
	})
}

// describes waits until `kubectl describe` of an object says all of the words, which is how an operator learns what is wrong.
func (s *story) describes(object string, words ...string) string {
	s.Helper()
	var text string
	s.Await(fmt.Sprintf("kubectl describe %s says %q", object, words), func(ctx context.Context) (bool, string, error) {
		var err error
		text, err = s.Lab.Kube.Kubectl(ctx, nil, "--namespace", s.Namespace, "describe", object)
		missing := slices.DeleteFunc(slices.Clone(words), func(word string) bool { return strings.Contains(text, word) })
		return len(missing) == 0, "it says:\n" + text, err
	})
	return text
}

// lacks checks that a text does not have a word.
func (s *story) lacks(text, word string) {
	s.Helper()
	if strings.Contains(text, word) {
		s.Errorf("a text has %q, and should not:\n%s", word, text)
	}
}

// handle returns the handle of a PersistentVolume.
func (s *story) handle(volume string) string {
	s.Helper()
	return strings.TrimSpace(s.Kubectl("get", "persistentvolume", volume, "--output", "jsonpath={.spec.csi.volumeHandle}"))
}

// volumesGone waits until there is no volume any more that a claim of the namespace had.
func (s *story) volumesGone() {
	s.Helper()
	s.Await("the namespace has no volumes", func(ctx context.Context) (bool, string, error) {
		list, err := s.API.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, "", err
		}
		for _, volume := range list.Items {
			if ref := volume.Spec.ClaimRef; ref != nil && ref.Namespace == s.Namespace {
				return false, volume.Name + " is " + string(volume.Status.Phase), nil
			}
		}
		return true, "", nil
	})
}
