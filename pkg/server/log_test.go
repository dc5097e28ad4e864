package server

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// outcomes are handlers for whatever can become of a request.
var outcomes = map[string]grpc.UnaryHandler{
	"done":   func(context.Context, any) (any, error) { return nil, nil },
	"failed": func(context.Context, any) (any, error) { return nil, fmt.Errorf("image a: %w", fault.NotFound) },
	"panic":  func(context.Context, any) (any, error) { panic("boom") },
}

func TestSecretsAreNeverLogged(t *testing.T) {
	const secret = "AQBtopsecretkey=="
	withSecrets := 0
	eachMethod(func(name string, descriptor protoreflect.MethodDescriptor) {
		req := filled(t, descriptor, secret)
		if text := fmt.Sprint(req); strings.Contains(text, secret) {
			withSecrets++
		}
		for outcome, handler := range outcomes {
			logger, logs := newLog()
			s := New(Options{Logger: logger})
			_, err := s.unary(t.Context(), req, &grpc.UnaryServerInfo{FullMethod: name}, handler)
			if text := logs.String(); text == "" || strings.Contains(text, secret) {
				t.Errorf("%s, %s: got log %q, want one without the secret", name, outcome, text)
			}
			if strings.Contains(fmt.Sprint(err), secret) {
				t.Errorf("%s, %s: got the secret in the error", name, outcome)
			}
		}
	})
	if withSecrets < 20 {
		t.Errorf("got secrets in %d requests, want at least 20, or this shows nothing", withSecrets)
	}
}

func TestParametersAreNotLogged(t *testing.T) {
	logger, logs := newLog()
	req := createRequest("pvc-1", 1)
	req.Parameters = map[string]string{"pool": "accounting"}
	_, _ = New(Options{Logger: logger}).unary(t.Context(), req, &grpc.UnaryServerInfo{FullMethod: createVolume}, outcomes["done"])
	if strings.Contains(logs.String(), "accounting") {
		t.Errorf("got %q, want no parameters in it", logs)
	}
}

func TestOneLineForAFailure(t *testing.T) {
	publish := &csi.ControllerPublishVolumeRequest{VolumeId: "a:rbd/pvc-1", NodeId: "NODE:n1", VolumeCapability: mountCapability()}
	for _, test := range []struct {
		name string
		req  proto.Message
		want []string
	}{
		{"service", publish, []string{
			`"Failed"`, `err="image a: not found"`, `code="NotFound"`, `method="ControllerPublishVolume"`,
			`volume="a:rbd/pvc-1"`, `node="NODE:n1"`, `request=1`}},
		{"missing field", &csi.ControllerPublishVolumeRequest{VolumeId: "a:rbd/pvc-1"}, []string{
			`"Failed"`, `err="node_id is missing: invalid request"`, `code="InvalidArgument"`, `volume="a:rbd/pvc-1"`}},
		{"long handle", &csi.ControllerPublishVolumeRequest{VolumeId: strings.Repeat("v", 300)}, []string{
			`volume="` + strings.Repeat("v", 256) + `..."`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			logs := &logBuffer{}
			logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(logs), textlogger.Verbosity(0)))
			info := &grpc.UnaryServerInfo{FullMethod: csi.Controller_ControllerPublishVolume_FullMethodName}
			_, _ = New(Options{Logger: logger}).unary(t.Context(), test.req, info, outcomes["failed"])
			if got := strings.Count(logs.String(), "\n"); got != 1 {
				t.Errorf("got %d lines, want 1:\n%s", got, logs)
			}
			for _, want := range test.want {
				if !strings.Contains(logs.String(), want) {
					t.Errorf("got %s, want %s in it", logs, want)
				}
			}
		})
	}
}

func TestLevels(t *testing.T) {
	for _, test := range []struct {
		verbosity int
		method    string
		req       proto.Message
		want      string // the messages, in order
	}{
		{1, createVolume, createRequest("pvc-1", 1), ""},
		{2, createVolume, createRequest("pvc-1", 1), "Done"},
		{4, createVolume, createRequest("pvc-1", 1), "Received Done"},
		{3, listVolumes, &csi.ListVolumesRequest{}, ""},
		{4, listVolumes, &csi.ListVolumesRequest{}, "Received Done"},
		{4, csi.Identity_Probe_FullMethodName, &csi.ProbeRequest{}, ""},
		{5, csi.Identity_Probe_FullMethodName, &csi.ProbeRequest{}, "Received Done"},
		{4, csi.Node_NodeGetVolumeStats_FullMethodName, &csi.NodeGetVolumeStatsRequest{VolumeId: "v", VolumePath: "/p"}, ""},
	} {
		t.Run(fmt.Sprintf("%s at %d", test.method, test.verbosity), func(t *testing.T) {
			logs := &logBuffer{}
			logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(logs), textlogger.Verbosity(test.verbosity)))
			_, err := New(Options{Logger: logger}).unary(t.Context(), test.req, &grpc.UnaryServerInfo{FullMethod: test.method}, outcomes["done"])
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, message := range []string{"Received", "Done"} {
				if len(logs.lines(message)) > 0 {
					got = append(got, message)
				}
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("got %q, want %q:\n%s", got, test.want, logs)
			}
		})
	}
}

func TestServicesLogWithTheRequest(t *testing.T) {
	logger, logs := newLog()
	handler := func(ctx context.Context, _ any) (any, error) {
		klog.FromContext(ctx).V(2).Info("Mapped")
		return nil, nil
	}
	_, _ = New(Options{Logger: logger}).unary(t.Context(), createRequest("pvc-1", 1), &grpc.UnaryServerInfo{FullMethod: createVolume}, handler)
	lines := logs.lines("Mapped")
	if len(lines) != 1 || !strings.Contains(lines[0], `name="pvc-1"`) || !strings.Contains(lines[0], "request=1") {
		t.Errorf("got %q, want one line with the request's name and number", lines)
	}
}
