package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

const gib = 1 << 30

var (
	kube   = volid.Pool{Cluster: "main", Pool: "kube"}
	nobody params.Credentials
)

func newCeph() *rbdtest.Ceph {
	ceph := rbdtest.New()
	ceph.AddCluster("main").AddUser("csi", "KEY").AddPool("kube")
	return ceph
}

// A driver is one process of the driver and what it has put into the trash.
type driver struct {
	*Store
	ceph    *rbdtest.Ceph
	process *rbdtest.Process
	mu      sync.Mutex
	removed []Removed
	deep    []Deep
}

func start(ceph *rbdtest.Ceph) *driver {
	d := &driver{ceph: ceph, process: ceph.Process()}
	d.Store = NewStore(d.process, Options{
		Removed: func(r Removed) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.removed = append(d.removed, r)
		},
		Deep: func(one Deep) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.deep = append(d.deep, one)
		},
		FlattenDepth: 3,
	})
	return d
}

// purgeAll frees everything that a fresh process finds in the trash.
func purgeAll(t *testing.T, ceph *rbdtest.Ceph) {
	t.Helper()
	purger := NewPurger(PurgeOptions{Grace: -1})
	purger.store = start(ceph).Store
	if err := purger.Sweep(t.Context()); err != nil {
		t.Fatalf("Sweep: %v", err)
	}
	for purger.Waiting() > 0 {
		removed, _ := purger.next()
		if err := purger.purge(t.Context(), removed); err != nil {
			t.Fatalf("purge: %v", err)
		}
		purger.finish(removed)
	}
}

func specOf(name string) CreateSpec {
	return CreateSpec{
		Handle:  volid.Image{Pool: kube, Name: name},
		Request: name,
		Size:    func(content int64) (int64, error) { return max(gib, content), nil },
		Class: params.Class{
			Pool: kube, ObjectSize: 4 << 20, Features: params.DefaultFeatures,
			Owner: params.Owner{Volume: name, Claim: "data-web-0", ClaimNamespace: "shop"},
		},
		Fits: func(bytes int64) bool { return bytes == gib },
	}
}

func (d *driver) create(ctx context.Context, name string) error {
	_, err := d.Create(ctx, specOf(name), nobody)
	return err
}

func (d *driver) delete(ctx context.Context, name string) error {
	return d.Delete(ctx, specOf(name).Handle, nobody)
}

// halfMade leaves what another process leaves that is killed before a step of its create.
func (d *driver) halfMade(ctx context.Context, before string) error {
	killed := start(d.ceph)
	killed.process.Fail(rbdtest.Fault{Method: before, Kill: true})
	if err := killed.create(ctx, "pvc-1"); err == nil {
		return errors.New("the create was not killed")
	}
	return nil
}

// wantOne checks that exactly one volume of that name is there, whole, and nothing else.
func wantOne(t *testing.T, ceph *rbdtest.Ceph, name string) {
	t.Helper()
	objects, err := ceph.Objects(kube)
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 4 {
		t.Fatalf("objects left:\n%s\nwant the four of one volume", strings.Join(objects, "\n"))
	}
	if _, err := start(ceph).Get(t.Context(), specOf(name).Handle, nobody); err != nil {
		t.Fatalf("Get: %v\nobjects:\n%s", err, strings.Join(objects, "\n"))
	}
}

func wantNothing(t *testing.T, ceph *rbdtest.Ceph) {
	t.Helper()
	objects, err := ceph.Objects(kube)
	objects = slices.DeleteFunc(objects, func(line string) bool { return line == "rbd_csi.index complete 1" })
	if err != nil || len(objects) > 0 {
		t.Fatalf("objects left (error %v):\n%s\nwant none", err, strings.Join(objects, "\n"))
	}
}

