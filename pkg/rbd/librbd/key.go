package librbd

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
)

// keyHead is what stands before the secret in a decoded key (CryptoKey::encode in
// src/auth/Crypto.cc): its type, 2 bytes, when it was made, 8, its length, 2.
const keyHead = 12

// checkKey says what is wrong with the form of a key. librados answers EINVAL to
// a malformed key, as it does to monitors whose names cannot be resolved. The error
// never quotes the key.
func checkKey(key string) error {
	decoded, err := base64.StdEncoding.DecodeString(key)
	switch {
	case err != nil:
		return errors.New("the key is not base64")
	case len(decoded) < keyHead:
		return errors.New("the key is cut short")
	case len(decoded)-keyHead != int(binary.LittleEndian.Uint16(decoded[10:])):
		return errors.New("the key has not the length that it says")
	}
	return nil
}
