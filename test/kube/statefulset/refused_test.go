package statefulset_test

import (
	"testing"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// unknownKey is a well-formed key that no cluster knows: type 1 (AES), a time, and 16 bytes.
const unknownKey = "AQABAAAAAAAAABAAbm90IHRoZSByaWdodCBvbg=="

// TestUnknownPool has a class name a pool that there is not. The claim is served when there is one: after five minutes, because
// the driver calls the request invalid and external-provisioner then pauses for so long (slowSet in its library, whatever
// --retry-interval-max says), or at once when the class is made anew.
func TestUnknownPool(t *testing.T) {
	t.Parallel()
	s := tell(t, "unknown-pool")
	const pool = "not-yet-there"
	s.makeClass(class{name: "unknown-pool", pool: pool})
	s.Apply(claim{name: "data", class: "unknown-pool"}.String())
	s.part("kubectl describe pvc names the pool", func(s *story) {
		s.describes("pvc/data", "Pending", "ProvisioningFailed", "pool "+pool+": not found")
	})
	s.part("the claim is bound when the pool is made, and the class anew", func(s *story) {
		s.Must(s.Lab.Ceph.CreatePool(s.Context(), pool))
		s.delete("storageclass/unknown-pool")
		s.Apply(class{name: "unknown-pool", pool: pool}.String())
		s.bound("data")
		s.delete("pvc/data")
		s.volumesGone()
		s.Must(s.Lab.Ceph.RemovePool(s.Context(), pool))
	})
}

// TestUnknownKey misspells a parameter of the class. A class cannot be changed, but made anew.
func TestUnknownKey(t *testing.T) {
	t.Parallel()
	s := tell(t, "unknown-key")
	s.makeClass(class{name: "unknown-key", parameters: map[string]string{"imageFeature": "layering,exclusive-lock"}})
	s.Apply(claim{name: "data", class: "unknown-key"}.String())
	s.part("kubectl describe pvc names the key, and the one that was meant", func(s *story) {
		s.describes("pvc/data", "Pending", "ProvisioningFailed", `unknown key "imageFeature"`, `did you mean "imageFeatures"?`)
	})
	s.part("the claim is bound when the class is made anew", func(s *story) {
		s.delete("storageclass/unknown-key")
		s.Apply(class{name: "unknown-key", parameters: map[string]string{"imageFeatures": "layering,exclusive-lock"}}.String())
		s.bound("data")
	})
}

// TestWrongKey gives the class a Secret with a key that is not the user's.
func TestWrongKey(t *testing.T) {
	t.Parallel()
	s := tell(t, "wrong-key")
	const user = "class-user"
	key, err := s.Lab.Ceph.AddUser(t.Context(), user, ceph.ProfileRBD(lab.Pool))
	s.Must(err)
	s.userSecret("wrong-key", user, unknownKey)
	parameters := map[string]string{}
	for _, use := range []string{"provisioner", "controller-publish", "node-stage", "controller-expand"} {
		parameters["csi.storage.k8s.io/"+use+"-secret-name"] = "wrong-key"
		parameters["csi.storage.k8s.io/"+use+"-secret-namespace"] = lab.SecretsNamespace
	}
	s.makeClass(class{name: "wrong-key", parameters: parameters})
	s.Apply(claim{name: "data", class: "wrong-key"}.String() + "---\n" + pod("main", "data", ""))
	s.part("kubectl describe pvc names the user, and not the key", func(s *story) {
		text := s.describes("pvc/data", "Pending", "ProvisioningFailed", "client."+user, "not authenticated")
		s.lacks(text, unknownKey)
	})
	s.part("claim and pod are served when the Secret is mended", func(s *story) {
		s.userSecret("wrong-key", user, key)
		s.bound("data")
		s.Ready("main")
	})
}
