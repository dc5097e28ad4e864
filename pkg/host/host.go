// Package host stages and publishes volumes on one node: it maps, formats, mounts,
// grows and takes down again. It is the policy of the node as package volume is that
// of the cluster.
//
// The order of a stage is what keeps data safe. The image is mapped, then the
// mapping's client is recorded in the image by compare-and-set, and only then is
// anything written: a node that was frozen on the way, and whose right was taken away
// meanwhile, fails at the record and unmaps.
//
//	Find     image and marks
//	Map      the device
//	Claim    client and boot ID, while the attachment's generation stands
//	format   at most once in the image's life, see ensureFormatted
//	Check    what mounting would not repair
//	Mount    at the staging path
//	Grow     to the size of the device
//
// Taking down goes the other way, and ends with Release.
package host

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/step"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Host stages and publishes volumes on one node. The kernel is its record, so
// it may be killed at any point and started anew. All methods may be called at once,
// for one volume one after the other (package server sees to that).
type Host struct {
	node     string
	boot     string
	clusters rbd.Clusters
	access   func(cluster string, as params.Credentials) (cluster.Access, error)
	mappers  []mapper.Mapper
	files    filesystem.Host
	mapped   func(Mapping)
	used     *usages
}

// Options are the parts of a Host.
type Options struct {
	Node     string // the node's ID, as controllers know it
	Boot     string // the kernel's boot ID
	Clusters rbd.Clusters
	Access   func(cluster string, as params.Credentials) (cluster.Access, error)
	Mappers  []mapper.Mapper // in the order in which "auto" tries them
	Files    filesystem.Host
	// Mapped is told of every volume that a stage has mapped, but not of one that it found mapped. It must not block. nil: nobody is told.
	Mapped func(Mapping)
}

// New returns a host.
func New(o Options) *Host {
	if o.Mapped == nil {
		o.Mapped = func(Mapping) {}
	}
	return &Host{
		node: o.Node, boot: o.Boot, clusters: o.Clusters, access: o.Access, mappers: o.Mappers, files: o.Files,
		mapped: o.Mapped, used: newUsages(),
	}
}

// A StageSpec asks for a volume on this node.
type StageSpec struct {
	Handle   volid.Image
	Path     string // the staging target path
	Block    bool   // a raw block volume: no filesystem
	ReadOnly bool
	// Generation and ImageID are the attachment's, from the publish context.
	Generation uint64
	ImageID    string
	Mapper     params.Mapper // its name, or auto
	MapOptions []string
	Format     FormatSpec
	MountFlags []string
}

// blockFile is the name under the staging path at which a raw block volume's
// device is bound. It lets NodePublish find the device without asking Ceph.
const blockFile = "device"

// stagedAt returns the path at which the volume can be seen after Stage.
func stagedAt(path string, block bool) string {
	if block {
		return filepath.Join(path, blockFile)
	}
	return path
}

// Stage makes sure that the volume is mapped, recorded as this node's, formatted,
// and mounted at the staging path (or bound below it, if it is a block volume).
//
// It returns fault.InUse when the volume is not attached to this node with that
// generation, and the kinds that ensureFormatted names. After a failure nothing is left
// mapped, unless taking it down failed too; then Unstage does it.
//
// A volume that is only read is written once if it has a journal to be replayed, see replay. fault.Superseded means that another
// node is about to do that, or that it has to wait for readers.
func (h *Host) Stage(ctx context.Context, spec StageSpec, as params.Credentials) error {
	err := h.stage(ctx, spec, as)
	if !errors.Is(err, filesystem.ErrReplay) {
		return err
	}
	if err := h.replay(ctx, spec, as); err != nil {
		return fmt.Errorf("stage volume %s: replay the journal of its filesystem: %w", spec.Handle, err)
	}
	return h.stage(ctx, spec, as)
}

func (h *Host) stage(ctx context.Context, spec StageSpec, as params.Credentials) error {
	step.Set(ctx, "reading image", spec.Handle.String())
	found, err := image.Find(ctx, h.clusters, spec.Handle, as)
	if err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	if found.ID != spec.ImageID {
		return fmt.Errorf("stage volume %s: image ID %s was attached and %s is there now: %w",
			spec.Handle, spec.ImageID, found.ID, fault.InUse)
	}
	chosen, err := h.choose(ctx, found, spec)
	if err != nil {
		return fmt.Errorf("stage volume %s: %w", spec.Handle, err)
	}
	if left, is := chosen.leftWritable(spec); is {
		if err := h.endReplay(ctx, chosen.Mapper, left, spec); err != nil {
			return fmt.Errorf("stage volume %s: end an interrupted replay of its journal: %w", spec.Handle, err)
		}
		return h.stage(ctx, spec, as) // the record is another now
	}
	device, err := h.mapImage(ctx, chosen, found, spec, as)
	if err != nil {
		return fmt.Errorf("stage volume %s: %w", spec.Handle, err)
	}
	if err := h.show(ctx, found, device, spec); err != nil {
		return h.takeBack(ctx, chosen, device, found, fmt.Errorf("stage: %w", err))
	}
	if len(chosen.mapped) == 0 {
		h.mapped(chosen.of(spec.Handle))
	}
	return nil
}

