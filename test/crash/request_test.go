package crash

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/test/driver"
)

// A thing is a volume, a snapshot or a group snapshot. What it is to be is decided by the plan, and
// what the driver calls it is known when it has answered.
type thing struct {
	name    string // of the request
	place   int    // index of world.places
	content content
	depth   int      // how many clones it is away from an empty volume
	members []*thing // of a group: its snapshots
	sources []*thing // of a snapshot or a group: the volumes
	source  *thing   // of a volume: what it is a copy of, nil for an empty one

	// For the plan: the request that made it what it is, and those that need it so.
	made  *request
	users []*request

	mutex  sync.Mutex
	handle string
}

// answered notes what the driver calls the thing. Each answer has to say the same.
func (o *thing) answered(handle string) error {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if o.handle != "" && o.handle != handle {
		return fmt.Errorf("a repeated request for %s answered %s and then %s", o.name, o.handle, handle)
	}
	o.handle = handle
	return nil
}

// A request is something that is asked of the controllers, or done beside them.
type request struct {
	asker
	number int
	what   string
	after  []*request
	do     func(ctx context.Context, w *world, a asker) error

	done   chan struct{} // closed when it was answered, or never will be
	failed bool          // set before that
}

func (r *request) String() string { return fmt.Sprintf("request %d, %s", r.number, r.what) }

// perform makes all requests, each after those that it has to wait for, and a few at a time.
func (w *world) perform(ctx context.Context, t *testing.T, requests []*request) {
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for _, r := range requests {
		all.Go(func() {
			defer close(r.done)
			for _, earlier := range r.after {
				<-earlier.done
				r.failed = r.failed || earlier.failed
			}
			if r.failed {
				return
			}
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			if err := r.do(ctx, w, r.asker); err != nil {
				r.failed = true
				t.Errorf("%s: %v", r, err)
			}
		})
	}
	all.Wait()
}

// claim returns the claim of a volume.
func (w *world) claim(volume *thing) driver.Claim {
	at := w.places[volume.place]
	parameters := map[string]string{"pool": at.pool}
	if at.namespace != "" {
		parameters["namespace"] = at.namespace
	}
	return driver.Claim{
		Volume: volume.name, Name: "of-" + volume.name, Namespace: "default",
		Bytes: volume.content.bytes, Parameters: parameters, Use: driver.Block(),
	}
}

// make asks for a volume and, if it is a copy, compares its content.
func (w *world) make(ctx context.Context, a asker, volume *thing, c content, claim driver.Claim) error {
	err := w.ask(ctx, a, "create", func(ctx context.Context, p *driver.Process) error {
		made, err := p.Create(ctx, claim)
		if err == nil && made.Bytes != c.bytes {
			err = fmt.Errorf("size of %s: got %d, want %d", made.Handle, made.Bytes, c.bytes)
		}
		if err == nil {
			err = volume.answered(made.Handle)
		}
		return err
	})
	if err != nil {
		return err
	}
	if claim.OfSnapshot == "" && claim.OfVolume == "" {
		return w.write(ctx, volume.handle, c)
	}
	return w.compare(ctx, volume.handle, c)
}

// A volume's content changes in the course of the plan, so these take the one that it begins with.

func create(volume *thing) func(context.Context, *world, asker) error {
	c := volume.content
	return func(ctx context.Context, w *world, a asker) error {
		return w.make(ctx, a, volume, c, w.claim(volume))
	}
}

func restore(snapshot, volume *thing) func(context.Context, *world, asker) error {
	c := volume.content
	return func(ctx context.Context, w *world, a asker) error {
		claim := w.claim(volume)
		claim.OfSnapshot = snapshot.handle
		return w.make(ctx, a, volume, c, claim)
	}
}

func clone(source, volume *thing) func(context.Context, *world, asker) error {
	c := volume.content
	return func(ctx context.Context, w *world, a asker) error {
		claim := w.claim(volume)
		claim.OfVolume = source.handle
		return w.make(ctx, a, volume, c, claim)
	}
}

func write(volume *thing) func(context.Context, *world, asker) error {
	c := volume.content
	return func(ctx context.Context, w *world, _ asker) error { return w.write(ctx, volume.handle, c) }
}

func take(snapshot *thing) func(context.Context, *world, asker) error {
	return func(ctx context.Context, w *world, a asker) error {
		return w.ask(ctx, a, "take snapshot", func(ctx context.Context, p *driver.Process) error {
			source := snapshot.sources[0]
			made, err := p.TakeSnapshot(ctx, snapshot.name, source.handle)
			if err != nil {
				return err
			}
			return snapshot.check(made, source)
		})
	}
}

