package story

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// A Writer is a database in a pod: it appends records to a file, each with a checksum, and each is on disk before the
// next. A record that was counted must never be lost. Its methods may be called at the same time.
type Writer struct {
	end  chan struct{} // closed when it shall end
	gone chan struct{} // closed when it has

	mutex   sync.Mutex
	more    *sync.Cond
	records int
	err     error
}

// NewWriter begins to write. Write appends a record, a line, and returns when it is on disk; finish, unless nil, is called
// after the last one.
func NewWriter(write func(record string) error, finish func() error) *Writer {
	w := &Writer{end: make(chan struct{}), gone: make(chan struct{})}
	w.more = sync.NewCond(&w.mutex)
	go w.run(write, finish)
	return w
}

func (w *Writer) run(write func(string) error, finish func() error) {
	defer close(w.gone)
	for number := 1; w.wanted(); number++ {
		err := write(Record(number))
		w.mutex.Lock()
		if err == nil {
			w.records = number
		}
		w.err = err
		w.more.Broadcast()
		w.mutex.Unlock()
		if err != nil {
			break
		}
	}
	if finish == nil {
		return
	}
	err := finish()
	w.mutex.Lock()
	w.err = errors.Join(w.err, err)
	w.mutex.Unlock()
}

func (w *Writer) wanted() bool {
	select {
	case <-w.end:
		return false
	default:
		return true
	}
}

// Count returns how many records are written.
func (w *Writer) Count() int {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.records
}

// Writes waits until so many more records are written, and returns the error that
// ends the writing otherwise.
func (w *Writer) Writes(ctx context.Context, more int) error {
	defer context.AfterFunc(ctx, func() {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		w.more.Broadcast()
	})()
	w.mutex.Lock()
	defer w.mutex.Unlock()
	for until := w.records + more; w.records < until; w.more.Wait() {
		if err := errors.Join(w.err, ctx.Err()); err != nil {
			return fmt.Errorf("the writer stopped after record %d: %w", w.records, err)
		}
	}
	return nil
}

// Stop ends the writing and returns how many records there have to be. It is called once.
func (w *Writer) Stop() (int, error) {
	close(w.end)
	<-w.gone
	return w.records, w.err
}

// Abandon ends the writing in place of Stop, but does not wait long for a device that may never answer.
func (w *Writer) Abandon() {
	close(w.end)
	select {
	case <-w.gone:
	case <-time.After(2 * time.Second):
	}
}

// Record returns the text of a record, a whole line.
func Record(number int) string {
	text := fmt.Sprintf("record %09d", number)
	return fmt.Sprintf("%s %x\n", text, sha256.Sum256([]byte(text)))
}

// CountRecords returns how many records a file holds, from the first on and without a gap or a fault.
func CountRecords(file io.Reader) (int, error) {
	lines := bufio.NewScanner(file)
	number := 0
	for lines.Scan() {
		if lines.Text()+"\n" != Record(number+1) {
			return number, fmt.Errorf("record %d is %q", number+1, lines.Text())
		}
		number++
	}
	return number, lines.Err()
}
