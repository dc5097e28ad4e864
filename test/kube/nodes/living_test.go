package nodes_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// TestDrain empties a node as an administrator does before its maintenance. Its pod starts on the other node with its data, and
// nothing is fenced: the volume was unmapped in order.
func TestDrain(t *testing.T) {
	s := tell(t, "drain")
	s.apply(set)
	s.ready("db-0", "")
	before := s.ready("db-1", "")
	s.fill("db-0")
	sum := s.fill("db-1")
	node, err := s.lab.Kube.Guest(before.Spec.NodeName)
	s.must(err)
	fences := s.fences()

	s.kubectl("drain", node.Name(), "--pod-selector", "app=db", "--ignore-daemonsets", "--force", "--timeout", limit.String())
	moved := s.elsewhere("db-1", sum, before)
	s.mapped(node, 0)
	s.same("clients that were fenced", s.fences(), fences)

	s.kubectl("uncordon", node.Name())
	s.returns("db-1", sum, node, moved)
}

// fences returns which clients Ceph keeps out.
func (s *story) fences() string {
	s.Helper()
	out, err := s.lab.Ceph.Ceph(s.Context(), "osd", "blocklist", "ls")
	s.must(err)
	return out
}

// TestSecondWriter has a pod on each node ask for a claim that one node at a time may have. The second waits, says why, and
// starts when the first is gone.
func TestSecondWriter(t *testing.T) {
	s := tell(t, "second-writer")
	nodes := s.lab.Kube.Nodes()
	s.apply(claim("disk", "ReadWriteOnce", ""))
	s.apply(podOn("first", nodes[0], "disk", mounted))
	s.ready("first", "")
	sum := s.fill("first")
	s.apply(podOn("second", nodes[1], "disk", mounted))
	s.await("the second pod is told that the volume is attached elsewhere", func(ctx context.Context) (bool, string, error) {
		out, err := s.lab.Kube.Kubectl(ctx, nil, "--namespace", s.namespace, "describe", "pod", "second")
		return strings.Contains(out, "Volume is already used by pod(s) first"), "it is told:\n" + out, err
	})
	s.kubectl("delete", "pod", "first")
	s.ready("second", "")
	s.same("data in the second pod", s.sum("second"), sum)
}

// TestReadOnlyMany has pods on both nodes read a copy at once, while its source is written on. It is a copy of a filesystem in use, so
// one of the nodes has to replay its journal first.
func TestReadOnlyMany(t *testing.T) {
	s := tell(t, "read-only-many")
	nodes := s.lab.Kube.Nodes()
	s.apply(claim("source", "ReadWriteOnce", ""))
	s.apply(podOn("writer", nodes[0], "source", mounted))
	s.ready("writer", "")
	sum := s.fill("writer")
	s.apply(claim("copy", "ReadOnlyMany", "dataSource: {kind: PersistentVolumeClaim, name: source}"))
	s.kubectl("wait", "pvc/copy", "--for", "jsonpath={.status.phase}=Bound", "--timeout", limit.String())
	for i, node := range nodes {
		s.apply(podOn(fmt.Sprint("reader-", i), node, "copy", mounted))
	}
	s.fill("writer")
	for i := range nodes {
		reader := fmt.Sprint("reader-", i)
		s.ready(reader, "")
		s.same("data in "+reader, s.sum(reader), sum)
		s.same("word of "+reader+" when it writes", strings.TrimSpace(s.kubectl("exec", reader, "--", "sh", "-c", "touch /data/mine 2>/dev/null || echo refused")), "refused")
	}
}

// TestSharedBlock has pods on both nodes write one raw block volume, each its own block, and read the other's.
func TestSharedBlock(t *testing.T) {
	s := tell(t, "shared-block")
	nodes := s.lab.Kube.Nodes()
	s.apply(claim("disk", "ReadWriteMany", "volumeMode: Block"))
	pods := make([]string, len(nodes))
	for i, node := range nodes {
		pods[i] = fmt.Sprint("half-", i)
		s.apply(podOn(pods[i], node, "disk", raw))
	}
	for i, pod := range pods {
		s.ready(pod, "")
		s.kubectl("exec", pod, "--", "sh", "-c", fmt.Sprintf("echo of-%s | dd of=/dev/xvda bs=4096 seek=%d conv=sync,fsync 2>/dev/null", pod, i))
	}
	for _, pod := range pods {
		for i, other := range pods {
			// What a node has in its page cache of another's block is old; it is read past it.
			got := s.kubectl("exec", pod, "--", "sh", "-c", fmt.Sprintf("dd if=/dev/xvda iflag=direct bs=4096 skip=%d count=1 2>/dev/null | tr -d '\\000'", i))
			s.same(fmt.Sprintf("block %d, as %s reads it", i, pod), strings.TrimSpace(got), "of-"+other)
		}
	}
}

// claim is a PersistentVolumeClaim of the default class; spec is more of its spec, or nothing.
func claim(name, mode, spec string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  accessModes: [%s]
  resources: {requests: {storage: 64Mi}}
  %s
`, name, mode, spec)
}

// How a container has the volume data.
const (
	mounted = "volumeMounts: [{name: data, mountPath: /data}]"
	raw     = "volumeDevices: [{name: data, devicePath: /dev/xvda}]"
)

// podOn is a pod on a node that has a claim's volume.
func podOn(name, node, claim, how string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeSelector: {kubernetes.io/hostname: %s}
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: registry.k8s.io/e2e-test-images/busybox:1.37.0-2
      command: [sleep, infinity]
      %s
  volumes: [{name: data, persistentVolumeClaim: {claimName: %s}}]
`, name, node, how, claim)
}