// mapImage maps the image, after it has cleared away a dead device of it.
func (h *Host) mapImage(ctx context.Context, by choice, found image.Image, spec StageSpec, as params.Credentials) (mapper.Device, error) {
	for _, dead := range by.mapped {
		if dead.Dead == "" {
			continue
		}
		klog.FromContext(ctx).Info("Clearing away a dead device", "volume", found.String(), "device", dead.Path, "reason", dead.Dead)
		if err := h.files.Unmount(ctx, stagedAt(spec.Path, spec.Block)); err != nil {
			return mapper.Device{}, fmt.Errorf("unmount dead device %s: %w", dead.Path, err)
		}
	}
	access, err := h.access(spec.Handle.Cluster, as)
	if err != nil {
		return mapper.Device{}, err
	}
	step.Set(ctx, "mapping image", spec.Handle.String(), "with", by.Name())
	device, err := by.Map(ctx, mapper.Request{Target: targetOf(found), Access: access, ReadOnly: spec.ReadOnly, Options: spec.MapOptions})
	if err != nil {
		return mapper.Device{}, fmt.Errorf("map: %w", err)
	}
	return device, h.alone(ctx, by, device)
}

// targetOf returns what a mapper has to know of the image.
func targetOf(i image.Image) mapper.Target {
	where := i.Where()
	return mapper.Target{Image: i.Handle(), FSID: where.FSID, PoolID: where.PoolID, ImageID: i.ID}
}

// show records the mapping as this node's and makes the volume visible at its
// staging path. Nothing is written to the device before the record stands.
func (h *Host) show(ctx context.Context, found image.Image, device mapper.Device, spec StageSpec) error {
	found, err := found.Claim(ctx, image.Claim{Node: h.node, Generation: spec.Generation, Client: device.Client, Boot: h.boot})
	if err != nil {
		return err
	}
	path := stagedAt(spec.Path, spec.Block)
	if spec.Block {
		return h.files.Bind(ctx, filesystem.Bind{Source: device.Path, Path: path, ReadOnly: spec.ReadOnly})
	}
	if _, mounted, err := h.files.At(ctx, path); err != nil {
		return fmt.Errorf("look what is mounted at %s: %w", path, err)
	} else if !mounted {
		if err := h.prepare(ctx, found, device, spec); err != nil {
			return err
		}
	}
	step.Set(ctx, "mounting", device.Path)
	mount := filesystem.Mount{Device: device.Path, Path: path, Type: spec.Format.Type, ReadOnly: spec.ReadOnly, Options: mountOptions(spec)}
	if err := h.files.Mount(ctx, mount); err != nil {
		return fmt.Errorf("mount volume %s: %w", found, err)
	}
	if spec.ReadOnly {
		return nil
	}
	if err := h.growStaged(ctx, mount); err != nil {
		return fmt.Errorf("grow filesystem of volume %s: %w", found, err)
	}
	return nil
}

// mountOptions are those that were asked for, and what the filesystem needs: a clone of an xfs has the
// UUID of its source, which may be mounted on the same node (nouuid in xfs(5)).
func mountOptions(spec StageSpec) []string {
	if spec.Format.Type != filesystem.XFS || slices.Contains(spec.MountFlags, "nouuid") {
		return spec.MountFlags
	}
	return append(slices.Clone(spec.MountFlags), "nouuid")
}

// growStaged grows the filesystem of a volume that grew while it was not mounted:
// nobody else will come to do it. Where the node cannot grow it while it is
// mounted, it is taken down once more, as long as no pod uses it.
func (h *Host) growStaged(ctx context.Context, mount filesystem.Mount) error {
	step.Set(ctx, "growing filesystem on", mount.Device)
	err := h.files.Grow(ctx, mount.Device, mount.Path, mount.Type)
	if !errors.Is(err, fault.Unsupported) || h.soleUse(ctx, mount.Device, mount.Path) != nil {
		return err
	}
	if err := h.files.Unmount(ctx, mount.Path); err != nil {
		return err
	}
	if err := h.files.Grow(ctx, mount.Device, "", mount.Type); err != nil {
		return err
	}
	return h.files.Mount(ctx, mount)
}

