// Package heal notices on a node that a volume went bad under running pods, reports it, and where policy
// allows has the pods made anew.
//
// A pod keeps the mount that it has. When the client behind it was shut out, or its filesystem went read-only after an
// error, nothing that the driver does below that mount helps: the pod has to end, and the next one gets a
// device and a checked filesystem (see package host). Kubernetes does not notice by itself, as long as the
// pod's own probes do not touch the volume.
package heal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/host"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
)

// DefaultEvery is how often volumes are looked at.
const DefaultEvery = 30 * time.Second

// lookTime bounds one look, the requests to Kubernetes included.
const lookTime = time.Minute

// Pods is what is asked of Kubernetes; a [kubernetes.Client].
type Pods interface {
	PodsOn(ctx context.Context, node string) ([]kubernetes.Pod, error)
	DeletePod(ctx context.Context, pod kubernetes.Pod) error
	Report(ctx context.Context, component, node string, event kubernetes.Event) error
}

// A Healer looks after the volumes of one node.
type Healer struct {
	node    string
	look    func(context.Context) ([]host.Ailing, error)
	options Options
	// told are the ailments that the log and the pods' events have already.
	told map[complaint]bool
}

// Options of a Healer.
type Options struct {
	// Driver is whom events come from.
	Driver string
	// Pods is where pods are asked for and reported to; nil: they are left alone, and the log alone tells.
	Pods Pods
	// Restart deletes the pods that use a volume that went bad, as `kubectl delete pod` does: those that a
	// controller makes anew, and no others.
	Restart bool
	// Every is how often; DefaultEvery.
	Every time.Duration
	// Seen is told of every look how many volumes have each ailment. It must not block.
	Seen func(volumes map[string]int)
}

// A complaint is an ailment of a volume, as one pod has it; pod is empty in the log.
type complaint struct{ volume, reason, pod string }

// New returns a healer of a node, as Kubernetes calls it. look says what is wrong there.
func New(node string, look func(context.Context) ([]host.Ailing, error), options Options) *Healer {
	if options.Every <= 0 {
		options.Every = DefaultEvery
	}
	if options.Seen == nil {
		options.Seen = func(map[string]int) {}
	}
	return &Healer{node: node, look: look, options: options, told: map[complaint]bool{}}
}

// Run looks at the volumes until ctx ends.
func (h *Healer) Run(ctx context.Context) {
	tick := time.NewTicker(h.options.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := h.Look(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Look after volumes")
		}
	}
}

// Look looks at all volumes once, and reports and heals what is wrong. Not to be called at once with itself. What
// could not be done is done with the next look.
func (h *Healer) Look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	ailing, err := h.look(ctx)
	if err == nil || len(ailing) > 0 {
		h.options.Seen(count(ailing))
	}
	if len(ailing) == 0 {
		if err == nil {
			clear(h.told)
		}
		return err
	}
	now := map[complaint]bool{}
	for _, one := range ailing {
		h.log(ctx, one, now)
	}
	err = errors.Join(err, h.tellPods(ctx, ailing, now))
	if err != nil {
		maps.Copy(now, h.told) // not everything was looked at
	}
	h.told = now // what is over is forgotten, and told again should it come again
	return err
}

func count(ailing []host.Ailing) map[string]int {
	counts := map[string]int{host.DeviceDead: 0, host.FilesystemReadOnly: 0}
	for _, one := range ailing {
		counts[one.Reason]++
	}
	return counts
}

func (h *Healer) log(ctx context.Context, one host.Ailing, now map[complaint]bool) {
	what := complaint{volume: one.Volume.String(), reason: one.Reason}
	now[what] = true
	if !h.told[what] {
		klog.FromContext(ctx).Info("A volume went bad", "volume", what.volume, "reason", one.Reason, "what", one.Message, "paths", one.Paths)
	}
}

// tellPods reports to the pods what is wrong with their volumes, and deletes those that may be.
func (h *Healer) tellPods(ctx context.Context, ailing []host.Ailing, now map[complaint]bool) error {
	if h.options.Pods == nil {
		return nil
	}
	pods, err := h.options.Pods.PodsOn(ctx, h.node)
	if err != nil {
		return fmt.Errorf("find the pods whose volumes went bad: %w", err)
	}
	var failed []error
	for _, one := range ailing {
		for _, pod := range pods {
			if !pod.Ending && uses(pod, one) {
				failed = append(failed, h.tell(ctx, pod, one, now))
			}
		}
	}
	return errors.Join(failed...)
}

// uses reports whether a pod uses a volume: kubelet's directories for pods have their UIDs in their paths
// (pods/UID/volumes/kubernetes.io~csi/NAME/mount, plugins/kubernetes.io/csi/volumeDevices/publish/NAME/UID).
func uses(pod kubernetes.Pod, one host.Ailing) bool {
	return slices.ContainsFunc(one.Paths, func(path string) bool {
		return slices.Contains(strings.Split(path, "/"), pod.UID)
	})
}

// tell reports an ailment to a pod, once, and then deletes the pod if that heals it.
func (h *Healer) tell(ctx context.Context, pod kubernetes.Pod, one host.Ailing, now map[complaint]bool) error {
	heal := h.options.Restart && pod.Owned
	what := complaint{one.Volume.String(), one.Reason, pod.UID}
	if !h.told[what] {
		event := kubernetes.Event{Pod: pod, Warning: true, Reason: one.Reason, Message: h.message(one, pod, heal)}
		if err := h.options.Pods.Report(ctx, h.options.Driver, h.node, event); err != nil {
			return err
		}
	}
	now[what] = true
	if !heal {
		return nil
	}
	if err := h.options.Pods.DeletePod(ctx, pod); err != nil {
		return fmt.Errorf("restart the pod for its volume %s: %w", one.Volume, err)
	}
	klog.FromContext(ctx).Info("Deleted a pod whose volume went bad", "pod", pod.String(), "volume", what.volume, "reason", one.Reason)
	return nil
}

func (h *Healer) message(one host.Ailing, pod kubernetes.Pod, heal bool) string {
	text := fmt.Sprintf("volume %s went bad: %s; ", one.Volume, one.Message)
	switch {
	case heal:
		return text + "the pod is deleted, the next one gets the volume anew"
	case h.options.Restart:
		return text + "delete the pod, and make another that gets the volume anew: no controller does for this one"
	}
	return text + fmt.Sprintf("`kubectl delete pod --namespace %s %s` lets the next one get the volume anew", pod.Namespace, pod.Name)
}
