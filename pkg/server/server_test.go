package server

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/step"
)

// A controller answers with what a test puts into it.
type controller struct {
	csi.UnimplementedControllerServer
	create func(context.Context, *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error)
}

func (c *controller) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	return c.create(ctx, req)
}

type identity struct {
	csi.UnimplementedIdentityServer
}

func (identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

// start serves options on a socket of the test's own. It returns a connection,
// and a function that stops the server and returns what Serve did.
func start(t *testing.T, options Options) (*grpc.ClientConn, func() error) {
	t.Helper()
	if options.Logger.GetSink() == nil {
		options.Logger, _ = newLog()
	}
	endpoint := "unix://" + filepath.Join(t.TempDir(), "csi.sock")
	listener, err := Listen(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- New(options).ServeListener(ctx, listener) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-served
	})
	connection, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		connection.Close()
		stop()
	})
	return connection, stop
}

func TestServeOverASocket(t *testing.T) {
	create := func(context.Context, *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
		return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "a:rbd/pvc-1"}}, nil
	}
	connection, stop := start(t, Options{Identity: identity{}, Controller: &controller{create: create}})
	client := csi.NewControllerClient(connection)

	resp, err := client.CreateVolume(t.Context(), createRequest("pvc-1", 1))
	if err != nil || resp.GetVolume().GetVolumeId() != "a:rbd/pvc-1" {
		t.Errorf("create: got %v, %v, want volume a:rbd/pvc-1", resp, err)
	}
	_, err = client.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: "pvc-1"})
	expectStatus(t, err, codes.InvalidArgument, "volume_capabilities is missing")
	_, err = client.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "a:rbd/pvc-1"})
	expectStatus(t, err, codes.Unimplemented, "method DeleteVolume not implemented")
	_, err = csi.NewNodeClient(connection).NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	expectStatus(t, err, codes.Unimplemented, "unknown service")
	if err := stop(); err != nil {
		t.Errorf("stop: got %v, want no error", err)
	}
}

// TestCallerHearsWhatHangs is about the head start: without it, the client
// would answer itself.
func TestCallerHearsWhatHangs(t *testing.T) {
	release := make(chan struct{})
	create := func(ctx context.Context, _ *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
		step.Set(ctx, "connecting to cluster", "a")
		<-release
		return &csi.CreateVolumeResponse{}, nil
	}
	connection, stop := start(t, Options{Controller: &controller{create: create}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := csi.NewControllerClient(connection).CreateVolume(ctx, createRequest("pvc-1", 1))
	expectStatus(t, err, codes.DeadlineExceeded, "CreateVolume pvc-1: running since 2")
	expectStatus(t, err, codes.DeadlineExceeded, ", connecting to cluster a since 2")
	close(release)
	if err := stop(); err != nil {
		t.Errorf("stop: got %v, want no error", err)
	}
}

func TestStopWaitsForRunningRequests(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	create := func(context.Context, *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
		close(begun)
		<-release
		return &csi.CreateVolumeResponse{}, nil
	}
	connection, stop := start(t, Options{Controller: &controller{create: create}})
	answered := make(chan error, 1)
	go func() {
		_, err := csi.NewControllerClient(connection).CreateVolume(context.Background(), createRequest("pvc-1", 1))
		answered <- err
	}()
	<-begun
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	waitUntilNobodyListens(t, connection.Target())
	select {
	case err := <-stopped:
		t.Fatalf("stop came back with %v while a request ran", err)
	default:
	}
	close(release)
	if err := <-answered; err != nil {
		t.Errorf("request: got %v, want no error", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stop: got %v, want no error", err)
	}
}

func TestStopGivesUpAfterTheGrace(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	create := func(ctx context.Context, _ *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
		close(begun)
		<-ctx.Done() // ends with the server, not with the caller
		close(ended)
		return nil, ctx.Err()
	}
	connection, stop := start(t, Options{Controller: &controller{create: create}, Grace: 50 * time.Millisecond})
	answered := make(chan error, 1)
	go func() {
		_, err := csi.NewControllerClient(connection).CreateVolume(context.Background(), createRequest("pvc-1", 1))
		answered <- err
	}()
	<-begun
	err := stop()
	if !fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "CreateVolume pvc-1 (running since") {
		t.Errorf("stop: got %v, want an error of kind %v that names the request", err, fault.Unknown)
	}
	if err := <-answered; err == nil {
		t.Error("request: got no error, want one")
	}
	<-ended
}

func TestPanicFailsOneRequestOnly(t *testing.T) {
	create := func(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
		if req.GetName() == "bad" {
			panic("s3cret")
		}
		return &csi.CreateVolumeResponse{}, nil
	}
	logger, logs := newLog()
	connection, _ := start(t, Options{Controller: &controller{create: create}, Logger: logger})
	client := csi.NewControllerClient(connection)
	_, err := client.CreateVolume(t.Context(), createRequest("bad", 1))
	expectStatus(t, err, codes.Internal, "panicked")
	if strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got the panic's text in %q, want it in the log only", err)
	}
	if !strings.Contains(logs.String(), "server_test.go") {
		t.Errorf("got log %q, want the stack in it", logs)
	}
	if _, err := client.CreateVolume(t.Context(), createRequest("good", 1)); err != nil {
		t.Errorf("next request: got %v, want no error", err)
	}
}

// waitUntilNobodyListens returns when the server has begun to stop.
func waitUntilNobodyListens(t *testing.T, endpoint string) {
	t.Helper()
	path := strings.TrimPrefix(endpoint, "unix://")
	for deadline := time.Now().Add(10 * time.Second); ; {
		connection, err := net.Dial("unix", path)
		if err != nil {
			return
		}
		connection.Close()
		if time.Now().After(deadline) {
			t.Fatalf("got a connection to %s after 10 s, want none", path)
		}
	}
}

// The following are shared by the tests of the package.

// newLog returns a logger that keeps everything, at any verbosity.
func newLog() (klog.Logger, *logBuffer) {
	logs := &logBuffer{}
	return textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(logs), textlogger.Verbosity(10))), logs
}

