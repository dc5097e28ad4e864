package rbdtest

import (
	"context"
	"slices"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// open returns the pool kube as a process sees it.
func open(t *testing.T, process *Process) rbd.Pool {
	t.Helper()
	pool, err := process.Pool(t.Context(), kube(), params.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

func TestFaults(t *testing.T) {
	const always = 5
	for _, one := range []struct {
		name   string
		fault  Fault
		errors []fault.Kind // of that many calls of AddName n1, n2, ...; Internal: none
		landed []string     // what is there at once
		later  []string     // what is there after Land
	}{
		{"before", Fault{Method: "AddName"}, []fault.Kind{fault.Unavailable, fault.Internal}, []string{"n2"}, []string{"n2"}},
		{"after", Fault{Method: "AddName", When: After}, []fault.Kind{fault.Unknown, fault.Internal}, []string{"n1", "n2"}, []string{"n1", "n2"}},
		{"late", Fault{Method: "AddName", When: Late}, []fault.Kind{fault.Unknown, fault.Internal}, []string{"n2"}, []string{"n1", "n2"}},
		{"own error", Fault{Err: fault.Exhausted}, []fault.Kind{fault.Exhausted, fault.Internal}, []string{"n2"}, []string{"n2"}},
		{"other method", Fault{Method: "AddEntry"}, []fault.Kind{fault.Internal}, []string{"n1"}, []string{"n1"}},
		{"about", Fault{About: "n2"}, []fault.Kind{fault.Internal, fault.Unavailable}, []string{"n1"}, []string{"n1"}},
		{"skip and twice", Fault{Skip: 1, Times: 2}, []fault.Kind{fault.Internal, fault.Unavailable, fault.Unavailable, fault.Internal}, []string{"n1", "n4"}, []string{"n1", "n4"}},
		{"always", Fault{Times: Always}, slices.Repeat([]fault.Kind{fault.Unavailable}, always), nil, nil},
		{"killed after", Fault{When: After, Kill: true}, []fault.Kind{fault.Unavailable, fault.Unavailable}, []string{"n1"}, []string{"n1"}},
		{"killed before", Fault{Kill: true}, []fault.Kind{fault.Unavailable, fault.Unavailable}, nil, nil},
		{"killed and late", Fault{When: Late, Kill: true}, []fault.Kind{fault.Unavailable}, nil, []string{"n1"}},
	} {
		t.Run(one.name, func(t *testing.T) {
			ceph := newCeph()
			process := ceph.Process()
			pool, other := open(t, process), open(t, ceph.Process())
			process.Fail(one.fault)
			for i, want := range one.errors {
				err := pool.AddName(t.Context(), "n"+string(rune('1'+i)), "id")
				if want == fault.Internal && err != nil || want != fault.Internal && !fault.Is(err, want) {
					t.Errorf("call %d: got %v, want %v", i+1, err, want)
				}
			}
			if process.Killed() != one.fault.Kill {
				t.Errorf("killed: got %v, want %v", process.Killed(), one.fault.Kill)
			}
			standing := func(when string, want []string) {
				for _, name := range []string{"n1", "n2", "n3", "n4", "n5"} {
					_, err := other.FindName(t.Context(), name)
					if (err == nil) != slices.Contains(want, name) {
						t.Errorf("%s: %s: got %v, want %v", when, name, err, want)
					}
				}
			}
			standing("at once", one.landed)
			ceph.Land()
			standing("after landing", one.later)
		})
	}
}

func TestLostAnswerTellsNothing(t *testing.T) {
	process := newCeph().Process()
	pool := open(t, process)
	if err := pool.AddName(t.Context(), "n", "id"); err != nil {
		t.Fatal(err)
	}
	process.Fail(Fault{When: After})
	if id, err := pool.FindName(t.Context(), "n"); id != "" || !fault.Is(err, fault.Unknown) {
		t.Errorf("got %q, %v; want no ID and %v", id, err, fault.Unknown)
	}
}

func TestHealForgetsFaults(t *testing.T) {
	process := newCeph().Process()
	pool := open(t, process)
	process.Fail(Fault{Times: Always})
	process.Heal()
	if err := pool.AddName(t.Context(), "n", "id"); err != nil {
		t.Error(err)
	}
}

// TestHook lets one process act in the middle of another's steps.
func TestHook(t *testing.T) {
	ceph := newCeph()
	one, two := ceph.Process(), ceph.Process()
	first, second := open(t, one), open(t, two)
	one.OnCall(func(ctx context.Context, call Call) {
		if call.Method == "AddName" && call.About == "n" && call.Place == kube() {
			if err := second.AddName(ctx, "n", "two"); err != nil {
				t.Error(err)
			}
		}
	})
	if err := first.AddName(t.Context(), "n", "one"); !fault.Is(err, fault.Exists) {
		t.Errorf("got %v, want %v", err, fault.Exists)
	}
	if id, err := first.FindName(t.Context(), "n"); id != "two" || err != nil {
		t.Errorf("got %q, %v; want two", id, err)
	}
}

func TestCallsAndOperations(t *testing.T) {
	ceph := newCeph()
	at := kube()
	at.Namespace = "team"
	process := ceph.Process()
	pool, err := process.Pool(t.Context(), at, params.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := process.Pool(t.Context(), at, params.Credentials{}); err != nil {
		t.Fatal(err)
	}
	if got := process.Operations(); got != 1 {
		t.Errorf("opening a namespace twice: got %d operations, want 1", got)
	}
	process.Reset()
	layout, id := mapped(), rbd.NewID()
	for _, err := range []error{
		pool.AddEntry(t.Context(), "n", id), pool.CreateHeader(t.Context(), id, layout, nil),
		pool.EnsureObjectMap(t.Context(), id, layout), pool.AddName(t.Context(), "n", id), pool.AddName(t.Context(), "n", id),
	} {
		if err != nil && !fault.Is(err, fault.Exists) {
			t.Error(err)
		}
	}
	if got := process.Operations(); got != 5 {
		t.Errorf("creating: got %d operations, want 5", got)
	}
	want := []string{"AddEntry", "CreateHeader", "EnsureObjectMap", "AddName", "AddName"}
	if got := process.Methods(); !slices.Equal(got, want) {
		t.Errorf("methods: got %v, want %v", got, want)
	}
	if calls := process.Calls(); calls[3].Err != nil || !fault.Is(calls[4].Err, fault.Exists) || calls[3].About != "n" {
		t.Errorf("calls: got %v, want the last one refused", calls)
	}
}

func TestDump(t *testing.T) {
	ceph := newCeph()
	pool := open(t, ceph.Process())
	if got := ceph.Dump(); len(got) != 0 {
		t.Errorf("an empty Ceph: got %q, want nothing", got)
	}
	id, err := ceph.Create(volid.Image{Pool: kube(), Name: "n"}, mapped())
	if err != nil {
		t.Fatal(err)
	}
	if err := pool.ChangeMeta(t.Context(), id, rbd.Change{Set: map[string]string{rbd.MetaPrefix + "k": "v"}}); err != nil {
		t.Fatal(err)
	}
	if err := pool.AddTrash(t.Context(), "v1", "gone"); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"main:kube rbd_directory n " + id,
		"main:kube rbd_header." + id,
		"main:kube rbd_header." + id + " metadata_rbd-csi.io/k = v",
		"main:kube rbd_id.n",
		"main:kube rbd_object_map." + id,
		"main:kube rbd_trash v1 gone",
	}
	if got := ceph.Dump(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestStates holds what a cluster answers that is down or full.
func TestStates(t *testing.T) {
	ceph := newCeph()
	process := ceph.Process()
	pool := open(t, process)
	cluster := ceph.AddCluster("other").AddUser("csi", "K").AddPool("p")
	cluster.SetDown(true)
	if _, err := process.Pool(t.Context(), volid.Pool{Cluster: "other", Pool: "p"}, params.Credentials{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Pool of a cluster that is down: got %v, want %v", err, fault.Unavailable)
	}
	ceph.clusters["main"].SetDown(true)
	if err := pool.AddName(t.Context(), "n", "id"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("AddName, down: got %v, want %v", err, fault.Unavailable)
	}
	ceph.clusters["main"].SetDown(false).SetFull("kube", true)
	if err := pool.AddName(t.Context(), "n", "id"); !fault.Is(err, fault.Exhausted) {
		t.Errorf("AddName, full: got %v, want %v", err, fault.Exhausted)
	}
	if err := pool.RemoveName(t.Context(), "n", "id"); err != nil {
		t.Errorf("RemoveName, full: got %v, want nil", err)
	}
}
