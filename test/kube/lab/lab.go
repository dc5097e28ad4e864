// Package lab brings up, on this machine alone, all that the driver is for: a Ceph and a Kubernetes, each in
// a folder, and the driver in pods, from its own image and by its Helm chart, as a user would have it.
//
//	l, err := lab.Up(ctx, lab.Options{Places: places, Progress: os.Stdout})
//	...
//	images, err := l.Images(ctx)
//	...
//	err = l.Down(ctx)
//
// Tests take a [Shared]. The command test/kube/cmd/lab does the same from a shell. A program that calls Up or Down begins with
// kernel.RunGuest and ceph.RunSupervisor.
//
// # What is where
//
// Ceph listens on the node's address, that of the bridge of the pods, so that the controller reaches it from a
// network of its own. It has the pool [Pool] and the user client.[User] with the profile rbd, whose
// key and the monitors' addresses are in the Secret [ClusterSecret]. The chart is release [Release] in namespace
// [Namespace]; [Class] is the default StorageClass.
//
// Everything is below the build folder: cluster (Kubernetes, see package kube), ceph, and lab with the chart's values
// and Helm's own files. What is made elsewhere on the machine is in state, and goes with Down.
//
// With nodes in guests ([Options].Guests) the driver maps by krbd, and nodes can be lost: see kube.Guest. The chart is installed with
// less then: see lighten.
//
// # Who owns what
//
// Nobody watches over it: a lab stays until [Down] or a reboot, whatever becomes of the process that brought it up.
// There can be one on a machine, because there can be one Kubernetes.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

// The names that the lab gives.
const (
	// Driver is the driver's name, the chart's default.
	Driver = "rbd-csi.io"
	// Namespace and Release are the chart's.
	Namespace = "rbd-csi"
	Release   = "rbd-csi"
	// Cluster is the name of the Ceph cluster in handles, Pool its pool and User its user for the driver.
	Cluster = "ceph"
	Pool    = "kube"
	User    = "rbd-csi"
	// Rook is a second name of the same Ceph: there the driver finds it by what Rook keeps, which
	// the lab writes under Rook's names.
	Rook = "rook"
	// ClusterSecret holds ceph.conf and keyring.
	ClusterSecret = "rbd-csi-ceph"
	// Class is the default StorageClass.
	Class = "rbd"
	// SnapshotClass is the default VolumeSnapshotClass, and the default VolumeGroupSnapshotClass.
	SnapshotClass = "rbd"
	// SecretsNamespace is a namespace whose Secrets the sidecars may read: for classes and volumes with a user of
	// their own.
	SecretsNamespace = "ceph-users"
)

// Options says what to bring up.
type Options struct {
	// Places is where the repository and the build folder are.
	Places kube.Places
	// Guests is how many nodes there are, each in a guest whose kernel has krbd; 0: this machine is the only node. See kube.Options.
	Guests int
	// Image is an archive with the driver's image, as `make image` packs it. Empty means the newest in build/image.
	Image string
	// Values are merged over [Lab.Values], by Helm.
	Values map[string]any
	// Progress, unless nil, is told each step and how long it took.
	Progress io.Writer
}

// A Lab is a handle of a running lab. Its methods may be called at the same time, except for Down.
type Lab struct {
	Kube *kube.Cluster
	Ceph *ceph.Cluster

	places   kube.Places
	progress io.Writer
}

func cephFolder(places kube.Places) string { return filepath.Join(places.Build, "ceph") }
func (l *Lab) folder() string              { return filepath.Join(l.places.Build, "lab") }

// Up brings the lab up, in about 40 seconds, or what is missing of it, and returns when the driver serves: all its pods
// are ready, and each node's CSINode lists it. Errors are fault.Unsupported where something has to be built or
// installed first. After an error, what is up stays up, to be looked at: Up goes on with it, and Down takes it down.
func Up(ctx context.Context, opts Options) (*Lab, error) {
	say := progress.NewNarrator(opts.Progress, "lab")
	found, err := find(opts)
	if err != nil {
		return nil, err
	}
	kubernetes := opts.Places.Options()
	kubernetes.Progress, kubernetes.Guests = opts.Progress, opts.Guests
	if _, err := kube.Open(kubernetes.Folder); err != nil && opts.Guests > 0 {
		// A guest takes long to import it, and one that is booted for the first time finds it on its disk.
		kubernetes.Archives, found.imported = []string{found.archive}, true
	}
	l := &Lab{places: opts.Places, progress: opts.Progress}
	if l.Kube, err = kube.Up(ctx, kubernetes); err != nil {
		return nil, fmt.Errorf("bring Kubernetes up: %w", err)
	}
	if got := len(l.Kube.Guests()); got != opts.Guests {
		return nil, fmt.Errorf("a cluster with %d nodes in guests is up already, not with %d: %w", got, opts.Guests, fault.Exists)
	}
	say.Line("Kubernetes %s at %s, nodes %s", kube.Version, l.Kube.Address(), strings.Join(l.Kube.Nodes(), ", "))
	if err := l.startCeph(ctx, say); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.folder(), 0o755); err != nil {
		return nil, err
	}
	if opts.Guests == 0 {
		if err := l.prepareMachine(); err != nil {
			return nil, err
		}
	}
	if err := l.install(ctx, found, opts.Values, say); err != nil {
		return nil, err
	}
	return l, nil
}

