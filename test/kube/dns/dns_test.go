package dns

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// pages are what an API server says of a service with an address, and of one without that has a pod that is
// ready and one that is not.
var pages = map[string]string{
	"/api/v1/namespaces/default/services/front": `{"spec":{"clusterIP":"10.96.0.7"}}`,
	"/api/v1/namespaces/default/services/web":   `{"spec":{"clusterIP":"None"}}`,
	"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dweb": `{"items":[{"endpoints":[
		{"addresses":["10.88.77.10"],"hostname":"web-0","conditions":{"ready":true}},
		{"addresses":["10.88.77.11"],"hostname":"web-1","conditions":{"ready":false}},
		{"addresses":["10.88.77.12"],"hostname":"web-2"}]}]}`,
}

func TestAnswer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, found := pages[r.URL.RequestURI()]
		if !found {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, page)
	}))
	defer server.Close()
	cluster := &Cluster{Server: server.URL, Client: server.Client()}
	cases := []struct {
		name  string
		asked string
		kind  dnsmessage.Type
		code  dnsmessage.RCode
		want  []string
	}{
		{"a service", "front.default.svc.cluster.local.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, []string{"10.96.0.7"}},
		{"capital letters", "Front.Default.SVC.cluster.local.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, []string{"10.96.0.7"}},
		{"its address of version 6", "front.default.svc.cluster.local.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, nil},
		{"a headless service", "web.default.svc.cluster.local.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, []string{"10.88.77.10", "10.88.77.12"}},
		{"a pod", "web-0.web.default.svc.cluster.local.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, []string{"10.88.77.10"}},
		{"a pod that is not ready", "web-1.web.default.svc.cluster.local.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
		{"no such service", "back.default.svc.cluster.local.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
		{"elsewhere", "example.org.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
		{"too short", "svc.cluster.local.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			code, got := ask(t, cluster, test.asked, test.kind)
			if code != test.code || !slices.Equal(got, test.want) {
				t.Errorf("%s: got %s %v, want %s %v", test.asked, code, got, test.code, test.want)
			}
		})
	}
}

func ask(t *testing.T, resolver Resolver, name string, kind dnsmessage.Type) (dnsmessage.RCode, []string) {
	t.Helper()
	question := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	text, err := question.Pack()
	if err != nil {
		t.Fatal(err)
	}
	reply, err := Answer(t.Context(), text, resolver)
	if err != nil {
		t.Fatal(err)
	}
	var answer dnsmessage.Message
	if err := answer.Unpack(reply); err != nil {
		t.Fatal(err)
	}
	if answer.ID != 7 || !answer.Response {
		t.Errorf("header: got %+v, want a response with the question's number", answer.Header)
	}
	var addresses []string
	for _, resource := range answer.Answers {
		addresses = append(addresses, netip.AddrFrom4(resource.Body.(*dnsmessage.AResource).A).String())
	}
	return answer.RCode, addresses
}

// broken does not know whether there is a name.
type broken struct{}

func (broken) Resolve(context.Context, Name) ([]netip.Addr, error) { return nil, fault.Unavailable }

func TestAnswerWithoutAServer(t *testing.T) {
	code, _ := ask(t, broken{}, "front.default.svc.cluster.local.", dnsmessage.TypeA)
	if code != dnsmessage.RCodeServerFailure {
		t.Errorf("got %s, want %s: the name may well exist", code, dnsmessage.RCodeServerFailure)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01"))
	f.Fuzz(func(_ *testing.T, message []byte) {
		_, _ = Answer(context.Background(), message, broken{})
	})
}
