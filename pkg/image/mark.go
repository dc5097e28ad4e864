package image

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// The marks are image metadata: `rbd image-meta list POOL/IMAGE` shows them.
// Each is a JSON object that begins with the ID of the image it was written
// for. Metadata belongs to an image's head, so a clone that someone makes with librbd
// begins with a copy of its source's marks; a mark with a foreign ID is inherited
// and says nothing.
//
// Released versions have written these keys and fields: add to them, never
// change one. A reader leaves fields alone that it does not know.
const (
	VolumeKey      = rbd.MetaPrefix + "volume"
	OwnerKey       = rbd.MetaPrefix + "owner"
	AttachmentsKey = rbd.MetaPrefix + "attachments"
	FormatKey      = rbd.MetaPrefix + "format"

	// AnnouncedKey is changed with each new mark of a snapshot. Who deletes the volume
	// compares it, and so cannot overlook a snapshot that is announced at the same time.
	AnnouncedKey = rbd.MetaPrefix + "announced"
	// snapshotPrefix and the name of a snapshot are the key of its mark.
	snapshotPrefix = rbd.MetaPrefix + "snapshot/"
)

// The states of a volume's mark. A volume goes through them in this order, and
// never back; an empty one begins with Live.
const (
	Copying   = "copying"   // a clone whose source is not settled yet; no volume
	Live      = "live"      // made by us; a volume as soon as rbd_id.NAME has its ID
	Retired   = "retired"   // deleted as a volume; kept in the trash while it has snapshots
	Condemned = "condemned" // to be purged; never anything else again
)

// A VolumeMark says that an image is ours, and what it was made for.
type VolumeMark struct {
	ID    string `json:"id"`
	State string `json:"state"`
	// Request is the name in the CreateVolumeRequest. The image's name follows
	// from it, but two requests of different classes can meet at one image name.
	Request string `json:"request,omitempty"`
	// Class is the fingerprint of the parameters that the image was made with.
	Class string `json:"class,omitempty"`
	// Source is what the image is a copy of, nil for an empty one.
	Source *Source `json:"source,omitempty"`
	// Depth is how many images a read can go through beside this one. It is what
	// was true when the image was made; a flatten since makes it too high, never too low.
	Depth int `json:"depth,omitempty"`
	// Deep says that the image is to be flattened, as long as it has a parent.
	Deep bool `json:"deep,omitempty"`
}

// A Source is what a clone is made of.
type Source struct {
	Handle string `json:"handle"` // of the snapshot or the volume, as the request had it
	Pool   string `json:"pool"`   // the handle of the image's pool
	Image  string `json:"image"`  // the ID of the image
	Name   string `json:"name"`   // the name that the image had
	// Own says that the snapshot was taken for this clone alone and goes with its making.
	Own bool `json:"own,omitempty"`
}

// An AnnouncedMark names the snapshot whose mark was written last.
type AnnouncedMark struct {
	ID       string `json:"id"`
	Snapshot string `json:"snapshot"`
}

// An OwnerMark says who asked for the volume, as far as the external-provisioner
// told (--extra-create-metadata). It is kept for people; nothing depends on it.
type OwnerMark struct {
	ID        string `json:"id"`
	PV        string `json:"pv,omitempty"`
	PVC       string `json:"pvc,omitempty"`
	Namespace string `json:"namespace,omitempty"`
}

// A SnapshotMark says that a snapshot is ours, or is about to be taken for us. The
// mark comes before the snapshot and goes after it.
type SnapshotMark struct {
	ID      string `json:"id"`
	Request string `json:"request"` // the name in the request
	At      int64  `json:"at"`      // when it was written, in seconds since 1970
	// Image is the name that the image had: the source's handle in answers.
	Image string `json:"image"`
	// Format is the filesystem in the snapshot, nil while the volume had none for certain.
	Format *FormatMark `json:"format,omitempty"`
	// Group is the name in the request of a group snapshot that it is a member of.
	Group string `json:"group,omitempty"`
	// Members are the IDs of all images of the group.
	Members []string `json:"members,omitempty"`
	// Attempt tells one try of taking the group from the next, and Whole says that the
	// snapshots of this one are of one moment. Both are written by compare-and-set.
	Attempt string `json:"attempt,omitempty"`
	Whole   bool   `json:"whole,omitempty"`
	// For is the ID of the clone that the snapshot is taken for, and ForPool the handle
	// of its pool; it is no snapshot of a user then.
	For     string `json:"for,omitempty"`
	ForPool string `json:"forPool,omitempty"`
	// Withdrawn says that the snapshot, if it is there, was taken too late and is being removed:
	// nobody may use it, and who wants one of that name removes it first.
	Withdrawn bool `json:"withdrawn,omitempty"`
}

