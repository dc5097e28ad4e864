package launcher

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

const testKey = "AQD0aGVsbG8gd29ybGQ="

// patience bounds what is waited for.
const patience = 10 * time.Second

// A lab is a server whose workers are shell scripts.
type lab struct {
	*Server
	Client
	directory string // the mapping's folder
	stop      func() // tells the server to end
	served    chan error

	mutex sync.Mutex
	log   strings.Builder
}

// start starts a server. The script runs in the mapping's folder as a worker; what it leaves
// in the file pid is killed in the end.
func start(t *testing.T, script string) *lab {
	t.Helper()
	l := &lab{directory: t.TempDir(), served: make(chan error, 1)}
	l.Server = New(Options{Path: "/bin/sh", Arguments: []string{"-c", "cd " + l.directory + "; " + script}, Version: "v0.1"})
	l.user = uint32(os.Getuid())
	l.Client = Dial(filepath.Join(t.TempDir(), "workers.sock"))
	listener, err := net.Listen("unix", l.Socket)
	if err != nil {
		t.Fatal(err)
	}
	log := funcr.New(func(_, line string) {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		l.log.WriteString(line + "\n")
	}, funcr.Options{Verbosity: 9})
	var ctx context.Context
	ctx, l.stop = context.WithCancel(klog.NewContext(context.Background(), log))
	go func() { l.served <- l.Serve(ctx, listener) }()
	t.Cleanup(func() {
		l.stop()
		if pid := l.pid(); pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		l.ends(t)
	})
	return l
}

// ends waits until the server has ended.
func (l *lab) ends(t *testing.T) {
	t.Helper()
	select {
	case err := <-l.served:
		l.served <- nil
		if err != nil {
			t.Errorf("Serve: got %v, want no error", err)
		}
	case <-time.After(patience):
		t.Fatal("Serve: got no end of it")
	}
}

// pid returns the process ID that the script has left, or 0.
func (l *lab) pid() int {
	text, _ := os.ReadFile(filepath.Join(l.directory, "pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// awaitPID waits until the script runs.
func (l *lab) awaitPID(t *testing.T) int {
	t.Helper()
	eventually(t, "the worker runs", func() bool { return l.pid() != 0 })
	return l.pid()
}

func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s: got no such thing within %s", what, patience)
		}
	}
}

// gone waits until a process is gone.
func gone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
}

func (l *lab) order() fuse.Order {
	image := volid.Image{Pool: volid.Pool{Cluster: "a", Pool: "rbd"}, Name: "pvc-1"}
	return fuse.Order{
		Target:      mapper.Target{Image: image, PoolID: 1, ImageID: "abc"},
		Credentials: params.Credentials{User: "kube", Key: params.NewSecret(testKey)},
		Directory:   l.directory,
	}
}

// serving is the script of a worker that serves until it is killed.
const serving = `cat >order; echo $$ >pid; echo '{"Kind":"","Error":""}'; exec >/dev/null 2>&1 sleep 1000`

// silent is the script of one that never answers.
const silent = `echo $$ >pid.new; mv pid.new pid; exec sleep 1000`

func kind(t *testing.T, what string, err error, want fault.Kind, says string) {
	t.Helper()
	if !fault.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: got %v, want kind %q and %q in it", what, err, want, says)
	}
	if err != nil && strings.Contains(err.Error(), testKey) {
		t.Errorf("%s: got %v, want no key in it", what, err)
	}
}

