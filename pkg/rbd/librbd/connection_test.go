package librbd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/cluster"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/step"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

// threads counts this process's threads.
func threads(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// descriptors counts open files, sockets among them.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// resident returns the process's resident memory in MiB.
func resident(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kibibytes int
	if _, err := fmt.Sscan(rest, &kibibytes); err != nil {
		t.Fatal(err)
	}
	return kibibytes >> 10
}

// someKey returns a key that nobody has, of the oldest type.
func someKey() params.Secret {
	key := append([]byte{1, 0}, make([]byte, 8)...)
	key = append(key, 16, 0)
	secret := make([]byte, 16)
	_, _ = rand.Read(secret)
	return params.NewSecret(base64.StdEncoding.EncodeToString(append(key, secret...)))
}

// TestWrongKeysLeaveNothing connects a thousand times in vain, each time with
// another key, half of them for a user who does not exist.
func TestWrongKeysLeaveNothing(t *testing.T) {
	l := newLab(t)
	c := l.clusters(t, Options{})
	if _, err := c.Pool(t.Context(), l.place(), params.Credentials{}); err != nil {
		t.Fatal(err)
	}
	try := func(times int) {
		var group sync.WaitGroup
		for worker := range 8 {
			group.Go(func() {
				for i := worker; i < times; i += 8 {
					user := [...]string{labUser, "nobody"}[i%2]
					_, err := c.Pool(t.Context(), l.place(), params.Credentials{User: user, Key: someKey()})
					if !fault.Is(err, fault.Unauthenticated) {
						t.Errorf("got %v, want %v", err, fault.Unauthenticated)
					}
				}
			})
		}
		group.Wait()
	}
	const times = 1000
	try(times / 10) // what is kept for ever, such as arenas and idle threads of Go, is had after these
	runtime.GC()
	threadsBefore, filesBefore, memoryBefore := threads(t), descriptors(t), resident(t)
	began := time.Now()
	try(times)
	took := time.Since(began)
	runtime.GC()
	// Go and malloc keep some for the next time. What one client leaves behind when it is
	// not shut down is four threads and half a MiB.
	until(t, func() bool { return threads(t) <= threadsBefore+20 }, func() string {
		return fmt.Sprintf("got %d threads, want at most %d", threads(t), threadsBefore+20)
	})
	until(t, func() bool { return descriptors(t) <= filesBefore+10 }, func() string {
		return fmt.Sprintf("got %d files open, want at most %d", descriptors(t), filesBefore+10)
	})
	if got := resident(t); got > memoryBefore+32 {
		t.Errorf("got %d MiB, want at most 32 more than %d", got, memoryBefore)
	}
	if got := runtime.NumGoroutine(); got > 50 {
		t.Errorf("got %d goroutines, want a few", got)
	}
	t.Logf("%d in vain in %s: threads %d to %d, files %d to %d, MiB %d to %d", times, took.Round(time.Second),
		threadsBefore, threads(t), filesBefore, descriptors(t), memoryBefore, resident(t))
}

// TestOneConnectionForAll opens a place many times at once.
func TestOneConnectionForAll(t *testing.T) {
	l := newLab(t)
	c := l.clusters(t, Options{})
	before := threads(t)
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if _, err := c.Pool(t.Context(), l.place(), params.Credentials{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(c.sessions) != 1 {
		t.Errorf("got %d connections, want 1", len(c.sessions))
	}
	t.Logf("%d threads before, %d after, %d MiB", before, threads(t), resident(t))
}

// TestChangedFilesMeanAnotherConnection changes the key of the keyring's user and
// then ceph.conf, as Kubernetes does with a changed Secret.
func TestChangedFilesMeanAnotherConnection(t *testing.T) {
	l := newLab(t)
	home := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(home, os.DirFS(filepath.Join(string(l.directory), l.name))); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.directory, l.name = cluster.Directory(filepath.Dir(home)), "copy"
	c := l.clusters(t, Options{})
	open := func() (*pool, error) {
		opened, err := c.Pool(t.Context(), l.place(), params.Credentials{})
		if err != nil {
			return nil, err
		}
		return opened.(*pool), nil
	}
	first, err := open()
	if err != nil {
		t.Fatal(err)
	}
	other := l.user(t, "other", ceph.ProfileRBD())
	write("keyring", "[client.other]\nkey = "+someKey().Reveal()+"\n")
	if _, err := open(); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("wrong key in the keyring: got %v, want %v", err, fault.Unauthenticated)
	}
	write("keyring", "[client.other]\nkey = "+other.Key.Reveal()+"\n")
	second, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if first.session.Load() == second.session.Load() {
		t.Error("got the old connection after the key changed")
	}
	conf, err := os.ReadFile(filepath.Join(home, "ceph.conf"))
	if err != nil {
		t.Fatal(err)
	}
	write("ceph.conf", string(conf)+"\n# changed\n")
	third, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if second.session.Load() == third.session.Load() {
		t.Error("got the old connection after ceph.conf changed")
	}
	if _, err := first.Entries(t.Context(), "", 1); err != nil {
		t.Errorf("a pool that was opened before: %v", err)
	}
}

// TestNamesOfRook connects with what Rook keeps for its clients: the monitors' addresses by one of
// their ports, and no ceph.conf. Another order of the same monitors is the same connection,
// other monitors are another one, and ceph.conf is overruled.
func TestNamesOfRook(t *testing.T) {
	l := newLab(t)
	user := l.user(t, "rook", ceph.ProfileRBD())
	home := filepath.Join(t.TempDir(), "rook")
	write := func(name, text string) {
		if err := errors.Join(os.MkdirAll(home, 0o755), os.WriteFile(filepath.Join(home, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write("userID", user.User)
	write("userKey", user.Key.Reveal())
	l.directory, l.name = cluster.Directory(filepath.Dir(home)), "rook"
	c := l.clusters(t, Options{})
	open := func(what, endpoints string) *session {
		t.Helper()
		write("mon-endpoints", endpoints)
		opened, err := c.Pool(t.Context(), l.place(), params.Credentials{})
		if err != nil {
			t.Fatalf("%s, %s: got %v, want no error", what, endpoints, err)
		}
		if _, err := opened.Entries(t.Context(), "", 1); err != nil {
			t.Errorf("%s: got %v, want no error", what, err)
		}
		return opened.(*pool).session.Load()
	}
	v2, v1 := ports(t, l.Monitors()[0])
	const nobody = "127.0.0.1:1"
	first := open("port of version 1", "a="+v1)
	open("port of version 2", "a="+v2)
	open("a monitor that is gone", "a="+v1+",b="+nobody)
	if again := open("as at first", "a="+v1+"\n"); again != first {
		t.Errorf("the same monitors: got another connection, want the one that is there")
	}
	write("ceph.conf", "[global]\nmon_host = "+nobody+"\nrados_osd_op_timeout = 77\n")
	open("beside a ceph.conf", "a="+v1)
	write("mon-endpoints", "a="+nobody)
	if _, err := c.Pool(t.Context(), l.place(), params.Credentials{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("no monitor answers: got %v, want %v", err, fault.Unavailable)
	}
}

// ports returns where a monitor listens with both versions of the protocol; in mon_host it is
// [v2:HOST:PORT,v1:HOST:PORT].
func ports(t *testing.T, monitor string) (v2, v1 string) {
	t.Helper()
	entry := parseMonitors(monitor)
	if len(entry) != 1 || len(entry[0].endpoints) != 2 {
		t.Fatalf("monitor %s: got %+v, want one with two endpoints", monitor, entry)
	}
	return entry[0].endpoints[0], entry[0].endpoints[1]
}

// TestIdle holds that a connection without use is closed when someone asks for
// another, and that a pool which was opened on it connects anew.
func TestIdle(t *testing.T) {
	l := newLab(t)
	c := l.clusters(t, Options{Idle: time.Nanosecond})
	p, err := c.Pool(t.Context(), l.place(), params.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	old := p.(*pool).session.Load()
	other := l.user(t, "other", ceph.ProfileRBD())
	if _, err := c.Pool(t.Context(), l.place(), other); err != nil {
		t.Fatal(err)
	}
	if old.usable() {
		t.Error("got the idle connection in use, want it closed")
	}
	if _, err := p.Entries(t.Context(), "", 1); err != nil || p.(*pool).session.Load() == old {
		t.Errorf("a pool that was opened on it: got %v, want a new connection", err)
	}
}

// TestClosed holds that Close waits for what is under way and ends everything.
func TestClosed(t *testing.T) {
	l := newLab(t)
	opened := func() (*Clusters, rbd.Pool) {
		c := New(l.directory, Options{})
		p, err := c.Pool(t.Context(), l.place(), params.Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		return c, p
	}
	first, _ := opened() // the first of a process opens what stays open
	closeIt(t, first)
	before := descriptors(t)
	c, p := opened()
	closeIt(t, c)
	if _, err := p.FindName(t.Context(), "x"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("FindName: got %v, want %v", err, fault.Unavailable)
	}
	if _, err := c.Pool(t.Context(), l.place(), params.Credentials{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Pool: got %v, want %v", err, fault.Unavailable)
	}
	until(t, func() bool { return descriptors(t) <= before }, func() string {
		return fmt.Sprintf("got %d files open, want %d", descriptors(t), before)
	})
}

// TestBlocklisted puts the driver's own client into the blocklist, as the next
// taker of a lock does with a client that stalled.
func TestBlocklisted(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	id := create(t, p, "a", mapped())
	for name, call := range map[string]func() error{
		"one operation": func() error { _, err := p.FindName(t.Context(), "a"); return err },
		"a write": func() error {
			return p.ChangeMeta(t.Context(), id, rbd.Change{Set: map[string]string{rbd.MetaPrefix + "k": name(t)}})
		},
		"librbd, reading": func() error { _, err := p.HoldsData(t.Context(), id); return err },
		"librbd, writing": func() error { return p.Grow(t.Context(), id, mapped().Bytes+mebibyte) },
	} {
		old := p.session.Load()
		client := clientAddress(t, l, old)
		l.run(t, "osd", "blocklist", "add", client)
		// The OSDs learn of it by the next map; until then the old client works.
		until(t, func() bool {
			if err := call(); err != nil {
				t.Fatalf("%s, blocklisted: %v", name, err)
			}
			return p.session.Load() != old
		}, func() string { return name + ": got the old connection, want a new one" })
		l.run(t, "osd", "blocklist", "rm", client)
	}
}

func name(t *testing.T) string { return t.Name() }

// clientAddress finds a client by its number among the watchers of an object that
// it watches... its address is what rados_getaddrs gives.
func clientAddress(t *testing.T, l *lab, s *session) string {
	t.Helper()
	addresses, err := s.conn.GetAddrs()
	if err != nil {
		t.Fatal(err)
	}
	// "127.0.0.1:0/1234567" or "[v2:...,v1:...]"
	addresses = strings.Trim(addresses, "[]")
	first, _, _ := strings.Cut(addresses, ",")
	for _, prefix := range []string{"v1:", "v2:", "any:", "-"} {
		first = strings.TrimPrefix(first, prefix)
	}
	return first
}

// TestMonitors holds what is said of monitors that are not there, and of a wrong
// key when only some are.
func TestMonitors(t *testing.T) {
	l := newLab(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	const nobody = "127.0.0.1:1"
	living := strings.Join(l.Monitors(), ",")
	right, wrong := l.user(t, labUser, ceph.ProfileRBD()), params.Credentials{User: labUser, Key: someKey()}
	unknown := params.Credentials{User: "nobody", Key: someKey()}
	for _, one := range []struct {
		name, hosts string
		as          params.Credentials
		want        fault.Kind // Internal: none
		says        string
	}{
		{"nobody there", nobody, right, fault.Unavailable, "no monitor answers"},
		{"silent", silent.Addr().String(), right, fault.Unavailable, "no monitor answers"},
		{"no such host", "no-such-host.invalid", right, fault.Unavailable, "cannot be resolved"},
		{"none named", "", right, fault.Unavailable, "mon_host"},
		{"one of two", living + "," + nobody, right, fault.Internal, ""},
		{"wrong key at one of two", living + "," + nobody, wrong, fault.Unauthenticated, "user or its key"},
		{"unknown user at one of two", nobody + "," + living, unknown, fault.Unauthenticated, "user or its key"},
		{"key that is none", living, params.Credentials{User: labUser, Key: params.NewSecret("x")}, fault.Unauthenticated, "base64"},
	} {
		t.Run(one.name, func(t *testing.T) {
			l := *l
			home := filepath.Join(t.TempDir(), "main")
			if err := os.Mkdir(home, 0o700); err != nil {
				t.Fatal(err)
			}
			conf := "[global]\n"
			if one.hosts != "" {
				conf += "mon host = " + one.hosts + "\n"
			}
			if err := os.WriteFile(filepath.Join(home, "ceph.conf"), []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			l.directory, l.name = cluster.Directory(filepath.Dir(home)), "main"
			began := time.Now()
			_, err := l.clusters(t, Options{Connect: 2 * time.Second}).Pool(t.Context(), l.place(), one.as)
			t.Logf("%s: %v", time.Since(began).Round(time.Millisecond), err)
			if one.want == fault.Internal && err != nil || one.want != fault.Internal && !fault.Is(err, one.want) {
				t.Errorf("got %v, want %v", err, one.want)
			}
			if err != nil && !strings.Contains(err.Error(), one.says) {
				t.Errorf("got %v, want %q in it", err, one.says)
			}
			if err != nil && strings.Contains(err.Error(), one.as.Key.Reveal()) && len(one.as.Key.Reveal()) > 1 {
				t.Errorf("got the key in %v", err)
			}
		})
	}
}

// TestCallerIsLetGo freezes the OSD: callers leave at their deadlines, what they
// left is bounded, and everything works when the OSD goes on.
func TestCallerIsLetGo(t *testing.T) {
	l := ownLab(t, ceph.Options{OSDs: 1})
	const slots = 4
	opened, err := l.clusters(t, Options{Calls: slots}).Pool(t.Context(), l.place(), params.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	p := opened.(*pool)
	id := create(t, p, "a", mapped())
	if err := l.Freeze(t.Context(), "osd.0"); err != nil {
		t.Fatal(err)
	}
	for i := range slots {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err := p.AddName(ctx, fmt.Sprint("late-", i), id)
		cancel()
		if !fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "write the name late-") || !strings.Contains(err.Error(), l.name) {
			t.Errorf("AddName: got %v, want %v that names step and cluster", err, fault.Unknown)
		}
	}
	began := time.Now()
	watched, watcher := step.Watch(t.Context())
	_, err = p.FindName(watched, "a")
	if !fault.Is(err, fault.Unavailable) || time.Since(began) > 2*time.Second || !strings.Contains(err.Error(), "late-0") {
		t.Errorf("FindName after %s: got %v, want %v at once, naming the oldest call", time.Since(began), err, fault.Unavailable)
	}
	_ = watcher
	if err := l.Thaw(t.Context(), "osd.0"); err != nil {
		t.Fatal(err)
	}
	for i := range slots { // what nobody waited for was applied in the end
		until(t, func() bool {
			got, err := p.FindName(t.Context(), fmt.Sprint("late-", i))
			return got == id && err == nil
		}, func() string { return fmt.Sprintf("late-%d: want it written", i) })
	}
}

// TestMonitorsFreeze lets the only monitor hang: a known pool needs none, and a new
// connection is given up in time.
func TestMonitorsFreeze(t *testing.T) {
	l := ownLab(t, ceph.Options{OSDs: 1})
	p := l.open(t, l.place())
	id := create(t, p, "a", mapped())
	fresh := l.clusters(t, Options{Connect: 2 * time.Second})
	if err := l.Freeze(t.Context(), "mon.a"); err != nil {
		t.Fatal(err)
	}
	thaw := sync.OnceFunc(func() {
		if err := l.Thaw(context.WithoutCancel(t.Context()), "mon.a"); err != nil {
			t.Error(err)
		}
	})
	defer thaw()
	if got, err := p.FindName(t.Context(), "a"); got != id || err != nil {
		t.Errorf("FindName: got %q, %v; want %q", got, err, id)
	}
	if _, err := p.clusters.Pool(t.Context(), l.place(), params.Credentials{}); err != nil {
		t.Errorf("Pool that is known: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := fresh.Pool(ctx, l.place(), params.Credentials{})
	if !fault.Is(err, fault.Unavailable) || time.Since(began) > 2*time.Second || !strings.Contains(err.Error(), "connect to cluster") {
		t.Errorf("a new connection, for 0.5 s: got %v after %s, want %v that names the step", err, time.Since(began), fault.Unavailable)
	}
	if _, err = fresh.Pool(t.Context(), l.place(), params.Credentials{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a new connection: got %v, want %v", err, fault.Unavailable)
	}
	thaw()
	until(t, func() bool { _, err = fresh.Pool(t.Context(), l.place(), params.Credentials{}); return err == nil },
		func() string { return fmt.Sprintf("after the thaw: %v", err) })
}

// TestOSDRestarts kills the only OSD under a connection that has nothing to do and an old map, for so long that
// it is seldom tried any more, and starts it again at another address.
func TestOSDRestarts(t *testing.T) {
	l := ownLab(t, ceph.Options{})
	p := l.open(t, l.place())
	id := create(t, p, "a", mapped())
	l.run(t, "osd", "set", "noout") // another map
	if err := l.Kill(t.Context(), "osd.0"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(7 * time.Second)
	if err := l.Restart(t.Context(), "osd.0"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	got, err := p.FindName(t.Context(), "a")
	if took := time.Since(began); got != id || err != nil || took > 10*time.Second {
		t.Errorf("FindName: got %q, %v after %s; want %q within 10 s", got, err, took, id)
	} else {
		t.Logf("found after %s", took)
	}
}

// TestFullPool sets a quota and fills it.
func TestFullPool(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.place())
	id := create(t, p, "a", mapped())
	l.run(t, "osd", "pool", "set-quota", l.Pool(), "max_objects", "1")
	began := time.Now()
	var err error
	until(t, func() bool {
		err = p.AddName(t.Context(), "full-"+rbd.NewID(), id)
		return err != nil
	}, func() string { return "got names written, want the pool full" })
	if !fault.Is(err, fault.Exhausted) {
		t.Errorf("AddName: got %v after %s, want %v", err, time.Since(began), fault.Exhausted)
	}
	if err := p.CreateHeader(t.Context(), rbd.NewID(), mapped(), nil); !fault.Is(err, fault.Exhausted) {
		t.Errorf("CreateHeader: got %v, want %v", err, fault.Exhausted)
	}
	// What gives space back works, also what makes an object for it.
	if err := errors.Join(
		p.ReserveHeader(t.Context(), "v2", nil), p.RemoveHeader(t.Context(), "v2"),
		p.AddTrash(t.Context(), id, "a"), p.RemoveName(t.Context(), "a", id),
		p.RemoveEntry(t.Context(), "a", id), p.Purge(t.Context(), id),
	); err != nil {
		t.Errorf("removing in a full pool: %v", err)
	}
}

// TestPoolMadeAnew removes a pool and makes another one of the same name.
func TestPoolMadeAnew(t *testing.T) {
	l := newLab(t)
	raw := l.Pool() + "-raw"
	l.run(t, "osd", "pool", "create", raw, "8")
	t.Cleanup(func() { _ = l.RemovePool(context.WithoutCancel(t.Context()), raw) })
	c, place := l.clusters(t, Options{}), volid.Pool{Cluster: l.name, Pool: raw}
	old, err := c.Pool(t.Context(), place, params.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if err := old.AddName(t.Context(), "a", "v1"); err != nil {
		t.Fatal(err)
	}
	if err := l.RemovePool(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	if _, err := old.FindName(t.Context(), "a"); !fault.Is(err, fault.NotFound) {
		t.Errorf("removed: got %v, want %v", err, fault.NotFound)
	}
	l.run(t, "osd", "pool", "create", raw, "8")
	until(t, func() bool { _, err = old.FindName(t.Context(), "a"); return fault.Is(err, fault.Superseded) },
		func() string { return fmt.Sprintf("made anew: got %v, want %v", err, fault.Superseded) })
	anew, err := c.Pool(t.Context(), place, params.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if anew.Where().PoolID == old.Where().PoolID {
		t.Errorf("got pool ID %d again", anew.Where().PoolID)
	}
	if _, err := anew.FindName(t.Context(), "a"); !fault.Is(err, fault.NotFound) {
		t.Errorf("FindName: got %v, want %v", err, fault.NotFound)
	}
}

// TestRemovedNamespace holds that an entry is not added to a namespace that was
// removed after it had been found: it would be there again, half.
func TestRemovedNamespace(t *testing.T) {
	l := newLab(t)
	p := l.open(t, l.namespace())
	spec := l.Pool() + "/" + labNamespace
	if _, err := l.RBD(t.Context(), "namespace", "remove", spec); err != nil {
		t.Fatal(err)
	}
	if err := p.AddEntry(t.Context(), "a", rbd.NewID()); !fault.Is(err, fault.NotFound) {
		t.Errorf("AddEntry: got %v, want %v", err, fault.NotFound)
	}
	if left, err := l.Objects(l.namespace()); len(left) > 0 {
		t.Errorf("got %q, %v; want nothing", left, err)
	}
}
