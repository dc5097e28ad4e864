// Package cluster reads where Ceph clusters are and as whom to ask them.
//
// A cluster is a directory, and the directory's name is the cluster's name in
// StorageClasses and volume handles. It holds the two files that Ceph people already have:
//
//	/etc/rbd-csi/clusters/NAME/ceph.conf
//	/etc/rbd-csi/clusters/NAME/keyring
//
// or what Rook keeps for its clients, under the names that it has there, so that nobody copies
// addresses of monitors, which Rook moves:
//
//	/etc/rbd-csi/clusters/NAME/mon-endpoints   the ConfigMap rook-ceph-mon-endpoints, key data
//	/etc/rbd-csi/clusters/NAME/userID          the Secret rook-csi-rbd-provisioner or -node
//	/etc/rbd-csi/clusters/NAME/userKey         the same
//
// and perhaps a ceph.conf beside them for other settings; where the monitors are then says
// mon-endpoints. In Kubernetes each is mounted. The files are read at each question,
// because Kubernetes replaces them when the Secret or the ConfigMap changes.
package cluster

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// Access is how to reach one cluster, and as whom.
type Access struct {
	Cluster string // the cluster's name
	Conf    string // path of its ceph.conf; empty: it has none
	// Monitors is where they are, as the setting mon_host has it, whatever Conf says;
	// empty: as Conf says.
	Monitors string
	params.Credentials
}

// Settings returns what the cluster's ceph.conf says, and nothing if it has none.
func (a Access) Settings() ([]byte, error) {
	if a.Conf == "" {
		return nil, nil
	}
	content, err := os.ReadFile(a.Conf)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w: %w", a.Cluster, fault.Unavailable, err)
	}
	return content, nil
}

// A Directory holds a directory for each cluster.
type Directory string

