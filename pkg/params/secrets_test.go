package params_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

const key = "AQBXeANrPRjXExAArawMsMaATlKdah13sG+G9g=="

// A key of the newer kind, 32 bytes long: type 2, a time, the length.
var longKey = base64.StdEncoding.EncodeToString(append([]byte("\x02\x00\x57\x78\x03\x6b\x3d\x18\xd7\x13\x20\x00"),
	bytes.Repeat([]byte("k"), 32)...))

// The secrets that worked with a released version. Lines are added and never
// changed or removed.
var releasedSecrets = []struct {
	secrets map[string]string
	user    string
	key     string
}{
	{nil, "", ""},
	{map[string]string{"userID": "", "userKey": ""}, "", ""},
	{map[string]string{"userID": "csi-rbd-node", "userKey": key}, "csi-rbd-node", key},
	{map[string]string{"userID": "csi.rbd_1@k8s:a", "userKey": longKey}, "csi.rbd_1@k8s:a", longKey},
	{map[string]string{"userID": strings.Repeat("u", 128), "userKey": key}, strings.Repeat("u", 128), key},
	{map[string]string{"userID": "csi\n", "userKey": " " + key + "\r\n"}, "csi", key},
	{map[string]string{"userID": "csi", "userKey": key, "encryptionPassphrase": "x", "adminID": "y"}, "csi", key},
}

func TestReleasedSecretsAreReadForEver(t *testing.T) {
	for _, c := range releasedSecrets {
		got, err := params.ParseSecrets(c.secrets)
		if err != nil || got.User != c.user || got.Key.Reveal() != c.key {
			t.Errorf("secrets of %q: got %v, %v", c.user, got, err)
		}
		if got.Given() != (c.user != "") {
			t.Errorf("secrets of %q: given is %v", c.user, got.Given())
		}
	}
}

func TestParseSecretsRefuses(t *testing.T) {
	for _, c := range []struct{ name, user, key, hint string }{
		{"no key", "csi", "", "both or neither"},
		{"no user", "", key, "both or neither"},
		{"user with client.", "client.csi", key, `without "client."`},
		{"blank user", " ", key, "userID"},
		{"user with a comma", "csi,secret=x", key, "userID"},
		{"user with a blank", "csi x", key, "userID"},
		{"user with a line end", "csi\nx", key, "userID"},
		{"user with a bracket", "csi]", key, "userID"},
		{"user in unicode", "csü", key, "userID"},
		{"user too long", strings.Repeat("u", 129), key, "userID"},
		{"user and key exchanged", key, "csi", "userID"},
		{"not base64", "csi", key[:20] + "!" + key[21:], "base64"},
		{"line end inside", "csi", key[:20] + "\n" + key[20:], "base64"},
		{"cut off within a quantum", "csi", key[:38], "base64"},
		{"cut off between quanta", "csi", key[:36], "cut off"},
		{"cut off in the head", "csi", key[:12], "too short"},
		{"no bytes of key", "csi", "AQBXeANrPRjXEwAA", "cut off or damaged"},
		{"a password", "csi", "correct horse battery staple", "base64"},
		{"blank key", "csi", "\n", "userKey"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := params.ParseSecrets(map[string]string{"userID": c.user, "userKey": c.key})
			wantInvalid(t, err, "secrets", c.hint)
			for _, hidden := range []string{key[:12], "correct", c.key} {
				if hidden != "" && hidden != "\n" && c.name != "user and key exchanged" {
					wantHidden(t, err, hidden)
				}
			}
			wantHidden(t, err, key)
			if got.User != "" || got.Key.Reveal() != "" {
				t.Errorf("got credentials beside the error")
			}
		})
	}
	for _, misspelt := range []string{"userid", "UserID", "USERKEY", "userkey"} {
		_, err := params.ParseSecrets(map[string]string{misspelt: key})
		wantInvalid(t, err, misspelt, "did you mean")
		wantHidden(t, err, key)
	}
}

// A secret is not seen, however it is printed and whatever it is part of.
func TestSecretIsNotSeen(t *testing.T) {
	credentials, err := params.ParseSecrets(map[string]string{"userID": "csi", "userKey": key})
	if err != nil {
		t.Fatal(err)
	}
	inside := struct {
		hidden params.Credentials
		Shown  params.Credentials
	}{credentials, credentials}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%w", "%-50s"} {
		fmt.Fprintf(&out, verb+"\n", credentials.Key)
		fmt.Fprintf(&out, verb+"\n", credentials)
		fmt.Fprintf(&out, verb+"\n", &credentials)
		fmt.Fprintf(&out, verb+"\n", inside)
		fmt.Fprintf(&out, verb+"\n", []any{&inside, map[string]any{"a": inside}})
	}
	encoded, err := json.Marshal(inside)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(encoded)
	encoded, err = xml.Marshal(credentials)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(encoded)
	slog.New(slog.NewTextHandler(&out, nil)).Info("a", "b", credentials.Key, "c", credentials, "d", inside)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("a", "b", credentials.Key, "c", credentials, "d", inside)
	fmt.Fprintln(&out, credentials.Key.String(), credentials.Key.GoString())
	for _, form := range []string{key, fmt.Sprintf("%x", key), fmt.Sprintf("%X", key), fmt.Sprintf("%d", []byte(key)), key[:10]} {
		if strings.Contains(out.String(), form) {
			t.Errorf("%q is to be seen in %s", form, out.String())
		}
	}
	if !strings.Contains(out.String(), "(secret)") {
		t.Errorf("got %s, want (secret) in it", out.String())
	}
}

func TestSecretEqual(t *testing.T) {
	a, b, c := params.NewSecret("a"), params.NewSecret("a"), params.NewSecret("c")
	if !a.Equal(b) || a.Equal(c) || a.Equal(params.Secret{}) || !params.NewSecret("").Equal(params.Secret{}) {
		t.Errorf("secrets are not compared by what they hold")
	}
}

func FuzzParseSecrets(f *testing.F) {
	for _, c := range releasedSecrets {
		f.Add(c.secrets["userID"], c.secrets["userKey"])
	}
	f.Add("client.x", key[:36])
	f.Fuzz(func(t *testing.T, user, text string) {
		got, err := params.ParseSecrets(map[string]string{"userID": user, "userKey": text})
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v, want it invalid", err)
			}
			if len(text) > 12 && strings.Contains(err.Error(), text) {
				t.Errorf("got error %q, which quotes the key", err)
			}
			return
		}
		again, err := params.ParseSecrets(map[string]string{"userID": got.User, "userKey": got.Key.Reveal()})
		if err != nil || again.User != got.User || !again.Key.Equal(got.Key) {
			t.Errorf("read back: got %v, %v; want %v", again, err, got)
		}
		if strings.ContainsAny(got.User, ", =\n") {
			t.Errorf("got the user %q", got.User)
		}
	})
}
