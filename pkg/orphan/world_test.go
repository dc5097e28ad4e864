package orphan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

const gib = 1 << 30

var (
	pool   = volid.Pool{Cluster: "main", Pool: "kube"}
	nobody params.Credentials
)

func at(name string) volid.Image { return volid.Image{Pool: pool, Name: name} }

// A world is a Ceph, what Kubernetes knows, and a checker whose clock is two hours ahead: what a test
// makes is older than the grace then.
type world struct {
	*testing.T
	ceph    *rbdtest.Ceph
	process *rbdtest.Process // the checker's
	kube    *objects
	checker *Checker
	ahead   time.Duration
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ceph := rbdtest.New()
	ceph.AddCluster("main").AddUser("csi", "KEY").AddPool("kube", "team")
	w := &world{T: t, ceph: ceph, process: ceph.Process(), kube: &objects{}, ahead: 2 * time.Hour}
	w.checker = w.another(w.process)
	return w
}

// another returns a checker of another process.
func (w *world) another(process *rbdtest.Process) *Checker {
	return &Checker{
		Clusters: process, Store: volume.NewStore(process, volume.Options{}), Kubernetes: w.kube,
		Now: func() time.Time { return time.Now().Add(w.ahead) },
	}
}

// objects is what a Kubernetes cluster knows.
type objects struct {
	mu       sync.Mutex
	volumes  []Persistent
	contents []Content
	asked    int
	// before is called before the PersistentVolumes are listed, with how often they were.
	before func(times int)
	err    error
}

func (o *objects) Volumes(context.Context) ([]Persistent, error) {
	o.mu.Lock()
	o.asked++
	times, before := o.asked, o.before
	o.mu.Unlock()
	if before != nil {
		before(times)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.volumes), o.err
}

func (o *objects) Contents(context.Context) ([]Content, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.contents), o.err
}

// know makes PersistentVolumes of volumes.
func (o *objects) know(names ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, name := range names {
		o.volumes = append(o.volumes, Persistent{Name: "pv-" + name, Handle: at(name).String(), Claim: "shop/data", Made: time.Now()})
	}
}

// forget deletes all PersistentVolumes.
func (o *objects) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.volumes = nil
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// driver returns a store of a process of its own, which is killed before a call of that method, after letting some
// pass; "" for none.
func (w *world) driver(method string, skip int) *volume.Store {
	process := w.ceph.Process()
	if method != "" {
		process.Fail(rbdtest.Fault{Method: method, Skip: skip, Kill: true})
	}
	return volume.NewStore(process, volume.Options{})
}

func specOf(name string) volume.CreateSpec {
	return volume.CreateSpec{
		Handle: at(name), Request: name,
		Size:  func(content int64) (int64, error) { return max(gib, content), nil },
		Class: params.Class{Pool: pool, ObjectSize: 4 << 20, Features: params.DefaultFeatures, Owner: params.Owner{Volume: name}},
		Fits:  func(bytes int64) bool { return bytes == gib },
	}
}

func (w *world) create(names ...string) {
	w.Helper()
	for _, name := range names {
		_, err := w.driver("", 0).Create(w.Context(), specOf(name), nobody)
		w.must(err)
	}
}

func (w *world) delete(name string) {
	w.Helper()
	w.must(w.driver("", 0).Delete(w.Context(), at(name), nobody))
}

// take takes a snapshot and returns its handle.
func (w *world) take(source, name string) volid.Snapshot {
	w.Helper()
	made, err := w.driver("", 0).Snapshots().Create(w.Context(), snapshot.CreateSpec{Source: at(source), Request: name}, nobody)
	w.must(err)
	return made.Handle
}

// killed checks that a request's process was killed.
func (w *world) killed(err error) {
	w.Helper()
	if err == nil {
		w.Fatal("the process was not killed")
	}
}

func (w *world) open() rbd.Pool {
	w.Helper()
	opened, err := w.ceph.Process().Pool(w.Context(), pool, nobody)
	w.must(err)
	return opened
}

func (w *world) find(name string) image.Image {
	w.Helper()
	found, err := image.Look(w.Context(), w.open(), name)
	w.must(err)
	return found
}

func (w *world) attach(name, node string) {
	w.Helper()
	_, err := w.driver("", 0).Attach(w.Context(), at(name), volume.AttachSpec{Node: node, Mode: "single", Single: true}, nobody)
	w.must(err)
}

func (w *world) look() Report {
	w.Helper()
	report, err := w.checker.Look(w.Context())
	w.must(err)
	if report.Incomplete {
		w.Errorf("the look was incomplete: %v", report.Notes)
	}
	return report
}

// wantFound checks that exactly these were found, each as KIND WHERE.
func (w *world) wantFound(got []Finding, want ...string) {
	w.Helper()
	found := []string{}
	for _, one := range got {
		found = append(found, fmt.Sprintf("%s %s", one.Kind, one.Where))
	}
	if !slices.Equal(found, want) {
		w.Errorf("got findings %q, want %q", found, want)
	}
}

// watch returns a watch that removes what is older than the grace, and what it has told.
func (w *world) watch(checker *Checker, collect time.Duration) (watch *Watch, told *[]Finding) {
	told = new([]Finding)
	return &Watch{Checker: checker, Collect: collect, Found: func(_ context.Context, f Finding) { *told = append(*told, f) }}, told
}

// want checks the kind of an error and that its text says something.
func (w *world) want(what string, err error, kind fault.Kind, says string) {
	w.Helper()
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), says) {
		w.Errorf("%s: got %v, want kind %v and %q in it", what, err, kind, says)
	}
}

// dump returns all that is in Ceph, for comparison.
func (w *world) dump() string { return strings.Join(w.ceph.Dump(), "\n") }

var errNoAnswer = errors.New("no answer")
