package librbd

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// A monitor is one entry of the option mon_host.
type monitor struct {
	entry     string   // as it stands there: it can be used as a mon_host of its own
	endpoints []string // host:port, to be tried in this order
}

// The ports of monitors that have none in their address (src/msg/msg_types.h).
const (
	portV2 = "3300"
	portV1 = "6789"
)

// parseMonitors takes the option mon_host apart: entries are separated by comma,
// semicolon or blank, and an entry in brackets with v1: or v2: in it is one
// monitor with several addresses. Brackets also stand around an IPv6 address.
func parseMonitors(option string) []monitor {
	var monitors []monitor
	start, depth := 0, 0
	flush := func(end int) {
		if entry := strings.TrimSpace(option[start:end]); entry != "" {
			monitors = append(monitors, monitor{entry, endpoints(entry)})
		}
		start = end + 1
	}
	for at, letter := range option {
		switch {
		case letter == '[':
			depth++
		case letter == ']':
			depth--
		case depth == 0 && strings.ContainsRune(",; \t\n", letter):
			flush(at)
		}
	}
	if start < len(option) {
		flush(len(option))
	}
	return monitors
}

// endpoints returns where a monitor's entry can be reached.
func endpoints(entry string) []string {
	list, grouped := strings.CutPrefix(entry, "[")
	if grouped && (strings.HasPrefix(list, "v1:") || strings.HasPrefix(list, "v2:")) {
		var all []string
		for address := range strings.SplitSeq(strings.TrimSuffix(list, "]"), ",") {
			all = append(all, endpoints(strings.TrimSpace(address))...)
		}
		return all
	}
	ports := []string{portV2, portV1}
	if rest, found := strings.CutPrefix(entry, "v2:"); found {
		entry, ports = rest, []string{portV2}
	} else if rest, found := strings.CutPrefix(entry, "v1:"); found {
		entry, ports = rest, []string{portV1}
	}
	entry, _, _ = strings.Cut(entry, "/") // the nonce
	if host, port, err := net.SplitHostPort(entry); err == nil {
		return []string{net.JoinHostPort(host, port)}
	}
	host := strings.TrimSuffix(strings.TrimPrefix(entry, "["), "]")
	var all []string
	for _, port := range ports {
		all = append(all, net.JoinHostPort(host, port))
	}
	return all
}

// answering returns the monitors that say what every Ceph daemon says first, the
// word "ceph" and a version, before ctx ends. They may be without quorum.
func answering(ctx context.Context, monitors []monitor) []monitor {
	answers := make([]bool, len(monitors))
	var group sync.WaitGroup
	for i, one := range monitors {
		group.Go(func() {
			for _, endpoint := range one.endpoints {
				if answers[i] = greets(ctx, endpoint); answers[i] {
					return
				}
			}
		})
	}
	group.Wait()
	var reached []monitor
	for i, one := range monitors {
		if answers[i] {
			reached = append(reached, one)
		}
	}
	return reached
}

// greeting is how the banners of both protocols begin.
const greeting = "ceph v"

// greets reports whether a Ceph daemon listens at an endpoint.
func greets(ctx context.Context, endpoint string) bool {
	const each = time.Second
	dialer := net.Dialer{Timeout: each}
	connection, err := dialer.DialContext(ctx, "tcp", endpoint)
	if err != nil {
		return false
	}
	defer connection.Close()
	if connection.SetDeadline(time.Now().Add(each)) != nil {
		return false
	}
	banner := make([]byte, len(greeting))
	_, err = io.ReadFull(connection, banner)
	return err == nil && string(banner) == greeting
}
