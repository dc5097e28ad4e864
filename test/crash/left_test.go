package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// indexObject is the driver's index of a pool or namespace.
const indexObject = "rbd_csi.index"

// A place is where images are: a pool, or a namespace of one.
type place struct{ pool, namespace string }

// String returns what `rbd` calls the place.
func (p place) String() string { return strings.TrimSuffix(p.pool+"/"+p.namespace, "/") }

// rados returns the arguments of a `rados` command in the place.
func (p place) rados(arguments ...string) []string {
	return append([]string{"--pool", p.pool, "--namespace", p.namespace}, arguments...)
}

// differences tells what volumes and snapshots are not there, or too many.
func (w *world) differences(ctx context.Context, volumes, snapshots []*thing) []string {
	var wrong []string
	for i, at := range w.places {
		names, err := w.cluster.RBD(ctx, "ls", at.String())
		if err != nil {
			return []string{err.Error()}
		}
		var want []string
		for _, volume := range volumes {
			if volume.place == i {
				want = append(want, volume.name)
			}
		}
		wrong = append(wrong, differences("rbd ls "+at.String(), strings.Fields(names), want)...)
	}
	gotVolumes, gotSnapshots, err := listed(ctx, w.controllers[0].Process)
	if err != nil {
		return append(wrong, err.Error())
	}
	wrong = append(wrong, differences("ListVolumes", gotVolumes, handles(volumes))...)
	wrong = append(wrong, differences("ListSnapshots", gotSnapshots, handles(snapshots))...)
	for _, volume := range volumes {
		few, _ := w.wrongSnapshots(ctx, volume, snapshots)
		wrong = append(wrong, few...)
	}
	return wrong
}

// wrongSnapshots tells which RBD snapshots a volume has too many or too few, and which in the trash have
// no clones. Those are of no use: their space is lost until the next clone of the volume goes, or the volume
// itself, when the process that purged the last clone was killed before it had looked after the source.
func (w *world) wrongSnapshots(ctx context.Context, volume *thing, snapshots []*thing) (wrong, idle []string) {
	answer, err := w.cluster.RBD(ctx, "snap", "ls", "--all", "--format", "json", spec(volume.handle))
	if err != nil {
		return []string{err.Error()}, nil
	}
	var all []struct {
		ID        uint64
		Name      string
		Namespace struct{ Type string }
	}
	if err := json.Unmarshal([]byte(answer), &all); err != nil {
		return []string{fmt.Sprintf("rbd snap ls: %v", err)}, nil
	}
	var got, want []string
	for _, one := range all {
		if one.Namespace.Type == "user" {
			got = append(got, one.Name)
			continue
		}
		children, err := w.cluster.RBD(ctx, "children", "--all", "--snap-id", strconv.FormatUint(one.ID, 10), spec(volume.handle))
		if err != nil {
			wrong = append(wrong, err.Error())
		} else if children == "" {
			idle = append(idle, fmt.Sprintf("rbd snap ls --all %s: %s (%s, ID %d) has no clones", volume.handle, one.Name, one.Namespace.Type, one.ID))
		}
	}
	for _, snapshot := range snapshots {
		if snapshot.sources[0] == volume {
			_, name, _ := strings.Cut(snapshot.handle, "@")
			name, _, _ = strings.Cut(name, "#")
			want = append(want, name)
		}
	}
	return append(wrong, differences("rbd snap ls "+volume.handle, got, want)...), idle
}

// compareAll sees that volumes have their contents.
func (w *world) compareAll(t *testing.T, volumes []*thing) {
	t.Helper()
	for _, volume := range volumes {
		if err := w.compare(t.Context(), volume.handle, volume.content); err != nil {
			t.Error(err)
		}
	}
}

// left tells what is there when nothing should be.
func (w *world) left(ctx context.Context) []string {
	var wrong []string
	for _, at := range w.places {
		h, err := w.holdings(ctx, at)
		if err != nil {
			return append(wrong, err.Error())
		}
		wrong = append(wrong, h.wrong()...)
	}
	return wrong
}

