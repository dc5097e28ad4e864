package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/kernel"
	"github.com/rbd-csi/rbd-csi/test/kube"
)

// EnvBuild names the build folder of a running lab, as `lab up` prints it. A [Shared] uses that one, and leaves it up.
const EnvBuild = "RBD_CSI_TEST_LAB"

// How long a bring-up and a taking down may take.
const (
	upLimit   = 10 * time.Minute
	downLimit = 5 * time.Minute
)

// A Shared is one lab for all tests of a package:
//
//	var shared lab.Shared
//
//	func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }
//
//	func TestSomething(t *testing.T) { l := shared.ForTest(t) ... }
//
// The first test that asks for it has it brought up; Main takes it down, and fails if something is left.
type Shared struct {
	// Guests is how many nodes the lab has, each in a guest; see [Options].
	Guests int

	start sync.Once
	lab   *Lab
	err   error
	// borrowed says that the lab was up, and is to stay.
	borrowed bool
}

// Main runs the tests and takes the lab down, if it brought it up. It is what TestMain hands to os.Exit.
func (s *Shared) Main(m *testing.M) int {
	kernel.RunGuest()
	ceph.RunSupervisor()
	code := m.Run()
	if s.lab == nil || s.borrowed {
		return code
	}
	ctx, cancel := context.WithTimeout(context.Background(), downLimit)
	defer cancel()
	if err := s.lab.Down(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "take the lab down:", err)
		return max(code, 1)
	}
	return code
}

// ForTest returns the lab. Where one cannot be, the test is skipped with the reason.
func (s *Shared) ForTest(t testing.TB) *Lab {
	t.Helper()
	s.start.Do(func() {
		// Not the context of the test that happens to be the first.
		ctx, cancel := context.WithTimeout(context.Background(), upLimit)
		defer cancel()
		s.lab, s.borrowed, s.err = begin(ctx, s.Guests)
	})
	switch {
	case errors.Is(s.err, fault.Unsupported):
		t.Skipf("no Kubernetes for this test: %v", s.err)
	case s.err != nil:
		t.Fatal(s.err)
	}
	return s.lab
}

// begin opens the lab that the environment names, or brings one up, which may be half there then.
func begin(ctx context.Context, guests int) (l *Lab, borrowed bool, err error) {
	if build := os.Getenv(EnvBuild); build != "" {
		places, err := kube.FindPlaces()
		if err != nil {
			return nil, true, err
		}
		places.Build = build
		l, err := Open(ctx, places)
		if err == nil && len(l.Kube.Guests()) != guests {
			err = fmt.Errorf("%s=%s has %d nodes in guests, not %d: %w", EnvBuild, build, len(l.Kube.Guests()), guests, fault.Unsupported)
		}
		return l, true, err
	}
	places, err := kube.FindPlaces()
	if err != nil {
		return nil, false, err
	}
	// One that is up is not ours to take down.
	if l, err := Open(ctx, places); err == nil {
		return nil, true, fmt.Errorf("a lab is up: take it down (lab down), or have the tests use it (%s=%s): %w",
			EnvBuild, l.places.Build, fault.InUse)
	}
	l, err = Up(ctx, Options{Places: places, Guests: guests, Progress: os.Stdout})
	if err != nil {
		err = errors.Join(err, Down(context.WithoutCancel(ctx), places, os.Stdout))
	}
	return l, false, err
}
