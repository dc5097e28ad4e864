package ceph

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// askTimeout bounds a question to a daemon on this machine; a frozen daemon
// accepts it and never answers.
const askTimeout = 10 * time.Second

// ask puts a command to a daemon's admin socket, as `ceph daemon` does, and reads its
// answer into answer. It takes a millisecond, where the ceph tool takes hundreds. The
// command goes out as JSON ended by a zero byte; the answer comes as its length in four
// bytes, big endian, and the text. Nothing there or no answer is fault.Unavailable.
func ask(ctx context.Context, socket string, command map[string]any, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	text, err := exchange(ctx, socket, command)
	if err != nil {
		return fmt.Errorf("ask %q of %s: %w: %w", command["prefix"], socket, fault.Unavailable, err)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("ask %q of %s: %w: %w%s", command["prefix"], socket, fault.Internal, err, lastLines(string(text)))
	}
	return nil
}

func exchange(ctx context.Context, socket string, command map[string]any) ([]byte, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	request, err := json.Marshal(command)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(request, 0)); err != nil {
		return nil, err
	}
	var size uint32
	if err := binary.Read(conn, binary.BigEndian, &size); err != nil {
		return nil, err
	}
	text := make([]byte, size)
	_, err = io.ReadFull(conn, text)
	return text, err
}
