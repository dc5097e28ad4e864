// Package fault names the kinds of failure that the driver tells apart.
//
// A kind is itself an error, so classifying an error is wrapping it:
//
//	return fmt.Errorf("image %s: %w", ref, fault.NotFound)
//	return fmt.Errorf("map %s: %w: %w", ref, fault.Unavailable, err)
//
// and asking for one is errors.Is(err, fault.NotFound). When several kinds
// stand in one chain the leftmost counts, because whoever wrapped last knows
// best: see [Of]. Package server holds the one table from kinds to gRPC codes.
//
// Choose a kind by what the caller may do next. The sidecars of Kubernetes take
// some codes for final and give up, which frees or forgets a volume, and take
// others as "still going on" and ask again. NotFound lets a deletion succeed;
// say it only when it is certain.
package fault

import "context"

// A Kind is one of the constants below. Its Error text is a short noun phrase.
type Kind int

const (
	// Internal is a defect of the driver: something that cannot be. It is also
	// what an error without a kind counts as.
	Internal Kind = iota
	// Invalid means that the request can never succeed as it is written.
	Invalid
	// OutOfRange means that a size or a position cannot be had.
	OutOfRange
	// NotFound means that the thing named is certainly not there.
	NotFound
	// Exists means that the name is taken by something different from what was asked.
	Exists
	// InUse means that the thing's present state forbids the request, and that
	// someone has to change that state first (a second writer, a mounted image).
	InUse
	// Superseded means that another request changed the state this one had read.
	// Nothing was done; looking again and repeating is right.
	Superseded
	// Exhausted means that a quota or the space of a pool is used up.
	Exhausted
	// Denied means that the credentials are known and do not allow this.
	Denied
	// Unauthenticated means that the user or key is missing or wrong.
	Unauthenticated
	// Unavailable means that the far side did not answer, and nothing was
	// done. A repeat may succeed.
	Unavailable
	// Unknown means that nobody waited for the outcome: the operation may
	// have been applied or may be applied later. Never final; look again.
	Unknown
	// Canceled means that the caller went away.
	Canceled
	// Unsupported means that this node, kernel or cluster cannot do it.
	Unsupported
	// DataLoss means that data that should be there cannot be seen. Nothing is
	// written in this state; a human decides.
	DataLoss
)

var texts = [...]string{
	Internal:        "internal defect",
	Invalid:         "invalid request",
	OutOfRange:      "out of range",
	NotFound:        "not found",
	Exists:          "already exists and differs",
	InUse:           "in use",
	Superseded:      "changed meanwhile",
	Exhausted:       "no space or quota left",
	Denied:          "permission denied",
	Unauthenticated: "not authenticated",
	Unavailable:     "unavailable",
	Unknown:         "outcome unknown",
	Canceled:        "canceled",
	Unsupported:     "not supported",
	DataLoss:        "data loss",
}

// Kinds returns every kind, for tables that must be complete.
func Kinds() []Kind {
	kinds := make([]Kind, len(texts))
	for i := range texts {
		kinds[i] = Kind(i)
	}
	return kinds
}

// Error returns the kind's noun phrase; it makes a kind usable with %w.
func (k Kind) Error() string {
	if k < 0 || int(k) >= len(texts) {
		return texts[Internal]
	}
	return texts[k]
}

// String returns the same phrase as [Kind.Error].
func (k Kind) String() string { return k.Error() }

// Of returns the leftmost kind in err's chain. An error without a kind is
// Internal, except that the two errors of a finished context are Unknown (its
// deadline passed while work may go on) and Canceled. Of(nil) is Internal
// too: ask only about errors.
func Of(err error) Kind {
	if kind, ok := find(err); ok {
		return kind
	}
	return Internal
}

// find walks err's tree depth first, left to right, as errors.Is does.
func find(err error) (Kind, bool) {
	switch err {
	case nil:
		return Internal, false
	case context.DeadlineExceeded:
		return Unknown, true
	case context.Canceled:
		return Canceled, true
	}
	if kind, ok := err.(Kind); ok {
		return kind, true
	}
	switch wrapped := err.(type) {
	case interface{ Unwrap() error }:
		return find(wrapped.Unwrap())
	case interface{ Unwrap() []error }:
		for _, one := range wrapped.Unwrap() {
			if kind, ok := find(one); ok {
				return kind, true
			}
		}
	}
	return Internal, false
}

// Is reports whether kind is the leftmost kind of err. It differs from
// errors.Is where a chain holds several kinds.
func Is(err error, kind Kind) bool { return err != nil && Of(err) == kind }
