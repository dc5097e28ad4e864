package statefulset_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// checking is the shell line of a pod that writes blocks, each with its checksum, has them written out, and then appends the block's
// number to /data/log, like writing. After each it reads an earlier one again. So whatever is in the log has to be
// there, whole, in every copy of the volume.
const checking = `cd /data
n=$(tail -n 1 log 2>/dev/null)
n=${n:-0}
while :; do
  n=$((n + 1))
  head -c 32768 /dev/urandom >block-$n && sha256sum block-$n >sum-$n && sync -d block-$n sum-$n || { echo "write of $n failed"; exit 1; }
  sha256sum -c -s sum-$((n / 2 + 1)) || { echo "block $((n / 2 + 1)) is damaged"; exit 1; }
  echo "$n" >>log && sync -d log || { echo "note of $n failed"; exit 1; }
  sleep 0.05
done`

// damaged is the shell line that prints the numbers of blocks which are in the log and not whole.
const damaged = `cd /data && for n in $(cat log); do sha256sum -c -s sum-$n || echo $n; done`

// A snapshot is a VolumeSnapshot of a claim. Without a class it gets the default one.
type snapshot struct{ name, claim, class string }

func (s snapshot) String() string {
	class := ""
	if s.class != "" {
		class = "volumeSnapshotClassName: " + s.class
	}
	return fmt.Sprintf(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %s}
spec:
%s
  source: {persistentVolumeClaimName: %s}
`, s.name, indent("  ", class), s.claim)
}

// A groupSnapshot is a VolumeGroupSnapshot of the claims with a label.
type groupSnapshot struct{ name, label string }

func (g groupSnapshot) String() string {
	return fmt.Sprintf(`apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: %s}
spec:
  source: {selector: {matchLabels: {group: %s}}}
`, g.name, g.label)
}

// restored is a claim for a copy of a snapshot.
func restored(name, snapshot, size string) claim {
	return claim{name: name, size: size, spec: "dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: " + snapshot + "}"}
}

// cloned is a claim for a copy of another.
func cloned(name, source string) claim {
	return claim{name: name, spec: "dataSource: {kind: PersistentVolumeClaim, name: " + source + "}"}
}

// snapshotObject is what is read of a VolumeSnapshot, of a VolumeGroupSnapshot, and of their contents.
type snapshotObject struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name            string `json:"name"`
		UID             string `json:"uid"`
		OwnerReferences []struct {
			UID string `json:"uid"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		Source struct {
			Claim string `json:"persistentVolumeClaimName"`
		} `json:"source"`
		Snapshot struct {
			Namespace string `json:"namespace"`
		} `json:"volumeSnapshotRef"`
		Group struct {
			Namespace string `json:"namespace"`
		} `json:"volumeGroupSnapshotRef"`
	} `json:"spec"`
	Status struct {
		Content string `json:"boundVolumeSnapshotContentName"`
		Ready   bool   `json:"readyToUse"`
		// RestoreSize is a quantity of a snapshot, and a number of its content.
		RestoreSize any `json:"restoreSize"`
		Error       struct {
			Message string `json:"message"`
		} `json:"error"`
	} `json:"status"`
}

// list returns objects of kinds around snapshots, in one namespace or in none.
func (s *story) list(ctx context.Context, kinds, namespace string) ([]snapshotObject, error) {
	args := []string{"get", kinds, "--output", "json"}
	if namespace != "" {
		args = append(args, "--namespace", namespace)
	}
	out, err := s.Lab.Kube.Kubectl(ctx, nil, args...)
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []snapshotObject `json:"items"`
	}
	err = json.Unmarshal([]byte(out), &list)
	return list.Items, err
}

// snapshotted waits until a VolumeSnapshot or a VolumeGroupSnapshot is ready to use, and returns it.
func (s *story) snapshotted(kind, name string) snapshotObject {
	s.Helper()
	var found snapshotObject
	s.Await(kind+" "+name+" is ready to use", func(ctx context.Context) (bool, string, error) {
		list, err := s.list(ctx, kind, s.Namespace)
		at := slices.IndexFunc(list, func(o snapshotObject) bool { return o.Metadata.Name == name })
		if err != nil || at < 0 {
			return false, "there is none", err
		}
		found = list[at]
		return found.Status.Ready, "it says " + found.Status.Error.Message, nil
	})
	s.snapshots[found.Metadata.UID] = true
	return found
}

