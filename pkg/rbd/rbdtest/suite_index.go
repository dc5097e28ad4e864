package rbdtest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// indexCases are about rbd_csi.index. Each begins and ends without it.
func indexCases() []trialCase {
	cases := []trialCase{
		{"missing", func(t *trial) {
			ctx := t.Context()
			_, err := t.pool.Index(ctx, "", 10)
			t.is("Index", err, fault.NotFound)
			_, err = t.pool.IndexValues(ctx, "k")
			t.is("IndexValues", err, fault.NotFound)
			set := map[string]string{"k": "v"}
			t.is("ChangeIndex", t.pool.ChangeIndex(ctx, rbd.Change{Set: set}), fault.NotFound)
			t.is("ChangeIndex that expects", t.pool.ChangeIndex(ctx, rbd.Change{Expect: map[string]string{"k": ""}, Set: set}), fault.NotFound)
			_, err = t.pool.Index(ctx, "", 10)
			t.is("Index after that", err, fault.NotFound)
		}},
		{"made twice", func(t *trial) {
			t.ok(t.pool.MakeIndex(t.Context()))
			t.indexed(map[string]string{})
			t.ok(t.pool.ChangeIndex(t.Context(), rbd.Change{Set: map[string]string{"k": "v"}}))
			t.ok(t.pool.MakeIndex(t.Context()))
			t.indexed(map[string]string{"k": "v"})
		}},
		{"compare and change", testIndexChanges},
		{"values", testIndexValues},
		{"pages", testIndexPages},
		{"one of many wins", testIndexRace},
		{"places are apart", func(t *trial) {
			t.ok(t.pool.MakeIndex(t.Context()))
			elsewhere := t.Fixture.Namespace
			if t.at == elsewhere {
				elsewhere = t.Fixture.Pool
			}
			_, err := newTrial(t.T, t.Fixture, elsewhere).pool.Index(t.Context(), "", 1)
			t.is("Index elsewhere", err, fault.NotFound)
		}},
	}
	for i, one := range cases {
		cases[i].run = func(t *trial) {
			t.ok(t.RemoveIndex(t.at))
			one.run(t)
			t.ok(t.RemoveIndex(t.at))
		}
	}
	return cases
}

func testIndexChanges(t *trial) {
	type values = map[string]string
	for _, one := range []struct {
		name   string
		before values
		change rbd.Change
		kind   fault.Kind // Internal: none
		after  values
	}{
		{"set", values{"a": "1"}, rbd.Change{Set: values{"b": "2"}}, fault.Internal, values{"a": "1", "b": "2"}},
		{"overwrite", values{"a": "1"}, rbd.Change{Expect: values{"a": "1"}, Set: values{"a": "2"}}, fault.Internal, values{"a": "2"}},
		{"not expected", values{"a": "1"}, rbd.Change{Expect: values{"a": "0"}, Set: values{"a": "2"}}, fault.Superseded, values{"a": "1"}},
		{"a part is not the whole", values{"a": "12"}, rbd.Change{Expect: values{"a": "1"}, Remove: []string{"a"}}, fault.Superseded, values{"a": "12"}},
		{"absence expected", values{}, rbd.Change{Expect: values{"a": ""}, Set: values{"a": "1"}}, fault.Internal, values{"a": "1"}},
		{"absence expected and there", values{"a": "1"}, rbd.Change{Expect: values{"a": ""}, Set: values{"a": "2"}}, fault.Superseded, values{"a": "1"}},
		{"remove as expected", values{"a": "1", "b": "2"}, rbd.Change{Expect: values{"a": "1"}, Remove: []string{"a", "c"}}, fault.Internal, values{"b": "2"}},
		{"two of which one differs", values{"a": "1", "b": "2"}, rbd.Change{Expect: values{"a": "1", "b": "1"}, Set: values{"c": "3"}}, fault.Superseded, values{"a": "1", "b": "2"}},
		{"nothing", values{"a": "1"}, rbd.Change{}, fault.Internal, values{"a": "1"}},
		{"not a text", values{"a": "\x00\xff"}, rbd.Change{Expect: values{"a": "\x00\xff"}, Set: values{"\x01\xfe": "\n"}}, fault.Internal, values{"a": "\x00\xff", "\x01\xfe": "\n"}},
		// A key of the index is no piece of metadata, whatever it looks like.
		{"like metadata", values{}, rbd.Change{Set: values{"metadata_rbd-csi.io/x": "1"}}, fault.Internal, values{"metadata_rbd-csi.io/x": "1"}},
	} {
		t.ok(t.RemoveIndex(t.at))
		t.ok(t.pool.MakeIndex(t.Context()))
		t.ok(t.pool.ChangeIndex(t.Context(), rbd.Change{Set: one.before}))
		err := t.pool.ChangeIndex(t.Context(), one.change)
		if one.kind == fault.Internal && err != nil || one.kind != fault.Internal && !fault.Is(err, one.kind) {
			t.Errorf("%s: got %v, want %v", one.name, err, one.kind)
		}
		t.indexed(one.after)
	}
}

