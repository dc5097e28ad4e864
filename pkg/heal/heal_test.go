package heal_test

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/heal"
	"github.com/rbd-csi/rbd-csi/pkg/host"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// pods is a Kubernetes that has one node.
type pods struct {
	running []kubernetes.Pod
	events  []kubernetes.Event
	deleted []string
	// failing is the method that fails.
	failing string
}

func (p *pods) fail(method string) error {
	if p.failing == method {
		return fmt.Errorf("%s: %w", method, fault.Unavailable)
	}
	return nil
}

func (p *pods) PodsOn(_ context.Context, node string) ([]kubernetes.Pod, error) {
	if node != "one" {
		return nil, fmt.Errorf("node %s: %w", node, fault.NotFound)
	}
	return p.running, p.fail("PodsOn")
}

func (p *pods) DeletePod(_ context.Context, pod kubernetes.Pod) error {
	if err := p.fail("DeletePod"); err != nil {
		return err
	}
	p.deleted = append(p.deleted, pod.Name)
	return nil
}

func (p *pods) Report(_ context.Context, _, _ string, event kubernetes.Event) error {
	if err := p.fail("Report"); err != nil {
		return err
	}
	p.events = append(p.events, event)
	return nil
}

// told returns of whom and why there were events, and forgets them.
func (p *pods) told() []string {
	var told []string
	for _, e := range p.events {
		told = append(told, e.Pod.Name+" "+e.Reason)
	}
	p.events = nil
	return told
}

func (p *pods) gone() []string {
	gone := p.deleted
	p.deleted = nil
	return gone
}

const kubelet = "/var/lib/kubelet"

func dead(name string, paths ...string) host.Ailing {
	return host.Ailing{
		Ailment: host.Ailment{Reason: host.DeviceDead, Message: "device /dev/rbd0 is dead (blocklisted)"},
		Volume:  volid.Image{Pool: volid.Pool{Cluster: "main", Pool: "kube"}, Name: name},
		Paths:   append([]string{kubelet + "/plugins/kubernetes.io/csi/rbd-csi.io/aaa/globalmount"}, paths...),
	}
}

func mountOf(uid string) string {
	return kubelet + "/pods/" + uid + "/volumes/kubernetes.io~csi/pv/mount"
}
func blockOf(uid string) string {
	return kubelet + "/plugins/kubernetes.io/csi/volumeDevices/publish/pv/" + uid
}

// A node is a healer and what it looks at.
type node struct {
	*heal.Healer

	ailing []host.Ailing
	err    error
	pods   *pods
	seen   map[string]int
}

func newNode(restart bool, running ...kubernetes.Pod) *node {
	n := &node{pods: &pods{running: running}}
	n.Healer = heal.New("one", func(context.Context) ([]host.Ailing, error) { return n.ailing, n.err }, heal.Options{
		Driver: "rbd-csi.io", Pods: n.pods, Restart: restart, Seen: func(seen map[string]int) { n.seen = seen },
	})
	return n
}

// wantLook looks once, and compares what pods were told and which were deleted.
func (n *node) wantLook(t *testing.T, when string, told, gone []string) {
	t.Helper()
	if err := n.Look(t.Context()); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	n.wantTold(t, when, told, gone)
}

func (n *node) wantTold(t *testing.T, when string, told, gone []string) {
	t.Helper()
	if got := n.pods.told(); !reflect.DeepEqual(got, told) {
		t.Errorf("%s: got the events %q, want %q", when, got, told)
	}
	if got := n.pods.gone(); !reflect.DeepEqual(got, gone) {
		t.Errorf("%s: got %q deleted, want %q", when, got, gone)
	}
}

var (
	web  = kubernetes.Pod{Namespace: "n", Name: "web-0", UID: "u-web", Owned: true}
	raw  = kubernetes.Pod{Namespace: "n", Name: "raw-0", UID: "u-raw", Owned: true}
	bare = kubernetes.Pod{Namespace: "n", Name: "bare", UID: "u-bare"}
)

