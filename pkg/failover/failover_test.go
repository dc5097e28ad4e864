package failover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

const driver = "rbd.example"

// A world is a Kubernetes with one node, and what Ceph hears of it.
type world struct {
	mu       sync.Mutex
	node     kubernetes.Node
	told     func(kubernetes.Node)
	attached map[string]kubernetes.Volume // by the name of the PersistentVolume; its driver is the attachment's
	pods     map[string]kubernetes.Pod
	alive    map[string]bool // handles at which the node shows a sign of life
	read     map[string]bool // handles that the node only reads
	fails    error           // what Ceph answers
	takes    time.Duration   // how long it takes to
	events   []string
	tainted  int      // how often
	fenced   []string // handles, in order
	unsafe   []string // pods that were removed while the node was not shut out of their volumes
	unfenced error    // what Ceph answers to a fence

	fenceTakes time.Duration // how long it takes to
}

// newWorld has a pod web-0 with a volume of ours on a node that is lost.
func newWorld() *world {
	w := &world{
		node:     kubernetes.Node{Name: "one", UID: "1"},
		attached: map[string]kubernetes.Volume{}, pods: map[string]kubernetes.Pod{}, alive: map[string]bool{},
	}
	w.add("web-0", driver)
	return w
}

// add adds a pod of a StatefulSet with a volume of each of the drivers.
func (w *world) add(pod string, drivers ...string) {
	one := kubernetes.Pod{Namespace: "n", Name: pod, UID: "uid-" + pod, Owned: true}
	for _, of := range drivers {
		pv := "pv-" + pod + "-" + of
		one.Claims = append(one.Claims, "n/claim-"+pv)
		w.attached[pv] = kubernetes.Volume{Name: pv, Driver: of, Handle: "main:kube/" + pv, Claim: "n/claim-" + pv}
	}
	w.pods[pod] = one
}

// change changes a pod.
func (w *world) change(pod string, how func(*kubernetes.Pod)) {
	one := w.pods[pod]
	how(&one)
	w.pods[pod] = one
}

func (w *world) FollowNodes(ctx context.Context, told func(kubernetes.Node)) error {
	w.mu.Lock()
	w.told = told
	told(w.node)
	w.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

// become changes the node, which is told.
func (w *world) become(how func(*kubernetes.Node)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	how(&w.node)
	if w.told != nil {
		w.told(w.node)
	}
}

func (w *world) Node(_ context.Context, name string) (kubernetes.Node, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if name != w.node.Name || w.node.Gone {
		return kubernetes.Node{}, fault.NotFound
	}
	return w.node, nil
}

func (w *world) Attachments(context.Context, string) ([]kubernetes.Attachment, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []kubernetes.Attachment
	for _, name := range slices.Sorted(maps.Keys(w.attached)) {
		all = append(all, kubernetes.Attachment{Driver: w.attached[name].Driver, Node: w.node.Name, Volume: name})
	}
	return all, nil
}

func (w *world) Volume(_ context.Context, name string) (kubernetes.Volume, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	volume, found := w.attached[name]
	if !found {
		return volume, fault.NotFound
	}
	return volume, nil
}

func (w *world) PodsOn(context.Context, string) ([]kubernetes.Pod, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.pods)), nil
}

func (w *world) Taint(_ context.Context, _ kubernetes.Node, taint kubernetes.Taint) error {
	w.become(func(node *kubernetes.Node) {
		if !hasOurs(*node) {
			node.Taints = append(node.Taints, taint)
			w.tainted++
		}
	})
	return nil
}

func (w *world) Untaint(context.Context, kubernetes.Node, kubernetes.Taint) error {
	w.become(func(node *kubernetes.Node) { node.Taints = slices.DeleteFunc(node.Taints, isOurs) })
	return nil
}

func (w *world) RemovePod(_ context.Context, pod kubernetes.Pod) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, claim := range w.pods[pod.Name].Claims {
		for _, volume := range w.attached {
			if volume.Claim == claim && !slices.Contains(w.fenced, volume.Handle) {
				w.unsafe = append(w.unsafe, pod.Name)
			}
		}
	}
	delete(w.pods, pod.Name)
	return nil
}

func (w *world) fence(ctx context.Context, handle volid.Image, node string) error {
	if !pause(ctx, w.fenceTakes) {
		return ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if node != (volid.Node{Name: "one"}).String() {
		return fmt.Errorf("asked for node %s", node)
	}
	w.fenced = append(w.fenced, handle.String())
	return w.unfenced
}

func (w *world) Report(_ context.Context, _, _ string, event kubernetes.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event.Pod.Name+" "+event.Reason)
	return errors.New("no events today") // which keeps nobody from moving
}

