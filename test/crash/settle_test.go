package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/test/driver"
)

// settle waits until exactly what was asked for is there.
func (w *world) settle(t *testing.T, lives []*life) {
	if !w.await(t, func(ctx context.Context) []string { return w.wrong(ctx, lives) }) {
		w.explain(t, lives)
	}
}

// await waits until nothing is wrong any more, and fails with what is if that does not come to pass in
// the settling time.
func (w *world) await(t *testing.T, wrong func(context.Context) []string) bool {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), settling)
	defer cancel()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		look, stop := context.WithTimeout(t.Context(), lookTimeout)
		left := wrong(look)
		stop()
		if len(left) == 0 {
			t.Logf("settled after %.1f s", time.Since(begun).Seconds())
			return true
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Errorf("%s after the last request, got:\n\t%s", settling, strings.Join(left, "\n\t"))
			return false
		}
	}
}

// explain logs what the headers in the pool hold, who watches and who locks them.
func (w *world) explain(t *testing.T, lives []*life) {
	c, err := w.look(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	expected := c.metadata(slices.Sorted(maps.Keys(keptOf(lives))))
	for _, header := range c.objects {
		if !strings.HasPrefix(header, "rbd_header.") || slices.Contains(expected, header) {
			continue
		}
		for _, question := range [][]string{
			{"listwatchers", header}, {"lock", "info", header, "rbd_lock"}, {"listomapkeys", header}, {"listxattr", header},
		} {
			answer, err := w.cluster.Rados(t.Context(), append([]string{"--pool", w.cluster.Pool()}, question...)...)
			t.Logf("rados %s: %q, %v", strings.Join(question, " "), answer, err)
		}
	}
}

// lookTimeout bounds one look at the pool.
const lookTimeout = 30 * time.Second

// wrong returns what is there and should not be, and what is not there and should be. What could
// not be looked at is wrong too: `rbd ls -l` fails while an image goes.
func (w *world) wrong(ctx context.Context, lives []*life) []string {
	left, err := driver.Look(w.folder)
	if err != nil {
		return []string{err.Error()}
	}
	var wrong []string
	if left = left.Without(w.before); !left.Empty() {
		wrong = append(wrong, "on the machine: "+left.String())
	}
	pool, err := w.look(ctx)
	if err != nil {
		return append(wrong, err.Error())
	}
	return append(wrong, pool.wrong(keptOf(lives))...)
}

// keptOf returns the lives whose volumes have to be there, by name.
func keptOf(lives []*life) map[string]*life {
	kept := map[string]*life{}
	for _, l := range lives {
		if l.kept {
			kept[l.claim.Volume] = l
		}
	}
	return kept
}

// A contents is what a pool holds.
type contents struct {
	images  map[string]string // ID by name, `rbd ls -l`
	trash   string            // `rbd trash ls`
	objects []string          // `rados ls`
	listed  []string          // handles, ListVolumes
}

func (w *world) look(ctx context.Context) (contents, error) {
	pool := w.cluster.Pool()
	text, err := w.cluster.RBD(ctx, "ls", "-l", "--format", "json", pool)
	if err != nil {
		return contents{}, err
	}
	var images []struct{ Image, ID string }
	if err := json.Unmarshal([]byte(text), &images); err != nil {
		return contents{}, fmt.Errorf("rbd ls: %w", err)
	}
	c := contents{images: map[string]string{}}
	for _, image := range images {
		c.images[image.Image] = image.ID
	}
	if c.trash, err = w.cluster.RBD(ctx, "trash", "ls", pool); err != nil {
		return contents{}, err
	}
	objects, err := w.cluster.Rados(ctx, "--pool", pool, "ls")
	if err != nil {
		return contents{}, err
	}
	c.objects = strings.Fields(objects)
	answer, err := w.controllers[0].ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil {
		return contents{}, fmt.Errorf("ListVolumes: %w", err)
	}
	for _, entry := range answer.GetEntries() {
		c.listed = append(c.listed, entry.GetVolume().GetVolumeId())
	}
	return c, nil
}

// wrong compares with the volumes that have to be there.
func (c contents) wrong(kept map[string]*life) []string {
	var wrong []string
	differ := func(where string, got, want []string) {
		wrong = append(wrong, differences(where, got, want)...)
	}
	names := slices.Sorted(maps.Keys(kept))
	differ("rbd ls", slices.Sorted(maps.Keys(c.images)), names)
	if c.trash != "" {
		wrong = append(wrong, "rbd trash ls: "+c.trash)
	}
	handles := make([]string, len(names))
	for i, name := range names {
		handles[i] = kept[name].volume.Handle
	}
	differ("ListVolumes", c.listed, handles)
	differ("rados ls", c.withoutData(kept), c.metadata(names))
	return wrong
}

// differences tells what is too many and what is missing.
func differences(where string, got, want []string) []string {
	var wrong []string
	for _, name := range got {
		if !slices.Contains(want, name) {
			wrong = append(wrong, fmt.Sprintf("%s: %s is too many", where, name))
		}
	}
	return append(wrong, missing(where, got, want)...)
}

// missing tells what is missing.
func missing(where string, got, want []string) []string {
	var wrong []string
	for _, name := range want {
		if !slices.Contains(got, name) {
			wrong = append(wrong, fmt.Sprintf("%s: %s is missing", where, name))
		}
	}
	return wrong
}

// metadata returns the objects that the images, and a pool for RBD, are to have.
func (c contents) metadata(names []string) []string {
	objects := []string{"rbd_directory", "rbd_info", "rbd_trash"}
	for _, name := range names {
		id := c.images[name]
		objects = append(objects, "rbd_id."+name, "rbd_header."+id, "rbd_object_map."+id)
	}
	return objects
}

// withoutData returns the objects less the data of the kept volumes that were written.
func (c contents) withoutData(kept map[string]*life) []string {
	return slices.DeleteFunc(slices.Clone(c.objects), func(object string) bool {
		for name, l := range kept {
			if l.staged && c.images[name] != "" && strings.HasPrefix(object, "rbd_data."+c.images[name]+".") {
				return true
			}
		}
		return false
	})
}
