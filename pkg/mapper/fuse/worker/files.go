package worker

import (
	"encoding/json"
	"strings"
	"sync"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
)

// Inode numbers.
const (
	rootNode = gofuse.FUSE_ROOT_ID + iota
	imageNode
	statusNode
	controlNode
)

type entry struct {
	node uint64
	name string
	mode uint32
}

var entries = [...]entry{
	{imageNode, fuse.ImageFile, unix.S_IFREG | 0o600},
	{statusNode, fuse.StatusFile, unix.S_IFREG | 0o400},
	{controlNode, fuse.ControlFile, unix.S_IFREG | 0o200},
}

// discardGranularity reaches the loop device as f_bsize. Smaller pieces free no space
// in the OSDs' stores worth the operation; librbd and krbd have the same limit.
const discardGranularity = 64 << 10

// forever is how long names may be cached: they never change. Attributes never are.
const forever = 24 * time.Hour

// files is the file system of a worker: three files in one directory. Requests come from
// several goroutines at once, and each that reaches librbd waits until it is answered,
// reads and writes without a thread; the kernel bounds how many there are.
type files struct {
	gofuse.RawFileSystem // answers ENOSYS to all that is not here
	disk                 *disk
	status               func() fuse.Status
	over                 func() // called when nothing is left to be done

	mutex   sync.Mutex
	handles uint64
	opened  map[uint64][]byte // what each open status file shows
}

func newFiles(disk *disk, status func() fuse.Status, over func()) *files {
	return &files{
		RawFileSystem: gofuse.NewDefaultRawFileSystem(),
		disk:          disk,
		status:        status,
		over:          over,
		opened:        make(map[uint64][]byte),
	}
}

func (f *files) String() string { return fuse.FileSystem }

// Lookup does not ask for the image's size: it must not wait for the cluster.
func (f *files) Lookup(_ <-chan struct{}, header *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	for _, entry := range entries {
		if header.NodeId == rootNode && entry.name == name {
			out.NodeId, out.Generation = entry.node, 1
			out.SetEntryTimeout(forever)
			f.attributes(entry.node, f.disk.size.Load(), &out.Attr)
			return gofuse.OK
		}
	}
	return gofuse.ENOENT
}

// GetAttr of the image asks librbd for its size.
func (f *files) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	size := int64(0)
	if in.NodeId == imageNode {
		size = f.disk.sizeNow()
	}
	f.attributes(in.NodeId, size, &out.Attr)
	return gofuse.OK
}

func (f *files) attributes(node uint64, size int64, out *gofuse.Attr) {
	*out = gofuse.Attr{Ino: node, Mode: unix.S_IFDIR | 0o700, Nlink: 2, Blksize: 4096}
	for _, entry := range entries {
		if entry.node == node {
			out.Mode, out.Nlink = entry.mode, 1
		}
	}
	if node == imageNode {
		out.Size, out.Blocks = uint64(size), uint64(size)/512
	}
}

// SetAttr lets a shell's ">" truncate the control file. Nothing else can be set.
func (f *files) SetAttr(_ <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if in.NodeId != controlNode {
		return gofuse.EPERM
	}
	f.attributes(in.NodeId, 0, &out.Attr)
	return gofuse.OK
}

// Open makes all I/O direct: the loop device has a cache above it, and the status
// has no size.
func (f *files) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	out.OpenFlags = gofuse.FOPEN_DIRECT_IO | gofuse.FOPEN_PARALLEL_DIRECT_WRITES
	writes := in.Flags&unix.O_ACCMODE != unix.O_RDONLY
	switch in.NodeId {
	case imageNode:
		if writes && f.disk.readOnly {
			return gofuse.EROFS
		}
	case statusNode:
		if writes {
			return gofuse.EPERM
		}
		content, err := json.MarshalIndent(f.status(), "", "  ")
		if err != nil {
			return gofuse.EIO
		}
		out.Fh = f.keep(append(content, '\n'))
	}
	return gofuse.OK
}

func (f *files) keep(content []byte) uint64 {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.handles++
	f.opened[f.handles] = content
	return f.handles
}

func (f *files) kept(handle uint64) []byte {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.opened[handle]
}

// Release forgets an open status file.
func (f *files) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	delete(f.opened, in.Fh)
}