func (w *world) silent(_ context.Context, handle volid.Image, node string) (bool, error) {
	time.Sleep(w.takes)
	w.mu.Lock()
	defer w.mu.Unlock()
	if node != (volid.Node{Name: "one"}).String() {
		return false, fmt.Errorf("asked for node %s", node)
	}
	if w.read[handle.String()] {
		return false, fault.Unsupported
	}
	return !w.alive[handle.String()], w.fails
}

// detach is what the attach/detach controller does with the volumes of pods that are gone, if it may.
func (w *world) detach() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.ContainsFunc(w.node.Taints, func(t kubernetes.Taint) bool { return t.Key == kubernetes.OutOfService }) {
		return
	}
	wanted := map[string]bool{}
	for _, pod := range w.pods {
		for _, claim := range pod.Claims {
			wanted[claim] = true
		}
	}
	maps.DeleteFunc(w.attached, func(_ string, volume kubernetes.Volume) bool { return !wanted[volume.Claim] })
}

// start watches over the world until the test's end.
func (w *world) start(t *testing.T) {
	t.Helper()
	f := New(Options{Driver: driver, Kubernetes: w, Silent: w.silent, Fence: w.fence})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		f.Run(ctx)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// left returns the names of the pods, after a time in which the control plane does its part too.
func (w *world) left(t *testing.T, after time.Duration) []string {
	t.Helper()
	for range after / (100 * time.Millisecond) {
		time.Sleep(100 * time.Millisecond)
		w.detach()
	}
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.pods))
}

func (w *world) wantLeft(t *testing.T, after time.Duration, want ...string) {
	t.Helper()
	if got := w.left(t, after); !slices.Equal(got, want) {
		t.Errorf("after %s the pods %v are left, want %v", after, got, want)
	}
}

// TestWhoMoves has nodes that are not ready, and says whose pods are left on them a while later.
func TestWhoMoves(t *testing.T) {
	const own = "main:kube/pv-web-0-" + driver
	tests := []struct {
		name string
		do   func(w *world)
		left []string
	}{
		{"a lost node", func(*world) {}, nil},
		{"one whose clients live", func(w *world) { w.alive[own] = true }, []string{"web-0"}},
		{"one of whose clients one lives", func(w *world) {
			w.add("web-1", driver)
			w.alive[own] = true
		}, []string{"web-0", "web-1"}},
		{"one that only reads", func(w *world) { w.read = map[string]bool{own: true} }, []string{"web-0"}},
		{"one that reads one volume and has written another", func(w *world) {
			w.add("web-1", driver)
			w.read = map[string]bool{own: true}
		}, nil},
		{"a cluster that does not answer", func(w *world) { w.fails = fault.Unavailable }, []string{"web-0"}},
		{"pods without a volume of ours", func(w *world) { w.add("other"); w.add("nfs", "nfs.example") }, []string{"nfs", "other"}},
		{"a pod that has another driver's volume too", func(w *world) { w.add("both", driver, "nfs.example") }, []string{"both"}},
		{"one that is ending with another driver's volume", func(w *world) {
			w.add("nfs", "nfs.example")
			w.change("nfs", func(pod *kubernetes.Pod) { pod.Ending = true })
		}, []string{"nfs", "web-0"}},
		{"a pod of nobody", func(w *world) {
			w.add("bare", driver)
			w.change("bare", func(pod *kubernetes.Pod) { pod.Owned = false })
		}, []string{"bare"}},
		{"a pod of nobody that is ending anyway", func(w *world) {
			w.change("web-0", func(pod *kubernetes.Pod) { pod.Owned, pod.Ending = false, true })
		}, nil},
		{"a node that is gone", func(w *world) { w.node.Gone = true }, []string{"web-0"}},
		{"a node that is ready", func(w *world) { w.node.Ready = true }, []string{"web-0"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				test.do(w)
				w.start(t)
				w.wantLeft(t, time.Minute, test.left...)
				if hasOurs(w.node) && len(w.attached) == 0 {
					t.Errorf("the node has %v, want our taint gone with the volumes", w.node.Taints)
				}
				w.wantFenced(t, !slices.Contains(test.left, "web-0"))
			})
		})
	}
}

// wantFenced holds that pods were removed after the node was shut out of their volumes, and once, and that it was not of others.
func (w *world) wantFenced(t *testing.T, moved bool) {
	t.Helper()
	if len(w.unsafe) > 0 {
		t.Errorf("removed %v, want the node shut out of their volumes before", w.unsafe)
	}
	if got := slices.Contains(w.fenced, "main:kube/pv-web-0-"+driver); got != moved {
		t.Errorf("shut out of the volume of web-0: got %t, want %t", got, moved)
	}
	if once := slices.Compact(slices.Sorted(slices.Values(w.fenced))); len(once) != len(w.fenced) {
		t.Errorf("shut out of %v, want of each once", w.fenced)
	}
	for _, pod := range w.pods {
		for _, volume := range w.attached {
			if slices.Contains(pod.Claims, volume.Claim) && slices.Contains(w.fenced, volume.Handle) {
				t.Errorf("shut out of %s, which pod %s still has", volume.Handle, pod.Name)
			}
		}
	}
}

