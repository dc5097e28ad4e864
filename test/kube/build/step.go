package build

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

// A step is a run of the go command, with what that has done so far.
type step struct {
	*progress.Step
	downloaded atomic.Int32
	compiled   atomic.Int32
}

func (b Builder) begin(name string, usual time.Duration) *step {
	s := &step{}
	s.Step = progress.Begin(b.Progress, "kube", name, usual, s.counts)
	return s
}

func (s *step) counts() string {
	var text string
	if n := s.downloaded.Load(); n > 0 {
		text += fmt.Sprintf(", %d modules fetched", n)
	}
	if n := s.compiled.Load(); n > 0 {
		text += fmt.Sprintf(", %d packages compiled", n)
	}
	return text
}
