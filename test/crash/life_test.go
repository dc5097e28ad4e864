package crash

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rbd-csi/rbd-csi/test/driver"
)

// A life is what happens to one volume. All of it is decided before the first request.
type life struct {
	claim driver.Claim
	asker

	staged bool // it is used on a node
	moved  bool // and then on the other node
	giveUp bool // and before, its pod is deleted while it is staged for the first time
	kept   bool // it is not deleted

	volume driver.Volume
	sum    [sha256.Size]byte // of what was written
}

// plan decides all lives.
func plan(seed uint64, volumes, staged int) []*life {
	random := rand.New(rand.NewPCG(seed, 0))
	lives := make([]*life, volumes)
	for i := range lives {
		lives[i] = &life{
			claim: driver.Claim{
				Volume: "pvc-" + uuid(random), Name: fmt.Sprintf("data-web-%d", i), Namespace: "default", Bytes: 64 << 20,
				Parameters: map[string]string{"mapper": "fuse"},
			},
			asker:  asker{random: rand.New(rand.NewPCG(seed, 1+uint64(i))), twice: random.IntN(4) == 0},
			moved:  random.IntN(2) == 0,
			giveUp: random.IntN(3) == 0,
			kept:   random.IntN(5) == 0,
		}
	}
	for _, i := range random.Perm(volumes)[:min(staged, volumes)] {
		lives[i].staged = true
	}
	return lives
}

// lead leads a life.
func (w *world) lead(ctx context.Context, l *life) error {
	l.claim.Parameters["pool"] = w.cluster.Pool()
	if err := w.create(ctx, l); err != nil {
		return err
	}
	if l.staged {
		if err := w.use(ctx, l); err != nil {
			return err
		}
	}
	if l.kept {
		return nil
	}
	return w.ask(ctx, l.asker, "delete", func(ctx context.Context, p *driver.Process) error {
		return p.Delete(ctx, l.volume)
	})
}

func (w *world) create(ctx context.Context, l *life) error {
	var mutex sync.Mutex
	return w.ask(ctx, l.asker, "create", func(ctx context.Context, p *driver.Process) error {
		made, err := p.Create(ctx, l.claim)
		if err != nil {
			return err
		}
		mutex.Lock()
		defer mutex.Unlock()
		if l.volume.Handle != "" && l.volume.Handle != made.Handle {
			return fmt.Errorf("a repeated create answered %s and then %s", l.volume.Handle, made.Handle)
		}
		l.volume = made
		return nil
	})
}

// use writes to the volume on one node, and reads it on the other.
func (w *world) use(ctx context.Context, l *life) error {
	first := l.random.IntN(len(w.nodes))
	if l.giveUp {
		if err := w.beginAndGiveUp(ctx, l, w.nodes[first]); err != nil {
			return fmt.Errorf("given up: %w", err)
		}
	}
	if err := w.visit(ctx, l, w.nodes[first], l.write); err != nil || !l.moved {
		return err
	}
	return w.visit(ctx, l, w.nodes[1-first], l.read)
}

// visit is a pod on one node, from attach to detach.
func (w *world) visit(ctx context.Context, l *life, node *mortal, work func(folder string) error) error {
	attached, err := w.attach(ctx, l, node)
	if err != nil {
		return err
	}
	pod := "pod-of-" + l.claim.Volume
	on := func(what string, do func(context.Context, *driver.Process) error) {
		if err == nil {
			err = l.repeat(ctx, what+" on "+node.Name, func() *mortal { return node }, do)
		}
	}
	on("stage", func(ctx context.Context, p *driver.Process) error { return p.Stage(ctx, l.volume, attached) })
	on("publish", func(ctx context.Context, p *driver.Process) error { return p.Publish(ctx, l.volume, attached, pod) })
	if err == nil {
		err = work(node.TargetPath(pod))
	}
	on("unpublish", func(ctx context.Context, p *driver.Process) error { return p.Unpublish(ctx, l.volume, pod) })
	on(unstaging, func(ctx context.Context, p *driver.Process) error { return p.Unstage(ctx, l.volume) })
	if err != nil {
		return err
	}
	return w.detach(ctx, l, node)
}

// beginAndGiveUp is a pod that is deleted while its volume is staged: kubelet does not repeat
// NodeStageVolume then, and goes on with NodeUnstageVolume.
func (w *world) beginAndGiveUp(ctx context.Context, l *life, node *mortal) error {
	attached, err := w.attach(ctx, l, node)
	if err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, time.Duration(l.random.IntN(400))*time.Millisecond)
	err = node.Stage(short, l.volume, attached)
	cancel()
	if err != nil && !driver.StillGoing(err) {
		return err
	}
	err = l.repeat(ctx, unstaging+" on "+node.Name, func() *mortal { return node }, func(ctx context.Context, p *driver.Process) error {
		return p.Unstage(ctx, l.volume)
	})
	if err != nil {
		return err
	}
	return w.detach(ctx, l, node)
}

func (w *world) attach(ctx context.Context, l *life, node *mortal) (attached map[string]string, err error) {
	id, err := w.idOf(ctx, l, node)
	if err != nil {
		return nil, err
	}
	var mutex sync.Mutex
	err = w.ask(ctx, l.asker, "attach to "+node.Name, func(ctx context.Context, p *driver.Process) error {
		answer, err := p.Attach(ctx, l.volume, id)
		if err != nil {
			return err
		}
		mutex.Lock()
		defer mutex.Unlock()
		attached = answer
		return nil
	})
	return attached, err
}

func (w *world) detach(ctx context.Context, l *life, node *mortal) error {
	id, err := w.idOf(ctx, l, node)
	if err != nil {
		return err
	}
	return w.ask(ctx, l.asker, "detach from "+node.Name, func(ctx context.Context, p *driver.Process) error {
		return p.Detach(ctx, l.volume, id)
	})
}

func (w *world) idOf(ctx context.Context, l *life, node *mortal) (id string, err error) {
	err = l.repeat(ctx, "ask for the ID of "+node.Name, func() *mortal { return node }, func(ctx context.Context, p *driver.Process) error {
		id, err = p.ID(ctx)
		return err
	})
	return id, err
}

// write writes a file and syncs it, as a pod does.
func (l *life) write(folder string) error {
	content := make([]byte, 1<<20)
	for i := range content {
		content[i] = byte(l.random.Uint32())
	}
	l.sum = sha256.Sum256(content)
	file, err := os.Create(filepath.Join(folder, "data"))
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Sync(), file.Close())
}

// read sees that what was written is there.
func (l *life) read(folder string) error {
	content, err := os.ReadFile(filepath.Join(folder, "data"))
	if err != nil {
		return err
	}
	if got := sha256.Sum256(content); got != l.sum {
		return fmt.Errorf("data on the second node: got checksum %x, want %x", got, l.sum)
	}
	return nil
}
