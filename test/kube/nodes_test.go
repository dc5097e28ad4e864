package kube

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// TestNodes sees that no two of the machine, the nodes and their pods can have the same address.
func TestNodes(t *testing.T) {
	s := &state{Folder: "/cluster", Node: nodeName, Address: "10.88.77.1", Subnet: "10.88.77", KubeletRoot: DefaultKubeletRoot}
	if got := s.nodes(); len(got) != 1 || got[0].name != nodeName || got[0].address != s.Address {
		t.Errorf("nodes without guests: got %+v, want this machine", got)
	}
	s.Guests = MostGuests
	owner := map[string]string{s.Address: "the machine"}
	take := func(address, name string) {
		if other, taken := owner[address]; taken {
			t.Errorf("%s: got it for %s and for %s, want one of them", address, other, name)
		}
		owner[address] = name
	}
	for _, n := range s.nodes() {
		take(n.address, n.name)
		if n.firstPod < 2 || n.lastPod > 254 || n.lastPod < n.firstPod {
			t.Errorf("addresses of pods of %s: got %d to %d, want some from 2 to 254", n.name, n.firstPod, n.lastPod)
		}
		for last := n.firstPod; last <= n.lastPod; last++ {
			take(podAddress(s.Subnet, last), "a pod of "+n.name)
		}
	}
	if _, err := newState(Options{Guests: MostGuests + 1}); !errors.Is(err, fault.Invalid) {
		t.Errorf("%d guests: got %v, want %v", MostGuests+1, err, fault.Invalid)
	}
}

// TestTemplateName sees that a disk with images is not taken for one with others.
func TestTemplateName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image.tar")
	write := func(text string, at time.Time) string {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		name, err := templateName([]string{path})
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	then := time.Unix(1, 0)
	first := write("a", then)
	if same := write("a", then); same != first {
		t.Errorf("the same archive: got %s, want %s as before", same, first)
	}
	if matches, err := filepath.Match(templatePattern, first); err != nil || !matches || strings.HasSuffix(first, ".tar") {
		t.Errorf("name: got %s, want one like %s", first, templatePattern)
	}
	if larger, newer := write("aa", then), write("a", then.Add(time.Second)); larger == first || newer == first {
		t.Errorf("an archive that is larger, or newer: got %s, %s, want others than %s", larger, newer, first)
	}
}
