// Command demo shows the driver at work where it is meant to be: it builds what is missing, brings up Ceph and Kubernetes in
// folders of this machine, installs the driver by its chart, and tells the life of a StatefulSet by the commands that an
// operator would type. It checks every claim that it makes, and leaves everything running, to be looked at.
//
//	make demo
//	make demo-down
//
// Run again, it uses what runs and plays the story anew. It wants root, and asks sudo for it otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/demo/story"
	"github.com/rbd-csi/rbd-csi/test/kernel"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

const (
	// columns are what is printed where there is no terminal: kubectl's tables are wide.
	columns = 100
	// patience is how long a command may take. Those that wait are told a shorter time themselves.
	patience = 4 * time.Minute
)

type options struct {
	places kube.Places
	// version is the driver's, where its image has to be made.
	version string
	down    bool
}

// top is the top of the repository.
func (o options) top() string { return o.places.Top() }

func main() {
	kernel.RunGuest()
	ceph.RunSupervisor()
	var o options
	flag.StringVar(&o.version, "version", "unknown", "the driver's `version`, where its image has to be made")
	flag.BoolVar(&o.down, "down", false, "only take down what a demo left running")
	flag.Parse()
	if err := begin(o); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// begin gets root, and the machine for itself alone.
func begin(o options) (err error) {
	if o.places, err = kube.FindPlaces(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return story.AsRoot("GO", "GOPROXY", "GOSUMDB", "GOFLAGS", "GOPRIVATE", "HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE", "TERM", "NO_COLOR")
	}
	lock, err := story.Alone(o.places.Build)
	if err != nil {
		return err
	}
	defer lock.Close() // it holds nothing but the lock
	// Commands are shown with paths from here.
	if err := os.Chdir(o.top()); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	// Where the output goes to may end first, as in `make demo | head`: then the writers have to be ended.
	signal.Ignore(unix.SIGPIPE)
	if o.down {
		return lab.Down(ctx, o.places, os.Stdout)
	}
	return perform(ctx, o, stop)
}

// perform builds, plays all scenes, and says how to look around.
func perform(ctx context.Context, o options, stop func()) error {
	s := &stage{
		Stage: &story.Stage{
			Narrator: story.NewNarrator(os.Stdout, columns, len(scenes), stop), Ctx: ctx, Patience: patience,
		},
		options: o,
	}
	s.Say("This is a StatefulSet's life on a real Kubernetes %s and a real Ceph, both of them on this machine alone. "+
		"Lines that begin with $ are commands as an operator would type them, followed by what they print. "+
		"Every line that begins with ok was checked.", kube.Version)
	s.build()
	for _, scene := range scenes {
		if s.Err != nil {
			break
		}
		s.Scene(scene.title)
		scene.play(s)
	}
	s.silence()
	if s.Err != nil {
		return s.failed(stop)
	}
	s.Line("")
	s.Say("All %d scenes played in %s, and everything is left running.", len(scenes), s.Elapsed())
	s.lookAround()
	return nil
}

var errInterrupted = errors.New("interrupted; what is up stays up: `make demo` goes on with it, `make demo-down` takes it down")

// failed says what went on where it matters, and what to do. What is up stays up, to be looked at.
func (s *stage) failed(stop func()) error {
	if s.Ctx.Err() != nil {
		return errInterrupted
	}
	// From here on Ctrl-C ends this process.
	stop()
	s.Ctx = context.WithoutCancel(s.Ctx)
	s.Line("")
	s.Line("The demo ends here, because:")
	s.Output("    ", s.Err.Error())
	if s.lab == nil && !s.opened() {
		return fmt.Errorf("see above, and the logs in %s; when that is mended, `make demo` goes on, and `make demo-down` takes down what is up",
			filepath.Join(s.options.places.Options().Folder, "log"))
	}
	s.lastEvents()
	s.lookAround()
	return errors.New("see above; what is up stays up, to be looked at: `make demo` plays again")
}
