package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/mappertest"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// named is a fake under another name, which can lack something.
type named struct {
	*mappertest.Fake
	name     string
	lacks    error
	features uint64                 // that it lacks
	also     func() []mapper.Device // what else it lists
}

func (n *named) Name() string { return n.name }

func (n *named) Check(context.Context) error { return n.lacks }

func (n *named) CheckFeatures(image uint64, _ bool) error {
	if image&n.features == 0 {
		return nil
	}
	return fmt.Errorf("the image has features that this kernel lacks: %w", fault.Unsupported)
}

func (n *named) Map(ctx context.Context, request mapper.Request) (mapper.Device, error) {
	device, err := n.Fake.Map(ctx, request)
	if err == nil {
		device.Mapper = n.name
	}
	return device, err
}

func (n *named) Find(ctx context.Context, wanted func(mapper.Target) bool) ([]mapper.Device, error) {
	devices, err := n.Devices(ctx)
	var found []mapper.Device
	for _, device := range devices {
		if wanted(device.Target) {
			device.Mapper = n.name
			found = append(found, device)
		}
	}
	if n.also != nil {
		found = append(found, n.also()...)
	}
	return found, err
}

// withMappers gives the machine three mappers, the first of which is the machine's own.
func (m *machine) withMappers(t *testing.T) map[string]*named {
	t.Helper()
	lacks := fmt.Errorf("modprobe it: %w", fault.Unsupported)
	all := map[string]*named{"fuse": {Fake: m.devices, name: "fuse"}}
	for _, name := range []string{"krbd", "nbd"} {
		node := filepath.Join(m.dir, name)
		must(t, os.MkdirAll(node, 0o700))
		sizes := func(ctx context.Context, target mapper.Target) (int64, error) { return sizeOf(ctx, m.ceph, target) }
		all[name] = &named{Fake: mappertest.NewFake(filepath.Dir(m.devices.File(mapper.Target{})), node, sizes), name: name, lacks: lacks}
	}
	m.mappers = []mapper.Mapper{all["krbd"], all["nbd"], all["fuse"]}
	return all
}

// by returns the mappers that have devices.
func (m *machine) by(t *testing.T) string {
	t.Helper()
	var names []string
	for _, one := range m.mappers {
		devices, err := one.Devices(t.Context())
		must(t, err)
		for range devices {
			names = append(names, one.Name())
		}
	}
	return strings.Join(names, " ")
}

func TestMapperIsChosen(t *testing.T) {
	for name, test := range map[string]struct {
		works    []string
		features uint64 // that krbd lacks
		class    params.Mapper
		want     string // the mapper, or what the error names
		log      string
	}{
		"auto, all work":                   {[]string{"krbd", "nbd"}, 0, params.Auto, "krbd", `"reason"="it is the first that works here"`},
		"auto, no krbd":                    {[]string{"nbd"}, 0, params.Auto, "nbd", "mapper krbd: modprobe it"},
		"auto, neither":                    {nil, 0, params.Auto, "fuse", "mapper nbd: modprobe it"},
		"auto, krbd lacks a feature":       {[]string{"krbd", "nbd"}, uint64(params.ObjectMap), params.Auto, "nbd", "mapper krbd: the image has features"},
		"named":                            {[]string{"krbd", "nbd"}, 0, params.NBD, "nbd", `"reason"="the volume names it"`},
		"named, and it does not work":      {[]string{"nbd"}, 0, params.KRBD, "mapper krbd: modprobe it", ""},
		"named, and it lacks a feature":    {[]string{"krbd", "nbd"}, uint64(params.ObjectMap), params.KRBD, "mapper krbd: the image has", ""},
		"named, and this node has no such": {nil, 0, "other", `no mapper "other"`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := newRack(t).machine(t, "a")
			all := m.withMappers(t)
			for _, works := range test.works {
				all[works].lacks = nil
			}
			all["krbd"].features = test.features
			var log strings.Builder
			logger := funcr.New(func(_, line string) { log.WriteString(line + "\n") }, funcr.Options{Verbosity: 2})
			spec := m.attached(t, "pvc-1")
			spec.Mapper = test.class
			err := m.Stage(klog.NewContext(t.Context(), logger), spec, nobody)
			if test.log == "" {
				want(t, "Stage", err, fault.Unsupported, test.want)
				return
			}
			must(t, err)
			if got := m.by(t); got != test.want || !strings.Contains(log.String(), test.log) {
				t.Errorf("mapped by %q, want %q; log %s, want %s in it", got, test.want, log.String(), test.log)
			}
		})
	}
}

