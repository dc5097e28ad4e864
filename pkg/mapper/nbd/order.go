package nbd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// An Order tells a worker what to map. It holds a key, so it goes through a pipe and never through
// arguments, the environment or a file.
type Order struct {
	Target      mapper.Target
	Monitors    string             // where they are, as the setting mon_host; empty: as Settings say
	Settings    string             // what ceph.conf says; may be empty
	Credentials params.Credentials `json:"-"` // see wireOrder
	ReadOnly    bool
	Options     []string
	Directory   string        // the mapping's folder
	Timeout     time.Duration // within which it has to answer
}

func newOrder(ctx context.Context, at place, request mapper.Request) (Order, error) {
	settings, err := request.Access.Settings()
	if err != nil {
		return Order{}, err
	}
	timeout := defaultTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline) * 8 / 10 // the rest is for the answer's way
	}
	return Order{
		Target: request.Target, Monitors: request.Access.Monitors, Settings: string(settings),
		Credentials: request.Access.Credentials, ReadOnly: request.ReadOnly, Options: request.Options,
		Directory: at.path, Timeout: timeout,
	}, nil
}

// wireOrder is an Order on the pipe. A Secret does not let itself be written, so the key is
// written beside it.
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
	wire.Order.Credentials = params.Credentials{User: wire.User, Key: params.NewSecret(wire.Key)}
	return wire.Order, nil
}

// Options of rbd-nbd itself.
const (
	optionExclusive = "exclusive"        // refuse to hand the lock over to another client
	optionReattach  = "reattach_timeout" // seconds for which I/O waits for another rbd-nbd
)

// CheckOptions returns fault.Invalid, with its name, for an option that is none of these: a setting of
// librbd as mapper.CheckSetting wants it; exclusive; reattach_timeout=SECONDS, 1 to 3600.
func CheckOptions(options []string) error {
	for _, option := range options {
		if isOwn(option) {
			continue
		}
		if err := mapper.CheckSetting(option); err != nil {
			return fmt.Errorf("option %q of mapper nbd is neither %s nor %s=SECONDS (1 to 3600): %w", option, optionExclusive, optionReattach, err)
		}
	}
	return nil
}

// isOwn reports whether an option is one of rbd-nbd itself.
func isOwn(option string) bool {
	key, value, _ := strings.Cut(option, "=")
	seconds, err := strconv.Atoi(value)
	return option == optionExclusive || key == optionReattach && err == nil && seconds >= 1 && seconds <= 3600
}

// defaultReattach is how many seconds I/O waits for another rbd-nbd when one has died: more than
// the 30 that Ceph may take until the lock of the dead one is free.
const defaultReattach = 120

// arguments are those of rbd-nbd for the order: to map, or to take over the device of an
// earlier one. The descriptors are those of the configuration and the keyring.
func (o Order) arguments(device string, conf, keyring int) []string {
	reattach, command := defaultReattach, "map"
	if device != "" {
		command = "attach"
	}
	arguments := []string{command, "-f", "--try-netlink", "--show-cookie", "--cookie", cookie(o.Target, o.ReadOnly)}
	if device != "" {
		arguments = append(arguments, "--device", device)
	}
	if o.ReadOnly {
		arguments = append(arguments, "--read-only")
	}
	for _, setting := range mapper.HonestWrites() {
		arguments = append(arguments, "--"+setting.String())
	}
	for _, option := range o.Options {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case optionExclusive:
			arguments = append(arguments, "--exclusive")
		case optionReattach:
			reattach, _ = strconv.Atoi(value) // checked
		default:
			arguments = append(arguments, "--"+option) // the last one of a key counts
		}
	}
	if o.Monitors != "" {
		arguments = append(arguments, "--mon_host="+o.Monitors)
	}
	_, image, _ := strings.Cut(o.Target.Image.String(), ":")
	at := place{o.Directory}
	return append(arguments, "--reattach-timeout", strconv.Itoa(reattach),
		"-c", fmt.Sprintf("/proc/self/fd/%d", conf), "--keyring", fmt.Sprintf("/proc/self/fd/%d", keyring), "--id", o.Credentials.User,
		"--admin_socket="+at.file(socketFile), "--log_file="+at.file(logFile), "--log_to_stderr=false", "--err_to_stderr=true", "--debug_ms=1",
		fmt.Sprintf("--client_mount_timeout=%d", max(1, int(o.Timeout.Seconds()))),
		image)
}

// keyring is the file that rbd-nbd reads its key from.
func (o Order) keyring() []byte {
	return fmt.Appendf(nil, "[client.%s]\n\tkey = %s\n", o.Credentials.User, o.Credentials.Key.Reveal())
}

// conf is the file that it reads its settings from.
func (o Order) conf() []byte {
	if o.Settings == "" {
		return []byte("[global]\n")
	}
	return []byte(o.Settings)
}

// answer is what a worker says: nothing, or why it does not serve.
type answer struct{ Kind, Error string }

func sendAnswer(to io.Writer, err error) error {
	var said answer
	if err != nil {
		said = answer{Kind: fault.Of(err).String(), Error: err.Error()}
	}
	return json.NewEncoder(to).Encode(said)
}

// receiveAnswer reads what sendAnswer wrote; ok says that there was an answer.
func receiveAnswer(from io.Reader) (ok bool, err error) {
	var said answer
	if err := json.NewDecoder(from).Decode(&said); err != nil {
		return false, err
	}
	if said.Error == "" {
		return true, nil
	}
	for _, kind := range fault.Kinds() {
		if kind.String() == said.Kind {
			return true, received{kind, said.Error}
		}
	}
	return true, received{fault.Internal, said.Error}
}

// received is an error that came from another process: its text names its kind already.
type received struct {
	kind fault.Kind
	text string
}

func (r received) Error() string { return r.text }
func (r received) Unwrap() error { return r.kind }
