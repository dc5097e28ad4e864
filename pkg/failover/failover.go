// Package failover lets pods that have volumes of the driver on a lost node start elsewhere, within seconds of the
// node's loss and not when Kubernetes gives it up.
//
// Kubernetes alone waits: five minutes until it deletes the pods of a node that does not answer, for ever until
// they have ended there, and six minutes more until their volumes are detached, because it cannot
// know whether the node lives. The driver can: a node that has volumes mapped keeps telling Ceph so, and a node
// that does not is fenced before its volumes are attached elsewhere (package volume, Detach). So once a node is not
// ready and silent too, this package does what an administrator would (Non-Graceful Node Shutdown):
//
//	Taint      out-of-service, which has the volumes detached as soon as no pod wants them
//	Fence      shuts the node out of them; detach does not wait for that any more, so that they are attached
//	           elsewhere before the next node begins to wait for them, at ever longer intervals
//	RemovePod  the pods that have our volumes there, and that a controller makes anew
//	Untaint    when our volumes are detached, or the node is back
//
// What stands in Kubernetes decides each step, so another process goes on where one stopped, and several
// may do the same at once.
//
// The taint has the effect NoSchedule, and so it evicts nobody: the control plane looks for its key alone. While it
// is there, the control plane also removes pods of the node that are ending anyway, and detaches what they had. A node where such
// a pod has volumes of another driver is therefore left to people.
package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Kubernetes is what is asked of Kubernetes; a [kubernetes.Client].
type Kubernetes interface {
	FollowNodes(ctx context.Context, told func(kubernetes.Node)) error
	Node(ctx context.Context, name string) (kubernetes.Node, error)
	Attachments(ctx context.Context, node string) ([]kubernetes.Attachment, error)
	Volume(ctx context.Context, name string) (kubernetes.Volume, error)
	PodsOn(ctx context.Context, node string) ([]kubernetes.Pod, error)
	Taint(ctx context.Context, node kubernetes.Node, taint kubernetes.Taint) error
	Untaint(ctx context.Context, node kubernetes.Node, taint kubernetes.Taint) error
	RemovePod(ctx context.Context, pod kubernetes.Pod) error
	Report(ctx context.Context, component, node string, event kubernetes.Event) error
}

// Options of a Failover.
type Options struct {
	Driver     string
	Kubernetes Kubernetes
	// Silent reports that a node shows no sign of life at a volume, or returns fault.Unsupported where the volume cannot
	// tell: [volume.Store.Silent].
	Silent func(ctx context.Context, handle volid.Image, node string) (bool, error)
	// Fence shuts a node that is given up out of a volume: [volume.Store.FenceNode].
	Fence func(ctx context.Context, handle volid.Image, node string) error
	// Moved is told of each pod that was removed from a lost node. It must not block.
	Moved func(pod kubernetes.Pod)
}

// A Failover watches over the nodes of a cluster.
type Failover struct {
	options Options

	mu      sync.Mutex
	trouble map[string]bool // by node: whether there is something to do about it still
	work    sync.WaitGroup
}

// New returns a Failover; [Failover.Run] starts it.
func New(options Options) *Failover {
	if options.Moved == nil {
		options.Moved = func(kubernetes.Pod) {}
	}
	return &Failover{options: options, trouble: map[string]bool{}}
}

const (
	// settle is how long a node has to be silent, and glance the time between two looks meanwhile. An OSD that was
	// restarted has its watchers on disk and waits for them (PrimaryLogPG::populate_obc_watchers); a client that
	// watches anew, because it was not heard of for long, is gone for as long as that takes.
	settle, glance = time.Second, time.Second / 2
	// shortest and longest are the times between two looks at a node that is not ready: ever longer, a
	// tenth of the time that it has not been ready.
	shortest, longest = time.Second, 30 * time.Second
	// lookTime bounds one look.
	lookTime = time.Minute
	// again is how long to wait before nodes are followed anew after an error.
	again = time.Second
	// fenceTime bounds how long pods wait for the fences, and atOnce how many are made at the same time.
	fenceTime, atOnce = 5 * time.Second, 16
)

// ourTaint is what is put on a lost node. By its value it is told from one that an administrator has put there.
func ourTaint() kubernetes.Taint {
	return kubernetes.Taint{Key: kubernetes.OutOfService, Value: "rbd-csi-failover", Effect: "NoSchedule"}
}