// A node whose kernel learns to do better while a volume is mapped keeps the volume where it is.
func TestMappedVolumeStaysWithItsMapper(t *testing.T) {
	for _, class := range []params.Mapper{params.Auto, params.KRBD} {
		for _, dead := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/dead=%t", class, dead), func(t *testing.T) {
				m := newRack(t).machine(t, "a")
				all := m.withMappers(t)
				spec := m.attached(t, "pvc-1")
				must(t, m.Stage(t.Context(), spec, nobody))
				all["krbd"].lacks, all["nbd"].lacks = nil, nil
				if dead {
					found, err := image.Find(t.Context(), m.process, spec.Handle, nobody)
					must(t, err)
					m.devices.Die(targetOf(found), "its worker was killed")
				}
				spec.Mapper = class
				must(t, m.Stage(t.Context(), spec, nobody))
				if got := m.by(t); got != "fuse" {
					t.Errorf("staged again: mapped by %q, want fuse alone", got)
				}
				must(t, m.Unstage(t.Context(), spec.Handle, spec.Path))
				must(t, m.Stage(t.Context(), spec, nobody))
				if got := m.by(t); got != "krbd" {
					t.Errorf("staged after it was unstaged: mapped by %q, want krbd", got)
				}
			})
		}
	}
}

// TestMappedIsTold holds that each mapping is told of once, with what was passed over, and neither one that was found nor one that failed.
func TestMappedIsTold(t *testing.T) {
	m := newRack(t).machine(t, "a")
	all := m.withMappers(t)
	all["nbd"].lacks = nil
	var told []string
	m.mapped = func(one Mapping) {
		told = append(told, fmt.Sprintf("%s %s, %s, %q", one.Volume.Name, one.Mapper, one.Reason, one.PassedOver))
	}
	spec := m.attached(t, "pvc-1")

	stale := spec
	stale.Generation++
	want(t, "Stage by another generation", m.Stage(t.Context(), stale, nobody), fault.InUse, "generation")
	for range 2 {
		must(t, m.Stage(t.Context(), spec, nobody))
	}
	must(t, m.Unstage(t.Context(), spec.Handle, spec.Path))
	spec.Mapper = params.NBD
	must(t, m.Stage(t.Context(), spec, nobody))

	expected := []string{
		`pvc-1 nbd, it is the first that works here, ["mapper krbd: modprobe it: not supported"]`,
		`pvc-1 nbd, the volume names it, []`,
	}
	if !slices.Equal(told, expected) {
		t.Errorf("told of\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(expected, "\n"))
	}
}

// Two processes that choose differently at one moment do not both keep their mapping.
func TestMappedByAnotherMeanwhile(t *testing.T) {
	m := newRack(t).machine(t, "a")
	all := m.withMappers(t)
	all["krbd"].lacks = nil
	spec := m.attached(t, "pvc-1")
	found, err := image.Find(t.Context(), m.process, spec.Handle, nobody)
	must(t, err)
	all["nbd"].also = func() []mapper.Device {
		if m.by(t) == "" {
			return nil
		}
		return []mapper.Device{{Path: "/dev/nbd0", Mapper: "nbd", Target: targetOf(found)}}
	}
	want(t, "Stage", m.Stage(t.Context(), spec, nobody), fault.InUse, "/dev/nbd0")
	if got := m.by(t); got != "" {
		t.Errorf("mapped by %q, want it taken back", got)
	}
	if points := m.files.Mounts(); len(points) > 0 {
		t.Errorf("mounts: %v, want none", points)
	}

	// What was mapped before by both is left as it is, and said.
	all["nbd"].also = nil
	must(t, m.Stage(t.Context(), spec, nobody))
	all["nbd"].also = func() []mapper.Device {
		return []mapper.Device{{Path: "/dev/nbd0", Mapper: "nbd", Target: targetOf(found)}}
	}
	want(t, "Stage again", m.Stage(t.Context(), spec, nobody), fault.InUse, "mapped twice")
	if got := m.by(t); got != "krbd" {
		t.Errorf("mapped by %q, want krbd still", got)
	}
}
