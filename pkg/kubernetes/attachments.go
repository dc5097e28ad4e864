package kubernetes

import (
	"context"
	"fmt"
)

// An Attachment is a VolumeAttachment: a PersistentVolume that is attached to a node, or is to be.
type Attachment struct {
	Name   string
	Driver string // whose, by spec.attacher
	Node   string
	Volume string // the PersistentVolume; empty for a volume that is in the pod's own text
}

// Attachments returns those of all drivers on a node. It costs a request for each 500 in the cluster.
func (c *Client) Attachments(ctx context.Context, node string) ([]Attachment, error) {
	type object struct {
		Metadata struct{ Name string }
		Spec     struct {
			Attacher, NodeName string
			Source             struct{ PersistentVolumeName string }
		}
	}
	var found []Attachment
	for one, err := range list[object](ctx, c, "/apis/storage.k8s.io/v1/volumeattachments", nil) {
		if err != nil {
			return nil, err
		}
		if one.Spec.NodeName == node {
			found = append(found, Attachment{one.Metadata.Name, one.Spec.Attacher, node, one.Spec.Source.PersistentVolumeName})
		}
	}
	return found, nil
}

// Volume returns one PersistentVolume; fault.NotFound. Of one that is no CSI volume, driver and handle are empty.
func (c *Client) Volume(ctx context.Context, name string) (Volume, error) {
	var object volumeObject
	if err := c.get(ctx, "/api/v1/persistentvolumes/"+name, &object); err != nil {
		return Volume{}, fmt.Errorf("read PersistentVolume %s: %w", name, err)
	}
	return object.volume(), nil
}
