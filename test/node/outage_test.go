package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

// These are rounds of TestFaults in which a part of the cluster fails, or what the driver has from it.

// outage is how long a daemon is stopped: of `make faults` a minute, and otherwise as long as requests need to show that they wait.
func outage(share int) time.Duration {
	if share > 0 {
		return time.Minute
	}
	return 5 * time.Second
}

// heartbeatGrace is after how long OSDs report a peer that is silent (osd_heartbeat_grace).
const heartbeatGrace = 20 * time.Second

// askedFor is how long a request may take that is sent to a cluster that does not answer.
const askedFor = 3 * time.Second

// A silencing is how a daemon falls silent, and how it comes back.
type silencing struct {
	begin, end func(ctx context.Context, daemon string) error
}

func (m *Machine) stops() silencing { return silencing{m.Ceph.Freeze, m.Ceph.Thaw} }

func (m *Machine) dies() silencing { return silencing{m.Ceph.Kill, m.Ceph.Restart} }

// silent is one round: a daemon falls silent under a writer. Requests of both services are answered within their deadlines
// meanwhile, also those of a volume that is taken from its node; afterwards the writer goes on without an error, and so do requests.
func (m *Machine) silent(t *testing.T, kind, daemon string, falls silencing, outage time.Duration) {
	t.Helper()
	v, leaving := m.made(t, kind, nil), m.made(t, kind, nil)
	v.write(t, m.Node)
	leaving.write(t, m.Node)
	stop := v.writing(t)
	check(t, falls.begin(t.Context(), daemon))
	returns := sync.OnceValue(func() error { return falls.end(context.WithoutCancel(t.Context()), daemon) })
	t.Cleanup(func() { _ = returns() })
	claim := m.claim(kind, v.Name+"-meanwhile")
	for end := time.Now().Add(outage); time.Now().Before(end); {
		m.answersWithin(t, "create", func(ctx context.Context) error { _, err := m.Controller.Create(ctx, claim); return err })
		m.answersWithin(t, "health", func(ctx context.Context) error { return v.healthy(ctx, m.Node) })
		m.answersWithin(t, "stats", func(ctx context.Context) error { return v.stats(ctx, m.Node) })
		m.answersWithin(t, "unpublish", func(ctx context.Context) error { return m.Node.Unpublish(ctx, leaving.Volume, leaving.Name) })
		m.answersWithin(t, "unstage", func(ctx context.Context) error { return m.Node.Unstage(ctx, leaving.Volume) })
	}
	m.missed(t, daemon, outage)
	check(t, returns())
	began := time.Now()
	made := m.again(t, func() (driver.Volume, error) { return m.Controller.Create(t.Context(), claim) })
	check(t, m.Controller.Delete(t.Context(), made))
	m.again(t, func() (driver.Volume, error) { return leaving.Volume, leaving.downOnce(t.Context(), m.Node) })
	check(t, m.Controller.Delete(t.Context(), leaving.Volume))
	if took := time.Since(began); took > back {
		t.Errorf("%s after %s went on a volume was made and deleted, and another taken from its node, want at most %s", took, daemon, back)
	}
	stop()
	v.ends(t)
}

// stats asks a node how much of the volume is in use.
func (v *volume) stats(ctx context.Context, node *driver.Process) error {
	_, err := node.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{
		VolumeId: v.Handle, VolumePath: node.TargetPath(v.Name), StagingTargetPath: node.StagingPath(v.Volume),
	})
	return err
}

// healthy asks a node how the volume is.
func (v *volume) healthy(ctx context.Context, node *driver.Process) error {
	_, err := node.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{
		VolumeId: v.Handle, StagingTargetPath: node.StagingPath(v.Volume), VolumePublishPath: node.TargetPath(v.Name),
	})
	return err
}

// missed does for a lone OSD that was stopped for so long what its peers would have done: it tells the monitors. An OSD without
// any may leave a placement group laggy for ever when it goes on (seen on 16.2.15 and 18.2.7).
func (m *Machine) missed(t *testing.T, daemon string, outage time.Duration) {
	t.Helper()
	if daemon == "osd.0" && outage > heartbeatGrace {
		_, err := m.Ceph.Ceph(t.Context(), "osd", "down", "0")
		check(t, err)
	}
}

