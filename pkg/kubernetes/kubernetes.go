// Package kubernetes asks the API server of the Kubernetes cluster that the driver runs in what no CSI
// request tells: which volumes and snapshots it knows, which pods use a volume on a
// node, and whether the node is ready. It reports events, deletes pods and taints nodes. What is to be done, others decide.
//
// The sidecars do all that belongs to CSI; nothing here is needed to serve a request.
package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Client is a connection to an API server. All methods may be called at once. They return fault.Denied where
// the service account may not, fault.Unauthenticated where its token is refused, and fault.Unavailable
// where nobody answers.
type Client struct {
	api rest.Interface
}

// requestTime bounds how long one request may take: a page of a list is the largest.
const requestTime = 30 * time.Second

// perSecond and atOnce limit how many requests are sent. client-go's own limits, 5 and 10, are for a controller that follows
// objects: to look at a lost node with 50 volumes and to move their pods are 150 requests. The API server shares itself fairly out among those
// who ask.
const perSecond, atOnce = 50, 200

// InCluster returns a client of the cluster that this pod runs in, as the pod's service account.
// fault.Unsupported: this process is in no pod, or in one without a token.
func InCluster() (*Client, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("ask Kubernetes: %w: %w", fault.Unsupported, err)
	}
	return New(config)
}

// New returns a client that reaches the API server as the configuration says.
func New(config *rest.Config) (*Client, error) {
	config = rest.CopyConfig(config)
	config.GroupVersion = &schema.GroupVersion{}
	config.NegotiatedSerializer = serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
	config.UserAgent = "rbd-csi"
	config.Timeout = requestTime
	config.QPS, config.Burst = perSecond, atOnce
	api, err := rest.UnversionedRESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("ask Kubernetes: %w: %w", fault.Invalid, err)
	}
	return &Client{api: api}, nil
}

// pageSize is how many objects a page of a list has: what the API server's own tools take.
const pageSize = 500

// list yields the objects of a list, page by page, each read into a T, which has what is wanted of it only.
func list[T any](ctx context.Context, c *Client, path string, only map[string]string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		next := ""
		for {
			request := c.api.Get().AbsPath(path).Param("limit", strconv.Itoa(pageSize)).Param("continue", next)
			for name, value := range only {
				request = request.Param(name, value)
			}
			content, err := request.Do(ctx).Raw()
			if err != nil {
				yield(none, fmt.Errorf("list %s: %w", path, kind(err)))
				return
			}
			var page struct {
				Metadata struct{ Continue string }
				Items    []T
			}
			if err := json.Unmarshal(content, &page); err != nil {
				yield(none, fmt.Errorf("list %s: %w: %w", path, fault.Internal, err))
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if next = page.Metadata.Continue; next == "" {
				return
			}
		}
	}
}

// kind says what an error of the API server means to us.
func kind(err error) error {
	switch {
	case errors.IsNotFound(err):
		return fmt.Errorf("%w: %w", fault.NotFound, err)
	case errors.IsForbidden(err):
		return fmt.Errorf("%w: %w", fault.Denied, err)
	case errors.IsUnauthorized(err):
		return fmt.Errorf("%w: %w", fault.Unauthenticated, err)
	case errors.IsConflict(err), errors.IsGone(err), errors.IsResourceExpired(err):
		return fmt.Errorf("%w: %w", fault.Superseded, err)
	case errors.IsInvalid(err), errors.IsBadRequest(err):
		return fmt.Errorf("%w: %w", fault.Invalid, err)
	}
	return fmt.Errorf("%w: %w", fault.Unavailable, err)
}

// get reads one object into what has the wanted of it.
func (c *Client) get(ctx context.Context, path string, object any) error {
	content, err := c.api.Get().AbsPath(path).Do(ctx).Raw()
	if err != nil {
		return kind(err)
	}
	if err := json.Unmarshal(content, object); err != nil {
		return fmt.Errorf("%w: %w", fault.Internal, err)
	}
	return nil
}

// jsonType is what bodies are.
const jsonType = "application/json"

func (c *Client) post(ctx context.Context, path string, object any) error {
	content, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("%w: %w", fault.Internal, err)
	}
	return c.send(ctx, http.MethodPost, path, content)
}

func (c *Client) send(ctx context.Context, verb, path string, content []byte) error {
	return c.sendAs(ctx, verb, path, jsonType, content)
}

func (c *Client) sendAs(ctx context.Context, verb, path, contentType string, content []byte) error {
	err := c.api.Verb(verb).AbsPath(path).SetHeader("Content-Type", contentType).Body(content).Do(ctx).Error()
	if err != nil {
		return kind(err)
	}
	return nil
}
