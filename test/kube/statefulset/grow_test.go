package statefulset_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// almost2Gi is more than a filesystem of 1 GiB has, and less than one of 2 GiB, in KiB.
const almost2Gi = 1900 << 10

// TestGrowth lets claims grow under pods that write.
func TestGrowth(t *testing.T) {
	t.Parallel()
	s := tell(t, "growth")
	s.makeClass(class{name: "growth-xfs", parameters: map[string]string{"fsType": "xfs"}})
	s.makeClass(class{name: "growth-ext4", parameters: map[string]string{"fsType": "ext4"}})
	s.Apply(together(
		set{name: "xfs", replicas: 1, class: "growth-xfs", command: writing},
		set{name: "ext4", replicas: 1, class: "growth-ext4", command: writing},
	))
	onXFS, onExt4 := s.writes("xfs-0"), s.writes("ext4-0")

	s.part("xfs grows while it is written to", func(s *story) {
		s.grow("data-xfs-0", "2Gi")
		s.hasGrown("xfs-0")
		onXFS.goesOn(s)
		onXFS.unharmed(s)
	})
	if mayGrowMountedExt4() {
		s.part("ext4 grows while it is written to", func(s *story) {
			s.grow("data-ext4-0", "2Gi")
			s.hasGrown("ext4-0")
			onExt4.goesOn(s)
			onExt4.unharmed(s)
		})
		return
	}
	s.part("ext4 says why it cannot grow while it is mounted, and grows when the pod starts anew", func(s *story) {
		s.Log("root lacks CAP_SYS_RESOURCE on this machine, and no mounted ext4 can grow without it (ext4_resize_begin)")
		s.ask("data-ext4-0", "2Gi")
		s.describes("pvc/data-ext4-0", "NodeResizeError", "CAP_SYS_RESOURCE")
		onExt4.goesOn(s)
		onExt4.unharmed(s)
		s.Kubectl("delete", "pod", "ext4-0", "--wait=false")
		s.ReadyAnew("ext4-0", string(onExt4.pod.UID))
		s.grown("data-ext4-0", "2Gi")
		s.hasGrown("ext4-0")
		s.writes("ext4-0").goesOn(s)
		s.wholeLog("ext4-0")
	})
}

// mayGrowMountedExt4 says whether root has CAP_SYS_RESOURCE, which some virtual machines withhold.
func mayGrowMountedExt4() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// grow asks for more room and waits until the claim has it.
func (s *story) grow(claim, size string) {
	s.Helper()
	s.ask(claim, size)
	s.grown(claim, size)
}

func (s *story) ask(claim, size string) {
	s.Helper()
	s.Kubectl("patch", "persistentvolumeclaim", claim, "--patch", fmt.Sprintf(`{"spec":{"resources":{"requests":{"storage":%q}}}}`, size))
}

// grown waits until a claim's status has the size, which it has when its filesystem does.
func (s *story) grown(claim, size string) {
	s.Helper()
	s.Await("claim "+claim+" has "+size, func(ctx context.Context) (bool, string, error) {
		object, err := s.API.CoreV1().PersistentVolumeClaims(s.Namespace).Get(ctx, claim, metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		now := object.Status.Capacity[corev1.ResourceStorage]
		return now.String() == size, fmt.Sprintf("it has %s: %v", now.String(), object.Status.Conditions), nil
	})
}

// hasGrown checks that a pod's filesystem is one of 2 GiB.
func (s *story) hasGrown(pod string) {
	s.Helper()
	fields := strings.Fields(s.Sh(pod, "df -k /data | tail -n 1"))
	if len(fields) < 2 {
		s.Fatalf("df in %s: got %q, want a line of figures", pod, fields)
	}
	if got, err := strconv.Atoi(fields[1]); err != nil || got < almost2Gi {
		s.Errorf("size of the filesystem in %s: got %s KiB, want %d or more", pod, fields[1], almost2Gi)
	}
}
