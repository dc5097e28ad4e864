package filesystemtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// A mount is one line of the Fake's mount table.
type mount struct {
	point        filesystem.Point
	root         string // the part of the filesystem that is seen
	from         string // of a bind: the source
	bindReadOnly bool
	uuid         string
	hidden       map[string]bool // what was in the directory before
	holders      int
}

// same reports whether both show the same thing.
func (m *mount) same(other *mount) bool {
	return m.point.Device == other.point.Device && m.point.Type == other.point.Type && m.root == other.root
}

// occupies is the answer to who wants to mount something else at the same path.
func (m *mount) occupies() error {
	return fmt.Errorf("%s is mounted at %s with read-only %t: %w", m.point.Device, m.point.Path, m.point.ReadOnly, fault.InUse)
}

// Hold keeps what is mounted at a path busy, as a process with an open file does, until
// release is called.
func (f *Fake) Hold(path string) (release func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	there, err := f.at(path)
	if err != nil {
		return nil, err
	}
	if there == nil {
		return nil, fmt.Errorf("hold %s: nothing is mounted there: %w", path, fault.NotFound)
	}
	there.holders++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		there.holders--
	}, nil
}

// Mounts returns the whole table, in the order in which the mounts were made.
func (f *Fake) Mounts() []filesystem.Point {
	f.mu.Lock()
	defer f.mu.Unlock()
	var points []filesystem.Point
	for _, m := range f.mounts {
		points = append(points, m.point)
	}
	return points
}

// top returns the topmost mount at a resolved path, or nil.
func (f *Fake) top(path string) *mount {
	for _, m := range slices.Backward(f.mounts) {
		if m.point.Path == path {
			return m
		}
	}
	return nil
}

// at returns the topmost mount at a path, or nil.
func (f *Fake) at(path string) (*mount, error) {
	if err := plain(path); err != nil {
		return nil, err
	}
	resolved, found, err := resolve(path)
	if err != nil || !found {
		return nil, err
	}
	return f.top(resolved), nil
}

// mounted reports whether the filesystem of a device is mounted.
func (f *Fake) mounted(device string) bool {
	return slices.ContainsFunc(f.mounts, func(m *mount) bool { return m.point.Device == device && m.point.Type != "" })
}

// source returns what a bind of this path shows.
func (f *Fake) source(path string) (*mount, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if f.known(path).named {
		resolved, err = path, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bind %s: %w", path, fault.NotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("bind %s: %w: %w", path, fault.Unavailable, err)
	}
	for holding := resolved; ; holding = filepath.Dir(holding) {
		if m := f.top(holding); m != nil {
			shown := *m
			shown.root = filepath.Join(m.root, strings.TrimPrefix(resolved, holding))
			shown.from, shown.holders = resolved, 0
			if holding != resolved {
				shown.hidden = nil
			}
			return &shown, nil
		}
		if holding == "/" {
			break
		}
	}
	if f.isDevice(resolved) {
		return &mount{point: filesystem.Point{Device: path}, root: "/", from: resolved}, nil
	}
	return &mount{point: filesystem.Point{Device: "node", Type: "node"}, root: resolved, from: resolved}, nil
}

// attach adds a mount to the table and shows its files.
func (f *Fake) attach(m *mount, files map[string][]byte) error {
	if m.point.Type == "" {
		f.mounts = append(f.mounts, m)
		return nil
	}
	if stands, err := f.load(m.point.Device); err == nil {
		m.uuid = stands.UUID
	}
	entries, err := os.ReadDir(m.point.Path)
	if err != nil {
		return fmt.Errorf("read target %s: %w: %w", m.point.Path, fault.Unavailable, err)
	}
	m.hidden = map[string]bool{}
	for _, entry := range entries {
		m.hidden[entry.Name()] = true
	}
	f.mounts = append(f.mounts, m)
	return scatter(m.point.Path, files)
}

// detach takes a mount from the table, and its files from the directory.
func (f *Fake) detach(m *mount) error {
	below := func(other *mount) bool { return strings.HasPrefix(other.point.Path, m.point.Path+"/") }
	if m.holders > 0 || slices.ContainsFunc(f.mounts, below) {
		return fmt.Errorf("unmount %s: target is busy: %w", m.point.Path, fault.InUse)
	}
	if m.point.Type != "" {
		files, err := gather(m.point.Path, m.hidden)
		if err != nil {
			return err
		}
		if err := f.keep(m, files); err != nil {
			return err
		}
		if err := sweep(m); err != nil {
			return err
		}
	}
	f.mounts = slices.DeleteFunc(f.mounts, func(other *mount) bool { return other == m })
	if m.point.Type == "" || m.point.Stopped || f.mounted(m.point.Device) {
		return nil
	}
	stands, err := f.load(m.point.Device)
	if err != nil || stands.Type == "" {
		return nil // it is gone, and the journal is to be replayed where it comes back
	}
	return f.journal(m.point.Device, stands, false)
}

