// Package nodes_test tells what becomes of a StatefulSet whose nodes are lost: they are guests, in which volumes are mapped by krbd.
//
// A lab with two of them is brought up for the package and taken down after it, unless RBD_CSI_TEST_LAB names the build folder of one
// that runs.
package nodes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
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
	s.apply(set)
	s.ready("db-0", "")
	s.ready("db-1", "")
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
func (s *story) lost(name string, loss loss) (pod, *kube.Guest) {
	s.Helper()
	before := s.pod(name)
	node, err := s.lab.Kube.Guest(before.Spec.NodeName)
	s.must(err)
	s.mapped(node, 1)
	s.must(loss.lose(node))
	s.notReady(node)
	return before, node
}

// moved waits until a pod has started on another node than before.
func (s *story) moved(name string, before pod) pod {
	s.Helper()
	moved := s.ready(name, before.Metadata.UID)
	if moved.Spec.NodeName == before.Spec.NodeName {
		s.Fatalf("node of %s after %s was to be left: got the same", name, before.Spec.NodeName)
	}
	return moved
}

// elsewhere waits until a pod has started on another node than before, with its data.
func (s *story) elsewhere(name, sum string, before pod) pod {
	s.Helper()
	moved := s.moved(name, before)
	s.same("data of "+name+" on another node", s.sum(name), sum)
	return moved
}

// back gets a node back that was lost, on which nothing is mapped then.
func (s *story) back(node *kube.Guest, loss loss) {
	s.Helper()
	s.must(loss.regain(node))
	s.must(node.WaitReady(s.Context()))
	s.Logf("%s is ready again", node.Name())
	s.must(s.lab.AwaitDriver(s.Context()))
	s.mapped(node, 0)
}

// returns deletes a pod that had moved off a node, and waits until it has come back there, with its data.
func (s *story) returns(name, sum string, to *kube.Guest, moved pod) {
	s.Helper()
	s.kubectl("delete", "pod", name)
	returned := s.ready(name, moved.Metadata.UID)
	s.same("node of "+name+" when both nodes take pods", returned.Spec.NodeName, to.Name())
	s.same("data of "+name+" back on its node", s.sum(name), sum)
}

// A story is a test in a namespace of its own. Its methods fail the test, so that it reads as a list of steps.
type story struct {
	*testing.T

	lab       *lab.Lab
	namespace string
}

func tell(t *testing.T, namespace string) *story {
	t.Helper()
	s := &story{T: t, lab: shared.ForTest(t), namespace: namespace}
	_, err := s.lab.Kube.Kubectl(t.Context(), nil, "create", "namespace", namespace)
	s.must(err)
	t.Cleanup(s.end)
	return s
}

// end shows how things are if the test failed, brings all nodes back, deletes what uses volumes, and checks that nothing of it is left.
func (s *story) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	if s.Failed() {
		s.Log(s.lab.Look(ctx, s.namespace))
	}
	err := s.lab.Kube.Revive(ctx)
	for _, node := range s.lab.Kube.Nodes() {
		_, untainted := s.lab.Kube.Kubectl(ctx, nil, "taint", "node", node, kubernetes.OutOfService+"-")
		if untainted != nil && !strings.Contains(untainted.Error(), "not found") {
			err = errors.Join(err, untainted)
		}
	}
	if err = errors.Join(err, s.lab.Empty(ctx)); err != nil {
		s.Errorf("clean up: %v", err)
	}
}

func (s *story) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *story) same(what, got, want string) {
	s.Helper()
	if got != want {
		s.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func (s *story) kubectl(args ...string) string {
	s.Helper()
	out, err := s.lab.Kube.Kubectl(s.Context(), nil, append([]string{"--namespace", s.namespace}, args...)...)
	s.must(err)
	return out
}

func (s *story) apply(manifests string) {
	s.Helper()
	_, err := s.lab.Kube.Kubectl(s.Context(), strings.NewReader(manifests), "--namespace", s.namespace, "apply", "-f", "-")
	s.must(err)
}

// await waits until a condition holds, and says how long that took.
func (s *story) await(what string, done func(context.Context) (bool, string, error)) {
	s.Helper()
	begun := time.Now()
	s.must(lab.Await(s.Context(), limit, what, done))
	s.Logf("%4.1f s until %s", time.Since(begun).Seconds(), what)
}

// A pod is what the tests read of one.
type pod struct {
	Metadata struct{ UID, DeletionTimestamp string }
	Spec     struct{ NodeName string }
	Status   struct {
		Phase      string
		Conditions []struct{ Type, Status string }
	}
}

func (p pod) ready() bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True" && p.Metadata.DeletionTimestamp == ""
		}
	}
	return false
}

func (s *story) find(ctx context.Context, name string) (pod, error) {
	var found pod
	out, err := s.lab.Kube.Kubectl(ctx, nil, "--namespace", s.namespace, "get", "pod", name, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &found)
	}
	return found, err
}

func (s *story) pod(name string) pod {
	s.Helper()
	found, err := s.find(s.Context(), name)
	s.must(err)
	return found
}

// ready waits until a pod is ready that is not the one with that UID, and returns it.
func (s *story) ready(name, than string) pod {
	s.Helper()
	var found pod
	s.await(name+" is ready", func(ctx context.Context) (bool, string, error) {
		var err error
		if found, err = s.find(ctx, name); errors.Is(err, fault.NotFound) {
			return false, "there is no such pod", nil
		}
		return err == nil && found.Metadata.UID != than && found.ready(), "it is " + found.Status.Phase, err
	})
	return found
}

// fill writes data, and returns its checksum.
func (s *story) fill(pod string) string {
	s.Helper()
	s.kubectl("exec", pod, "--", "sh", "-c", "dd if=/dev/urandom of=/data/file bs=64k count=128 2>/dev/null && sync")
	return s.sum(pod)
}

func (s *story) sum(pod string) string {
	s.Helper()
	return s.kubectl("exec", pod, "--", "md5sum", "/data/file")
}

// notReady waits until Kubernetes takes a node for lost.
func (s *story) notReady(node *kube.Guest) {
	s.Helper()
	s.await(node.Name()+" is not ready", func(ctx context.Context) (bool, string, error) {
		const condition = `jsonpath={.status.conditions[?(@.type=="Ready")].status}`
		out, err := s.lab.Kube.Kubectl(ctx, nil, "get", "node", node.Name(), "-o", condition)
		return out != "True", "it is", err
	})
}

// taint adds or removes the taint.
func (s *story) taint(node *kube.Guest, what string) {
	s.Helper()
	s.kubectl("taint", "node", node.Name(), kubernetes.OutOfService+what)
}

// mapped waits until a node has as many images mapped by krbd.
func (s *story) mapped(node *kube.Guest, want int) {
	s.Helper()
	s.await(fmt.Sprintf("%s has %d images mapped by krbd", node.Name(), want), func(ctx context.Context) (bool, string, error) {
		out, err := node.Run(ctx, "ls", "/sys/bus/rbd/devices")
		devices := strings.Fields(out)
		return len(devices) == want, "it has " + strings.Join(devices, ", "), err
	})
}
