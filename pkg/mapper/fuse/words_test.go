package fuse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

const fsid = "145edb2b-87ef-4b31-b989-49483aee2ee7"

func image(name string) volid.Image {
	return volid.Image{Pool: volid.Pool{Cluster: "a", Pool: "kube", Namespace: "team"}, Name: name}
}

func TestFolder(t *testing.T) {
	tests := []struct {
		target mapper.Target
		want   string // "" for fault.Invalid
	}{
		{mapper.Target{FSID: fsid, PoolID: 2, ImageID: "10f59d5db539"}, fsid + ".2.10f59d5db539"},
		{mapper.Target{FSID: fsid, PoolID: 0, ImageID: "vib8y8awhr9yre"}, fsid + ".0.vib8y8awhr9yre"},
		{mapper.Target{FSID: "", PoolID: 2, ImageID: "1"}, ""},
		{mapper.Target{FSID: "../..", PoolID: 2, ImageID: "1"}, ""},
		{mapper.Target{FSID: fsid, PoolID: -1, ImageID: "1"}, ""},
		{mapper.Target{FSID: fsid, PoolID: 2, ImageID: ""}, ""},
		{mapper.Target{FSID: fsid, PoolID: 2, ImageID: "../1"}, ""},
	}
	for _, test := range tests {
		got, err := folderOf(test.target)
		if got != test.want || (test.want == "") != fault.Is(err, fault.Invalid) {
			t.Errorf("folderOf(%+v): got %q, %v, want %q", test.target, got, err, test.want)
		}
		if again, ok := targetOf(got); test.want != "" && (!ok || again != test.target) {
			t.Errorf("targetOf(%q): got %+v, %t, want %+v", got, again, ok, test.target)
		}
	}
	for _, folder := range []string{"", "lost+found", fsid, fsid + ".2", fsid + ".2.a.b", fsid + ".02.a", fsid + ".2.", "x.2.a"} {
		if got, ok := targetOf(folder); ok {
			t.Errorf("targetOf(%q): got %+v, want that it is none", folder, got)
		}
	}
}

func FuzzTargetOf(f *testing.F) {
	f.Add(fsid + ".2.10f59d5db539")
	f.Fuzz(func(t *testing.T, folder string) {
		target, ok := targetOf(folder)
		if !ok {
			return
		}
		if again, err := folderOf(target); err != nil || again != folder {
			t.Errorf("folderOf(targetOf(%q)): got %q, %v, want the same", folder, again, err)
		}
	})
}

func TestSource(t *testing.T) {
	for _, name := range []string{"pvc-1", "a b", "what?", "x?ro,1.2.3.4:0", "#,=%"} {
		for _, readOnly := range []bool{false, true} {
			want := source{image: image(name), readOnly: readOnly, client: "10.0.0.1:0/42"}
			text := Source(mapper.Target{Image: want.image}, readOnly, want.client)
			if got, ok := parseSource(text); !ok || got != want {
				t.Errorf("parseSource(%q): got %+v, %t, want %+v", text, got, ok, want)
			}
		}
	}
	for _, text := range []string{"", "none", "a:kube/x", "a:kube/x?rw", "a:kube/x?wr,1", "kube?rw,1"} {
		if got, ok := parseSource(text); ok {
			t.Errorf("parseSource(%q): got %+v, want that it is none", text, got)
		}
	}
}

func FuzzParseSource(f *testing.F) {
	f.Add("a:kube/x?rw,10.0.0.1:0/42")
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := parseSource(text)
		if !ok {
			return
		}
		if again := Source(mapper.Target{Image: got.image}, got.readOnly, got.client); again != text {
			t.Errorf("Source(parseSource(%q)): got %q, want the same", text, again)
		}
	})
}

