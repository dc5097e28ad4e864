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
		found = append(found, pod)
	}
	return found, nil
}

// DeletePod deletes a pod as `kubectl delete pod` does, with the time to end that it has itself, and
// never a later pod of its name. One that is gone is success.
func (c *Client) DeletePod(ctx context.Context, pod Pod) error {
	type preconditions struct {
		UID string `json:"uid"`
	}
	content, err := json.Marshal(struct {
		Kind          string        `json:"kind"`
		APIVersion    string        `json:"apiVersion"`
		Preconditions preconditions `json:"preconditions"`
	}{"DeleteOptions", "v1", preconditions{pod.UID}})
	if err != nil {
		return fmt.Errorf("delete pod %s: %w: %w", pod, fault.Internal, err)
	}
	err = c.send(ctx, http.MethodDelete, "/api/v1/namespaces/"+pod.Namespace+"/pods/"+pod.Name, content)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("delete pod %s: %w", pod, err)
	}
	return nil
}

// An Event is what `kubectl describe pod` shows.
type Event struct {
	Pod     Pod
	Warning bool
	Reason  string // a word for programs
	Message string // a sentence for people
}

// Report makes an event of a pod. component is who reports it, and on which node.
func (c *Client) Report(ctx context.Context, component, node string, event Event) error {
	type reference struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
		Namespace  string `json:"namespace"`
		Name       string `json:"name"`
		UID        string `json:"uid"`
	}
	type metadata struct {
		GenerateName string `json:"generateName"`
		Namespace    string `json:"namespace"`
	}
	type source struct {
		Component string `json:"component"`
		Host      string `json:"host"`
	}
	now := time.Now().UTC().Truncate(time.Second)
	object := struct {
		Kind           string    `json:"kind"`
		APIVersion     string    `json:"apiVersion"`
		Metadata       metadata  `json:"metadata"`
		InvolvedObject reference `json:"involvedObject"`
		Type           string    `json:"type"`
		Reason         string    `json:"reason"`
		Message        string    `json:"message"`
		Source         source    `json:"source"`
		Count          int       `json:"count"`
		First          time.Time `json:"firstTimestamp"`
		Last           time.Time `json:"lastTimestamp"`
	}{
		Kind:           "Event",
		APIVersion:     "v1",
		Metadata:       metadata{GenerateName: event.Pod.Name + ".", Namespace: event.Pod.Namespace},
		InvolvedObject: reference{"Pod", "v1", event.Pod.Namespace, event.Pod.Name, event.Pod.UID},
		Type:           "Normal",
		Reason:         event.Reason,
		Message:        event.Message,
		Source:         source{component, node},
		Count:          1,
		First:          now,
		Last:           now,
	}
	if event.Warning {
		object.Type = "Warning"
	}
	if err := c.post(ctx, "/api/v1/namespaces/"+event.Pod.Namespace+"/events", object); err != nil {
		return fmt.Errorf("report event %s of pod %s: %w", event.Reason, event.Pod, err)
	}
	return nil
}
