package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/step"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Detach is a fence: when it says nil the node cannot write to the image any more, whatever
// becomes of the node. That nobody watches the image would not be enough: a client that was
// frozen for more than 30 s watches nothing, and writes on when it thaws.
//
// A node that has unstaged the volume has said so in the record, and nothing more is needed. Otherwise
//
//	SetAttachments  raises the generation: no new mapping, and no first write of one that is there
//	Users           who watches the image or owns its lock
//	                ... as long as the client watches, and for a grace time, come again: it may yet unstage
//	NoteFence       why the client is shut out, before it is
//	Blocklist       the recorded client, watching or not, and whoever else uses the image and has no right to
//	SetAttachments  takes the entry off the record
//
// Each step is decided by what stands in Ceph, so whoever comes next goes on where one stopped.

// DefaultGrace is how long a client that still watches may go on to unstage. It is short: Kubernetes
// detaches a volume after it was unstaged, and otherwise only from a node that it has given up (the taint
// out-of-service, six minutes without an answer) or because somebody deleted the VolumeAttachment.
const DefaultGrace = 5 * time.Second

// Detach takes the node's right to use the volume away; with an empty node it
// takes away everyone's. A volume or an attachment that is not there is success.
// Two operations after a clean unstage, and one to write; four and one when the node never staged it.
//
// It returns fault.Superseded while a client has its grace time.
func (s *Store) Detach(ctx context.Context, handle volid.Image, node string, as params.Credentials) error {
	defer s.cache.change(handle)
	var waits error // not repeated here, although its kind says that others are at it
	err := image.Repeat(fmt.Sprintf("detach volume %s from %s", handle, node), func() error {
		found, err := image.Find(ctx, s.clusters, handle, as)
		if errors.Is(err, fault.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		waits, err = s.detach(ctx, found, node)
		return err
	})
	if err == nil {
		err = waits
	}
	return err
}

// detach makes one attempt. The first error says who has to be waited for.
func (s *Store) detach(ctx context.Context, i image.Image, node string) (waits, err error) {
	concerns := func(entry image.Attachment) bool { return node == "" || entry.Node == node }
	if !slices.ContainsFunc(i.Marks.Attachments.Nodes, concerns) {
		return nil, nil
	}
	over := leaving(i.Marks.Attachments, concerns)
	if !over.clean() {
		if waits, err = s.shutOut(ctx, &i, over); waits != nil || err != nil {
			return waits, err
		}
	}
	left := i.Marks.Attachments
	for _, entry := range over.entries {
		left = left.Without(entry.Node)
	}
	left.Generation++
	_, err = i.SetAttachments(ctx, left)
	return nil, err
}

// departure is what a detach is about.
type departure struct {
	entries []image.Attachment
	others  []image.Attachment // the attachments that stay
}

func leaving(all image.Attachments, concerns func(image.Attachment) bool) departure {
	var d departure
	for _, entry := range all.Nodes {
		if concerns(entry) {
			d.entries = append(d.entries, entry)
		} else {
			d.others = append(d.others, entry)
		}
	}
	return d
}

// clean reports that all have said that they have unstaged the volume.
func (d departure) clean() bool {
	return !slices.ContainsFunc(d.entries, func(e image.Attachment) bool { return e.Client != "" || !e.Unstaged })
}

// shutOut fences the clients of the entries, or says who is waited for. The image is
// changed to what it is after its generation was raised.
func (s *Store) shutOut(ctx context.Context, i *image.Image, over departure) (waits, err error) {
	step.Set(ctx, "looking who uses", i.String())
	users, err := i.Pool.Users(ctx, i.ID)
	if err != nil {
		return nil, fmt.Errorf("look who uses volume %s: %w", i, err)
	}
	targets, err := notYet(ctx, *i, over.targets(users))
	if len(targets) == 0 || err != nil {
		return nil, err
	}
	if *i, err = s.raise(ctx, *i, over); err != nil {
		return nil, err
	}
	over = leaving(i.Marks.Attachments, over.has)
	for _, target := range targets {
		if target.watches && s.graced(target.entry, over) {
			return fmt.Errorf("volume %s is still mapped on node %s by client %s, which has %s to unstage it before it is shut out: %w",
				i, target.entry.Node, target.client, s.options.Grace, fault.Superseded), nil
		}
	}
	for _, target := range targets {
		if err := s.fence(ctx, *i, target); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// has reports whether a node's entry is among those that leave.
func (d departure) has(entry image.Attachment) bool {
	return slices.ContainsFunc(d.entries, func(e image.Attachment) bool { return e.Node == entry.Node })
}

// A target is a client to be fenced.
type target struct {
	client  string
	watches bool
	entry   image.Attachment // whose it is, or is taken for
}

// targets are the clients that the entries recorded, and whoever else uses the image without a right to.
//
// The clients that other attachments recorded have one, and so do the driver's own connections. As
// long as an attachment that stays has recorded none, an unknown client may be its: a
// node records its client after it has mapped the image. Such a one is left alone; it writes nothing before it
// has found its generation in the record.
func (d departure) targets(users []rbd.User) []target {
	var targets []target
	known := map[string]bool{}
	for _, entry := range d.others {
		known[entry.Client] = true
	}
	staging := known[""]
	watches := map[string]bool{}
	for _, user := range users {
		watches[user.Client] = user.Watches
	}
	for _, entry := range d.entries {
		if entry.Client != "" && !known[entry.Client] {
			known[entry.Client] = true
			targets = append(targets, target{entry.Client, watches[entry.Client], entry})
		}
	}
	for _, user := range users {
		if !known[user.Client] && !user.Control && !staging {
			targets = append(targets, target{user.Client, user.Watches, d.entries[0]})
		}
	}
	return targets
}

// notYet leaves out who only owns the lock and was shut out before, at an earlier
// detach: the lock stays until the next client takes it.
func notYet(ctx context.Context, i image.Image, targets []target) ([]target, error) {
	idle := func(t target) bool { return !t.watches && t.client != t.entry.Client }
	if !slices.ContainsFunc(targets, idle) {
		return targets, nil
	}
	listed, err := i.Pool.Blocklisted(ctx)
	if err != nil {
		return nil, fmt.Errorf("detach volume %s: %w", i, err)
	}
	return slices.DeleteFunc(targets, func(t target) bool { return idle(t) && !listed[t.client].IsZero() }), nil
}

// raise makes sure that the entries are marked as detaching, with a new generation.
func (s *Store) raise(ctx context.Context, i image.Image, over departure) (image.Image, error) {
	record, changed := i.Marks.Attachments, false
	for _, entry := range over.entries {
		if !entry.Detaching {
			entry.Detaching, entry.Since = true, s.options.now().Unix()
			record, changed = record.With(entry), true
		}
	}
	if !changed {
		return i, nil
	}
	record.Generation++
	return i.SetAttachments(ctx, record)
}

// graced reports whether the grace time of a client is not over. Clocks of controllers differ; one that is
// far off ends the grace at once rather than never.
func (s *Store) graced(of image.Attachment, over departure) bool {
	for _, entry := range over.entries {
		if entry.Node == of.Node {
			of = entry
		}
	}
	passed := s.options.now().Sub(time.Unix(of.Since, 0))
	return passed < s.options.Grace && passed > -s.options.Grace
}

// A Fence is what is kept about a client that was shut out, in Ceph, beside the blocklist.
// Released versions have written these fields: add to them, never change one.
type Fence struct {
	Image string `json:"image"` // the volume's handle
	ID    string `json:"id"`    // the image's
	Node  string `json:"node"`  // whose attachment ended
	Boot  string `json:"boot,omitempty"`
	At    int64  `json:"at"`    // when, in seconds since 1970
	Until int64  `json:"until"` // how long it is to last, likewise
	// Recorded says that the node had recorded the client; otherwise it was found using the image.
	Recorded bool `json:"recorded,omitempty"`
}

// fence shuts one client out.
func (s *Store) fence(ctx context.Context, i image.Image, of target) error {
	if err := rbd.CheckClient(of.client); err != nil {
		return fmt.Errorf("fence node %s from volume %s: %w (shut it out by hand, then `rbd image-meta` shows what is recorded): %w",
			of.entry.Node, i, fault.InUse, err)
	}
	now := s.options.now()
	wanted := now.Add(rbd.FenceTime)
	note := Fence{
		Image: i.String(), ID: i.ID, Node: of.entry.Node, Boot: of.entry.Boot,
		At: now.Unix(), Until: wanted.Unix(), Recorded: of.client == of.entry.Client,
	}
	step.Set(ctx, "shutting out client", of.client, "of node", of.entry.Node)
	if err := i.Pool.NoteFence(ctx, of.client, image.Written(note)); err != nil {
		return fmt.Errorf("fence client %s of node %s from volume %s: %w", of.client, of.entry.Node, i, err)
	}
	until, err := i.Pool.Blocklist(ctx, i.ID, of.client, rbd.FenceTime)
	if err != nil {
		return fmt.Errorf("fence client %s of node %s from volume %s: %w", of.client, of.entry.Node, i, err)
	}
	klog.FromContext(ctx).Info("Fenced", "volume", i.String(), "node", of.entry.Node, "client", of.client, "until", until.UTC().Format(time.RFC3339))
	return nil
}
