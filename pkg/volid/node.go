package volid

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// MaxNode is the longest node ID in bytes. The specification allows 256 and older
// releases of it 192.
const MaxNode = 192

// A Node is a machine on which volumes are used. Its String is the node ID that
// NodeGetInfo answers and ControllerPublishVolume is asked with.
//
// The ID is NAME:CHECKSUM, where CHECKSUM is the first 8 hexadecimal digits of the SHA-256
// of "rbd-csi node " and NAME. The controller keeps no list of nodes, and so can
// still tell an ID that no node of ours has ever given from a real one.
type Node struct {
	Name string
}

// String returns NAME:CHECKSUM, which [ParseNode] reads.
func (n Node) String() string {
	sum := sha256.Sum256([]byte("rbd-csi node " + n.Name))
	return fmt.Sprintf("%s:%x", n.Name, sum[:4])
}

// Check returns an Invalid error unless n's name can be that of a node: characters
// of A-Z a-z 0-9 . _ -, and short enough for [MaxNode].
func (n Node) Check() error {
	const longest = MaxNode - len(":01234567")
	odd := strings.ContainsFunc(n.Name, func(r rune) bool { return r >= utf8.RuneSelf || !isPlain(byte(r)) })
	if n.Name == "" || len(n.Name) > longest || odd {
		return fmt.Errorf("node %s: allowed are 1 to %d characters of A-Z a-z 0-9 . _ -: %w",
			quote(n.Name), longest, fault.Invalid)
	}
	return nil
}

// ParseNode reads what [Node.String] writes. Anything else is NotFound, since no node
// can have that ID.
func ParseNode(id string) (Node, error) {
	colon := strings.LastIndexByte(id, ':')
	if colon < 0 {
		return Node{}, fmt.Errorf("node ID %s is not of the form NAME:CHECKSUM: %w", quote(id), fault.NotFound)
	}
	node := Node{Name: id[:colon]}
	if node.Check() != nil || node.String() != id {
		return Node{}, fmt.Errorf("node ID %s was given by no node of this driver: %w", quote(id), fault.NotFound)
	}
	return node, nil
}
