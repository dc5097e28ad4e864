package node

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/test/driver"
)

// FaultsVariable holds how often the faults of TestFaults come, as a share of what `make faults` wants in percent, and
// after a colon, if wanted, the seed of their order: 100:7.
const FaultsVariable = "RBD_CSI_FAULTS"

// A fault is a row of the matrix.
type fault struct {
	name  string
	times int // of `make faults`
	round func(t *testing.T, kind string)
	// tried and failed count the rounds.
	tried, failed int
	longest       time.Duration
}

// A site is a machine of its own, with a cluster of its own, on which rows of the matrix are tried.
type site struct {
	name string
	rows func(t *testing.T, m *Machine, other *driver.Process, outage time.Duration) []*fault
	// tried is what rows returned.
	tried []*fault
}

// TestFaults brings faults over volumes in use, in a random order that the seed tells, and prints how often each was
// tried and how often it went wrong: data lost, something left, or a request that did not come back. What `go test` runs is each once.
// Sites are tried side by side: where a daemon is silent for a minute there is not much else to do.
func TestFaults(t *testing.T) {
	share, seed := faultPlan(t)
	t.Logf("seed %d, %d %% of the matrix", seed, share)
	sites := []*site{{name: "OSD", rows: silences("OSD", "osd.0")}, {name: "monitor", rows: silences("monitor", "mon.a")}, {name: "rest", rows: otherFaults}}
	t.Run("at", func(t *testing.T) { // comes to an end when all sites are done
		for number, one := range sites {
			t.Run(one.name, func(t *testing.T) {
				t.Parallel()
				one.try(t, rand.New(rand.NewPCG(seed, uint64(number))), share)
			})
		}
	})
	var table strings.Builder
	for _, site := range sites {
		for _, one := range site.tried {
			fmt.Fprintf(&table, "%-60s tried %3d  lost, leaked or stuck %d  longest %s\n", one.name, one.tried, one.failed, one.longest.Round(time.Second))
		}
	}
	t.Logf("seed %d:\n%s", seed, table.String())
}

// silences are the rows in which a daemon does not answer.
func silences(what, daemon string) func(*testing.T, *Machine, *driver.Process, time.Duration) []*fault {
	return func(_ *testing.T, m *Machine, _ *driver.Process, outage time.Duration) []*fault {
		row := func(how string, falls silencing) *fault {
			return &fault{name: fmt.Sprintf("%s %s under a running writer", what, how), times: 10, round: func(t *testing.T, kind string) {
				m.silent(t, kind, daemon, falls, outage)
			}}
		}
		return []*fault{row("stopped", m.stops()), row("killed", m.dies())}
	}
}

// otherFaults are the rows with more to do than to wait.
func otherFaults(t *testing.T, m *Machine, other *driver.Process, _ time.Duration) []*fault {
	second, err := m.Driver.Controller(t.Context(), "controller-2")
	check(t, err)
	return []*fault{
		{name: "client frozen past its watch, volume moved, client thawed", times: 20, round: func(t *testing.T, kind string) { m.frozen(t, other, kind, true) }},
		{name: "client frozen and watching, volume moved, client thawed", times: 20, round: func(t *testing.T, kind string) { m.frozen(t, other, kind, false) }},
		{name: "stage frozen before map", times: 10, round: func(t *testing.T, kind string) { m.staleStage(t, other, kind) }},
		{name: "blocklisted under a running writer, healed", times: 20, round: func(t *testing.T, kind string) { m.deviceDies(t, kind, m.blocklist) }},
		{name: "worker killed under a running writer, healed", times: 30, round: func(t *testing.T, kind string) { m.deviceDies(t, kind, m.killWorker) }},
		{name: "everything killed at once under a running writer", times: 10, round: m.powerLoss},
		{name: "two controllers at once", times: 50, round: func(t *testing.T, kind string) { m.twoControllers(t, second, kind) }},
		{name: "formatted, and no filesystem to be seen", times: 25, round: m.lostBeginning},
		{name: "device that cannot be read when it is to be formatted", times: 25, round: m.unreadable},
		{name: "killed in mkfs", times: 20, round: m.killedInFormat},
		{name: "pool full", times: 10, round: m.full},
		{name: "key revoked and renewed", times: 10, round: m.keyChanges},
	}
}

// try tries the site's share of the matrix on a machine of its own.
func (s *site) try(t *testing.T, random *rand.Rand, share int) {
	m, other := fenceMachine(t)
	s.tried = s.rows(t, m, other, outage(share))
	for _, one := range faultOrder(random, s.tried, share) {
		kind := []string{"ext4", "xfs", "block"}[random.IntN(3)]
		one.tried++
		began := time.Now()
		if !t.Run(fmt.Sprintf("%s/%d/%s", one.name, one.tried, kind), func(t *testing.T) { one.round(t, kind) }) {
			one.failed++
		}
		one.longest = max(one.longest, time.Since(began))
	}
	awaitEmpty(t, m)
}

// faultPlan reads how much of the matrix is wanted, 0 for each row once, and in which order.
func faultPlan(t *testing.T) (share int, seed uint64) {
	t.Helper()
	text, seedText, seeded := strings.Cut(os.Getenv(FaultsVariable), ":")
	seed = uint64(time.Now().UnixNano())
	var err error
	if seeded {
		seed, err = strconv.ParseUint(seedText, 10, 64)
		check(t, err)
	}
	if text != "" {
		share, err = strconv.Atoi(text)
		check(t, err)
	}
	return share, seed
}

// faultOrder returns the rounds of all rows, mixed.
func faultOrder(random *rand.Rand, matrix []*fault, share int) (order []*fault) {
	for _, one := range matrix {
		for range max(1, one.times*share/100) {
			order = append(order, one)
		}
	}
	random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}
