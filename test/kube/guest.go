package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kernel"
)

// A Guest is a node in a kernel of its own, a process of this machine (see test/kernel), which can be taken from the cluster as
// nodes are lost. What it keeps on its disk, images, containers and the kubelet's folder, is there after the next boot; memory
// is not.
//
// A program that brings guests up, or boots one again, begins with kernel.RunGuest.
type Guest struct {
	state *state
	node  node
}

// Guests are the nodes in guests; none where this machine is the node.
func (c *Cluster) Guests() []*Guest {
	if c.state.Guests == 0 {
		return nil
	}
	var guests []*Guest
	for _, n := range c.state.nodes() {
		guests = append(guests, &Guest{state: &c.state, node: n})
	}
	return guests
}

// Revive undoes what was done to nodes in guests: it boots, thaws and connects them again, and waits until they are ready.
func (c *Cluster) Revive(ctx context.Context) error {
	if c.state.Guests == 0 {
		return nil
	}
	return c.state.eachNode(func(n node) error { return c.state.reviveGuest(ctx, n) })
}

// Guest returns the node of that name; fault.NotFound if there is none in a guest.
func (c *Cluster) Guest(name string) (*Guest, error) {
	guests := c.Guests()
	if i := slices.IndexFunc(guests, func(g *Guest) bool { return g.Name() == name }); i >= 0 {
		return guests[i], nil
	}
	return nil, fmt.Errorf("no node %s in a guest: %w", name, fault.NotFound)
}

// Name is the node's name.
func (g *Guest) Name() string { return g.node.name }

// Address is the node's IPv4 address.
func (g *Guest) Address() string { return g.node.address }

// Run runs a command in the guest, as root and outside of all containers, and returns what it prints.
func (g *Guest) Run(ctx context.Context, command ...string) (string, error) {
	return g.state.inGuest(ctx, g.node, command...)
}

// Kill ends the guest as a loss of power does. It returns when it is gone.
func (g *Guest) Kill() error { return g.with((*kernel.Guest).Kill) }

// Freeze stops the guest in its tracks, until Thaw. It goes on where it was, and finds the clock ahead.
func (g *Guest) Freeze() error { return g.with((*kernel.Guest).Freeze) }

// Thaw lets a frozen guest go on.
func (g *Guest) Thaw() error { return g.with((*kernel.Guest).Thaw) }

// CutOff separates the guest from this machine and the other guests, until Rejoin. It runs on, with its pods.
func (g *Guest) CutOff() error { return g.with((*kernel.Guest).CutOff) }

// Rejoin connects the guest again.
func (g *Guest) Rejoin() error { return g.with((*kernel.Guest).Rejoin) }

func (g *Guest) with(do func(*kernel.Guest) error) error {
	running, err := kernel.Find(g.state.guestOptions(g.node))
	if err == nil {
		err = do(running)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", g.node.name, err)
	}
	return nil
}

// Boot boots a guest that was killed, and starts its kubelet. That the node is Ready then is not said: see WaitReady. It is
// fault.Exists that the guest runs.
func (g *Guest) Boot(ctx context.Context) error {
	if _, err := kernel.Find(g.state.guestOptions(g.node)); err == nil {
		return fmt.Errorf("%s runs: %w", g.node.name, fault.Exists)
	}
	if err := g.state.bootNode(ctx, g.node); err != nil {
		return fmt.Errorf("boot %s: %w", g.node.name, err)
	}
	return nil
}

// WaitReady is [Cluster.WaitReady] for this node.
func (g *Guest) WaitReady(ctx context.Context) error { return g.state.waitReady(ctx, g.node) }

func (s *state) bootNode(ctx context.Context, n node) error {
	if err := s.bootGuest(ctx, n); err != nil {
		return err
	}
	return s.startGuestKubelet(ctx, n)
}

// reviveGuest undoes what was done to a guest.
func (s *state) reviveGuest(ctx context.Context, n node) error {
	running, err := kernel.Find(s.guestOptions(n))
	switch {
	case errors.Is(err, fault.NotFound):
		err = s.bootNode(ctx, n)
	case err == nil:
		err = errors.Join(running.Thaw(), running.Rejoin())
	}
	if err != nil {
		return err
	}
	return s.waitReady(ctx, n)
}
