package kubernetes_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
)

const (
	readyNode = `{"metadata":{"name":"one","uid":"1","resourceVersion":"7"},
		"spec":{"taints":[{"key":"mine","value":"x","effect":"NoSchedule","timeAdded":"2026-01-02T03:04:05Z"}]},
		"status":{"conditions":[{"type":"DiskPressure","status":"True"},{"type":"Ready","status":"True"}]}}`
	lostNode = `{"metadata":{"name":"one","uid":"1","resourceVersion":"9"},
		"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`
)

// TestFollowNodes has a list, a watch that ends by itself, a second one from where the first ended, and an error.
func TestFollowNodes(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		asked = append(asked, query.Get("watch")+" "+query.Get("resourceVersion"))
		w.Header().Set("Content-Type", "application/json")
		switch len(asked) {
		case 1:
			_, _ = io.WriteString(w, `{"metadata":{"resourceVersion":"7"},"items":[`+readyNode+`]}`)
		case 2:
			_, _ = io.WriteString(w, `{"type":"MODIFIED","object":`+lostNode+`}{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"11"}}}`)
		case 3:
			_, _ = io.WriteString(w, `{"type":"DELETED","object":`+lostNode+`}{"type":"ERROR","object":{"kind":"Status","code":410}}`)
		}
	}))
	t.Cleanup(server.Close)
	client, err := kubernetes.New(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	err = client.FollowNodes(t.Context(), func(node kubernetes.Node) {
		state := "lost"
		switch {
		case node.Gone:
			state = "gone"
		case node.Ready:
			state = "ready"
		}
		got = append(got, node.Name+" "+state)
	})
	if want := []string{"one ready", "one lost", "one gone"}; !slices.Equal(got, want) || !fault.Is(err, fault.Superseded) {
		t.Errorf("told %v, %v, want %v and that the version is too old", got, err, want)
	}
	if want := []string{" 0", "true 7", "true 11"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}

func TestFollowNodesEnds(t *testing.T) {
	client, _ := serve(t, map[string]string{"GET /api/v1/nodes?resourceVersion=0": `{"metadata":{"resourceVersion":"7"}}`})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := client.FollowNodes(ctx, func(kubernetes.Node) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context's end: got %v, want that", err)
	}
	if err := client.FollowNodes(t.Context(), func(kubernetes.Node) {}); !fault.Is(err, fault.NotFound) {
		t.Errorf("without an answer to the watch: got %v, want the API server's error", err)
	}
}

// TestTaint holds that taints are replaced as a whole, by whom has seen the node as it is.
func TestTaint(t *testing.T) {
	const path = "PATCH /api/v1/nodes/one"
	ours := kubernetes.Taint{Key: kubernetes.OutOfService, Value: "ours", Effect: "NoSchedule"}
	client, api := serve(t, map[string]string{"GET /api/v1/nodes/one": readyNode, path: `{}`})
	node, err := client.Node(t.Context(), "one")
	if err != nil || !node.Ready || node.UID != "1" {
		t.Fatalf("got %+v, %v, want a node that is ready", node, err)
	}
	if err := client.Taint(t.Context(), node, ours); err != nil {
		t.Fatal(err)
	}
	type patch struct {
		Metadata struct{ UID, ResourceVersion string }
		Spec     struct{ Taints []kubernetes.Taint }
	}
	var sent, want patch
	want.Metadata.UID, want.Metadata.ResourceVersion, want.Spec.Taints = "1", "7", slices.Concat(node.Taints, []kubernetes.Taint{ours})
	if err := json.Unmarshal([]byte(api.bodies[1]), &sent); err != nil || !reflect.DeepEqual(sent, want) {
		t.Errorf("sent %s, %v, want %+v", api.bodies[1], err, want)
	}

	tainted := node
	tainted.Taints = append(slices.Clone(node.Taints), kubernetes.Taint{Key: kubernetes.OutOfService, Value: "somebody's", Effect: "NoExecute"})
	if err := errors.Join(client.Taint(t.Context(), tainted, ours), client.Untaint(t.Context(), tainted, ours)); err != nil || len(api.asked) != 2 {
		t.Errorf("somebody else's taint: %v, asked %v, want nothing done", err, api.asked)
	}
	tainted.Taints[1] = ours
	sent = patch{}
	if err := client.Untaint(t.Context(), tainted, ours); err != nil {
		t.Fatal(err)
	}
	want.Spec.Taints = node.Taints
	if err := json.Unmarshal([]byte(api.bodies[2]), &sent); err != nil || !reflect.DeepEqual(sent, want) {
		t.Errorf("sent %s, %v, want %+v", api.bodies[2], err, want)
	}

	client, _ = serve(t, map[string]string{path: "409!Conflict"})
	if err := client.Taint(t.Context(), node, ours); !fault.Is(err, fault.Superseded) {
		t.Errorf("a node that has changed: got %v, want %v", err, fault.Superseded)
	}
}

func TestAttachments(t *testing.T) {
	client, _ := serve(t, map[string]string{
		"GET /apis/storage.k8s.io/v1/volumeattachments?continue=&limit=500": `{"items":[
			{"metadata":{"name":"a"},"spec":{"attacher":"d","nodeName":"one","source":{"persistentVolumeName":"pv-1"}}},
			{"metadata":{"name":"b"},"spec":{"attacher":"d","nodeName":"two","source":{"persistentVolumeName":"pv-2"}}},
			{"metadata":{"name":"c"},"spec":{"attacher":"other","nodeName":"one","source":{"inlineVolumeSpec":{}}}}]}`,
		"GET /api/v1/persistentvolumes/pv-1": `{"metadata":{"name":"pv-1"},"spec":{"csi":{"driver":"d","volumeHandle":"c:p/a"},"claimRef":{"namespace":"n","name":"x"}}}`,
		"GET /api/v1/persistentvolumes/nfs":  `{"metadata":{"name":"nfs"},"spec":{"nfs":{}}}`,
	})
	got, err := client.Attachments(t.Context(), "one")
	want := []kubernetes.Attachment{{Name: "a", Driver: "d", Node: "one", Volume: "pv-1"}, {Name: "c", Driver: "other", Node: "one"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	volume, err := client.Volume(t.Context(), "pv-1")
	if want := (kubernetes.Volume{Name: "pv-1", Driver: "d", Handle: "c:p/a", Claim: "n/x"}); err != nil || volume != want {
		t.Errorf("got %v, %v, want %v", volume, err, want)
	}
	if volume, err := client.Volume(t.Context(), "nfs"); err != nil || volume.Driver != "" {
		t.Errorf("no CSI volume: got %v, %v, want no driver", volume, err)
	}
	if _, err := client.Volume(t.Context(), "gone"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a volume that is gone: got %v, want %v", err, fault.NotFound)
	}
}
