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
	s.apply(set{name: "keep", replicas: 1}.String())
	s.ready("keep-0")
	volume := s.bound("data-keep-0")
	s.sh("keep-0", "echo kept >/data/word && sync")
	s.takes("before", "data-keep-0")

	s.part("it is refused while a volume is attached, with the volume's name", func(s *story) {
		err := s.lab.Uninstall(s.Context())
		if err == nil || !strings.Contains(err.Error(), volume) {
			s.Fatalf("helm uninstall with a running pod: got %v, want an error that names %s", err, volume)
		}
		s.driverPod("node")
	})
	s.part("without pods it leaves nothing, and no finalizer that nobody removes", func(s *story) {
		s.scale("keep", 0)
		s.detached(volume)
		s.must(s.lab.Uninstall(s.Context()))
		s.nothingStuck()
		s.hasImage(volume, true)
	})
	s.part("installed again, it finds the volume and its data, and the snapshot", func(s *story) {
		s.must(s.lab.Upgrade(s.Context(), nil))
		s.scale("keep", 1)
		s.same("the word in the volume", s.in("keep-0", "cat", "/data/word"), "kept")
		s.same("volume of the claim", s.bound("data-keep-0"), volume)
		s.apply(restored("copy", "before", "").String() + "---\n" + pod("copy", "copy", ""))
		s.ready("copy")
		s.same("the word in the copy", s.in("copy", "cat", "/data/word"), "kept")
	})
}

// detached waits until a volume is attached to no node.
func (s *story) detached(volume string) {
	s.Helper()
	s.await("volume "+volume+" is detached", func(ctx context.Context) (bool, string, error) {
		out, err := s.lab.Kube.Kubectl(ctx, nil, "get", "volumeattachments", "-o", "jsonpath={.items[*].spec.source.persistentVolumeName}")
		return !strings.Contains(out, volume), "attached are " + out, err
	})
}

// nothingStuck checks that no object is left that only a driver could finish, and none of the chart's.
func (s *story) nothingStuck() {
	s.Helper()
	const terminating = `jsonpath={range .items[?(@.metadata.deletionTimestamp)]}{.kind}/{.metadata.name} {end}`
	s.await("no object is stuck in its deletion", func(ctx context.Context) (bool, string, error) {
		out, err := s.lab.Kube.Kubectl(ctx, nil, "get", "--all-namespaces", "-o", terminating,
			"pods,persistentvolumeclaims,persistentvolumes,volumeattachments,csistoragecapacities,storageclasses,"+
				"volumesnapshots,volumesnapshotcontents,volumegroupsnapshots,volumegroupsnapshotcontents")
		return out == "", "there are " + out, err
	})
	left := s.kubectl("get", "--all-namespaces", "--output", "name", "--selector", "app.kubernetes.io/part-of="+lab.Release,
		"csidrivers,storageclasses,clusterroles,clusterrolebindings,roles,rolebindings,serviceaccounts,deployments,daemonsets,"+
			"pods,services,poddisruptionbudgets,validatingadmissionpolicies,validatingadmissionpolicybindings,"+
			"volumesnapshotclasses,volumegroupsnapshotclasses,snapshotmetadataservices")
	s.same("objects of the chart that are left", left, "")
}
