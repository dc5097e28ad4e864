package volume

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/cryptotest"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
)

// Three processes of the driver work on one Ceph in memory, each at several requests at once, and a
// request stops at each of its calls: a seeded random number says who goes on, whose call fails before or
// after it took effect, or takes effect later, who is killed, and who sleeps for long. Exactly one
// of them runs at a time, so the same seed gives the same run.
//
// Requests are repeated, by whichever process, until they are answered finally, as sidecars do. One whose
// sidecar went away goes on without anybody waiting for it, while its successor asks again. The model
// (random_model_test.go) knows what was answered, and when that is certain: what an attempt that
// sleeps may still undo is not. What is certain is compared all the time; now and then
// all attempts are let end and everything is compared; and in the end everything is deleted, and
// nothing may be left.
//
//	RBD_CSI_RANDOM_SEED   begins with this seed, and without RBD_CSI_RANDOM_STEPS runs it alone
//	RBD_CSI_RANDOM_STEPS  goes on with the next seeds until so many calls were made

const (
	randomSteps = 30_000 // calls in an ordinary run of the tests
	roundSteps  = 400    // calls between two times that all attempts end
	mostLive    = 7      // attempts at a time
)

func TestRandom(t *testing.T) {
	first, alone := setting(t, "RBD_CSI_RANDOM_SEED", 1)
	steps, long := setting(t, "RBD_CSI_RANDOM_STEPS", randomSteps)
	if alone && !long {
		steps = 1
	}
	done := uint64(0)
	seed := first
	for ; done < steps; seed++ {
		done += uint64(randomRun(t, seed).step)
	}
	t.Logf("%d calls of the seeds %d to %d", done, first, seed-1)
}

// TestRandomIsRepeatable holds that a seed says everything.
func TestRandomIsRepeatable(t *testing.T) {
	for seed := range uint64(3) {
		one, two := randomRun(t, seed), randomRun(t, seed)
		if a, b := one.sum(), two.sum(); a != b {
			for i, line := range one.history {
				if i >= len(two.history) || line != two.history[i] {
					t.Fatalf("seed %d: run twice, line %d differs:\n%s\n%s", seed, i, line, strings.Join(two.history[i:min(i+1, len(two.history))], ""))
				}
			}
			t.Fatalf("seed %d: the second run is longer, %d lines, than the first, %d", seed, len(two.history), len(one.history))
		}
	}
}

// setting reads a number from the environment.
func setting(t *testing.T, name string, otherwise uint64) (value uint64, set bool) {
	t.Helper()
	text, set := os.LookupEnv(name)
	if !set {
		return otherwise, false
	}
	value, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return value, true
}

// randomRun makes one run from an empty Ceph to an empty Ceph.
func randomRun(t *testing.T, seed uint64) *world {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	w := newWorld(t, seed)
	for range 1 + w.rnd.IntN(3) {
		for end := w.step + roundSteps/2 + w.rnd.IntN(roundSteps); w.step < end; {
			w.move()
		}
		w.rest()
		w.compare()
	}
	w.removeAll()
	return w
}

// A world is one run.
type world struct {
	t       *testing.T
	seed    uint64
	rnd     *rand.Rand
	ceph    *rbdtest.Ceph
	drivers []*driver
	live    []*attempt      // not ended
	open    []*chain        // not answered
	last    *attempt        // that went on last
	step    int             // how many calls were made
	calm    bool            // no faults
	late    bool            // an operation may take effect later
	later   []*chain        // whose operations
	faults  int             // a call in so many fails
	sleeps  int             // before one in so many an attempt falls asleep
	orphans map[string]bool // see noteOrphans
	built   map[string]int  // how often somebody began to build the index of a place
	history []string
	*model
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), ceph: rbdtest.New(), built: map[string]int{}, orphans: map[string]bool{}}
	w.ceph.AddCluster("main").AddUser("csi", "KEY").AddPool("kube", "team").AddPool("other")
	w.model = newModel()
	w.faults, w.sleeps = 10+w.rnd.IntN(90), 10+w.rnd.IntN(90)
	for i := range 3 {
		w.drivers = append(w.drivers, nil)
		w.start(i)
	}
	return w
}

// start starts a process, or another one in the place of one that was killed.
func (w *world) start(at int) {
	d := start(w.ceph)
	d.process.OnCall(func(ctx context.Context, call rbdtest.Call) {
		if stop, ok := ctx.Value(stopKey{}).(func(rbdtest.Call)); ok {
			stop(call)
		}
	})
	w.drivers[at] = d
}

