//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// mountComplaints are of mount(8) 2.38, which gives one exit code to all of them.
var mountComplaints = [...]complaint{
	{"already mounted", fault.InUse},
	{"busy", fault.InUse},
	{"Structure needs cleaning", fault.DataLoss},
	{"unknown filesystem type", fault.Unsupported},
	{"write-protected", fault.Invalid},
	{"wrong fs type, bad option", fault.Invalid},
	{"Unknown parameter", fault.Invalid},
	{"nvalid", fault.Invalid},
}

// otherMounts are options that make mount(8) do something else than to mount a device.
var otherMounts = []string{"bind", "rbind", "move", "remount", "loop", "offset", "sizelimit", "encryption", "fstab", "user", "users", "helper"}

// Mount implements filesystem.Host.
func (h *Host) Mount(ctx context.Context, m filesystem.Mount) error {
	if err := firstOf(begin(ctx, m.Path), plain(m.Device), mountable(m.Type), optionsFor(m.Options)); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	node, err := nodeNumber(m.Device)
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	path, err := resolveMaking(m.Path)
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	wantReadOnly := m.ReadOnly || slices.Contains(m.Options, "ro")
	if done, err := mountedAs(path, node, wantReadOnly); done || err != nil {
		return err
	}
	made, err := makeTarget(path, true)
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	options := mountOptions(m.Options, wantReadOnly)
	if err := h.mount(ctx, path, append(options, "-t", string(m.Type), m.Device, path)...); err != nil {
		if !errors.Is(err, fault.Unknown) {
			removeMade(path, made, true)
		}
		// The kernel's answer is EROFS, for a mount that is read-only already (ext4_load_and_init_journal, xlog_recover).
		if wantReadOnly && strings.Contains(err.Error(), "cannot mount "+m.Device+" read-only") {
			return fmt.Errorf("%w: %w: %w", filesystem.ErrReplay, fault.InUse, err)
		}
		return err
	}
	done, err := mountedAs(path, node, wantReadOnly)
	if err == nil && !done {
		err = fmt.Errorf("mount %s: nothing is mounted there afterwards: %w", path, fault.Unknown)
	}
	if err == nil {
		klog.FromContext(ctx).V(2).Info("Mounted", "device", m.Device, "path", path, "options", options)
	}
	return err
}

// mountOptions returns the arguments of mount(8) for the mode and the options. The mode comes last and wins.
// It has to be -w and not "-o rw", or mount(8) makes a read-only mount of a write-protected device,
// with a warning.
func mountOptions(wanted []string, readOnly bool) []string {
	var args []string
	if len(wanted) > 0 {
		args = []string{"-o", strings.Join(wanted, ",")}
	}
	if readOnly {
		return append(args, "-r")
	}
	return append(args, "-w")
}

// mountable returns fault.Invalid for a type that the driver does not make.
func mountable(kind filesystem.Type) error {
	if kind != filesystem.Ext4 && kind != filesystem.XFS {
		return fmt.Errorf("filesystem %q: %w", kind, fault.Invalid)
	}
	return nil
}

// optionsFor returns fault.Invalid for options that would make mount(8) do something else.
func optionsFor(options []string) error {
	for _, option := range options {
		for one := range strings.SplitSeq(option, ",") {
			name, _, _ := strings.Cut(one, "=")
			if slices.Contains(otherMounts, name) || strings.HasPrefix(strings.ToLower(name), "x-") {
				return fmt.Errorf("mount option %q is not for a volume: %w", one, fault.Invalid)
			}
		}
	}
	return nil
}

// mountedAs reports whether a device's filesystem is mounted at a path in this mode. It returns
// fault.InUse when something else is.
func mountedAs(path string, device number, wantReadOnly bool) (bool, error) {
	mounts, err := readTable(tableFile)
	if err != nil {
		return false, err
	}
	info := mounts.top(path)
	if info == nil {
		return false, nil
	}
	there := point(info)
	switch {
	case there.Type == "" || numberOf(info) != device || info.Root != "/":
		return false, fmt.Errorf("%s of %s (%s) is mounted at %s: %w", info.Root, there.Device, info.FSType, path, fault.InUse)
	case there.ReadOnly && !wantReadOnly && !readOnlyHere(info):
		return false, fmt.Errorf("the filesystem of %s, mounted at %s, has gone read-only: %w", there.Device, path, fault.InUse)
	case there.ReadOnly != wantReadOnly:
		return false, fmt.Errorf("%s is mounted at %s with read-only %t: %w", there.Device, path, there.ReadOnly, fault.InUse)
	}
	return true, nil
}

// mount runs mount(8), without the tables of its own that it would keep, and without the
// programs that it would call for other filesystems.
func (h *Host) mount(ctx context.Context, path string, args ...string) error {
	mount := command{tool: "mount", about: path, args: append([]string{"-n", "-i"}, args...)}
	r, err := h.children.run(ctx, mount)
	if err == nil && r.code != 0 {
		err = r.failed(mount, r.kind(mount, mountComplaints[:]))
	}
	return err
}

