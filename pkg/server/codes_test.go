package server

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

func TestEveryKindHasACode(t *testing.T) {
	for _, kind := range fault.Kinds() {
		code, ok := kindCodes[kind]
		if !ok || code == codes.OK || code == codes.Unknown || code == codes.Unimplemented {
			t.Errorf("kind %v: got code %v (in the table: %v), want one that says something", kind, code, ok)
		}
	}
	if got, want := len(kindCodes), len(fault.Kinds()); got != want {
		t.Errorf("got %d rows, want %d", got, want)
	}
}

// TestNotFinal guards what the sidecars must not take for an end.
func TestNotFinal(t *testing.T) {
	notFinal := map[codes.Code]bool{
		codes.Canceled: true, codes.DeadlineExceeded: true, codes.Unavailable: true, codes.Aborted: true,
	}
	want := map[fault.Kind]bool{
		fault.Superseded: true, fault.Unavailable: true, fault.Unknown: true, fault.Canceled: true,
	}
	for _, kind := range fault.Kinds() {
		if got := notFinal[kindCodes[kind]]; got != want[kind] {
			t.Errorf("kind %v, code %v: got not final %v, want %v", kind, kindCodes[kind], got, want[kind])
		}
	}
}

func TestCodeOf(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want codes.Code
	}{
		{"no error", nil, codes.OK},
		{"no kind", errors.New("boom"), codes.Internal},
		{"kind", fmt.Errorf("image a: %w", fault.NotFound), codes.NotFound},
		{"leftmost kind", fmt.Errorf("map: %w: %w", fault.Unavailable, fault.NotFound), codes.Unavailable},
		{"deadline", fmt.Errorf("map: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{"a status", status.Error(codes.Unimplemented, "no"), codes.Unimplemented},
		{"a status inside is not ours", fmt.Errorf("dial: %w", status.Error(codes.NotFound, "no")), codes.Internal},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := codeOf(test.err); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if test.err == nil {
				return
			}
			if got := status.Code(withCode(test.err)); got != test.want {
				t.Errorf("status: got %v, want %v", got, test.want)
			}
		})
	}
}
