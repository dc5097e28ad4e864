package kube

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

// clusterDomain is what the names of services end in.
const clusterDomain = "cluster.local"

// objects are what a cluster needs besides its components: rights, and the snapshot-controller.
//
//go:embed objects/*.yaml
var objects embed.FS

// Up brings the cluster up, in about 15 seconds, and waits until its nodes are ready. If it runs already, that
// is said and the running one returned. What a killed Up or Down left in the folder is
// removed first. Errors are fault.Unsupported where the machine lacks something (see Missing),
// fault.InUse where another kubelet or cluster has the place; after any, only the logs are left.
func Up(ctx context.Context, opts Options) (*Cluster, error) {
	unlock, err := lock(opts.Folder)
	if err != nil {
		return nil, err
	}
	defer unlock()
	say := progress.NewNarrator(opts.Progress, "kube")
	if running, err := Open(opts.Folder); err == nil {
		say.Line("the cluster in %s is up already", opts.Folder)
		running.progress = opts.Progress
		return running, nil
	}
	unlockMachine, err := lockMachine()
	if err != nil {
		return nil, err
	}
	defer unlockMachine()
	if err := removeLeft(ctx, opts.Folder, say); err != nil {
		return nil, fmt.Errorf("remove what is left in %s: %w", opts.Folder, err)
	}
	s, err := newState(opts)
	if err != nil {
		return nil, err
	}
	if err := s.bringUp(ctx, opts, say); err != nil {
		say.Line("that went wrong; taking it down again")
		return nil, errors.Join(err, s.tearDown(context.WithoutCancel(ctx), say))
	}
	return &Cluster{state: *s, progress: opts.Progress}, nil
}

// Open returns a handle of the cluster in folder; fault.NotFound means that none runs there.
func Open(folder string) (*Cluster, error) {
	s, err := load(folder)
	if err != nil {
		return nil, err
	}
	if !s.Ready || !s.runs(apiserver) {
		return nil, fmt.Errorf("the cluster in %s does not run: %w", folder, fault.NotFound)
	}
	return &Cluster{state: *s}, nil
}

// newState decides what the cluster is to have of the machine, without changing that.
func newState(opts Options) (*state, error) {
	s := &state{Folder: opts.Folder, Binaries: opts.Binaries, KubeletRoot: opts.KubeletRoot, Node: nodeName, Guests: opts.Guests}
	if s.KubeletRoot == "" {
		s.KubeletRoot = DefaultKubeletRoot
	}
	if s.Guests < 0 || s.Guests > MostGuests {
		return nil, fmt.Errorf("%d nodes in guests, not 0 to %d: %w", s.Guests, MostGuests, fault.Invalid)
	}
	missing := Missing(opts.Binaries)
	if s.Guests > 0 {
		missing = append(missing, missingForGuests()...)
	}
	if archives, err := opts.archives(); err != nil || len(archives) == len(opts.Archives) {
		missing = append(missing, fmt.Sprintf("there are no images in %q (make kube makes them)", opts.Images))
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%w: %s", fault.Unsupported, strings.Join(missing, "; "))
	}
	if err := s.checkAlone(); err != nil {
		return nil, err
	}
	subnet, err := takeSubnet()
	if err != nil {
		return nil, err
	}
	s.Subnet, s.Address = subnet, subnet+".1"
	s.Sysctls = readSysctls()
	for _, folder := range sharedFolders() {
		if !exists(folder) {
			s.MadeFolders = append(s.MadeFolders, folder)
		}
	}
	return s, nil
}

// checkAlone refuses a machine that has a kubelet or a cluster of ours.
func (s *state) checkAlone() error {
	if owner := bridgeOwner(); owner != "" {
		return fmt.Errorf("a cluster of %s runs on this machine, or was not taken down: %w", owner, fault.InUse)
	}
	if s.Guests > 0 {
		return nil // kubelets in guests do not get into anybody's way
	}
	if pid := otherKubelet(); pid != 0 {
		return fmt.Errorf("process %d is another kubelet, and they get into each other's way: %w", pid, fault.InUse)
	}
	return s.checkRoot()
}

// checkRoot refuses a kubelet's root that has something in it.
func (s *state) checkRoot() error {
	entries, err := os.ReadDir(s.KubeletRoot)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty: another kubelet has it, or had; it cannot be shared: %w", s.KubeletRoot, fault.InUse)
	}
	return nil
}

// bringUp does everything in the order in which one thing needs another.
func (s *state) bringUp(ctx context.Context, opts Options, say *progress.Narrator) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	say.Line("credentials, the bridge %s (%s)", bridgeName, s.Address)
	if err := s.startStores(ctx, say); err != nil {
		return err
	}
	if err := s.startTheRest(ctx, opts, say); err != nil {
		return err
	}
	if err := s.applyDefinitions(ctx); err != nil {
		return err
	}
	s.Ready = true
	return s.save()
}

