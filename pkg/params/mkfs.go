package params

import (
	"strings"
	"unicode"
)

// mkfsOption is a single-letter option of mkfs. Those that are not in the table of a
// filesystem are refused, so a new one is a decision and not an accident.
type mkfsOption struct {
	// takes says that an argument follows.
	takes bool
	// refused is the reason why the option is not allowed, or "".
	refused string
	// parts are the reasons against elements of the argument, a comma list.
	parts map[string]string
}

// Reasons against options.
const (
	ownsUUID   = "the driver chooses the UUID, by which it knows its own filesystem again"
	ownsForce  = "the driver decides when a device may be written over"
	ownsDevice = "a volume has one device, and the driver names it"
	ownsType   = "the filesystem is chosen by fsType"
	readsFiles = "it uses files of the node"
	makesNone  = "it does not make a whole filesystem"
	tooSlow    = "it reads the whole device"
)

// mkfsTable has the options of mke2fs 1.47 and of mkfs.xfs 6.1 that make sense for a
// volume, and those for which there is a reason to tell why not.
var mkfsTable = map[string]map[byte]mkfsOption{
	Ext4: {
		'b': {takes: true}, 'C': {takes: true}, 'D': {}, 'e': {takes: true},
		'E': {takes: true, parts: map[string]string{"offset": "the filesystem has to begin where the device does"}},
		'g': {takes: true}, 'G': {takes: true}, 'i': {takes: true}, 'I': {takes: true}, 'j': {},
		'J': {takes: true, parts: map[string]string{"device": ownsDevice}},
		'K': {}, 'L': {takes: true}, 'm': {takes: true}, 'N': {takes: true},
		'O': {takes: true, parts: map[string]string{"journal_dev": makesNone}},
		'q': {}, 'T': {takes: true}, 'v': {},
		'c': {refused: tooSlow}, 'd': {takes: true, refused: readsFiles}, 'F': {refused: ownsForce},
		'l': {takes: true, refused: readsFiles}, 'n': {refused: makesNone}, 'S': {refused: makesNone},
		't': {takes: true, refused: ownsType}, 'U': {takes: true, refused: ownsUUID}, 'V': {refused: makesNone},
		'z': {takes: true, refused: readsFiles},
	},
	XFS: {
		'b': {takes: true},
		'd': {takes: true, parts: map[string]string{"name": ownsDevice, "file": ownsDevice}},
		'i': {takes: true}, 'K': {},
		'l': {takes: true, parts: map[string]string{"logdev": ownsDevice, "name": ownsDevice, "file": ownsDevice}},
		'L': {takes: true},
		'm': {takes: true, parts: map[string]string{"uuid": ownsUUID}},
		'n': {takes: true}, 'q': {}, 's': {takes: true},
		'c': {takes: true, refused: readsFiles}, 'f': {refused: ownsForce}, 'N': {refused: makesNone},
		'p': {takes: true, refused: readsFiles}, 'r': {takes: true, refused: ownsDevice}, 'V': {refused: makesNone},
	},
}

// splitMkfs splits text at blanks, which includes line ends, and checks what can be without knowing
// the filesystem: it must be right for one of them. There is no quoting.
func splitMkfs(text string) ([]string, error) {
	if len(text) > maxList {
		return nil, invalid("%d bytes where at most %d are allowed", len(text), maxList)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) && !strings.ContainsRune("\t\r\n", r) }) {
		return nil, invalid("characters that cannot be printed are not allowed")
	}
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil, nil
	}
	err := CheckMkfs(Ext4, words)
	if err != nil && CheckMkfs(XFS, words) == nil {
		return words, nil
	}
	return words, err
}

// CheckMkfs returns an Invalid error unless words are arguments that may stand before the
// device in a call of mkfs for a filesystem of type fsType (Ext4 or XFS). Refused are what
// the driver decides itself (force, UUID, type, device), what reads or writes files of the
// node, and options that are not known.
func CheckMkfs(fsType string, words []string) error {
	options := mkfsTable[fsType]
	for i := 0; i < len(words); i++ {
		word := words[i]
		if strings.Contains(word, "/") {
			return invalid("%q: paths are not allowed, because %s", word, ownsDevice)
		}
		if len(word) < 2 || word[0] != '-' || word[1] == '-' {
			return invalid("%q is not a single-letter option of mkfs.%s", word, fsType)
		}
		next, err := checkLetters(fsType, options, words, i)
		if err != nil {
			return err
		}
		i = next
	}
	return nil
}

// checkLetters checks one word of options, such as "-q", "-m0" or "-qm 0", as getopt
// reads them, and returns the index of the last word that belongs to it.
func checkLetters(fsType string, options map[byte]mkfsOption, words []string, i int) (last int, err error) {
	word := words[i]
	for at := 1; at < len(word); at++ {
		option, known := options[word[at]]
		switch {
		case !known:
			return i, invalid("%q is not an option of mkfs.%s that is allowed", "-"+word[at:at+1], fsType)
		case option.refused != "":
			return i, invalid("-%c is not allowed: %s", word[at], option.refused)
		case !option.takes:
			continue
		case at+1 < len(word):
			return i, option.checkArgument(word[at], word[at+1:])
		case i+1 < len(words):
			return i + 1, option.checkArgument(word[at], words[i+1])
		default:
			return i, invalid("-%c lacks its argument", word[at])
		}
	}
	return i, nil
}

func (o mkfsOption) checkArgument(letter byte, argument string) error {
	if strings.Contains(argument, "/") {
		return invalid("-%c %q: paths are not allowed, because %s", letter, argument, ownsDevice)
	}
	for part := range strings.SplitSeq(argument, ",") {
		name, _, _ := strings.Cut(part, "=")
		if reason := o.parts[strings.ToLower(name)]; reason != "" {
			return invalid("-%c %s is not allowed: %s", letter, name, reason)
		}
	}
	return nil
}
