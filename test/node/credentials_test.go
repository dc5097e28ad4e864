package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

const wrongKey = "AQBeRz5nAAAAABAAq1m8l9Y2yPW8y0mHk3O7Zw=="

// TestThousandWrongKeys sends a thousand requests with a wrong key or an unknown
// user. Each has to be answered within its deadline, and afterwards the controller
// may hold no more threads, files and connections than before, nor much more memory.
func TestThousandWrongKeys(t *testing.T) {
	m := Start(t, shared.ForTest(t, ceph.Options{}))
	m.refused(t, 32)
	before := footprintOf(t, m.Controller.PID())
	m.refused(t, 1000)

	var after footprint
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if after = footprintOf(t, m.Controller.PID()); after.threads <= before.threads+8 && after.files <= before.files+4 {
			break
		}
	}
	t.Logf("before %+v, after %+v", before, after)
	if after.threads > before.threads+8 || after.files > before.files+4 || after.resident > before.resident+32*mib {
		t.Errorf("after 1000 refused requests the controller has %+v, want about what it had before: %+v", after, before)
	}
	if log, err := os.ReadFile(m.Controller.Log()); err != nil || strings.Contains(string(log), wrongKey) {
		t.Errorf("the log has the key, or cannot be read: %v", err)
	}
}

// refused sends requests whose credentials are wrong, 32 at a time.
func (m *Machine) refused(t *testing.T, n int) {
	t.Helper()
	const inFlight, deadline = 32, 15 * time.Second
	users := []string{m.User, "nobody"}
	next := make(chan int)
	var workers sync.WaitGroup
	for range inFlight {
		workers.Go(func() {
			for i := range next {
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				_, err := m.Controller.Create(ctx, driver.Claim{
					Volume: fmt.Sprintf("pvc-refused-%d", i), Bytes: gib, Parameters: m.Parameters(),
					Secrets: map[string]string{"userID": users[i%len(users)], "userKey": wrongKey},
				})
				cancel()
				// Too many at once may be told to come again; nobody may be told that it worked.
				if code := status.Code(err); code != codes.Unauthenticated && code != codes.Unavailable {
					t.Errorf("request %d as %s: %v, want Unauthenticated", i, users[i%len(users)], err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	workers.Wait()
}

// A footprint is what a process holds.
type footprint struct {
	threads, files int
	resident       int64 // bytes
}

func footprintOf(t *testing.T, pid int) footprint {
	t.Helper()
	process := filepath.Join("/proc", strconv.Itoa(pid))
	threads, err := os.ReadDir(filepath.Join(process, "task"))
	check(t, err)
	files, err := os.ReadDir(filepath.Join(process, "fd"))
	check(t, err)
	statm, err := os.ReadFile(filepath.Join(process, "statm"))
	check(t, err)
	var total, resident int64
	_, err = fmt.Sscan(string(statm), &total, &resident)
	check(t, err)
	return footprint{threads: len(threads), files: len(files), resident: resident * int64(os.Getpagesize())}
}
