// Package announce tells pods, by an event, how their volumes were mapped: `kubectl describe pod` shows which mapper
// it was, and why.
//
// Two calls of the kubelet are put together here: only the one that stages a volume maps it, and only the one that publishes
// the volume names a pod. Neither of them waits for Kubernetes.
package announce

import (
	"context"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/host"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Reason is that of the events.
const Reason = "VolumeMapped"

// mostWaiting is how many events may wait for Kubernetes. Those beyond are lost: the log has what they say.
const mostWaiting = 100

// reportTime bounds how long Kubernetes may take for one event.
const reportTime = 10 * time.Second

// Events is what is asked of Kubernetes; a [kubernetes.Client].
type Events interface {
	Report(ctx context.Context, component, node string, event kubernetes.Event) error
}

// An Announcer tells the pods of one node. Its methods may be called at once, Run once only. A nil Announcer tells nobody.
type Announcer struct {
	driver, node string
	events       Events
	waiting      chan kubernetes.Event

	mu sync.Mutex
	// mapped are the volumes that no pod was told of yet.
	mapped map[volid.Image]host.Mapping
}

// New returns an announcer that tells for a driver on a node, as Kubernetes calls it.
func New(driver, node string, events Events) *Announcer {
	return &Announcer{
		driver: driver, node: node, events: events,
		waiting: make(chan kubernetes.Event, mostWaiting), mapped: map[volid.Image]host.Mapping{},
	}
}

// Mapped notes what the first pod that gets this volume is to be told.
func (a *Announcer) Mapped(one host.Mapping) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mapped[one.Volume] = one
}

// Published has the pod told how the volume was mapped that it has been given, unless another was.
func (a *Announcer) Published(volume volid.Image, to kubernetes.Pod) {
	one, found := a.take(volume)
	if !found {
		return
	}
	event := kubernetes.Event{Pod: to, Reason: Reason, Message: message(one)}
	select {
	case a.waiting <- event:
	default:
		klog.Background().Info("An event is lost, too many wait for Kubernetes", "pod", to.String(), "event", event.Message)
	}
}

// Unstaged forgets a volume: no pod will be given it as it was mapped.
func (a *Announcer) Unstaged(volume volid.Image) { a.take(volume) }

func (a *Announcer) take(volume volid.Image) (host.Mapping, bool) {
	if a == nil {
		return host.Mapping{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	one, found := a.mapped[volume]
	delete(a.mapped, volume)
	return one, found
}

func message(one host.Mapping) string {
	text := "mapped image " + one.Volume.String() + " with " + one.Mapper + ": " + one.Reason
	if len(one.PassedOver) > 0 {
		text += "; passed over " + strings.Join(one.PassedOver, "; ")
	}
	return text
}

// Run sends events until ctx ends. One that Kubernetes does not take is logged, and lost.
func (a *Announcer) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-a.waiting:
			a.report(ctx, event)
		}
	}
}

func (a *Announcer) report(ctx context.Context, event kubernetes.Event) {
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	if err := a.events.Report(ctx, a.driver, a.node, event); err != nil {
		klog.FromContext(ctx).Error(err, "Tell a pod how its volume was mapped", "pod", event.Pod.String(), "event", event.Message)
	}
}
