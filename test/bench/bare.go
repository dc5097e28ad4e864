package main

import "context"

// A bare does the least that librbd does for the same work, over one connection. All
// methods may be called at once.
type bare interface {
	// create makes an image like those of the driver: 1 GiB, objects of 4 MiB, the
	// features layering, exclusive-lock, object-map, fast-diff and deep-flatten (rbd_create4).
	create(name string) error
	// createAgain makes an image that is there; being told so is success.
	createAgain(name string) error
	// expand opens an image, makes it larger and closes it (rbd_open, rbd_resize).
	expand(name string, bytes int64) error
	// snapshot opens an image, takes a snapshot of it and closes it (rbd_snap_create).
	snapshot(name, snapshot string) error
	// removeSnapshot opens an image, removes a snapshot of it and closes it
	// (rbd_snap_remove). One with clones goes to the trash's namespace.
	removeSnapshot(name, snapshot string) error
	// clone makes an image of a snapshot, with clone format 2 (rbd_clone3).
	clone(of, snapshot, name string) error
	// removeAll moves images to the trash, which has to be empty, and removes them there
	// (rbd_trash_move, rbd_trash_remove). It returns how many operations it made besides, to learn
	// their IDs.
	removeAll(ctx context.Context, names []string) (besides int64, err error)
	close()
}

const (
	imageBytes  = 1 << 30
	objectOrder = 22 // 4 MiB
)
