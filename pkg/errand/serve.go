package errand

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Serve is the process: it reads orders, has them carried out at the same time and tells the result of each
// as soon as there is one, and then reads the next orders, until there are none. A file that came with the orders
// stays open until the last result is told. The index of an order is its place among those that came with it.
func Serve[Order, Result any](from io.Reader, to io.Writer, carryOut func(index int, order Order) Result) error {
	for {
		input, held := next(from)
		if input == nil {
			return nil
		}
		var orders []Order
		err := json.NewDecoder(input).Decode(&orders)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			// The decoder's own error could quote the input, in which there may be keys.
			return fmt.Errorf("receive orders: they are not whole: %w", fault.Invalid)
		}
		if err := carryAllOut(orders, held, json.NewEncoder(to), carryOut); err != nil {
			return err
		}
	}
}

// carryAllOut has orders carried out. Whoever has the last result may have the held file closed.
func carryAllOut[Order, Result any](orders []Order, held int, to *json.Encoder, carryOut func(int, Order) Result) error {
	results := make(chan Result)
	for i, order := range orders {
		go func() { results <- carryOut(i, order) }()
	}
	var failed error
	for i := range orders {
		result := <-results
		if held >= 0 && i == len(orders)-1 {
			_ = unix.Close(held)
		}
		failed = errors.Join(failed, to.Encode(result))
	}
	return failed
}

// next takes the first byte of the next orders, and the file that may come with it, or -1. Orders that do not come
// through a socket bring no file. It returns nil when there will be no orders.
func next(from io.Reader) (input io.Reader, held int) {
	file, ok := from.(*os.File)
	if !ok {
		return from, -1
	}
	first, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	for {
		n, length, _, _, err := unix.Recvmsg(int(file.Fd()), first, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOTSOCK):
			return from, -1
		case err != nil || n == 0:
			return nil, -1
		}
		return io.MultiReader(bytes.NewReader(first), from), fileIn(rights[:length])
	}
}

// fileIn returns the file that came with a message, or -1.
func fileIn(rights []byte) int {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return -1
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(files) == 0 {
		return -1
	}
	return files[0]
}
