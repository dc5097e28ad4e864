package launcher

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
)

// A Client asks the server at a socket. All methods may be called at once.
type Client struct {
	Socket string // path
}

// Dial returns a Client. It connects when something is asked, each time anew, so that the
// server may come later, and be replaced.
func Dial(socket string) Client { return Client{Socket: socket} }

// Launch is a [fuse.Launch]. It returns the worker's own error, and fault.Unavailable when the
// server does not answer, which it also does for a worker that the server ended because
// ctx did. fault.Unsupported means that the server is too old for the order.
func (c Client) Launch(ctx context.Context, order fuse.Order) error {
	var text bytes.Buffer
	if err := order.Send(&text); err != nil {
		return err
	}
	return c.ask(ctx, request{Ask: askLaunch, Order: text.Bytes()})
}

// Start starts a worker of another mapper, with its order as input. Errors are those of Launch.
func (c Client) Start(ctx context.Context, worker Worker, order []byte) error {
	return c.ask(ctx, request{Ask: askStart, Worker: &worker, Order: order})
}

// Starts returns nil if the server starts workers of another mapper, and fault.Unsupported if it is too old.
func (c Client) Starts(ctx context.Context, mapper string) error {
	return c.ask(ctx, request{Ask: askStart, Worker: &Worker{Mapper: mapper}})
}

// Kill is the Kill of [fuse.Options]: it ends the worker of a mapping's folder at once.
func (c Client) Kill(ctx context.Context, directory string) error {
	return c.ask(ctx, request{Ask: askKill, Directory: directory})
}

// Ping returns nil if the server answers.
func (c Client) Ping(ctx context.Context) error { return c.ask(ctx, request{Ask: askPing}) }

// connectTimeout bounds connecting. A Unix socket answers at once, unless its queue is full.
const connectTimeout = 5 * time.Second

func (c Client) ask(ctx context.Context, asked request) error {
	asked.Protocol = protocol
	dialer := net.Dialer{Timeout: connectTimeout}
	connection, err := dialer.DialContext(ctx, "unix", c.Socket)
	if err != nil {
		return fmt.Errorf("ask for a worker: is the pod rbd-csi-workers running on this node? %w: %w", fault.Unavailable, err)
	}
	defer func() { _ = connection.Close() }()
	// Closing the connection tells the server that nobody waits any more.
	stop := context.AfterFunc(ctx, func() { _ = connection.Close() })
	defer stop()
	var got reply
	if err = send(connection, asked); err == nil {
		err = receive(connection, &got)
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the pod rbd-csi-workers did not answer at %s: %w: %w", c.Socket, fault.Unavailable, ctx.Err())
	case err != nil || len(got.Answer) == 0:
		return fmt.Errorf("the pod rbd-csi-workers ended before it answered at %s: %w", c.Socket, fault.Unavailable)
	}
	return fuse.ReceiveAnswer(bytes.NewReader(got.Answer))
}
