package librbd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// A pool is a place as one user sees it; it implements rbd.Pool and rbd.Copies. It
// outlives the connection that it was opened on.
type pool struct {
	clusters *Clusters
	as       params.Credentials
	where    rbd.Where
	session  atomic.Pointer[session]
	slow     atomic.Pointer[session] // for Flatten, see slowly
}

var (
	_ rbd.Pool   = (*pool)(nil)
	_ rbd.Copies = (*pool)(nil)
)

// at is what a call gets to work with.
type at struct {
	*rados.IOContext
	session *session
	where   rbd.Where
}

// run makes one call: in a goroutine that ctx does not bind, on the pool's
// connection, and once more on a new one when that connection has been
// blocklisted or closed. The error has a kind and says what was done where.
func run[T any](ctx context.Context, p *pool, what string, call func(at) (T, error)) (T, error) {
	return runOn(ctx, p, p.connection, what, call)
}

// runOn is run with a choice of the connection.
func runOn[T any](
	ctx context.Context, p *pool, connection func(context.Context) (*session, error), what string, call func(at) (T, error),
) (T, error) {
	what += " in " + p.where.String()
	const attempts = 3
	for attempt := 1; ; attempt++ {
		s, err := connection(ctx)
		var value T
		if err == nil {
			value, err = rbd.Do(ctx, s.calls(), what, guard(s, func() (T, error) {
				io, err := p.context(s)
				if err != nil {
					var none T
					return none, err
				}
				return call(at{io, s, p.where})
			}))
		}
		switch {
		case err == nil:
			return value, nil
		case s != nil && attempt < attempts && p.clusters.discarded(s, err):
			continue
		}
		return value, fmt.Errorf("%s: %w", what, classified(err))
	}
}

// do is run for calls without a result.
func do(ctx context.Context, p *pool, what string, call func(at) error) error {
	_, err := run(ctx, p, what, func(a at) (struct{}, error) { return struct{}{}, call(a) })
	return err
}

// connection returns the session that the pool was opened on, or a new one.
func (p *pool) connection(ctx context.Context) (*session, error) {
	return p.current(ctx, &p.session, false)
}

func (p *pool) current(ctx context.Context, last *atomic.Pointer[session], slow bool) (*session, error) {
	if s := last.Load(); s != nil && s.usable() {
		return s, nil
	}
	s, err := p.clusters.session(ctx, p.where.Cluster, p.as, slow)
	if err == nil {
		last.Store(s)
	}
	return s, err
}

// usable reports whether a session was not retired.
func (s *session) usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.retired
}

// context returns the handle, when the name is still that of the pool that was opened.
func (p *pool) context(s *session) (*rados.IOContext, error) {
	io, err := s.context(p.where.Pool.Pool, p.where.Namespace)
	if err == nil && io.GetPoolID() != p.where.PoolID {
		err = fmt.Errorf("pool %s was removed and made again: %w", p.where.Pool.Pool, fault.Superseded)
	}
	if err != nil {
		s.forget(p.where.Pool)
		return nil, err
	}
	return io, nil
}

// Where implements rbd.Pool.
func (p *pool) Where() rbd.Where { return p.where }

// The names of objects, as in src/include/rbd_types.h.
const (
	directory    = "rbd_directory"
	trash        = "rbd_trash"
	idPrefix     = "rbd_id."
	headerPrefix = "rbd_header."
	mapPrefix    = "rbd_object_map."
	dataPrefix   = "rbd_data."
)

// class is the OSD class of most methods.
const class = "rbd"

// write carries out one atomic operation on an object.
func (a at) write(object string, steps func(*writeOp)) error {
	return a.operate(object, plain, steps)
}

// writeAlways is write for the steps of a deletion, which have to work in a full
// pool, too. Where the object is new it is the only way (CEPH_OSD_FLAG_FULL_FORCE).
func (a at) writeAlways(object string, steps func(*writeOp)) error {
	return a.operate(object, fullForce, steps)
}

// ask calls a reading method of the class rbd on an object.
func (a at) ask(object, method string, input []byte) (*reader, error) {
	answer := &reader{}
	err := a.read(object, func(op *readOp) func() {
		output := op.exec(class, method, input)
		return func() { answer.bytes = output() }
	})
	return answer, err
}