func testIndexValues(t *trial) {
	ctx := t.Context()
	set := map[string]string{"a": "1", "b": strings.Repeat("long ", 200), "c": ""}
	t.ok(t.pool.MakeIndex(ctx))
	t.ok(t.pool.ChangeIndex(ctx, rbd.Change{Set: set}))
	got, err := t.pool.IndexValues(ctx, "a", "b", "c", "d", "a")
	if !maps.Equal(got, set) || err != nil {
		t.Errorf("got %q, %v; want %q", got, err, set)
	}
	got, err = t.pool.IndexValues(ctx, "d")
	if len(got) != 0 || err != nil {
		t.Errorf("a key that is not there: got %q, %v; want none", got, err)
	}
}

// testIndexPages lists more than one operation gives.
func testIndexPages(t *trial) {
	ctx, change := t.Context(), rbd.Change{Set: map[string]string{}}
	var want []rbd.IndexEntry
	for i := range pageSize + 6 {
		entry := rbd.IndexEntry{Key: fmt.Sprintf("k%05d", i), Value: strconv.Itoa(i)}
		want = append(want, entry)
		change.Set[entry.Key] = entry.Value
	}
	t.ok(t.pool.MakeIndex(ctx))
	t.ok(t.pool.ChangeIndex(ctx, change))
	if values, err := t.pool.IndexValues(ctx, slices.Collect(maps.Keys(change.Set))...); !maps.Equal(values, change.Set) || err != nil {
		t.Errorf("values of all: got %d, %v; want %d", len(values), err, len(change.Set))
	}
	for _, one := range []struct {
		name  string
		after string
		max   int
		want  []rbd.IndexEntry
	}{
		{"the largest page", "", 10 * pageSize, want[:pageSize]},
		{"a small page", "", 64, want[:64]},
		{"the next", want[63].Key, 65, want[64:129]},
		{"after a key that is not there", want[4].Key + "+", 2, want[5:7]},
		{"the last", want[pageSize].Key, pageSize, want[pageSize+1:]},
		{"after all", want[len(want)-1].Key, 10, nil},
	} {
		got, err := t.pool.Index(ctx, one.after, one.max)
		if !slices.Equal(got, one.want) || err != nil {
			t.Errorf("%s: got %d entries, %v; want %d in the order of their keys", one.name, len(got), err, len(one.want))
		}
	}
}

func testIndexRace(t *trial) {
	t.ok(t.pool.MakeIndex(t.Context()))
	var group sync.WaitGroup
	wins := atomic.Int64{}
	for i := range 8 {
		group.Go(func() {
			err := t.pool.ChangeIndex(t.Context(), rbd.Change{
				Expect: map[string]string{"name": ""}, Set: map[string]string{"name": strconv.Itoa(i)},
			})
			if err == nil {
				wins.Add(1)
			} else {
				t.is("a loser", err, fault.Superseded)
			}
		})
	}
	group.Wait()
	if wins.Load() != 1 {
		t.Errorf("got %d that won, want 1", wins.Load())
	}
}

// indexed reports when the index does not have these entries.
func (t *trial) indexed(want map[string]string) {
	t.Helper()
	page, err := t.pool.Index(t.Context(), "", pageSize)
	t.ok(err)
	got := map[string]string{}
	for _, entry := range page {
		got[entry.Key] = entry.Value
	}
	if !maps.Equal(got, want) || len(page) != len(want) {
		t.Errorf("index: got %q, want %q", page, want)
	}
}
