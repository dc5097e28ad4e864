// Package dns answers for the names of services and of a StatefulSet's pods, as CoreDNS does in
// an ordinary cluster and as far as a test cluster needs it: addresses (A records) over UDP, asked of
// the API server each time. It forwards nothing; other names do not exist.
package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

const (
	// suffix is what all names end in that there are.
	suffix = ".svc.cluster.local."
	// ttl is how many seconds an answer may be kept: pods come back with other addresses.
	ttl = 1
	// largest is the size of the largest question over UDP that need be read (RFC 1035, 4.2.1), and more.
	largest = 1500
)

// A Name is what is asked for: a service, or a pod of one if Host is not empty.
type Name struct{ Host, Service, Namespace string }

// ParseName reads SERVICE.NAMESPACE.svc.cluster.local. or HOST.SERVICE.NAMESPACE.svc.cluster.local. without
// regard for upper and lower case.
func ParseName(text string) (Name, bool) {
	front, found := strings.CutSuffix(strings.ToLower(text), suffix)
	parts := strings.Split(front, ".")
	for _, part := range parts {
		found = found && part != ""
	}
	switch {
	case found && len(parts) == 2:
		return Name{Service: parts[0], Namespace: parts[1]}, true
	case found && len(parts) == 3:
		return Name{Host: parts[0], Service: parts[1], Namespace: parts[2]}, true
	}
	return Name{}, false
}

// A Resolver finds the addresses of a name; fault.NotFound means that there is no such name.
type Resolver interface {
	Resolve(ctx context.Context, name Name) ([]netip.Addr, error)
}

// Serve answers questions that come over conn until that is closed.
func Serve(ctx context.Context, conn net.PacketConn, resolver Resolver) error {
	for {
		question := make([]byte, largest)
		n, from, err := conn.ReadFrom(question)
		if err != nil {
			return err
		}
		go func() {
			if reply, err := Answer(ctx, question[:n], resolver); err == nil {
				// Who does not get an answer asks again.
				_, _ = conn.WriteTo(reply, from)
			}
		}()
	}
}

// Answer makes the reply to one message. It is an error if that is no question.
func Answer(ctx context.Context, message []byte, resolver Resolver) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(message)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil || header.Response {
		return nil, errors.Join(fault.Invalid, err)
	}
	addresses, code := resolve(ctx, question, resolver)
	reply := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: header.ID, Response: true, Authoritative: true, RCode: code,
			RecursionDesired: header.RecursionDesired, RecursionAvailable: true,
		},
		Questions: []dnsmessage.Question{question},
	}
	for _, address := range addresses {
		reply.Answers = append(reply.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: question.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: ttl},
			Body:   &dnsmessage.AResource{A: address.As4()},
		})
	}
	return reply.Pack()
}

// resolve finds the addresses of version 4. A name that has none of another kind that is asked for exists
// nevertheless, and the answer is empty.
func resolve(ctx context.Context, question dnsmessage.Question, resolver Resolver) ([]netip.Addr, dnsmessage.RCode) {
	name, ok := ParseName(question.Name.String())
	if !ok {
		return nil, dnsmessage.RCodeNameError
	}
	addresses, err := resolver.Resolve(ctx, name)
	switch {
	case errors.Is(err, fault.NotFound):
		return nil, dnsmessage.RCodeNameError
	case err != nil:
		return nil, dnsmessage.RCodeServerFailure
	case question.Type != dnsmessage.TypeA:
		return nil, dnsmessage.RCodeSuccess
	}
	return addresses, dnsmessage.RCodeSuccess
}
