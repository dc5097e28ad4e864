package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Pod is one in one of its lives: a StatefulSet's next pod has the same name and another UID.
type Pod struct {
	Namespace, Name, UID string
	// Owned says that a controller (a StatefulSet, a ReplicaSet) makes another when this one is deleted.
	Owned bool
	// Ending says that it was deleted already.
	Ending bool
	// Claims are the PersistentVolumeClaims that it uses, as NAMESPACE/NAME, those of generic ephemeral volumes among them.
	Claims []string
}

// String is how people name a pod.
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// PodsOn returns the pods of a node.
func (c *Client) PodsOn(ctx context.Context, node string) ([]Pod, error) {
	type object struct {
		Metadata struct {
			Namespace, Name, UID string
			DeletionTimestamp    *time.Time
			OwnerReferences      []struct{ Controller bool }
		}
		Spec struct {
			Volumes []struct {
				Name                  string
				PersistentVolumeClaim *struct{ ClaimName string }
				Ephemeral             *struct{}
			}
		}
	}
	var found []Pod
	for one, err := range list[object](ctx, c, "/api/v1/pods", map[string]string{"fieldSelector": "spec.nodeName=" + node}) {
		if err != nil {
			return nil, err
		}
		pod := Pod{Namespace: one.Metadata.Namespace, Name: one.Metadata.Name, UID: one.Metadata.UID, Ending: one.Metadata.DeletionTimestamp != nil}
		for _, owner := range one.Metadata.OwnerReferences {
			pod.Owned = pod.Owned || owner.Controller
		}
		for _, volume := range one.Spec.Volumes {
			switch {
			case volume.PersistentVolumeClaim != nil:
				pod.Claims = append(pod.Claims, pod.Namespace+"/"+volume.PersistentVolumeClaim.ClaimName)
			case volume.Ephemeral != nil:
				pod.Claims = append(pod.Claims, pod.String()+"-"+volume.Name) // the name that its controller gives it
			}
		}
		found = append(found, pod)
	}
	return found, nil
}

// DeletePod deletes a pod as `kubectl delete pod` does, with the time to end that it has itself, and
// never a later pod of its name. One that is gone is success.
func (c *Client) DeletePod(ctx context.Context, pod Pod) error {
	return c.deletePod(ctx, pod, nil)
}

// RemovePod removes the object of a pod at once, as `kubectl delete pod --force` does, and never a later pod of its name. Its
// containers may still run where nobody can tell them to end. One that is gone is success.
func (c *Client) RemovePod(ctx context.Context, pod Pod) error {
	now := 0
	return c.deletePod(ctx, pod, &now)
}

// deletePod deletes a pod; grace is in seconds, and nil what the pod has itself.
func (c *Client) deletePod(ctx context.Context, pod Pod, grace *int) error {
	type preconditions struct {
		UID string `json:"uid"`
	}
	content, err := json.Marshal(struct {
		Kind          string        `json:"kind"`
		APIVersion    string        `json:"apiVersion"`
		Grace         *int          `json:"gracePeriodSeconds,omitempty"`
		Preconditions preconditions `json:"preconditions"`
	}{"DeleteOptions", "v1", grace, preconditions{pod.UID}})
	if err != nil {
		return fmt.Errorf("delete pod %s: %w: %w", pod, fault.Internal, err)
	}
	err = c.send(ctx, http.MethodDelete, "/api/v1/namespaces/"+pod.Namespace+"/pods/"+pod.Name, content)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("delete pod %s: %w", pod, err)
	}
	return nil
}
