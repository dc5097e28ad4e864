package rbdtest

import (
	"fmt"
	"maps"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// fenceCases are about who uses an image, and about shutting clients out.
func fenceCases() []trialCase {
	return []trialCase{
		{"users of nothing", func(t *trial) {
			_, err := t.pool.Users(t.Context(), rbd.NewID())
			t.is("Users", err, fault.NotFound)
		}},
		{"users", testUsers},
		{"a client that is shut out", testBlocklist},
		{"no exact client", func(t *trial) {
			for _, client := range []string{"10.0.0.1:0/0", "10.0.0.1", "10.0.0.1:0", "10.0.0.0/24", "10.0.0.0:0/24,10.0.0.1:0/1", ""} {
				_, err := t.pool.Blocklist(t.Context(), rbd.NewID(), client, time.Hour)
				t.is("Blocklist "+client, err, fault.Invalid)
				t.is("Unblocklist "+client, t.pool.Unblocklist(t.Context(), client), fault.Invalid)
			}
		}},
		{"the image is gone", func(t *trial) {
			const client = "10.9.8.7:0/654321"
			t.blocklist(rbd.NewID(), client, time.Hour)
			t.unblocklist(client)
		}},
		{"an entry ends", func(t *trial) {
			const client = "10.9.8.7:0/654322"
			t.blocklist(rbd.NewID(), client, time.Second)
			for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
				if listed, err := t.pool.Blocklisted(t.Context()); err != nil || listed[client].IsZero() {
					t.ok(err)
					return
				}
			}
			t.Errorf("%s is still blocklisted 30 s after its second was over", client)
		}},
		{"an entry keeps its time", func(t *trial) {
			const client, year = "10.9.8.7:0/654324", 24 * 365 * time.Hour
			t.blocklist(rbd.NewID(), client, time.Hour)
			until, err := t.pool.Blocklist(t.Context(), rbd.NewID(), client, year)
			if left := time.Until(until); err != nil || left > time.Hour+time.Minute {
				t.Errorf("a second entry: until %v, error %v, want the first one's hour", until, err)
			}
			t.blocklisted(client, time.Hour)
			t.unblocklist(client)
			t.blocklist(rbd.NewID(), client, year)
			t.unblocklist(client)
		}},
		{"who may remove", func(t *trial) {
			const client = "10.9.8.7:0/654323"
			t.blocklist(rbd.NewID(), client, time.Hour)
			t.is("Unblocklist as the driver's user", t.pool.Unblocklist(t.Context(), client), fault.Denied)
			t.blocklisted(client, time.Hour)
			t.unblocklist(client)
			t.unblocklist(client)
			if listed, err := t.pool.Blocklisted(t.Context()); err != nil || !listed[client].IsZero() {
				t.Errorf("after Unblocklist: %v until %v, want none", err, listed[client])
			}
		}},
		{"notes", testNotes},
	}
}

func testUsers(t *trial) {
	image := t.image("a")
	id := t.make(image, mapped(), nil)
	t.uses(id)
	first := t.open(image)
	t.uses(id, rbd.User{Client: first.Address(), Watches: true})
	t.ok(first.Write("one"))
	t.uses(id, rbd.User{Client: first.Address(), Watches: true, Owns: true})
	second := t.open(image)
	t.ok(second.Write("two"))
	t.uses(id, rbd.User{Client: first.Address(), Watches: true}, rbd.User{Client: second.Address(), Watches: true, Owns: true})
	first.Close()
	t.uses(id, rbd.User{Client: second.Address(), Watches: true, Owns: true})
	second.Close()
	t.uses(id)
	t.ok(t.pool.Grow(t.Context(), id, 128*mebibyte))
	t.uses(id)
	t.remove(image, id)
}

