package rbd

import (
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

func TestCheckClient(t *testing.T) {
	for client, exact := range map[string]bool{
		"10.1.2.3:0/1234":              true,
		"[fd00::1]:0/99":               true,
		"10.1.2.3:6789/4294967295":     true,
		"10.1.2.3:0/0":                 false,
		"10.1.2.3:0/00":                false,
		"10.1.2.3:0":                   false,
		"10.1.2.3":                     false,
		"10.1.2.3/24":                  false,
		"10.1.2.0:0/24 ":               false,
		"cidr:10.1.2.0:0/24":           false,
		"10.1.2.3:0/":                  false,
		"10.1.2.3:0/-1":                false,
		"10.1.2.3:0/1/2":               false,
		"":                             false,
		"host:0/7":                     false,
		"fd00::1:0/7":                  false,
		"v1:10.1.2.3:0/7":              false,
		"10.1.2.3:0/1,10.1.2.4:0/2":    false,
		"10.1.2.3:0/7\", \"x\": \"y\"": false,
	} {
		err := CheckClient(client)
		if exact && err != nil || !exact && !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: error %v, want exact %t", client, err, exact)
		}
	}
}

func TestClientOf(t *testing.T) {
	for address, want := range map[string]string{
		"10.1.2.3:0/7":                      "10.1.2.3:0/7",
		"v1:10.1.2.3:0/7":                   "10.1.2.3:0/7",
		"any:10.1.2.3:0/7":                  "10.1.2.3:0/7",
		"[v2:10.1.2.3:0/7,v1:10.1.2.3:0/7]": "10.1.2.3:0/7",
		"[fd00::1]:0/7":                     "[fd00::1]:0/7",
		"v2:[fd00::1]:0/7":                  "[fd00::1]:0/7",
		"[v2:[fd00::1]:0/7]":                "[fd00::1]:0/7",
	} {
		if got := ClientOf(address); got != want {
			t.Errorf("%q: got %q, want %q", address, got, want)
		}
	}
}