func TestBlocklistable(t *testing.T) {
	tests := []struct{ addresses, want string }{ // "" for an error
		{"127.0.0.1:0/3101953711", "127.0.0.1:0/3101953711"},
		{"v1:10.1.2.3:0/7", "10.1.2.3:0/7"},
		{"v2:10.1.2.3:0/7", "10.1.2.3:0/7"},
		{"any:10.1.2.3:0/7", "10.1.2.3:0/7"},
		{"[v2:10.1.2.3:0/7,v1:10.1.2.3:0/7]", "10.1.2.3:0/7"},
		{"[fd00::1]:0/7", "[fd00::1]:0/7"},
		{"v2:[fd00::1]:0/7", "[fd00::1]:0/7"},
		{"[v2:[fd00::1]:0/7,v1:[fd00::1]:0/7]", "[fd00::1]:0/7"},
		{"", ""},
		{"-", ""},
		{"10.1.2.3", ""},
		{"10.1.2.3:0", ""},
		{"10.1.2.3:0/", ""},
		{"10.1.2.0/24", ""}, // a range would shut out many
	}
	for _, test := range tests {
		got, err := Blocklistable(test.addresses)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("Blocklistable(%q): got %q, %v, want %q", test.addresses, got, err, test.want)
		}
	}
}

func TestCheckOptions(t *testing.T) {
	tests := []struct {
		option string
		ok     bool
	}{
		{"rbd_qos_iops_limit=50", true},
		{"rbd_cache_policy=writearound", false},
		{"exclusive", false},
		{"ro", false},
	}
	for _, test := range tests {
		err := CheckOptions([]string{"rbd_cache=true", test.option})
		if (err == nil) != test.ok || err != nil && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), fmt.Sprintf("%q", test.option))) {
			t.Errorf("CheckOptions(%q): got %v, want success %t or an Invalid error that names it", test.option, err, test.ok)
		}
	}
}

func TestOrder(t *testing.T) {
	const key = "AQD0aGVsbG8gd29ybGQ="
	want := Order{
		Target:   mapper.Target{Image: image("pvc-1"), FSID: fsid, PoolID: 3, ImageID: "abc"},
		Monitors: "10.1.1.1:6789", Settings: "[global]\n", ReadOnly: true, Options: []string{"rbd_cache=false"},
		Credentials: params.Credentials{User: "kube", Key: params.NewSecret(key)},
		Directory:   "/run/x", Timeout: 5 * time.Second,
	}
	var pipe bytes.Buffer
	if err := want.Send(&pipe); err != nil {
		t.Fatal(err)
	}
	got, err := ReceiveOrder(&pipe)
	if err != nil || got.Credentials.Key.Reveal() != key {
		t.Fatalf("ReceiveOrder: got key %q, %v, want %q", got.Credentials.Key.Reveal(), err, key)
	}
	got.Credentials.Key = want.Credentials.Key // a Secret is behind a pointer
	if !reflect.DeepEqual(got, want) {
		t.Errorf("ReceiveOrder: got %+v, want %+v", got, want)
	}
	text, err := json.Marshal(want)
	if shown := fmt.Sprintf("%v %+v %#v %s", want, want, want, text); err != nil || strings.Contains(shown, key) {
		t.Errorf("an order that is printed: got %s, %v, want no key in it", shown, err)
	}
	if _, err := ReceiveOrder(strings.NewReader(`{"Key":"` + key)); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), key) {
		t.Errorf("ReceiveOrder of half an order: got %v, want an Invalid error without the key", err)
	}
}

func TestAnswer(t *testing.T) {
	for _, kind := range fault.Kinds() {
		var pipe bytes.Buffer
		sent := fmt.Errorf("open the image: %w: %w", kind, errors.New("ret=-5"))
		if err := SendAnswer(&pipe, sent); err != nil {
			t.Fatal(err)
		}
		got := ReceiveAnswer(&pipe)
		if fault.Of(got) != kind || got.Error() != sent.Error() {
			t.Errorf("answer %v: got %v of kind %v", sent, got, fault.Of(got))
		}
	}
	var pipe bytes.Buffer
	if err := SendAnswer(&pipe, nil); err != nil {
		t.Fatal(err)
	}
	if got := ReceiveAnswer(&pipe); got != nil {
		t.Errorf("answer of success: got %v, want nil", got)
	}
	if got := ReceiveAnswer(strings.NewReader("Segmentation fault\n")); !errors.Is(got, errNoAnswer) {
		t.Errorf("no answer: got %v, want %v", got, errNoAnswer)
	}
}

