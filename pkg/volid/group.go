package volid

import (
	"fmt"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Group is a group snapshot: snapshots of several images of one pool, all of one
// moment. It is no object of Ceph's, and its String is its handle.
type Group struct {
	Pool
	Name string
}

// String returns the handle CLUSTER:POOL[/NAMESPACE]/@NAME, which [ParseGroup] reads. What
// stands before the "@" of a snapshot's handle is an image; here there is none.
func (g Group) String() string { return g.Pool.String() + "/@" + g.Name }

// Check returns an Invalid error that says what is wrong with which part of g, or nil.
func (g Group) Check() error { return check(g) }

func (g Group) checkParts() error {
	if err := g.Pool.checkParts(); err != nil {
		return err
	}
	if strings.Contains(g.Name, "#") {
		// With one it could be taken for a snapshot's handle that lost its image.
		return fmt.Errorf("group snapshot %s: %q is not allowed: %w", quote(g.Name), "#", fault.Invalid)
	}
	return CheckName("group snapshot", g.Name)
}

// ParseGroup reads the handle of a group snapshot. Its errors are those of [ParseImage].
func ParseGroup(handle string) (Group, error) {
	return parse("group snapshot", "CLUSTER:POOL[/NAMESPACE]/@NAME", handle, fault.NotFound, readGroup)
}

// GroupName returns the name in its handle of the group snapshot that a request calls
// request, with the images of pool. The forms and the errors are those of [ImageName],
// with [MaxHandle] as the bound for the handle.
func GroupName(pool Pool, request string) (string, error) {
	if err := checkRequest(request); err != nil {
		return "", fmt.Errorf("name of the group snapshot: %w", err)
	}
	name, excess := fit(request, MaxHandle-len(pool.String())-len("/@"))
	if excess > 0 {
		return "", fmt.Errorf("names of cluster, pool and namespace in %s are together %d bytes too long for the handle of a group snapshot of %d: %w",
			pool, excess, MaxHandle, fault.Invalid)
	}
	return name, nil
}

// readGroup reads CLUSTER:POOL[/NAMESPACE]/@NAME in any spelling. Without the slash before
// the "@" it is a snapshot that lacks its image's ID.
func readGroup(text string) (Group, bool) {
	before, name, hasAt := strings.Cut(text, "@")
	before = strings.TrimSpace(before)
	pool, ok := readPool(before)
	if !hasAt || !strings.HasSuffix(before, "/") || !ok {
		return Group{}, false
	}
	return Group{Pool: pool, Name: strings.TrimSpace(name)}, true
}
