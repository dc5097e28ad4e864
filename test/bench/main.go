// Command bench measures what requests cost: RADOS operations, counted by the OSDs, and
// creates, snapshots and restores per second, both beside librbd's bare minimum measured in the
// same run; how that grows with the number of images; and the controller's memory.
//
//	make bench     all of that
//	make budgets   only the counts, which have no noise; exit status 1 where one is exceeded
//
// The counts are averages over 100 requests (40 for the budgets), sent over the socket of a controller process to a
// cluster in which nothing else happens. They do not depend on the machine, so they can be
// checked anywhere. An OSD counts what it has done: a write that it refuses, such as the claim of a
// name that is taken, is not in the counts, on either side. Rates do depend on it: of those only
// the ratio to librbd's, on the same cluster in the same minute, tells something.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

func main() {
	ceph.RunSupervisor()
	var o options
	flag.StringVar(&o.binary, "binary", "build/rbd-csi", "path of rbd-csi")
	flag.StringVar(&o.json, "json", "build/bench.json", "file for the figures; empty: none")
	flag.BoolVar(&o.budgets, "budgets", false, "only count, and compare with the budgets")
	flag.IntVar(&o.batch, "batch", 0, "requests in a batch of which the operations are counted (default 100, with -budgets 40)")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of which the median rate counts")
	flag.Parse()
	if o.batch == 0 {
		o.batch = 100
		if o.budgets {
			o.batch = 40 // counts have next to no noise, and a check has to be quick
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	defer stop()
	if err := check(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// check is run, and for the budgets once more when one was exceeded: on a machine with much other work answers come late,
// and what is then asked again is counted too. It only ever adds to a count, and a request that has become
// dearer is so in both.
func check(ctx context.Context, o options) error {
	err := run(ctx, o)
	if !o.budgets || !errors.Is(err, errExceeded) {
		return err
	}
	fmt.Print("\nOnce more, in a cluster of its own, because a budget was exceeded:\n\n")
	return run(ctx, o)
}

type options struct {
	binary  string
	json    string
	budgets bool
	batch   int
	rounds  int
}

var errExceeded = errors.New("a figure is not within its bound")

// run measures, prints, and takes everything down.
func run(ctx context.Context, o options) (err error) {
	l, err := newLab(ctx, o)
	defer func() { err = errors.Join(err, l.close()) }()
	if err != nil {
		return err
	}
	result := Result{Ceph: l.cluster.Version(), Batch: o.batch}
	fmt.Printf("counting RADOS operations in batches of %d requests ...\n", o.batch)
	if result.Requests, err = l.count(ctx); err != nil {
		return err
	}
	if !o.budgets {
		if result.Rates, err = l.rates(ctx); err != nil {
			return err
		}
		if result.Growth, err = l.growth(ctx); err != nil {
			return err
		}
		if result.Listings, err = l.listings(ctx); err != nil {
			return err
		}
		if result.Memory, err = memoryAtRest(ctx, l.controller.PID()); err != nil {
			return err
		}
	}
	result.print(os.Stdout)
	if err := result.write(o.json); err != nil {
		return err
	}
	if !result.Within() {
		return errExceeded
	}
	return nil
}

// The two sides work in pools of their own, so that neither's images make the other's
// directory longer, and as users of their own, because ListVolumes lists every pool that its user sees.
const (
	ours    = "ours" // pool and user of the driver
	few     = "few"  // pool of the driver that has few images
	minimum = "bare" // pool and user of librbd; the user sees the other pool too
	name    = "lab"  // of the cluster, in handles
)

// A lab is a cluster with a controller and a connection of librbd beside it.
type lab struct {
	options    options
	folder     string
	cluster    *ceph.Cluster
	driver     *driver.Driver
	controller *driver.Process
	bare       bare
	trash      trash
	sources    []image // of snapshots, when rates are measured
}

// A trash can be looked into at a known cost, which is then left out of a count.
type trash interface {
	// empty reports whether the trash of one of the driver's pools is empty. It costs one operation.
	empty(pool string) (bool, error)
}

// quiet makes a controller look through trash and pools once at its start, and not while
// operations are counted.
var quiet = []string{"--purge-every", "24h", "--flatten-every", "24h"}

// newLab starts everything. The lab has to be closed also after an error.
func newLab(ctx context.Context, o options) (*lab, error) {
	l := &lab{options: o}
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return l, err
	}
	if _, err := os.Stat(binary); err != nil {
		return l, fmt.Errorf("%w; `make build` makes it", err)
	}
	if l.folder, err = driver.NewFolder("rbd-csi-bench"); err != nil {
		return l, err
	}
	fmt.Println("starting Ceph ...")
	settings := ceph.Options{Pools: []string{ours, few, minimum}}
	if o.budgets {
		// Each snapshot that comes or goes waits for the monitors to commit. Where only
		// operations are counted they need not gather changes for a second first.
		settings.ProposeInterval = 50 * time.Millisecond
	}
	if l.cluster, err = ceph.Start(ctx, settings); err != nil {
		return l, err
	}
	directory, err := l.addUser(ctx, minimum, ours, few, minimum)
	if err != nil {
		return l, err
	}
	if l.bare, l.trash, err = connect(directory); err != nil {
		return l, err
	}
	if directory, err = l.addUser(ctx, ours, ours, few); err != nil {
		return l, err
	}
	l.driver, err = driver.New(driver.Options{Binary: binary, Clusters: map[string]string{name: directory}, Folder: l.folder})
	if err != nil {
		return l, err
	}
	l.controller, err = l.driver.Controller(ctx, "controller", quiet...)
	return l, err
}

// addUser makes a Ceph user for the pools and returns its directory.
func (l *lab) addUser(ctx context.Context, user string, pools ...string) (string, error) {
	if _, err := l.cluster.AddUser(ctx, user, ceph.ProfileRBD(pools...)); err != nil {
		return "", err
	}
	return l.cluster.ClusterDir(ctx, user)
}

func (l *lab) close() error {
	var failed []error
	if l.driver != nil {
		failed = append(failed, l.driver.Close())
	}
	if l.bare != nil {
		l.bare.close()
	}
	if l.cluster != nil {
		failed = append(failed, l.cluster.Down(context.Background()))
	}
	if l.folder != "" {
		failed = append(failed, os.RemoveAll(l.folder))
	}
	return errors.Join(failed...)
}
