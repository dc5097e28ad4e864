package ceph

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Each cluster has a block of ports to itself, below the range from which Linux takes
// the ports of outgoing connections (32768 upwards by default):
//
//	base          held by the supervisor as the claim to the block, never accepted from
//	base+1 to +6  the monitors, two each (msgr v2, msgr v1)
//	base+8 to +63 for the OSDs (eight each) and the manager, which try one after
//	              the other until one is free (ms_bind_port_min, ms_bind_port_max)
const (
	firstPort   = 20032
	portBlock   = 64
	portBlocks  = 198
	monitorPort = 1
	daemonPort  = 8
)

// A claim is a block of ports that is ours until it is released or the process ends.
type claim struct {
	base     int
	listener net.Listener
}

// claimPorts takes a free block of ports on address. A listening socket on the
// block's first port is the claim: the kernel gives it to one process at a time and takes
// it back when that process ends, however it ends. The search begins anywhere, so that
// clients of a cluster that is gone do not find its successor at the same address.
func claimPorts(address string) (*claim, error) {
	start := rand.IntN(portBlocks)
	var last error
	for i := range portBlocks {
		base := firstPort + (start+i)%portBlocks*portBlock
		listener, err := claimBlock(address, base)
		if err == nil {
			return &claim{base: base, listener: listener}, nil
		}
		last = err
	}
	return nil, fmt.Errorf("find free ports on %s: %w: %w", address, fault.Exhausted, last)
}

// claimBlock claims the block at base unless another cluster has it or a stranger uses
// one of its ports.
func claimBlock(address string, base int) (net.Listener, error) {
	claimed, err := listen(address, base)
	if err != nil {
		return nil, err
	}
	for port := base + 1; port < base+portBlock; port++ {
		tried, err := listen(address, port)
		if err != nil {
			claimed.Close()
			return nil, err
		}
		tried.Close()
	}
	return claimed, nil
}

func listen(address string, port int) (net.Listener, error) {
	return net.Listen("tcp4", net.JoinHostPort(address, strconv.Itoa(port)))
}

// monitor returns the address of the monitor with this index in the notation of
// mon_host, for both versions of the messenger.
func (c *claim) monitor(address string, index int) string {
	v2 := c.base + monitorPort + 2*index
	return fmt.Sprintf("[v2:%s:%d,v1:%s:%d]", address, v2, address, v2+1)
}

// daemonPorts returns the first and the last port for OSDs and manager.
func (c *claim) daemonPorts() (first, last int) {
	return c.base + daemonPort, c.base + portBlock - 1
}

func (c *claim) release() { c.listener.Close() }
