//go:build linux

package linux

import (
	"fmt"
	"path/filepath"

	"github.com/rbd-csi/rbd-csi/pkg/errand"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// DefaultChildren is the number of child processes that a Host has at most if
// its Options do not say otherwise.
const DefaultChildren = 256

// Options of a Host.
type Options struct {
	// Children bounds how many child processes there are at once, those that were
	// given up on and have not ended yet included; 0 means DefaultChildren.
	Children int
	// Reader is the program that reads devices, in processes that count as children: one that
	// calls [Serve].
	Reader *errand.Program
}

// A Host is this node, seen from the mount namespace of the process. Its methods
// may be called at once; it remembers nothing but the children that it has given
// up on, so several Hosts do no harm to each other.
//
// All paths of devices, targets and sources have to be absolute and clean.
type Host struct {
	children *children
	reader   *errand.Program
}

var _ filesystem.Host = (*Host)(nil)

// New returns the host.
func New(o Options) *Host {
	if o.Children <= 0 {
		o.Children = DefaultChildren
	}
	return &Host{children: newChildren(o.Children), reader: o.Reader}
}

// plain returns fault.Invalid unless a path is absolute, clean and not the root.
// Then it cannot be taken for an option of a tool either.
func plain(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("path %q is not absolute and clean: %w", path, fault.Invalid)
	}
	return nil
}
