package nodes_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/test/kube"
)

// envLosses is how often TestFailover loses a node in each way; once if it is not set.
const envLosses = "RBD_CSI_TEST_LOSSES"

// slow is for how long a node may be silent and be left alone.
const slow = 3 * time.Second

// soon is how soon after NotReady a pod is to be ready elsewhere. It is told how often that was so, and not judged: a guest is many times
// slower than a machine.
const soon = 10 * time.Second

// TestFailover loses a node in each way, and says nothing about it to Kubernetes: the driver does. A node that is slow is left alone.
func TestFailover(t *testing.T) {
	times := 1
	if text := os.Getenv(envLosses); text != "" {
		var err error
		if times, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", envLosses, err)
		}
	}
	s := tell(t, "failover")
	s.watchFor(8 * time.Second)
	s.Must(s.Lab.Upgrade(t.Context(), map[string]any{
		// One controller on each node, so that one is left. That of a lost node stays there for five minutes, as by default: when another
		// starts, its containers have the whole processor of a guest.
		"controller": map[string]any{"failover": true, "replicas": 2, "tolerations": []any{patient("not-ready"), patient("unreachable")}},
		// By default the sidecars take 15 s to follow one of them that is lost, much less than the 50 s after which a node is
		// not ready; here it is after 8 s.
		"sidecars": map[string]any{"leaderElection": map[string]any{"leaseDuration": "7s", "renewDeadline": "5s", "retryPeriod": "2s"}},
	}))
	t.Cleanup(func() { s.Must(s.Lab.Upgrade(context.WithoutCancel(t.Context()), nil)) })
	s.Apply(set)
	s.Ready("db-0")
	s.Ready("db-1")
	s.fill("db-0")
	sum := s.fill("db-1")
	s.slowDown("db-1")
	var took []time.Duration
	for range times {
		s.eachLoss(func(s *story, loss loss) { took = append(took, s.failOver("db-1", sum, loss)) })
	}
	slices.Sort(took)
	s.Logf("%d losses: from NotReady to ready elsewhere %.1f s at least, %.1f s in the median, %.1f s at most; %d times within %s",
		len(took), took[0].Seconds(), took[len(took)/2].Seconds(), took[len(took)-1].Seconds(),
		within(took, soon), soon)
}

// patient tolerates a lost node for as long as Kubernetes has pods do by default.
func patient(trouble string) map[string]any {
	return map[string]any{"key": "node.kubernetes.io/" + trouble, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
}

// within counts those that are no longer than the limit.
func within(sorted []time.Duration, limit time.Duration) int {
	count, _ := slices.BinarySearch(sorted, limit+1)
	return count
}

// watchFor has Ceph forget a client that it has not heard of for so long. By default that takes 30 s, and Kubernetes 50 s to take a
// node for lost; here Kubernetes takes 8 s.
func (s *story) watchFor(silent time.Duration) {
	s.Helper()
	const key = "osd_client_watch_timeout"
	_, err := s.Lab.Ceph.Ceph(s.Context(), "config", "set", "osd", key, strconv.Itoa(int(silent.Seconds())))
	s.Must(err)
	s.Cleanup(func() {
		_, err := s.Lab.Ceph.Ceph(context.WithoutCancel(s.Context()), "config", "rm", "osd", key)
		s.Must(err)
	})
}

// slowDown freezes the node of a pod for a moment.
func (s *story) slowDown(pod string) {
	s.Helper()
	before := s.Pod(pod)
	node, err := s.Lab.Kube.Guest(before.Spec.NodeName)
	s.Must(err)
	s.Must(node.Freeze())
	time.Sleep(slow)
	s.Must(node.Thaw())
	s.Must(node.WaitReady(s.Context()))
	s.Same("pod "+pod+" on a node that was slow", string(s.Ready(pod).UID), string(before.UID))
	s.inService(node)
}

// failOver loses the node of a pod, which starts elsewhere without anybody's help, and gets it back. It returns how long the
// pod took from when the node was not ready.
func (s *story) failOver(pod, sum string, loss loss) time.Duration {
	before, node := s.lost(pod, loss)
	since := time.Now()
	moved := s.moved(pod, before)
	took := time.Since(since)
	s.Same("data of "+pod+" on another node", s.sum(pod), sum)
	s.Logf("%s: %.1f s from NotReady to %s on %s", loss.name, took.Seconds(), pod, moved.Spec.NodeName)
	s.inService(node) // taken back as soon as the volume was detached
	s.back(node, loss)
	s.returns(pod, sum, node, moved)
	return took
}

// inService waits until a node has the taint out-of-service no more.
func (s *story) inService(node *kube.Guest) {
	s.Helper()
	s.Await(node.Name()+" is in service", func(ctx context.Context) (bool, string, error) {
		object, err := s.API.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		isOut := func(taint corev1.Taint) bool { return taint.Key == kubernetes.OutOfService }
		return !slices.ContainsFunc(object.Spec.Taints, isOut), fmt.Sprintf("its taints are %v", object.Spec.Taints), nil
	})
}
