package krbd

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
)

// The ports of monitors that are written without one (CEPH_MON_PORT_IANA and
// CEPH_MON_PORT_LEGACY in Ceph's include/ceph_fs.h).
const (
	portV2 = 3300
	portV1 = 6789
)

// v2Since is the first Linux with version 2 of the messenger.
var v2Since = version{5, 11}

// defaultMode is the one that `rbd map` of recent Ceph takes.
const defaultMode = "prefer-crc"

// monitors returns where the kernel is to look for monitors, and the ms_mode that fits; empty:
// none is to be given. The kernel takes addresses alone, so names are looked up here.
func (m *Mapper) monitors(ctx context.Context, request mapper.Request) (mode string, addresses []string, err error) {
	text, err := monHost(request)
	if err != nil {
		return "", nil, err
	}
	endpoints, err := parseMonHost(text)
	if err != nil {
		return "", nil, err
	}
	mode = valueOf(request.Options, optionMode)
	if mode == "" {
		mode = m.modeFor(endpoints)
	}
	v2 := mode != "" && mode != "legacy"
	for _, one := range endpoints {
		port := one.port(v2)
		if port == 0 {
			continue
		}
		found, err := one.resolve(ctx, port)
		if err != nil {
			return "", nil, err
		}
		addresses = append(addresses, found...)
	}
	if len(addresses) == 0 {
		return "", nil, fmt.Errorf("monitors %q: none has a port for ms_mode=%s: %w", text, mode, fault.Invalid)
	}
	slices.Sort(addresses)
	return mode, slices.Compact(addresses), nil
}

// modeFor chooses version 2 of the messenger where kernel and monitors have it.
func (m *Mapper) modeFor(endpoints []endpoint) string {
	running, ok := parseVersion(m.kernel.release())
	if !ok || running.before(v2Since) || !slices.ContainsFunc(endpoints, func(e endpoint) bool { return e.v2 != 0 }) {
		return ""
	}
	return defaultMode
}

// monHost returns the setting mon_host of the request's cluster.
func monHost(request mapper.Request) (string, error) {
	if request.Access.Monitors != "" {
		return request.Access.Monitors, nil
	}
	settings, err := request.Access.Settings()
	if err != nil {
		return "", err
	}
	text := setting(settings, "mon_host", "global", "client", "client."+request.Access.User)
	if text == "" {
		return "", fmt.Errorf("cluster %s: its ceph.conf says no mon_host: %w", request.Access.Cluster, fault.Unavailable)
	}
	return text, nil
}

// setting reads a setting of a ceph.conf. The last of the sections that has it counts. Names
// are the same with blanks, dashes and underscores, and a backslash at the end of a line goes on with the next one.
func setting(content []byte, name string, sections ...string) string {
	values := make(map[string]string)
	section, joined := "", ""
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		line := joined + strings.TrimSpace(lines.Text())
		if joined = ""; strings.HasSuffix(line, `\`) {
			joined = strings.TrimSuffix(line, `\`)
			continue
		}
		if cut := strings.IndexAny(line, "#;"); cut == 0 || cut > 0 && line[cut] == '#' {
			line = strings.TrimSpace(line[:cut])
		}
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") && !strings.Contains(line, "=") {
			section = strings.TrimSpace(line[1 : len(line)-1])
			continue
		}
		key, value, found := strings.Cut(line, "=")
		key = strings.NewReplacer(" ", "_", "-", "_").Replace(strings.TrimSpace(key))
		if found && key == name {
			values[section] = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	last := ""
	for _, section := range sections {
		if value, ok := values[section]; ok {
			last = value
		}
	}
	return last
}

// An endpoint is a host with the ports for the two versions of the messenger; 0: it has none.
type endpoint struct {
	host   string
	v1, v2 uint16
}

func (e endpoint) port(v2 bool) uint16 {
	if v2 {
		return e.v2
	}
	return e.v1
}

// resolve returns the addresses in the kernel's notation.
func (e endpoint) resolve(ctx context.Context, port uint16) ([]string, error) {
	if address, err := netip.ParseAddr(e.host); err == nil {
		return []string{netip.AddrPortFrom(address, port).String()}, nil
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", e.host)
	if err != nil {
		return nil, fmt.Errorf("look up the monitor %s: %w: %w", e.host, fault.Unavailable, err)
	}
	var addresses []string
	for _, address := range found {
		addresses = append(addresses, netip.AddrPortFrom(address.Unmap(), port).String())
	}
	return addresses, nil
}

// parseMonHost reads the setting mon_host: monitors with commas, semicolons or blanks between
// them, each HOST, HOST:PORT, v1:HOST:PORT, v2:HOST:PORT or a list of these in brackets, and
// each perhaps with /NONCE.
func parseMonHost(text string) ([]endpoint, error) {
	var endpoints []endpoint
	separators := func(r rune) bool { return strings.ContainsRune(",; \t", r) }
	for word := range strings.FieldsFuncSeq(text, separators) {
		one, err := parseEndpoint(unbracket(word))
		if err != nil {
			return nil, fmt.Errorf("monitor %q: %w: %w", word, fault.Invalid, err)
		}
		endpoints = append(endpoints, one)
	}
	if len(endpoints) == 0 {
		return nil, fmt.Errorf("no monitor is named: %w", fault.Invalid)
	}
	return endpoints, nil
}

// unbracket takes the brackets of a list away, and leaves those of an IPv6 address.
func unbracket(word string) string {
	if strings.HasPrefix(word, "[v") || strings.HasPrefix(word, "[[") {
		word = word[1:]
	}
	if strings.Count(word, "]") > strings.Count(word, "[") {
		word = strings.TrimSuffix(word, "]")
	}
	return word
}

func parseEndpoint(word string) (endpoint, error) {
	word, _, _ = strings.Cut(word, "/")
	kind := ""
	for _, prefix := range []string{"v1:", "v2:", "any:"} {
		if rest, found := strings.CutPrefix(word, prefix); found {
			kind, word = prefix, rest
		}
	}
	host, port, err := splitPort(word)
	if err != nil {
		return endpoint{}, err
	}
	one := endpoint{host: host}
	switch {
	case kind == "v1:":
		one.v1 = orElse(port, portV1)
	case kind == "v2:":
		one.v2 = orElse(port, portV2)
	case port == 0:
		one.v1, one.v2 = portV1, portV2
	case port == portV2:
		one.v2 = port
	case port == portV1:
		one.v1 = port
	default: // Ceph tries both on it
		one.v1, one.v2 = port, port
	}
	return one, nil
}

func orElse(port, other uint16) uint16 {
	if port == 0 {
		return other
	}
	return port
}

// splitPort takes HOST, HOST:PORT and [HOST]:PORT apart.
func splitPort(word string) (host string, port uint16, err error) {
	if address, err := netip.ParseAddr(strings.Trim(word, "[]")); err == nil {
		return checkHost(address.String(), 0)
	}
	host, digits, err := net.SplitHostPort(word)
	if err != nil {
		return checkHost(word, 0)
	}
	number, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port %q is none", digits)
	}
	return checkHost(host, uint16(number))
}

func checkHost(host string, port uint16) (string, uint16, error) {
	if _, err := netip.ParseAddr(host); err != nil &&
		(host == "" || strings.Trim(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") != "") {
		return "", 0, fmt.Errorf("host %q is none", host)
	}
	return host, port, nil
}
