package fuse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Status is the content of the file status in a worker's mount, as JSON. The worker
// writes it from memory, so reading it waits for no cluster.
type Status struct {
	Version  string   // of the program that the worker is
	PID      int      // as the worker itself sees it
	Image    string   // CLUSTER:POOL[/NAMESPACE]/IMAGE
	FSID     string   //
	PoolID   int64    //
	ImageID  string   //
	User     string   // as whom it asks the cluster
	ReadOnly bool     //
	Client   string   // ADDRESS:PORT/NONCE, for `ceph osd blocklist add`
	Bytes    int64    // the image's size
	Dead     string   // why no I/O will come back, or empty
	Closed   bool     // the image was closed, after Close
	Events   []string // the latest messages, oldest first
}

// A Control is written to the file control in a worker's mount, with how long it may
// take: "flush 2.5s". The write returns when it is done; its error is
// ETIMEDOUT when the cluster did not answer in time, ESHUTDOWN when the device
// is dead, and EIO for anything else, which status then tells.
type Control string

// The controls.
const (
	// Probe asks the cluster whether the image is there and this client may write to it.
	Probe Control = "probe"
	// Flush returns when all that was written is on the cluster.
	Flush Control = "flush"
	// Close flushes and closes the image. No I/O is possible after it, whatever it
	// returns. The worker ends when the control file is closed after it. It does not
	// wait for its mount to go, of which other mount namespaces may hold copies.
	Close Control = "close"
	// Grow makes a loop device over the image as large as the image is:
	// "grow 2.5s /dev/loop3". It is not for the driver to do: a process that is killed
	// while the kernel asks for the file's size leaves the device with a size
	// of 0 (lo_calculate_size in drivers/block/loop.c, Linux 6.17), under a mounted
	// file system. When the worker is killed the device is lost anyhow.
	Grow Control = "grow"
)

// errDead means that no I/O comes back from this worker any more.
var errDead = errors.New("the device is dead")

// control has the worker do something within ctx's deadline. The write itself waits
// for ever only if the worker is stopped, until someone goes on with it or kills it.
func (p place) control(ctx context.Context, what Control, about ...string) error {
	within := defaultTimeout
	if deadline, ok := ctx.Deadline(); ok {
		// A margin lets the worker's answer arrive before the caller is let go.
		within = time.Until(deadline) * 9 / 10
	}
	if within <= 0 {
		return fmt.Errorf("%s: no time left: %w", what, fault.Unavailable)
	}
	file, err := os.OpenFile(p.file(ControlFile), os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprintln(file, what, within, strings.Join(about, " "))
		_ = file.Close()
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESHUTDOWN), isGone(err):
		return fmt.Errorf("%s: %w: %w", what, fault.Unavailable, errDead)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: the worker has just ended: %w", what, fault.Superseded)
	case errors.Is(err, unix.ETIMEDOUT):
		return fmt.Errorf("%s: the cluster did not answer within %s: %w", what, within.Round(time.Millisecond), fault.Unavailable)
	}
	return fmt.Errorf("%s: %w: %w", what, fault.Unavailable, err)
}

// isGone tells the errors of a FUSE connection whose worker died: the second is for requests
// that were on their way then.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
}

// asking reads status files, of each mapping at most once at a time, so that a stopped
// worker costs one waiting thread and not one for each question.
type asking struct {
	mutex   sync.Mutex
	running map[string]*question
}

type question struct {
	done   chan struct{}
	status Status
	err    error
}

// status returns a worker's status, errDead if it is gone, and another error if it does
// not answer.
func (a *asking) status(ctx context.Context, at place) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	question := a.join(at)
	select {
	case <-question.done:
		return question.status, question.err
	case <-ctx.Done():
		return Status{}, fmt.Errorf("read status: %w", ctx.Err())
	}
}

func (a *asking) join(at place) *question {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if running, ok := a.running[at.path]; ok {
		return running
	}
	if a.running == nil {
		a.running = make(map[string]*question)
	}
	asked := &question{done: make(chan struct{})}
	a.running[at.path] = asked
	go func() {
		asked.status, asked.err = readStatus(at.file(StatusFile))
		a.mutex.Lock()
		delete(a.running, at.path)
		a.mutex.Unlock()
		close(asked.done)
	}()
	return asked
}

func readStatus(path string) (Status, error) {
	var status Status
	content, err := os.ReadFile(path)
	if isGone(err) {
		return status, errDead
	}
	if err != nil {
		return status, err
	}
	if err := json.Unmarshal(content, &status); err != nil {
		return status, fmt.Errorf("%s: %w", path, err)
	}
	return status, nil
}
