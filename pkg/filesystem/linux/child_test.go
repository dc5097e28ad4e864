//go:build linux

package linux

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

func TestRun(t *testing.T) {
	for _, c := range []struct {
		name string
		cmd  command
		code int
		out  string
		said string
	}{
		{"output", command{tool: "echo", args: []string{"a  b"}}, 0, "a  b\n", "a b"},
		{"an exit code and the reason", command{tool: "cat", about: "/nothing", args: []string{"/nothing"}}, 1, "",
			"/usr/bin/cat: /nothing: No such file or directory"},
		{"the environment and nothing more", command{tool: "env"}, 0,
			"PATH=/usr/sbin:/usr/bin:/sbin:/bin\nLC_ALL=C\nBLKID_FILE=/dev/null\n", "PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C BLKID_FILE=/dev/null"},
		{"no input", command{tool: "cat"}, 0, "", ""},
		{"a terminal that says no", command{tool: "head", args: []string{"-n1"}, terminal: true}, 0, "n\r\n", "n"},
		{"a terminal that is one", command{tool: "tty", args: []string{"-s"}, terminal: true}, 0, "", ""},
		{"no terminal", command{tool: "tty", args: []string{"-s"}}, 1, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("SECRET", "of the driver")
			r, err := newChildren(1).run(t.Context(), c.cmd)
			if err != nil || r.code != c.code || string(r.out) != c.out || r.said() != c.said {
				t.Errorf("got %d, %q, %q, %v, want %d, %q, %q", r.code, r.out, r.said(), err, c.code, c.out, c.said)
			}
		})
	}
}

func TestRunWithoutTool(t *testing.T) {
	_, err := newChildren(1).run(t.Context(), command{tool: "mkfs.nothing"})
	wantKind(t, err, fault.Unsupported)
	_, err = newChildren(1).run(t.Context(), command{tool: "../../usr/bin/nothing"})
	wantKind(t, err, fault.Unsupported)
}

func TestRunBoundsOutput(t *testing.T) {
	cmd := command{tool: "seq", args: []string{"1000000"}}
	r, err := newChildren(1).run(t.Context(), cmd)
	must(t, err)
	if len(r.out) > outputLimit+1+wordsLimit || !bytes.HasPrefix(r.out, []byte("1\n2\n")) || !bytes.HasSuffix(r.out, []byte("\n1000000\n")) {
		t.Errorf("got %d bytes %q, want the first %d and the last %d", len(r.out), r.out, outputLimit, wordsLimit)
	}
}

func TestRunIsKilledInTime(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		c := newChildren(1)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		begun := time.Now()
		_, err := c.run(ctx, command{tool: "sleep", args: []string{"1000"}, terminal: terminal})
		wantKind(t, err, fault.Unknown)
		if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "hangs") {
			t.Errorf("got %v, want it killed because of the deadline", err)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("took %v, want about 50 ms", took)
		}
		eventually(t, "no child is left", func() bool { running, stuck := c.count(); return running == 0 && stuck == 0 })
	}
}

func TestRunCanceledBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := newChildren(1).run(ctx, command{tool: "touch", args: []string{filepath.Join(t.TempDir(), "file")}})
	wantKind(t, err, fault.Canceled)
}

func TestRunKilledBySomebodyElse(t *testing.T) {
	c := newChildren(1)
	ended, seconds := make(chan error, 1), fmt.Sprintf("2000.%d", os.Getpid())
	go func() {
		_, err := c.run(t.Context(), command{tool: "sleep", args: []string{seconds}})
		ended <- err
	}()
	var found []int
	eventually(t, "sleep runs", func() bool { found = processes("sleep\x00" + seconds); return len(found) == 1 })
	process, err := os.FindProcess(found[0])
	must(t, err)
	must(t, process.Kill())
	wantKind(t, <-ended, fault.Unknown)
}

func TestRunAtTheLimit(t *testing.T) {
	c := newChildren(2)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := c.run(ctx, command{tool: "sleep", args: []string{"1000"}})
			ended <- err
		}()
	}
	eventually(t, "two children run", func() bool { running, _ := c.count(); return running == 2 })
	_, err := c.run(t.Context(), command{tool: "true"})
	wantKind(t, err, fault.Unavailable)
	cancel()
	<-ended
	<-ended
	eventually(t, "no child is left", func() bool { running, _ := c.count(); return running == 0 })
	_, err = c.run(t.Context(), command{tool: "true"})
	must(t, err)
}

// processes returns the processes whose command line begins with this.
func processes(start string) []int {
	var found []int
	folders, _ := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		line, err := os.ReadFile(folder + "/cmdline")
		if err == nil && strings.HasPrefix(strings.TrimPrefix(string(line), "/usr/bin/"), start) {
			var pid int
			if _, err := fmt.Sscan(filepath.Base(folder), &pid); err == nil {
				found = append(found, pid)
			}
		}
	}
	return found
}

// helperVariable tells this test binary to be the driver that TestChildrenDieWithTheDriver kills.
const helperVariable = "RBD_CSI_TEST_DRIVER"

func TestChildrenDieWithTheDriver(t *testing.T) {
	seconds := fmt.Sprintf("1000.%d", os.Getpid())
	if told := os.Getenv(helperVariable); told != "" {
		go func() { _, _ = newChildren(1).run(t.Context(), command{tool: "sleep", args: []string{told}}) }()
		eventually(t, "sleep runs", func() bool { return len(processes("sleep\x00"+told)) == 1 })
		fmt.Println("running")
		select {}
	}
	driver := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChildrenDieWithTheDriver$")
	driver.Env = append(os.Environ(), helperVariable+"="+seconds)
	out, err := driver.StdoutPipe()
	must(t, err)
	must(t, driver.Start())
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "running"; {
	}
	if got := processes("sleep\x00" + seconds); len(got) != 1 {
		t.Errorf("got processes %v, want one child of the driver", got)
	}
	must(t, driver.Process.Kill())
	_ = driver.Wait()
	eventually(t, "the child has ended", func() bool { return len(processes("sleep\x00"+seconds)) == 0 })
}

func TestShorten(t *testing.T) {
	long := oneLine(strings.Repeat("ä\xff ", 1000))
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{" a\n\tb\r\n", "a b"},
		{"bytes \xff\xfe", "bytes ?"},
		{long, ""},
	} {
		got := shorten(oneLine(c.text))
		if c.text != long && got != c.want || len(got) > wordsLimit+10 || strings.ToValidUTF8(got, "!") != got {
			t.Errorf("%.20q: got %q, want %q and not more than %d bytes of text", c.text, got, c.want, wordsLimit)
		}
	}
}

func TestKindLeavesOutThePath(t *testing.T) {
	umount := command{tool: "umount", about: "/pods/busy/mount"}
	r := result{code: 32, errors: []byte("umount: /pods/busy/mount: not mounted.\n")}
	if r.says(umount, "busy") || !r.says(umount, "not mounted") {
		t.Errorf("%s: got it busy, want only what umount says of it", r.said())
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