// Read reads into go-fuse's buffer, which comes from a pool.
func (f *files) Read(_ <-chan struct{}, in *gofuse.ReadIn, buffer []byte) (gofuse.ReadResult, gofuse.Status) {
	if in.NodeId == statusNode {
		content := f.kept(in.Fh)
		n := copy(buffer, content[min(in.Offset, uint64(len(content))):])
		return gofuse.ReadResultData(buffer[:n]), gofuse.OK
	}
	if in.NodeId != imageNode {
		return nil, gofuse.EPERM
	}
	n, err := f.disk.read(buffer, int64(in.Offset))
	if err != nil {
		// With a result go-fuse would take its status instead of ours (protocol-server.go,
		// handleRequest), and the reader would see the end of the file.
		return nil, ioStatus(err)
	}
	return gofuse.ReadResultData(buffer[:n]), gofuse.OK
}

// Write returns when librbd has taken the data: in its cache, or on the cluster.
func (f *files) Write(_ <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	if in.NodeId == controlNode {
		return uint32(len(data)), f.control(string(data))
	}
	if in.NodeId != imageNode {
		return 0, gofuse.EPERM
	}
	n, err := f.disk.write(data, int64(in.Offset))
	return uint32(n), ioStatus(err)
}

func (f *files) control(text string) gofuse.Status {
	words := append(strings.Fields(text), "", "", "")
	within, err := time.ParseDuration(words[1])
	if err != nil {
		return gofuse.EINVAL
	}
	switch err := f.disk.obey(fuse.Control(words[0]), within, words[2]); {
	case err == nil:
		return gofuse.OK
	case errno(err) == unix.ESHUTDOWN, errno(err) == unix.ETIMEDOUT, errno(err) == unix.EINVAL:
		return gofuse.Status(errno(err))
	}
	return gofuse.EIO
}

// Fsync is what becomes of a flush of the loop device: librbd writes its cache out and
// waits for all that is on its way.
func (f *files) Fsync(_ <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	return f.flush(in.NodeId)
}

// Flush comes when someone closes the file. When whoever has closed the image closes the
// control file, he has got his answer and the process can end.
func (f *files) Flush(_ <-chan struct{}, in *gofuse.FlushIn) gofuse.Status {
	if in.NodeId == controlNode && f.disk.closed.Load() {
		f.over()
	}
	return f.flush(in.NodeId)
}

func (f *files) flush(node uint64) gofuse.Status {
	if node != imageNode || f.disk.readOnly || f.disk.closed.Load() {
		return gofuse.OK
	}
	return ioStatus(f.disk.flush())
}

// Fallocate with PUNCH_HOLE is what becomes of both a discard and a write of zeros to the
// loop device, and the driver below it cannot tell which it was. So the range has to read
// as zeros afterwards, every byte of it. ZERO_RANGE, a write of zeros that asks
// for the space to stay allocated, is the same here: RBD images are thin.
func (f *files) Fallocate(_ <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	const known = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	const zeroes = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	switch {
	case in.NodeId != imageNode || in.Mode&zeroes == 0 || in.Mode&^known != 0:
		return gofuse.Status(unix.EOPNOTSUPP)
	case f.disk.readOnly:
		return gofuse.EROFS
	}
	return ioStatus(f.disk.zero(int64(in.Offset), int64(in.Length)))
}

// ioStatus is EIO for whatever happened, because that is what a broken disk says; a full
// pool is told apart.
func ioStatus(err error) gofuse.Status {
	switch {
	case err == nil:
		return gofuse.OK
	case errno(err) == unix.ENOSPC, errno(err) == unix.EDQUOT:
		return gofuse.Status(unix.ENOSPC)
	}
	return gofuse.EIO
}

// OpenDir lets the directory be listed.
func (f *files) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.OK
}

// ReadDir lists the three files.
func (f *files) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	for i := in.Offset; i < uint64(len(entries)); i++ {
		entry := entries[i]
		if !out.AddDirEntry(gofuse.DirEntry{Name: entry.name, Mode: entry.mode, Ino: entry.node, Off: i + 1}) {
			break
		}
	}
	return gofuse.OK
}

// ReleaseDir has nothing to forget.
func (f *files) ReleaseDir(*gofuse.ReleaseIn) {}

// StatFs gives the loop device its discard granularity.
func (f *files) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	out.Bsize, out.Frsize, out.NameLen = discardGranularity, discardGranularity, 255
	out.Blocks = uint64(f.disk.size.Load()) / discardGranularity
	return gofuse.OK
}
