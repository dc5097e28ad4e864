package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

const key = "AQBeRz5nAAAAABAAq1m8l9Y2yPW8y0mHk3O7Zw=="

// directory makes clusters, each with a ceph.conf and the given keyring; "-" leaves the keyring out.
func directory(t *testing.T, keyrings map[string]string) Directory {
	t.Helper()
	d := t.TempDir()
	for name, keyring := range keyrings {
		files := map[string]string{"ceph.conf": "[global]\n", "keyring": keyring}
		for file, content := range files {
			if content == "-" {
				continue
			}
			path := filepath.Join(d, name, file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return Directory(d)
}

func TestNames(t *testing.T) {
	d := directory(t, map[string]string{"b": "-", "a": "-"})
	// Kubernetes keeps a Secret's files in hidden directories beside the links to them.
	if err := os.MkdirAll(filepath.Join(string(d), "..data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Names(); err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("names %v, error %v, want [a b]", got, err)
	}
	if got, err := Directory(filepath.Join(string(d), "none")).Names(); err != nil || len(got) > 0 {
		t.Errorf("of a missing directory: %v, error %v, want none", got, err)
	}
}

func TestAccess(t *testing.T) {
	d := directory(t, map[string]string{
		"good":    "[client.csi]\n\tkey = " + key + "\n\tcaps mon = \"profile rbd\"\n",
		"spaced":  "# a comment\n\n[client.csi]\nkey=" + key,
		"two":     "[client.a]\nkey = " + key + "\n[client.b]\nkey = " + key,
		"daemons": "[mon.]\nkey = " + key,
		"keyless": "[client.csi]\n",
		"empty":   "",
		"missing": "-",
	})
	given := params.Credentials{User: "other", Key: params.NewSecret("x")}
	for name, test := range map[string]struct {
		cluster string
		as      params.Credentials
		user    string
		kind    fault.Kind
		word    string // "" for success
	}{
		"the keyring's user":       {cluster: "good", user: "csi"},
		"without spaces":           {cluster: "spaced", user: "csi"},
		"a given user":             {cluster: "good", as: given, user: "other"},
		"a given user, no ring":    {cluster: "missing", as: given, user: "other"},
		"several users":            {"two", params.Credentials{}, "", fault.Unauthenticated, "2 users"},
		"a daemon's keyring":       {"daemons", params.Credentials{}, "", fault.Unauthenticated, "not a client"},
		"no key":                   {"keyless", params.Credentials{}, "", fault.Unauthenticated, "no key"},
		"an empty keyring":         {"empty", params.Credentials{}, "", fault.Unauthenticated, "0 users"},
		"no keyring":               {"missing", params.Credentials{}, "", fault.Unauthenticated, "no keyring"},
		"no such cluster":          {"none", given, "", fault.Invalid, "not configured"},
		"a path instead of a name": {"../x", given, "", fault.Invalid, "not configured"},
	} {
		got, err := d.Access(test.cluster, test.as)
		if test.word != "" {
			if !fault.Is(err, test.kind) || !strings.Contains(err.Error(), test.word) {
				t.Errorf("%s: error %v, want kind %v and %q", name, err, test.kind, test.word)
			}
			if err != nil && strings.Contains(err.Error(), key) {
				t.Errorf("%s: the error holds the key", name)
			}
			continue
		}
		if err != nil || got.User != test.user || got.Cluster != test.cluster || !strings.HasSuffix(got.Conf, "ceph.conf") {
			t.Errorf("%s: %+v, error %v, want user %s", name, got, err, test.user)
		}
	}
}

// rook makes clusters of files as they are named here, and the files of a Kubernetes volume beside them.
func rook(t *testing.T, clusters map[string]map[string]string) Directory {
	t.Helper()
	d := t.TempDir()
	for name, files := range clusters {
		if err := os.MkdirAll(filepath.Join(d, name, "..2026_11_23"), 0o755); err != nil {
			t.Fatal(err)
		}
		for file, content := range files {
			if err := os.WriteFile(filepath.Join(d, name, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return Directory(d)
}

func TestAccessWithTheNamesOfRook(t *testing.T) {
	const endpoints, keyring = "b=10.1.1.2:6789,a=10.1.1.1:6789", "[client.csi]\nkey = " + key
	given := params.Credentials{User: "other", Key: params.NewSecret("x")}
	for _, test := range []struct {
		name     string
		files    map[string]string
		as       params.Credentials
		monitors string
		user     string
		kind     fault.Kind
		word     string // "" for success
	}{
		{name: "as Rook has it", files: map[string]string{"mon-endpoints": endpoints, "userID": "csi-rbd-node", "userKey": key},
			monitors: "10.1.1.1:6789,10.1.1.2:6789", user: "csi-rbd-node"},
		{name: "with line ends", files: map[string]string{"mon-endpoints": endpoints + "\n", "userID": "csi\n", "userKey": key + "\n"},
			monitors: "10.1.1.1:6789,10.1.1.2:6789", user: "csi"},
		{name: "protocol 2 alone", files: map[string]string{"mon-endpoints": "a=10.1.1.1:3300", "userID": "csi", "userKey": key},
			monitors: "10.1.1.1:3300", user: "csi"},
		{name: "IPv6", files: map[string]string{"mon-endpoints": "a=[fd00::1]:6789", "userID": "csi", "userKey": key},
			monitors: "[fd00::1]:6789", user: "csi"},
		{name: "a host's name", files: map[string]string{"mon-endpoints": "a=mon-a.rook-ceph.svc:6789", "userID": "csi", "userKey": key},
			monitors: "mon-a.rook-ceph.svc:6789", user: "csi"},
		{name: "the same twice", files: map[string]string{"mon-endpoints": "a=10.1.1.1:6789,b=10.1.1.1:6789", "userID": "csi", "userKey": key},
			monitors: "10.1.1.1:6789", user: "csi"},
		{name: "with a ceph.conf", files: map[string]string{"ceph.conf": "[global]\n", "mon-endpoints": endpoints, "userID": "csi", "userKey": key},
			monitors: "10.1.1.1:6789,10.1.1.2:6789", user: "csi"},
		{name: "with a keyring", files: map[string]string{"mon-endpoints": endpoints, "keyring": keyring},
			monitors: "10.1.1.1:6789,10.1.1.2:6789", user: "csi"},
		{name: "ceph.conf and a pair", files: map[string]string{"ceph.conf": "[global]\n", "userID": "csi", "userKey": key}, user: "csi"},
		{name: "a given user", files: map[string]string{"mon-endpoints": endpoints}, as: given,
			monitors: "10.1.1.1:6789,10.1.1.2:6789", user: "other"},
		{name: "both forms of user", files: map[string]string{"mon-endpoints": endpoints, "keyring": keyring, "userID": "csi", "userKey": key},
			kind: fault.Unauthenticated, word: "one is wanted"},
		{name: "no user", files: map[string]string{"mon-endpoints": endpoints}, kind: fault.Unauthenticated, word: "no userID"},
		{name: "no key", files: map[string]string{"mon-endpoints": endpoints, "userID": "csi"}, kind: fault.Unauthenticated, word: "userKey"},
		{name: "a key alone", files: map[string]string{"mon-endpoints": endpoints, "userKey": key}, kind: fault.Unauthenticated, word: "userID"},
		{name: "an empty pair", files: map[string]string{"mon-endpoints": endpoints, "userID": "", "userKey": ""}, kind: fault.Unauthenticated, word: "empty"},
		{name: "exchanged", files: map[string]string{"mon-endpoints": endpoints, "userID": key, "userKey": "csi"}, kind: fault.Unauthenticated, word: "userID"},
		{name: "half a key", files: map[string]string{"mon-endpoints": endpoints, "userID": "csi", "userKey": key[:20]}, kind: fault.Unauthenticated, word: "userKey"},
		{name: "empty endpoints", files: map[string]string{"mon-endpoints": "", "userID": "csi", "userKey": key}, kind: fault.Unavailable, word: "no monitor"},
		{name: "without names", files: map[string]string{"mon-endpoints": "10.1.1.1:6789"}, as: given, kind: fault.Unavailable, word: "NAME=HOST:PORT"},
		{name: "without a port", files: map[string]string{"mon-endpoints": "a=10.1.1.1"}, as: given, kind: fault.Unavailable, word: "NAME=HOST:PORT"},
		{name: "without a host", files: map[string]string{"mon-endpoints": "a=:6789"}, as: given, kind: fault.Unavailable, word: "NAME=HOST:PORT"},
		{name: "a setting smuggled in", files: map[string]string{"mon-endpoints": "a=10.1.1.1 x:6789"}, as: given, kind: fault.Unavailable, word: "NAME=HOST:PORT"},
		{name: "in a zone", files: map[string]string{"mon-endpoints": "a=[fe80::1%eth0 x]:6789"}, as: given, kind: fault.Unavailable, word: "NAME=HOST:PORT"},
		{name: "ending in a comma", files: map[string]string{"mon-endpoints": endpoints + ","}, as: given, kind: fault.Unavailable, word: "NAME=HOST:PORT"},
		{name: "junk", files: map[string]string{"mon-endpoints": "{\"a\": 1}"}, as: given, kind: fault.Unavailable, word: "NAME=HOST:PORT"},
		{name: "neither form", files: map[string]string{"userID": "csi", "userKey": key}, kind: fault.Invalid, word: "not configured"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := rook(t, map[string]map[string]string{"a": test.files})
			got, err := d.Access("a", test.as)
			if test.word != "" {
				if !fault.Is(err, test.kind) || !strings.Contains(err.Error(), test.word) {
					t.Errorf("got error %v, want kind %v and %q", err, test.kind, test.word)
				}
				if err != nil && strings.Contains(err.Error(), key[:20]) {
					t.Errorf("the error holds the key")
				}
				return
			}
			if err != nil || got.User != test.user || got.Monitors != test.monitors {
				t.Errorf("got %+v, error %v, want user %s and monitors %s", got, err, test.user, test.monitors)
			}
			settings, err := got.Settings()
			if err != nil || string(settings) != test.files["ceph.conf"] {
				t.Errorf("settings: got %q, error %v, want %q", settings, err, test.files["ceph.conf"])
			}
		})
	}
}

func FuzzReadEndpoints(f *testing.F) {
	f.Add("a=10.1.1.1:6789,b=[fd00::1]:3300")
	f.Add("a=,=b:1")
	f.Fuzz(func(t *testing.T, content string) {
		got, err := readEndpoints(content)
		if err != nil {
			return
		}
		if strings.Trim(got, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:,[]") != "" {
			t.Errorf("got %q of %q, want nothing but hosts and ports", got, content)
		}
		var entries []string
		for i, address := range strings.Split(got, ",") {
			entries = append(entries, string(rune('a'+i%26))+"="+address)
		}
		if again, err := readEndpoints(strings.Join(entries, ",")); err != nil || again != got {
			t.Errorf("read again: got %q, %v, want %q", again, err, got)
		}
	})
}

func FuzzReadKeyring(f *testing.F) {
	f.Add("[client.csi]\n\tkey = " + key)
	f.Add("[client.a]\n[client.b]\nkey==")
	f.Fuzz(func(t *testing.T, content string) {
		got, err := readKeyring([]byte(content))
		if err == nil && (got.Key == params.Secret{}) {
			t.Errorf("no error and no key in %q", content)
		}
	})
}