// TestFenceFails has fences that cannot be made, and that take for ever: detach makes them, and the pods move.
func TestFenceFails(t *testing.T) {
	for _, takes := range []time.Duration{0, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.unfenced, w.fenceTakes = fault.Unavailable, takes
			for i := range 2 * atOnce {
				w.add(fmt.Sprintf("more-%d", i), driver)
			}
			w.start(t)
			w.wantLeft(t, settle+fenceTime+time.Second)
		})
	}
}

// TestFencedAgain has a node that comes back after it was shut out, stages its volume anew, and is lost once more.
func TestFencedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		l := New(Options{Driver: driver, Kubernetes: w, Silent: w.silent, Fence: w.fence}).lost("one")
		look := func() {
			t.Helper()
			if err := l.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(settle)
		}
		for range 3 { // the second concludes, the third has nothing to add
			look()
		}
		if len(w.fenced) != 1 {
			t.Errorf("shut out of %v, want of the volume once", w.fenced)
		}
		w.alive["main:kube/pv-web-0-"+driver] = true
		look()
		clear(w.alive)
		look()
		look()
		if len(w.fenced) != 2 {
			t.Errorf("lost once more: shut out of %v, want of the volume twice", w.fenced)
		}
	})
}

// TestSeconds holds how long it takes: a node that is silent moves after two seconds, although each look takes a while, and not before,
// and the taint is there for no longer than it is needed.
func TestSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.node.Ready = true
		w.takes = 300 * time.Millisecond
		w.start(t)
		w.wantLeft(t, time.Hour, "web-0")
		w.become(func(node *kubernetes.Node) { node.Ready = false })
		w.wantLeft(t, settle-100*time.Millisecond, "web-0")
		// The control plane of this world looks every 100 ms.
		w.wantLeft(t, 200*time.Millisecond+2*w.takes)
		if w.tainted != 1 || len(w.attached) != 0 || !slices.Equal(w.events, []string{"web-0 NodeLost"}) {
			t.Errorf("tainted %d times, attached %v, events %v; want once, nothing, and one", w.tainted, w.attached, w.events)
		}
		w.left(t, 2*time.Second)
		if len(w.node.Taints) > 0 {
			t.Errorf("the node has %v, want it without", w.node.Taints)
		}
	})
}

// TestSlowNode has a node that is not ready for 3 s, and for a minute, and whose clients live.
func TestSlowNode(t *testing.T) {
	for _, slow := range []time.Duration{3 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.alive["main:kube/pv-web-0-"+driver] = true
			w.start(t)
			w.left(t, slow)
			w.become(func(node *kubernetes.Node) { node.Ready = true })
			w.wantLeft(t, time.Minute, "web-0")
			if w.tainted > 0 {
				t.Errorf("tainted %d times, want the node left alone", w.tainted)
			}
		})
	}
}

// TestMomentOfSilence has clients that are not heard of for a moment, again and again, as when an OSD is restarted.
func TestMomentOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.start(t)
		for range 20 {
			w.left(t, settle/2)
			w.mu.Lock()
			w.alive["main:kube/pv-web-0-"+driver] = true
			w.mu.Unlock()
			w.left(t, longest)
			w.mu.Lock()
			clear(w.alive)
			w.mu.Unlock()
		}
		if w.tainted > 0 {
			t.Errorf("tainted %d times, want the node left alone", w.tainted)
		}
	})
}

// TestLostLater has a node that lives for long after it stopped to be ready.
func TestLostLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.alive["main:kube/pv-web-0-"+driver] = true
		w.start(t)
		w.wantLeft(t, time.Hour, "web-0")
		w.mu.Lock()
		clear(w.alive)
		w.mu.Unlock()
		w.wantLeft(t, longest+settle+2*shortest)
	})
}

// TestReturn has a node that comes back before its volumes are detached, and one that another process has given up.
func TestReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		theirs := kubernetes.Taint{Key: kubernetes.OutOfService, Value: "nodeshutdown", Effect: "NoExecute"}
		w.node.Ready, w.node.Taints = true, []kubernetes.Taint{theirs, ourTaint()}
		w.start(t)
		w.left(t, 2*time.Second)
		if !slices.Equal(w.node.Taints, []kubernetes.Taint{theirs}) {
			t.Errorf("the node has %v, want %v", w.node.Taints, theirs)
		}
		w.wantLeft(t, time.Second, "web-0")

		// And it can be lost again.
		w.become(func(node *kubernetes.Node) { node.Ready = false })
		w.wantLeft(t, 5*time.Second)
	})
}
