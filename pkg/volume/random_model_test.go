package volume

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/snapshot"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A standing is what a sidecar can know of a thing.
type standing int

const (
	absent  standing = iota // certainly not there
	present                 // certainly there
	unsure                  // an attempt that nobody waits for may still make or remove it
)

// A subject is a thing that requests make and remove.
type subject struct {
	name     string
	standing standing
	busy     *chain // the request that is at it
	making   int    // attempts that make it
	removing int    // attempts that remove it
	made     int    // when one that makes it began or ended last
	unmade   int    // when one that removes it did
	since    int    // before this step it was certainly not there
	steady   int    // since this step it is certainly there
	// odd says that a request of this name had a final answer other than OK: what was begun for it may have
	// the name for a while.
	odd bool
}

// count counts attempts; one that took part until this step can have had its way before or after another.
func (s *subject) count(makes bool, more, step int) {
	if makes {
		s.making += more
		s.made = step
	} else {
		s.removing += more
		s.unmade = step
	}
}

// settle takes note of an answer to a request that began at a step.
func (s *subject) settle(there bool, begun, step int) {
	switch {
	case there && (s.removing > 0 || s.unmade > begun), !there && (s.making > 0 || s.made > begun):
		s.standing = unsure
	case there && s.standing != present:
		s.standing, s.steady = present, step
	case !there:
		s.standing = absent
	}
}

// free reports that no attempt is at it.
func (s *subject) free() bool { return s.busy == nil && s.making == 0 && s.removing == 0 }

// isThere reports that it is certainly there and nobody removes it.
func (s *subject) isThere() bool { return s.standing == present && s.busy == nil && s.removing == 0 }

// steadyFrom reports that it has been there since a step, and that nobody has removed it meanwhile.
func (s *subject) steadyFrom(step int) bool { return s.isThere() && s.steady <= step }

// A content is what is in a volume or in a snapshot at a moment.
type content struct {
	text   string
	format bool // there is a filesystem
}

func (c content) String() string { return fmt.Sprintf("%q, filesystem %t", c.text, c.format) }

// An event is a change of what is in a volume.
type event struct {
	step  int
	known bool // otherwise the volume may be there or not, and have any of its contents
	content
}

// A volume is one that may be there.
type aVolume struct {
	subject
	handle volid.Image
	// asked is what the volume was made for, the same until it is certainly gone.
	bytes  int64
	source *Source
	from   *aVolume // of which it is a clone
	of     *aSnapshot

	id        string
	most      int64 // bytes that anybody ever asked for
	least     int64 // bytes that were answered
	content         // when it is there
	refused   bool  // to be removed, and it may have been all the same
	formatted bool  // the mark was written, and nobody else can have
	history   []event
	texts     map[string]bool // all that were ever in it

	node     subject // whether it is attached
	attached string  // the node
	expand   subject
	mkfs     subject
}

// A snapshot is one that may be there.
type aSnapshot struct {
	subject
	request string
	of      *aVolume
	taken   snapshot.Snapshot
	allowed []content
	strict  bool // it holds one of those that are allowed, and not any that its volume ever had
	read    *content
}

// A group is a group snapshot that may be there.
type aGroup struct {
	subject
	request string
	of      []*aVolume
	taken   snapshot.Group
	members []*aSnapshot
	// moments are the contents of all members that were there at once, in the order of the members; nil: not known.
	moments [][]content
}

// A model is what sidecars and users know.
type model struct {
	chains  int
	writes  int
	volumes []*aVolume
	snaps   []*aSnapshot
	groups  []*aGroup
}

const block = 64 << 10 // bytes that sizes are multiples of

func newModel() *model {
	m := &model{}
	for _, name := range []string{"kube/a", "kube/b", "kube/c", "kube/d", "kube/team/e", "kube/team/f", "other/g", "other/h"} {
		at := strings.LastIndexByte(name, '/')
		pool, namespace, _ := strings.Cut(name[:at], "/")
		handle := volid.Image{Pool: volid.Pool{Cluster: "main", Pool: pool, Namespace: namespace}, Name: name[at+1:]}
		v := &aVolume{handle: handle, texts: map[string]bool{"": true}}
		v.name, v.node.name, v.expand.name, v.mkfs.name = handle.String(), "node of "+name, "size of "+name, "mkfs of "+name
		m.volumes = append(m.volumes, v)
	}
	for i := range 9 {
		s := &aSnapshot{request: fmt.Sprintf("s%d", i)}
		s.name = s.request
		m.snaps = append(m.snaps, s)
	}
	for i := range 2 {
		g := &aGroup{request: fmt.Sprintf("g%d", i)}
		g.name = g.request
		m.groups = append(m.groups, g)
	}
	return m
}

// spec returns the request that makes the volume.
func (v *aVolume) spec() CreateSpec {
	asked := v.bytes
	return CreateSpec{
		Handle: v.handle, Request: v.handle.Name, Source: v.source,
		Size:  func(content int64) (int64, error) { return max(asked, content), nil },
		Fits:  func(bytes int64) bool { return bytes >= asked },
		Class: params.Class{Pool: v.handle.Pool, ObjectSize: params.MinObjectSize, Features: params.DefaultFeatures},
	}
}

// note adds an event.
func (v *aVolume) note(step int, known bool) {
	v.history = append(v.history, event{step: step, known: known, content: v.content})
	v.texts[v.text] = true
}

// during returns what was in the volume between two steps, and whether that is certain.
func (v *aVolume) during(from, to int) (held []content, certain bool) {
	certain = true
	for i, one := range v.history {
		if one.step > to || i+1 < len(v.history) && v.history[i+1].step < from {
			continue
		}
		certain = certain && one.known
		held = append(held, one.content)
	}
	return held, certain && len(held) > 0 && v.history[0].step <= from
}

// mostAncestors is how far back everHeld looks.
const mostAncestors = 5

// everHeld reports whether a text can ever have been in the volume: it was written to it, or to what
// it may have been a copy of when nobody had been told yet.
func (v *aVolume) everHeld(text string, ancestors int) bool {
	switch {
	case v.texts[text]:
		return true
	case ancestors == 0:
		return false
	case v.from != nil:
		return v.from.everHeld(text, ancestors-1)
	case v.of != nil:
		return v.of.of.everHeld(text, ancestors-1)
	}
	return false
}

// at returns what was in the volume after a step.
func (v *aVolume) at(step int) content {
	var held content
	for _, one := range v.history {
		if one.step <= step {
			held = one.content
		}
	}
	return held
}

// moments returns what was in volumes at once between two steps, nil where that is not certain.
func moments(of []*aVolume, from, to int) [][]content {
	steps := []int{from}
	for _, v := range of {
		if _, certain := v.during(from, to); !certain {
			return nil
		}
		for _, one := range v.history {
			if one.step > from && one.step <= to {
				steps = append(steps, one.step)
			}
		}
	}
	var all [][]content
	for _, step := range steps {
		var held []content
		for _, v := range of {
			held = append(held, v.at(step))
		}
		all = append(all, held)
	}
	return all
}

// holds reports whether a snapshot may hold this.
func (s *aSnapshot) holds(got content) bool {
	if s.read != nil {
		return *s.read == got
	}
	if !s.strict {
		return s.of.everHeld(got.text, mostAncestors)
	}
	return slices.Contains(s.allowed, got)
}

// gone takes note of that a volume is certainly not there.
func (v *aVolume) gone(step int) {
	v.note(step, false)
	v.formatted, v.id = false, ""
	if v.node.making == 0 {
		v.attached, v.node.standing = "", absent
	} else {
		v.node.standing = unsure
	}
}
