package rbdtest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Fixture is a Ceph that the suite may use up: it leaves nothing behind when it
// passes. Places exist, and nobody else changes them meanwhile.
type Fixture struct {
	Tools
	// Process returns the adapter as a new process would have it.
	Process func(t *testing.T) rbd.Clusters

	Pool      volid.Pool // a pool, its default namespace
	Namespace volid.Pool // a namespace of the same pool
	OtherPool volid.Pool // another pool, its default namespace; cases that need it are skipped without

	DataPool    string // erasure-coded, with overwrites
	BadDataPool string // erasure-coded, without

	WrongKey    params.Credentials // a user who exists, with another user's key
	UnknownUser params.Credentials
	Stranger    params.Credentials // a user who may connect and see no pool
	Operator    params.Credentials // a user who may also remove clients from the blocklist
}

// Suite tests what package rbd promises. Whatever is surprising about the real
// thing is told here, so that the fake has to follow.
func Suite(t *testing.T, fixture Fixture) {
	for _, place := range []volid.Pool{fixture.Pool, fixture.Namespace} {
		name := "pool"
		if place.Namespace != "" {
			name = "namespace"
		}
		t.Run(name, func(t *testing.T) {
			before := must(t)(fixture.Objects(place))
			for _, group := range groups() {
				t.Run(group.name, func(t *testing.T) {
					for _, one := range group.cases {
						t.Run(one.name, func(t *testing.T) { one.run(newTrial(t, fixture, place)) })
					}
				})
			}
			same(t, "left behind", must(t)(fixture.Objects(place)), before)
		})
	}
	t.Run("open", func(t *testing.T) {
		for _, one := range openCases() {
			t.Run(one.name, func(t *testing.T) { one.run(newTrial(t, fixture, fixture.Pool)) })
		}
	})
}

// A group is what the suite tests of one kind of object.
type group struct {
	name  string
	cases []trialCase
}

type trialCase struct {
	name string
	run  func(*trial)
}

func groups() []group {
	return []group{
		{"names", nameCases()},
		{"directory", entryCases()},
		{"header", headerCases()},
		{"metadata", metaCases()},
		{"object map", mapCases()},
		{"image", imageCases()},
		{"trash", trashCases()},
		{"purge", purgeCases()},
		{"snapshot", snapshotCases()},
		{"clone", cloneCases()},
		{"chain", chainCases()},
		{"changed", changedCases()},
		{"index", indexCases()},
		{"fence", fenceCases()},
	}
}

// A trial is one case under way.
type trial struct {
	*testing.T
	Fixture
	at   volid.Pool
	pool rbd.Pool
	salt string // makes the names of this case its own, whatever an earlier run left
}

func newTrial(t *testing.T, fixture Fixture, at volid.Pool) *trial {
	pool, err := fixture.Process(t).Pool(t.Context(), at, params.Credentials{})
	if err != nil {
		t.Fatalf("Pool(%s): %v", at, err)
	}
	return &trial{T: t, Fixture: fixture, at: at, pool: pool, salt: rbd.NewID()[:5]}
}

// image returns a name for an image of this case alone, and it as an image.
func (t *trial) image(suffix string) volid.Image {
	name := "suite-" + strings.ToLower(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, t.Name()[strings.LastIndex(t.Name(), "/")+1:]))
	return volid.Image{Pool: t.at, Name: name + "-" + t.salt + "-" + suffix}
}

// mebibyte and the layouts that most cases use: small, with an object map or without.
const mebibyte = 1 << 20

func mapped() rbd.Layout {
	return rbd.Layout{
		Bytes: 64 * mebibyte, ObjectBytes: 4 * mebibyte,
		Features: rbd.Layering | rbd.ExclusiveLock | rbd.ObjectMap | rbd.FastDiff | rbd.DeepFlatten,
	}
}

func plain() rbd.Layout {
	return rbd.Layout{Bytes: 64 * mebibyte, ObjectBytes: 4 * mebibyte, Features: rbd.Layering}
}

// make makes an image in the steps and the order in which the driver does.
func (t *trial) make(image volid.Image, layout rbd.Layout, meta map[string]string) (id string) {
	t.Helper()
	id = rbd.NewID()
	t.ok(t.pool.AddEntry(t.Context(), image.Name, id))
	t.ok(t.pool.CreateHeader(t.Context(), id, layout, meta))
	if layout.Features.Has(rbd.ObjectMap) {
		t.ok(t.pool.EnsureObjectMap(t.Context(), id, layout))
	}
	t.ok(t.pool.AddName(t.Context(), image.Name, id))
	return id
}

// remove removes an image in the steps in which the driver does.
func (t *trial) remove(image volid.Image, id string) {
	t.Helper()
	t.trash(image, id)
	t.ok(t.pool.Purge(t.Context(), id))
}

// trash moves an image to the trash in the steps in which the driver does.
func (t *trial) trash(image volid.Image, id string) {
	t.Helper()
	t.ok(t.pool.AddTrash(t.Context(), id, image.Name))
	t.ok(t.pool.RemoveName(t.Context(), image.Name, id))
	t.ok(t.pool.RemoveEntry(t.Context(), image.Name, id))
}

// objects returns what exists at the case's place.
func (t *trial) objects() []string {
	t.Helper()
	return must(t.T)(t.Objects(t.at))
}

// ok ends the case when err is not nil.
func (t *trial) ok(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// is reports when err is not of the kind.
func (t *trial) is(what string, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

// found reports when a search did not give this ID.
func (t *trial) found(what string, want string) func(got string, err error) {
	return func(got string, err error) {
		t.Helper()
		if got != want || err != nil {
			t.Errorf("%s: got %q, %v; want %q", what, got, err, want)
		}
	}
}

// missing reports when a search found something or failed in another way.
func (t *trial) missing(what string) func(got string, err error) {
	return func(got string, err error) {
		t.Helper()
		if got != "" || !errors.Is(err, fault.NotFound) {
			t.Errorf("%s: got %q, %v; want %v", what, got, err, fault.NotFound)
		}
	}
}

// same reports the lines in which two lists differ.
func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("%s: got %q, which should not be there", what, line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("%s: want %q, which is missing", what, line)
		}
	}
}

// must returns a function that ends the test when its second argument is an error.
func must(t *testing.T) func(lines []string, err error) []string {
	return func(lines []string, err error) []string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return lines
	}
}
