package kube

import (
	"fmt"
	"path/filepath"
	"strings"
)

// guestData is the folder in a guest where a disk is mounted that the guest finds again when it is booted again.
const guestData = "/var/lib"

// A node is one of the cluster's, as its kubelet and its containerd are told of it. What is said of folders and sockets holds
// in the guest where the node is in one.
type node struct {
	// number is that of the guest, and 0 for this machine.
	number        int
	name, address string
	// data is where containerd and the kubelet keep what a reboot leaves, and volatile what it does not.
	data, volatile string
	kubeletRoot    string
	// cgroup is the one below which the kubelet makes those of pods.
	cgroup string
	// firstPod and lastPod are the last numbers of the addresses that pods get.
	firstPod, lastPod int
}

// nodes are this machine alone, or as many as there are guests.
func (s *state) nodes() []node {
	if s.Guests == 0 {
		return []node{{
			name: s.Node, address: s.Address, data: s.Folder, volatile: s.Folder,
			kubeletRoot: s.KubeletRoot, cgroup: "/" + cgroupName, firstPod: 10, lastPod: 254,
		}}
	}
	nodes := make([]node, s.Guests)
	for i := range nodes {
		first := firstGuestPod + i*podsOfGuest
		nodes[i] = node{
			number: i + 1, name: fmt.Sprintf("node-%c", 'a'+i), address: s.guestNetwork().Address(i + 1),
			data: guestData, volatile: "/run", kubeletRoot: s.KubeletRoot, cgroup: "/", firstPod: first, lastPod: first + podsOfGuest - 1,
		}
	}
	return nodes
}

// nodeNames are the names of all nodes, for a reader.
func (s *state) nodeNames() string {
	var names []string
	for _, n := range s.nodes() {
		names = append(names, n.name)
	}
	return strings.Join(names, ", ")
}

// of is the name of a component, or of its files, on the node.
func (n node) of(component string) string { return component + "-" + n.name }

func (n node) runtimeSocket() string {
	return filepath.Join(n.volatile, containerd, "containerd.sock")
}
