package orphan

import (
	"fmt"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// The sentences of the findings, and what to type. Ceph's own tools name an image POOL[/NAMESPACE]/IMAGE.

// inCeph returns what Ceph's tools call something in a pool; the cluster is the user's to choose.
func inCeph(at volid.Pool, name string) string {
	spec := at.Pool + "/"
	if at.Namespace != "" {
		spec += at.Namespace + "/"
	}
	return quoted(spec + name)
}

// quoted returns a word as a shell takes it.
func quoted(word string) string {
	if !strings.ContainsFunc(word, func(r rune) bool {
		return !strings.ContainsRune("/._-%=:@", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// rados returns the beginning of a rados command in a pool.
func rados(at volid.Pool) string {
	command := "rados -p " + quoted(at.Pool)
	if at.Namespace != "" {
		command += " -N " + quoted(at.Namespace)
	}
	return command
}

// remove returns the command that removes an orphan.
func remove(handle string) string { return "rbd-csi doctor remove " + quoted(handle) }

func of(kind Kind, i image.Image) Finding {
	return Finding{Kind: kind, Where: i.Handle().String(), Since: i.Header.Created, id: i.ID}
}

func unknownVolume(i image.Image) Finding {
	f := of(Volume, i)
	f.What = "no PersistentVolume has this volume" + usedBy(i)
	f.Do = fmt.Sprintf("keep it, when another Kubernetes cluster uses the pool or the PersistentVolume was deleted on purpose (reclaimPolicy Retain); "+
		"see what it was with: rbd image-meta list %s; delete it and what is in it with: %s", inCeph(i.Where().Pool, i.Name), remove(f.Where))
	return f
}

// usedBy says who has the volume in use as far as its marks tell, to follow a sentence.
func usedBy(i image.Image) string {
	text := ""
	if nodes := i.Marks.Attachments.Names(); len(nodes) > 0 {
		text += fmt.Sprintf("; it is attached to %s", strings.Join(nodes, ", "))
	}
	if snapshots := len(i.Header.Snapshots); snapshots > 0 {
		text += fmt.Sprintf("; it has %d snapshots", snapshots)
	}
	return text
}

func halfImage(i image.Image) Finding {
	f := of(HalfMade, i)
	switch {
	case i.Marks.Condemned():
		f.What = "its deletion was begun when it was half made, and nobody goes on with it"
	case !i.Headed:
		f.What = "the image has a name and nothing behind it: whoever made it was interrupted, or is at it at this moment"
	case i.Marks.Copying():
		f.What = "the clone was never finished"
	default:
		f.What = "the image was made and never got its name (the object rbd_id." + i.Name + ")"
	}
	f.Do = "nothing, when the claim still waits for its volume, which goes on from here; otherwise: " + remove(f.Where)
	return f
}

func halfDeleted(i image.Image) Finding {
	f := of(HalfMade, i)
	f.What = "the volume was deleted and still has its name, or somebody has restored it from the trash"
	f.Do = fmt.Sprintf("delete it with: %s; or keep it as an image of your own with: rbd image-meta remove %s %s",
		remove(f.Where), inCeph(i.Where().Pool, i.Name), image.VolumeKey)
	return f
}

func lostVolume(one Persistent, trashed string, cause error) Finding {
	f := Finding{
		Kind: LostVolume, Where: one.Handle, Object: one.Name, UID: one.UID, Since: one.Made,
		What: fmt.Sprintf("PersistentVolume %s has lost its image: %v", one.Name, cause),
	}
	if at, err := volid.ParseImage(one.Handle); err == nil && trashed != "" {
		f.Do = "an image of this name is in the trash, bring it back with: rbd trash restore " + inCeph(at.Pool, trashed)
		return f
	}
	f.Do = "restore an image under this name; or, when its data is not wanted any more: "
	if namespace, claim, ok := strings.Cut(one.Claim, "/"); ok {
		f.Do += fmt.Sprintf("kubectl delete pvc -n %s %s; ", namespace, claim)
	}
	f.Do += "kubectl delete pv " + one.Name
	return f
}

func unknownSnapshot(one snapshot.Marked) Finding {
	handle := one.Handle.String()
	return Finding{
		Kind: Snapshot, Where: handle, Since: one.At, id: one.Handle.ImageID,
		What: "no VolumeSnapshotContent and no group of snapshots has this snapshot",
		Do: "keep it, when another Kubernetes cluster uses the pool or the VolumeSnapshotContent was deleted on purpose (deletionPolicy Retain); " +
			"delete it with: " + remove(handle),
	}
}

func halfSnapshot(one snapshot.Marked) Finding {
	handle := one.Handle.String()
	return Finding{
		Kind: HalfMade, Where: handle, Since: one.At, id: one.Handle.ImageID,
		What: "the snapshot was announced and not taken, or not together with the others of its group",
		Do:   "nothing, when a VolumeSnapshot still waits for it; otherwise: " + remove(handle),
	}
}

func lostSnapshot(one Content, cause error) Finding {
	return Finding{
		Kind: LostSnapshot, Where: one.Handle, Object: one.Name, Since: one.Made,
		What: fmt.Sprintf("VolumeSnapshotContent %s has lost its snapshot: %v", one.Name, cause),
		Do:   "nothing can bring it back; delete its VolumeSnapshot, or: kubectl delete volumesnapshotcontent " + one.Name,
	}
}

// waiting tells of a deleted volume that has been in the trash for long and is not kept for snapshots.
func (l *look) waiting(i image.Image, entry rbd.TrashEntry) {
	f := of(Trash, i)
	f.Since = entry.Time
	at := i.Where().Pool
	switch {
	case !i.Headed:
		f.What = "freeing the deleted volume was interrupted at its end"
	case i.Marks.Condemned():
		f.What = "the deleted volume is not freed yet"
	case len(i.Header.Snapshots)+len(i.Marks.Snapshots) == 0:
		f.What = "the deleted volume has lost its last snapshot and is not freed yet"
	default:
		return // kept for its snapshots
	}
	f.Do = fmt.Sprintf("see in the controller's log why (a volume of many terabytes takes hours), and who has it open with: %s listwatchers rbd_header.%s", rados(at), i.ID)
	l.add(f)
}

// indexed tells of a pair of the index that does not agree with the images.
func indexed(pool rbd.Pool, one snapshot.Mismatch) Finding {
	at := pool.Where().Pool
	f := Finding{Kind: Index, Where: at.String() + " " + one.Key, id: one.ID, pair: one, pool: pool}
	if one.Value == "" {
		f.What = fmt.Sprintf("the index lacks an entry for image %s (ID %s): its snapshot is left out of lists, or it is not flattened", one.Image, one.ID)
		f.Do = fmt.Sprintf("let the driver build the index again, which it does at the next snapshot, with: %s rm rbd_csi.index", rados(at))
		return f
	}
	f.What = "the index has an entry with nothing behind it"
	if one.Image != "" {
		f.What += fmt.Sprintf(", of image %s (ID %s)", one.Image, one.ID)
	}
	f.Do = fmt.Sprintf("nothing, it disturbs nobody; remove it with: %s rmomapkey rbd_csi.index %s", rados(at), quoted(one.Key))
	return f
}

// Age returns since when it is so, for people.
func (f Finding) Age() string {
	if f.Since.IsZero() {
		return "unknown"
	}
	return f.Since.UTC().Format(time.RFC3339)
}

// key tells findings apart.
func (f Finding) key() string {
	return strings.Join([]string{string(f.Kind), f.Where, f.Object, f.id}, " ")
}

// Count returns how many findings there are of each kind, also of those of which there is none.
func Count(all []Finding) map[Kind]int {
	counts := map[Kind]int{}
	for _, kind := range Kinds() {
		counts[kind] = 0
	}
	for _, one := range all {
		counts[one.Kind]++
	}
	return counts
}
