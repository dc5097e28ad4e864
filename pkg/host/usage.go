package host

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// Usage measures the volume at its staging or a target path; fault.NotFound when it is not there.
//
// A filesystem is asked now. Of a raw block volume the kernel knows the size only; Used is
// then what is allocated in its image, as the cluster told it a while ago (see
// usages), and stays 0, as Available does, while that is not known.
func (h *Host) Usage(ctx context.Context, handle volid.Image, path string) (filesystem.Usage, error) {
	at, err := h.seenAt(ctx, handle, path)
	if err != nil {
		return filesystem.Usage{}, fmt.Errorf("measure: %w", err)
	}
	if at.device.Dead != "" {
		return filesystem.Usage{}, fmt.Errorf("measure volume %s: device %s is dead (%s): %w",
			handle, at.device.Path, at.device.Dead, fault.Unavailable)
	}
	usage, err := h.files.Usage(ctx, at.point.Path)
	if err != nil {
		return filesystem.Usage{}, fmt.Errorf("measure volume %s: %w", handle, err)
	}
	if usage.Block {
		h.addUsed(ctx, &usage, at.device.Target)
	}
	return usage, nil
}

// addUsed tells what is allocated in the image of a raw block volume, if it is known. The last
// data object can reach beyond the image's end, and the image can have grown since.
func (h *Host) addUsed(ctx context.Context, usage *filesystem.Usage, image mapper.Target) {
	used, known := h.used.of(ctx, image, h.allocated)
	if !known {
		return
	}
	usage.Used = min(used, usage.Total)
	usage.Available = usage.Total - usage.Used
}

// allocated asks the cluster how many bytes of an image are allocated, in whole data
// objects, its parent's included. 14 operations, whatever the size. Without the feature fast-diff
// each data object would have to be asked for, and the answer is fault.Unsupported.
func (h *Host) allocated(ctx context.Context, of mapper.Target) (int64, error) {
	// A request for usage brings no secrets: the cluster's own keyring serves.
	pool, err := h.clusters.Pool(ctx, of.Image.Pool, params.Credentials{})
	if err != nil {
		return 0, err
	}
	if pool.Where().PoolID != of.PoolID {
		return 0, fmt.Errorf("pool %s is another one than when the image was mapped: %w", of.Image.Pool, fault.NotFound)
	}
	header, err := pool.Header(ctx, of.ImageID)
	if err != nil {
		return 0, err
	}
	if !header.Layout.Features.Has(rbd.FastDiff) {
		return 0, fmt.Errorf("image %s lacks the feature fast-diff: %w", of.Image, fault.Unsupported)
	}
	beginningToNow := rbd.Between{}
	extents, err := pool.Changed(ctx, of.ImageID, beginningToNow, rbd.Extent{Bytes: header.Layout.Bytes})
	return existing(extents), err
}

// existing returns how many bytes of what differs from the beginning are there. A piece of a clone that was
// discarded differs too.
func existing(extents []rbd.Extent) (bytes int64) {
	for _, one := range extents {
		if one.Exists {
			bytes += one.Bytes
		}
	}
	return bytes
}

// usages remember how much of the mapped images is allocated. CSI has no place to tell how old a
// figure is (the message of VolumeCondition is about health, and becomes an
// event), so its age is bounded instead: a figure is usually younger than
// usageAge and a minute, and never told when it is older than usageOldest.
type usages struct {
	now  func() time.Time
	wait time.Duration // how long a caller waits for an image's first figure

	atOnce chan struct{} // holds a value for each measurement under way
	mu     sync.Mutex
	images map[life]*figure
}

const (
	// usageAge is how old a figure becomes before it is measured again. The kubelet asks each minute.
	usageAge = 5 * time.Minute
	// usageOldest is how old a figure is told when no newer one can be had.
	usageOldest = time.Hour
	// usageWait keeps a call short: the kubelet measures its volumes one after the other.
	usageWait = time.Second
	// usagePause is how many times as long as a measurement took no other follows. The object map
	// of an image can be invalid, and then librbd asks for each data object after all.
	usagePause = 20
	// usagesAtOnce is how many images are measured at the same time.
	usagesAtOnce = 4
	// usageTime bounds how long a measurement is waited for.
	usageTime = 5 * time.Minute
)

// A life is an image, whatever its name is.
type life struct {
	fsid    string
	poolID  int64
	imageID string
}

// A figure is what is known of one image.
type figure struct {
	bytes    int64
	measured time.Time     // when that was asked; zero: never
	next     time.Time     // when to measure again
	asked    time.Time     // when somebody wanted to know it last
	running  chan struct{} // closed when the measurement under way has ended; nil: none is
}

func newUsages() *usages {
	return &usages{now: time.Now, wait: usageWait, atOnce: make(chan struct{}, usagesAtOnce), images: map[life]*figure{}}
}

// of returns how many bytes of an image are allocated, if that is known. It begins a measurement when
// the figure is old or there is none, at most one for an image at a time, and waits for
// it only when there is none, and not long.
func (u *usages) of(ctx context.Context, image mapper.Target, measure func(context.Context, mapper.Target) (int64, error)) (int64, bool) {
	known, running := u.begin(ctx, image, measure)
	if _, told := u.told(known); !told && running != nil {
		enough := time.NewTimer(u.wait)
		defer enough.Stop()
		select {
		case <-running:
		case <-enough.C:
		case <-ctx.Done():
		}
	}
	return u.told(known)
}

// told returns the figure if it is there and not too old.
func (u *usages) told(f *figure) (int64, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return f.bytes, !f.measured.IsZero() && u.now().Sub(f.measured) <= usageOldest
}

// begin returns an image's figure and the measurement under way, which it begins when it is time to.
func (u *usages) begin(ctx context.Context, image mapper.Target, measure func(context.Context, mapper.Target) (int64, error)) (*figure, <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.now()
	u.forget(now.Add(-usageOldest))
	key := life{image.FSID, image.PoolID, image.ImageID}
	known := u.images[key]
	if known == nil {
		known = &figure{}
		u.images[key] = known
	}
	known.asked = now
	if known.running == nil && !now.Before(known.next) {
		known.running = make(chan struct{})
		// It serves later callers too, so it does not end with this one.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), usageTime)
		go func() {
			defer cancel()
			u.measure(ctx, image, known, measure)
		}()
	}
	return known, known.running
}

// forget drops images that nobody has asked about since then: they are not mapped here any more.
func (u *usages) forget(since time.Time) {
	maps.DeleteFunc(u.images, func(_ life, f *figure) bool { return f.running == nil && f.asked.Before(since) })
}

// measure measures an image when its turn comes. After a failure the older figure stays.
func (u *usages) measure(ctx context.Context, image mapper.Target, into *figure, ask func(context.Context, mapper.Target) (int64, error)) {
	u.atOnce <- struct{}{}
	defer func() { <-u.atOnce }()
	begun := u.now()
	bytes, err := ask(ctx, image)
	if err != nil {
		klog.FromContext(ctx).V(4).Info("Used bytes not measured", "volume", image.Image, "reason", err.Error())
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil {
		into.bytes, into.measured = bytes, begun
	}
	into.next = begun.Add(max(usageAge, usagePause*u.now().Sub(begun)))
	close(into.running)
	into.running = nil
}
