package kubernetes

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// An Event is what `kubectl describe pod` shows.
type Event struct {
	Pod     Pod
	Warning bool
	Reason  string // a word for programs
	Message string // a sentence for people
}

// Report makes an event of a pod. component is who reports it, and on which node.
func (c *Client) Report(ctx context.Context, component, node string, event Event) error {
	of := reference{"Pod", "v1", event.Pod.Namespace, event.Pod.Name, event.Pod.UID}
	if err := c.report(ctx, source{component, node}, of, event); err != nil {
		return fmt.Errorf("report event %s of pod %s: %w", event.Reason, event.Pod, err)
	}
	return nil
}

// ReportVolume makes a warning of a PersistentVolume, which `kubectl describe pv` shows. reason is a word for
// programs, and message a sentence for people.
func (c *Client) ReportVolume(ctx context.Context, component string, of Volume, reason, message string) error {
	err := c.report(ctx, source{Component: component}, reference{"PersistentVolume", "v1", "", of.Name, of.UID},
		Event{Warning: true, Reason: reason, Message: message})
	if err != nil {
		return fmt.Errorf("report event %s of PersistentVolume %s: %w", reason, of.Name, err)
	}
	return nil
}

// A reference names the object that an event is about.
type reference struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
}

// A source is who reports an event.
type source struct {
	Component string `json:"component"`
	Host      string `json:"host,omitempty"`
}

// mostMessage is how long the message of an event may be (ValidateEvent in pkg/apis/core/validation of Kubernetes).
const mostMessage = 1024

// report makes an event. Those of objects without a namespace are in the namespace default.
func (c *Client) report(ctx context.Context, by source, of reference, event Event) error {
	type metadata struct {
		GenerateName string `json:"generateName"`
		Namespace    string `json:"namespace"`
	}
	namespace := of.Namespace
	if namespace == "" {
		namespace = "default"
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
		Metadata:       metadata{GenerateName: of.Name + ".", Namespace: namespace},
		InvolvedObject: of,
		Type:           "Normal",
		Reason:         event.Reason,
		Message:        strings.ToValidUTF8(event.Message[:min(len(event.Message), mostMessage)], ""),
		Source:         by,
		Count:          1,
		First:          now,
		Last:           now,
	}
	if event.Warning {
		object.Type = "Warning"
	}
	return c.post(ctx, "/api/v1/namespaces/"+namespace+"/events", object)
}
