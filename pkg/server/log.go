package server

import (
	"context"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/klog/v2"
)

// subjectFields are the fields that tell which request this is, with the key
// that each has in the log. Nothing else of a request is logged: parameters
// and mount flags may be sensitive, and secrets are secret.
var subjectFields = [...]struct {
	field protoreflect.Name
	key   string
}{
	{"volume_id", "volume"},
	{"source_volume_id", "volume"},
	{"name", "name"},
	{"snapshot_id", "snapshot"},
	{"base_snapshot_id", "base"},
	{"target_snapshot_id", "snapshot"},
	{"group_snapshot_id", "group"},
	{"node_id", "node"},
}

// maxSubject is the number of bytes of such a field that are shown. Names and
// handles of ours have at most 128, node IDs at most 256.
const maxSubject = 256

// logged gives the request's context a logger that carries the method, a
// number for the request and what it is about. A request that fails is one
// line at V(0), one that goes well is one at its method's level.
func (s *Server) logged(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	level := methods[info.FullMethod].level
	log := s.log.WithValues("method", path.Base(info.FullMethod), "request", s.requests.Add(1))
	for _, subject := range subjectsOf(req) {
		log = log.WithValues(subject.key, subject.value)
	}
	begun := time.Now()
	log.V(max(level, look)).Info("Received")
	resp, err := handler(klog.NewContext(ctx, log), req)
	took := time.Since(begun).Round(time.Millisecond).String()
	if err != nil {
		log.Error(err, "Failed", "code", codeOf(err).String(), "took", took)
		return nil, err
	}
	log.V(level).Info("Done", "took", took)
	return resp, nil
}

// A subject is one thing that a request is about.
type subject struct{ key, value string }

func subjectsOf(req any) []subject {
	message := req.(proto.Message).ProtoReflect()
	fields := message.Descriptor().Fields()
	var subjects []subject
	for _, one := range subjectFields {
		field := fields.ByName(one.field)
		if field == nil || !message.Has(field) {
			continue
		}
		value := message.Get(field).String()
		if len(value) > maxSubject {
			value = strings.ToValidUTF8(value[:maxSubject], "") + "..."
		}
		subjects = append(subjects, subject{one.key, value})
	}
	return subjects
}

// title names a request for people, like "CreateVolume pvc-1".
func title(fullMethod string, req any) string {
	words := []string{path.Base(fullMethod)}
	for _, subject := range subjectsOf(req) {
		words = append(words, subject.value)
	}
	return strings.Join(words, " ")
}
