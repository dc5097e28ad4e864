package volume

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/image"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
)

// A fencing is a volume that nodes have mapped, and the processes of controllers.
type fencing struct {
	*testing.T
	ceph *rbdtest.Ceph
	now  time.Time
}

func newFencing(t *testing.T) *fencing {
	f := &fencing{T: t, ceph: rbdtest.New(), now: time.Now()}
	f.ceph.AddCluster("main").AddUser("csi", "KEY").AddOperator("operator", "SECRET").AddPool("kube")
	must(t, f.start().create(t.Context(), "pvc-1"))
	return f
}

// start starts a controller whose clock is the test's.
func (f *fencing) start() *driver {
	d := start(f.ceph)
	d.options.Now = func() time.Time { return f.now }
	return d
}

func (f *fencing) look() image.Image {
	f.Helper()
	found, err := image.Find(f.Context(), f.ceph.Process(), specOf("pvc-1").Handle, nobody)
	must(f.T, err)
	return found
}

// attach gives a node the right to the volume; several nodes have it when mode is m.
func (f *fencing) attach(node, mode string) Attachment {
	f.Helper()
	right, err := f.start().Attach(f.Context(), specOf("pvc-1").Handle, AttachSpec{Node: node, Mode: mode, Single: mode == "single"}, nobody)
	must(f.T, err)
	return right
}

// stage attaches a node, maps the volume there, and records the client.
func (f *fencing) stage(node, mode, client string) rbdtest.Client {
	f.Helper()
	right := f.attach(node, mode)
	opened, err := f.ceph.OpenAs(specOf("pvc-1").Handle, client)
	must(f.T, err)
	_, err = f.look().Claim(f.Context(), image.Claim{Node: node, Generation: right.Generation, Client: client, Boot: "boot-" + node})
	must(f.T, err)
	must(f.T, opened.Write(node))
	return opened
}

func (f *fencing) detach(node string) error {
	return f.start().Detach(f.Context(), specOf("pvc-1").Handle, node, nobody)
}

// fenced returns the clients in the blocklist, and holds that each has a note and the other way round.
func (f *fencing) fenced() []string {
	f.Helper()
	pool, err := f.ceph.Process().Pool(f.Context(), kube, nobody)
	must(f.T, err)
	listed, err := pool.Blocklisted(f.Context())
	must(f.T, err)
	notes, err := pool.NotedFences(f.Context())
	must(f.T, err)
	clients := slices.Sorted(maps.Keys(listed))
	if noted := slices.Sorted(maps.Keys(notes)); !slices.Equal(clients, noted) {
		f.Errorf("clients %v are blocklisted and %v are noted, want the same", clients, noted)
	}
	return clients
}

func (f *fencing) wantFenced(want ...string) {
	f.Helper()
	if got := f.fenced(); !slices.Equal(got, want) {
		f.Errorf("fenced %v, want %v", got, want)
	}
}

func TestDetachAfterUnstage(t *testing.T) {
	f := newFencing(t)
	f.stage("a", "single", "10.0.0.1:0/7").Close()
	must(t, image.Release(t.Context(), f.ceph.Process(), specOf("pvc-1").Handle, "a"))
	for _, most := range []int{3, 2} {
		d := f.start()
		must(t, d.Detach(t.Context(), specOf("pvc-1").Handle, "a", nobody))
		if got := d.process.Operations(); got != most {
			t.Errorf("%d operations (%v), want %d", got, d.process.Methods(), most)
		}
	}
	f.wantFenced()
	must(t, f.start().delete(t.Context(), "pvc-1"))
}

