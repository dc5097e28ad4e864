// Package subcommand chooses among the sub-commands of a command by its first argument.
package subcommand

import (
	"context"
	"fmt"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A Command is a sub-command that is given a C, which is what its arguments say.
type Command[C any] struct {
	Name string
	Run  func(context.Context, C) error
}

// Dispatch runs the command that the first argument names, with what read makes of the rest. It returns
// fault.Invalid, with the names that there are, if it names none.
func Dispatch[C any](ctx context.Context, args []string, commands []Command[C], read func(name string, args []string) (C, error)) error {
	var names []string
	for _, command := range commands {
		names = append(names, command.Name)
		if len(args) == 0 || args[0] != command.Name {
			continue
		}
		given, err := read(command.Name, args[1:])
		if err != nil {
			return err
		}
		return command.Run(ctx, given)
	}
	return fmt.Errorf("the first argument is one of %s: %w", strings.Join(names, ", "), fault.Invalid)
}