// check compares an answer with the snapshot that was asked for, and notes its handle.
func (o *thing) check(made driver.Snapshot, source *thing) error {
	if made.Bytes != o.content.bytes || made.Source != source.handle {
		return fmt.Errorf("snapshot %s: got %d bytes of %s, want %d of %s", made.Handle, made.Bytes, made.Source, o.content.bytes, source.handle)
	}
	return o.answered(made.Handle)
}

func takeGroup(group *thing) func(context.Context, *world, asker) error {
	return func(ctx context.Context, w *world, a asker) error {
		return w.ask(ctx, a, "take group", func(ctx context.Context, p *driver.Process) error {
			handles := make([]string, len(group.sources))
			for i, source := range group.sources {
				handles[i] = source.handle
			}
			made, err := p.TakeGroup(ctx, group.name, handles...)
			if err != nil {
				return err
			}
			if len(made.Members) != len(handles) {
				return fmt.Errorf("group %s: got %d members, want %d", made.Handle, len(made.Members), len(handles))
			}
			for _, one := range made.Members {
				i := slices.Index(handles, one.Source)
				if i < 0 || one.Group != made.Handle {
					return fmt.Errorf("member %s of group %s: got one of volume %s and group %q", one.Handle, made.Handle, one.Source, one.Group)
				}
				if err := group.members[i].check(one, group.sources[i]); err != nil {
					return err
				}
			}
			return group.answered(made.Handle)
		})
	}
}

// takeTaken asks for a snapshot of another volume by a name that has been given away.
func takeTaken(snapshot, other *thing) func(context.Context, *world, asker) error {
	return func(ctx context.Context, w *world, a asker) error {
		return w.ask(ctx, a, "take a name twice", func(ctx context.Context, p *driver.Process) error {
			made, err := p.TakeSnapshot(ctx, snapshot.name, other.handle)
			switch {
			case status.Code(err) == codes.AlreadyExists:
				return nil
			case err != nil:
				return err
			}
			return fmt.Errorf("a second snapshot with the name of %s: got %s, want AlreadyExists", snapshot.handle, made.Handle)
		})
	}
}

// list sees that volumes and snapshots that are there all the time are listed.
func list(volumes, snapshots []*thing) func(context.Context, *world, asker) error {
	return func(ctx context.Context, w *world, a asker) error {
		return w.ask(ctx, a, "list", func(ctx context.Context, p *driver.Process) error {
			gotVolumes, gotSnapshots, err := listed(ctx, p)
			if err != nil {
				return err
			}
			wrong := append(missing("ListVolumes", gotVolumes, handles(volumes)), missing("ListSnapshots", gotSnapshots, handles(snapshots))...)
			if len(wrong) > 0 {
				return errors.New(strings.Join(wrong, "; "))
			}
			return nil
		})
	}
}

// listed returns the handles of all volumes and snapshots, in pages so small that there are several.
func listed(ctx context.Context, p *driver.Process) (volumes, snapshots []string, err error) {
	if volumes, err = p.Volumes(ctx, 7); err != nil {
		return nil, nil, err
	}
	all, err := p.Snapshots(ctx, 3)
	for _, one := range all {
		snapshots = append(snapshots, one.Handle)
	}
	return volumes, snapshots, err
}

func handles(things []*thing) []string {
	all := make([]string, len(things))
	for i, one := range things {
		all[i] = one.handle
	}
	return all
}

func deleteVolume(volume *thing) func(context.Context, *world, asker) error {
	c := volume.content
	return func(ctx context.Context, w *world, a asker) error {
		if err := w.compare(ctx, volume.handle, c); err != nil {
			return err
		}
		return w.ask(ctx, a, "delete volume", func(ctx context.Context, p *driver.Process) error {
			return p.Delete(ctx, driver.Volume{Handle: volume.handle})
		})
	}
}

func deleteSnapshot(snapshot *thing) func(context.Context, *world, asker) error {
	return func(ctx context.Context, w *world, a asker) error {
		return w.ask(ctx, a, "delete snapshot", func(ctx context.Context, p *driver.Process) error {
			return p.DropSnapshot(ctx, driver.Snapshot{Handle: snapshot.handle})
		})
	}
}

func deleteGroup(group *thing) func(context.Context, *world, asker) error {
	return func(ctx context.Context, w *world, a asker) error {
		gone := driver.Group{Handle: group.handle}
		for _, one := range group.members {
			gone.Members = append(gone.Members, driver.Snapshot{Handle: one.handle})
		}
		return w.ask(ctx, a, "delete group", func(ctx context.Context, p *driver.Process) error { return p.DropGroup(ctx, gone) })
	}
}

// removeIndices removes the index of each pool and namespace by hand.
func removeIndices(ctx context.Context, w *world, _ asker) error {
	for _, at := range w.places {
		_, err := w.cluster.Rados(ctx, at.rados("rm", indexObject)...)
		if err != nil && !isMissing(err) {
			return err
		}
	}
	return nil
}
