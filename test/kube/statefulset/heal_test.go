package statefulset_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// TestShutOutUnderAPod shuts the client of a volume out under a pod that writes. The node plug-in notices, tells the pod,
// and has it made anew, as the chart says (heal: restart).
func TestShutOutUnderAPod(t *testing.T) {
	t.Parallel()
	s := tell(t, "shut-out")
	s.Apply(set{name: "log", replicas: 1, command: writing}.String())
	w := s.writes("log-0")
	w.goesOn(s)
	s.shutOut("data-log-0")

	s.part("the next pod has the log, and a new device", func(s *story) {
		s.ReadyAnew("log-0", string(w.pod.UID))
		s.writes("log-0").goesOn(s)
		s.wholeLog("log-0")
	})
	s.part("the one before was told", func(s *story) {
		events := s.Kubectl("get", "events", "--field-selector", "reason=DeviceDead,involvedObject.uid="+string(w.pod.UID), "--output", "jsonpath={.items[*].message}")
		if !strings.Contains(events, "the pod is deleted, the next one gets the volume anew") {
			s.Errorf("events of the pod before: got %q, want that it is deleted among them", events)
		}
	})
}

// shutOut blocklists the clients that have a claim's image open.
func (s *story) shutOut(claim string) {
	s.Helper()
	text, err := s.Lab.Ceph.RBD(s.Context(), "status", "--format", "json", lab.Pool+"/"+s.bound(claim))
	s.Must(err)
	var status struct{ Watchers []struct{ Address string } }
	s.Must(json.Unmarshal([]byte(text), &status))
	if len(status.Watchers) == 0 {
		s.Fatalf("the image of %s: nobody watches it", claim)
	}
	for _, watcher := range status.Watchers {
		_, err := s.Lab.Ceph.Ceph(s.Context(), "osd", "blocklist", "add", watcher.Address)
		s.Must(err)
	}
}
