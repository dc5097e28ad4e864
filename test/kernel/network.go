package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// A Network is where guests have their interfaces: a bridge of this machine, which is there already.
type Network struct {
	// Bridge is its name.
	Bridge string
	// Machine is the bridge's own IPv4 address, in a subnet of 24 bits. Guest N has the address whose last number is 10+N.
	Machine string
	// Tap begins the names of the guests' interfaces on this machine; guest N's ends with N.
	Tap string
}

// ownNetwork is that of the tests in this package, which have a namespace for it (see settle).
var ownNetwork = Network{Bridge: "br0", Machine: machineAddress, Tap: "tap"}

// Address returns the address of a guest.
func (n Network) Address(number int) string {
	address := netip.MustParseAddr(n.Machine).As4()
	address[3] = byte(10 + number)
	return netip.AddrFrom4(address).String()
}

// Interface returns the name of a guest's interface on this machine.
func (n Network) Interface(number int) string { return n.Tap + strconv.Itoa(number) }

func (n Network) agent(number int) string {
	return net.JoinHostPort(n.Address(number), strconv.Itoa(agentPort))
}

// connect makes a guest's interface and connects it to the bridge.
func (n Network) connect(number int) error {
	name := n.Interface(number)
	if err := ip("tuntap add dev %s mode tap", name); err != nil {
		return err
	}
	return ip("link set %s master %s up", name, n.Bridge)
}

func (n Network) remove(number int) error { return ip("link del %s", n.Interface(number)) }

// ip runs the command of that name, whose arguments have no spaces in them.
func ip(format string, values ...any) error {
	return run("ip", strings.Fields(fmt.Sprintf(format, values...))...)
}