// answersWithin sends a request that may fail, if only it is answered in time and is asked again by the sidecars.
func (m *Machine) answersWithin(t *testing.T, what string, send func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), askedFor)
	defer cancel()
	began := time.Now()
	err := send(ctx)
	if took := time.Since(began); took > askedFor+time.Second || err != nil && !driver.StillGoing(err) {
		t.Errorf("%s after %s: %v, want success, or a code after which it is asked again, within %s", what, took, err, askedFor)
	}
}

// again asks as the sidecars do, until it is done.
func (m *Machine) again(t *testing.T, send func() (driver.Volume, error)) driver.Volume {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		made, err := send()
		if err == nil {
			return made
		}
		if !driver.StillGoing(err) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// claim asks for a volume of that name.
func (m *Machine) claim(kind, name string) driver.Claim {
	return driver.Claim{Volume: name, Bytes: gib, Parameters: m.Parameters(), Use: kinds[kind]}
}

// ends checks that the data is there, and takes the volume down and deletes it.
func (v *volume) ends(t *testing.T) {
	t.Helper()
	v.read(t, v.Node)
	v.down(t, v.Node)
	check(t, v.Controller.Delete(t.Context(), v.Volume))
}

// powerLoss is one round: everything ends at once, cluster, driver and client, as on a machine that loses power, and
// starts again. What was synced is there.
func (m *Machine) powerLoss(t *testing.T, kind string) {
	t.Helper()
	v := m.made(t, kind, nil)
	v.write(t, m.Node)
	failed := v.writeBehind(t)
	m.killWorker(t, v)
	ctx := t.Context()
	check(t, errors.Join(m.Controller.Kill(), m.Node.Kill(), m.Ceph.Kill(ctx, "osd.0"), m.Ceph.Kill(ctx, "mon.a")))
	if err := <-failed; err == nil {
		t.Error("the writer ended without an error, want one of I/O")
	}
	check(t, errors.Join(m.Ceph.Restart(ctx, "mon.a"), m.Ceph.Restart(ctx, "osd.0"), m.Ceph.WaitHealthy(ctx)))
	check(t, errors.Join(m.Controller.Start(ctx), m.Node.Start(ctx)))
	// This kernel has not lost its mounts, which are dead now.
	check(t, m.Node.Unpublish(ctx, v.Volume, v.Name))
	m.again(t, func() (driver.Volume, error) { return v.Volume, m.Node.Unstage(ctx, v.Volume) })
	m.again(t, func() (driver.Volume, error) { return v.Volume, m.Node.Stage(ctx, v.Volume, v.attached) })
	check(t, m.Node.Publish(ctx, v.Volume, v.attached, v.Name))
	v.ends(t)
}

// full is one round: the pool's quota is reached under a volume in use. New volumes are refused with the reason, what is
// there can be read, detached and deleted, and when there is space again all is as before.
func (m *Machine) full(t *testing.T, kind string) {
	t.Helper()
	ctx := t.Context()
	v := m.made(t, kind, nil)
	v.write(t, m.Node)
	quota := func(objects string) error {
		_, err := m.Ceph.Ceph(ctx, "osd", "pool", "set-quota", m.Ceph.Pool(), "max_objects", objects)
		return err
	}
	check(t, quota("1"))
	t.Cleanup(func() {
		_, _ = m.Ceph.Ceph(context.WithoutCancel(ctx), "osd", "pool", "set-quota", m.Ceph.Pool(), "max_objects", "0")
	})
	var claim driver.Claim
	var made []driver.Volume
	var err error
	for deadline := time.Now().Add(time.Minute); err == nil && time.Now().Before(deadline); {
		claim = m.claim(kind, fmt.Sprintf("%s-%d", v.Name, len(made)))
		var one driver.Volume
		if one, err = m.Controller.Create(ctx, claim); err == nil {
			made = append(made, one)
		}
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("create in a full pool: %v, want ResourceExhausted", err)
	}
	v.read(t, m.Node)
	for _, one := range made {
		check(t, m.Controller.Delete(ctx, one))
	}
	check(t, quota("0"))
	// The provisioner asks on for what was refused for want of space.
	late := m.again(t, func() (driver.Volume, error) {
		one, err := m.Controller.Create(ctx, claim)
		if status.Code(err) == codes.ResourceExhausted {
			err = status.Error(codes.Unavailable, "the monitors have not noticed yet")
		}
		return one, err
	})
	check(t, m.Controller.Delete(ctx, late))
	v.write(t, m.Node)
	v.ends(t)
}

// keyChanges is one round: the user's key is revoked and given anew under a volume in use. The volume goes on; a process that
// comes with the old key is told that it is refused, and not that the cluster is silent; with the new key all goes on.
func (m *Machine) keyChanges(t *testing.T, kind string) {
	t.Helper()
	ctx := t.Context()
	v := m.made(t, kind, nil)
	v.write(t, m.Node)
	stop := v.writing(t)
	caps := ceph.ProfileRBD(m.Ceph.Pools()...)
	_, err := m.Ceph.Ceph(ctx, "auth", "rm", "client."+m.User)
	check(t, err)
	_, err = m.Ceph.AddUser(ctx, m.User, caps)
	check(t, err)
	check(t, m.Controller.Kill())
	check(t, m.Controller.Start(ctx))
	claim := m.claim(kind, v.Name+"-meanwhile")
	began := time.Now()
	if _, err = m.Controller.Create(ctx, claim); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), m.User) {
		t.Errorf("create with a revoked key after %s: %v, want Unauthenticated and who", time.Since(began), err)
	}
	_, err = m.Ceph.ClusterDir(ctx, m.User) // as the kubelet renews the files of a Secret
	check(t, err)
	made := m.again(t, func() (driver.Volume, error) { return m.Controller.Create(ctx, claim) })
	check(t, m.Controller.Delete(ctx, made))
	stop()
	v.read(t, m.Node)
	v.down(t, m.Node)
	v.up(t, m.Node)
	v.ends(t)
}