func TestDetachFencesAfterTheGrace(t *testing.T) {
	f := newFencing(t)
	client := f.stage("a", "single", "10.0.0.1:0/7")
	before := f.look().Marks.Attachments.Generation
	want(t, "detach", f.detach("a"), fault.Superseded, "client 10.0.0.1:0/7, which has 5s")
	f.wantFenced()
	if after := f.look().Marks.Attachments.Generation; after <= before {
		t.Errorf("generation %d after %d, want it raised", after, before)
	}
	_, err := f.look().Claim(t.Context(), image.Claim{Node: "a", Generation: before, Client: "10.0.0.1:0/8", Boot: "boot"})
	want(t, "a new mapping while detaching", err, fault.InUse, "not attached")
	_, err = f.start().Attach(t.Context(), specOf("pvc-1").Handle, AttachSpec{Node: "b", Mode: "single", Single: true}, nobody)
	want(t, "attach elsewhere while detaching", err, fault.InUse, "held by node a as single, which is being detached")
	must(t, client.Write("still there"))

	f.now = f.now.Add(4 * time.Second)
	want(t, "detach within the grace time", f.detach("a"), fault.Superseded, "")
	f.now = f.now.Add(2 * time.Second)
	must(t, f.detach("a"))
	f.wantFenced("10.0.0.1:0/7")
	if client.Write("late") == nil {
		t.Error("the fenced client wrote")
	}
	d := f.start()
	must(t, d.Detach(t.Context(), specOf("pvc-1").Handle, "a", nobody))
	if got := d.process.Operations(); got != 2 {
		t.Errorf("a repeated detach takes %d operations, want 2", got)
	}
	must(t, f.stage("b", "single", "10.0.0.2:0/7").Write("new"))
}

func TestDetachDoesNotWaitForWhoIsSilent(t *testing.T) {
	f := newFencing(t)
	client := f.stage("a", "single", "10.0.0.1:0/7")
	f.ceph.Lose("10.0.0.1:0/7")
	must(t, f.detach("a"))
	f.wantFenced("10.0.0.1:0/7")
	if client.Write("late") == nil {
		t.Error("the fenced client wrote")
	}
}

func TestUnstagedWithinTheGrace(t *testing.T) {
	f := newFencing(t)
	client := f.stage("a", "single", "10.0.0.1:0/7")
	want(t, "detach", f.detach("a"), fault.Superseded, "")
	client.Close()
	must(t, image.Release(t.Context(), f.ceph.Process(), specOf("pvc-1").Handle, "a"))
	must(t, f.detach(""))
	f.wantFenced()
}

// TestWhoIsFenced detaches node a, which has recorded 10.0.0.1:0/1 or nothing, while others use the image.
func TestWhoIsFenced(t *testing.T) {
	const own, other, stranger, control = "10.0.0.1:0/1", "10.0.0.2:0/2", "10.0.0.3:0/3", "10.0.0.4:0/4"
	use := func(f *fencing, client string) {
		f.Helper()
		_, err := f.ceph.OpenAs(specOf("pvc-1").Handle, client)
		must(f.T, err)
	}
	for name, test := range map[string]struct {
		before func(f *fencing)
		want   []string
	}{
		"nobody, and nothing was staged": {func(f *fencing) { f.attach("a", "single") }, nil},
		"its own":                        {func(f *fencing) { f.stage("a", "single", own) }, []string{own}},
		"its own, not recorded": {func(f *fencing) {
			f.attach("a", "single")
			use(f, own)
		}, []string{own}},
		"its own, recorded by another node that stays": {func(f *fencing) {
			f.attach("a", "many")
			f.stage("b", "many", other)
		}, nil},
		"each node its own": {func(f *fencing) {
			f.stage("a", "many", own)
			f.stage("b", "many", other)
		}, []string{own}},
		"a stranger too": {func(f *fencing) {
			f.stage("a", "single", own)
			use(f, stranger)
		}, []string{own, stranger}},
		"a stranger who only owns the lock": {func(f *fencing) {
			f.attach("a", "single")
			client, err := f.ceph.OpenAs(specOf("pvc-1").Handle, stranger)
			must(f.T, err)
			must(f.T, client.Write("x"))
			f.ceph.Lose(stranger)
		}, []string{stranger}},
		"not a connection of the driver's": {func(f *fencing) {
			f.stage("a", "single", own)
			use(f, control)
			f.ceph.MakeControl(control)
		}, []string{own}},
		"not who may belong to a node that is staging": {func(f *fencing) {
			f.stage("a", "many", own)
			f.attach("b", "many")
			use(f, other)
		}, []string{own}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFencing(t)
			test.before(f)
			if err := f.detach("a"); !fault.Is(err, fault.Superseded) {
				must(t, err)
			}
			f.now = f.now.Add(DefaultGrace)
			must(t, f.detach("a"))
			f.wantFenced(test.want...)
		})
	}
}

