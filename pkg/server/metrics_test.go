package server

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	dto "github.com/prometheus/client_model/go"
)

// gathered returns the value of each sample, by its name and labels. Of a
// histogram it is the count.
func gathered(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			for _, label := range metric.GetLabel() {
				name += " " + label.GetName() + "=" + label.GetValue()
			}
			values[name] = value(metric)
		}
	}
	return values
}

func value(metric *dto.Metric) float64 {
	switch {
	case metric.GetHistogram() != nil:
		return float64(metric.GetHistogram().GetSampleCount())
	case metric.GetCounter() != nil:
		return metric.GetCounter().GetValue()
	default:
		return metric.GetGauge().GetValue()
	}
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		b := newBackend(Options{Driver: "rbd-csi.io", Metrics: registry, MaxWorks: 2})
		abandoned := b.ask(limited(t, time.Second), createVolume, createRequest("pvc-1", 1))
		<-abandoned.done
		b.ask(t.Context(), createVolume, createRequest("pvc-1", 2))
		b.ask(t.Context(), createVolume, createRequest("pvc-1", 2)) // joins
		b.ask(t.Context(), createVolume, createRequest("pvc-2", 2)) // refused
		_, _ = b.server.unary(t.Context(), &csi.ListVolumesRequest{}, &grpc.UnaryServerInfo{FullMethod: listVolumes}, outcomes["panic"])
		time.Sleep(9100 * time.Millisecond)

		const method = "method_name=/csi.v1.Controller/CreateVolume"
		got := gathered(t, registry)
		for name, want := range map[string]float64{
			"csi_plugin_operations_seconds driver_name=rbd-csi.io grpc_status_code=DeadlineExceeded " + method: 1,
			"csi_plugin_operations_seconds driver_name=rbd-csi.io grpc_status_code=Unavailable " + method:      1,
			"rbd_csi_requests_in_flight " + method:     2,
			"rbd_csi_requests_joined_total " + method:  1,
			"rbd_csi_requests_refused_total " + method: 1,
			"rbd_csi_works state=running":              1,
			"rbd_csi_works state=waiting":              1,
			"rbd_csi_works_limit":                      2,
			"rbd_csi_works_abandoned":                  1,
			"rbd_csi_oldest_work_seconds":              10,
			"rbd_csi_panics_total":                     1,
		} {
			if value, ok := got[name]; !ok || value != want {
				t.Errorf("%s: got %v (there: %v), want %v", name, value, ok, want)
			}
		}
		b.let(0, nil)
		b.let(1, nil)
		got = gathered(t, registry)
		if value := got["csi_plugin_operations_seconds driver_name=rbd-csi.io grpc_status_code=OK "+method]; value != 2 {
			t.Errorf("requests that went well: got %v, want 2", value)
		}
		for _, name := range []string{"rbd_csi_requests_in_flight " + method, "rbd_csi_works state=running", "rbd_csi_oldest_work_seconds"} {
			if got[name] != 0 {
				t.Errorf("%s at the end: got %v, want 0", name, got[name])
			}
		}
	})
}

func TestBuckets(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := New(Options{Driver: "rbd-csi.io", Metrics: registry})
	_, _ = s.unary(t.Context(), createRequest("pvc-1", 1), &grpc.UnaryServerInfo{FullMethod: createVolume}, outcomes["done"])
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	want := []float64{.1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600}
	for _, family := range families {
		if family.GetName() != "csi_plugin_operations_seconds" {
			continue
		}
		buckets := family.GetMetric()[0].GetHistogram().GetBucket()
		if len(buckets) != len(want) {
			t.Fatalf("got %d buckets, want %d", len(buckets), len(want))
		}
		for i, bucket := range buckets {
			if bucket.GetUpperBound() != want[i] {
				t.Errorf("bucket %d: got %v, want %v", i, bucket.GetUpperBound(), want[i])
			}
		}
		return
	}
	t.Error("got no csi_plugin_operations_seconds")
}
