package rbdtest

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// nameCases are about rbd_id.NAME.
func nameCases() []trialCase {
	return []trialCase{
		{"add find remove", func(t *trial) {
			ctx, name, id := t.Context(), t.image("a").Name, rbd.NewID()
			t.missing("FindName before")(t.pool.FindName(ctx, name))
			t.ok(t.pool.AddName(ctx, name, id))
			t.found("FindName", id)(t.pool.FindName(ctx, name))
			t.ok(t.pool.RemoveName(ctx, name, id))
			t.missing("FindName after")(t.pool.FindName(ctx, name))
			t.ok(t.pool.RemoveName(ctx, name, id))
		}},
		{"adding is exclusive", func(t *trial) {
			ctx, name, id := t.Context(), t.image("a").Name, rbd.NewID()
			t.ok(t.pool.AddName(ctx, name, id))
			t.is("AddName of another ID", t.pool.AddName(ctx, name, rbd.NewID()), fault.Exists)
			t.is("AddName of the same ID", t.pool.AddName(ctx, name, id), fault.Exists)
			t.found("FindName", id)(t.pool.FindName(ctx, name))
			t.ok(t.pool.RemoveName(ctx, name, id))
		}},
		{"removing spares another ID", func(t *trial) {
			ctx, name, id := t.Context(), t.image("a").Name, rbd.NewID()
			t.ok(t.pool.AddName(ctx, name, id))
			for _, other := range []string{rbd.NewID(), id[:len(id)-1], id[:len(id)-1] + "_", "1064d327b23c"} {
				t.ok(t.pool.RemoveName(ctx, name, other))
				t.found("FindName after removing "+other, id)(t.pool.FindName(ctx, name))
			}
			t.ok(t.pool.RemoveName(ctx, name, id))
		}},
		{"librbd's names", func(t *trial) {
			image := t.image("a")
			id, err := t.Create(image, mapped())
			t.ok(err)
			t.found("FindName", id)(t.pool.FindName(t.Context(), image.Name))
			t.found("FindEntry", id)(t.pool.FindEntry(t.Context(), image.Name))
			t.remove(image, id)
			t.missing("FindName")(t.pool.FindName(t.Context(), image.Name))
		}},
		{"odd names", func(t *trial) {
			ctx := t.Context()
			for _, name := range []string{"a b", "ä-名", "x%41", strings.Repeat("n", 95), "a\nb", `"q"`} {
				id := rbd.NewID()
				t.ok(t.pool.AddName(ctx, name, id))
				t.found("FindName "+name, id)(t.pool.FindName(ctx, name))
				t.ok(t.pool.AddEntry(ctx, name, id))
				t.found("FindEntry "+name, id)(t.pool.FindEntry(ctx, name))
				t.ok(t.pool.RemoveName(ctx, name, id))
				t.ok(t.pool.RemoveEntry(ctx, name, id))
			}
		}},
	}
}