func TestALockThatWasFencedBefore(t *testing.T) {
	f := newFencing(t)
	f.stage("a", "single", "10.0.0.1:0/1")
	f.ceph.Lose("10.0.0.1:0/1")
	must(t, f.detach("a"))
	f.attach("b", "single")
	must(t, f.detach("b"))
	fences, err := f.start().Fences(t.Context(), "main")
	must(t, err)
	if len(fences) != 1 || fences[0].Node != "a" || !fences[0].Recorded || fences[0].Boot != "boot-a" {
		t.Errorf("fences %+v, want the one of node a", fences)
	}
}

func TestNoBareAddressIsFenced(t *testing.T) {
	for _, client := range []string{"10.0.0.1:0/0", "10.0.0.1", "10.0.0.0/24"} {
		f := newFencing(t)
		right := f.attach("a", "single")
		_, err := f.look().Claim(t.Context(), image.Claim{Node: "a", Generation: right.Generation, Client: client, Boot: "boot"})
		want(t, "claim", err, fault.Unsupported, client)
		record := f.look().Marks.Attachments
		entry, _ := record.Of("a")
		entry.Client = client
		_, err = f.look().SetAttachments(t.Context(), record.With(entry))
		must(t, err)
		want(t, "detach", f.detach("a"), fault.InUse, client)
		f.wantFenced()
	}
}

// TestClocksApart has the controllers' clocks differ by more than the grace: it ends.
func TestClocksApart(t *testing.T) {
	for _, apart := range []time.Duration{-time.Hour, time.Hour} {
		f := newFencing(t)
		f.stage("a", "single", "10.0.0.1:0/7")
		want(t, "detach", f.detach("a"), fault.Superseded, "")
		f.now = f.now.Add(apart)
		must(t, f.detach("a"))
	}
}

// TestEachStepOfADetachFails fails each call of a detach that fences, one at a time, in each way, and
// goes on in another process. The volume may not be free before the client is shut out.
func TestEachStepOfADetachFails(t *testing.T) {
	for _, how := range []rbdtest.Fault{
		{When: rbdtest.Before}, {When: rbdtest.After}, {When: rbdtest.Late},
		{When: rbdtest.Before, Kill: true}, {When: rbdtest.After, Kill: true},
	} {
		t.Run(fmt.Sprintf("%s/kill=%t", how.When, how.Kill), func(t *testing.T) {
			for skip := 0; ; skip++ {
				f := newFencing(t)
				client := f.stage("a", "single", "10.0.0.1:0/7")
				first := f.start()
				how.Skip = skip
				first.process.Fail(how)
				ended := f.untilDetached(client, first)
				f.ceph.Land()
				if !ended {
					f.wantDetached(client)
				}
				if !f.untilDetached(client, f.start()) {
					t.Fatalf("call %d failed (%v), and another process did not end the detach", skip+1, first.process.Methods())
				}
				f.wantDetached(client)
				if ended && skip > 12 {
					return
				}
			}
		})
	}
}

// untilDetached detaches as the attacher does, again and again, and reports whether that succeeded.
func (f *fencing) untilDetached(client rbdtest.Client, d *driver) bool {
	f.Helper()
	for range 4 {
		err := d.Detach(f.Context(), specOf("pvc-1").Handle, "a", nobody)
		if err == nil {
			if client.Write("late") == nil {
				f.Fatalf("the client wrote after the detach had succeeded (calls %v)", d.process.Methods())
			}
			return true
		}
		f.now = f.now.Add(3 * time.Second)
	}
	return false
}

// wantDetached holds that the record lets nobody else in before the client is shut out.
func (f *fencing) wantDetached(client rbdtest.Client) {
	f.Helper()
	if _, there := f.look().Marks.Attachments.Of("a"); !there && client.Write("late") == nil {
		f.Fatal("the entry is gone and the client writes")
	}
}