// startCeph starts Ceph, unless it runs, and makes the driver's user.
func (l *Lab) startCeph(ctx context.Context, say *progress.Narrator) error {
	folder := cephFolder(l.places)
	running, err := ceph.Attach(ctx, folder)
	switch {
	case err == nil && !slices.Contains(running.Pools(), Pool):
		return fmt.Errorf("the Ceph in %s is another's, it has no pool %s: %w", folder, Pool, fault.Exists)
	case err == nil:
		l.Ceph = running
	default:
		l.Ceph, err = ceph.Start(ctx, ceph.Options{
			Dir: folder, Pools: []string{Pool}, Address: l.Kube.Address(), Detached: true,
		})
		if err != nil {
			return fmt.Errorf("start Ceph: %w", err)
		}
	}
	if _, err := l.Ceph.AddUser(ctx, User, ceph.ProfileRBD()); err != nil {
		return fmt.Errorf("make client.%s: %w", User, err)
	}
	say.Line("Ceph %s with pool %s and client.%s", l.Ceph.Version(), Pool, User)
	return nil
}

// Open returns a handle of the lab that runs in the places; fault.NotFound means that none does.
func Open(ctx context.Context, places kube.Places) (*Lab, error) {
	cluster, err := kube.Open(places.Options().Folder)
	if err != nil {
		return nil, err
	}
	stored, err := ceph.Attach(ctx, cephFolder(places))
	if err != nil {
		return nil, err
	}
	return &Lab{Kube: cluster, Ceph: stored, places: places}, nil
}

// Images lists the images of the pool, sorted.
func (l *Lab) Images(ctx context.Context) ([]string, error) {
	out, err := l.Ceph.RBD(ctx, "ls", Pool)
	return slices.Sorted(strings.FieldsSeq(out)), err
}

// Trash lists the names that images of the pool had before they were put into the trash, sorted. The driver takes
// them from there in the background.
func (l *Lab) Trash(ctx context.Context) ([]string, error) {
	out, err := l.Ceph.RBD(ctx, "trash", "ls", "--all", Pool)
	var names []string
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 1 {
			names = append(names, fields[1])
		}
	}
	slices.Sort(names)
	return names, err
}

// index is the object in which the driver finds snapshots by their names.
const index = "rbd_csi.index"

// Index lists the keys in the index of the pool, which have the names of snapshots in them. A pool that never had a snapshot has none.
func (l *Lab) Index(ctx context.Context) ([]string, error) {
	objects, err := l.Ceph.Rados(ctx, "--pool", Pool, "ls")
	if err != nil || !slices.Contains(strings.Fields(objects), index) {
		return nil, err
	}
	keys, err := l.Ceph.Rados(ctx, "--pool", Pool, "listomapkeys", index)
	return strings.Fields(keys), err
}

// A condition is looked at again after shortestPause, or after pauseOfLook times as long as the look took: the processor that kubectl and
// rbd take is missing where something is being waited for.
const (
	shortestPause = 250 * time.Millisecond
	pauseOfLook   = 3
)

// Await calls done until it says so, or returns an error, or ctx ends. The text that done returns says how things are,
// and is in the error of a wait that was in vain.
func Await(ctx context.Context, limit time.Duration, what string, done func(context.Context) (bool, string, error)) error {
	patience, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last := "nothing is known"
	for {
		begun := time.Now()
		ok, state, err := done(patience)
		switch {
		case err != nil && patience.Err() == nil:
			return fmt.Errorf("wait until %s: %w", what, err)
		case err == nil && ok:
			return nil
		case err == nil:
			last = state
		}
		select {
		case <-patience.Done():
			return fmt.Errorf("waited %s until %s: %w: %s", limit, what, fault.Unavailable, last)
		case <-time.After(max(shortestPause, pauseOfLook*time.Since(begun))):
		}
	}
}

// exists says whether there is something at a path. What cannot be looked at is taken to be there.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