func TestOperationsOfARequest(t *testing.T) {
	ceph := newCeph()
	d := start(ceph)
	node := AttachSpec{Node: "node-a", Mode: "single", Single: true}
	handle := specOf("pvc-1").Handle
	for _, step := range []struct {
		name string
		most int
		do   func() error
	}{
		{"create", 5, func() error { return d.create(t.Context(), "pvc-1") }},
		{"create again", 3, func() error { return d.create(t.Context(), "pvc-1") }},
		{"get", 2, func() error { _, err := d.Get(t.Context(), handle, nobody); return err }},
		{"attach", 3, func() error { _, err := d.Attach(t.Context(), handle, node, nobody); return err }},
		{"attach again", 2, func() error { _, err := d.Attach(t.Context(), handle, node, nobody); return err }},
		{"detach of what was not staged", 5, func() error { return d.Detach(t.Context(), handle, "node-a", nobody) }},
		{"detach again", 2, func() error { return d.Detach(t.Context(), handle, "node-a", nobody) }},
		{"delete", 6, func() error { return d.delete(t.Context(), "pvc-1") }},
		{"delete again", 2, func() error { return d.delete(t.Context(), "pvc-1") }},
	} {
		d.process.Reset()
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := d.process.Operations(); got != step.most {
			t.Errorf("%s: %d operations (%v), want %d", step.name, got, d.process.Methods(), step.most)
		}
	}
}

// TestEachStepFails fails every call that a request makes, one at a time, before
// and after it took effect, late, and by killing the process, and then repeats
// the request from another process. What is left must be what one good request leaves.
func TestEachStepFails(t *testing.T) {
	requests := map[string]struct {
		before, request func(ctx context.Context, d *driver) error
		want            func(t *testing.T, ceph *rbdtest.Ceph)
	}{
		"create": {
			before:  func(context.Context, *driver) error { return nil },
			request: func(ctx context.Context, d *driver) error { return d.create(ctx, "pvc-1") },
			want:    func(t *testing.T, ceph *rbdtest.Ceph) { wantOne(t, ceph, "pvc-1") },
		},
		"delete": {
			before:  func(ctx context.Context, d *driver) error { return d.create(ctx, "pvc-1") },
			request: func(ctx context.Context, d *driver) error { return d.delete(ctx, "pvc-1") },
			want:    wantNothing,
		},
		"attach": {
			before: func(ctx context.Context, d *driver) error { return d.create(ctx, "pvc-1") },
			request: func(ctx context.Context, d *driver) error {
				_, err := d.Attach(ctx, specOf("pvc-1").Handle, AttachSpec{Node: "a", Mode: "m", Single: true}, nobody)
				return err
			},
			want: func(t *testing.T, ceph *rbdtest.Ceph) {
				got, err := start(ceph).Get(t.Context(), specOf("pvc-1").Handle, nobody)
				if err != nil || !slices.Equal(got.Nodes, []string{"a"}) {
					t.Fatalf("nodes %v, error %v, want one entry for a", got.Nodes, err)
				}
			},
		},
		"delete what has no header": {
			before:  func(ctx context.Context, d *driver) error { return d.halfMade(ctx, "CreateHeader") },
			request: func(ctx context.Context, d *driver) error { return d.delete(ctx, "pvc-1") },
			want:    wantNothing,
		},
		"delete what has no name": {
			before:  func(ctx context.Context, d *driver) error { return d.halfMade(ctx, "AddName") },
			request: func(ctx context.Context, d *driver) error { return d.delete(ctx, "pvc-1") },
			want:    wantNothing,
		},
		"create then delete": {
			before: func(context.Context, *driver) error { return nil },
			request: func(ctx context.Context, d *driver) error {
				if err := d.create(ctx, "pvc-1"); err != nil {
					return err
				}
				return d.delete(ctx, "pvc-1")
			},
			want: wantNothing,
		},
	}
	for name, test := range requests {
		t.Run(name, func(t *testing.T) { eachStepFails(t, test.before, test.request, test.want) })
	}
}