func isOurs(taint kubernetes.Taint) bool {
	return taint.Key == ourTaint().Key && taint.Value == ourTaint().Value
}

// Run watches over the nodes until the context ends.
func (f *Failover) Run(ctx context.Context) {
	defer f.work.Wait()
	for {
		err := f.options.Kubernetes.FollowNodes(ctx, func(node kubernetes.Node) { f.note(ctx, node) })
		if ctx.Err() != nil {
			return
		}
		if !fault.Is(err, fault.Superseded) { // which is how a watch ends now and then
			klog.FromContext(ctx).Error(err, "Watch over nodes")
		}
		if !pause(ctx, again) {
			return
		}
	}
}

// pause waits, and reports whether the context goes on.
func pause(ctx context.Context, how time.Duration) bool {
	timer := time.NewTimer(how)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// note takes down how a node is, and begins to look after one that is lost.
func (f *Failover) note(ctx context.Context, node kubernetes.Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	trouble := !node.Gone && (!node.Ready || hasOurs(node))
	_, lookedAfter := f.trouble[node.Name]
	switch {
	case lookedAfter:
		f.trouble[node.Name] = trouble
	case trouble:
		f.trouble[node.Name] = true
		f.work.Go(func() { f.lookAfter(ctx, node.Name) })
	}
}

// over reports whether nothing is to be done about a node any more, and if so ends looking after it.
func (f *Failover) over(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trouble[node] {
		return false
	}
	delete(f.trouble, node)
	return true
}

// lookAfter looks at one node until it is well or gone.
func (f *Failover) lookAfter(ctx context.Context, node string) {
	began := time.Now()
	one := f.lost(node)
	for !f.over(node) {
		if err := one.look(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Look after a node that is not ready", "node", node)
		}
		if !pause(ctx, one.next(time.Since(began))) {
			return
		}
	}
}

// next is how long to wait until the next look at a node that is looked after for so long.
func (l *lostNode) next(after time.Duration) time.Duration {
	if l.silent.IsZero() {
		return min(max(after/10, shortest), longest)
	}
	// What was silent at each of these looks has to have been silent in between. The last of them is when it has been for long enough.
	if rest := settle - time.Since(l.silent); rest > 0 {
		return min(rest, glance)
	}
	return shortest
}

// A lostNode is one that is not ready, or was not.
type lostNode struct {
	*Failover
	name   string
	silent time.Time            // since when; zero: it shows signs of life
	told   map[string]bool      // what the log has already
	fenced map[volid.Image]bool // what it is shut out of already
}

func (f *Failover) lost(node string) *lostNode {
	return &lostNode{Failover: f, name: node, told: map[string]bool{}, fenced: map[volid.Image]bool{}}
}

// look looks at the node once and does what is to be done now.
func (l *lostNode) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	node, err := l.options.Kubernetes.Node(ctx, l.name)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	has, err := l.volumes(ctx)
	if err != nil {
		return err
	}
	if node.Ready || len(has.ours) == 0 {
		l.lives()
		return l.takeBack(ctx, node)
	}
	if silent, err := l.isSilent(ctx, has); err != nil || !silent {
		return err
	}
	return l.giveUp(ctx, node, has)
}

// takeBack undoes what was done to a node: it is ready again, or nothing of ours is attached to it any more.
func (l *lostNode) takeBack(ctx context.Context, node kubernetes.Node) error {
	if !hasOurs(node) {
		return nil
	}
	if err := l.options.Kubernetes.Untaint(ctx, node, ourTaint()); err != nil {
		return fmt.Errorf("take back that the node is out of service: %w", err)
	}
	klog.FromContext(ctx).Info("The node's volumes are detached, or it is back", "node", l.name, "ready", node.Ready)
	return nil
}

// lives notes that the node shows signs of life, or might: what it was shut out of it may have staged anew since.
func (l *lostNode) lives() {
	l.silent = time.Time{}
	clear(l.fenced)
}

