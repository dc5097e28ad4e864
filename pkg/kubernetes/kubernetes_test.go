package kubernetes_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
)

// An apiServer answers with what is given for "VERB PATH?QUERY", and notes what it was asked.
type apiServer struct {
	answers map[string]string
	asked   []string
	bodies  []string
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	query.Del("timeout") // says how long the client waits
	asked := strings.TrimSuffix(r.Method+" "+r.URL.Path+"?"+query.Encode(), "?")
	body, _ := io.ReadAll(r.Body)
	s.asked, s.bodies = append(s.asked, asked), append(s.bodies, string(body))
	answer, known := s.answers[asked]
	status, text, isStatus := strings.Cut(answer, "!")
	w.Header().Set("Content-Type", "application/json")
	switch {
	case !known:
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, statusOf(http.StatusNotFound, "NotFound"))
	case isStatus:
		var code int
		_, _ = fmt.Sscan(status, &code)
		w.WriteHeader(code)
		_, _ = io.WriteString(w, statusOf(code, text))
	default:
		_, _ = io.WriteString(w, answer)
	}
}

// statusOf is what the API server answers with an error.
func statusOf(code int, reason string) string {
	return fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"message":"no","code":%d}`, reason, code)
}

func serve(t *testing.T, answers map[string]string) (*kubernetes.Client, *apiServer) {
	t.Helper()
	api := &apiServer{answers: answers}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	client, err := kubernetes.New(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return client, api
}

// TestVolumes reads two pages, in which others' volumes are left out.
func TestVolumes(t *testing.T) {
	const path = "GET /api/v1/persistentvolumes?continue="
	client, _ := serve(t, map[string]string{
		path + "&limit=500": `{"metadata":{"continue":"2"},"items":[
			{"metadata":{"name":"a","uid":"1","creationTimestamp":"2026-01-02T03:04:05Z"},
				"spec":{"csi":{"driver":"d","volumeHandle":"c:p/a"},"claimRef":{"namespace":"n","name":"x"},"persistentVolumeReclaimPolicy":"Retain"},"status":{"phase":"Released"}},
			{"metadata":{"name":"b"},"spec":{"csi":{"driver":"other","volumeHandle":"c:p/b"}}},
			{"metadata":{"name":"c"},"spec":{"nfs":{}}}]}`,
		path + "2&limit=500": `{"metadata":{},"items":[{"metadata":{"name":"d"},"spec":{"csi":{"driver":"d","volumeHandle":"c:p/d"}}},
			{"metadata":{"name":"e","deletionTimestamp":"2026-01-02T03:04:05Z"},"spec":{"csi":{"driver":"d","volumeHandle":"c:p/e"}}},
			{"metadata":{"name":"f"},"spec":{"csi":{"driver":"d","volumeHandle":"c:p/f"},"persistentVolumeReclaimPolicy":"Delete"},"status":{"phase":"Released"}}]}`,
	})
	got, err := client.Volumes(t.Context(), "d")
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := []kubernetes.Volume{
		{Name: "a", UID: "1", Driver: "d", Handle: "c:p/a", Claim: "n/x", Made: made},
		{Name: "d", Driver: "d", Handle: "c:p/d"},
		{Name: "e", Driver: "d", Handle: "c:p/e", Going: true},
		{Name: "f", Driver: "d", Handle: "c:p/f", Going: true},
	}
	if all, err := client.Volumes(t.Context(), ""); err != nil || len(all) != len(want)+1 || all[1].Driver != "other" {
		t.Errorf("of all drivers: got %v, %v, want one more, of another driver", all, err)
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

// TestManyRequests sends as many as a lost node with many volumes takes. With client-go's own limits they would take half a minute.
func TestManyRequests(t *testing.T) {
	client, _ := serve(t, map[string]string{"GET /api/v1/persistentvolumes/a": `{"metadata":{"name":"a"}}`})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for i := range 150 {
		if _, err := client.Volume(ctx, "a"); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
}

func TestSnapshots(t *testing.T) {
	client, _ := serve(t, map[string]string{
		"GET /apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents?continue=&limit=500": `{"items":[
			{"metadata":{"name":"a","creationTimestamp":"2026-01-02T03:04:05Z"},"spec":{"driver":"d","source":{"volumeHandle":"v"}},"status":{"snapshotHandle":"s"}},
			{"metadata":{"name":"b","creationTimestamp":"2026-01-02T03:04:05Z"},"spec":{"driver":"d","source":{"snapshotHandle":"given"}}},
			{"metadata":{"name":"c"},"spec":{"driver":"other"}}]}`,
	})
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got, err := client.Snapshots(t.Context(), "d")
	want := []kubernetes.Snapshot{{Name: "a", Driver: "d", Handle: "s", Made: made}, {Name: "b", Driver: "d", Handle: "given", Made: made}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	client, _ = serve(t, nil)
	if got, err := client.Snapshots(t.Context(), "d"); err != nil || len(got) > 0 {
		t.Errorf("without that kind of objects: got %v, %v, want none", got, err)
	}
}

// TestGroupedSnapshots reads groups that are made, given, and not made yet, in the version of their kind that there is.
func TestGroupedSnapshots(t *testing.T) {
	for _, version := range []string{"v1", "v1beta2"} {
		client, _ := serve(t, map[string]string{
			"GET /apis/groupsnapshot.storage.k8s.io/" + version + "/volumegroupsnapshotcontents?continue=&limit=500": `{"items":[
				{"metadata":{"name":"made"},"spec":{"driver":"d","source":{"volumeHandles":["v","w"]}},
					"status":{"volumeGroupSnapshotHandle":"g","volumeSnapshotInfoList":[{"volumeHandle":"v","snapshotHandle":"s"},{"volumeHandle":"w","snapshotHandle":"t"}]}},
				{"metadata":{"name":"given"},"spec":{"driver":"d","source":{"groupSnapshotHandles":{"volumeGroupSnapshotHandle":"h","volumeSnapshotHandles":["u"]}}}},
				{"metadata":{"name":"pending"},"spec":{"driver":"d","source":{"volumeHandles":["v","w"]}}},
				{"metadata":{"name":"c"},"spec":{"driver":"other"}}]}`,
		})
		got, err := client.GroupedSnapshots(t.Context(), "d")
		want := []kubernetes.Snapshot{
			{Name: "made", Driver: "d", Handle: "s"}, {Name: "made", Driver: "d", Handle: "t"},
			{Name: "given", Driver: "d", Handle: "u"}, {Name: "pending", Driver: "d"},
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, %v, want %v", version, got, err, want)
		}
	}
	client, _ := serve(t, nil)
	if got, err := client.GroupedSnapshots(t.Context(), "d"); err != nil || len(got) > 0 {
		t.Errorf("without that kind of objects: got %v, %v, want none", got, err)
	}
}

func TestPodsOn(t *testing.T) {
	client, _ := serve(t, map[string]string{
		"GET /api/v1/pods?continue=&fieldSelector=spec.nodeName%3Done&limit=500": `{"items":[
			{"metadata":{"namespace":"n","name":"web-0","uid":"1","ownerReferences":[{"kind":"StatefulSet","controller":true}]},
				"spec":{"volumes":[{"name":"data","persistentVolumeClaim":{"claimName":"data-web-0"}},{"name":"scratch","ephemeral":{}},{"name":"token","projected":{}}]}},
			{"metadata":{"namespace":"n","name":"bare","uid":"2","deletionTimestamp":"2026-01-02T03:04:05Z","ownerReferences":[{"kind":"Thing"}]}}]}`,
	})
	got, err := client.PodsOn(t.Context(), "one")
	want := []kubernetes.Pod{{Namespace: "n", Name: "web-0", UID: "1", Owned: true, Claims: []string{"n/data-web-0", "n/web-0-scratch"}}, {Namespace: "n", Name: "bare", UID: "2", Ending: true}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

// TestDeletePod holds that a later pod of the same name is never meant.
func TestDeletePod(t *testing.T) {
	const path = "DELETE /api/v1/namespaces/n/pods/web-0"
	pod := kubernetes.Pod{Namespace: "n", Name: "web-0", UID: "1"}
	client, api := serve(t, map[string]string{path: `{"kind":"Status","status":"Success"}`})
	if err := client.DeletePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := client.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"null", "0"} {
		var options struct {
			Preconditions      struct{ UID string }
			GracePeriodSeconds json.RawMessage
		}
		err := json.Unmarshal([]byte(api.bodies[i]), &options)
		grace := cmp.Or(string(options.GracePeriodSeconds), "null")
		if err != nil || options.Preconditions.UID != "1" || grace != want {
			t.Errorf("got %s, %v, want the UID as a precondition and %s as the time to end", api.bodies[i], err, want)
		}
	}
	client, _ = serve(t, nil)
	if err := client.DeletePod(t.Context(), pod); err != nil {
		t.Errorf("a pod that is gone: got %v, want success", err)
	}
	client, _ = serve(t, map[string]string{path: "409!Conflict"})
	if err := client.DeletePod(t.Context(), pod); !fault.Is(err, fault.Superseded) {
		t.Errorf("a later pod: got %v, want %v", err, fault.Superseded)
	}
}

func TestReport(t *testing.T) {
	client, api := serve(t, map[string]string{"POST /api/v1/namespaces/n/events": `{}`})
	pod := kubernetes.Pod{Namespace: "n", Name: "web-0", UID: "1"}
	if err := client.Report(t.Context(), "rbd-csi", "one", kubernetes.Event{Pod: pod, Warning: true, Reason: "DeviceDead", Message: "it is"}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"generateName":"web-0."`, `"uid":"1"`, `"type":"Warning"`, `"reason":"DeviceDead"`, `"message":"it is"`, `"host":"one"`} {
		if !strings.Contains(api.bodies[0], want) {
			t.Errorf("got %s, want %s in it", api.bodies[0], want)
		}
	}
}

