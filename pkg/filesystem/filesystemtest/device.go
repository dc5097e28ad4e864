package filesystemtest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// A device is what a Fake knows of a device beside its content.
type device struct {
	named      bool  // made with Fake.Device: size and disk are here and not in a file
	size       int64 // in bytes
	disk       disk
	unreadable bool
	blind      bool
	damaged    bool
}

// A disk is a filesystem, and also the line that stands for it at the beginning of a file:
//
//	filesystemtest {"type":"ext4","uuid":"...","bytes":67108864,...}
type disk struct {
	Type  string `json:"type"`
	UUID  string `json:"uuid"`
	Bytes int64  `json:"bytes"` // the size of the filesystem, at most that of the device
	// Unfinished marks what an interrupted mkfs left.
	Unfinished bool `json:"unfinished,omitempty"`
	// Journal says that there is a journal to be replayed: it is mounted, or was not unmounted.
	Journal bool              `json:"journal,omitempty"`
	Files   map[string][]byte `json:"files,omitempty"` // by their path in the filesystem
}

// lineStart begins the line of a disk.
const lineStart = "filesystemtest "

// lineLimit bounds the line, and so what a filesystem can hold.
const lineLimit = 4 << 20

// Device makes a device of so many bytes that is no file, with nothing on it.
func (f *Fake) Device(path string, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.devices[path] = &device{named: true, size: bytes}
}

// Resize changes the size of a device that was made with Device. A file is resized with
// os.Truncate.
func (f *Fake) Resize(path string, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known(path).size = bytes
}

// Put puts a filesystem, or anything else that has a signature, onto a device, as if
// somebody else had made it. An empty signature wipes the device.
func (f *Fake) Put(path string, signature filesystem.Signature) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	size, err := f.size(path)
	if err != nil {
		return err
	}
	if signature.Empty() {
		return f.save(path, disk{})
	}
	return f.save(path, disk{Type: signature.Type, UUID: signature.UUID, Bytes: size})
}

// Unreadable says whether reading the device fails.
func (f *Fake) Unreadable(path string, yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known(path).unreadable = yes
}

// Blind says whether the device reads well and shows no signature though it has one.
func (f *Fake) Blind(path string, yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known(path).blind = yes
}

// Protected sets what tells whether a device can only be read: for instance whether a fake of a mapper has mapped it so.
func (f *Fake) Protected(protected func(path string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.protected = protected
}

// LeaveJournal lets the filesystem on a device be one that was never unmounted, as that of a copy which was made while it was in use.
func (f *Fake) LeaveJournal(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	stands, err := f.load(path)
	if err != nil {
		return err
	}
	stands.Journal = true
	return f.save(path, stands)
}

// Stop lets the filesystem on a device go read-only where it is mounted, as it does after an error.
func (f *Fake) Stop(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.mounts {
		if m.point.Device == path && m.point.Type != "" {
			m.point.ReadOnly, m.point.Stopped = true, true
		}
	}
}

// Damage says whether the filesystem on the device has errors that a human has to look at.
func (f *Fake) Damage(path string, yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known(path).damaged = yes
}

// known returns what is known of a device; every path may be one.
func (f *Fake) known(path string) *device {
	if f.devices[path] == nil {
		f.devices[path] = &device{}
	}
	return f.devices[path]
}

// size returns the size of a device. fault.Unavailable means that there is no such
// device, or that it cannot be read.
func (f *Fake) size(path string) (int64, error) {
	known := f.known(path)
	if known.unreadable {
		return 0, fmt.Errorf("read %s: input/output error: %w", path, fault.Unavailable)
	}
	if known.named {
		return known.size, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("look at device %s: %w: %w", path, fault.Unavailable, err)
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is neither a file nor made with Fake.Device: %w", path, fault.Invalid)
	}
	return info.Size(), nil
}

// load returns what stands on a device, which is the zero disk for nothing.
func (f *Fake) load(path string) (disk, error) {
	if _, err := f.size(path); err != nil {
		return disk{}, err
	}
	if known := f.known(path); known.named {
		return known.disk, nil
	}
	line, err := readLine(path)
	if err != nil {
		return disk{}, fmt.Errorf("read %s: %w: %w", path, fault.Unavailable, err)
	}
	var stands disk
	if line == nil {
		return stands, nil
	}
	if err := json.Unmarshal(line, &stands); err != nil {
		return disk{}, fmt.Errorf("read %s: %w: %w", path, fault.DataLoss, err)
	}
	return stands, nil
}

// readLine returns what follows lineStart at the beginning of a file, or nil where that is not.
func readLine(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	reader := bufio.NewReader(io.LimitReader(file, lineLimit))
	start, err := reader.Peek(len(lineStart))
	if err != nil && !errors.Is(err, io.EOF) || string(start) != lineStart {
		return nil, ignoreEnd(err)
	}
	line, err := reader.ReadBytes('\n')
	return line[len(lineStart):], ignoreEnd(err)
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// save writes what stands on a device.
func (f *Fake) save(path string, stands disk) error {
	known := f.known(path)
	if known.named {
		known.disk = stands
		return nil
	}
	line := make([]byte, len(lineStart))
	if stands.Type != "" {
		text, err := json.Marshal(stands)
		if err != nil {
			return fmt.Errorf("write %s: %w: %w", path, fault.Internal, err)
		}
		line = append([]byte(lineStart), append(text, '\n')...)
	}
	if len(line) > lineLimit {
		return fmt.Errorf("write %s: %d bytes: %w", path, len(line), fault.Exhausted)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write %s: %w: %w", path, fault.Unavailable, err)
	}
	_, err = file.WriteAt(line, 0)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write %s: %w: %w", path, fault.Unavailable, err)
	}
	return nil
}

// isDevice reports whether a bind of this path is one of a device.
func (f *Fake) isDevice(path string) bool {
	if known := f.devices[path]; known != nil && known.named {
		return true
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// exists reports whether something is at this path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