// entryCases are about rbd_directory.
func entryCases() []trialCase {
	return []trialCase{
		{"add find remove", func(t *trial) {
			ctx, name, id := t.Context(), t.image("a").Name, rbd.NewID()
			t.missing("FindEntry before")(t.pool.FindEntry(ctx, name))
			t.ok(t.pool.RemoveEntry(ctx, name, id))
			t.ok(t.pool.AddEntry(ctx, name, id))
			t.found("FindEntry", id)(t.pool.FindEntry(ctx, name))
			t.ok(t.pool.RemoveEntry(ctx, name, id))
			t.missing("FindEntry after")(t.pool.FindEntry(ctx, name))
			t.ok(t.pool.RemoveEntry(ctx, name, id))
		}},
		{"one name one ID", func(t *trial) {
			ctx, name, id := t.Context(), t.image("a").Name, rbd.NewID()
			t.ok(t.pool.AddEntry(ctx, name, id))
			t.is("the same pair", t.pool.AddEntry(ctx, name, id), fault.Exists)
			t.is("the name with another ID", t.pool.AddEntry(ctx, name, rbd.NewID()), fault.Exists)
			t.is("the ID with another name", t.pool.AddEntry(ctx, name+"x", id), fault.Exists)
			t.found("FindEntry", id)(t.pool.FindEntry(ctx, name))
			t.ok(t.pool.RemoveEntry(ctx, name, id))
		}},
		{"removing spares another ID", func(t *trial) {
			ctx, name, id, other := t.Context(), t.image("a").Name, rbd.NewID(), rbd.NewID()
			t.ok(t.pool.AddEntry(ctx, name, id))
			t.ok(t.pool.AddEntry(ctx, name+"b", other))
			t.ok(t.pool.RemoveEntry(ctx, name, rbd.NewID()))
			t.ok(t.pool.RemoveEntry(ctx, name, other))
			t.found("FindEntry", id)(t.pool.FindEntry(ctx, name))
			t.found("FindEntry", other)(t.pool.FindEntry(ctx, name+"b"))
			t.ok(t.pool.RemoveEntry(ctx, name, id))
			t.ok(t.pool.RemoveEntry(ctx, name+"b", other))
		}},
		{"pages", testPages},
		{"a page ends at 1024", testLargestPage},
	}
}

// testPages lists in pages that end inside and at the edges of what the OSD class
// reads at a time (64 keys).
func testPages(t *trial) {
	var want []rbd.Entry
	for i := range 130 {
		want = append(want, rbd.Entry{Name: fmt.Sprintf("%s%03d", t.image("").Name, i), ID: rbd.NewID()})
	}
	t.fill(want)
	for _, size := range []int{1000, 130, 129, 64, 63, 50} {
		var got []rbd.Entry
		for after, more := t.image("").Name, true; more; {
			page, err := t.pool.Entries(t.Context(), after, size)
			t.ok(err)
			if more = len(page) > 0; more {
				after = page[len(page)-1].Name
			}
			if len(page) > size {
				t.Fatalf("asked for %d entries: got %d", size, len(page))
			}
			got = append(got, page...)
			if len(got) > 0 && !strings.HasPrefix(got[len(got)-1].Name, t.image("").Name) {
				break // into what others have here
			}
		}
		if got = got[:min(len(got), len(want))]; !slices.Equal(got, want) {
			t.Errorf("pages of %d: got %d entries, want %d in the order of their names", size, len(got), len(want))
		}
	}
	page, err := t.pool.Entries(t.Context(), want[4].Name+"+", 2)
	t.ok(err)
	if !slices.Equal(page, want[5:7]) {
		t.Errorf("after a name that is not there: got %v, want %v", page, want[5:7])
	}
	t.empty(want)
}

func testLargestPage(t *trial) {
	var entries []rbd.Entry
	for i := range pageSize + 6 {
		entries = append(entries, rbd.Entry{Name: fmt.Sprintf("%s%04d", t.image("").Name, i), ID: rbd.NewID()})
	}
	t.fill(entries)
	page, err := t.pool.Entries(t.Context(), "", 10*pageSize)
	if len(page) != pageSize || err != nil {
		t.Errorf("got %d entries, %v; want %d", len(page), err, pageSize)
	}
	t.empty(entries)
}

// fill adds entries, and empty removes them, several at once.
func (t *trial) fill(entries []rbd.Entry) {
	t.each(entries, func(e rbd.Entry) error { return t.pool.AddEntry(t.Context(), e.Name, e.ID) })
}

func (t *trial) empty(entries []rbd.Entry) {
	t.each(entries, func(e rbd.Entry) error { return t.pool.RemoveEntry(t.Context(), e.Name, e.ID) })
}

func (t *trial) each(entries []rbd.Entry, do func(rbd.Entry) error) {
	t.Helper()
	const workers = 16
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for i := worker; i < len(entries); i += workers {
				if err := do(entries[i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
}
