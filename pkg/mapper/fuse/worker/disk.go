package worker

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
)

// An image is what a worker asks of librbd. All methods may be called at once, but for
// Close, and may block for as long as the cluster does not answer. Errors carry the
// number of librbd: see errno.
type image interface {
	ReadAt(data []byte, offset int64) (int, error)
	WriteAt(data []byte, offset int64) (int, error)
	// Zero makes a range read as zeros, exactly, and gives its space back. The range is
	// at most maxZero long.
	Zero(offset, length int64) error
	Flush() error
	Size() (int64, error)
	// Probe asks the cluster one thing that it answers to no blocklisted client.
	Probe() error
	// Close flushes and closes. The image is closed whatever it returns.
	Close() error
}

// maxZero bounds one call: rbd_writesame and rbd_discard take less than 2 GiB.
const maxZero = 1 << 30

// sizePatience is how long the size may take to be asked. librbd knows it, except
// after someone changed the image: then it reads the header again.
const sizePatience = 5 * time.Second

// A disk is the image with what this process must know of it beside: that it died,
// that it was closed, how large it was.
type disk struct {
	image    image
	client   string
	readOnly bool
	log      *events

	size atomic.Int64
	dead atomic.Pointer[string]

	// using is held for reading by each call on the image, and for writing to close it.
	using  sync.RWMutex
	closed atomic.Bool

	sizing, probing, flushing, closing, growing turn
}

func newDisk(opened opened, readOnly bool, log *events) (*disk, error) {
	d := &disk{image: opened.image, client: opened.client, readOnly: readOnly, log: log}
	size, err := d.image.Size()
	d.size.Store(size)
	return d, err
}

// use runs one call on the image.
func (d *disk) use(what string, call func() error) error {
	d.using.RLock()
	defer d.using.RUnlock()
	if d.closed.Load() {
		return unix.ESHUTDOWN
	}
	return d.note(what, call())
}

// note keeps what an error says about the device as a whole. The cluster answers a
// blocklisted client with ESHUTDOWN (EBLOCKLISTED in Ceph), for ever.
func (d *disk) note(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errno(err) == unix.ESHUTDOWN:
		why := fmt.Sprintf("the cluster has blocklisted the client %s", d.client)
		if d.dead.CompareAndSwap(nil, &why) {
			d.log.add(why)
		}
	default:
		d.log.add(fmt.Sprintf("%s: %v", what, err))
	}
	return err
}

// read reads, less than was asked for at the end of the image and nothing beyond it, as a
// file does; librbd answers EINVAL there.
func (d *disk) read(data []byte, offset int64) (n int, err error) {
	left := d.size.Load() - offset
	if left <= 0 {
		return 0, nil
	}
	data = data[:min(int64(len(data)), left)]
	err = d.use("read", func() error {
		n, err = d.image.ReadAt(data, offset)
		return err
	})
	return n, err
}

func (d *disk) write(data []byte, offset int64) (n int, err error) {
	err = d.use("write", func() error {
		n, err = d.image.WriteAt(data, offset)
		return err
	})
	return n, err
}

// zero clears a range in pieces. What is beyond the end of the image is left out.
func (d *disk) zero(offset, length int64) error {
	end := min(offset+length, d.size.Load())
	for offset < end {
		piece := min(end-offset, maxZero)
		if err := d.use("zero", func() error { return d.image.Zero(offset, piece) }); err != nil {
			return err
		}
		offset += piece
	}
	return nil
}

func (d *disk) flush() error { return d.use("flush", d.image.Flush) }

// sizeNow returns the image's size, or the last known one while the cluster does not answer.
func (d *disk) sizeNow() int64 {
	_ = d.sizing.take(sizePatience, func() error {
		return d.use("size", func() error {
			size, err := d.image.Size()
			if err == nil {
				d.size.Store(size)
			}
			return err
		})
	})
	return d.size.Load()
}

// obey does what was written to the control file.
func (d *disk) obey(what fuse.Control, within time.Duration, about string) error {
	switch what {
	case fuse.Probe:
		return d.probing.take(within, func() error { return d.use("probe", d.image.Probe) })
	case fuse.Flush:
		return d.flushing.take(within, d.flush)
	case fuse.Close:
		return d.closing.take(within, d.close)
	case fuse.Grow:
		return d.growing.take(within, func() error { return setCapacity(about) })
	}
	return unix.EINVAL
}

// close flushes and closes the image once all calls on it have returned. Repeating it is
// success: its error was told to whoever closed it first.
func (d *disk) close() error {
	d.using.Lock()
	defer d.using.Unlock()
	if d.closed.Load() {
		return nil
	}
	defer d.closed.Store(true) // at the end: what is closed may be killed
	flushed := d.image.Flush()
	return d.note("close", errors.Join(flushed, d.image.Close()))
}

// A turn lets one call run at a time, in the background, and callers wait for theirs
// for a limited time only. So calls that the cluster does not answer never pile up.
type turn struct {
	mutex   sync.Mutex
	running chan struct{}
}

// take runs a call when the one before it has returned. It returns ETIMEDOUT if the
// call, or its turn, did not come to an end in time; a call that was begun goes on.
func (t *turn) take(within time.Duration, call func() error) error {
	limit := time.NewTimer(within)
	defer limit.Stop()
	for {
		mine := make(chan struct{})
		before := t.begin(mine)
		if before == nil {
			var err error
			go func() {
				err = call()
				t.end()
				close(mine)
			}()
			select {
			case <-mine:
				return err
			case <-limit.C:
				return unix.ETIMEDOUT
			}
		}
		select {
		case <-before:
		case <-limit.C:
			return unix.ETIMEDOUT
		}
	}
}

// begin returns nil if it is the caller's turn, and otherwise what to wait for.
func (t *turn) begin(mine chan struct{}) (before chan struct{}) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.running != nil {
		return t.running
	}
	t.running = mine
	return nil
}

func (t *turn) end() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.running = nil
}

// errno returns the number of an error of the system or of librbd, or EIO.
func errno(err error) unix.Errno {
	if number, ok := errors.AsType[unix.Errno](err); ok {
		return number
	}
	var coded interface{ ErrorCode() int }
	if errors.As(err, &coded) && coded.ErrorCode() < 0 {
		return unix.Errno(-coded.ErrorCode())
	}
	return unix.EIO
}
