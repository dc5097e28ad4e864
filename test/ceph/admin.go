package ceph

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// An admin runs Ceph's tools as client.admin of one cluster.
type admin struct {
	tools tools
	dir   string
	osds  int
	// keyType is what new keys are asked to be; empty leaves it to the release.
	keyType string
}

// ecName is the name of the erasure-code profile and of the CRUSH rule we make.
const ecName = "folder"

// ecRule is the identifier of that rule, far from those that Ceph gives out.
const ecRule = 200

func (a admin) conf() string { return filepath.Join(a.dir, confFile) }

func (a admin) ceph(ctx context.Context, args ...string) (string, error) {
	return a.tools.run(ctx, "ceph", append([]string{"--conf", a.conf()}, args...)...)
}

func (a admin) rbd(ctx context.Context, args ...string) (string, error) {
	return a.tools.run(ctx, "rbd", append([]string{"--conf", a.conf()}, args...)...)
}

func (a admin) rados(ctx context.Context, args ...string) (string, error) {
	return a.tools.run(ctx, "rados", append([]string{"--conf", a.conf()}, args...)...)
}

// createPool makes a replicated pool, initialised for RBD: afterwards an image costs what
// it costs in a pool that has long been used. It waits until the pool serves.
func (a admin) createPool(ctx context.Context, name string) error {
	if err := a.addPool(ctx, name); err != nil {
		return err
	}
	return a.initPool(ctx, name)
}

func (a admin) addPool(ctx context.Context, name string) error {
	_, err := a.ceph(ctx, "osd", "pool", "create", name)
	return err
}

func (a admin) initPool(ctx context.Context, name string) error {
	_, err := a.rbd(ctx, "pool", "init", name)
	return err
}

// createDataPool makes an erasure-coded pool with k=2 and m=1 for the data of images.
func (a admin) createDataPool(ctx context.Context, name string) error {
	_, err := a.ceph(ctx, "osd", "erasure-code-profile", "set", ecName, "k=2", "m=1", "crush-failure-domain=osd")
	if err != nil {
		return err
	}
	create := []string{"osd", "pool", "create", name, "8", "8", "erasure", ecName}
	if a.osds < 3 {
		if err := a.ensureSharedRule(ctx); err != nil {
			return err
		}
		create = append(create, ecName)
	}
	for _, args := range [][]string{
		create,
		{"osd", "pool", "set", name, "allow_ec_overwrites", "true"},
		{"osd", "pool", "application", "enable", name, "rbd"},
	} {
		if _, err := a.ceph(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// ensureSharedRule makes the CRUSH rule that puts three shards on one or two OSDs. A
// "choose" never takes an OSD twice, but a rule may take and emit several times, and
// each time begins with the same OSD. OSDs tell the shards of a group apart by their
// number, so that one OSD can hold all three. `ceph osd crush rule` cannot make such
// rules; the text of the map can hold them.
func (a admin) ensureSharedRule(ctx context.Context) error {
	rules, err := a.ceph(ctx, "osd", "crush", "rule", "ls")
	if err != nil || slices.Contains(strings.Fields(rules), ecName) {
		return err
	}
	work, err := os.MkdirTemp(a.dir, "crush")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	compiled, text := filepath.Join(work, "map"), filepath.Join(work, "text")
	if _, err := a.ceph(ctx, "osd", "getcrushmap", "-o", compiled); err != nil {
		return err
	}
	if _, err := a.tools.run(ctx, "crushtool", "-d", compiled, "-o", text); err != nil {
		return err
	}
	if err := appendFile(text, sharedRule(a.osds)); err != nil {
		return err
	}
	if _, err := a.tools.run(ctx, "crushtool", "-c", text, "-o", compiled); err != nil {
		return err
	}
	_, err = a.ceph(ctx, "osd", "setcrushmap", "-i", compiled)
	return err
}

// sharedRule returns the text of that rule for one or two OSDs.
func sharedRule(osds int) string {
	var text strings.Builder
	fmt.Fprintf(&text, "rule %s {\n\tid %d\n\ttype erasure\n\tmin_size 3\n\tmax_size 3\n", ecName, ecRule)
	for shards := 3; shards > 0; shards -= osds {
		fmt.Fprintf(&text, "\tstep take default\n\tstep choose indep %d type osd\n\tstep emit\n", min(osds, shards))
	}
	text.WriteString("}\n")
	return text.String()
}

func appendFile(path, text string) error {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := file.WriteString(text); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

func (a admin) createNamespace(ctx context.Context, pool, namespace string) error {
	_, err := a.rbd(ctx, "namespace", "create", "--pool", pool, "--namespace", namespace)
	return err
}

func (a admin) removePool(ctx context.Context, name string) error {
	_, err := a.ceph(ctx, "osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it")
	return err
}
