package librbd

import (
	"context"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseMonitors(t *testing.T) {
	for _, one := range []struct {
		option string
		want   []monitor
	}{
		{"", nil},
		{" , ;", nil},
		{"10.0.0.1", []monitor{{"10.0.0.1", []string{"10.0.0.1:3300", "10.0.0.1:6789"}}}},
		{"10.0.0.1:6789", []monitor{{"10.0.0.1:6789", []string{"10.0.0.1:6789"}}}},
		{"a b;c", []monitor{
			{"a", []string{"a:3300", "a:6789"}}, {"b", []string{"b:3300", "b:6789"}}, {"c", []string{"c:3300", "c:6789"}},
		}},
		{"[v2:10.0.0.1:3301/0,v1:10.0.0.1:6790/0],[v2:10.0.0.2:3300,v1:10.0.0.2:6789]", []monitor{
			{"[v2:10.0.0.1:3301/0,v1:10.0.0.1:6790/0]", []string{"10.0.0.1:3301", "10.0.0.1:6790"}},
			{"[v2:10.0.0.2:3300,v1:10.0.0.2:6789]", []string{"10.0.0.2:3300", "10.0.0.2:6789"}},
		}},
		{"v1:10.0.0.1,v2:mon.example", []monitor{
			{"v1:10.0.0.1", []string{"10.0.0.1:6789"}}, {"v2:mon.example", []string{"mon.example:3300"}},
		}},
		{"[2001:db8::1]:6789, [2001:db8::2]", []monitor{
			{"[2001:db8::1]:6789", []string{"[2001:db8::1]:6789"}},
			{"[2001:db8::2]", []string{"[2001:db8::2]:3300", "[2001:db8::2]:6789"}},
		}},
		{"[v2:[2001:db8::1]:3300,v1:[2001:db8::1]:6789]", []monitor{
			{"[v2:[2001:db8::1]:3300,v1:[2001:db8::1]:6789]", []string{"[2001:db8::1]:3300", "[2001:db8::1]:6789"}},
		}},
		{"[v2:10.0.0.1:3300", []monitor{{"[v2:10.0.0.1:3300", []string{"10.0.0.1:3300"}}}},
	} {
		if got := parseMonitors(one.option); !reflect.DeepEqual(got, one.want) {
			t.Errorf("%q: got %q, want %q", one.option, got, one.want)
		}
	}
}

func FuzzParseMonitors(f *testing.F) {
	f.Add("[v2:10.0.0.1:3301/0,v1:10.0.0.1:6790/0], b ;[::1]:6789")
	f.Fuzz(func(t *testing.T, option string) {
		for _, one := range parseMonitors(option) {
			if one.entry == "" || len(one.endpoints) == 0 || !strings.Contains(option, one.entry) {
				t.Errorf("%q: got %q", option, one)
			}
		}
	})
}

func TestAnswering(t *testing.T) {
	listen := func(banner string) string {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		go func() {
			for {
				connection, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = connection.Write([]byte(banner))
				_ = connection.Close()
			}
		}()
		return listener.Addr().String()
	}
	v1, v2, other := listen("ceph v027"), listen("ceph v2\n"), listen("SSH-2.0-OpenSSH")
	const nobody = "127.0.0.1:1"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	got := answering(ctx, []monitor{{"a", []string{nobody, v1}}, {"b", []string{other}}, {"c", []string{v2}}, {"d", []string{nobody}}})
	var names []string
	for _, one := range got {
		names = append(names, one.entry)
	}
	if strings.Join(names, "") != "ac" {
		t.Errorf("got %q, want a and c", names)
	}
}

func TestCheckKey(t *testing.T) {
	for _, one := range []struct {
		name, key, want string
	}{
		{"right", someKey().Reveal(), ""},
		{"right, aes256k", "AgDPpB5kAAAAACAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", ""},
		{"empty", "", "cut short"},
		{"not base64", "secret!", "not base64"},
		{"short", "AQA=", "cut short"},
		{"one byte less", "AQAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAA", "length"},
	} {
		err := checkKey(one.key)
		if (err == nil) != (one.want == "") || err != nil && !strings.Contains(err.Error(), one.want) {
			t.Errorf("%s: got %v, want %q in it", one.name, err, one.want)
		}
		if err != nil && one.key != "" && strings.Contains(err.Error(), one.key) {
			t.Errorf("%s: got the key in %v", one.name, err)
		}
	}
}
