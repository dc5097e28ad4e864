// Package launcher starts the workers of package fuse, and of mappers like it, in another process, which lives on when
// the driver's is replaced.
//
// In Kubernetes a worker that is a child of the node plug-in dies with the node plug-in's
// container. So a second pod on the node, which is hardly ever restarted, runs a [Server].
// It listens on a Unix socket, and the node plug-in's [Client] asks it there. The workers are
// children of the server: they end with its pod, and their devices with them.
//
// What both pods have in common is the directory of the mappings, mounted at the same path with
// Bidirectional propagation, and the host's network. They see neither each other's
// processes nor each other's /dev. The workers' pod has no files of clusters: all that a worker
// has to know, the key too, comes with its order through the socket, and stays in
// memory.
//
// # Protocol
//
// A connection carries one request and one reply, each a JSON object. A caller that closes the
// connection before the reply has given up. The two pods can be of versions that are
// years apart, so fields are added and never change their meaning, and who does not know
// a field leaves it alone. Where leaving it alone would be wrong the request's Protocol is one
// higher than before, and an older server refuses it with a message that says what
// to do.
package launcher

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// DefaultSocket is where the server listens unless it is told otherwise.
const DefaultSocket = "/run/rbd-csi/workers.sock"

// protocol is what this version speaks. A request says which one it needs, and a
// reply which one the server speaks.
//
//	1  launch, kill, ping; and start, which the first versions refuse because they do not know it
const protocol = 1

// What can be asked for.
const (
	askLaunch = "launch" // Order: start a worker and wait until it serves
	askKill   = "kill"   // Directory: end the worker of this mapping
	askPing   = "ping"   // nothing: answer
	askStart  = "start"  // Worker, Order: start a worker of another mapper and wait until it serves; no Order: could you?
)

type request struct {
	Protocol  int
	Ask       string
	Order     json.RawMessage `json:",omitempty"` // as the worker reads it; it holds a key
	Directory string          `json:",omitempty"`
	Worker    *Worker         `json:",omitempty"`
}

// A Worker is one of another mapper, whose workers answer as those of package fuse do.
type Worker struct {
	Mapper    string // its name, which is also the worker's argument
	Image     string // for the log
	Directory string // the mapping's folder
}

type reply struct {
	Protocol int
	Answer   json.RawMessage // of fuse.SendAnswer
}

// maxMessage bounds what is read: an order holds a ceph.conf, and nothing else of size.
const maxMessage = 4 << 20

func send(to io.Writer, message any) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	_, err = to.Write(append(text, '\n'))
	return err
}

// receive reads a message. Errors of the decoder are left out: they could quote a key.
func receive(from io.Reader, message any) error {
	var text json.RawMessage
	if err := json.NewDecoder(io.LimitReader(from, maxMessage)).Decode(&text); err != nil {
		return errNotWhole
	}
	if json.Unmarshal(text, message) != nil {
		return errNotWhole
	}
	return nil
}

var errNotWhole = fmt.Errorf("the message is not whole: %w", fault.Invalid)
