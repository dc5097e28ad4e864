package ceph

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// What a handle may ask of the supervisor. Each connection carries one request and
// its reply, as JSON.
const (
	verbList   = "list"   // what daemons there are
	verbStart  = "start"  // start a daemon that does not run
	verbSignal = "signal" // send a daemon a signal
	verbKill   = "kill"   // send a daemon a signal and wait until it has ended
	verbDown   = "down"   // end all; the connection ends with the supervisor
)

type request struct {
	Verb   string         `json:"verb"`
	Daemon string         `json:"daemon,omitempty"`
	Signal syscall.Signal `json:"signal,omitempty"`
}

type reply struct {
	Daemons []Daemon     `json:"daemons,omitempty"`
	State   *state       `json:"state,omitempty"`
	Failure *remoteError `json:"failure,omitempty"`
}

// A remoteError carries an error with its kind from the supervisor to its handles.
type remoteError struct {
	Text string     `json:"text"`
	Kind fault.Kind `json:"kind"`
}

func (e *remoteError) Error() string { return e.Text }
func (e *remoteError) Unwrap() error { return e.Kind }

// failure makes the reply for err, which may be nil.
func failure(err error) *remoteError {
	if err == nil {
		return nil
	}
	return &remoteError{Text: err.Error(), Kind: fault.Of(err)}
}

// err is the failure as an error that is nil where there was none.
func (r reply) err() error {
	if r.Failure == nil {
		return nil
	}
	return r.Failure
}

// control puts one request to the supervisor of the cluster in dir. Nobody there is
// fault.Unavailable.
func control(ctx context.Context, dir string, req request) (reply, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, controlFile))
	if err != nil {
		return reply{}, fmt.Errorf("reach the supervisor of %s: %w: %w", dir, fault.Unavailable, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return reply{}, fmt.Errorf("ask the supervisor of %s: %w: %w", dir, fault.Unavailable, err)
	}
	var answer reply
	err = json.NewDecoder(conn).Decode(&answer)
	switch {
	case req.Verb == verbDown && errors.Is(err, io.EOF):
		return reply{}, nil
	case err != nil:
		return reply{}, fmt.Errorf("wait for the supervisor of %s: %w: %w", dir, fault.Unknown, err)
	}
	return answer, answer.err()
}
