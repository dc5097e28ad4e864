package announce_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/rbd-csi/rbd-csi/pkg/announce"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/host"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// events is a Kubernetes that takes events.
type events struct {
	taken []string
	fails bool
	busy  chan struct{} // if there is one, an event is taken when it is closed
}

func (e *events) Report(ctx context.Context, component, node string, event kubernetes.Event) error {
	if e.busy != nil {
		select {
		case <-e.busy:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", fault.Unavailable, ctx.Err())
		}
	}
	if e.fails {
		return fault.Denied
	}
	e.taken = append(e.taken, fmt.Sprintf("%s on %s to %s: %s: %s, warning %t", component, node, event.Pod, event.Reason, event.Message, event.Warning))
	return nil
}

func image(name string) volid.Image {
	return volid.Image{Pool: volid.Pool{Cluster: "main", Pool: "kube"}, Name: name}
}

func pod(name string) kubernetes.Pod {
	return kubernetes.Pod{Namespace: "shop", Name: name, UID: "uid-of-" + name}
}

// begin runs an announcer in a bubble of time until the function that it returns is called.
func begin(t *testing.T, to *events) (a *announce.Announcer, end func()) {
	t.Helper()
	a = announce.New("rbd-csi.io", "one", to)
	ctx, cancel := context.WithCancel(t.Context())
	go a.Run(ctx)
	return a, func() {
		cancel()
		synctest.Wait()
	}
}

// TestFirstPodIsTold holds that one event tells of one mapping, whoever else gets the volume.
func TestFirstPodIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var to events
		a, end := begin(t, &to)
		defer end()

		a.Published(image("pvc-1"), pod("web-0"))
		a.Mapped(host.Mapping{Volume: image("pvc-1"), Mapper: "krbd", Reason: "the volume names it"})
		a.Published(image("pvc-2"), pod("web-2"))
		a.Published(image("pvc-1"), pod("web-0"))
		a.Published(image("pvc-1"), pod("web-0"))
		a.Published(image("pvc-1"), pod("web-1"))
		synctest.Wait()
		want := "rbd-csi.io on one to shop/web-0: VolumeMapped: mapped image " + image("pvc-1").String() + " with krbd: the volume names it, warning false"
		if got := strings.Join(to.taken, "\n"); got != want {
			t.Errorf("events: got\n%s\nwant\n%s", got, want)
		}

		a.Mapped(host.Mapping{Volume: image("pvc-1"), Mapper: "fuse", Reason: "it is the first that works here", PassedOver: []string{"mapper krbd: no module", "mapper nbd: none"}})
		a.Published(image("pvc-1"), pod("web-1"))
		synctest.Wait()
		if got, want := to.taken[len(to.taken)-1], "with fuse: it is the first that works here; passed over mapper krbd: no module; mapper nbd: none,"; !strings.Contains(got, want) {
			t.Errorf("the event of the next mapping is %q, want %q in it", got, want)
		}
	})
}

// TestUnstaged holds that what was mapped and never given to a pod is forgotten.
func TestUnstaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var to events
		a, end := begin(t, &to)
		defer end()
		a.Mapped(host.Mapping{Volume: image("pvc-1"), Mapper: "krbd"})
		a.Unstaged(image("pvc-1"))
		a.Published(image("pvc-1"), pod("web-0"))
		synctest.Wait()
		if len(to.taken) > 0 {
			t.Errorf("events: got %q, want none", to.taken)
		}
	})
}

// TestNobodyWaits has Kubernetes hang and then answer: pods that come meanwhile are told afterwards, as many as there is room for.
func TestNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := events{busy: make(chan struct{})}
		a, end := begin(t, &to)
		defer end()
		const pods = 1000
		for i := range pods {
			name := fmt.Sprint("pvc-", i)
			a.Mapped(host.Mapping{Volume: image(name), Mapper: "krbd"})
			a.Published(image(name), pod(name))
		}
		close(to.busy)
		synctest.Wait()
		if n := len(to.taken); n < 100 || n == pods {
			t.Errorf("%d of %d events came, want 100 or one more, which was being sent", n, pods)
		}
	})
}

// TestRefused has Kubernetes refuse an event and then take the next.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := events{fails: true}
		a, end := begin(t, &to)
		defer end()
		for _, name := range []string{"pvc-1", "pvc-2"} {
			a.Mapped(host.Mapping{Volume: image(name), Mapper: "krbd"})
			a.Published(image(name), pod(name))
			synctest.Wait()
			to.fails = false
		}
		if len(to.taken) != 1 || !strings.Contains(to.taken[0], "pvc-2") {
			t.Errorf("events: got %q, want that of pvc-2", to.taken)
		}
	})
}

// TestNobody holds that a node outside of Kubernetes needs no announcer.
func TestNobody(*testing.T) {
	var a *announce.Announcer
	a.Mapped(host.Mapping{Volume: image("pvc-1")})
	a.Published(image("pvc-1"), pod("web-0"))
	a.Unstaged(image("pvc-1"))
}
