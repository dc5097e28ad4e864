package kube

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kernel"
	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

const (
	// tapPrefix begins the names of the guests' interfaces on this machine.
	tapPrefix = "rbd-csi-node"
	// guestBridge is the bridge in a guest that its pods are connected to.
	guestBridge = "pods"
	// guestsFolder has the consoles and the disks of guests.
	guestsFolder = "guests"
	// The pods of the first guest have addresses from firstGuestPod on, and each guest has podsOfGuest of them.
	firstGuestPod, podsOfGuest = 30, 25
	// MostGuests is how many nodes in guests a cluster can have; package kernel gives addresses to no more.
	MostGuests = 9
)

// guestSetUp makes a node of a guest.
//
//go:embed guest.sh
var guestSetUp string

func (s *state) guestNetwork() kernel.Network {
	return kernel.Network{Bridge: bridgeName, Machine: s.Address, Tap: tapPrefix}
}

func (s *state) guestOptions(n node) kernel.GuestOptions {
	return kernel.GuestOptions{
		Number: n.number, Folder: s.data(guestsFolder), Network: s.guestNetwork(),
		Disk: s.disk(n), Environment: []string{envFolder + "=" + s.Folder},
	}
}

func (s *state) disk(n node) string { return filepath.Join(s.data(guestsFolder), n.of("disk")) }

// bootGuests boots all guests and returns when each has a containerd that answers, and the images.
func (s *state) bootGuests(ctx context.Context, opts Options, say *progress.Narrator) error {
	template, err := s.ensureTemplate(ctx, opts, say)
	if err != nil {
		return fmt.Errorf("make a disk with images: %w", err)
	}
	err = s.eachNode(func(n node) error {
		if err := copySparse(ctx, template, s.disk(n)); err != nil {
			return err
		}
		return s.bootGuest(ctx, n)
	})
	if err == nil {
		say.Line("%d guests, with containerd", s.Guests)
	}
	return err
}

// eachNode calls f for all nodes at once.
func (s *state) eachNode(f func(node) error) error {
	nodes := s.nodes()
	errs := make([]error, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() {
			if err := f(n); err != nil {
				errs[i] = fmt.Errorf("%s: %w", n.name, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// bootGuest boots a node's guest and starts containerd there.
func (s *state) bootGuest(ctx context.Context, n node) error {
	if err := s.removeTap(n); err != nil {
		return err
	}
	g, err := kernel.Boot(ctx, s.guestOptions(n))
	if err != nil {
		return err
	}
	set := kernel.Command{Arguments: []string{"sh", "-c", guestSetUp}, Environment: []string{
		"ADDRESS=" + n.address, "GATEWAY=" + s.Address, "BRIDGE=" + guestBridge,
		"LOGS=" + s.data("log"), "KUBELET=" + n.kubeletRoot,
	}}
	var said bytes.Buffer
	if err := g.Run(ctx, &said, set); err != nil {
		return fmt.Errorf("set the guest up: %w: %s", err, strings.TrimSpace(said.String()))
	}
	if err := s.startInGuest(ctx, n, containerd, lookTool(containerd), "--config="+s.containerdConfig(n)); err != nil {
		return err
	}
	return s.awaitInGuest(ctx, n, containerd, startLimit, func(ctx context.Context) error {
		_, err := s.inGuest(ctx, n, "ctr", "--address", n.runtimeSocket(), "version")
		return err
	})
}

// startInGuest starts a component that stays as long as the guest. Its log is on this machine.
func (s *state) startInGuest(ctx context.Context, n node, name string, command ...string) error {
	const script = `log=$1; shift; setsid --fork "$@" >>"$log" 2>&1 </dev/null`
	_, err := s.inGuest(ctx, n, append([]string{"sh", "-c", script, "sh", s.log(n.of(name))}, command...)...)
	return err
}

// startGuestKubelet starts the kubelet in a guest and waits until it answers.
func (s *state) startGuestKubelet(ctx context.Context, n node) error {
	if err := s.startInGuest(ctx, n, kubelet, append([]string{s.binary(kubelet)}, s.kubeletFlags(n)...)...); err != nil {
		return err
	}
	return s.awaitInGuest(ctx, n, kubelet, startLimit, n.kubeletAnswers)
}

// inGuest runs a command in a node's guest and returns what it prints. The error has that, too.
func (s *state) inGuest(ctx context.Context, n node, command ...string) (string, error) {
	g, err := kernel.Find(s.guestOptions(n))
	if err != nil {
		return "", err
	}
	out, err := g.Output(ctx, command...)
	if err != nil {
		return out, fmt.Errorf("%w: %s", err, strings.TrimSpace(out))
	}
	return out, nil
}

// awaitInGuest is await for a component in a guest, as long as the guest runs.
func (s *state) awaitInGuest(ctx context.Context, n node, name string, limit time.Duration, done func(context.Context) error) error {
	lives := func() bool {
		_, err := kernel.Find(s.guestOptions(n))
		return err == nil
	}
	return s.awaitWhile(ctx, lives, n.of(name), limit, done)
}

// killGuests ends all guests, and takes their interfaces away.
func (s *state) killGuests() error {
	if s.Guests == 0 {
		return nil
	}
	return s.eachNode(func(n node) error {
		g, err := kernel.Find(s.guestOptions(n))
		if err == nil {
			return g.Kill()
		}
		if !errors.Is(err, fault.NotFound) {
			return err
		}
		return s.removeTap(n)
	})
}

// removeTap removes the interface of a guest that ended by itself.
func (s *state) removeTap(n node) error {
	name := s.guestNetwork().Interface(n.number)
	if !exists(filepath.Join("/sys/class/net", name)) {
		return nil
	}
	_, err := run(context.Background(), "ip", "link", "delete", name)
	return err
}

// taps are the interfaces of guests that there are.
func taps() []string {
	found, err := filepath.Glob(filepath.Join("/sys/class/net", tapPrefix+"*"))
	if err != nil {
		return nil
	}
	for i, path := range found {
		found[i] = filepath.Base(path)
	}
	return found
}
