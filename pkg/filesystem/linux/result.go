//go:build linux

package linux

import (
	"fmt"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A result is what a tool that ended by itself left.
type result struct {
	code   int
	out    []byte // its standard output, or what it wrote to the terminal
	errors []byte // its standard error
}

// said returns what a tool had to say, in one line: its complaints, or else its output. Pages of usage,
// as mkfs.xfs adds them to every complaint, are left out.
func (r result) said() string {
	complaints, _, _ := strings.Cut(string(r.errors), "\nUsage:")
	line := oneLine(complaints)
	if line == "" {
		line = oneLine(string(r.out))
	}
	return line
}

// A complaint is a part of what a tool says in English, and what it means.
type complaint struct {
	part string
	kind fault.Kind
}

// kind returns what the first complaint among a tool's words means, and fault.Unavailable if
// none is there.
func (r result) kind(cmd command, complaints []complaint) fault.Kind {
	for _, c := range complaints {
		if r.says(cmd, c.part) {
			return c.kind
		}
	}
	return fault.Unavailable
}

// says reports whether a tool said this. The path that it was about is left out, for that may
// hold any words.
func (r result) says(cmd command, part string) bool {
	said := r.said()
	if cmd.about != "" {
		said = strings.ReplaceAll(said, cmd.about, "-")
	}
	return strings.Contains(said, part)
}

// failed wraps what a tool said with a kind.
func (r result) failed(cmd command, kind fault.Kind) error {
	return fmt.Errorf("%s: exit code %d: %s: %w", cmd, r.code, shorten(r.said()), kind)
}

// oneLine makes one line of text, and removes what is no text.
func oneLine(text string) string {
	return strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
}

// shorten keeps the beginning and the end of a long line.
func shorten(line string) string {
	if len(line) > wordsLimit {
		line = strings.ToValidUTF8(line[:wordsLimit/2]+" ... "+line[len(line)-wordsLimit/2:], "")
	}
	return line
}

// A tape keeps the beginning and the end of what is written to it.
type tape struct{ head, tail []byte }

// Write implements io.Writer; it never fails, so a talkative tool is not disturbed.
func (t *tape) Write(p []byte) (int, error) {
	n := min(len(p), outputLimit-len(t.head))
	t.head = append(t.head, p[:n]...)
	t.tail = append(t.tail, p[n:]...)
	if over := len(t.tail) - wordsLimit; over > 0 {
		t.tail = append(t.tail[:0], t.tail[over:]...)
	}
	return len(p), nil
}

func (t *tape) bytes() []byte {
	if len(t.tail) == 0 {
		return t.head
	}
	return append(append(append([]byte{}, t.head...), '\n'), t.tail...)
}