// TestReportVolume holds that an event of an object without a namespace goes where `kubectl describe` looks for it, and
// that a long message is no reason to refuse it.
func TestReportVolume(t *testing.T) {
	client, api := serve(t, map[string]string{"POST /api/v1/namespaces/default/events": `{}`})
	volume := kubernetes.Volume{Name: "pv-1", UID: "1"}
	if err := client.ReportVolume(t.Context(), "rbd-csi", volume, "ImageLost", strings.Repeat("x", 2000)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"kind":"PersistentVolume"`, `"name":"pv-1"`, `"uid":"1"`, `"type":"Warning"`, `"reason":"ImageLost"`} {
		if !strings.Contains(api.bodies[0], want) {
			t.Errorf("got %s, want %s in it", api.bodies[0], want)
		}
	}
	if long := strings.Count(api.bodies[0], "x"); long > 1024 {
		t.Errorf("got a message of %d characters, want at most the 1024 that the API server takes", long)
	}
}

// TestKinds holds what the API server's errors are to us.
func TestKinds(t *testing.T) {
	for answer, want := range map[string]fault.Kind{
		"403!Forbidden":         fault.Denied,
		"401!Unauthorized":      fault.Unauthenticated,
		"410!Expired":           fault.Superseded,
		"400!BadRequest":        fault.Invalid,
		"500!InternalError":     fault.Unavailable,
		"404!NotFound":          fault.NotFound,
		`{"items":[{"spec":1}]`: fault.Internal,
	} {
		client, _ := serve(t, map[string]string{"GET /api/v1/persistentvolumes?continue=&limit=500": answer})
		if _, err := client.Volumes(t.Context(), "d"); fault.Of(err) != want {
			t.Errorf("%s: got %v, want %v", answer, err, want)
		}
	}
	client, err := kubernetes.New(&rest.Config{Host: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := client.Volumes(ctx, "d"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("nobody listens: got %v, want %v", err, fault.Unavailable)
	}
	if _, err := kubernetes.InCluster(); !fault.Is(err, fault.Unsupported) {
		t.Errorf("outside of a pod: got %v, want %v", err, fault.Unsupported)
	}
}
