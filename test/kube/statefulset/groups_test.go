package statefulset_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/kube/images"
)

// alternating is the shell line of a pod that writes a number to one volume and, when that is done, the same number to the other. At
// every moment the first volume is therefore at the second one's number, or one ahead. The writes go past the page cache, and
// nothing waits for a disk, so that a step takes milliseconds: snapshots that are taken one after the other, or only about at
// once, are of different steps.
const alternating = `for volume in /one /two; do
  printf '%4095d\n' 0 >$volume/step && sync $volume/step || exit 1
done
n=0
while :; do
  n=$((n + 1))
  printf '%4095d\n' "$n" >/tmp/step
  for volume in /one /two; do
    dd if=/tmp/step of=$volume/step bs=4096 count=1 conv=notrunc oflag=direct 2>/dev/null || { echo "write of $n to $volume failed"; exit 1; }
  done
done`

// conductor is the pod that does so, beside the pods whose volumes they are: a volume for one node may be in several pods of it.
const conductor = `apiVersion: v1
kind: Pod
metadata: {name: conductor}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: ` + images.Busybox + `
      imagePullPolicy: IfNotPresent
      command: [sh, -c]
      args:
        - |
%s
      volumeMounts: [{name: one, mountPath: /one}, {name: two, mountPath: /two}]
  volumes:
    - {name: one, persistentVolumeClaim: {claimName: data-pair-0}}
    - {name: two, persistentVolumeClaim: {claimName: data-pair-1}}
`

// TestGroupSnapshot takes snapshots of the volumes of both replicas, all of one moment, which writers on both prove.
func TestGroupSnapshot(t *testing.T) {
	t.Parallel()
	s := tell(t, "group-snapshot")
	claims := []string{"data-pair-0", "data-pair-1"}
	s.Apply(set{name: "pair", replicas: 2, command: checking}.String())
	writers := []*writer{s.writes("pair-0"), s.writes("pair-1")}
	s.Kubectl("label", "persistentvolumeclaim", claims[0], claims[1], "group=pair")
	s.Apply(fmt.Sprintf(conductor, indent("          ", alternating)))
	s.Ready("conductor")
	for _, w := range writers {
		w.goesOn(s)
	}
	s.Await("the conductor writes", func(ctx context.Context) (bool, string, error) {
		out, err := s.Lab.Kube.Kubectl(ctx, nil, "exec", "--namespace", s.Namespace, "conductor", "--", "cat", "/two/step")
		n, _ := strconv.Atoi(strings.TrimSpace(out))
		return n >= few, fmt.Sprintf("it is at step %d", n), err
	})
	const times = 3
	members := make([]map[string]string, times)
	least := make([]int, len(writers))

	s.part("it is taken of the claims with a label, under pods that write", func(s *story) {
		for i := range times {
			for j, w := range writers {
				least[j] = s.written(w)
			}
			members[i] = s.takesGroup(fmt.Sprintf("pair-%d", i), "pair", len(claims))
			for _, name := range claims {
				if members[i][name] == "" {
					s.Fatalf("snapshots in group %d: got %v, want one of each of %q", i, members[i], claims)
				}
			}
		}
		for _, w := range writers {
			w.goesOn(s)
			w.unharmed(s)
		}
	})
	s.part("restored one by one, the volumes are of one moment", func(s *story) {
		for i := range times {
			var steps []int
			for j := range claims {
				name := fmt.Sprintf("copy-%d-%d", i, j)
				s.Apply(restored(name, members[i][claims[j]], "").String() + "---\n" + pod(name, name, ""))
			}
			for j := range claims {
				name := fmt.Sprintf("copy-%d-%d", i, j)
				s.Ready(name)
				steps = append(steps, s.step(name))
				if i == times-1 {
					s.wholeCopy(name, least[j])
				}
			}
			if ahead := steps[0] - steps[1]; ahead != 0 && ahead != 1 {
				s.Errorf("group %d: the copies are at steps %d, want the second at the first's, or one behind", i, steps)
			}
		}
	})
	s.part("deleted, its snapshots go, and the copies stay", func(s *story) {
		for i := range times {
			s.delete(fmt.Sprintf("volumegroupsnapshot/pair-%d", i))
		}
		s.Await("the snapshots of the groups are gone", func(ctx context.Context) (bool, string, error) {
			out, err := s.Lab.Kube.Kubectl(ctx, nil, "get", "volumesnapshots", "--namespace", s.Namespace, "--output", "name")
			return out == "", "there are " + out, err
		})
		s.wholeCopy(fmt.Sprintf("copy-%d-0", times-1), least[0])
		for _, w := range writers {
			w.goesOn(s)
			w.unharmed(s)
		}
	})
}

// takesGroup makes a snapshot of so many claims with a label, waits until each of its snapshots can be used, and returns their names by
// their claims.
func (s *story) takesGroup(name, label string, claims int) map[string]string {
	s.Helper()
	s.Apply(groupSnapshot{name: name, label: label}.String())
	group := s.snapshotted("volumegroupsnapshot", name)
	var of map[string]string
	// The group is ready before Kubernetes has made an object of each of its snapshots.
	s.Await("the snapshots of group "+name+" are ready to use", func(ctx context.Context) (bool, string, error) {
		list, err := s.list(ctx, "volumesnapshots", s.Namespace)
		of = map[string]string{}
		for _, member := range list {
			for _, owner := range member.Metadata.OwnerReferences {
				if owner.UID == group.Metadata.UID && member.Status.Ready {
					of[member.Spec.Source.Claim] = member.Metadata.Name
					s.snapshots[member.Metadata.UID] = true
				}
			}
		}
		return len(of) == claims, fmt.Sprintf("there are %v", of), err
	})
	return of
}

// step is the number that the conductor had written to a volume.
func (s *story) step(pod string) int {
	s.Helper()
	text := s.In(pod, "cat", "/data/step")
	n, err := strconv.Atoi(text)
	if err != nil || n == 0 {
		s.Fatalf("step in %s: got %q, want a number above 0", pod, text)
	}
	return n
}