// remove makes sure that an object is gone.
func (a at) remove(object string) error {
	err := a.write(object, func(op *writeOp) { op.remove() })
	if is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// FindName implements rbd.Pool: rbd.get_id.
func (p *pool) FindName(ctx context.Context, name string) (string, error) {
	return run(ctx, p, "read the name "+name, func(a at) (string, error) {
		return a.text(idPrefix+name, "get_id", nil)
	})
}

// text calls a reading method that answers with one text.
func (a at) text(object, method string, input []byte) (string, error) {
	answer, err := a.ask(object, method, input)
	if err != nil {
		return "", err
	}
	text := answer.text()
	return text, answer.err
}

// AddName implements rbd.Pool: rbd.set_id on a new object.
func (p *pool) AddName(ctx context.Context, name, id string) error {
	return do(ctx, p, "write the name "+name, func(a at) error {
		return a.write(idPrefix+name, func(op *writeOp) {
			op.createNew()
			op.exec(class, "set_id", new(writer).text(id).bytes)
		})
	})
}

// firstDifference is the number of cmpext for a difference at the first byte
// (MAX_ERRNO in src/include/rados.h); the position of the byte is added.
const firstDifference = 4095

// RemoveName implements rbd.Pool: the whole object is compared, the length of the
// ID stands in front of it.
func (p *pool) RemoveName(ctx context.Context, name, id string) error {
	return do(ctx, p, "remove the name "+name, func(a at) error {
		err := a.write(idPrefix+name, func(op *writeOp) {
			op.assertExists()
			op.compare(new(writer).text(id).bytes, 0)
			op.remove()
		})
		if is(err, syscall.ENOENT) || number(err) >= firstDifference {
			return nil
		}
		return err
	})
}

// FindEntry implements rbd.Pool: rbd.dir_get_id.
func (p *pool) FindEntry(ctx context.Context, name string) (string, error) {
	return run(ctx, p, "look up the entry "+name, func(a at) (string, error) {
		return a.text(directory, "dir_get_id", new(writer).text(name).bytes)
	})
}

// directoryReady is DIRECTORY_STATE_READY: the namespace is not being removed.
const directoryReady = 0

// AddEntry implements rbd.Pool: rbd.dir_add_image, in a namespace together with
// rbd.dir_state_assert, or it would revive a namespace that is being removed.
func (p *pool) AddEntry(ctx context.Context, name, id string) error {
	return do(ctx, p, "add the entry "+name, func(a at) error {
		err := a.write(directory, func(op *writeOp) {
			if p.where.Namespace != "" {
				op.exec(class, "dir_state_assert", new(writer).u8(directoryReady).bytes)
			}
			op.exec(class, "dir_add_image", new(writer).text(name).text(id).bytes)
		})
		if is(err, syscall.EBADF) {
			return fmt.Errorf("%w: the directory has the ID %s under another name", fault.Exists, id)
		}
		return err
	})
}

// RemoveEntry implements rbd.Pool: rbd.dir_remove_image.
func (p *pool) RemoveEntry(ctx context.Context, name, id string) error {
	return do(ctx, p, "remove the entry "+name, func(a at) error {
		err := a.write(directory, func(op *writeOp) {
			op.exec(class, "dir_remove_image", new(writer).text(name).text(id).bytes)
		})
		if is(err, syscall.ENOENT, syscall.ESTALE) {
			return nil
		}
		return err
	})
}

// pageSize is how many entries are read in one operation at most.
const pageSize = 1024

// Entries implements rbd.Pool: rbd.dir_list.
func (p *pool) Entries(ctx context.Context, after string, max int) ([]rbd.Entry, error) {
	return run(ctx, p, "list the directory", func(a at) ([]rbd.Entry, error) {
		answer, err := a.ask(directory, "dir_list", new(writer).text(after).u64(uint64(min(max, pageSize))).bytes)
		if is(err, syscall.ENOENT) {
			return nil, nil // nothing was ever made here
		}
		if err != nil {
			return nil, err
		}
		return readEntries(answer)
	})
}

// readEntries reads a map from names to IDs.
func readEntries(answer *reader) ([]rbd.Entry, error) {
	entries := make([]rbd.Entry, 0, answer.count())
	for range cap(entries) {
		entries = append(entries, rbd.Entry{Name: answer.text(), ID: answer.text()})
	}
	return entries, answer.err
}

// Capacity implements rbd.Pool: `ceph df`.
func (p *pool) Capacity(ctx context.Context, dataPool string) (rbd.Capacity, error) {
	return run(ctx, p, "ask for the capacity", func(a at) (rbd.Capacity, error) {
		name := p.where.Pool.Pool
		if dataPool != "" {
			name = dataPool
		}
		if _, err := a.session.conn.GetPoolByName(name); err != nil {
			return rbd.Capacity{}, fmt.Errorf("pool %s: %w", name, classified(err))
		}
		output, message, err := a.session.conn.MonCommand([]byte(`{"prefix":"df","format":"json"}`))
		if err != nil {
			return rbd.Capacity{}, fmt.Errorf("%w: %s", classified(err), message)
		}
		return readCapacity(output, name)
	})
}

// errNoStatistics means that `ceph df` does not list a pool, which it does a moment
// after the pool was made.
var errNoStatistics = errors.New("the monitors have no statistics of the pool yet")

func readCapacity(output []byte, name string) (rbd.Capacity, error) {
	var answer struct {
		Pools []struct {
			Name  string
			Stats struct {
				Stored   int64
				MaxAvail int64 `json:"max_avail"`
			}
		}
	}
	if err := json.Unmarshal(output, &answer); err != nil {
		return rbd.Capacity{}, fmt.Errorf("read the answer to df: %w", err)
	}
	for _, one := range answer.Pools {
		if one.Name == name {
			return rbd.Capacity{Available: one.Stats.MaxAvail, Used: one.Stats.Stored}, nil
		}
	}
	return rbd.Capacity{}, fmt.Errorf("pool %s: %w: %w", name, fault.Unavailable, errNoStatistics)
}