// takes makes a snapshot of a claim and waits until it can be used.
func (s *story) takes(name, claim string) snapshotObject {
	s.Helper()
	s.Apply(snapshot{name: name, claim: claim}.String())
	return s.snapshotted("volumesnapshot", name)
}

// rememberSnapshots notes which snapshots there are by now.
func (s *story) rememberSnapshots(ctx context.Context) {
	list, err := s.list(ctx, "volumesnapshots,volumegroupsnapshots", s.Namespace)
	if err != nil {
		s.Errorf("list snapshots: %v", err)
	}
	for _, object := range list {
		s.snapshots[object.Metadata.UID] = true
	}
}

// remainingSnapshots are the story's snapshots that Kubernetes still has, and the driver's notes of them.
func (s *story) remainingSnapshots(ctx context.Context) ([]string, error) {
	contents, err := s.list(ctx, "volumesnapshotcontents,volumegroupsnapshotcontents", "")
	if err != nil {
		return nil, err
	}
	var left []string
	for _, content := range contents {
		if content.Spec.Snapshot.Namespace == s.Namespace || content.Spec.Group.Namespace == s.Namespace {
			left = append(left, content.Kind+"/"+content.Metadata.Name)
		}
	}
	index, err := s.Lab.Index(ctx)
	for _, key := range index {
		for uid := range s.snapshots {
			if strings.Contains(key, uid) {
				left = append(left, "key "+key+" in the index")
			}
		}
	}
	return left, err
}

// gone waits until there is no VolumeSnapshot of that name, and no content of it.
func (s *story) gone(object snapshotObject) {
	s.Helper()
	s.Await("snapshot "+object.Metadata.Name+" is gone", func(ctx context.Context) (bool, string, error) {
		contents, err := s.list(ctx, "volumesnapshotcontents", "")
		there := slices.ContainsFunc(contents, func(o snapshotObject) bool { return o.Metadata.Name == object.Status.Content })
		return !there, object.Status.Content + " is there", err
	})
}

// rbdSnapshots are the snapshots that an image has, as Ceph sees it.
func (s *story) rbdSnapshots(image string) []string {
	s.Helper()
	out, err := s.Lab.Ceph.RBD(s.Context(), "snap", "ls", "--format", "json", lab.Pool+"/"+image)
	s.Must(err)
	var list []struct {
		Name string `json:"name"`
	}
	s.Must(json.Unmarshal([]byte(out), &list))
	var names []string
	for _, snapshot := range list {
		names = append(names, snapshot.Name)
	}
	return names
}

// wholeCopy checks that a pod's volume is what a pod that runs checking had written at one moment, and that this was not before the
// given number of blocks. It returns how many there are.
func (s *story) wholeCopy(pod string, least int) int {
	s.Helper()
	s.wholeLog(pod)
	if bad := s.Sh(pod, damaged); bad != "" {
		s.Errorf("damaged blocks in %s: got %q, want none", pod, strings.Fields(bad))
	}
	n := len(strings.Fields(s.In(pod, "cat", "/data/log")))
	if n < least {
		s.Errorf("blocks in %s: got %d, want %d or more, which were there before the copy was asked for", pod, n, least)
	}
	return n
}

// deletedImage waits until an image is not in the pool any more. It may be in the trash, for its copies or snapshots.
func (s *story) deletedImage(name string) {
	s.Helper()
	s.Await("image "+name+" is deleted", func(ctx context.Context) (bool, string, error) {
		images, err := s.Lab.Images(ctx)
		return !slices.Contains(images, name), "it is there", err
	})
}

// written is how many blocks or numbers a writer has written by now.
func (s *story) written(w *writer) int {
	s.Helper()
	n, err := w.count()
	s.Must(err)
	return n
}
