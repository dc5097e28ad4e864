// Package worker is the process that serves one RBD image as a file, for package
// fuse. It is the only C beside the driver's librbd adapter: build it with go-ceph's tag
// of the installed Ceph release ("pacific" for 16.2). Without cgo it
// builds too, and then refuses every order with fault.Unsupported.
//
// A worker lives for as long as its mount. It does not end when the driver does, nor by
// SIGTERM, SIGINT or SIGHUP: it ends when the driver, or a person, unmounts it. What
// happens in it is told by the file status in the mount, since nobody may be there to
// read what it could print, and a full pipe would stop the device.
package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
)

// Run is the sub-command `fuse`: it reads an order from in, opens the image, mounts,
// answers on out, lets go of standard input, output and error, and serves until it is
// unmounted. The error is the one that it answered, or, later, that of closing the image:
// the caller should end the process with a code that tells it from success.
//
// Nothing else may run in the process, and nothing may have been written to out.
func Run(in, out *os.File) error {
	return run(in, out, openImage)
}

// An opener opens the image of an order. It sets the step that it is at, and may block
// for ever: then the process ends around it.
type opener func(order fuse.Order, at *step) (opened, error)

// opened is an image and what is known of its client.
type opened struct {
	image  image
	client string // ADDRESS:PORT/NONCE
}

func run(in, out *os.File, open opener) error {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	served, err := begin(in, open)
	if sent := fuse.SendAnswer(out, err); err == nil && sent != nil {
		// The driver that wanted this mapping is gone, and nobody knows of it.
		err = errors.Join(fmt.Errorf("answer: %w: %w", fault.Canceled, sent), served.unmount())
	}
	if served == nil {
		return err
	}
	if err == nil {
		err = detachStandardFiles()
	}
	return errors.Join(err, served.wait())
}

// begin does all up to the answer. After an error nothing is mounted.
func begin(in *os.File, open opener) (*served, error) {
	order, err := fuse.ReceiveOrder(in)
	if err != nil {
		return nil, err
	}
	if err := fuse.LockWorker(order.Directory); err != nil {
		return nil, err
	}
	var log events
	hardenProcess(&log)
	ctx, cancel := context.WithTimeout(context.Background(), order.Timeout)
	defer cancel()
	image, err := openWithin(ctx, order, open)
	if err != nil {
		return nil, err
	}
	return serve(order, image, &log)
}

// openWithin gives up on opening the image when ctx is done; the process is about to end then.
func openWithin(ctx context.Context, order fuse.Order, open opener) (opened, error) {
	var at step
	type result struct {
		image opened
		err   error
	}
	done := make(chan result, 1)
	go func() {
		image, err := open(order, &at)
		done <- result{image, err}
	}()
	select {
	case r := <-done:
		return r.image, r.err
	case <-ctx.Done():
		what, since := at.now()
		return opened{}, fmt.Errorf("%s: no answer from cluster %s for %s: %w",
			what, order.Target.Image.Cluster, time.Since(since).Round(100*time.Millisecond), fault.Unavailable)
	}
}

// version is that of the program, from its build information.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return info.Main.Version
}
