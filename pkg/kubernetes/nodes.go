package kubernetes

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Node is a machine, as the control plane sees it.
type Node struct {
	Name, UID string
	// Ready says that its kubelet reports, and that all is well. The control plane takes it back when it has not heard of
	// the kubelet for a while (--node-monitor-grace-period of kube-controller-manager).
	Ready bool
	// Gone says that the object was deleted.
	Gone   bool
	Taints []Taint

	version string
}

// A Taint is one of a node's.
type Taint struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect"`
	// Added is when, as the API server writes it; kept as it was found.
	Added string `json:"timeAdded,omitempty"`
}

// OutOfService is the key of the taint with which the attach/detach controller detaches a node's volumes without
// waiting for its kubelet, as soon as no pod wants them there (Non-Graceful Node Shutdown). The controllers look for the key only,
// and not for value and effect.
const OutOfService = "node.kubernetes.io/out-of-service"

// nodeObject is what is read of a node.
type nodeObject struct {
	Metadata struct{ Name, UID, ResourceVersion string }
	Spec     struct{ Taints []Taint }
	Status   struct {
		Conditions []struct{ Type, Status string }
	}
}

func (o nodeObject) node() Node {
	node := Node{Name: o.Metadata.Name, UID: o.Metadata.UID, Taints: o.Spec.Taints, version: o.Metadata.ResourceVersion}
	for _, condition := range o.Status.Conditions {
		node.Ready = node.Ready || condition.Type == "Ready" && condition.Status == "True"
	}
	return node
}

const nodesPath = "/api/v1/nodes"

// Node returns one node as it is now; fault.NotFound.
func (c *Client) Node(ctx context.Context, name string) (Node, error) {
	var object nodeObject
	if err := c.get(ctx, nodesPath+"/"+name, &object); err != nil {
		return Node{}, fmt.Errorf("read node %s: %w", name, err)
	}
	return object.node(), nil
}

// FollowNodes tells of every node as it is, and then of each that changes, until the context ends or an
// error comes. After an error it can be called again, and tells of every node again. told must not block.
func (c *Client) FollowNodes(ctx context.Context, told func(Node)) error {
	version, err := c.listNodes(ctx, told)
	for err == nil {
		version, err = c.watchNodes(ctx, version, told)
	}
	return fmt.Errorf("follow nodes: %w", err)
}

// listNodes tells of every node and returns the version that a watch goes on from. It takes what the API server has in memory.
func (c *Client) listNodes(ctx context.Context, told func(Node)) (version string, err error) {
	content, err := c.api.Get().AbsPath(nodesPath).Param("resourceVersion", "0").Do(ctx).Raw()
	if err != nil {
		return "", kind(err)
	}
	var all struct {
		Metadata struct{ ResourceVersion string }
		Items    []nodeObject
	}
	if err := json.Unmarshal(content, &all); err != nil {
		return "", fmt.Errorf("%w: %w", fault.Internal, err)
	}
	for _, one := range all.Items {
		told(one.node())
	}
	return all.Metadata.ResourceVersion, nil
}

// watchTime is how long one watch lasts. It has to be less than what a request may take.
const watchTime = 20 * time.Second

// watchNodes tells of what changes, for watchTime, and returns the version that the next watch goes on from.
func (c *Client) watchNodes(ctx context.Context, version string, told func(Node)) (string, error) {
	stream, err := c.api.Get().AbsPath(nodesPath).Param("watch", "true").Param("allowWatchBookmarks", "true").
		Param("resourceVersion", version).Param("timeoutSeconds", strconv.Itoa(int(watchTime.Seconds()))).Stream(ctx)
	if err != nil {
		return "", kind(err)
	}
	defer func() { _ = stream.Close() }()
	events := json.NewDecoder(bufio.NewReader(stream))
	for {
		var event struct {
			Type   string
			Object nodeObject
		}
		switch err := events.Decode(&event); {
		case errors.Is(err, io.EOF):
			return version, ctx.Err()
		case err != nil:
			return "", fmt.Errorf("%w: %w", fault.Unavailable, err)
		case event.Type == "ERROR": // the version is too old, most likely
			return "", fmt.Errorf("the watch is over: %w", fault.Superseded)
		}
		version = event.Object.Metadata.ResourceVersion
		if event.Type != "BOOKMARK" {
			node := event.Object.node()
			node.Gone = event.Type == "DELETED"
			told(node)
		}
	}
}

// Taint puts a taint on a node that was just read, and nothing if there is one with its key. fault.Superseded: the node has changed since.
func (c *Client) Taint(ctx context.Context, node Node, taint Taint) error {
	if slices.ContainsFunc(node.Taints, func(t Taint) bool { return t.Key == taint.Key }) {
		return nil
	}
	return c.setTaints(ctx, node, append(slices.Clone(node.Taints), taint))
}

// Untaint takes the taints with this key and value off a node that was just read. fault.Superseded: the node has changed since.
func (c *Client) Untaint(ctx context.Context, node Node, taint Taint) error {
	left := slices.DeleteFunc(slices.Clone(node.Taints), func(t Taint) bool { return t.Key == taint.Key && t.Value == taint.Value })
	if len(left) == len(node.Taints) {
		return nil
	}
	return c.setTaints(ctx, node, left)
}

// setTaints replaces the taints, which can only be done with all of them, and only as long as nobody else has changed the node.
func (c *Client) setTaints(ctx context.Context, node Node, taints []Taint) error {
	type metadata struct {
		UID             string `json:"uid"`
		ResourceVersion string `json:"resourceVersion"`
	}
	type spec struct {
		Taints []Taint `json:"taints"`
	}
	content, err := json.Marshal(struct {
		Metadata metadata `json:"metadata"`
		Spec     spec     `json:"spec"`
	}{metadata{node.UID, node.version}, spec{taints}})
	if err != nil {
		return fmt.Errorf("set the taints of node %s: %w: %w", node.Name, fault.Internal, err)
	}
	if err := c.sendAs(ctx, http.MethodPatch, nodesPath+"/"+node.Name, "application/merge-patch+json", content); err != nil {
		return fmt.Errorf("set the taints of node %s: %w", node.Name, err)
	}
	return nil
}
