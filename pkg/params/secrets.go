package params

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
)

// The keys of a secret.
const (
	keyUser = "userID"
	keyKey  = "userKey"
)

// A Secret is a text that must not be seen. Formatting it with any verb, writing it as
// JSON or text, and logging it give "(secret)". The text is behind a pointer, because
// fmt prints the unexported fields of a struct without asking their types.
type Secret struct {
	text *string
}

// NewSecret returns a Secret that holds text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

const hidden = "(secret)"

// Reveal returns the text, for the one call that needs it. Pass the Secret on
// everywhere else.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Equal reports whether s and other hold the same text, in a time that does not depend
// on where they differ.
func (s Secret) Equal(other Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(other.Reveal())) == 1
}

// String returns "(secret)".
func (s Secret) String() string { return hidden }

// GoString returns "(secret)".
func (s Secret) GoString() string { return hidden }

// Format writes "(secret)" whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, hidden) }

// MarshalText returns "(secret)"; JSON, XML and YAML use it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// MarshalJSON returns "(secret)" as JSON.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// LogValue returns "(secret)" for log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// Credentials name a Ceph user and hold its key. The zero value means that none were
// given, and that the keyring of the cluster counts.
type Credentials struct {
	// User is the name without "client.", as in `rbd --id`.
	User string
	// Key is the key in base64, as `ceph auth get-key` prints it.
	Key Secret
}

// Given reports whether there are credentials.
func (c Credentials) Given() bool { return c.User != "" }

// secretsTable is without get: the driver never writes a secret.
var secretsTable = table[Credentials]{
	{key: keyUser, peer: "adminID",
		set: func(c *Credentials, v string) (err error) { c.User, err = parseUser(v); return err }},
	{key: keyKey, peer: "adminKey",
		set: func(c *Credentials, v string) (err error) { c.Key, err = parseKey(v); return err }},
}

// ParseSecrets reads the secrets of a request. Both keys or neither have to be
// given. Others are left alone, since a secret may serve several purposes, but not those
// that differ from ours only in case, or a misspelt secret would mean the
// cluster's own keyring in silence. Blanks and line ends around the values are dropped:
// they get there with `echo KEY | base64`. Errors are Invalid and never quote the key.
func ParseSecrets(m map[string]string) (Credentials, error) {
	var c Credentials
	if err := secretsTable.read(&c, m, refuseMisspelt); err != nil {
		return Credentials{}, fmt.Errorf("secrets: %w", err)
	}
	if (c.User == "") != (c.Key == Secret{}) {
		return Credentials{}, invalid("secrets: %s and %s: both or neither", keyUser, keyKey)
	}
	return c, nil
}

func refuseMisspelt(key string) error {
	for _, entry := range secretsTable {
		if strings.EqualFold(key, entry.key) {
			return invalid("unknown key %q: did you mean %q?", key, entry.key)
		}
	}
	return nil
}

// parseUser reads the name of a Ceph user. Commas, equals signs and blanks would
// change the meaning of the kernel's map options, in which the name stands.
func parseUser(text string) (string, error) {
	user := strings.TrimSpace(text)
	if strings.HasPrefix(user, "client.") {
		return "", invalid("to be written without \"client.\", as in `rbd --id`")
	}
	odd := strings.ContainsFunc(user, func(r rune) bool { return !printable(string(r)) || strings.ContainsRune(`,=[]"'\/`, r) })
	if user == "" || len(user) > 128 || odd {
		// The value is not quoted: it is the key where someone took one for the other.
		return "", invalid("not the name of a Ceph user")
	}
	return user, nil
}

// parseKey checks that text has the form of a Ceph key: base64 of type (2 bytes),
// time of creation (8), length (2) and as many bytes of key (CryptoKey::encode in Ceph's
// auth/Crypto.cc; AES keys have 16 and AES256K keys 32). What was cut off when it was
// copied is found here rather than as a refusal by the monitors.
func parseKey(text string) (Secret, error) {
	const head = 2 + 8 + 2
	text = strings.TrimSpace(text)
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || strings.ContainsAny(text, "\r\n") {
		// The decoder's own error tells a position only, but is no help either.
		return Secret{}, invalid("not base64, as `ceph auth get-key` prints it")
	}
	if len(raw) < head {
		return Secret{}, invalid("not a Ceph key: too short")
	}
	length := int(binary.LittleEndian.Uint16(raw[head-2:]))
	if length == 0 || len(raw) < head+length {
		return Secret{}, invalid("not a Ceph key: cut off or damaged")
	}
	return NewSecret(text), nil
}
