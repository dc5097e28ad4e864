package params

import (
	"strings"
)

// Features is a set of RBD image features with the bits of librbd (RBD_FEATURE_* in
// rbd/features.h). It holds those that a class can name; striping and a data
// pool have parameters of their own.
type Features uint64

// The features that a class can name.
const (
	Layering      Features = 1 << 0 // clones; needed to restore snapshots
	ExclusiveLock Features = 1 << 2 // one writing client at a time; needed to fence a writer off
	ObjectMap     Features = 1 << 3 // which objects exist
	FastDiff      Features = 1 << 4 // quick differences and usage
	DeepFlatten   Features = 1 << 5 // flattening reaches the snapshots too
	Journaling    Features = 1 << 6 // mirroring by journal; known so that it can be refused in words
)

// DefaultFeatures is what a class has that names none: all that every client from
// kernel 5.3 on can map. It is part of the meaning of fingerprints and stays as it is.
const DefaultFeatures = Layering | ExclusiveLock | ObjectMap | FastDiff | DeepFlatten

// featureTable lists the features in the order in which they are written, each with
// the one without which librbd refuses it.
var featureTable = []struct {
	name    string
	feature Features
	needs   Features
}{
	{"layering", Layering, 0},
	{"exclusive-lock", ExclusiveLock, 0},
	{"object-map", ObjectMap, ExclusiveLock},
	{"fast-diff", FastDiff, ObjectMap},
	{"deep-flatten", DeepFlatten, 0},
	{"journaling", Journaling, ExclusiveLock},
}

// Has reports whether all of other are in f.
func (f Features) Has(other Features) bool { return f&other == other }

// String returns the names of f as a comma list, as a class has it.
func (f Features) String() string {
	var names []string
	for _, row := range featureTable {
		if f.Has(row.feature) {
			names = append(names, row.name)
		}
	}
	return strings.Join(names, ",")
}

// parseFeatures reads a comma list of names, in any order, with or without blanks
// after the commas.
func parseFeatures(list string) (Features, error) {
	names, err := elements(list)
	if err != nil {
		return 0, err
	}
	var all []string
	for _, row := range featureTable {
		all = append(all, row.name)
	}
	var set Features
	for _, name := range names {
		if err := oneOf(name, all...); err != nil {
			return 0, err
		}
		for _, row := range featureTable {
			if row.name == name {
				set |= row.feature
			}
		}
	}
	return set, nil
}

// check returns an Invalid error if a feature is there without the one it needs.
func (f Features) check() error {
	for _, row := range featureTable {
		if f.Has(row.feature) && !f.Has(row.needs) {
			return invalid("%s needs %s", row.name, row.needs)
		}
	}
	return nil
}
