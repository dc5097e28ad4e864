package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// FileSystem is the type of the workers' mounts in mountinfo, after "fuse.".
const FileSystem = "rbd-csi"

// A source is what the source field of a worker's mount says, so that it is known
// without asking the worker:
//
//	CLUSTER:POOL[/NAMESPACE]/IMAGE?rw,ADDRESS:PORT/NONCE
type source struct {
	image    volid.Image
	readOnly bool
	client   string
}

// Source returns what a worker gives mount(2) as the source.
func Source(target mapper.Target, readOnly bool, client string) string {
	return target.Image.String() + "?" + modeOf(readOnly) + "," + client
}

func modeOf(readOnly bool) string {
	if readOnly {
		return "ro"
	}
	return "rw"
}

// parseSource reads what Source wrote. An image name may hold "?" and ",", an address does not.
func parseSource(text string) (source, bool) {
	cut := strings.LastIndexByte(text, '?')
	if cut < 0 {
		return source{}, false
	}
	mode, client, found := strings.Cut(text[cut+1:], ",")
	image, err := volid.ParseImage(text[:cut])
	if !found || err != nil || mode != modeOf(mode == "ro") {
		return source{}, false
	}
	return source{image: image, readOnly: mode == "ro", client: client}, true
}

// Blocklistable turns what rados_getaddrs returns into what `ceph osd blocklist add`
// takes and what `rbd status` shows for a watcher: ADDRESS:PORT/NONCE. A client has one
// address; where it is written as a list of one for each protocol, all have
// the same nonce, and the blocklist does not look at the protocol.
func Blocklistable(addresses string) (string, error) {
	text := addresses
	if strings.HasPrefix(text, "[v") {
		text = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
	}
	text, _, _ = strings.Cut(text, ",")
	for _, protocol := range []string{"v1:", "v2:", "any:"} {
		text = strings.TrimPrefix(text, protocol)
	}
	address, nonce, found := strings.Cut(text, "/")
	_, err := netip.ParseAddrPort(address)
	if !found || nonce == "" || err != nil {
		return "", fmt.Errorf("client address %q has no form that is known: %w", addresses, fault.Unsupported)
	}
	return text, nil
}

// A state is what the kernel and the worker say of one mapping.
type state struct {
	at      place
	mounted bool
	source  source // valid while mounted
	mark    mark   // of loop devices over it, valid while mounted
	loops   []loop // that have the mark; more than one only by other hands
	alive   bool   // a worker holds its lock
	pid     int    // of the worker, 0 if it cannot be seen from here
	status  Status
	silent  error // why an alive worker did not tell its status
}

// kernel is one reading of mountinfo and sysfs.
type kernel struct {
	mounts map[string]string // source by mount point, the topmost
	loops  map[mark][]int
}

// marked returns the loop devices with a mark.
func (k kernel) marked(as mark) []loop {
	var loops []loop
	for _, number := range k.loops[as] {
		loops = append(loops, loop{number, as})
	}
	return loops
}

func readKernel() (kernel, error) {
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		return info.FSType != "fuse."+FileSystem, false
	})
	if err != nil {
		return kernel{}, fmt.Errorf("read mountinfo: %w: %w", fault.Unavailable, err)
	}
	loops, err := readLoops()
	if err != nil {
		return kernel{}, err
	}
	mounts := make(map[string]string, len(infos))
	for _, info := range infos {
		mounts[info.Mountpoint] = info.Source
	}
	return kernel{mounts, loops}, nil
}

// look reads the state of one mapping.
func (m *Mapper) look(ctx context.Context, at place) (state, error) {
	kernel, err := readKernel()
	if err != nil {
		return state{}, err
	}
	return m.lookIn(ctx, kernel, at), nil
}

func (m *Mapper) lookIn(ctx context.Context, kernel kernel, at place) state {
	found := state{at: at}
	if text, ok := kernel.mounts[at.mount()]; ok {
		found.mounted = true
		found.source, _ = parseSource(text)
		found.mark = markOf(at.file(ImageFile), text)
		found.loops = kernel.marked(found.mark)
	}
	var err error
	if found.alive, found.pid, err = at.worker(); err != nil {
		found.alive, found.silent = true, err
		return found
	}
	if found.mounted && found.alive {
		found.status, found.silent = m.asking.status(ctx, at)
		switch {
		case errors.Is(found.silent, errDead):
			found.alive, found.silent = false, nil
		case errors.Is(found.silent, fs.ErrNotExist):
			found.mounted, found.silent = false, nil // since mountinfo was read
		}
	}
	return found
}

// lookSettled looks until no worker is just starting or ending, which only happens in a
// locked mapping when a driver was killed a moment ago.
func (m *Mapper) lookSettled(ctx context.Context, at place) (state, error) {
	var found state
	err := poll(ctx, func() (bool, error) {
		var err error
		found, err = m.look(ctx, at)
		return found.mounted || !found.alive, err
	})
	if errors.Is(err, errTimeout) {
		return state{}, fmt.Errorf("%s is starting or ending: %w", workerProcess(found.pid), fault.Unavailable)
	}
	return found, err
}

// unanswered returns an error if it is not known whether the mapping is dead or alive.
func (s state) unanswered() error {
	if s.silent == nil {
		return nil
	}
	return fmt.Errorf("%s does not answer: %w: %w", workerProcess(s.pid), fault.Unavailable, s.silent)
}

// serving reports that a worker does I/O, whether or not a loop device is attached.
func (s state) serving() bool {
	return s.mounted && s.alive && s.silent == nil && s.status.Dead == "" && !s.status.Closed
}

// dead says why no I/O will come back from the device, or nothing.
func (s state) dead() string {
	switch {
	case !s.mounted && s.alive:
		return "the worker is starting or ending"
	case !s.alive:
		return "the worker process is gone"
	case s.status.Dead != "":
		return s.status.Dead
	case s.status.Closed:
		return "the worker has closed the image"
	case len(s.loops) == 0:
		return "no loop device is attached"
	}
	return ""
}

// device returns the state in the words of the port.
func (s state) device() mapper.Device {
	device := mapper.Device{
		Mapper:   Name,
		Target:   s.at.target,
		ReadOnly: s.source.readOnly,
		Dead:     s.dead(),
	}
	device.Target.Image = s.source.image
	if len(s.loops) > 0 {
		device.Path = s.loops[0].path()
	}
	if device.Dead == "" {
		device.Client = s.source.client
	}
	return device
}
