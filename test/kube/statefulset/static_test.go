package statefulset_test

import (
	"encoding/base64"
	"fmt"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// static is a volume written by hand, for an image that is there already, and a claim for it. The user and
// the key are in a Secret that the volume names.
const static = `apiVersion: v1
kind: PersistentVolume
metadata: {name: foo}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: %[1]s
  claimRef: {namespace: static, name: foo}
  csi:
    driver: ` + lab.Driver + `
    volumeHandle: ` + lab.Cluster + ":" + lab.Pool + `/foo
    volumeAttributes: {fsType: xfs}
    controllerPublishSecretRef: &user {namespace: ` + lab.SecretsNamespace + `, name: foo-owner}
    nodeStageSecretRef: *user
    controllerExpandSecretRef: *user
    nodeExpandSecretRef: *user
`

// TestStatic uses an image that somebody made, through a volume that somebody wrote.
func TestStatic(t *testing.T) {
	t.Parallel()
	s := tell(t, "static")
	_, err := s.Lab.Ceph.RBD(t.Context(), "create", "--size", "1G", lab.Pool+"/foo")
	s.Must(err)
	s.Cleanup(func() { s.deleteGlobal("persistentvolume", "foo") })
	key, err := s.Lab.Ceph.AddUser(t.Context(), "foo-owner", ceph.ProfileRBD(lab.Pool))
	s.Must(err)
	s.userSecret("foo-owner", "foo-owner", key)
	// The class is there for its name and for allowVolumeExpansion.
	s.makeClass(class{name: "by-hand"})
	s.Apply(fmt.Sprintf(static, "by-hand"))
	s.Apply(claim{name: "foo", class: "by-hand", spec: "volumeName: foo"}.String() + "---\n" + pod("reader", "foo", ""))

	s.part("it is mounted", func(s *story) {
		s.Ready("reader")
		s.Same("volume of the claim", s.bound("foo"), "foo")
		s.Sh("reader", "echo mine >/data/word && sync")
	})
	s.part("it grows", func(s *story) {
		s.grow("foo", "2Gi")
		s.hasGrown("reader")
		s.Same("the word in it", s.In("reader", "cat", "/data/word"), "mine")
	})
	s.part("it is its owner's, and stays when claim and volume go", func(s *story) {
		s.delete("pod/reader", "persistentvolumeclaim/foo")
		s.delete("persistentvolume/foo")
		s.hasImage("foo", true)
		_, err := s.Lab.Ceph.RBD(s.Context(), "rm", "--no-progress", lab.Pool+"/foo")
		s.Must(err)
	})
	delete(s.volumes, "foo")
}

// userSecret makes a Secret with a Ceph user and its key, or changes it. It is deleted at the end of the test.
func (s *story) userSecret(name, user, key string) {
	s.Helper()
	s.Must(s.Lab.Kube.Apply(s.Context(), fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: {namespace: %s, name: %s}
data: {userID: %s, userKey: %s}
`, lab.SecretsNamespace, name, encoded(user), encoded(key))))
}

func encoded(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