// Names returns the names of the clusters, sorted. A missing directory has none.
func (d Directory) Names() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list clusters: %w: %w", fault.Unavailable, err)
	}
	var names []string
	for _, entry := range entries {
		if d.configured(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// Access returns how to reach the named cluster as the given user, or as the
// user of the cluster's own keyring when no user is given.
//
// It returns fault.Invalid when there is no such cluster (NotFound would let the
// deletion of a volume there succeed), fault.Unavailable when its monitors cannot be read, and
// fault.Unauthenticated when it holds no user that can be chosen.
func (d Directory) Access(name string, as params.Credentials) (Access, error) {
	if !d.configured(name) {
		names, err := d.Names()
		if err != nil {
			return Access{}, err
		}
		return Access{}, fmt.Errorf("cluster %q is not configured, there is %s: %w", name, listed(names), fault.Invalid)
	}
	access := Access{Cluster: name, Credentials: as}
	if d.has(name, confFile) {
		access.Conf = d.path(name, confFile)
	}
	var err error
	if access.Monitors, err = d.monitors(name); err != nil {
		return Access{}, fmt.Errorf("cluster %s: %w", name, err)
	}
	if as.User != "" {
		return access, nil
	}
	if access.Credentials, err = d.credentials(name); err != nil {
		return Access{}, fmt.Errorf("cluster %s: %w", name, err)
	}
	return access, nil
}

// The files of a cluster.
const (
	confFile     = "ceph.conf"
	keyringFile  = "keyring"
	monitorsFile = "mon-endpoints"
	userFile     = "userID" // these two are also the keys of a class's Secret
	keyFile      = "userKey"
)

// configured reports whether there is a cluster of that name, without a look at the others.
func (d Directory) configured(name string) bool {
	return name == filepath.Base(name) && !strings.HasPrefix(name, ".") && (d.has(name, confFile) || d.has(name, monitorsFile))
}

func (d Directory) path(name, file string) string { return filepath.Join(string(d), name, file) }

func (d Directory) has(name, file string) bool {
	_, err := os.Stat(d.path(name, file))
	return err == nil
}

// monitors returns the setting mon_host, or nothing if the cluster has no mon-endpoints.
func (d Directory) monitors(name string) (string, error) {
	content, err := os.ReadFile(d.path(name, monitorsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", fault.Unavailable, err)
	}
	monitors, err := readEndpoints(string(content))
	if err != nil {
		return "", fmt.Errorf("%s: %w", monitorsFile, err)
	}
	return monitors, nil
}

// readEndpoints turns NAME=HOST:PORT,NAME=HOST:PORT, as Rook writes it, into HOST:PORT,HOST:PORT.
// Ceph takes the protocol from the port, which Rook writes as 6789, or as 3300 where it
// wants version 2 alone. The order is that of the addresses, because Rook's is
// another one each time.
func readEndpoints(content string) (string, error) {
	var addresses []string
	for entry := range strings.SplitSeq(strings.TrimSpace(content), ",") {
		if entry == "" && len(addresses) == 0 {
			continue
		}
		name, address, found := strings.Cut(entry, "=")
		host, port, err := net.SplitHostPort(address)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if !found || name == "" || err != nil || !isHost(host) {
			return "", fmt.Errorf("%q is not NAME=HOST:PORT: %w", entry, fault.Unavailable)
		}
		addresses = append(addresses, net.JoinHostPort(host, port))
	}
	if len(addresses) == 0 {
		return "", fmt.Errorf("it names no monitor: %w", fault.Unavailable)
	}
	slices.Sort(addresses)
	return strings.Join(slices.Compact(addresses), ","), nil
}

// isHost reports whether a text is an address or can be a host's name.
func isHost(text string) bool {
	if address, err := netip.ParseAddr(text); err == nil {
		return address.Zone() == ""
	}
	return text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") == ""
}

// credentials returns the cluster's own user.
func (d Directory) credentials(name string) (params.Credentials, error) {
	var none params.Credentials
	ring, pair := d.has(name, keyringFile), d.has(name, userFile) || d.has(name, keyFile)
	switch {
	case ring && pair:
		return none, fmt.Errorf("both %s and %s, %s are there, one is wanted: %w", keyringFile, userFile, keyFile, fault.Unauthenticated)
	case pair:
		return d.pair(name)
	}
	content, err := os.ReadFile(d.path(name, keyringFile))
	if err != nil {
		return none, fmt.Errorf("no secret in the request, no keyring and no userID: %w: %w", fault.Unauthenticated, err)
	}
	credentials, err := readKeyring(content)
	if err != nil {
		return none, fmt.Errorf("%s: %w", keyringFile, err)
	}
	return credentials, nil
}

// pair reads userID and userKey.
func (d Directory) pair(name string) (params.Credentials, error) {
	secrets := map[string]string{}
	for _, file := range []string{userFile, keyFile} {
		content, err := os.ReadFile(d.path(name, file))
		if err != nil {
			return params.Credentials{}, fmt.Errorf("%w: %w", fault.Unauthenticated, err)
		}
		secrets[file] = string(content)
	}
	credentials, err := params.ParseSecrets(secrets)
	if err == nil && !credentials.Given() {
		err = errors.New("they are empty")
	}
	if err != nil {
		return params.Credentials{}, fmt.Errorf("%s, %s: %w: %w", userFile, keyFile, fault.Unauthenticated, err)
	}
	return credentials, nil
}

func listed(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// readKeyring returns the one user of a keyring, the format that
// `ceph auth get` prints: a section [client.NAME] with a line key = BASE64.
func readKeyring(content []byte) (params.Credentials, error) {
	var users []params.Credentials
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if section, ok := strings.CutPrefix(line, "["); ok {
			user, isClient := strings.CutPrefix(strings.TrimSuffix(section, "]"), "client.")
			if !isClient {
				return params.Credentials{}, fmt.Errorf("section %q is not a client's: %w", line, fault.Unauthenticated)
			}
			users = append(users, params.Credentials{User: user})
			continue
		}
		key, value, found := strings.Cut(line, "=")
		if found && strings.TrimSpace(key) == "key" && len(users) > 0 {
			users[len(users)-1].Key = params.NewSecret(strings.TrimSpace(value))
		}
	}
	switch {
	case len(users) != 1:
		return params.Credentials{}, fmt.Errorf("holds %d users, one is wanted: %w", len(users), fault.Unauthenticated)
	case users[0].Key == params.Secret{}:
		return params.Credentials{}, fmt.Errorf("client.%s has no key: %w", users[0].User, fault.Unauthenticated)
	}
	return users[0], nil
}
