package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

const (
	// maxSocketPath is what sockaddr_un holds on Linux without the final zero.
	// The kernel only says "invalid argument" beyond it.
	maxSocketPath = 107
	// socketMode lets only our own user connect: whoever may speak to this
	// socket can delete volumes.
	socketMode = 0o600
	// answerTimeout bounds the question whether a socket is served. A Unix
	// socket answers at once, unless its queue is full.
	answerTimeout = time.Second
)

// Listen listens on a Unix socket. The endpoint is an absolute path or
// unix:// before one. The directory must exist.
//
// A socket that a dead process left behind is removed. One whose process is just
// dying, which the kernel answers on for a moment after a kill, is waited for. Anything
// else at the path stays and is an error: Exists for what is no socket, InUse for a socket
// that somebody answers on. The socket is removed when the listener closes.
// Calls are queued from now on, so that whoever is told of the socket next may
// call before the server serves.
func Listen(endpoint string) (net.Listener, error) {
	path, err := SocketPath(endpoint)
	if err != nil {
		return nil, err
	}
	limit := time.Now().Add(dyingTime)
	for {
		listener, err := listenAlone(path)
		if !fault.Is(err, fault.InUse) || time.Now().After(limit) {
			return listener, err
		}
		time.Sleep(dyingTime / 20) //nolint:forbidigo // the kernel offers nothing to wait for
	}
}

// dyingTime is how long a killed process may take to give its socket up.
const dyingTime = time.Second

// listenAlone listens while nobody else who does so looks at the directory: of two that start
// at once, the slower could take the other's new socket for one that is left.
func listenAlone(path string) (net.Listener, error) {
	directory, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w: %w", path, fault.Unavailable, err)
	}
	defer func() { _ = directory.Close() }()
	err = syscall.Flock(int(directory.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("listen on %s: another process is about to listen in the directory: %w", path, fault.InUse)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the directory of %s: %w: %w", path, fault.Unavailable, err)
	}
	return listen(path)
}

func listen(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w: %w", path, fault.Unavailable, err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict %s: %w", path, err), listener.Close())
	}
	return listener, nil
}

// SocketPath returns the path of an endpoint, or an error of kind Invalid if
// it is not an absolute path, alone or after unix://, or too long for a socket.
func SocketPath(endpoint string) (string, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("endpoint %q is not an absolute path or unix:// before one: %w", endpoint, fault.Invalid)
	}
	if len(path) > maxSocketPath {
		return "", fmt.Errorf("endpoint %q has %d bytes, and at most %d are possible: %w",
			endpoint, len(path), maxSocketPath, fault.Invalid)
	}
	return path, nil
}

// removeStale makes sure that nothing is at path, if that does no harm. Only
// "connection refused" proves that nobody answers.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at socket %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("listen on %s: it is no socket: %w", path, fault.Exists)
	}
	connection, err := net.DialTimeout("unix", path, answerTimeout)
	if err == nil {
		return errors.Join(fmt.Errorf("listen on %s: another process does: %w", path, fault.InUse), connection.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("ask who listens on %s: %w: %w", path, fault.InUse, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale socket %s: %w", path, err)
	}
	return nil
}
