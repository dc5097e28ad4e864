package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Attachments is the mark that says which nodes may use an image.
//
// A node may write only while its entry stands with the generation that it was
// given. Every change that takes a right away raises the generation, so a node
// that was frozen before it wrote, and wakes later, finds its generation gone:
// it compares and sets before its first write (see Image.Claim).
type Attachments struct {
	ID         string       `json:"id"`
	Generation uint64       `json:"generation"`
	Nodes      []Attachment `json:"nodes,omitempty"`
}

// An Attachment is one node's entry.
type Attachment struct {
	Node       string `json:"node"`
	Generation uint64 `json:"generation"`
	Mode       string `json:"mode"`
	ReadOnly   bool   `json:"readOnly,omitempty"`
	// Client is the node's mapping of the image, address:port/nonce, and Boot the
	// kernel's boot ID at that time. Both are set before the first write and
	// cleared after the unmap: an entry without them cannot have written since.
	Client string `json:"client,omitempty"`
	Boot   string `json:"boot,omitempty"`
	// Replays says that the client is not of a reader: it replays the journal for all who read. There is none other meanwhile.
	Replays bool `json:"replays,omitempty"`
	// Unstaged says that the node has taken its client back, after the unmap. An entry with neither
	// is of a node that never staged the volume, or is just about to.
	Unstaged bool `json:"unstaged,omitempty"`
	// Detaching says that ControllerUnpublishVolume has begun: no new mapping.
	Detaching bool `json:"detaching,omitempty"`
	// Since is when that was, in seconds since 1970.
	Since int64 `json:"since,omitempty"`
}

// Names returns the IDs of the nodes.
func (a Attachments) Names() []string {
	var names []string
	for _, entry := range a.Nodes {
		names = append(names, entry.Node)
	}
	return names
}

// Of returns the entry of a node.
func (a Attachments) Of(node string) (Attachment, bool) {
	for _, entry := range a.Nodes {
		if entry.Node == node {
			return entry, true
		}
	}
	return Attachment{}, false
}

// With returns the record with one more or one changed entry; the original stays as it is.
func (a Attachments) With(entry Attachment) Attachments {
	a = a.Without(entry.Node)
	a.Nodes = append(a.Nodes, entry)
	slices.SortFunc(a.Nodes, func(x, y Attachment) int { return strings.Compare(x.Node, y.Node) })
	return a
}

// Without returns the record with one entry less; the original stays as it is.
func (a Attachments) Without(node string) Attachments {
	a.Nodes = slices.DeleteFunc(slices.Clone(a.Nodes), func(entry Attachment) bool { return entry.Node == node })
	return a
}

// SetAttachments writes the record if nobody changed it, or condemned the image,
// since it was read, and returns the image as it is now.
func (i Image) SetAttachments(ctx context.Context, record Attachments) (Image, error) {
	i, err := i.Set(ctx, AttachmentsKey, Written(record))
	if err != nil {
		return Image{}, fmt.Errorf("record attachments of volume %s: %w", i, err)
	}
	i.Marks.Attachments = record
	return i, nil
}

// A Claim says which client is about to write for a node.
type Claim struct {
	Node       string
	Generation uint64 // of the node's attachment
	Client     string // address:port/nonce
	Boot       string // the kernel's boot ID
	// Replays says that the client is about to replay the journal of a filesystem that its node, and others, only read.
	Replays bool
}

// Claim records the client that will do a node's writes, before the first of
// them, and returns the image as it is then. fault.InUse means that the node's right
// was taken away or never given: it has to unmap without having written. So does one whose
// client could not be shut out, because it has no exact name (fault.Unsupported). fault.Superseded: another
// node replays the journal, or this one is to do that and others have the image mapped. One
// operation, none if it is recorded.
func (i Image) Claim(ctx context.Context, by Claim) (Image, error) {
	if err := rbd.CheckClient(by.Client); err != nil {
		return Image{}, fmt.Errorf("volume %s: the device's client could not be fenced: %w: %w", i, fault.Unsupported, err)
	}
	entry, ok := i.Marks.Attachments.Of(by.Node)
	if !ok || entry.Detaching || entry.Generation != by.Generation {
		return Image{}, fmt.Errorf("volume %s is not attached to node %s with generation %d: %w", i, by.Node, by.Generation, fault.InUse)
	}
	if entry.Client == by.Client && entry.Boot == by.Boot && entry.Replays == by.Replays {
		return i, nil
	}
	if err := i.admits(by); err != nil {
		return Image{}, err
	}
	entry.Client, entry.Boot, entry.Replays, entry.Unstaged = by.Client, by.Boot, by.Replays, false
	return i.SetAttachments(ctx, i.Marks.Attachments.With(entry))
}

// admits returns fault.Superseded while another node's client leaves no room for this one: who replays a journal is alone.
func (i Image) admits(by Claim) error {
	for _, other := range i.Marks.Attachments.Nodes {
		switch {
		case other.Node == by.Node || other.Client == "":
		case other.Replays:
			return fmt.Errorf("volume %s: node %s is replaying the journal of its filesystem: %w", i, other.Node, fault.Superseded)
		case by.Replays:
			return fmt.Errorf("volume %s: its journal is to be replayed, and node %s has it mapped: %w", i, other.Node, fault.Superseded)
		}
	}
	return nil
}

// Release takes a node's client off the record, after the unmap. The attachment
// stays until the controller detaches: kubelet may stage again under the same one.
// A volume that is gone is success. Two operations, and one to write.
func Release(ctx context.Context, clusters rbd.Clusters, handle volid.Image, node string) error {
	return Repeat("release volume "+handle.String(), func() error {
		// A request to unstage brings no secrets: the cluster's own keyring serves.
		found, err := Find(ctx, clusters, handle, params.Credentials{})
		if errors.Is(err, fault.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return found.release(ctx, node)
	})
}

func (i Image) release(ctx context.Context, node string) error {
	entry, ok := i.Marks.Attachments.Of(node)
	if !ok || entry.Client == "" {
		return nil
	}
	entry.Client, entry.Boot, entry.Replays, entry.Unstaged = "", "", false, true
	_, err := i.SetAttachments(ctx, i.Marks.Attachments.With(entry))
	return err
}