// stopKey is the key of what a call does that has to wait for its turn.
type stopKey struct{}

// A chain is a request and its repetitions.
type chain struct {
	number   int
	what     string
	on       *subject // what it is about, nil for nothing that is there or not
	makes    bool     // otherwise it removes
	do       func(ctx context.Context, d *driver) (any, error)
	final    func(begun int, answer any, err error) // tells the model; nil where nobody waits for an answer
	begun    int
	tries    int
	current  *attempt // whose answer is waited for
	answered bool
}

// An attempt is one call of the driver.
type attempt struct {
	*chain
	number  int
	process int
	driver  *driver
	next    func() (rbdtest.Call, bool)
	call    rbdtest.Call // that it is about to make
	asleep  int          // until this step
	answer  any
	err     error
}

func (a *attempt) String() string { return fmt.Sprintf("%d.%d", a.chain.number, a.number) }

// notef adds a line to the history.
func (w *world) notef(format string, args ...any) {
	w.history = append(w.history, fmt.Sprintf("%5d  ", w.step)+fmt.Sprintf(format, args...))
}

// failf ends the test.
func (w *world) failf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("seed %d, step %d: %s\nhistory:\n%s\nleft:\n%s", w.seed, w.step, fmt.Sprintf(format, args...),
		strings.Join(w.history, "\n"), strings.Join(w.ceph.Dump(), "\n"))
}

// sum is the same for two equal runs.
func (w *world) sum() uint64 {
	hash := fnv.New64()
	for _, line := range w.history {
		_, _ = hash.Write([]byte(line)) // never fails
	}
	return hash.Sum64()
}

// one reports a thing that happens once in so many times.
func (w *world) one(in int) bool { return w.rnd.IntN(in) == 0 }

// move does the next thing: it begins a request, repeats one, or lets an attempt go on.
func (w *world) move() {
	awake := slices.DeleteFunc(slices.Clone(w.live), func(a *attempt) bool { return a.asleep > w.step })
	switch {
	case len(w.live) < mostLive && (len(awake) == 0 || w.one(9)):
		w.begin()
	case len(awake) == 0:
		w.step++
		w.live[w.rnd.IntN(len(w.live))].asleep = 0
	default:
		next := w.last
		if !slices.Contains(awake, next) || w.one(6) {
			next = awake[w.rnd.IntN(len(awake))]
		}
		w.last = next
		w.resume(next)
	}
	if w.late && w.one(40) {
		w.land()
	}
	if w.one(25) {
		w.glance()
	}
}

// begin repeats a request that was not answered, or begins another one.
func (w *world) begin() {
	for _, one := range w.open {
		if one.current == nil && !w.one(4) {
			w.try(one)
			return
		}
	}
	w.act()
}

// chain begins a request.
func (w *world) chain(c chain) {
	if w.late {
		w.land()
	}
	c.number, c.begun = w.chains, w.step
	w.chains++
	begun := &c
	if c.on != nil {
		c.on.busy = begun
	}
	w.open = append(w.open, begun)
	w.notef("%d begins: %s", c.number, c.what)
	w.try(begun)
}

// try has one of the processes do a request.
func (w *world) try(c *chain) {
	at := w.rnd.IntN(len(w.drivers))
	c.tries++
	a := &attempt{chain: c, number: c.tries, process: at, driver: w.drivers[at]}
	c.current = a
	if c.on != nil {
		c.on.count(c.makes, 1, w.step)
	}
	a.next, _ = iter.Pull(func(yield func(rbdtest.Call) bool) {
		ctx := context.WithValue(w.t.Context(), stopKey{}, func(call rbdtest.Call) { yield(call) })
		a.answer, a.err = c.do(ctx, a.driver)
	})
	w.live = append(w.live, a)
	w.notef("%s on process %d", a, at)
	w.goOn(a)
}

// resume lets an attempt make the call that it stopped at, or something happens to it instead.
func (w *world) resume(a *attempt) {
	if !w.calm {
		switch {
		case w.one(w.sleeps):
			a.asleep = w.step + 5 + w.rnd.IntN(1<<(2+w.rnd.IntN(8)))
			w.notef("%s sleeps before %s until %d", a, a.call, a.asleep)
			return
		case w.one(60) && a.chain.current == a:
			w.notef("%s: nobody waits for it any more", a)
			a.chain.current = nil
			if a.final == nil {
				w.close(a.chain)
			}
		}
		if w.one(w.faults) {
			w.strike(a)
			return
		}
	}
	w.goOn(a)
}

