package statefulset_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// TestShutOutUnderAPod shuts the client of a volume out under a pod that writes. The node plug-in notices, tells the pod,
// and, where the chart says so, has it made anew.
func TestShutOutUnderAPod(t *testing.T) {
	s := tell(t, "shut-out")
	quick := []any{"--heal-every=1s"}
	t.Cleanup(func() { s.must(s.lab.Upgrade(context.WithoutCancel(t.Context()), nil)) })
	s.must(s.lab.Upgrade(t.Context(), map[string]any{"node": map[string]any{"extraArgs": quick}}))
	s.apply(set{name: "log", replicas: 1, command: writing}.String())
	w := s.writes("log-0")
	w.goesOn(s)

	s.part("by default the pod is told", func(s *story) {
		s.shutOut("data-log-0")
		s.describes("pod/log-0", "DeviceDead", "is dead", "kubectl delete pod --namespace shut-out log-0")
	})
	s.part("and comes back to its log when it is deleted", func(s *story) {
		s.kubectl("delete", "pod", "log-0", "--wait=false")
		s.readyAnew("log-0", string(w.pod.UID))
		w = s.writes("log-0")
		w.goesOn(s)
		s.wholeLog("log-0")
	})
	s.part("with heal=restart it is deleted, and comes back to its log by itself", func(s *story) {
		s.must(s.lab.Upgrade(s.Context(), map[string]any{"node": map[string]any{"extraArgs": quick, "heal": "restart"}}))
		s.shutOut("data-log-0")
		s.readyAnew("log-0", string(w.pod.UID))
		s.writes("log-0").goesOn(s)
		s.wholeLog("log-0")
		events := s.kubectl("get", "events", "--field-selector", "reason=DeviceDead,involvedObject.uid="+string(w.pod.UID), "--output", "jsonpath={.items[*].message}")
		if !strings.Contains(events, "the pod is deleted") {
			s.Errorf("events of the pod before: got %q, want that it is deleted among them", events)
		}
	})
}

// shutOut blocklists the clients that have a claim's image open.
func (s *story) shutOut(claim string) {
	s.Helper()
	text, err := s.lab.Ceph.RBD(s.Context(), "status", "--format", "json", lab.Pool+"/"+s.bound(claim))
	s.must(err)
	var status struct{ Watchers []struct{ Address string } }
	s.must(json.Unmarshal([]byte(text), &status))
	if len(status.Watchers) == 0 {
		s.Fatalf("the image of %s: nobody watches it", claim)
	}
	for _, watcher := range status.Watchers {
		_, err := s.lab.Ceph.Ceph(s.Context(), "osd", "blocklist", "add", watcher.Address)
		s.must(err)
	}
}
