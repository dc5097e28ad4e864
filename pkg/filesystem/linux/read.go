//go:build linux

package linux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/pkg/errand"
	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// frontSize is how much of the beginning of a device tells of an ext4. It is a multiple of every
// logical block size, which direct reads have to keep to.
const frontSize = 4 << 10

// bufferSize is how much is read at once. Memory that is touched for the first time costs more than the reading.
const bufferSize = 256 << 10

// readerName is what a process that reads is called where tools are called by their names.
const readerName = "read"

// A Reading asks for pieces of a device, past the page cache: what that holds says nothing
// about the device of this moment.
type Reading struct {
	Device string
	Pieces []Piece
}

// A Piece is so many bytes of a device at an offset, both multiples of its logical block size.
type Piece struct{ Offset, Length int64 }

// A Sight is what came of a Reading.
type Sight struct {
	Front []byte // the first bytes of the first piece, frontSize at most
	Sum   []byte // SHA-256 of all pieces
	Zeros bool   // all of it reads as zeros
	Error string // if something could not be read: what, and why
}

// Serve is the process that reads devices for [Options].Reader; see [errand.Serve].
func Serve(from io.Reader, to io.Writer) error {
	return errand.Serve(from, to, func(_ int, order Reading) Sight {
		seen, err := order.carryOut()
		if err != nil {
			return Sight{Error: err.Error()}
		}
		return seen
	})
}

func (r Reading) carryOut() (Sight, error) {
	fd, err := unix.Open(r.Device, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return Sight{}, fmt.Errorf("open: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	// Of whole pages, as direct reads want it.
	buffer, err := unix.Mmap(-1, 0, bufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return Sight{}, fmt.Errorf("get memory to read into: %w", err)
	}
	defer func() { _ = unix.Munmap(buffer) }()
	seen, sum := Sight{Zeros: true}, sha256.New()
	for _, piece := range r.Pieces {
		for done := int64(0); done < piece.Length; {
			data := buffer[:min(bufferSize, piece.Length-done)]
			if err := readAt(fd, data, piece.Offset+done); err != nil {
				return Sight{}, fmt.Errorf("read %d bytes at %d: %w", len(data), piece.Offset+done, err)
			}
			if seen.Front == nil {
				seen.Front = bytes.Clone(data[:min(len(data), frontSize)])
			}
			seen.Zeros = seen.Zeros && blank(data)
			sum.Write(data)
			done += int64(len(data))
		}
	}
	seen.Sum = sum.Sum(nil)
	return seen, nil
}

// readAt fills data from an offset on.
func readAt(fd int, data []byte, offset int64) error {
	for done := 0; done < len(data); {
		n, err := unix.Pread(fd, data[done:], offset+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("it ends after %d bytes: %w", done, io.ErrUnexpectedEOF)
		}
		done += n
	}
	return nil
}

// read has pieces of a device read. It returns fault.Unavailable if they cannot be.
func (h *Host) read(ctx context.Context, device string, pieces ...Piece) (Sight, error) {
	var seen Sight
	reading := command{tool: readerName, about: device}
	end, err := h.children.attend(ctx, reading, func(ctx context.Context) outcome {
		var err error
		seen, err = runErrand(ctx, h.reader, Reading{Device: device, Pieces: pieces})
		return outcome{err: err}
	})
	if err != nil {
		return Sight{}, err
	}
	if _, err := end.read(ctx, reading); err != nil {
		return Sight{}, err
	}
	if seen.Error != "" {
		return Sight{}, fmt.Errorf("read %s: %s: %w", device, seen.Error, fault.Unavailable)
	}
	return seen, nil
}

// runErrand has one order carried out, and returns when the process is done with it or has ended, however long that takes.
func runErrand(ctx context.Context, program *errand.Program, order Reading) (Sight, error) {
	work, err := errand.Start[Reading, Sight](program, []Reading{order}, nil)
	if err != nil {
		return Sight{}, err
	}
	stop := context.AfterFunc(ctx, work.Kill)
	defer stop()
	seen, done := <-work.Results
	if !done {
		return Sight{}, errNoAnswer
	}
	return seen, nil
}

// errNoAnswer is how an errand ends whose process was killed.
var errNoAnswer = errors.New("its process ended without an answer")
