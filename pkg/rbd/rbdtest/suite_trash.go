package rbdtest

import (
	"slices"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// trashCases are about rbd_trash.
func trashCases() []trialCase {
	return []trialCase{
		{"an entry", func(t *trial) {
			ctx, id, began := t.Context(), rbd.NewID(), now()
			t.ok(t.pool.AddTrash(ctx, id, "its name"))
			entry := t.trashed(id)
			if entry.Name != "its name" || entry.Time.Before(began) || time.Since(entry.Time) < -time.Second {
				t.Errorf("got %+v, want its name and a time since %v", entry, began)
			}
			t.ok(t.pool.AddTrash(ctx, id, "another name"))
			if again := t.trashed(id); again.Name != entry.Name || !again.Time.Equal(entry.Time) {
				t.Errorf("added again: got %+v, want %+v", again, entry)
			}
			t.ok(t.pool.Purge(ctx, id))
		}},
		{"the name stays until it is removed", func(t *trial) {
			image, ctx := t.image("a"), t.Context()
			id := t.make(image, mapped(), nil)
			t.ok(t.pool.AddTrash(ctx, id, image.Name))
			t.found("FindName", id)(t.pool.FindName(ctx, image.Name))
			t.found("FindEntry", id)(t.pool.FindEntry(ctx, image.Name))
			t.remove(image, id)
		}},
		{"what `rbd trash mv` moved", func(t *trial) {
			image := t.image("a")
			id := t.make(image, mapped(), nil)
			t.ok(t.Trash(image))
			if entry := t.trashed(id); entry.Name != image.Name {
				t.Errorf("got name %q, want %q", entry.Name, image.Name)
			}
			t.ok(t.pool.AddTrash(t.Context(), id, image.Name))
			t.ok(t.pool.Purge(t.Context(), id))
		}},
		// `rbd trash mv` that was stopped leaves an entry which nothing can be done
		// with until the move is repeated. Our own move of the image repeats it.
		{"what `rbd trash mv` half moved", func(t *trial) {
			image := t.image("a")
			id := t.make(image, mapped(), nil)
			t.ok(t.HalfTrash(image))
			t.is("Purge", t.pool.Purge(t.Context(), id), fault.InUse)
			t.remove(image, id)
		}},
	}
}

// purgeCases are about the end of an image.
func purgeCases() []trialCase {
	return []trialCase{
		{"not in the trash", func(t *trial) {
			image := t.image("a")
			t.is("no such ID", t.pool.Purge(t.Context(), rbd.NewID()), fault.NotFound)
			id := t.make(image, mapped(), nil)
			t.is("an image with a name", t.pool.Purge(t.Context(), id), fault.NotFound)
			t.size(id, mapped().Bytes)
			t.remove(image, id)
		}},
		{"data goes too", func(t *trial) {
			for _, layout := range []rbd.Layout{mapped(), plain()} {
				before, image := t.objects(), t.image("a")
				id := t.make(image, layout, nil)
				t.ok(t.Write(image))
				t.remove(image, id)
				same(t.T, "left", t.objects(), before)
			}
		}},
		{"data in a data pool", func(t *trial) {
			before, image, layout := t.objects(), t.image("a"), mapped()
			layout.DataPool = t.DataPool
			id := t.make(image, layout, nil)
			t.ok(t.Write(image))
			t.remove(image, id)
			same(t.T, "left", t.objects(), before)
		}},
		{"a later image of the same name", func(t *trial) {
			image := t.image("a")
			first := t.make(image, mapped(), nil)
			t.trash(image, first)
			second := t.make(image, mapped(), nil)
			t.ok(t.pool.Purge(t.Context(), first))
			t.trash(image, first)
			t.found("FindName", second)(t.pool.FindName(t.Context(), image.Name))
			t.found("FindEntry", second)(t.pool.FindEntry(t.Context(), image.Name))
			t.ok(t.pool.Purge(t.Context(), first))
			t.remove(image, second)
		}},
		{"nothing but an entry", func(t *trial) {
			id := rbd.NewID()
			t.ok(t.pool.AddTrash(t.Context(), id, "x"))
			t.ok(t.pool.Purge(t.Context(), id))
		}},
		{"a bare header", func(t *trial) {
			before, id := t.objects(), rbd.NewID()
			t.ok(t.pool.ReserveHeader(t.Context(), id, map[string]string{rbd.MetaPrefix + "mark": "condemned"}))
			t.ok(t.pool.AddTrash(t.Context(), id, "x"))
			t.ok(t.pool.Purge(t.Context(), id))
			same(t.T, "left", t.objects(), before)
		}},
		{"without its object map", func(t *trial) {
			before, id := t.objects(), rbd.NewID()
			t.ok(t.pool.CreateHeader(t.Context(), id, mapped(), nil))
			t.ok(t.pool.AddTrash(t.Context(), id, "x"))
			t.ok(t.pool.Purge(t.Context(), id))
			same(t.T, "left", t.objects(), before)
		}},
		{"begun by another", func(t *trial) {
			for _, step := range []int{1, 2} {
				before, image := t.objects(), t.image("a")
				id := t.make(image, mapped(), nil)
				t.trash(image, id)
				t.ok(t.HalfPurge(t.at, id, step))
				t.ok(t.pool.Purge(t.Context(), id))
				same(t.T, "left", t.objects(), before)
			}
		}},
		{"watched", func(t *trial) {
			for _, layout := range []rbd.Layout{mapped(), plain()} {
				image := t.image("a")
				id := t.make(image, layout, nil)
				release, err := t.Hold(image)
				t.ok(err)
				t.trash(image, id)
				before := t.objects()
				t.is("Purge", t.pool.Purge(t.Context(), id), fault.InUse)
				same(t.T, "left whole", t.objects(), before)
				t.size(id, layout.Bytes)
				release()
				t.ok(t.pool.Purge(t.Context(), id))
			}
		}},
		{"with snapshots", func(t *trial) {
			image, copied := t.image("a"), t.image("b")
			id := t.make(image, mapped(), nil)
			clone, err := t.Clone(image, copied.Name)
			t.ok(err)
			t.trash(image, id)
			before := t.objects()
			t.is("Purge of the source", t.pool.Purge(t.Context(), id), fault.InUse)
			same(t.T, "left whole", t.objects(), before)
			t.remove(copied, clone)
			t.is("Purge with a snapshot left", t.pool.Purge(t.Context(), id), fault.InUse)
			t.ok(t.RemoveTrashedSnapshots(t.at, id))
			t.ok(t.pool.Purge(t.Context(), id))
		}},
		{"by two at once", func(t *trial) {
			image := t.image("a")
			id := t.make(image, mapped(), nil)
			t.trash(image, id)
			results := make(chan error, 2)
			for range 2 {
				go func() { results <- t.pool.Purge(t.Context(), id) }()
			}
			for range 2 {
				if err := <-results; err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.InUse) {
					t.Errorf("Purge: got %v, want nil, %v or %v", err, fault.NotFound, fault.InUse)
				}
			}
			if err := t.pool.Purge(t.Context(), id); err != nil && !fault.Is(err, fault.NotFound) {
				t.Errorf("Purge again: got %v, want nil or %v", err, fault.NotFound)
			}
		}},
	}
}

// trashed returns an image's entry in the trash.
func (t *trial) trashed(id string) rbd.TrashEntry {
	t.Helper()
	entries, err := t.pool.Trashed(t.Context())
	t.ok(err)
	at := slices.IndexFunc(entries, func(e rbd.TrashEntry) bool { return e.ID == id })
	if at < 0 {
		t.Fatalf("trash: got %v, want an entry %s", entries, id)
	}
	return entries[at]
}