// isSilent reports whether the node has shown no sign of life for a while at any of our volumes. A node whose volumes cannot tell is not silent.
func (l *lostNode) isSilent(ctx context.Context, has volumes) (bool, error) {
	tells := false
	for _, one := range has.ours {
		silent, err := l.options.Silent(ctx, one.handle, l.id())
		if fault.Is(err, fault.Unsupported) {
			continue
		}
		if err != nil || !silent {
			l.lives()
			return false, err
		}
		tells = true
	}
	if !tells {
		l.lives()
		l.tellOnce(ctx, "Whether a node lives cannot be told from volumes that it only reads, so its pods stay")
		return false, nil
	}
	if l.silent.IsZero() {
		l.silent = time.Now()
	}
	return time.Since(l.silent) >= settle, nil
}

// giveUp has the volumes detached and the pods made elsewhere.
func (l *lostNode) giveUp(ctx context.Context, node kubernetes.Node, has volumes) error {
	pods, err := l.options.Kubernetes.PodsOn(ctx, l.name)
	if err != nil {
		return fmt.Errorf("find the pods that have volumes on the node: %w", err)
	}
	plan := has.plan(pods)
	l.tellStaying(ctx, plan)
	freed := plan.freed(has)
	if len(freed) == 0 {
		return nil
	}
	if err := l.options.Kubernetes.Taint(ctx, node, ourTaint()); err != nil {
		return fmt.Errorf("take the node out of service: %w", err)
	}
	l.fence(ctx, freed)
	var failed []error
	for _, pod := range plan.moving {
		failed = append(failed, l.move(ctx, pod))
	}
	return errors.Join(failed...)
}

// fence shuts the node out of the volumes. What fails is left to detach, which lets go of no volume before that is done.
func (l *lostNode) fence(ctx context.Context, freed []volid.Image) {
	ctx, cancel := context.WithTimeout(ctx, fenceTime)
	defer cancel()
	freed = slices.DeleteFunc(freed, func(handle volid.Image) bool { return l.fenced[handle] })
	errs := make([]error, len(freed))
	places := make(chan struct{}, atOnce)
	var group sync.WaitGroup
	for i, handle := range freed {
		places <- struct{}{}
		group.Go(func() {
			errs[i] = l.options.Fence(ctx, handle, l.id())
			<-places
		})
	}
	group.Wait()
	for i, handle := range freed {
		l.fenced[handle] = errs[i] == nil
		if errs[i] != nil {
			klog.FromContext(ctx).Error(errs[i], "Shut a lost node out before its pods move", "volume", handle, "node", l.name)
		}
	}
}

// id is the node's name in Ceph.
func (l *lostNode) id() string { return volid.Node{Name: l.name}.String() }

// move removes a pod, of which its controller makes another, and tells why.
func (l *lostNode) move(ctx context.Context, pod kubernetes.Pod) error {
	if err := l.options.Kubernetes.RemovePod(ctx, pod); err != nil {
		return fmt.Errorf("move pod %s off node %s: %w", pod, l.name, err)
	}
	l.options.Moved(pod)
	klog.FromContext(ctx).Info("Removed a pod from a lost node", "pod", pod.String(), "node", l.name)
	text := fmt.Sprintf("node %s is not ready, and has not been heard of by Ceph either; the pod is removed, and the next one gets its volumes elsewhere", l.name)
	event := kubernetes.Event{Pod: pod, Warning: true, Reason: "NodeLost", Message: text}
	// An event is for people; the pod moves without one as well.
	if err := l.options.Kubernetes.Report(ctx, l.options.Driver, l.name, event); err != nil {
		klog.FromContext(ctx).Error(err, "Tell of a pod that moves", "pod", pod.String())
	}
	return nil
}

// tellOnce logs something about the node once.
func (l *lostNode) tellOnce(ctx context.Context, what string) {
	if !l.told[what] {
		l.told[what] = true
		klog.FromContext(ctx).Info(what, "node", l.name)
	}
}

// tellStaying says once of each pod that does not move why not.
func (l *lostNode) tellStaying(ctx context.Context, plan plan) {
	for _, one := range plan.staying {
		if key := one.pod.UID + one.why; !l.told[key] {
			l.told[key] = true
			klog.FromContext(ctx).Info("A pod stays on a lost node", "pod", one.pod.String(), "node", l.name, "why", one.why)
		}
	}
}

func hasOurs(node kubernetes.Node) bool {
	return slices.ContainsFunc(node.Taints, isOurs)
}