// TestTwoProcessesDetach stops one controller before each of its calls and lets another go ahead.
func TestTwoProcessesDetach(t *testing.T) {
	for name, second := range map[string]func(ctx context.Context, f *fencing) error{
		"detach": func(ctx context.Context, f *fencing) error { return f.detach("a") },
		"detach, and attach elsewhere": func(ctx context.Context, f *fencing) error {
			if err := f.detach("a"); err != nil {
				return err
			}
			_, err := f.start().Attach(ctx, specOf("pvc-1").Handle, AttachSpec{Node: "b", Mode: "single", Single: true}, nobody)
			return err
		},
		"unstage": func(ctx context.Context, f *fencing) error {
			return image.Release(ctx, f.ceph.Process(), specOf("pvc-1").Handle, "a")
		},
		"thaw and stage": func(ctx context.Context, f *fencing) error {
			found := f.look()
			_, err := found.Claim(ctx, image.Claim{Node: "a", Generation: 1, Client: "10.0.0.1:0/8", Boot: "boot-a"})
			if err == nil {
				return nil
			}
			return fmt.Errorf("%w: %w", fault.Superseded, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for stop := 1; ; stop++ {
				f := newFencing(t)
				client := f.stage("a", "single", "10.0.0.1:0/7")
				if err := f.detach("a"); !fault.Is(err, fault.Superseded) {
					t.Fatalf("detach: %v, want %v", err, fault.Superseded)
				}
				f.now = f.now.Add(time.Minute)
				calls, met := 0, false
				first := f.start()
				first.process.OnCall(func(ctx context.Context, _ rbdtest.Call) {
					if calls++; calls != stop {
						return
					}
					met = true
					if err := second(ctx, f); err != nil && !fault.Is(err, fault.Superseded) {
						t.Errorf("stop %d: second: %v", stop, err)
					}
				})
				must(t, first.Detach(t.Context(), specOf("pvc-1").Handle, "a", nobody))
				if !met {
					return
				}
				if entry, there := f.look().Marks.Attachments.Of("a"); there {
					t.Errorf("stop %d: entry %+v after detach, want none", stop, entry)
				}
				if name != "unstage" && client.Write("late") == nil {
					t.Errorf("stop %d: the client writes after detach", stop)
				}
			}
		})
	}
}

// TestFencesLast has a client that was blocklisted for an hour by someone else: that entry is not
// replaced, so it has to be made anew when it has ended.
func TestFencesLast(t *testing.T) {
	f := newFencing(t)
	client := f.stage("a", "single", "10.0.0.1:0/7")
	operator := params.Credentials{User: "operator", Key: params.NewSecret("SECRET")}
	pool, err := f.ceph.Process().Pool(t.Context(), kube, operator)
	must(t, err)
	_, err = pool.Blocklist(t.Context(), "", "10.0.0.1:0/7", time.Hour)
	must(t, err)
	must(t, f.detach("a"))
	next, err := f.start().RenewFences(t.Context(), "main")
	if err != nil || next != renewEvery {
		t.Errorf("renew: next after %v, error %v, want %v", next, err, renewEvery)
	}
	f.now = f.now.Add(time.Hour - time.Minute)
	if next, err = f.start().RenewFences(t.Context(), "main"); err != nil || next < time.Minute || next > 2*time.Minute {
		t.Errorf("renew a minute before its end: next after %v, error %v, want a minute and a little", next, err)
	}
	must(t, pool.Unblocklist(t.Context(), "10.0.0.1:0/7")) // as its end does
	must(t, client.Write("in between"))
	_, err = f.start().RenewFences(t.Context(), "main")
	must(t, err)
	if client.Write("late") == nil {
		t.Error("the client writes, although its fence was renewed")
	}
	f.wantFenced("10.0.0.1:0/7")
}

func TestUnfence(t *testing.T) {
	f := newFencing(t)
	f.stage("a", "single", "10.0.0.1:0/7")
	f.ceph.Lose("10.0.0.1:0/7")
	must(t, f.detach("a"))
	d := f.start()
	fences, err := d.Fences(t.Context(), "main")
	must(t, err)
	if len(fences) != 1 || fences[0].Client != "10.0.0.1:0/7" || fences[0].Image != "main:kube/pvc-1" || fences[0].Lasts.IsZero() {
		t.Fatalf("fences %+v, want one", fences)
	}
	for _, test := range []struct {
		node, boot string
		want       bool
	}{{"a", "boot-a", false}, {"a", "boot-later", true}, {"b", "boot-later", false}, {"a", "", false}} {
		if got := fences[0].Booted(test.node, test.boot); got != test.want {
			t.Errorf("node %s with boot %q: gone %t, want %t", test.node, test.boot, got, test.want)
		}
	}
	want(t, "as the driver's user", d.Unfence(t.Context(), fences[0], nobody), fault.Denied, "10.0.0.1:0/7")
	f.wantFenced("10.0.0.1:0/7")
	must(t, d.Unfence(t.Context(), fences[0], params.Credentials{User: "operator", Key: params.NewSecret("SECRET")}))
	f.wantFenced()
}