// The states of a FormatMark.
const (
	Formatting = "formatting" // mkfs may be under way or may have been interrupted; never mounted
	Formatted  = "formatted"  // there is a filesystem, and perhaps data in it
)

// A FormatMark says which filesystem an image got. It goes from Formatting to
// Formatted and never back.
type FormatMark struct {
	ID    string `json:"id"`
	State string `json:"state"`
	Type  string `json:"type"`
	UUID  string `json:"uuid"`
}

// Marks holds what an image's own marks say; an absent or inherited mark is its zero value.
type Marks struct {
	Raw         map[string]string // as stored, for compare-and-set, inherited ones too; nil: not read
	Volume      VolumeMark
	Attachments Attachments
	Format      FormatMark
	// Snapshots are the marks of snapshots by the names of those.
	Snapshots map[string]SnapshotMark
}

// readMarks reads the marks of a header. A mark of ours that cannot be read is
// fault.InUse: somebody edited it, and guessing could cost data.
func readMarks(header rbd.Header) (Marks, error) {
	m := Marks{Raw: header.Meta}
	if m.Raw == nil {
		m.Raw = map[string]string{}
	}
	for key, into := range map[string]any{
		VolumeKey: &m.Volume, AttachmentsKey: &m.Attachments, FormatKey: &m.Format,
	} {
		if _, err := readMark(header, key, into); err != nil {
			return Marks{}, err
		}
	}
	for key := range header.Meta {
		name, is := strings.CutPrefix(key, snapshotPrefix)
		if !is {
			continue
		}
		var mark SnapshotMark
		own, err := readMark(header, key, &mark)
		if err != nil {
			return Marks{}, err
		}
		if !own {
			continue
		}
		if m.Snapshots == nil {
			m.Snapshots = map[string]SnapshotMark{}
		}
		m.Snapshots[name] = mark
	}
	return m, nil
}

// readMark reads one mark into a struct, if it is there and the image's own.
func readMark(header rbd.Header, key string, into any) (own bool, err error) {
	stored := header.Meta[key]
	if stored == "" {
		return false, nil
	}
	var written struct {
		ID string `json:"id"`
	}
	err = json.Unmarshal([]byte(stored), &written)
	if err == nil && written.ID != header.ID {
		return false, nil // inherited from the image that this one is a clone of
	}
	if err == nil {
		err = json.Unmarshal([]byte(stored), into)
	}
	if err != nil {
		return false, fmt.Errorf("metadata %s is not as this driver writes it, see `rbd image-meta get`: %w: %w", key, fault.InUse, err)
	}
	return true, nil
}

// Written returns a mark as it is stored.
func Written(mark any) string {
	text, err := json.Marshal(mark)
	if err != nil {
		panic(err) // marks are structs of strings and numbers
	}
	return string(text)
}

// SnapshotKey returns the key of the mark of a snapshot.
func SnapshotKey(name string) string { return snapshotPrefix + name }

// Ours reports that the driver made the image.
func (m Marks) Ours() bool { return m.Volume.ID != "" }

// Copying reports that the image is a clone that is not whole yet.
func (m Marks) Copying() bool { return m.Volume.State == Copying }

// Deleted reports that the image is no volume any more.
func (m Marks) Deleted() bool { return m.Volume.State == Retired || m.Volume.State == Condemned }

// Condemned reports that the image is to be purged.
func (m Marks) Condemned() bool { return m.Volume.State == Condemned }

// expect returns the stored values of keys, for a compare-and-set.
func (m Marks) expect(keys ...string) map[string]string {
	values := make(map[string]string, len(keys))
	for _, key := range keys {
		values[key] = m.Raw[key]
	}
	return values
}