// What a worker answers reaches the caller through the socket as it does from a child.
func TestLaunch(t *testing.T) {
	tests := []struct {
		name, script string
		want         fault.Kind
		says         string
	}{
		{"refuses", `echo '{"Kind":"not found","Error":"image x: not found"}'; exit 1`, fault.NotFound, "image x"},
		{"finds another", `echo '{"Kind":"changed meanwhile","Error":"x"}'; exit 1`, fault.Superseded, "x"},
		{"dies", `echo librbd.so.1 is missing >&2; exit 127`, fault.Unavailable, "librbd.so.1 is missing"},
		{"says its key", `cat >&2; exit 1`, fault.Unavailable, `"Key":"(key)"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := start(t, test.script)
			kind(t, "Launch", l.Launch(t.Context(), l.order()), test.want, test.says)
		})
	}
}

// A worker serves when its caller has long gone; the key is in its order and nowhere else.
func TestWorkerServes(t *testing.T) {
	l := start(t, serving)
	ctx, cancel := context.WithCancel(t.Context())
	if err := l.Launch(ctx, l.order()); err != nil {
		t.Fatal(err)
	}
	cancel()
	pid := l.awaitPID(t)
	if err := l.Ping(t.Context()); err != nil {
		t.Errorf("Ping: got %v, want no error", err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("worker: got %v, want it alive", err)
	}
	order, err := os.ReadFile(filepath.Join(l.directory, "order"))
	if err != nil || !bytes.Contains(order, []byte(testKey)) {
		t.Errorf("order: got %s, %v, want the key in it", order, err)
	}
	for _, file := range []string{"cmdline", "environ"} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil || bytes.Contains(content, []byte(testKey)) {
			t.Errorf("%s: got %q, %v, want no key in it", file, content, err)
		}
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, pid) // and was waited for
	l.logged(t, "its device is lost")
}

// logged waits until the log says something, and checks that it does not say the key.
func (l *lab) logged(t *testing.T, want string) {
	t.Helper()
	text := func() string {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		return l.log.String()
	}
	eventually(t, "the log says "+want, func() bool { return strings.Contains(text(), want) })
	if strings.Contains(text(), testKey) {
		t.Errorf("log: got the key in it")
	}
}

// Workers of other mappers are started too, with their orders as they came, if the server knows the mapper.
func TestOthers(t *testing.T) {
	l := start(t, "")
	script := filepath.Join(l.directory, "worker")
	text := "#!/bin/sh\ncat >" + l.directory + "/order\nprintf '{\"Kind\":\"not found\",\"Error\":\"%s says so\"}' \"$1\"\nexit 1\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	l.options.Path, l.options.Others = script, []string{"nbd"}
	if err := l.Starts(t.Context(), "nbd"); err != nil {
		t.Errorf("Starts: got %v, want no error", err)
	}
	kind(t, "Starts of a mapper that is not known", l.Starts(t.Context(), "other"), fault.Unsupported, "older than the node plug-in")
	worker := Worker{Mapper: "nbd", Image: "a:rbd/pvc-1", Directory: l.directory}
	kind(t, "Start", l.Client.Start(t.Context(), worker, []byte(`{"some":"order"}`)), fault.NotFound, "nbd says so")
	if got, err := os.ReadFile(filepath.Join(l.directory, "order")); string(got) != `{"some":"order"}` {
		t.Errorf("order: got %s, %v, want it as it was sent", got, err)
	}
}

// The worker of a caller that leaves before it has its answer is ended.
func TestCallerLeaves(t *testing.T) {
	t.Run("its time is up", func(t *testing.T) {
		l := start(t, silent)
		ctx, cancel := context.WithCancel(t.Context())
		launched := make(chan error, 1)
		go func() { launched <- l.Launch(ctx, l.order()) }()
		pid := l.awaitPID(t)
		cancel()
		kind(t, "Launch", <-launched, fault.Unavailable, "did not answer")
		gone(t, pid)
	})
	t.Run("it is killed", func(t *testing.T) { // the kernel closes its connection
		l := start(t, silent)
		connection := l.dial(t)
		var order bytes.Buffer
		if err := l.order().Send(&order); err != nil {
			t.Fatal(err)
		}
		if err := send(connection, request{Protocol: 1, Ask: askLaunch, Order: order.Bytes()}); err != nil {
			t.Fatal(err)
		}
		pid := l.awaitPID(t)
		connection.Close()
		gone(t, pid)
	})
}

func (l *lab) dial(t *testing.T) net.Conn {
	t.Helper()
	connection, err := net.Dial("unix", l.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return connection
}

// raw sends a text and returns what is answered.
func (l *lab) raw(t *testing.T, text string) error {
	t.Helper()
	connection := l.dial(t)
	if _, err := fmt.Fprintln(connection, text); err != nil {
		t.Fatal(err)
	}
	var got reply
	if err := json.NewDecoder(connection).Decode(&got); err != nil {
		t.Fatalf("answer to %s: got %v", text, err)
	}
	if got.Protocol != protocol {
		t.Errorf("protocol of the answer: got %d, want %d", got.Protocol, protocol)
	}
	return fuse.ReceiveAnswer(bytes.NewReader(got.Answer))
}

// What versions of one protocol have said is understood for ever: add to this, edit nothing.
func TestOtherVersions(t *testing.T) {
	l := start(t, serving)
	if err := l.raw(t, `{"Protocol":1,"Ask":"ping"}`); err != nil {
		t.Errorf("ping of protocol 1: got %v, want no error", err)
	}
	kind(t, "kill of protocol 1", l.raw(t, `{"Protocol":1,"Ask":"kill","Directory":"/run/x"}`), fault.Invalid, "/run/x")
	order := fmt.Sprintf(`{"Target":{"Image":{"Cluster":"a","Pool":"rbd","Namespace":"","Name":"pvc-1"},"FSID":"f","PoolID":1,"ImageID":"abc"},`+
		`"Monitors":"","Settings":"","ReadOnly":false,"Options":null,"Directory":%q,"Timeout":5000000000,"User":"kube","Key":%q,"Later":{"a":1}}`,
		l.directory, testKey)
	if err := l.raw(t, `{"Protocol":1,"Ask":"launch","Order":`+order+`,"Later":[1]}`); err != nil {
		t.Errorf("order of protocol 1 with a field of later: got %v, want no error", err)
	}
	kind(t, "protocol 2", l.raw(t, `{"Protocol":2,"Ask":"ping"}`), fault.Unsupported, "version v0.1) is older than the node plug-in")
	kind(t, "an unknown request", l.raw(t, `{"Protocol":1,"Ask":"sing"}`), fault.Unsupported, `does not know the request "sing"`)
	kind(t, "junk", l.raw(t, `{"Ask":"launch","Order":5,"Key":"`+testKey+`"}`), fault.Invalid, "")
	kind(t, "no JSON", l.raw(t, testKey), fault.Invalid, "not whole")
	kind(t, "a wrong type", l.raw(t, `{"Ask":{"Key":"`+testKey+`"}}`), fault.Invalid, "not whole")
}

// A client bears what a later server adds to its answers.
func TestLaterServer(t *testing.T) {
	answers := []struct {
		name, text string
		want       fault.Kind // -1 for success
		says       string
	}{
		{"success", `{"Protocol":7,"Answer":{"Kind":"","Error":"","More":1},"Later":2}`, -1, ""},
		{"a kind of later", `{"Protocol":7,"Answer":{"Kind":"of later","Error":"x"}}`, fault.Internal, "x"},
		{"no answer in it", `{"Protocol":7}`, fault.Unavailable, "rbd-csi-workers ended before"},
		{"nothing", ``, fault.Unavailable, "rbd-csi-workers ended before"},
	}
	for _, test := range answers {
		t.Run(test.name, func(t *testing.T) {
			client := Dial(filepath.Join(t.TempDir(), "workers.sock"))
			listener, err := net.Listen("unix", client.Socket)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				connection, err := listener.Accept()
				if err == nil {
					_, _ = bufio.NewReader(connection).ReadString('\n')
					_, _ = connection.Write([]byte(test.text))
					connection.Close()
				}
			}()
			err = client.Ping(t.Context())
			if test.want < 0 && err != nil {
				t.Errorf("got %v, want no error", err)
			}
			if test.want >= 0 {
				kind(t, "Ping", err, test.want, test.says)
			}
		})
	}
}

// Nobody there is told with what to look at.
func TestNobodyThere(t *testing.T) {
	client := Dial(filepath.Join(t.TempDir(), "workers.sock"))
	kind(t, "no socket", client.Ping(t.Context()), fault.Unavailable, "is the pod rbd-csi-workers running on this node?")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: client.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	kind(t, "a socket that was left", client.Ping(t.Context()), fault.Unavailable, "is the pod rbd-csi-workers running on this node?")
}

func TestOnlyRootMayCall(t *testing.T) {
	l := start(t, serving)
	l.Server.user = uint32(os.Getuid()) + 1
	kind(t, "Launch", l.Launch(t.Context(), l.order()), fault.Denied, "only root")
	if l.pid() != 0 {
		t.Errorf("worker: got one, want none")
	}
}

// A folder that is not there means that the pods do not share it.
func TestFolderIsNotShared(t *testing.T) {
	l := start(t, serving)
	order := l.order()
	order.Directory = filepath.Join(l.directory, "elsewhere")
	kind(t, "Launch", l.Launch(t.Context(), order), fault.Unsupported, "Bidirectional")
}

// A server that is told to end waits for its workers, says which, and starts no more.
func TestServerWaitsForWorkers(t *testing.T) {
	l := start(t, serving)
	if err := l.Launch(t.Context(), l.order()); err != nil {
		t.Fatal(err)
	}
	l.stop()
	l.logged(t, `"images"=["a:rbd/pvc-1"]`)
	kind(t, "Launch", l.Launch(t.Context(), l.order()), fault.Unavailable, "is ending")
	if err := l.Ping(t.Context()); err != nil {
		t.Errorf("Ping: got %v, want no error", err)
	}
	select {
	case err := <-l.served:
		t.Fatalf("Serve: got its end with %v while a worker lives, want it to wait", err)
	default:
	}
	if err := unix.Kill(l.awaitPID(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.ends(t)
	kind(t, "Ping after that", l.Ping(t.Context()), fault.Unavailable, "")
}
