package server

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// A fingerprint is equal for two requests exactly if method and request are
// equal, secrets included.
type fingerprint [sha256.Size]byte

// A fingerprinter makes fingerprints. It is an HMAC with a key that lives as
// long as the process, so a fingerprint found in a memory dump cannot be used
// to try out secrets.
type fingerprinter struct{ key [sha256.Size]byte }

func newFingerprinter() *fingerprinter {
	f := &fingerprinter{}
	rand.Read(f.key[:]) // never fails
	return f
}

// of returns the fingerprint of a request. Deterministic marshalling writes
// equal messages equally within one build of the program, which is all that is
// needed here.
func (f *fingerprinter) of(fullMethod string, req any) (fingerprint, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(req.(proto.Message))
	defer clear(data) // holds the secrets
	if err != nil {
		return fingerprint{}, fmt.Errorf("encode the request: %w: %w", fault.Internal, err)
	}
	mac := hmac.New(sha256.New, f.key[:])
	fmt.Fprintf(mac, "%s\n", fullMethod) // a method name holds no newline
	mac.Write(data)
	return fingerprint(mac.Sum(nil)), nil
}
