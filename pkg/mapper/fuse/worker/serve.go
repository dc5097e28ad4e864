package worker

import (
	"fmt"
	"log"
	"os"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
)

const (
	// maxRequest is the largest read or write; the kernel's limit is fs.fuse.max_pages_limit.
	maxRequest = 1 << 20
	// maxInFlight is the queue depth of a loop device (hw_queue_depth in drivers/block/loop.c).
	maxInFlight = 128
)

// served is a mounted image.
type served struct {
	disk   *disk
	server *gofuse.Server
	ended  chan struct{}
}

// serve mounts the image. After an error nothing is mounted, and the image is closed.
func serve(order fuse.Order, image opened, log *events) (*served, error) {
	disk, err := newDisk(image, order.ReadOnly, log)
	if err != nil {
		return nil, fmt.Errorf("read the size of the image: %w: %w", fault.Unavailable, err)
	}
	s := &served{disk: disk, ended: make(chan struct{})}
	end := sync.OnceFunc(func() { close(s.ended) })
	files := newFiles(disk, func() fuse.Status { return statusOf(order, disk) }, end)
	s.server, err = gofuse.NewServer(files, order.MountPoint(), mountOptions(order, image.client, log))
	if err != nil {
		_ = disk.close()
		return nil, fmt.Errorf("mount %s: %w: %w", order.MountPoint(), fault.Unsupported, err)
	}
	if err := closeOnExec("/dev/fuse"); err != nil {
		log.add(fmt.Sprintf("a child of this process would hold its connection: %v", err))
	}
	go func() {
		s.server.Serve()
		end()
	}()
	if err := s.server.WaitMount(); err != nil {
		_ = s.unmount()
		_ = s.wait()
		return nil, fmt.Errorf("mount %s: %w: %w", order.MountPoint(), fault.Unavailable, err)
	}
	return s, nil
}

func mountOptions(order fuse.Order, client string, events *events) *gofuse.MountOptions {
	return &gofuse.MountOptions{
		FsName:            fuse.Source(order.Target, order.ReadOnly, client),
		Name:              fuse.FileSystem,
		DirectMountStrict: true, // by mount(2), without the program fusermount
		DirectMountFlags:  unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME,
		MaxWrite:          maxRequest,
		// Without ASYNC_DIO the kernel waits for each request of a loop device before the next.
		ExtraCapabilities:   gofuse.CAP_ASYNC_DIO,
		MaxBackground:       maxInFlight,
		CongestionThreshold: maxInFlight,
		DisableSplice:       true, // librbd reads into memory
		DisableReadDirPlus:  true,
		DisableXAttrs:       true,
		Logger:              log.New(events, "", 0),
	}
}

func statusOf(order fuse.Order, disk *disk) fuse.Status {
	status := fuse.Status{
		Version:  version(),
		PID:      os.Getpid(),
		Image:    order.Target.Image.String(),
		FSID:     order.Target.FSID,
		PoolID:   order.Target.PoolID,
		ImageID:  order.Target.ImageID,
		User:     order.Credentials.User,
		ReadOnly: order.ReadOnly,
		Client:   disk.client,
		Bytes:    disk.size.Load(),
		Closed:   disk.closed.Load(),
		Events:   disk.log.all(),
	}
	if why := disk.dead.Load(); why != nil {
		status.Dead = *why
	}
	return status
}

// unmount takes down what serve has put up, when nobody can have used it.
func (s *served) unmount() error { return s.server.Unmount() }

// wait returns after the image was closed, as it was told to or because nobody has it mounted
// any more.
func (s *served) wait() error {
	<-s.ended
	if err := s.disk.close(); err != nil {
		return fmt.Errorf("close the image: %w: %w", fault.Unavailable, err)
	}
	return nil
}
