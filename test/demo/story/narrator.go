package story

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Narrator prints what happens, for a terminal of 80 to 100 columns, a pipe or a file.
type Narrator struct {
	out    io.Writer
	width  int
	bold   bool // the output is a terminal and nobody asked for plain text
	begun  time.Time
	number int // of the present scene
	scenes int
	// unheard is called when the output cannot be written to any more.
	unheard func()
}

// NewNarrator looks at the output: bold print only on a terminal, and not where NO_COLOR is set
// (no-color.org). Columns are what is printed where there is no terminal to ask. Unheard is called when
// the output cannot be written to any more, as in `make demo | head`.
func NewNarrator(out *os.File, columns, scenes int, unheard func()) *Narrator {
	n := &Narrator{out: out, width: columns, begun: time.Now(), scenes: scenes, unheard: unheard}
	size, err := unix.IoctlGetWinsize(int(out.Fd()), unix.TIOCGWINSZ)
	if err == nil {
		n.width = min(max(int(size.Col), 80), 100)
		n.bold = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return n
}

// Elapsed is how long the story has taken, as text.
func (n *Narrator) Elapsed() string { return Seconds(time.Since(n.begun)) }

// Scene begins a scene, with the time since the beginning at the right.
func (n *Narrator) Scene(title string) {
	n.number++
	n.Line("")
	left := fmt.Sprintf("%2d/%d  %s", n.number, n.scenes, title)
	n.Line("%s", n.emphasized(n.apart(left, n.Elapsed())))
	n.Line("%s", strings.Repeat("-", n.width))
}

// Say prints sentences, folded at blanks.
func (n *Narrator) Say(format string, args ...any) { n.Wrap("", fmt.Sprintf(format, args...)) }

// Wrap prints words in lines that begin with the indent.
func (n *Narrator) Wrap(indent, text string) {
	line := indent
	for word := range strings.FieldsSeq(text) {
		if len(line) > len(indent) && len(line)+1+len(word) > n.width {
			n.Line("%s", line)
			line = indent
		}
		if len(line) > len(indent) {
			line += " "
		}
		line += word
	}
	n.Line("%s", line)
}

// Did prints a step that was done: what, to whom, and how long it took.
func (n *Narrator) Did(what, detail string, took time.Duration) {
	n.Line("%s", n.apart(fmt.Sprintf("  %-26s %s", what, detail), fmt.Sprintf("%d ms", took.Milliseconds())))
}

// Doing prints a step that takes a while before it is done, does it, and tells how long it took.
func (n *Narrator) Doing(what string, do func() error) error {
	begun := time.Now()
	n.print("  %s ...", what)
	err := do()
	if err != nil {
		n.Line("")
		return err
	}
	n.Line(" %s", Seconds(time.Since(begun)))
	return nil
}

// Command prints a prompt with a command, and its output, as in a terminal. Long lines are folded: the command's so that a
// shell reads it as it was.
func (n *Narrator) Command(prompt, command, output string) {
	lines := continued(command, n.width-2-len(prompt))
	n.Line("  %s", n.emphasized(prompt+lines[0]))
	for _, line := range lines[1:] {
		n.Line("  %s", n.emphasized(strings.Repeat(" ", len(prompt)+2)+line))
	}
	n.Output("    ", output)
}

// Output prints text as it is, but indented, and folded where it is too wide.
func (n *Narrator) Output(indent, text string) {
	if text == "" {
		return
	}
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		for _, part := range folded(line, n.width-len(indent)) {
			n.Line("%s", strings.TrimRight(indent+part, " "))
		}
	}
}

// OK prints a claim that was checked and holds.
func (n *Narrator) OK(claim string) { n.Line("  ok  %s", claim) }

// Line prints a line as it is.
func (n *Narrator) Line(format string, args ...any) { n.print(format+"\n", args...) }

func (n *Narrator) print(format string, args ...any) {
	if _, err := fmt.Fprintf(n.out, format, args...); err != nil {
		n.unheard()
	}
}

func (n *Narrator) emphasized(text string) string {
	if !n.bold {
		return text
	}
	return "\x1b[1m" + text + "\x1b[0m"
}

// apart puts one text at the left and one at the right of a line.
func (n *Narrator) apart(left, right string) string {
	return left + strings.Repeat(" ", max(1, n.width-len(left)-len(right))) + right
}

// columnGap matches the blanks between the columns of a table.
var columnGap = regexp.MustCompile(`(\S)   +`)

// folded cuts a line into parts of at most so many bytes, at a blank if there is one not far from the
// end; the parts after the first are indented. What is cut is no row of a table any more, so wide gaps are closed first.
func folded(line string, width int) []string {
	var parts []string
	if len(line) > width {
		line = columnGap.ReplaceAllString(line, "$1  ")
	}
	for len(line) > width {
		at := strings.LastIndexByte(line[:width+1], ' ')
		if at < width/2 {
			at = width
		}
		parts = append(parts, line[:at])
		line = "  " + strings.TrimPrefix(line[at:], " ")
	}
	return append(parts, line)
}

// continued cuts a command at blanks outside of quotes into lines of at most so many bytes, if there are
// such blanks, with the backslashes that a shell wants.
func continued(command string, width int) []string {
	var lines []string
	for len(command) > width {
		at := lastBlank(command, width-len(" \\"))
		if at <= 0 {
			break
		}
		lines = append(lines, command[:at]+" \\")
		command = command[at+1:]
		if len(lines) == 1 {
			width -= 2 // the next lines are indented
		}
	}
	return append(lines, command)
}

// lastBlank is the place of the last blank at or before end that is not in single quotes; -1 if there is none.
func lastBlank(command string, end int) int {
	last, quoted := -1, false
	for at := 0; at < len(command) && at <= end; at++ {
		switch {
		case command[at] == '\'':
			quoted = !quoted
		case command[at] == ' ' && !quoted:
			last = at
		}
	}
	return last
}

// plain matches words that no shell reads as anything else.
var plain = regexp.MustCompile(`^[-+=:,./@%_A-Za-z0-9]+$`)

// Quoted is a command as one types it in a shell.
func Quoted(command ...string) string {
	words := make([]string, len(command))
	for i, word := range command {
		if words[i] = word; !plain.MatchString(word) {
			words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

// Seconds is a duration as it is printed everywhere.
func Seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// Progress returns a writer for what others tell in lines of their own while they work; it may be used by several
// goroutines. What is not a whole line waits for its end.
func (n *Narrator) Progress(indent string) io.Writer { return &progress{narrator: n, indent: indent} }

type progress struct {
	narrator *Narrator
	indent   string
	mutex    sync.Mutex
	pending  []byte
}

// Write prints the lines that are whole.
func (p *progress) Write(text []byte) (int, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.pending = append(p.pending, text...)
	for {
		line, rest, whole := bytes.Cut(p.pending, []byte("\n"))
		if !whole {
			return len(text), nil
		}
		p.narrator.Output(p.indent, string(line)+"\n")
		p.pending = rest
	}
}
