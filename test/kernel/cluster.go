package kernel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

// A Cluster is the machine's Ceph as a test in a guest has it: Ceph's tools are run on the
// machine, as the administrator.
type Cluster struct{ url string }

// ServeCluster runs Ceph's tools for the guests until the server is closed. The environment is for
// the commands that want a Cluster in a guest.
func ServeCluster(cluster *ceph.Cluster) (server *http.Server, environment []string, err error) {
	listener, err := net.Listen("tcp", machineAddress+":0")
	if err != nil {
		return nil, nil, fmt.Errorf("serve the cluster to guests: %w", err)
	}
	server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: toolsOf(cluster)}
	go func() { _ = server.Serve(listener) }() // it ends by Close
	return server, []string{envCluster + "=http://" + listener.Addr().String()}, nil
}

// A tool is a question of a guest and its answer.
type tool struct {
	Arguments []string `json:",omitempty"`
	Output    []byte   `json:",omitempty"`
	Error     string   `json:",omitempty"`
}

func toolsOf(cluster *ceph.Cluster) http.Handler {
	handler := http.NewServeMux()
	for name, run := range map[string]func(context.Context, ...string) (string, error){
		"rbd": cluster.RBD, "ceph": cluster.Ceph,
		"freeze": signal(cluster.Freeze), "thaw": signal(cluster.Thaw),
	} {
		handler.HandleFunc("POST /"+name, func(answer http.ResponseWriter, request *http.Request) {
			var wanted tool
			if err := json.NewDecoder(request.Body).Decode(&wanted); err != nil {
				http.Error(answer, err.Error(), http.StatusBadRequest)
				return
			}
			output, err := run(request.Context(), wanted.Arguments...)
			result := tool{Output: []byte(output)}
			if err != nil {
				result.Error = err.Error()
			}
			_ = json.NewEncoder(answer).Encode(result) // the guest sees that the answer is not whole
		})
	}
	return handler
}

// signal makes what is done to one daemon a tool.
func signal(send func(context.Context, string) error) func(context.Context, ...string) (string, error) {
	return func(ctx context.Context, daemons ...string) (string, error) {
		if len(daemons) != 1 {
			return "", fmt.Errorf("%d daemons: %w", len(daemons), fault.Invalid)
		}
		return "", send(ctx, daemons[0])
	}
}

// ClusterInGuest returns the machine's cluster.
func ClusterInGuest() Cluster { return Cluster{os.Getenv(envCluster)} }

// RBD runs `rbd ARGS...` as client.admin and returns its standard output.
func (c Cluster) RBD(ctx context.Context, arguments ...string) (string, error) {
	return c.ask(ctx, "rbd", arguments)
}

// Ceph runs `ceph ARGS...` as client.admin and returns its standard output.
func (c Cluster) Ceph(ctx context.Context, arguments ...string) (string, error) {
	return c.ask(ctx, "ceph", arguments)
}

// Freeze stops a daemon in its tracks, until Thaw; see [ceph.Cluster.Freeze].
func (c Cluster) Freeze(ctx context.Context, daemon string) error {
	_, err := c.ask(ctx, "freeze", []string{daemon})
	return err
}

// Thaw lets a frozen daemon go on.
func (c Cluster) Thaw(ctx context.Context, daemon string) error {
	_, err := c.ask(ctx, "thaw", []string{daemon})
	return err
}

func (c Cluster) ask(ctx context.Context, name string, arguments []string) (string, error) {
	body, err := json.Marshal(tool{Arguments: arguments})
	if err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/"+name, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", fmt.Errorf("ask the machine for %s: %w", name, err)
	}
	defer answer.Body.Close()
	var result tool
	if err := json.NewDecoder(answer.Body).Decode(&result); err != nil {
		return "", fmt.Errorf("ask the machine for %s: %s: %w", name, answer.Status, err)
	}
	if result.Error != "" {
		return "", errors.New(result.Error)
	}
	return string(result.Output), nil
}