// holdings are what there is in a place.
type holdings struct {
	at      place
	images  string   // `rbd ls`
	trash   string   // `rbd trash ls --all`
	groups  string   // `rbd group ls`
	keys    []string // of the index
	objects []string
}

func (w *world) holdings(ctx context.Context, at place) (h holdings, err error) {
	h.at = at
	for _, one := range []struct {
		answer   *string
		question []string
	}{{&h.images, []string{"ls"}}, {&h.trash, []string{"trash", "ls", "--all"}}, {&h.groups, []string{"group", "ls"}}} {
		if *one.answer, err = w.cluster.RBD(ctx, append(one.question, at.String())...); err != nil {
			return h, err
		}
	}
	keys, err := w.cluster.Rados(ctx, at.rados("listomapkeys", indexObject)...)
	if err != nil && !isMissing(err) {
		return h, err
	}
	h.keys = strings.Fields(keys)
	objects, err := w.cluster.Rados(ctx, at.rados("ls")...)
	h.objects = strings.Fields(objects)
	return h, err
}

// explainLeft logs what the headers that are left hold: snapshots, clones and marks.
func (w *world) explainLeft(t *testing.T) {
	t.Helper()
	for _, at := range w.places {
		h, err := w.holdings(t.Context(), at)
		if err != nil {
			t.Error(err)
		}
		for _, object := range append(h.objects, indexObject) {
			if strings.HasPrefix(object, "rbd_header.") || object == indexObject {
				values, err := w.cluster.Rados(t.Context(), at.rados("listomapvals", object)...)
				t.Logf("%s %s: %v\n%s", at, object, err, values)
			}
		}
	}
}

// isMissing tells what `rados` says of an object that is not there.
func isMissing(err error) bool { return strings.Contains(err.Error(), "No such file") }

var (
	// ofPools are the objects of a pool or namespace that no image has.
	ofPools = []string{"rbd_directory", "rbd_info", "rbd_trash", "rbd_namespace", indexObject, "rbd_csi.clients"}
	// ofIndices are the keys of an index that nothing has.
	ofIndices = []string{"complete"}
)

// wrong tells what is there when nothing should be. There is no snapshot, and no clone, without
// an image.
func (h holdings) wrong() []string {
	var wrong []string
	tell := func(where string, there, usual []string) {
		for _, one := range there {
			if !slices.Contains(usual, one) {
				wrong = append(wrong, fmt.Sprintf("%s %s: %s is left", where, h.at, one))
			}
		}
	}
	tell("rbd ls", lines(h.images), nil)
	tell("rbd trash ls --all", lines(h.trash), nil)
	tell("rbd group ls", lines(h.groups), nil)
	tell("index of", h.keys, ofIndices)
	tell("rados ls", h.objects, ofPools)
	return wrong
}

func lines(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
}

// tooDeep tells which volumes are read through more images than that beside their own.
func (w *world) tooDeep(ctx context.Context, volumes []*thing, most int) []string {
	var wrong []string
	for _, volume := range volumes {
		chain, err := w.chain(ctx, volume)
		if err != nil {
			return []string{err.Error()}
		}
		if len(chain) > most {
			wrong = append(wrong, fmt.Sprintf("%s is read through %q", volume.handle, chain))
		}
	}
	return wrong
}

// chain returns the IDs of the images that a volume is read through.
func (w *world) chain(ctx context.Context, volume *thing) ([]string, error) {
	var ids []string
	for question := []string{"info", spec(volume.handle)}; ; {
		answer, err := w.cluster.RBD(ctx, append(question, "--format", "json")...)
		if err != nil {
			return nil, err
		}
		var info struct {
			Parent *struct {
				Pool, Image, ID string
				Namespace       string `json:"pool_namespace"`
			}
		}
		if err := json.Unmarshal([]byte(answer), &info); err != nil {
			return nil, fmt.Errorf("rbd info: %w", err)
		}
		if info.Parent == nil {
			return ids, nil
		}
		ids = append(ids, info.Parent.ID)
		question = []string{"info", "--pool", info.Parent.Pool, "--namespace", info.Parent.Namespace, "--image-id", info.Parent.ID}
	}
}
