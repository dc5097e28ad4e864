// Package nodes_test tells what becomes of a StatefulSet whose nodes are lost: they are guests, in which volumes are mapped by krbd.
//
// A lab with two of them is brought up for the package and taken down after it, unless RBD_CSI_TEST_LAB names the build folder of one
// that runs.
package nodes_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
	"github.com/rbd-csi/rbd-csi/test/kube/steps"
)

var shared = lab.Shared{Guests: 2}

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

// limit is how long each step may take. It takes half a minute at most on a machine that has nothing else to do.
const limit = 5 * time.Minute

// set is a StatefulSet with a replica on each node, or, when there is only one node that takes pods, all of them there.
const set = `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
        - topologyKey: kubernetes.io/hostname
          maxSkew: 1
          whenUnsatisfiable: DoNotSchedule
          nodeTaintsPolicy: Honor
          labelSelector: {matchLabels: {app: db}}
      containers:
        - name: db
          image: registry.k8s.io/e2e-test-images/busybox:1.37.0-2
          command: [sleep, infinity]
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec:
        accessModes: [ReadWriteOnce]
        resources: {requests: {storage: 64Mi}}
`

// TestLostNode loses a node in each of the ways in which nodes are lost, with a pod on it. An operator says so, the pod starts on
// the other node with its data, and when the node is back the pod may return.
func TestLostNode(t *testing.T) {
	s := tell(t, "lost-node")
	s.Apply(set)
	s.Ready("db-0")
	s.Ready("db-1")
	s.fill("db-0")
	sum := s.fill("db-1")
	s.eachLoss(func(s *story, loss loss) { s.lose("db-1", sum, loss) })
}

// A loss is a way in which a node is lost, and got back.
type loss struct {
	name         string
	lose, regain func(*kube.Guest) error
}

// eachLoss is a round of the story for each of the ways.
func (s *story) eachLoss(round func(*story, loss)) {
	for _, loss := range []loss{
		{"killed", (*kube.Guest).Kill, func(g *kube.Guest) error { return g.Boot(s.Context()) }},
		{"frozen", (*kube.Guest).Freeze, (*kube.Guest).Thaw},
		{"cut off", (*kube.Guest).CutOff, (*kube.Guest).Rejoin},
	} {
		ok := s.Run(loss.name, func(t *testing.T) {
			of := *s
			of.T = t
			round(&of, loss)
		})
		if !ok {
			s.FailNow()
		}
	}
}

// lose loses the node of a pod, says so, and gets it back.
func (s *story) lose(pod, sum string, loss loss) {
	before, node := s.lost(pod, loss)
	s.taint(node, "=lost:NoExecute")
	moved := s.elsewhere(pod, sum, before)
	s.back(node, loss)
	s.taint(node, "-")
	s.returns(pod, sum, node, moved)
	s.mapped(node, 1)
}

// lost loses the node of a pod.
func (s *story) lost(name string, loss loss) (*corev1.Pod, *kube.Guest) {
	s.Helper()
	before := s.Pod(name)
	node, err := s.Lab.Kube.Guest(before.Spec.NodeName)
	s.Must(err)
	s.mapped(node, 1)
	s.Must(loss.lose(node))
	s.notReady(node)
	return before, node
}

// moved waits until a pod has started on another node than before.
func (s *story) moved(name string, before *corev1.Pod) *corev1.Pod {
	s.Helper()
	moved := s.ReadyAnew(name, string(before.UID))
	if moved.Spec.NodeName == before.Spec.NodeName {
		s.Fatalf("node of %s after %s was to be left: got the same", name, before.Spec.NodeName)
	}
	return moved
}

// elsewhere waits until a pod has started on another node than before, with its data.
func (s *story) elsewhere(name, sum string, before *corev1.Pod) *corev1.Pod {
	s.Helper()
	moved := s.moved(name, before)
	s.Same("data of "+name+" on another node", s.sum(name), sum)
	return moved
}

// back gets a node back that was lost, on which nothing is mapped then.
func (s *story) back(node *kube.Guest, loss loss) {
	s.Helper()
	s.Must(loss.regain(node))
	s.Must(node.WaitReady(s.Context()))
	s.Logf("%s is ready again", node.Name())
	s.Must(s.Lab.AwaitDriver(s.Context()))
	s.mapped(node, 0)
}

// returns deletes a pod that had moved off a node, and waits until it has come back there, with its data.
func (s *story) returns(name, sum string, to *kube.Guest, moved *corev1.Pod) {
	s.Helper()
	s.Kubectl("delete", "pod", name)
	returned := s.ReadyAnew(name, string(moved.UID))
	s.Same("node of "+name+" when both nodes take pods", returned.Spec.NodeName, to.Name())
	s.Same("data of "+name+" back on its node", s.sum(name), sum)
}

// A story is a test in a namespace of its own. Its methods fail the test, so that it reads as a list of steps.
type story struct {
	steps.Steps
}

func tell(t *testing.T, namespace string) *story {
	t.Helper()
	s := &story{steps.Begin(t, shared.ForTest(t), namespace, limit)}
	t.Cleanup(s.end)
	return s
}

// end shows how things are if the test failed, brings all nodes back, deletes what uses volumes, and checks that nothing of it is left.
func (s *story) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	if s.Failed() {
		s.Log(s.Lab.Look(ctx, s.Namespace))
	}
	err := s.Lab.Kube.Revive(ctx)
	for _, node := range s.Lab.Kube.Nodes() {
		_, untainted := s.Lab.Kube.Kubectl(ctx, nil, "taint", "node", node, kubernetes.OutOfService+"-")
		if untainted != nil && !strings.Contains(untainted.Error(), "not found") {
			err = errors.Join(err, untainted)
		}
	}
	if err = errors.Join(err, s.Lab.Empty(ctx)); err != nil {
		s.Errorf("clean up: %v", err)
	}
}

// fill writes data, and returns its checksum.
func (s *story) fill(pod string) string {
	s.Helper()
	s.Sh(pod, "dd if=/dev/urandom of=/data/file bs=64k count=128 2>/dev/null && sync")
	return s.sum(pod)
}

func (s *story) sum(pod string) string {
	s.Helper()
	return s.In(pod, "md5sum", "/data/file")
}

// notReady waits until Kubernetes takes a node for lost.
func (s *story) notReady(node *kube.Guest) {
	s.Helper()
	s.Await(node.Name()+" is not ready", func(ctx context.Context) (bool, string, error) {
		object, err := s.API.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		isReady := func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}
		return !slices.ContainsFunc(object.Status.Conditions, isReady), "it is", nil
	})
}

// taint adds or removes the taint.
func (s *story) taint(node *kube.Guest, what string) {
	s.Helper()
	s.Kubectl("taint", "node", node.Name(), kubernetes.OutOfService+what)
}

// mapped waits until a node has as many images mapped by krbd.
func (s *story) mapped(node *kube.Guest, want int) {
	s.Helper()
	s.Await(fmt.Sprintf("%s has %d images mapped by krbd", node.Name(), want), func(ctx context.Context) (bool, string, error) {
		out, err := node.Run(ctx, "ls", "/sys/bus/rbd/devices")
		devices := strings.Fields(out)
		return len(devices) == want, "it has " + strings.Join(devices, ", "), err
	})
}