// Bind implements filesystem.Host.
func (h *Host) Bind(ctx context.Context, b filesystem.Bind) error {
	if err := firstOf(begin(ctx, b.Path), plain(b.Source), optionsFor(b.Options)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	from, err := h.source(ctx, b.Source)
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	path, err := resolveMaking(b.Path)
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	wantReadOnly := b.ReadOnly || slices.Contains(b.Options, "ro")
	state, mounts, err := from.boundAt(path, wantReadOnly)
	if err != nil || state == boundRight {
		return err
	}
	if state == boundNot {
		if err := h.bind(ctx, from, path, bindOptions(mounts, from, b.Options, wantReadOnly)); err != nil {
			return err
		}
		if state, mounts, err = from.boundAt(path, wantReadOnly); err != nil {
			return err
		}
	}
	// mount(8) before 2.39 binds first and makes that read-only in a second step. Here is the
	// rest of it, in case that it, or we, were killed in between.
	if state == boundWritable {
		options := append([]string{"remount"}, bindOptions(mounts, from, b.Options, true)...)
		if err := h.mount(ctx, path, "-o", strings.Join(options, ","), path); err != nil {
			return err
		}
		if state, _, err = from.boundAt(path, wantReadOnly); err != nil {
			return err
		}
	}
	if state != boundRight {
		return fmt.Errorf("bind %s at %s: it is not there afterwards: %w", b.Source, path, fault.Unknown)
	}
	klog.FromContext(ctx).V(2).Info("Bound", "source", b.Source, "path", path, "readOnly", wantReadOnly)
	return nil
}

// bind makes the target and binds the source there.
func (h *Host) bind(ctx context.Context, from source, path string, options []string) error {
	made, err := makeTarget(path, from.folder)
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	err = h.mount(ctx, path, "-o", strings.Join(options, ","), from.path, path)
	if err != nil && !errors.Is(err, fault.Unknown) {
		removeMade(path, made, from.folder)
	}
	return err
}

// kept are the flags of a mount that a bind of it inherits, but that a second step,
// which sets all flags anew, would take off.
var kept = []string{"nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime"}

// bindOptions returns the options of a bind, "bind" first.
func bindOptions(mounts table, from source, wanted []string, wantReadOnly bool) []string {
	options := []string{"bind"}
	if len(wanted) == 0 && !wantReadOnly {
		return options
	}
	if info := mounts.holding(from.path); info != nil {
		for flag := range strings.SplitSeq(info.Options, ",") {
			if slices.Contains(kept, flag) {
				options = append(options, flag)
			}
		}
	}
	options = append(options, wanted...)
	if wantReadOnly {
		options = append(options, "ro")
	}
	return options
}

// A source is what is to be bound.
type source struct {
	path   string // without symbolic links
	folder bool
	node   number // of a device's node
	isNode bool
}

// source looks at the source of a bind. It may lie on a volume whose device is dead, so all
// looking is done by children.
func (h *Host) source(ctx context.Context, path string) (source, error) {
	realpath := command{tool: "realpath", about: path, args: []string{"-e", path}}
	r, err := h.children.run(ctx, realpath)
	if err == nil && r.code != 0 {
		err = r.failed(realpath, r.kind(realpath, lookComplaints[:]))
	}
	if err != nil {
		return source{}, err
	}
	from := source{path: strings.TrimSuffix(string(r.out), "\n")}
	stat := command{tool: "stat", about: path, args: []string{"-c", "%f %t %T", from.path}}
	r, err = h.children.run(ctx, stat)
	if err == nil && r.code != 0 {
		err = r.failed(stat, r.kind(stat, lookComplaints[:]))
	}
	if err != nil {
		return source{}, err
	}
	fields, err := hexadecimals(string(r.out), 3)
	if err != nil {
		return source{}, r.failed(stat, fault.Internal)
	}
	kind := fields[0] & unix.S_IFMT
	from.folder = kind == unix.S_IFDIR
	from.isNode = kind == unix.S_IFBLK
	if from.isNode {
		from.node = number{uint32(fields[1]), uint32(fields[2])}
	}
	return from, nil
}

// lookComplaints are of stat(1), realpath(1) and the like.
var lookComplaints = [...]complaint{
	{"No such file", fault.NotFound},
	{"Not a directory", fault.NotFound},
}

// hexadecimals reads so many numbers.
func hexadecimals(text string, count int) ([]uint64, error) {
	fields := strings.Fields(text)
	if len(fields) != count {
		return nil, fmt.Errorf("%q has %d fields and not %d: %w", text, len(fields), count, fault.Internal)
	}
	numbers := make([]uint64, count)
	for i, field := range fields {
		n, err := strconv.ParseUint(field, 16, 32)
		if err != nil {
			return nil, err
		}
		numbers[i] = n
	}
	return numbers, nil
}

// A bound is what stands at the target of a bind.
type bound int

const (
	boundNot      bound = iota // nothing
	boundWritable              // the source, writable though it should not be
	boundRight                 // the source, in the mode that was asked for
)

// boundAt compares what stands at a path with the source. It returns fault.InUse
// when it is anything else.
func (from source) boundAt(path string, wantReadOnly bool) (bound, table, error) {
	mounts, err := readTable(tableFile)
	if err != nil {
		return boundNot, nil, err
	}
	info := mounts.top(path)
	switch {
	case info == nil:
		return boundNot, mounts, nil
	case !from.seenIn(info, mounts):
		return boundNot, nil, fmt.Errorf("%s of %s (%s) is mounted at %s: %w", info.Root, info.Source, info.FSType, path, fault.InUse)
	case readOnlyHere(info) == wantReadOnly:
		return boundRight, mounts, nil
	case wantReadOnly:
		return boundWritable, mounts, nil
	}
	return boundNot, nil, fmt.Errorf("%s is bound at %s read-only: %w", from.path, path, fault.InUse)
}

// seenIn reports whether a mount shows the source.
func (from source) seenIn(info *mountinfo.Info, mounts table) bool {
	if from.isNode {
		node, found := boundNode(info)
		return found && node == from.node
	}
	device, root := mounts.rooted(from.path)
	return device == numberOf(info) && root == info.Root
}
