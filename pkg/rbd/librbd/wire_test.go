package librbd

import (
	"bytes"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// TestEncodings spells out the bytes that go to the OSDs, by the rules of Ceph
// encoding. That a real OSD understands them is for TestSuite.
func TestEncodings(t *testing.T) {
	moment := time.Unix(0x01020304, 5)
	layout := rbd.Layout{Bytes: 0x1122334455, ObjectBytes: 4 << 20, Features: rbd.Layering}
	omap := map[string][]byte{}
	creation, err := creation("v1", layout, 7, -1, omap)
	if err != nil {
		t.Fatal(err)
	}
	striped := layout
	striped.StripeUnit, striped.StripeCount = 64<<10, 4
	apart, err := creationOf(striped, omap)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct {
		name string
		got  []byte
		want string
	}{
		{"text", new(writer).text("ab").bytes, "02000000" + "6162"},
		{"trash entry", trashEntry("v1", "n", moment), "02000000" + "7631" +
			"02" + "01" + "17000000" + "00" + "01000000" + "6e" + "0403020105000000" + "0403020105000000" + "00"},
		{"expectation", expectation(prefixed(metaPrefix, map[string]string{"b": "", "a": "x"})), "01" + "01" + "30000000" + "01" + "01" + "02000000" +
			"0a000000" + hex.EncodeToString([]byte("metadata_a")) + "01000000" + "78" +
			"0a000000" + hex.EncodeToString([]byte("metadata_b")) + "00000000" +
			"01" + "00000000"},
		{"creation", creation, "5544332211000000" + "16" + "0100000000000000" +
			"0b000000" + hex.EncodeToString([]byte("rbd_data.v1")) + "ffffffffffffffff"},
		{"creation with stripes and a data pool", apart, "5544332211000000" + "16" + "8300000000000000" +
			"0d000000" + hex.EncodeToString([]byte("rbd_data.7.v1")) + "0900000000000000"},
		{"lock", lockRequest("l", "c", "d", 60*time.Second, lockNew), "01" + "01" + "1d000000" + "010000006c" + "01" + "0100000063" + "00000000" +
			"0100000064" + "3c00000000000000" + "00"},
		{"parent", attachment(rbd.Parent{PoolID: 7, Namespace: "n", ID: "v1", Snapshot: 9, Overlap: 0x1000}), "01" + "01" + "1b000000" +
			"0700000000000000" + "010000006e" + "020000007631" + "0900000000000000" + "0010000000000000"},
		{"child", adoption(9, rbd.Child{PoolID: 7, Namespace: "n", ID: "v1"}), "0900000000000000" + "02" + "01" + "13000000" +
			"0700000000000000" + "020000007631" + "010000006e"},
		{"stripe unit", omap[keyStripeUnit], "0000010000000000"},
		{"stripe count", omap[keyStripeCount], "0400000000000000"},
	} {
		if got := hex.EncodeToString(one.got); got != one.want {
			t.Errorf("%s: got %s, want %s", one.name, got, one.want)
		}
	}
}

func creationOf(layout rbd.Layout, omap map[string][]byte) ([]byte, error) {
	return creation("v1", layout, 7, 9, omap)
}

func TestCreationRefusesNonsense(t *testing.T) {
	for _, layout := range []rbd.Layout{
		{Bytes: -1, ObjectBytes: 4096}, {Bytes: 1}, {Bytes: 1, ObjectBytes: -4096}, {Bytes: 1, ObjectBytes: 4097},
	} {
		if _, err := creation("v1", layout, 1, -1, nil); err == nil {
			t.Errorf("%+v: got no error, want one", layout)
		}
	}
}

func TestReaderReadsWhatWriterWrites(t *testing.T) {
	moment := time.Unix(1_700_000_000, 123)
	w := new(writer).u8(1).u32(2).u64(3).text("four").time(moment).versioned(2, func(w *writer) {
		w.text("five").u64(6) // the last field is of a later version
	}).u8(7)
	r := &reader{bytes: w.bytes}
	if a, b, c, d, e := r.u8(), r.u32(), r.u64(), r.text(), r.time(); a != 1 || b != 2 || c != 3 || d != "four" || !e.Equal(moment) {
		t.Errorf("got %d %d %d %q %v", a, b, c, d, e)
	}
	r.compatible(func(version, oldest uint8, r *reader) {
		if text := r.text(); version != 2 || oldest != 1 || text != "five" {
			t.Errorf("got version %d, oldest %d, %q; want 2, 1, five", version, oldest, text)
		}
	})
	if last := r.u8(); last != 7 || r.err != nil || len(r.bytes) != 0 {
		t.Errorf("got %d, %v, %d bytes left; want 7 and none", last, r.err, len(r.bytes))
	}
	if r.u64() != 0 || !errors.Is(r.err, errShort) || r.text() != "" || r.count() != 0 {
		t.Errorf("after the end: got %v, want %v", r.err, errShort)
	}
}

// parentOf is struct cls_rbd_parent of version 2 as Nautilus and later write it.
func parentOf(pool int64, overlaps bool) []byte {
	return new(writer).versioned(2, func(w *writer) {
		w.u64(uint64(pool)).text("ns").text("1064d327b23c").u64(4)
		if overlaps {
			w.u8(1).u64(1 << 30)
		} else {
			w.u8(0)
		}
	}).bytes
}

func TestReadHeader(t *testing.T) {
	u64 := func(v uint64) []byte { return new(writer).u64(v).bytes }
	whole := func(more map[string][]byte) map[string][]byte {
		values := map[string][]byte{keySize: u64(1 << 30), keyOrder: {22}, keyFeatures: u64(1 | 1<<8), keySnapSeq: u64(0)}
		maps.Copy(values, more)
		return values
	}
	before2018 := new(writer).versioned(1, func(w *writer) { w.u64(3).text("1064d327b23c").u64(4).u64(1 << 30) }).bytes
	parent := rbd.Parent{PoolID: 3, Namespace: "ns", ID: "1064d327b23c", Snapshot: 4, Overlap: 1 << 30}
	nameless := parent
	nameless.Namespace = ""
	for _, one := range []struct {
		name   string
		values map[string][]byte
		want   rbd.Header // but Layout and ID
		fails  bool
	}{
		{"bare", map[string][]byte{}, rbd.Header{DataPoolID: -1}, false},
		{"whole", whole(nil), rbd.Header{Whole: true, DataPoolID: -1}, false},
		{"data pool", whole(map[string][]byte{keyDataPool: u64(5)}), rbd.Header{Whole: true, DataPoolID: 5}, false},
		{"snapshots", whole(map[string][]byte{keySnapSeq: u64(9)}), rbd.Header{Whole: true, DataPoolID: -1, HasSnaps: true}, false},
		{"clone", whole(map[string][]byte{keyParent: parentOf(3, true)}), rbd.Header{Whole: true, DataPoolID: -1, HasParent: true, Parent: parent}, false},
		{"clone of version 1", whole(map[string][]byte{keyParent: before2018}), rbd.Header{Whole: true, DataPoolID: -1, HasParent: true, Parent: nameless}, false},
		{"flattened, snapshots not", whole(map[string][]byte{keyParent: parentOf(3, false)}), rbd.Header{Whole: true, DataPoolID: -1}, false},
		{"no parent", whole(map[string][]byte{keyParent: parentOf(-1, true)}), rbd.Header{Whole: true, DataPoolID: -1}, false},
		{"made since Ceph 14", whole(map[string][]byte{keyCreated: {9, 0, 0, 0, 7, 0, 0, 0}}), rbd.Header{Whole: true, DataPoolID: -1, Created: time.Unix(9, 7)}, false},
		{"time cut short", whole(map[string][]byte{keyCreated: {9, 0}}), rbd.Header{}, true},
		{"size cut short", whole(map[string][]byte{keySize: {1, 2}}), rbd.Header{}, true},
		{"order missing", whole(map[string][]byte{keyOrder: nil}), rbd.Header{}, true},
		{"parent cut short", whole(map[string][]byte{keyParent: {2, 1, 9, 0, 0, 0}}), rbd.Header{}, true},
	} {
		one.values[metaPrefix+rbd.MetaPrefix+"k"] = []byte("v")
		got, err := readHeader("v1", one.values)
		if (err != nil) != one.fails {
			t.Errorf("%s: got %v, want an error: %v", one.name, err, one.fails)
		}
		if err != nil {
			continue
		}
		if got.ID != "v1" || got.Whole != one.want.Whole || got.DataPoolID != one.want.DataPoolID ||
			got.HasParent != one.want.HasParent || got.Parent != one.want.Parent || got.HasSnaps != one.want.HasSnaps ||
			!got.Created.Equal(one.want.Created) || got.Meta[rbd.MetaPrefix+"k"] != "v" {
			t.Errorf("%s: got %+v, want %+v", one.name, got, one.want)
		}
		if got.Whole && (got.Layout.Bytes != 1<<30 || got.Layout.ObjectBytes != 4<<20 || got.Layout.Features != rbd.Layering) {
			t.Errorf("%s: got layout %+v", one.name, got.Layout)
		}
	}
}

// snapshotAs is struct cls_rbd_snap as OSDs of the time of a version wrote it; all
// can read one before 8, and only those of 8 and later one of that.
func snapshotAs(version uint8) []byte {
	w := new(writer)
	w.u64(0x17).text("s").u64(1 << 30)
	if version < 8 {
		w.u64(1)
	}
	if version >= 2 && version < 8 {
		w.versioned(1, func(w *writer) { w.u64(3).text("1064d327b23c").u64(4).u64(1 << 30) })
	}
	if version >= 3 {
		w.u8(0)
	}
	if version >= 4 {
		w.u64(0)
	}
	if version >= 5 {
		w.versioned(1, func(w *writer) { w.u32(2).u32(0).text("its name") })
	}
	if version >= 6 {
		w.time(time.Unix(1_700_000_000, 5))
	}
	if version >= 7 {
		w.u32(4)
	}
	if version >= 8 {
		w.u8(1).u64(1 << 30)
	}
	oldest := uint8(1)
	if version >= 8 {
		oldest = 8
	}
	return append(new(writer).u8(version).u8(oldest).u32(uint32(len(w.bytes))).bytes, w.bytes...)
}

func TestReadSnapshot(t *testing.T) {
	want := rbd.Snapshot{ID: 0x17, Name: "s", Bytes: 1 << 30}
	for version := uint8(1); version <= 8; version++ {
		switch version {
		case 5:
			want.Kind = rbd.TrashedSnapshot
		case 6:
			want.Time = time.Unix(1_700_000_000, 5)
		case 7:
			want.Children = 4
		}
		if got, err := readSnapshot(snapshotAs(version)); got != want || err != nil {
			t.Errorf("version %d: got %+v, %v; want %+v", version, got, err, want)
		}
	}
	if _, err := readSnapshot(snapshotAs(8)[:30]); !errors.Is(err, errShort) {
		t.Errorf("cut short: got %v, want %v", err, errShort)
	}
	values := map[string][]byte{snapPrefix + "0000000000000017": snapshotAs(8), metaPrefix + "x": {1}}
	for i := range 3 {
		values[snapPrefix+string(rune('a'+i))] = new(writer).versioned(1, func(w *writer) { w.u64(uint64(9 - i)).text("").u64(0).u64(0) }).bytes
	}
	snapshots, err := readSnapshots(values)
	var ids []uint64
	for _, one := range snapshots {
		ids = append(ids, one.ID)
	}
	if !slices.Equal(ids, []uint64{7, 8, 9, 0x17}) || err != nil {
		t.Errorf("got %v, %v; want the snapshots in the order of their IDs", ids, err)
	}
}

func TestReadChildren(t *testing.T) {
	answer := new(writer).u32(2)
	answer.versioned(1, func(w *writer) { w.u64(3).text("a") })
	answer.versioned(2, func(w *writer) { w.u64(4).text("b").text("ns") })
	got, err := readChildren(&reader{bytes: answer.bytes})
	want := []rbd.Child{{PoolID: 3, ID: "a"}, {PoolID: 4, ID: "b", Namespace: "ns"}}
	if !slices.Equal(got, want) || err != nil {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestJoined(t *testing.T) {
	got := joined([]rbd.Extent{
		{Offset: 20, Bytes: 5, Exists: true}, {Offset: 0, Bytes: 10, Exists: true}, {Offset: 10, Bytes: 5, Exists: true},
		{Offset: 15, Bytes: 5}, {Offset: 30, Bytes: 1, Exists: true}, {Offset: 31, Bytes: 1, Exists: true},
	})
	want := []rbd.Extent{
		{Offset: 0, Bytes: 15, Exists: true}, {Offset: 15, Bytes: 5}, {Offset: 20, Bytes: 5, Exists: true}, {Offset: 30, Bytes: 2, Exists: true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// FuzzReaders feeds answers that no OSD should give to everything that reads answers.
func FuzzReaders(f *testing.F) {
	f.Add([]byte{})
	f.Add(parentOf(3, true))
	f.Add(trashEntry("v1", "n", time.Unix(1, 2)))
	f.Add(new(writer).u32(1).text("a").text("b").bytes)
	f.Add(new(writer).u32(1 << 31).bytes)
	f.Add([]byte(`{"pools":[{"name":"kube","stats":{"stored":1,"max_avail":2}}]}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		_, _, _ = readParent(answer)
		_, _ = readSnapshot(answer)
		_, _ = readHeader("v1", map[string][]byte{keySize: answer, keyOrder: answer, keyParent: answer, snapPrefix + "1": answer})
		children, err := readChildren(&reader{bytes: bytes.Clone(answer)})
		if len(children) > len(answer) {
			t.Errorf("got %d children of %d bytes, %v", len(children), len(answer), err)
		}
		_, _ = readCapacity(answer, "kube")
		entries, err := readEntries(&reader{bytes: bytes.Clone(answer)})
		if len(entries) > len(answer) {
			t.Errorf("got %d entries of %d bytes, %v", len(entries), len(answer), err)
		}
		page, err := readTrash(&reader{bytes: bytes.Clone(answer)})
		if len(page) > len(answer) {
			t.Errorf("got %d trash entries of %d bytes, %v", len(page), len(answer), err)
		}
	})
}
