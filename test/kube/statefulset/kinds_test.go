package statefulset_test

import (
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/kube/images"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// TestReadWriteOncePod has two pods ask for a claim that only one may have.
func TestReadWriteOncePod(t *testing.T) {
	t.Parallel()
	s := tell(t, "one-pod")
	s.Apply(claim{name: "single", mode: "ReadWriteOncePod"}.String() + "---\n" + pod("first", "single", ""))
	s.Ready("first")
	s.Sh("first", "echo first >/data/word && sync")

	s.part("the second stays Pending, and says why", func(s *story) {
		s.Apply(pod("second", "single", ""))
		s.describes("pod/second", "Pending", "ReadWriteOncePod access mode already in-use by another pod")
	})
	s.part("and starts when the first has gone", func(s *story) {
		s.delete("pod/first")
		s.Ready("second")
		s.Same("the word in the volume", s.In("second", "cat", "/data/word"), "first")
	})
}

// TestRawBlock gives a pod the block device itself.
func TestRawBlock(t *testing.T) {
	t.Parallel()
	s := tell(t, "raw-block")
	s.Apply(claim{name: "disk", spec: "volumeMode: Block"}.String() + "---\n" + blockPod("one"))
	s.Ready("one")
	const device = "/dev/xvda"
	size := func(s *story, pod string) string { return s.In(pod, "blockdev", "--getsize64", device) }

	s.part("the pod sees a device of the claim's size, and writes to it", func(s *story) {
		s.Same("its size", size(s, "one"), "1073741824")
		s.Sh("one", "echo raw-block | dd of="+device+" bs=4096 seek=1000 conv=sync,fsync")
	})
	s.part("it grows while it is used", func(s *story) {
		s.grow("disk", "2Gi")
		s.Same("its size", size(s, "one"), "2147483648")
	})
	s.part("another pod reads what the first has written", func(s *story) {
		s.delete("pod/one")
		s.Apply(blockPod("two"))
		s.Ready("two")
		got := s.Sh("two", "dd if="+device+" bs=4096 skip=1000 count=1 2>/dev/null | tr -d '\\000'")
		s.Same("block 1000", got, "raw-block")
		s.Same("its size", size(s, "two"), "2147483648")
	})
}

// blockPod is a pod with the claim "disk" as a device.
func blockPod(name string) string {
	block := strings.ReplaceAll(container(""), "volumeMounts: [{name: data, mountPath: /data}]", "volumeDevices: [{name: data, devicePath: /dev/xvda}]")
	return podWith(name, block, "persistentVolumeClaim: {claimName: disk}")
}

// TestRook makes a volume where the driver knows the monitors and the user by what Rook keeps.
func TestRook(t *testing.T) {
	t.Parallel()
	s := tell(t, "rook")
	s.makeClass(class{name: "rook", cluster: lab.Rook})
	s.Apply(claim{name: "data", class: "rook"}.String() + "---\n" + pod("writer", "data", ""))
	s.Ready("writer")
	volume := s.bound("data")
	s.hasImage(volume, true)
	s.Same("its handle", s.handle(volume), lab.Rook+":"+lab.Pool+"/"+volume)
	s.Sh("writer", "echo rook >/data/word && sync")
	s.Same("the word in the volume", s.In("writer", "cat", "/data/word"), "rook")
}

// TestEphemeral gives a pod a volume that lives as long as the pod does.
func TestEphemeral(t *testing.T) {
	t.Parallel()
	s := tell(t, "ephemeral")
	s.Apply(podWith("scratch", container(""), `ephemeral:
  volumeClaimTemplate:
    spec:
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 1Gi}}`))
	s.Ready("scratch")
	volume := s.bound("scratch-data")
	s.hasImage(volume, true)
	s.Sh("scratch", "echo scratch >/data/word && sync")
	s.delete("pod/scratch")
	s.claimGone("scratch-data")
	s.imageGone(volume)
}

// TestUnprivileged has a pod of an ordinary user write into a volume that was made for it (fsGroup).
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	s := tell(t, "unprivileged")
	s.Apply(claim{name: "mine"}.String() + "---\n" + podWith("user", `securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}
containers:
  - name: main
    image: `+images.Busybox+`
    command: [sh, -c, "echo written >/data/word && sync && sleep 1000"]
    volumeMounts: [{name: data, mountPath: /data}]
terminationGracePeriodSeconds: 1`, "persistentVolumeClaim: {claimName: mine}"))
	s.Ready("user")
	s.Same("the word in the volume", s.In("user", "cat", "/data/word"), "written")
	s.Same("group of the volume", s.In("user", "stat", "-c", "%g", "/data"), "2000")
}
