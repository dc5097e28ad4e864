package statefulset_test

import (
	"context"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// TestUninstall takes the chart away and installs it again. Nothing may be left that waits for a driver which is not
// there, and the volumes outlast it.
func TestUninstall(t *testing.T) {
	s := tell(t, "uninstall")
	s.Apply(set{name: "keep", replicas: 1}.String())
	s.Ready("keep-0")
	volume := s.bound("data-keep-0")
	s.Sh("keep-0", "echo kept >/data/word && sync")
	s.takes("before", "data-keep-0")

	s.part("it is refused while a volume is attached, with the volume's name", func(s *story) {
		err := s.Lab.Uninstall(s.Context())
		if err == nil || !strings.Contains(err.Error(), volume) {
			s.Fatalf("helm uninstall with a running pod: got %v, want an error that names %s", err, volume)
		}
		s.driverPod("node")
	})
	s.part("without pods it leaves nothing, and no finalizer that nobody removes", func(s *story) {
		s.scale("keep", 0)
		s.detached(volume)
		s.Must(s.Lab.Uninstall(s.Context()))
		s.nothingStuck()
		s.hasImage(volume, true)
	})
	s.part("installed again, it finds the volume and its data, and the snapshot", func(s *story) {
		s.Must(s.Lab.Upgrade(s.Context(), nil))
		s.scale("keep", 1)
		s.Same("the word in the volume", s.In("keep-0", "cat", "/data/word"), "kept")
		s.Same("volume of the claim", s.bound("data-keep-0"), volume)
		s.Apply(restored("copy", "before", "").String() + "---\n" + pod("copy", "copy", ""))
		s.Ready("copy")
		s.Same("the word in the copy", s.In("copy", "cat", "/data/word"), "kept")
	})
}

// detached waits until a volume is attached to no node.
func (s *story) detached(volume string) {
	s.Helper()
	s.Await("volume "+volume+" is detached", func(ctx context.Context) (bool, string, error) {
		out, err := s.Lab.Kube.Kubectl(ctx, nil, "get", "volumeattachments", "-o", "jsonpath={.items[*].spec.source.persistentVolumeName}")
		return !strings.Contains(out, volume), "attached are " + out, err
	})
}

// nothingStuck checks that no object is left that only a driver could finish, and none of the chart's.
func (s *story) nothingStuck() {
	s.Helper()
	const terminating = `jsonpath={range .items[?(@.metadata.deletionTimestamp)]}{.kind}/{.metadata.name} {end}`
	s.Await("no object is stuck in its deletion", func(ctx context.Context) (bool, string, error) {
		out, err := s.Lab.Kube.Kubectl(ctx, nil, "get", "--all-namespaces", "-o", terminating,
			"pods,persistentvolumeclaims,persistentvolumes,volumeattachments,csistoragecapacities,storageclasses,"+
				"volumesnapshots,volumesnapshotcontents,volumegroupsnapshots,volumegroupsnapshotcontents")
		return out == "", "there are " + out, err
	})
	left := s.Kubectl("get", "--all-namespaces", "--output", "name", "--selector", "app.kubernetes.io/part-of="+lab.Release,
		"csidrivers,storageclasses,clusterroles,clusterrolebindings,roles,rolebindings,serviceaccounts,deployments,daemonsets,"+
			"pods,services,poddisruptionbudgets,validatingadmissionpolicies,validatingadmissionpolicybindings,"+
			"volumesnapshotclasses,volumegroupsnapshotclasses,snapshotmetadataservices")
	s.Same("objects of the chart that are left", left, "")
}
