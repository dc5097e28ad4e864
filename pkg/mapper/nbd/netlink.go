package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// What the kernel's nbd is told by generic netlink (include/uapi/linux/nbd-netlink.h).
const (
	family             = "nbd"
	commandDisconnect  = 2
	commandReconfigure = 3
	attributeIndex     = 1
	attributeBytes     = 2
	attributeBackend   = 10
)

// netlinkDisconnect has the kernel end the service of a device, as `rbd-nbd unmap` does. rbd-nbd
// itself looks for the process, which may be in a PID namespace that is not seen from here. A device
// that nobody serves any more is disconnected, too.
func netlinkDisconnect(number int) error {
	err := tell(commandDisconnect, indexOf(number))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return nil // there is no such device any more; whether it is gone the caller sees
	}
	return err
}

// netlinkResize tells the kernel how large a device is. rbd-nbd does it when the image grows, but
// without the cookie, and a kernel that knows one refuses that (rbd-nbd 16.2 on Linux 7.2; seen).
func netlinkResize(number int, cookie string, bytes int64) error {
	return tell(commandReconfigure, slices.Concat(indexOf(number),
		attribute(attributeBytes, binary.NativeEndian.AppendUint64(nil, uint64(bytes))),
		attribute(attributeBackend, []byte(cookie+"\x00"))))
}

func indexOf(number int) []byte {
	return attribute(attributeIndex, binary.NativeEndian.AppendUint32(nil, uint32(number)))
}

// tell sends a command with attributes to the kernel's nbd.
func tell(command byte, attributes []byte) error {
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(socket) }()
	if err := unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return err
	}
	answer, err := ask(socket, unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, attribute(unix.CTRL_ATTR_FAMILY_NAME, []byte(family+"\x00")))
	if err != nil {
		return fmt.Errorf("ask for the kernel's nbd: %w", err)
	}
	id, found := find(answer, unix.CTRL_ATTR_FAMILY_ID)
	if !found || len(id) < 2 {
		return errors.New("the kernel does not say how its nbd is told")
	}
	_, err = ask(socket, binary.NativeEndian.Uint16(id), command, attributes)
	return err
}

// attribute is one of a message (struct nlattr), with what fills it up to four bytes.
func attribute(kind uint16, value []byte) []byte {
	text := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	text = binary.NativeEndian.AppendUint16(text, kind)
	text = append(text, value...)
	return append(text, make([]byte, (4-len(text)%4)%4)...)
}

// headers are those of a message to a family: struct nlmsghdr and struct genlmsghdr.
const headers = unix.SizeofNlMsghdr + 4

// ask sends a command with attributes and returns the attributes of the answer, if there are some.
func ask(socket int, to uint16, command byte, with []byte) ([]byte, error) {
	message := binary.NativeEndian.AppendUint32(nil, uint32(headers+len(with)))
	message = binary.NativeEndian.AppendUint16(message, to)
	message = binary.NativeEndian.AppendUint16(message, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	message = append(message, make([]byte, 8)...) // sequence and port: the kernel's answers come in order
	message = append(message, command, 1, 0, 0)
	message = append(message, with...)
	if err := unix.Sendto(socket, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var attributes []byte
	buffer := make([]byte, 16<<10)
	for {
		n, err := unix.Read(socket, buffer)
		if err != nil {
			return nil, err
		}
		for rest := buffer[:n]; len(rest) >= unix.SizeofNlMsghdr; {
			length := int(binary.NativeEndian.Uint32(rest))
			if length < unix.SizeofNlMsghdr || length > len(rest) {
				return nil, errors.New("the kernel's answer is not whole")
			}
			if binary.NativeEndian.Uint16(rest[4:]) == unix.NLMSG_ERROR {
				errno := -int32(binary.NativeEndian.Uint32(rest[unix.SizeofNlMsghdr:]))
				if errno != 0 {
					return nil, unix.Errno(errno)
				}
				return attributes, nil
			}
			attributes = append(attributes, rest[min(headers, length):length]...)
			rest = rest[min((length+3)&^3, len(rest)):]
		}
	}
}

// find returns the value of an attribute.
func find(attributes []byte, kind uint16) ([]byte, bool) {
	for len(attributes) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(attributes))
		if length < unix.SizeofNlAttr || length > len(attributes) {
			return nil, false
		}
		if binary.NativeEndian.Uint16(attributes[2:]) == kind {
			return attributes[unix.SizeofNlAttr:length], true
		}
		attributes = attributes[min((length+3)&^3, len(attributes)):]
	}
	return nil, false
}
