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
	s.Apply(set)
	s.Ready("db-0")
	before := s.Ready("db-1")
	s.fill("db-0")
	sum := s.fill("db-1")
	node, err := s.Lab.Kube.Guest(before.Spec.NodeName)
	s.Must(err)
	fences := s.fences()

	s.Kubectl("drain", node.Name(), "--pod-selector", "app=db", "--ignore-daemonsets", "--force", "--timeout", limit.String())
	moved := s.elsewhere("db-1", sum, before)
	s.mapped(node, 0)
	s.Same("clients that were fenced", s.fences(), fences)

	s.Kubectl("uncordon", node.Name())
	s.returns("db-1", sum, node, moved)
}

// fences returns which clients Ceph keeps out.
func (s *story) fences() string {
	s.Helper()
	out, err := s.Lab.Ceph.Ceph(s.Context(), "osd", "blocklist", "ls")
	s.Must(err)
	return out
}

// TestSecondWriter has a pod on each node ask for a claim that one node at a time may have. The second waits, says why, and
// starts when the first is gone.
func TestSecondWriter(t *testing.T) {
	s := tell(t, "second-writer")
	nodes := s.Lab.Kube.Nodes()
	s.Apply(claim("disk", "ReadWriteOnce", ""))
	s.Apply(podOn("first", nodes[0], "disk", mounted))
	s.Ready("first")
	sum := s.fill("first")
	s.Apply(podOn("second", nodes[1], "disk", mounted))
	s.Await("the second pod is told that the volume is attached elsewhere", func(ctx context.Context) (bool, string, error) {
		out, err := s.Lab.Kube.Kubectl(ctx, nil, "--namespace", s.Namespace, "describe", "pod", "second")
		return strings.Contains(out, "Volume is already used by pod(s) first"), "it is told:\n" + out, err
	})
	s.Kubectl("delete", "pod", "first")
	s.Ready("second")
	s.Same("data in the second pod", s.sum("second"), sum)
}

// TestReadOnlyMany has pods on both nodes read a copy at once, while its source is written on. It is a copy of a filesystem in use, so
// one of the nodes has to replay its journal first.
func TestReadOnlyMany(t *testing.T) {
	s := tell(t, "read-only-many")
	nodes := s.Lab.Kube.Nodes()
	s.Apply(claim("source", "ReadWriteOnce", ""))
	s.Apply(podOn("writer", nodes[0], "source", mounted))
	s.Ready("writer")
	sum := s.fill("writer")
	s.Apply(claim("copy", "ReadOnlyMany", "dataSource: {kind: PersistentVolumeClaim, name: source}"))
	s.Kubectl("wait", "pvc/copy", "--for", "jsonpath={.status.phase}=Bound", "--timeout", limit.String())
	for i, node := range nodes {
		s.Apply(podOn(fmt.Sprint("reader-", i), node, "copy", mounted))
	}
	s.fill("writer")
	for i := range nodes {
		reader := fmt.Sprint("reader-", i)
		s.Ready(reader)
		s.Same("data in "+reader, s.sum(reader), sum)
		s.Same("word of "+reader+" when it writes", s.Sh(reader, "touch /data/mine 2>/dev/null || echo refused"), "refused")
	}
}

// TestSharedBlock has pods on both nodes write one raw block volume, each its own block, and read the other's.
func TestSharedBlock(t *testing.T) {
	s := tell(t, "shared-block")
	nodes := s.Lab.Kube.Nodes()
	s.Apply(claim("disk", "ReadWriteMany", "volumeMode: Block"))
	pods := make([]string, len(nodes))
	for i, node := range nodes {
		pods[i] = fmt.Sprint("half-", i)
		s.Apply(podOn(pods[i], node, "disk", raw))
	}
	for i, pod := range pods {
		s.Ready(pod)
		s.Sh(pod, fmt.Sprintf("echo of-%s | dd of=/dev/xvda bs=4096 seek=%d conv=sync,fsync 2>/dev/null", pod, i))
	}
	for _, pod := range pods {
		for i, other := range pods {
			// What a node has in its page cache of another's block is old; it is read past it.
			got := s.Sh(pod, fmt.Sprintf("dd if=/dev/xvda iflag=direct bs=4096 skip=%d count=1 2>/dev/null | tr -d '\\000'", i))
			s.Same(fmt.Sprintf("block %d, as %s reads it", i, pod), got, "of-"+other)
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