// keep stores the files of a mount where they belong: on the device, or where a bind came from.
// What is on a device that cannot be reached is lost, as it is on a real one.
func (f *Fake) keep(m *mount, files map[string][]byte) error {
	if m.point.ReadOnly {
		return nil
	}
	if m.from != "" {
		if m.point.Type == "node" || f.top(m.from) == nil {
			return nil
		}
		return scatter(m.from, files)
	}
	stands, err := f.load(m.point.Device)
	if err != nil || stands.Type == "" {
		return nil
	}
	stands.Files = files
	return f.save(m.point.Device, stands)
}

// gather reads all files in a directory, but not those in the entries that are left out.
func gather(folder string, without map[string]bool) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		name, _ := filepath.Rel(folder, path)
		first, _, _ := strings.Cut(name, "/")
		switch {
		case err != nil:
			return err
		case without[first] && entry.IsDir():
			return fs.SkipDir
		case without[first] || !entry.Type().IsRegular():
			return nil
		}
		files[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", folder, fault.Unavailable, err)
	}
	return files, nil
}

// scatter writes files into a directory.
func scatter(folder string, files map[string][]byte) error {
	for name, content := range files {
		path := filepath.Join(folder, name)
		err := os.MkdirAll(filepath.Dir(path), 0o750)
		if err == nil {
			err = os.WriteFile(path, content, 0o640)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w: %w", path, fault.Unavailable, err)
		}
	}
	return nil
}

// sweep removes what a mount showed, so that its directory is as it was before.
func sweep(m *mount) error {
	entries, err := os.ReadDir(m.point.Path)
	for _, entry := range entries {
		if !m.hidden[entry.Name()] {
			err = errors.Join(err, os.RemoveAll(filepath.Join(m.point.Path, entry.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w: %w", m.point.Path, fault.Unavailable, err)
	}
	return nil
}

// plain returns fault.Invalid unless a path is absolute, clean and not the root.
func plain(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("path %q is not absolute and clean: %w", path, fault.Invalid)
	}
	return nil
}

func mountable(kind filesystem.Type) error {
	if kind != filesystem.Ext4 && kind != filesystem.XFS {
		return fmt.Errorf("filesystem %q: %w", kind, fault.Invalid)
	}
	return nil
}

func isUUID(text string) bool {
	matches, err := regexp.MatchString(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`, text)
	return err == nil && matches
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// resolve follows symbolic links in the parent of a path; found is false when that is not there.
func resolve(path string) (resolved string, found bool, err error) {
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("parent of %s: %w: %w", path, fault.Invalid, err)
	}
	return filepath.Join(parent, filepath.Base(path)), true, nil
}

// resolveMaking makes the parent of a target if need be and follows its links.
func resolveMaking(path string) (string, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return "", fmt.Errorf("make the parent of %s: %w: %w", path, fault.Invalid, err)
	}
	resolved, found, err := resolve(path)
	if err == nil && !found {
		err = fmt.Errorf("parent of %s: %w", path, fault.Unavailable)
	}
	return resolved, err
}

// makeTarget makes sure that a path is a directory, or a file.
func makeTarget(path string, folder bool) error {
	var err error
	if info, missing := os.Lstat(path); missing == nil {
		if info.Mode()&fs.ModeSymlink != 0 || info.IsDir() != folder {
			return fmt.Errorf("target %s is %s: %w", path, info.Mode().Type(), fault.Invalid)
		}
		return nil
	}
	if folder {
		err = os.Mkdir(path, 0o750)
	} else {
		err = os.WriteFile(path, nil, 0o640)
	}
	if err != nil {
		return fmt.Errorf("make target %s: %w: %w", path, fault.Unavailable, err)
	}
	return nil
}

// removeTarget removes an empty directory or an empty file.
func removeTarget(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at %s: %w: %w", path, fault.Unavailable, err)
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link: %w", path, fault.Invalid)
	case !info.IsDir() && (!info.Mode().IsRegular() || info.Size() > 0):
		return fmt.Errorf("remove %s: it is a file that is not empty: %w", path, fault.InUse)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w: %w", path, fault.InUse, err)
	}
	return nil
}