// lostBeginning is one round: the first object of a formatted volume is lost, so that no tool sees a filesystem on the
// device. It is not formatted: the stage is refused, nothing is written, and with the object back all data is there.
func (m *Machine) lostBeginning(t *testing.T, kind string) {
	t.Helper()
	if kind == "block" {
		kind = "ext4" // only filesystems are formatted
	}
	ctx := t.Context()
	v := m.made(t, kind, nil)
	v.write(t, m.Node)
	v.down(t, m.Node)
	saved := filepath.Join(t.TempDir(), "object")
	first := v.dataPrefix(t) + ".0000000000000000"
	_, err := m.Ceph.Rados(ctx, "-p", m.Ceph.Pool(), "get", first, saved)
	check(t, err)
	_, err = m.Ceph.Rados(ctx, "-p", m.Ceph.Pool(), "rm", first)
	check(t, err)
	before := v.objects(t)
	id, err := m.Node.ID(ctx)
	check(t, err)
	v.attached, err = m.Controller.Attach(ctx, v.Volume, id)
	check(t, err)
	if err := m.Node.Stage(ctx, v.Volume, v.attached); status.Code(err) != codes.DataLoss {
		t.Errorf("stage of a volume whose beginning is lost: %v, want DataLoss", err)
	}
	if after := v.objects(t); !slices.Equal(after, before) {
		t.Errorf("objects after the refused stage %q, want those before, %q", after, before)
	}
	_, err = m.Ceph.Rados(ctx, "-p", m.Ceph.Pool(), "put", first, saved)
	check(t, err)
	check(t, m.Node.Stage(ctx, v.Volume, v.attached))
	check(t, m.Node.Publish(ctx, v.Volume, v.attached, v.Name))
	v.ends(t)
}