// strike lets the next call fail.
func (w *world) strike(a *attempt) {
	how := rbdtest.Fault{When: rbdtest.When(w.rnd.IntN(3)), Kill: w.one(3)}
	if a.call.Method == "TakeSnapshots" && w.one(2) {
		how = rbdtest.Fault{When: rbdtest.When(w.rnd.IntN(2)), Err: fault.Superseded}
	}
	if how.When == rbdtest.Late {
		w.late = true
		if a.on != nil {
			w.later = append(w.later, a.chain)
			a.on.count(a.makes, 1, w.step)
		}
	}
	a.driver.process.Fail(how)
	w.notef("%s: %s fails %s, kill %t", a, a.call, how.When, how.Kill)
	if how.Kill {
		w.kill(a)
	} else {
		w.goOn(a)
	}
	w.noteOrphans()
}

// kill lets all attempts of a process end that is killed in the next call of one of them.
func (w *world) kill(first *attempt) {
	w.goOn(first)
	for _, a := range slices.Clone(w.live) {
		for a.driver == first.driver && slices.Contains(w.live, a) {
			w.goOn(a)
		}
	}
	w.start(first.process)
}

// goOn lets an attempt go to its next call or its end.
func (w *world) goOn(a *attempt) {
	if !slices.Contains(w.live, a) {
		return
	}
	if a.call.Method != "" && !a.driver.process.Killed() {
		w.notef("%s %s", a, a.call)
	}
	if a.call.Method == "MakeIndex" {
		w.built[a.call.Place.String()]++
	}
	w.step++
	call, more := a.next()
	if a.call = call; !more {
		w.end(a)
	}
}

// end takes note of what an attempt has come to.
func (w *world) end(a *attempt) {
	w.live = slices.DeleteFunc(w.live, func(one *attempt) bool { return one == a })
	if a.on != nil {
		a.on.count(a.makes, -1, w.step)
	}
	dead := a.driver.process.Killed()
	w.notef("%s ends: %s", a, outcome(a.err, dead))
	if kind := fault.Of(a.err); a.err != nil && !dead && (kind == fault.Internal || kind == fault.DataLoss) {
		w.failf("%s, %s: %v", a, a.what, a.err)
	}
	if a.chain.current != a {
		return
	}
	a.chain.current = nil
	if a.final == nil {
		w.close(a.chain)
		return
	}
	if dead || isOpen(a.err) {
		return
	}
	w.close(a.chain)
	a.final(a.begun, a.answer, a.err)
	if w.late {
		w.land()
	}
}

// outcome is an error as the history has it: without what differs between runs.
func outcome(err error, dead bool) string {
	switch {
	case dead:
		return "killed"
	case err == nil:
		return "done"
	}
	return err.Error()
}

// isOpen reports whether a sidecar asks again after this error.
func isOpen(err error) bool {
	return err != nil && slices.Contains([]fault.Kind{fault.Unknown, fault.Unavailable, fault.Canceled, fault.Superseded}, fault.Of(err))
}

// close ends a chain.
func (w *world) close(c *chain) {
	c.answered = true
	w.open = slices.DeleteFunc(w.open, func(one *chain) bool { return one == c })
	if c.on != nil && c.on.busy == c {
		c.on.busy = nil
	}
}

// land lets late operations take effect.
func (w *world) land() {
	w.notef("late operations take effect")
	w.ceph.Land()
	for _, one := range w.later {
		one.on.count(one.makes, -1, w.step)
	}
	w.late, w.later = false, nil
	w.noteOrphans()
}

// rest lets all attempts end without faults, and repeats what was not answered, one at a time.
func (w *world) rest() {
	w.notef("rest")
	w.calm = true
	w.land()
	for len(w.live) > 0 {
		w.goOn(w.live[w.rnd.IntN(len(w.live))])
	}
	for len(w.open) > 0 {
		w.finish(w.open[0])
	}
	w.calm = false
}

// mostRepeats is how often a request may be answered "come again" while nothing fails and nobody else is at work.
const mostRepeats = 3

// finish repeats a request until it is answered.
func (w *world) finish(c *chain) {
	var last error
	for range mostRepeats {
		w.try(c)
		a := w.live[len(w.live)-1]
		for slices.Contains(w.live, a) {
			w.goOn(a)
		}
		if last = a.err; c.answered {
			return
		}
	}
	w.failf("%d, %s: was repeated %d times: %v", c.number, c.what, mostRepeats, last)
}

// must ends the test with an error that cannot be.
func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.failf("%v", err)
	}
}

var errGone = errors.New("the volume is not there any more")