func TestWait(t *testing.T) {
	var left leftBehind
	if got, err := wait(t.Context(), &left, "add", func() (int, error) { return 42, nil }); got != 42 || err != nil {
		t.Errorf("wait: got %d, %v, want 42", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told := func() (int, error) {
		<-ctx.Done()
		return 0, fmt.Errorf("step three: %w", fault.Unavailable)
	}
	cancel()
	if _, err := wait(ctx, &left, "add", told); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "step three") {
		t.Errorf("wait for a call that knows why: got %v, want its error", err)
	}

	stuck := make(chan struct{})
	for range maxLeftBehind {
		_, err := wait(ctx, &left, "hang", func() (int, error) { <-stuck; return 0, nil })
		if !fault.Is(err, fault.Unknown) {
			t.Fatalf("wait for a call that hangs: got %v, want kind %q", err, fault.Unknown)
		}
	}
	begun := false
	_, err := wait(ctx, &left, "one more", func() (int, error) { begun = true; return 0, nil })
	if !fault.Is(err, fault.Unavailable) || begun {
		t.Errorf("wait with %d calls left behind: got %v, begun %t, want kind %q and not begun", maxLeftBehind, err, begun, fault.Unavailable)
	}
	close(stuck)
	if err := poll(t.Context(), func() (bool, error) { return left.count.Load() == 0, nil }); err != nil {
		t.Errorf("calls left behind after they returned: got %d, want 0", left.count.Load())
	}
}

func TestLock(t *testing.T) {
	at := place{path: filepath.Join(t.TempDir(), "folder")}
	if _, err := at.lock(t.Context(), false); !errors.Is(err, errNoFolder) {
		t.Errorf("lock without a folder: got %v, want %v", err, errNoFolder)
	}
	unlock, err := at.lock(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*tick)
	defer cancel()
	if _, err := at.lock(ctx, true); !fault.Is(err, fault.Unavailable) {
		t.Errorf("lock of what is locked: got %v, want kind %q", err, fault.Unavailable)
	}

	// The next one must not get a lock on the folder that is being removed.
	next := make(chan error, 1)
	go func() {
		unlock, err := at.lock(t.Context(), true)
		if err == nil {
			_, err = os.Stat(at.path)
			unlock()
		}
		next <- err
	}()
	if err := at.make(); err != nil {
		t.Fatal(err)
	}
	if err := at.remove(); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-next; err != nil {
		t.Errorf("lock of a folder that was removed: got %v, want one on a folder that is there", err)
	}
}

// TestRemoveIsCareful: a folder that is not as it should be is left alone.
func TestRemoveIsCareful(t *testing.T) {
	at := place{path: t.TempDir()}
	if err := at.make(); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(at.mount(), "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := at.remove(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("remove: got %v, want kind %q", err, fault.Unavailable)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("a file in the folder: got %v, want it there", err)
	}
}

func TestNothingIsMapped(t *testing.T) {
	m := New(Options{Directory: filepath.Join(t.TempDir(), "none"), Launch: func(context.Context, Order) error {
		t.Error("Launch was called, want no worker")
		return io.ErrUnexpectedEOF
	}})
	target := mapper.Target{Image: image("x"), FSID: fsid, PoolID: 1, ImageID: "a"}
	if devices, err := m.Devices(t.Context()); err != nil || len(devices) > 0 {
		t.Errorf("Devices: got %+v, %v, want none", devices, err)
	}
	if err := m.Unmap(t.Context(), mapper.Device{Target: target}); err != nil {
		t.Errorf("Unmap: got %v, want no error", err)
	}
	if _, err := m.Grow(t.Context(), mapper.Device{Target: target}); !fault.Is(err, fault.NotFound) {
		t.Errorf("Grow: got %v, want kind %q", err, fault.NotFound)
	}
	if _, err := os.Stat(m.options.Directory); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory: got %v, want that none was made", err)
	}
	for _, request := range []mapper.Request{
		{Target: mapper.Target{Image: image(""), FSID: fsid, PoolID: 1, ImageID: "a"}},
		{Target: mapper.Target{Image: image("x"), FSID: fsid, PoolID: 1, ImageID: "../a"}},
		{Target: target, Options: []string{"nonsense"}},
	} {
		if _, err := m.Map(t.Context(), request); !fault.Is(err, fault.Invalid) {
			t.Errorf("Map(%+v): got %v, want kind %q", request, err, fault.Invalid)
		}
	}
}
