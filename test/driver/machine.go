package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A Machine has the folders that kubelet makes before it calls, and removes afterwards.
type Machine interface {
	// MkdirAll makes a folder and those above it.
	MkdirAll(ctx context.Context, path string) error
	// RemoveEmpty removes an empty folder; one that is not there is none. What is left in it is an
	// error: a driver that answers OK has taken its own away.
	RemoveEmpty(ctx context.Context, path string) error
}

// here is this machine.
type here struct{}

func (here) MkdirAll(_ context.Context, path string) error { return os.MkdirAll(path, 0o750) }

func (here) RemoveEmpty(_ context.Context, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("after an OK: %w", err)
	}
	return nil
}

// Elsewhere returns a Process that somebody else starts and ends, on another machine, where it has
// the folder. The socket is one on this machine, which leads there.
func Elsewhere(name, folder, socket string, on Machine) (*Process, error) {
	p := &Process{Name: name, folder: folder, socket: socket, on: on}
	return p, p.connect()
}

// Disconnect closes the connection to the process.
func (p *Process) Disconnect() error { return p.connection.Close() }
