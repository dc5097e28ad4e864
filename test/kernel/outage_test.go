package kernel

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// silence is how long a guest that does not answer is listened to.
const silence = 500 * time.Millisecond

// TestOutages does to a guest what can be done to it, as somebody else than who booted it.
func TestOutages(t *testing.T) {
	needGuests(t)
	options := GuestOptions{Number: guestNumber(t), Folder: t.TempDir(), Memory: "128M"}
	if _, err := Find(options); !errors.Is(err, fault.NotFound) {
		t.Errorf("find a guest that was not booted: got %v, want %v", err, fault.NotFound)
	}
	_, err := Boot(t.Context(), options)
	must(t, err)
	g, err := Find(options)
	must(t, err)
	for _, outage := range []struct {
		name        string
		begin, stop func() error
	}{
		{"frozen", g.Freeze, g.Thaw},
		{"cut off", g.CutOff, g.Rejoin},
	} {
		must(t, outage.begin())
		ctx, cancel := context.WithTimeout(t.Context(), silence)
		if _, err := g.Output(ctx, "true"); err == nil {
			t.Errorf("a guest that is %s: got an answer, want none", outage.name)
		}
		cancel()
		must(t, outage.stop())
		if _, err := g.Output(t.Context(), "true"); err != nil {
			t.Errorf("a guest that was %s: got %v, want an answer", outage.name, err)
		}
	}
	must(t, g.Kill())
	if _, err := Find(options); !errors.Is(err, fault.NotFound) {
		t.Errorf("find a guest that was killed: got %v, want %v", err, fault.NotFound)
	}
}

// TestFindAnother sees that a process is not taken for a guest that had its number before.
func TestFindAnother(t *testing.T) {
	options := GuestOptions{Number: 1, Folder: t.TempDir()}
	must(t, os.Mkdir(options.file(), 0o755))
	must(t, os.WriteFile(filepath.Join(options.file(), "pid"), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644))
	if _, err := Find(options); !errors.Is(err, fault.NotFound) {
		t.Errorf("find a guest whose number another process has: got %v, want %v", err, fault.NotFound)
	}
}
