package statefulset_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// TestSnapshot takes a snapshot of a StatefulSet's volume while its pod writes and checks, and makes volumes of it.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	s := tell(t, "snapshot")
	s.Apply(set{name: "db", replicas: 1, command: checking}.String())
	w := s.writes("db-0")
	w.goesOn(s)
	volume := s.bound("data-db-0")
	var taken snapshotObject
	var before, after int

	s.part("it is taken under a pod that writes, and does it no harm", func(s *story) {
		before = s.written(w)
		taken = s.takes("noon", "data-db-0")
		after = s.written(w)
		s.Same("size to restore to", fmt.Sprint(taken.Status.RestoreSize), "1Gi")
		s.Same("snapshots of the image", fmt.Sprint(len(s.rbdSnapshots(volume))), "1")
		w.goesOn(s)
		w.unharmed(s)
	})
	s.part("a larger claim of it has all that was there, at one moment", func(s *story) {
		s.Apply(restored("larger", "noon", "2Gi").String() + "---\n" + pod("reader", "larger", ""))
		s.Ready("reader")
		s.hasGrown("reader")
		if n := s.wholeCopy("reader", before); n > after {
			s.Errorf("blocks in the copy: got %d, want at most %d, which were there when the snapshot was ready", n, after)
		}
	})
	s.part("a StatefulSet of copies goes on where the snapshot was", func(s *story) {
		s.Apply(together(restored("data-copy-0", "noon", ""), restored("data-copy-1", "noon", ""),
			set{name: "copy", replicas: 2, command: checking}))
		for _, pod := range []string{"copy-0", "copy-1"} {
			copied := s.writes(pod)
			copied.goesOn(s)
			s.wholeCopy(pod, before+few)
			copied.unharmed(s)
		}
		w.goesOn(s)
		w.unharmed(s)
	})
	s.part("deleted before its copies, it leaves them whole", func(s *story) {
		s.delete("volumesnapshot/noon")
		s.gone(taken)
		s.delete("pod/reader")
		s.Apply(pod("reader", "larger", ""))
		s.Ready("reader")
		s.wholeCopy("reader", before)
		s.wholeCopy("copy-0", before)
	})
	s.part("and a claim of it waits, and says that there is none", func(s *story) {
		s.Apply(restored("late", "noon", "").String())
		s.describes("pvc/late", "Pending", `"noon"`, "not found")
	})
}

// TestSnapshotOutlivesItsVolume deletes the claim that a snapshot was taken of, and restores it then.
func TestSnapshotOutlivesItsVolume(t *testing.T) {
	t.Parallel()
	s := tell(t, "outlives")
	s.Apply(claim{name: "old"}.String() + "---\n" + pod("writer", "old", ""))
	s.Ready("writer")
	volume := s.bound("old")
	s.Sh("writer", "echo precious >/data/word && sync")
	taken := s.takes("kept", "old")
	s.Sh("writer", "echo later >/data/word && sync")

	s.part("the claim goes, with its volume", func(s *story) {
		s.delete("pod/writer", "persistentvolumeclaim/old")
		s.volumesGone()
		s.hasImage(volume, false)
	})
	s.part("the snapshot is restored, with the word of its moment", func(s *story) {
		s.Apply(restored("new", "kept", "").String() + "---\n" + pod("reader", "new", ""))
		s.Ready("reader")
		s.Same("the word in the copy", s.In("reader", "cat", "/data/word"), "precious")
	})
	s.part("when snapshot and copy are gone, so is the old image", func(s *story) {
		s.delete("volumesnapshot/kept")
		s.gone(taken)
		s.Same("the word in the copy", s.In("reader", "cat", "/data/word"), "precious")
		s.delete("pod/reader", "persistentvolumeclaim/new")
		s.imageGone(volume)
	})
}

// TestClone makes copies of a claim whose pod writes, and copies of these, and deletes them in an unfortunate order.
func TestClone(t *testing.T) {
	t.Parallel()
	s := tell(t, "clone")
	s.Apply(set{name: "db", replicas: 1, command: checking}.String())
	w := s.writes("db-0")
	w.goesOn(s)
	before := s.written(w)
	volumes := []string{s.bound("data-db-0")}

	s.part("a clone of a claim in use is whole, and does its pod no harm", func(s *story) {
		s.Apply(cloned("first", "data-db-0").String() + "---\n" + pod("first", "first", ""))
		s.Ready("first")
		volumes = append(volumes, s.bound("first"))
		s.wholeCopy("first", before)
		w.goesOn(s)
		w.unharmed(s)
	})
	s.part("clones of clones are whole, too", func(s *story) {
		for _, step := range [][2]string{{"first", "second"}, {"second", "third"}} {
			s.Apply(cloned(step[1], step[0]).String() + "---\n" + pod(step[1], step[1], ""))
			s.Ready(step[1])
			volumes = append(volumes, s.bound(step[1]))
			s.wholeCopy(step[1], before)
			s.Sh(step[1], "echo "+step[1]+" >/data/word && sync")
		}
	})
	s.part("the one in the middle goes, and then the first of all", func(s *story) {
		s.delete("pod/second", "persistentvolumeclaim/second")
		s.delete("statefulset/db", "persistentvolumeclaim/data-db-0")
		s.deletedImage(volumes[0])
		s.deletedImage(volumes[2])
		s.delete("pod/third")
		s.Apply(pod("third", "third", ""))
		s.Ready("third")
		s.wholeCopy("third", before)
		s.Same("the word of the third", s.In("third", "cat", "/data/word"), "third")
		s.wholeCopy("first", before)
	})
	s.part("when the last is gone, nothing is left", func(s *story) {
		s.delete("pod/first", "pod/third", "persistentvolumeclaim/first", "persistentvolumeclaim/third")
		for _, volume := range volumes {
			s.imageGone(volume)
		}
	})
}

