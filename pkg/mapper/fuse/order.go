package fuse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// An Order tells a worker what to serve and where. It holds a key, so it goes through
// a pipe and never through arguments, the environment or a file.
//
// It holds all that a worker has to know. The worker can be in a pod that is months older
// than the driver's, and there the files of a cluster that is new are not.
type Order struct {
	Target      mapper.Target
	Monitors    string             // where they are, as the setting mon_host; empty: as Settings say
	Settings    string             // what ceph.conf says; may be empty
	Credentials params.Credentials `json:"-"` // see wireOrder
	ReadOnly    bool
	Options     []string      // settings of librbd, KEY=VALUE
	Directory   string        // the mapping's folder; the worker mounts at mount in it
	Timeout     time.Duration // within which it has to answer
}

func order(ctx context.Context, at place, request mapper.Request) (Order, error) {
	settings, err := request.Access.Settings()
	if err != nil {
		return Order{}, err
	}
	timeout := defaultTimeout
	if deadline, ok := ctx.Deadline(); ok {
		// The rest is for the loop device and for the answer's way.
		timeout = time.Until(deadline) * 8 / 10
	}
	return Order{
		Target:      request.Target,
		Monitors:    request.Access.Monitors,
		Settings:    string(settings),
		Credentials: request.Access.Credentials,
		ReadOnly:    request.ReadOnly,
		Options:     request.Options,
		Directory:   at.path,
		Timeout:     timeout,
	}, nil
}

// MountPoint is where the worker mounts.
func (o Order) MountPoint() string { return place{path: o.Directory}.mount() }

// wireOrder is an Order on the pipe. A Secret does not let itself be written, so the key
// is written beside it.
type wireOrder struct {
	Order
	User, Key string
}

// Send writes the order to a worker.
func (o Order) Send(to io.Writer) error {
	wire := wireOrder{Order: o, User: o.Credentials.User, Key: o.Credentials.Key.Reveal()}
	if err := json.NewEncoder(to).Encode(wire); err != nil {
		return fmt.Errorf("send the order: %w: %w", fault.Unavailable, err)
	}
	return nil
}

// ReceiveOrder reads what Send wrote.
func ReceiveOrder(from io.Reader) (Order, error) {
	var wire wireOrder
	if err := json.NewDecoder(from).Decode(&wire); err != nil {
		// The decoder's own error could quote the input.
		return Order{}, fmt.Errorf("receive the order: it is not whole: %w", fault.Invalid)
	}
	order := wire.Order
	order.Credentials = params.Credentials{User: wire.User, Key: params.NewSecret(wire.Key)}
	return order, nil
}

// CheckOptions returns fault.Invalid, with its name, for an option that is not a setting of librbd as
// mapper.CheckSetting wants it. Whether librbd knows the key, and takes the value, the worker finds out; that
// is fault.Invalid too.
func CheckOptions(options []string) error {
	for _, option := range options {
		if err := mapper.CheckSetting(option); err != nil {
			return fmt.Errorf("option %q of mapper fuse: %w", option, err)
		}
	}
	return nil
}

// wireAnswer is a worker's answer on the pipe: an empty Error means that it serves.
type wireAnswer struct {
	Kind  string
	Error string
}

// SendAnswer tells the driver that the worker serves, or why it does not.
func SendAnswer(to io.Writer, err error) error {
	var wire wireAnswer
	if err != nil {
		wire = wireAnswer{Kind: fault.Of(err).String(), Error: err.Error()}
	}
	return json.NewEncoder(to).Encode(wire)
}

var errNoAnswer = errors.New("no answer")

// ReceiveAnswer reads what SendAnswer wrote. The error has the kind that it had there.
func ReceiveAnswer(from io.Reader) error {
	var wire wireAnswer
	if err := json.NewDecoder(from).Decode(&wire); err != nil {
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	if wire.Error == "" {
		return nil
	}
	for _, kind := range fault.Kinds() {
		if kind.String() == wire.Kind {
			return received{kind, wire.Error}
		}
	}
	return received{fault.Internal, wire.Error}
}

// received is an error that came from another process: its text names its kind already.
type received struct {
	kind fault.Kind
	text string
}

func (r received) Error() string { return r.text }
func (r received) Unwrap() error { return r.kind }