// dataPrefix is how the names of the image's data objects begin.
func (v *volume) dataPrefix(t *testing.T) string {
	t.Helper()
	text, err := v.Ceph.RBD(t.Context(), "info", v.Ceph.Pool()+"/"+v.Handle[strings.LastIndexByte(v.Handle, '/')+1:])
	check(t, err)
	_, after, found := strings.Cut(text, "block_name_prefix: ")
	prefix, _, _ := strings.Cut(after, "\n")
	if !found {
		t.Fatalf("rbd info says %s, want a block_name_prefix", text)
	}
	return prefix
}

// objects are the image's data objects.
func (v *volume) objects(t *testing.T) []string {
	t.Helper()
	text, err := v.Ceph.Rados(t.Context(), "-p", v.Ceph.Pool(), "ls")
	check(t, err)
	prefix := v.dataPrefix(t)
	var all []string
	for name := range strings.FieldsSeq(text) {
		if strings.HasPrefix(name, prefix) {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// fresh makes a volume and attaches it, and leaves it to be staged for the first time.
func (m *Machine) fresh(t *testing.T, kind string) *volume {
	t.Helper()
	made, err := m.Controller.Create(t.Context(), m.claim(kind, fmt.Sprintf("pvc-%s-%d", kind, time.Now().UnixNano())))
	check(t, err)
	id, err := m.Node.ID(t.Context())
	check(t, err)
	v := &volume{Machine: m, Volume: made, kind: kind}
	v.attached, err = m.Controller.Attach(t.Context(), made, id)
	check(t, err)
	return v
}

// lives stages an attached volume, whatever was begun before, and takes it through its life: what is written is there when
// it comes again.
func (v *volume) lives(t *testing.T) {
	t.Helper()
	v.again(t, func() (driver.Volume, error) { return v.Volume, v.Node.Stage(t.Context(), v.Volume, v.attached) })
	check(t, v.Node.Publish(t.Context(), v.Volume, v.attached, v.Name))
	v.write(t, v.Node)
	v.down(t, v.Node)
	v.up(t, v.Node)
	v.ends(t)
}

// unreadable is one round: the device cannot be read when a fresh volume is staged. It is not formatted, and the
// request ends; when the device can be read again it is formatted, once.
func (m *Machine) unreadable(t *testing.T, kind string) {
	t.Helper()
	ctx := t.Context()
	v := m.fresh(t, kind)
	// The volume is mapped by a first request, and the OSD stops as soon as that can be seen.
	staging, answered := context.WithCancel(ctx)
	go func() {
		defer answered()
		m.answersWithin(t, "stage", func(ctx context.Context) error { return m.Node.Stage(ctx, v.Volume, v.attached) })
	}()
	for staging.Err() == nil {
		if workers, err := m.Node.Workers(); err == nil && len(workers) > 0 {
			break
		}
	}
	err := m.Ceph.Freeze(ctx, "osd.0")
	t.Cleanup(func() { _ = m.Ceph.Thaw(context.WithoutCancel(ctx), "osd.0") })
	<-staging.Done()
	check(t, errors.Join(err, m.Ceph.Thaw(ctx, "osd.0")))
	v.lives(t)
}

// killedInFormat is one round: the node plug-in and its mkfs are killed while mkfs runs. The next stage finishes the
// format, and what is written then is there.
func (m *Machine) killedInFormat(t *testing.T, kind string) {
	t.Helper()
	if kind == "block" {
		kind = "xfs" // only filesystems are formatted
	}
	ctx := t.Context()
	v := m.fresh(t, kind)
	staged := make(chan error, 1)
	go func() { staged <- m.Node.Stage(ctx, v.Volume, v.attached) }()
	seen := false
	for !seen && len(staged) == 0 {
		seen = m.formats(kind)
	}
	check(t, m.Node.Kill())
	<-staged
	t.Logf("killed while mkfs ran: %t", seen)
	check(t, m.Node.Start(ctx))
	v.lives(t)
}

// formats reports whether the node has a mkfs of that kind at work.
func (m *Machine) formats(kind string) bool {
	tools, _ := filepath.Glob("/proc/[0-9]*/stat")
	begin := fmt.Sprintf("(mkfs.%s) ", kind)
	return slices.ContainsFunc(tools, func(path string) bool {
		line, err := os.ReadFile(path) // PID (NAME) STATE PARENT, see proc_pid_stat(5)
		_, rest, named := strings.Cut(string(line), begin)
		fields := strings.Fields(rest)
		return err == nil && named && len(fields) > 1 && fields[1] == strconv.Itoa(m.Node.PID())
	})
}

// twoControllers is one round: two controllers are asked at once for what excludes each other. Each answers as if it were
// alone, or that it is to be asked again; what was promised stands, and the pool is empty in the end.
func (m *Machine) twoControllers(t *testing.T, second *driver.Process, kind string) {
	t.Helper()
	ctx := t.Context()
	claim := m.claim(kind, fmt.Sprintf("pvc-%s-%d", kind, time.Now().UnixNano()))
	both := func(a, b func() error) (errA, errB error) {
		var wait sync.WaitGroup
		wait.Go(func() { errA = a() })
		wait.Go(func() { errB = b() })
		wait.Wait()
		return errA, errB
	}
	var one, other driver.Volume
	errOne, errOther := both(
		func() (err error) { one, err = m.Controller.Create(ctx, claim); return err },
		func() (err error) { other, err = second.Create(ctx, claim); return err },
	)
	for _, err := range []error{errOne, errOther} {
		if err != nil && !driver.StillGoing(err) {
			t.Errorf("create against create: %v, want success, or a code after which it is asked again", err)
		}
	}
	one = m.again(t, func() (driver.Volume, error) { return m.Controller.Create(ctx, claim) })
	other = m.again(t, func() (driver.Volume, error) { return second.Create(ctx, claim) })
	if one.Handle != other.Handle {
		t.Errorf("create against create: %s and %s, want one volume", one.Handle, other.Handle)
	}

	cloneClaim := claim
	cloneClaim.Volume, cloneClaim.OfVolume = claim.Volume+"-clone", one.Handle
	var taken driver.Snapshot
	var cloned driver.Volume
	errTaken, errDeleted := both(
		func() (err error) {
			taken, err = m.Controller.TakeSnapshot(ctx, "snap-"+claim.Volume, one.Handle)
			return err
		},
		func() error { return second.Delete(ctx, one) },
	)
	m.wantOneOf(t, "snapshot against delete", errTaken, errDeleted)
	if errTaken != nil { // whole by now, or begun and refused for good
		taken, errTaken = m.Controller.TakeSnapshot(ctx, "snap-"+claim.Volume, one.Handle)
	}
	if errTaken == nil {
		check(t, m.Controller.DropSnapshot(ctx, taken))
	}
	m.gone(t, one)

	one = m.again(t, func() (driver.Volume, error) { return m.Controller.Create(ctx, claim) })
	errCloned, errDeleted := both(
		func() (err error) { cloned, err = m.Controller.Create(ctx, cloneClaim); return err },
		func() error { return second.Delete(ctx, one) },
	)
	m.wantOneOf(t, "clone against delete", errCloned, errDeleted)
	m.gone(t, one)
	if errCloned != nil { // whole by now, or begun and refused for good
		cloned, errCloned = m.Controller.Create(ctx, cloneClaim)
	}
	if errCloned == nil {
		m.gone(t, cloned)
	}
}

// wantOneOf wants a copy to be made or refused because its source is gone, and the delete to succeed or to come again.
func (m *Machine) wantOneOf(t *testing.T, what string, copied, deleted error) {
	t.Helper()
	if code := status.Code(copied); copied != nil && code != codes.NotFound && !driver.StillGoing(copied) {
		t.Errorf("%s: the copy: %v, want success, NotFound, or a code after which it is asked again", what, copied)
	}
	if deleted != nil && !driver.StillGoing(deleted) && status.Code(deleted) != codes.FailedPrecondition {
		t.Errorf("%s: the delete: %v, want success, or a code after which it is asked again", what, deleted)
	}
}

// gone deletes a volume as the provisioner does.
func (m *Machine) gone(t *testing.T, v driver.Volume) {
	t.Helper()
	m.again(t, func() (driver.Volume, error) { return v, m.Controller.Delete(t.Context(), v) })
}