type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *logBuffer) lines(containing string) []string {
	var found []string
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, containing) {
			found = append(found, line)
		}
	}
	return found
}

func expectStatus(t *testing.T, err error, want codes.Code, text string) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("got code %v (%v), want %v", got, err, want)
	}
	if err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("got %q, want %q in it", err, text)
	}
}

func createRequest(name string, size int64) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name:               name,
		CapacityRange:      &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{mountCapability()},
	}
}

func mountCapability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

// eachMethod calls f for each method of the services of CSI.
func eachMethod(f func(fullMethod string, method protoreflect.MethodDescriptor)) {
	services := csi.File_csi_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			method := methods.Get(j)
			f("/"+string(services.Get(i).FullName())+"/"+string(method.Name()), method)
		}
	}
}

// filled returns a request of method with something in each field, and secret
// in those that the specification marks as csi_secret.
func filled(t *testing.T, method protoreflect.MethodDescriptor, secret string) proto.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
	if err != nil {
		t.Fatal(err)
	}
	message := kind.New()
	fill(message, secret)
	return message.Interface()
}

func fill(message protoreflect.Message, secret string) {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		text := "x-" + string(field.Name())
		if proto.GetExtension(field.Options(), csi.E_CsiSecret).(bool) {
			text = secret
		}
		switch {
		case field.IsMap():
			key := protoreflect.ValueOfString("key").MapKey()
			message.Mutable(field).Map().Set(key, protoreflect.ValueOfString(text))
		case field.IsList() && field.Message() != nil:
			fill(message.Mutable(field).List().AppendMutable().Message(), secret)
		case field.IsList():
			message.Mutable(field).List().Append(protoreflect.ValueOfString(text))
		case field.Message() != nil:
			fill(message.Mutable(field).Message(), secret)
		default:
			message.Set(field, scalar(field, text))
		}
	}
}

func scalar(field protoreflect.FieldDescriptor, text string) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	default:
		return protoreflect.ValueOfInt64(1)
	}
}
