//go:build cgo

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// librbd is the bare of go-ceph.
type librbd struct {
	connection *rados.Conn
	pool       *rados.IOContext
	others     map[string]*rados.IOContext // pools of the driver
	options    *rbd.ImageOptions
	cloning    *rbd.ImageOptions // a create refuses the format of a clone
}

// connect connects as the user of a cluster's directory, as the driver does.
func connect(directory string) (bare, trash, error) {
	l := &librbd{others: map[string]*rados.IOContext{}}
	if err := l.open(directory); err != nil {
		l.close()
		return nil, nil, fmt.Errorf("connect librbd: %w", err)
	}
	return l, l, nil
}

func (l *librbd) open(directory string) (err error) {
	if l.connection, err = rados.NewConnWithUser(minimum); err != nil {
		return err
	}
	if err = l.connection.ReadConfigFile(filepath.Join(directory, "ceph.conf")); err != nil {
		return err
	}
	if err = l.connection.SetConfigOption("keyring", filepath.Join(directory, "keyring")); err != nil {
		return err
	}
	if err = l.connection.Connect(); err != nil {
		return err
	}
	if l.pool, err = l.connection.OpenIOContext(minimum); err != nil {
		return err
	}
	for _, pool := range []string{ours, few} {
		if l.others[pool], err = l.connection.OpenIOContext(pool); err != nil {
			return err
		}
	}
	if l.options, err = imageOptions(); err != nil {
		return err
	}
	if l.cloning, err = imageOptions(); err != nil {
		return err
	}
	return l.cloning.SetUint64(rbd.ImageOptionCloneFormat, 2)
}

// imageOptions returns those of the driver's own images.
func imageOptions() (*rbd.ImageOptions, error) {
	options := rbd.NewRbdImageOptions()
	features := rbd.FeatureLayering | rbd.FeatureExclusiveLock | rbd.FeatureObjectMap | rbd.FeatureFastDiff | rbd.FeatureDeepFlatten
	if err := options.SetUint64(rbd.ImageOptionFeatures, features); err != nil {
		return options, err
	}
	return options, options.SetUint64(rbd.ImageOptionOrder, objectOrder)
}

func (l *librbd) create(name string) error {
	return rbd.CreateImage(l.pool, name, imageBytes, l.options)
}

func (l *librbd) createAgain(name string) error {
	err := l.create(name)
	if isCode(err, syscall.EEXIST) {
		return nil
	}
	return fmt.Errorf("create of %s, which is there: got %v, want EEXIST", name, err)
}

func isCode(err error, code syscall.Errno) bool {
	var coded interface{ ErrorCode() int }
	return errors.As(err, &coded) && coded.ErrorCode() == -int(code)
}

// with opens an image for what is to be done, and closes it.
func (l *librbd) with(name string, do func(*rbd.Image) error) error {
	image, err := rbd.OpenImage(l.pool, name, rbd.NoSnapshot)
	if err != nil {
		return err
	}
	return errors.Join(do(image), image.Close())
}

func (l *librbd) expand(name string, bytes int64) error {
	return l.with(name, func(image *rbd.Image) error { return image.Resize(uint64(bytes)) })
}

func (l *librbd) snapshot(name, snapshot string) error {
	return l.with(name, func(image *rbd.Image) error {
		_, err := image.CreateSnapshot(snapshot)
		return err
	})
}

func (l *librbd) removeSnapshot(name, snapshot string) error {
	return l.with(name, func(image *rbd.Image) error {
		err := image.GetSnapshot(snapshot).Remove()
		if isCode(err, syscall.EBUSY) {
			return nil // it has clones, and is in the trash's namespace now
		}
		return err
	})
}

func (l *librbd) clone(of, snapshot, name string) error {
	return rbd.CloneImage(l.pool, of, snapshot, l.pool, name, l.cloning)
}

func (l *librbd) removeAll(ctx context.Context, names []string) (besides int64, err error) {
	err = atOnce(ctx, parallel, len(names), func(at int) error {
		if err := rbd.GetImage(l.pool, names[at]).Trash(0); err != nil {
			return fmt.Errorf("move %s to the trash: %w", names[at], err)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	ids, err := trashed(l.pool, int64(len(names)))
	if err != nil {
		return 0, err
	}
	return 1, atOnce(ctx, parallel, len(ids), func(at int) error {
		if err := rbd.TrashRemove(l.pool, ids[at], false); err != nil {
			return fmt.Errorf("remove %s from the trash: %w", ids[at], err)
		}
		return nil
	})
}

func (l *librbd) empty(pool string) (bool, error) {
	ids, err := trashed(l.others[pool], 1)
	return len(ids) == 0, err
}

// trashed returns the IDs of up to so many images in the trash: the keys of the omap of
// rbd_trash, after "id_". It costs one operation for up to 1024, where rbd_trash_list would
// look at each image too.
func trashed(pool *rados.IOContext, most int64) ([]string, error) {
	entries, err := pool.GetOmapValues("rbd_trash", "", "id_", most)
	if err != nil && !errors.Is(err, rados.ErrNotFound) {
		return nil, fmt.Errorf("list the trash: %w", err)
	}
	var ids []string
	for key := range entries {
		ids = append(ids, strings.TrimPrefix(key, "id_"))
	}
	return ids, nil
}

func (l *librbd) close() {
	for _, options := range []*rbd.ImageOptions{l.options, l.cloning} {
		if options != nil {
			options.Destroy()
		}
	}
	if l.pool != nil {
		l.pool.Destroy()
	}
	for _, pool := range l.others {
		pool.Destroy()
	}
	if l.connection != nil {
		l.connection.Shutdown()
	}
}