// startTheRest starts the control plane and the nodes. Unpacking images takes as long as all that, and goes on meanwhile: a pod only
// needs to find its own. Guests have them from the beginning, and are booted meanwhile.
func (s *state) startTheRest(ctx context.Context, opts Options, say *progress.Narrator) error {
	meanwhile := make(chan error, 1)
	if s.Guests > 0 {
		go func() { meanwhile <- s.bootGuests(ctx, opts, say) }()
		if err := errors.Join(s.startControlPlane(ctx, say), <-meanwhile); err != nil {
			return err
		}
		return s.startNodes(ctx, say)
	}
	go func() { meanwhile <- s.importAll(ctx, opts, say) }()
	err := s.startControlPlane(ctx, say)
	if err == nil {
		err = s.startNodes(ctx, say)
	}
	return errors.Join(err, <-meanwhile)
}

func (s *state) prepare(ctx context.Context) error {
	if err := s.makeFolders(); err != nil {
		return err
	}
	if err := s.save(); err != nil {
		return err
	}
	if err := s.makeCredentials(); err != nil {
		return fmt.Errorf("make credentials: %w", err)
	}
	for _, n := range s.nodes() {
		if err := errors.Join(s.writeKubeletConfig(n), s.writeRuntimeConfig(n)); err != nil {
			return err
		}
	}
	if err := s.makeBridge(ctx); err != nil {
		return err
	}
	if s.Guests > 0 {
		return forwardPackets()
	}
	if err := makeCgroups(); err != nil {
		return fmt.Errorf("make cgroups: %w", err)
	}
	return nil
}

func (s *state) startStores(ctx context.Context, say *progress.Narrator) error {
	if err := s.startEtcd(); err != nil {
		return err
	}
	if err := s.waitEtcd(ctx); err != nil {
		return err
	}
	if s.Guests > 0 {
		say.Line("etcd") // containerd is in the guests
		return nil
	}
	if err := s.ensureRuntime(ctx); err != nil {
		return err
	}
	say.Line("etcd, containerd")
	return nil
}

func (s *state) startControlPlane(ctx context.Context, say *progress.Narrator) error {
	if err := s.startAPIServer(); err != nil {
		return err
	}
	if err := s.waitAPIServer(ctx); err != nil {
		return err
	}
	if err := s.startControllers(); err != nil {
		return err
	}
	say.Line("%s, %s, %s", apiserver, controllers, scheduler)
	return s.apply(ctx, "objects/rbac.yaml")
}

// applyDefinitions makes the definitions of snapshots' resources, and what depends on them.
func (s *state) applyDefinitions(ctx context.Context) error {
	if _, err := s.kubectl(ctx, nil, "apply", "-f", s.binary(DefinitionsFolder)+"/"); err != nil {
		return err
	}
	return s.apply(ctx, "objects/snapshot-controller.yaml")
}

// apply makes the objects of one of our files.
func (s *state) apply(ctx context.Context, file string) error {
	text, err := objects.ReadFile(file)
	if err != nil {
		return err
	}
	_, err = s.kubectl(ctx, bytes.NewReader(text), "apply", "-f", "-")
	return err
}

// archives are all that are to be imported.
func (o Options) archives() ([]string, error) {
	found, err := filepath.Glob(filepath.Join(o.Images, "*.tar"))
	return append(found, o.Archives...), err
}

func (s *state) importAll(ctx context.Context, opts Options, say *progress.Narrator) error {
	archives, err := opts.archives()
	if err != nil {
		return err
	}
	if err := s.importImages(ctx, archives); err != nil {
		return err
	}
	say.Line("%d archives of images", len(archives))
	return nil
}

func (s *state) startNodes(ctx context.Context, say *progress.Narrator) error {
	if err := s.startKubelets(ctx); err != nil {
		return err
	}
	for _, start := range []func() error{s.startProxy, s.startNames} {
		if err := start(); err != nil {
			return err
		}
	}
	if err := s.waitReady(ctx, s.nodes()...); err != nil {
		return err
	}
	// The first pod needs it, and the controller that makes it has just begun.
	err := s.await(ctx, controllers, startLimit, func(ctx context.Context) error {
		_, err := s.kubectl(ctx, nil, "get", "serviceaccount", "default")
		return err
	})
	if err != nil {
		return err
	}
	say.Line("%s, %s, names; ready: %s", kubelet, proxy, s.nodeNames())
	return nil
}

func (s *state) startKubelets(ctx context.Context) error {
	if s.Guests == 0 {
		return s.startKubelet(ctx)
	}
	return s.eachNode(func(n node) error { return s.startGuestKubelet(ctx, n) })
}