// prepare makes the device ready to be mounted.
func (h *Host) prepare(ctx context.Context, found image.Image, device mapper.Device, spec StageSpec) error {
	step.Set(ctx, "formatting", device.Path)
	format := spec.Format
	format.ReadOnly = spec.ReadOnly
	if err := h.ensureFormatted(ctx, found, device.Path, format); err != nil || spec.ReadOnly {
		return err
	}
	step.Set(ctx, "checking filesystem on", device.Path)
	if err := h.files.Check(ctx, device.Path, spec.Format.Type); err != nil {
		return fmt.Errorf("check filesystem of volume %s: %w", found, err)
	}
	return nil
}

// takeBackTime bounds how long a failed stage works at leaving nothing behind.
const takeBackTime = 30 * time.Second

// takeBack unmaps what a failed stage has mapped, unless the volume is mounted:
// then an earlier stage succeeded. The sidecars do not unstage after every failure.
func (h *Host) takeBack(ctx context.Context, by mapper.Mapper, device mapper.Device, found image.Image, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTime)
	defer cancel()
	uses, err := h.files.Uses(ctx, device.Path)
	if err != nil || len(uses) > 0 {
		return cause
	}
	if err := by.Unmap(ctx, device); err != nil {
		return fmt.Errorf("%w (and %s stays mapped: %w)", cause, device.Path, err)
	}
	if err := image.Release(ctx, h.clusters, found.Handle(), h.node); err != nil {
		return fmt.Errorf("%w (and the node stays recorded: %w)", cause, err)
	}
	return cause
}

// Unstage makes sure that the volume is neither mounted at the staging path nor
// mapped, and that the image's record says so. What was written is on the
// cluster then. It returns fault.InUse while the volume is still published.
func (h *Host) Unstage(ctx context.Context, handle volid.Image, path string) error {
	devices, err := h.mappedAs(ctx, handle)
	if err != nil {
		return fmt.Errorf("unstage volume %s: %w", handle, err)
	}
	staged, err := h.stagedPaths(ctx, path)
	if err != nil {
		return fmt.Errorf("unstage volume %s: %w", handle, err)
	}
	for _, device := range devices {
		if device.Path == "" {
			continue // half made or half removed: nothing can show it
		}
		if err := h.soleUse(ctx, device.Path, staged...); err != nil {
			return fmt.Errorf("unstage volume %s: it is still published: %w", handle, err)
		}
	}
	for _, path := range staged {
		step.Set(ctx, "unmounting", path)
		if err := h.files.Unmount(ctx, path); err != nil {
			return fmt.Errorf("unstage volume %s: %w", handle, err)
		}
	}
	for _, device := range devices {
		step.Set(ctx, "unmapping", device.Path)
		if err := h.unmap(ctx, device); err != nil {
			return fmt.Errorf("unstage volume %s: %w", handle, err)
		}
	}
	step.Set(ctx, "releasing volume", handle.String())
	if err := image.Release(ctx, h.clusters, handle, h.node); err != nil {
		return fmt.Errorf("unstage: %w", err)
	}
	return nil
}

// mappedAs returns the devices of a volume. What a killed Map or Unmap left half made can have
// lost its name; such a one is known by the image's ID, for which the cluster is asked only then.
func (h *Host) mappedAs(ctx context.Context, handle volid.Image) ([]mapper.Device, error) {
	var nameless volid.Image
	devices, err := h.devices(ctx, func(t mapper.Target) bool { return t.Image == handle || t.Image == nameless })
	if err != nil {
		return nil, err
	}
	isNameless := func(d mapper.Device) bool { return d.Target.Image == nameless }
	if !slices.ContainsFunc(devices, isNameless) {
		return devices, nil
	}
	found, err := image.Find(ctx, h.clusters, handle, params.Credentials{})
	if errors.Is(err, fault.NotFound) {
		return slices.DeleteFunc(devices, isNameless), nil
	}
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(devices, func(d mapper.Device) bool {
		return isNameless(d) && !d.Target.Same(targetOf(found))
	}), nil
}

// stagedPaths returns what Unstage has to unmount. Where a filesystem is mounted at
// the staging path, what is below it is the user's, whatever it is called.
func (h *Host) stagedPaths(ctx context.Context, path string) ([]string, error) {
	_, mounted, err := h.files.At(ctx, path)
	if err != nil {
		return nil, err
	}
	if mounted {
		return []string{path}, nil
	}
	return []string{stagedAt(path, true), path}, nil
}

func (h *Host) unmap(ctx context.Context, device mapper.Device) error {
	by, err := h.mapperOf(device)
	if err != nil {
		return err
	}
	return by.Unmap(ctx, device)
}

func (h *Host) mapperOf(device mapper.Device) (mapper.Mapper, error) {
	for _, m := range h.mappers {
		if m.Name() == device.Mapper {
			return m, nil
		}
	}
	return nil, fmt.Errorf("device %s: mapper %q: %w", device.Path, device.Mapper, fault.Internal)
}