// TestReport holds that a pod is told once, and once more when it comes again, and that none is deleted.
func TestReport(t *testing.T) {
	n := newNode(false, web, bare)
	n.wantLook(t, "all is well", nil, nil)
	n.ailing = []host.Ailing{dead("a", mountOf(web.UID))}
	n.wantLook(t, "one died", []string{"web-0 DeviceDead"}, nil)
	n.wantLook(t, "still", nil, nil)
	if want := map[string]int{host.DeviceDead: 1, host.FilesystemReadOnly: 0}; !reflect.DeepEqual(n.seen, want) {
		t.Errorf("seen: got %v, want %v", n.seen, want)
	}
	n.ailing = nil
	n.wantLook(t, "healed", nil, nil)
	if want := map[string]int{host.DeviceDead: 0, host.FilesystemReadOnly: 0}; !reflect.DeepEqual(n.seen, want) {
		t.Errorf("seen when healed: got %v, want %v", n.seen, want)
	}
	n.ailing = []host.Ailing{dead("a", mountOf(web.UID))}
	n.wantLook(t, "again", []string{"web-0 DeviceDead"}, nil)
}

// TestRestart deletes pods with the volume, of both kinds, that come again, and no others.
func TestRestart(t *testing.T) {
	ending := web
	ending.Name, ending.UID, ending.Ending = "ending", "u-ending", true
	other := web
	other.Name, other.UID = "other", "u-other"
	n := newNode(true, web, raw, bare, ending, other)
	n.ailing = []host.Ailing{dead("a", mountOf(web.UID), mountOf(bare.UID), mountOf(ending.UID)), dead("b", blockOf(raw.UID))}
	n.wantLook(t, "two died", []string{"web-0 DeviceDead", "bare DeviceDead", "raw-0 DeviceDead"}, []string{"web-0", "raw-0"})
	n.pods.running = []kubernetes.Pod{bare, other}
	n.wantLook(t, "they are gone", nil, nil)
}

// TestMessages says what the user can do.
func TestMessages(t *testing.T) {
	for _, test := range []struct {
		restart bool
		pod     kubernetes.Pod
		want    string
	}{
		{false, web, "`kubectl delete pod --namespace n web-0`"},
		{true, web, "the pod is deleted"},
		{true, bare, "no controller does for this one"},
	} {
		n := newNode(test.restart, test.pod)
		n.ailing = []host.Ailing{dead("a", mountOf(test.pod.UID))}
		if err := n.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := n.pods.events[0].Message; !strings.Contains(got, test.want) || !strings.Contains(got, "blocklisted") {
			t.Errorf("%s, restart %t: got %q, want %q and the reason in it", test.pod, test.restart, got, test.want)
		}
	}
}

// TestWhatFailsIsDoneNextTime lets each request to Kubernetes fail once. Nobody is told twice.
func TestWhatFailsIsDoneNextTime(t *testing.T) {
	for failing, told := range map[string][]string{"PodsOn": nil, "Report": nil, "DeletePod": {"web-0 DeviceDead"}} {
		n := newNode(true, web)
		n.ailing = []host.Ailing{dead("a", mountOf(web.UID))}
		n.pods.failing = failing
		if err := n.Look(t.Context()); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s fails: got %v, want %v", failing, err, fault.Unavailable)
		}
		n.wantTold(t, failing+" fails", told, nil)
		n.pods.failing = ""
		var rest []string
		if told == nil {
			rest = []string{"web-0 DeviceDead"}
		}
		n.wantLook(t, failing+" fails no more", rest, []string{"web-0"})
	}
}

// TestHalfALook acts on what could be seen, and neither forgets nor repeats for what could not.
func TestHalfALook(t *testing.T) {
	n := newNode(false, web, raw)
	n.ailing = []host.Ailing{dead("a", mountOf(web.UID)), dead("b", mountOf(raw.UID))}
	n.wantLook(t, "two died", []string{"web-0 DeviceDead", "raw-0 DeviceDead"}, nil)
	n.err, n.ailing = fmt.Errorf("one is silent: %w", fault.Unavailable), n.ailing[:1]
	if err := n.Look(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v, want %v", err, fault.Unavailable)
	}
	n.wantTold(t, "one is silent", nil, nil)
	n.err, n.ailing = nil, []host.Ailing{dead("a", mountOf(web.UID)), dead("b", mountOf(raw.UID))}
	n.wantLook(t, "both again", nil, nil)
}

// TestRun looks every so often, and ends with its context.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		h := heal.New("one", func(context.Context) ([]host.Ailing, error) {
			looks++
			return nil, fmt.Errorf("silent: %w", fault.Unavailable)
		}, heal.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 3*heal.DefaultEvery+time.Second)
		defer cancel()
		h.Run(ctx)
		if looks != 3 {
			t.Errorf("looked %d times, want 3", looks)
		}
	})
}
