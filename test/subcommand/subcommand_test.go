package subcommand

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

func TestDispatch(t *testing.T) {
	errUnread := errors.New("unread")
	for _, test := range []struct {
		name string
		args []string
		want string // what was run, with what it was given
		err  error
	}{
		{"first", []string{"up", "a", "b"}, "up a b", nil},
		{"second, without arguments", []string{"down"}, "down ", nil},
		{"unreadable", []string{"up", "bad"}, "", errUnread},
		{"unknown", []string{"sideways"}, "", fault.Invalid},
		{"none", nil, "", fault.Invalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got string
			run := func(name string) Command[string] {
				return Command[string]{name, func(_ context.Context, given string) error {
					got = name + " " + given
					return nil
				}}
			}
			err := Dispatch(t.Context(), test.args, []Command[string]{run("up"), run("down")}, func(_ string, args []string) (string, error) {
				if len(args) > 0 && args[0] == "bad" {
					return "", errUnread
				}
				return strings.Join(args, " "), nil
			})
			if !errors.Is(err, test.err) || got != test.want {
				t.Errorf("got %q, %v, want %q, %v", got, err, test.want, test.err)
			}
			if errors.Is(err, fault.Invalid) && !strings.Contains(err.Error(), "up, down") {
				t.Errorf("got %v, want the names that there are", err)
			}
		})
	}
}