// testBlocklist shuts out the owner of the lock, and takes the image over.
func testBlocklist(t *trial) {
	image := t.image("a")
	id := t.make(image, mapped(), nil)
	frozen, other := t.open(image), t.open(image)
	t.ok(frozen.Write("old"))
	t.blocklist(id, frozen.Address(), time.Hour)
	if err := frozen.Write("late"); err == nil {
		t.Error("a blocklisted client wrote")
	}
	t.ok(other.Write("new"))
	if err := frozen.Write("late"); err == nil {
		t.Error("a blocklisted client wrote over its successor")
	}
	frozen.Close()
	t.uses(id, rbd.User{Client: other.Address(), Watches: true, Owns: true})
	if text, err := t.ReadAt(image, 0, 3); text != "new" || err != nil {
		t.Errorf("read %q, error %v, want new", text, err)
	}
	other.Close()
	t.unblocklist(frozen.Address())
	t.remove(image, id)
}

func testNotes(t *trial) {
	ctx := t.Context()
	want := map[string]string{}
	before, err := t.pool.NotedFences(ctx)
	t.ok(err)
	if len(before) > 0 {
		t.Errorf("notes %v before the first", before)
	}
	t.ok(t.pool.ForgetFence(ctx, "10.0.0.1:0/1"))
	for i := range 5 {
		client := fmt.Sprintf("10.0.0.1:0/%d", i+1)
		want[client] = fmt.Sprintf("{\"n\":%d}", i)
		t.ok(t.pool.NoteFence(ctx, client, "first"))
		t.ok(t.pool.NoteFence(ctx, client, want[client]))
	}
	got, err := t.pool.NotedFences(ctx)
	t.ok(err)
	if !maps.Equal(got, want) {
		t.Errorf("notes %v, want %v", got, want)
	}
	for client := range want {
		t.ok(t.pool.ForgetFence(ctx, client))
		t.ok(t.pool.ForgetFence(ctx, client))
	}
	if got, err = t.pool.NotedFences(ctx); len(got) > 0 || err != nil {
		t.Errorf("notes %v, error %v after all are forgotten, want none", got, err)
	}
}

func (t *trial) open(image volid.Image) Client {
	t.Helper()
	opened, err := t.Open(image)
	t.ok(err)
	return opened
}

// uses waits until exactly these clients use the image: a client that closes it gives up its lock by and by.
func (t *trial) uses(id string, want ...rbd.User) {
	t.Helper()
	wanted := map[rbd.User]bool{}
	for _, user := range want {
		wanted[user] = true
	}
	var got []rbd.User
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		var err error
		got, err = t.pool.Users(t.Context(), id)
		t.ok(err)
		same := len(got) == len(want)
		for _, user := range got {
			same = same && wanted[user]
		}
		if same {
			return
		}
	}
	t.Errorf("users %+v, want %+v", got, want)
}

// blocklist shuts a client out that is not yet.
func (t *trial) blocklist(id, client string, lasts time.Duration) {
	t.Helper()
	until, err := t.pool.Blocklist(t.Context(), id, client, lasts)
	t.ok(err)
	if left := time.Until(until); left > lasts+time.Minute || left < lasts-time.Minute {
		t.Errorf("%s is blocklisted for %v, want %v", client, left, lasts)
	}
	t.blocklisted(client, lasts)
}

// blocklisted reports when a client is not in the blocklist for about that long.
func (t *trial) blocklisted(client string, lasts time.Duration) {
	t.Helper()
	listed, err := t.pool.Blocklisted(t.Context())
	t.ok(err)
	if left := time.Until(listed[client]); left > lasts+time.Minute || left < lasts-time.Minute {
		t.Errorf("%s is blocklisted for %v, want %v", client, left, lasts)
	}
}

// unblocklist removes a client from the blocklist as the operator.
func (t *trial) unblocklist(client string) {
	t.Helper()
	pool, err := t.Process(t.T).Pool(t.Context(), t.at, t.Operator)
	t.ok(err)
	t.ok(pool.Unblocklist(t.Context(), client))
}
