// Command demo shows the driver at work: it starts Ceph in a folder and the driver as
// separate processes, and plays by CSI calls over their sockets what Kubernetes does
// for a StatefulSet with two replicas. It prints what an operator would look at,
// checks every claim that it makes, and leaves nothing behind, also after a
// failure or Ctrl-C.
//
//	make quick
//
// It mounts, so it wants root, and asks sudo for it otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/demo/story"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

type options struct {
	binary string
	folder string
	logs   string
	down   bool
}

func main() {
	ceph.RunSupervisor()
	var o options
	flag.StringVar(&o.binary, "binary", "build/rbd-csi", "path of rbd-csi")
	flag.StringVar(&o.folder, "folder", "/run/rbd-csi-demo", "folder for sockets, mounts and mappings; short, without symbolic links")
	flag.StringVar(&o.logs, "logs", "build/demo-logs", "directory for the logs of a demo that failed")
	flag.BoolVar(&o.down, "down", false, "only take down what a demo left that was killed")
	flag.Parse()
	if err := begin(o); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// begin gets root and the folder for itself alone.
func begin(o options) error {
	if os.Geteuid() != 0 {
		return story.AsRoot()
	}
	// What another demo in the folder does would be swept away.
	lock, err := story.Alone(o.folder)
	if err != nil {
		return err
	}
	defer lock.Close() // it holds nothing but the lock
	// What a killed demo left is in the way of this one.
	if err := driver.Sweep(o.folder); err != nil || o.down {
		return err
	}
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	if _, err := os.Stat(o.binary); err != nil {
		return fmt.Errorf("%w; `make quick` builds it", err)
	}
	return perform(o)
}

// perform plays all scenes and takes everything down.
func perform(o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	// Where the output goes to may end first, as in `make quick | head`: a broken pipe must not
	// kill this process before it has taken everything down.
	signal.Ignore(unix.SIGPIPE)
	s := &stage{
		Stage:   &story.Stage{Narrator: story.NewNarrator(os.Stdout, 80, len(scenes), stop), Ctx: ctx},
		options: o,
	}
	s.Say("This is what Kubernetes does for a StatefulSet with two replicas, played on a real Ceph " +
		"by the calls that its sidecars and kubelet make. Lines that begin with $ are " +
		"commands as an operator would give them, or as a pod would, followed by what they print.")
	for _, scene := range scenes {
		s.Scene(scene.title)
		if scene.play(s); s.Err != nil {
			return s.failed(stop)
		}
	}
	if err := s.vanish(); err != nil {
		return err
	}
	s.Line("")
	s.Say("All %d scenes played, every claim marked ok was checked, and nothing is left behind: %s.",
		len(scenes), s.Elapsed())
	return nil
}

var errInterrupted = errors.New("interrupted")

// failed clears the stage after a failure, or after Ctrl-C; a second Ctrl-C is
// not waited for.
func (s *stage) failed(stop func()) error {
	err := s.Err
	if s.Ctx.Err() != nil {
		err = errInterrupted
	}
	stop()
	logs := s.keepLogs()
	s.Line("")
	s.Line("The demo ends here. Taking everything down ...")
	if problem := s.clear(); problem != nil {
		return fmt.Errorf("%w; and something is left, `make quick-down` takes it away: %w", err, problem)
	}
	if logs != "" {
		err = fmt.Errorf("%w; the driver's logs are in %s", err, logs)
	}
	return err
}

// vanish takes everything down after the last scene, and looks whether it is gone.
func (s *stage) vanish() error {
	if err := s.clear(); err != nil {
		return err
	}
	left, err := driver.Look(s.options.folder)
	if err == nil && !left.Without(s.before).Empty() {
		err = fmt.Errorf("left behind: %s", left.Without(s.before))
	}
	return err
}
