package ceph

import (
	"context"
	"fmt"
	"syscall"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Daemon is a process of the cluster, named as in cephx: mon.a, mgr.x, osd.0.
type Daemon struct {
	Name string `json:"name"`
	// PID is 0 when the daemon does not run.
	PID int `json:"pid"`
}

// Daemons lists the cluster's daemons in the order in which they were first started.
func (c *Cluster) Daemons(ctx context.Context) ([]Daemon, error) {
	answer, err := control(ctx, c.Dir(), request{Verb: verbList})
	return answer.Daemons, err
}

// Freeze stops a daemon in its tracks (SIGSTOP): its connections stay open and nothing answers, as
// on a machine that hangs. [Cluster.Thaw] lets it go on.
func (c *Cluster) Freeze(ctx context.Context, daemon string) error {
	return c.signal(ctx, verbSignal, daemon, syscall.SIGSTOP)
}

// Thaw lets a frozen daemon go on (SIGCONT).
func (c *Cluster) Thaw(ctx context.Context, daemon string) error {
	return c.signal(ctx, verbSignal, daemon, syscall.SIGCONT)
}

// Kill ends a daemon at once (SIGKILL), as a loss of power does, and waits until it is gone. Its
// disk stays; [Cluster.Restart] brings it back.
func (c *Cluster) Kill(ctx context.Context, daemon string) error {
	return c.signal(ctx, verbKill, daemon, syscall.SIGKILL)
}

// Stop asks a daemon to end (SIGTERM) and waits until it has. An OSD that is stopped tells the
// monitors, which one that is killed does not.
func (c *Cluster) Stop(ctx context.Context, daemon string) error {
	return c.signal(ctx, verbKill, daemon, syscall.SIGTERM)
}

func (c *Cluster) signal(ctx context.Context, verb, daemon string, sig syscall.Signal) error {
	if _, err := control(ctx, c.Dir(), request{Verb: verb, Daemon: daemon, Signal: sig}); err != nil {
		return fmt.Errorf("send %s to %s: %w", sig, daemon, err)
	}
	return nil
}

// Restart starts a daemon that was killed or stopped and waits until it is at work: a
// monitor in the quorum of all, an OSD up. Placement groups may still be peering then; see
// [Cluster.WaitHealthy].
func (c *Cluster) Restart(ctx context.Context, daemon string) error {
	if _, err := control(ctx, c.Dir(), request{Verb: verbStart, Daemon: daemon}); err != nil {
		return err
	}
	err := poll(ctx, func() (bool, error) {
		if running, err := c.running(ctx, daemon); err != nil || !running {
			return false, fmt.Errorf("it ended, see %s.out: %w", daemon, fault.Unavailable)
		}
		return ready(ctx, c.Dir(), daemon, c.state.Options.Monitors), nil
	})
	if err != nil {
		return fmt.Errorf("wait until %s serves: %w", daemon, err)
	}
	return nil
}

func (c *Cluster) running(ctx context.Context, name string) (bool, error) {
	daemons, err := c.Daemons(ctx)
	for _, d := range daemons {
		if d.Name == name {
			return d.PID != 0, err
		}
	}
	return false, err
}

// OpCount returns how many operations of clients the OSDs have served since each was
// started (`ceph daemon osd.N perf dump osd`, counter op), summed over all OSDs. The
// difference of two counts is what lay between them cost; see "Counting operations"
// in the package comment. Every OSD must run: an OSD that was restarted counts from zero, and
// one that does not answer is fault.Unavailable.
func (c *Cluster) OpCount(ctx context.Context) (int64, error) {
	var sum int64
	for _, id := range c.state.Options.osds() {
		var counters struct {
			OSD struct {
				Op int64 `json:"op"`
			} `json:"osd"`
		}
		if err := ask(ctx, socketOf(c.Dir(), osdName(id)), command("perf dump", "logger", "osd"), &counters); err != nil {
			return 0, err
		}
		sum += counters.OSD.Op
	}
	return sum, nil
}

// PauseManager freezes the manager until resume is called. The monitors take it for lost after
// 30 s (mon_mgr_beacon_grace). Nothing of a manager with empty modules counts as an
// operation, so this is for clusters with [Options.ManagerModules].
func (c *Cluster) PauseManager(ctx context.Context) (resume func() error, err error) {
	if err := c.Freeze(ctx, managerName); err != nil {
		return nil, err
	}
	return func() error { return c.Thaw(context.WithoutCancel(ctx), managerName) }, nil
}
