package node

import (
	"reflect"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
)

// TestReadPod holds that half of a pod's name is no pod: an event of it would be refused.
func TestReadPod(t *testing.T) {
	full := map[string]string{
		"mapper": "auto", "csi.storage.k8s.io/ephemeral": "false", "csi.storage.k8s.io/serviceAccount.name": "default",
		"csi.storage.k8s.io/pod.namespace": "shop", "csi.storage.k8s.io/pod.name": "web-0", "csi.storage.k8s.io/pod.uid": "8d3f",
	}
	want := kubernetes.Pod{Namespace: "shop", Name: "web-0", UID: "8d3f"}
	if pod, known := readPod(full); !known || !reflect.DeepEqual(pod, want) {
		t.Errorf("got %+v, %t, want %+v", pod, known, want)
	}
	for _, missing := range []string{"namespace", "name", "uid"} {
		key := "csi.storage.k8s.io/pod." + missing
		value := full[key]
		delete(full, key)
		if pod, known := readPod(full); known {
			t.Errorf("without %s: got %+v", key, pod)
		}
		full[key] = value
	}
	if pod, known := readPod(nil); known {
		t.Errorf("of nothing: got %+v", pod)
	}
}