// eachStepFails is the way in which a request's calls fail, one after the other.
func eachStepFails(t *testing.T, before, request func(context.Context, *driver) error, want func(*testing.T, *rbdtest.Ceph)) {
	for _, how := range []rbdtest.Fault{
		{When: rbdtest.Before}, {When: rbdtest.After}, {When: rbdtest.Late},
		{When: rbdtest.Before, Kill: true}, {When: rbdtest.After, Kill: true},
	} {
		t.Run(fmt.Sprintf("%s/kill=%t", how.When, how.Kill), func(t *testing.T) {
			for skip := 0; ; skip++ {
				ceph := newCeph()
				first := start(ceph)
				if err := before(t.Context(), first); err != nil {
					t.Fatal(err)
				}
				how.Skip = skip
				first.process.Fail(how)
				first.process.Reset()
				err := request(t.Context(), first)
				ceph.Land()
				if err == nil {
					if skip < 2 {
						t.Fatalf("the request made only %d calls", skip)
					}
					return
				}
				second := start(ceph)
				if err := request(t.Context(), second); err != nil {
					t.Fatalf("repeated after call %d (%v) failed: %v", skip+1, first.process.Methods(), err)
				}
				purgeAll(t, ceph)
				want(t, ceph)
			}
		})
	}
}

// TestTwoProcesses stops one process before each of its calls, lets another do
// a whole request, and then lets the first go on. Both requests are repeated
// until they succeed, in that order, and the last one decides what is left.
func TestTwoProcesses(t *testing.T) {
	type request func(ctx context.Context, d *driver) error
	create := func(ctx context.Context, d *driver) error { return d.create(ctx, "pvc-1") }
	remove := func(ctx context.Context, d *driver) error { return d.delete(ctx, "pvc-1") }
	both := func(ctx context.Context, d *driver) error { return errors.Join(create(ctx, d), remove(ctx, d)) }
	thrice := func(ctx context.Context, d *driver) error { return errors.Join(both(ctx, d), create(ctx, d)) }
	for name, test := range map[string]struct {
		exists        bool
		first, second request
	}{
		"create, create":               {false, create, create},
		"create, create delete":        {false, create, both},
		"create, create delete create": {false, create, thrice},
		"create, delete":               {false, create, remove},
		"delete, create":               {true, remove, create},
		"delete, delete":               {true, remove, remove},
		"delete, delete create":        {true, remove, func(ctx context.Context, d *driver) error { return errors.Join(remove(ctx, d), create(ctx, d)) }},
	} {
		t.Run(name, func(t *testing.T) {
			for stop := 0; ; stop++ {
				ceph := newCeph()
				first, second := start(ceph), start(ceph)
				if test.exists {
					if err := create(t.Context(), first); err != nil {
						t.Fatal(err)
					}
				}
				calls, met := 0, false
				first.process.OnCall(func(ctx context.Context, _ rbdtest.Call) {
					if calls++; calls == stop+1 {
						met = true
						if err := test.second(ctx, second); err != nil && !fault.Is(err, fault.Superseded) {
							t.Errorf("stop %d: second: %v", stop, err)
						}
						purgeAll(t, ceph)
					}
				})
				err := test.first(t.Context(), first)
				if !met {
					return
				}
				if err != nil && !fault.Is(err, fault.Superseded) {
					t.Errorf("stop %d: first: %v (calls %v)", stop, err, first.process.Methods())
				}
				for _, settle := range []struct {
					do   request
					want func()
				}{
					{create, func() { wantOne(t, ceph, "pvc-1") }},
					{remove, func() { wantNothing(t, ceph) }},
				} {
					if err := settle.do(t.Context(), start(ceph)); err != nil {
						t.Fatalf("stop %d: repeated: %v", stop, err)
					}
					purgeAll(t, ceph)
					settle.want()
				}
			}
		})
	}
}