// TestSnapshotRefused asks for snapshots and for copies that there cannot be.
func TestSnapshotRefused(t *testing.T) {
	t.Parallel()
	s := tell(t, "snapshot-refused")
	s.Apply(claim{name: "data"}.String())
	volume := s.bound("data")
	s.Apply(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: misspelt}
driver: ` + lab.Driver + `
deletionPolicy: Delete
parameters: {clusterr: ` + lab.Cluster + `}
`)
	s.Cleanup(func() { s.deleteGlobal("volumesnapshotclass", "misspelt") })
	// Each is deleted by itself: the snapshot-controller may forget to release the claim of several.
	s.part("of a claim that there is not: describe names the claim", func(s *story) {
		s.Apply(snapshot{name: "nothing", claim: "not-there"}.String())
		s.describes("volumesnapshot/nothing", "not-there")
		s.delete("volumesnapshot/nothing")
	})
	s.part("with a misspelt parameter: describe names the key", func(s *story) {
		s.Apply(snapshot{name: "misspelt", claim: "data", class: "misspelt"}.String())
		s.describes("volumesnapshot/misspelt", "failed to take snapshot", "snapshot class: unknown key", "clusterr")
		s.delete("volumesnapshot/misspelt")
	})
	s.part("of an image that somebody removed: describe names the image", func(s *story) {
		_, err := s.Lab.Ceph.RBD(s.Context(), "rm", "--no-progress", lab.Pool+"/"+volume)
		s.Must(err)
		s.Apply(snapshot{name: "lost", claim: "data"}.String())
		s.describes("volumesnapshot/lost", "failed to take snapshot", volume, "not found")
		s.delete("volumesnapshot/lost")
	})
	s.part("too small a claim for a snapshot: describe names both sizes", func(s *story) {
		s.Apply(claim{name: "large", size: "2Gi"}.String())
		s.bound("large")
		s.takes("large", "large")
		s.Apply(restored("small", "large", "1Gi").String())
		s.describes("pvc/small", "Pending", "1073741824", "2147483648")
		s.delete("persistentvolumeclaim/small")
		// external-provisioner protects a snapshot while claims wait for it, and notices each five minutes that one was deleted; or
		// when another got its copy.
		s.Apply(restored("enough", "large", "2Gi").String())
		s.bound("enough")
		s.delete("volumesnapshot/large")
	})
}

// TestSnapshotIntoAnotherClass restores a snapshot where its volume is not: in another pool, by a class of its own.
func TestSnapshotIntoAnotherClass(t *testing.T) {
	t.Parallel()
	s := tell(t, "another-class")
	const pool = "copies"
	s.Must(s.Lab.Ceph.CreatePool(s.Context(), pool))
	s.makeClass(class{name: "copies", pool: pool, parameters: map[string]string{"fsType": "xfs"}})
	s.makeClass(class{name: "xfs", parameters: map[string]string{"fsType": "xfs"}})
	s.makeClass(class{name: "not-xfs", parameters: map[string]string{"fsType": "ext4"}})
	s.Apply(claim{name: "data", class: "xfs"}.String() + "---\n" + pod("writer", "data", ""))
	s.Ready("writer")
	s.Sh("writer", "echo travelled >/data/word && sync")
	s.takes("taken", "data")

	s.part("a class of another pool makes the copy there", func(s *story) {
		copied := restored("copy", "taken", "")
		copied.class = "copies"
		s.Apply(copied.String() + "---\n" + pod("reader", "copy", ""))
		s.Ready("reader")
		s.Same("the word in the copy", s.In("reader", "cat", "/data/word"), "travelled")
		s.Same("its handle", s.handle(s.bound("copy")), lab.Cluster+":"+pool+"/"+s.bound("copy"))
	})
	s.part("a class of another filesystem is refused, with both named, until it is made anew", func(s *story) {
		refused := restored("refused", "taken", "")
		refused.class = "not-xfs"
		s.Apply(refused.String())
		s.describes("pvc/refused", "Pending", "ProvisioningFailed", "xfs", "ext4")
		s.delete("storageclass/not-xfs")
		s.Apply(class{name: "not-xfs", parameters: map[string]string{"fsType": "xfs"}}.String())
		s.bound("refused")
	})
	s.part("the volume goes first, and then the copy", func(s *story) {
		s.delete("pod/writer", "persistentvolumeclaim/data", "persistentvolumeclaim/refused", "volumesnapshot/taken")
		s.Same("the word in the copy", s.In("reader", "cat", "/data/word"), "travelled")
		s.delete("pod/reader", "persistentvolumeclaim/copy")
		s.volumesGone()
		s.Await("pool "+pool+" is empty", func(ctx context.Context) (bool, string, error) {
			images, err := s.Lab.Ceph.RBD(ctx, "ls", pool)
			if err != nil {
				return false, "", err
			}
			trash, err := s.Lab.Ceph.RBD(ctx, "trash", "ls", "--all", pool)
			return images+trash == "", images + trash, err
		})
		s.Must(s.Lab.Ceph.RemovePool(s.Context(), pool))
	})
}
