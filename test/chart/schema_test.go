package chart

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRefused has wrong values named by their path.
func TestRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		values string
		want   []string
	}{
		{"a misspelt part", `{"controler": {}}`, []string{"controler"}},
		{"a misspelt value", `{"controller": {"replica": 3}}`, []string{"/controller", "replica"}},
		{"one deep down", `{"sidecars": {"provisioner": {"image": {"tags": "x"}}}}`, []string{"/sidecars/provisioner/image", "tags"}},
		{"a word for a number", `{"node": {"httpPort": "many"}}`, []string{"/node/httpPort", "integer"}},
		{"no port", `{"node": {"httpPort": 70000}}`, []string{"/node/httpPort"}},
		{"no duration", `{"sidecars": {"attacher": {"timeout": "60"}}}`, []string{"/sidecars/attacher/timeout"}},
		{"too often", `{"csiDriver": {"nodeAllocatableUpdatePeriodSeconds": 5}}`, []string{"/csiDriver/nodeAllocatableUpdatePeriodSeconds", "10"}},
		{"a limit that would kill", `{"workers": {"resources": {"limits": {"memory": "1Gi"}}}}`, []string{"/workers/resources/limits/memory"}},
		{"a cluster without files", `{"clusters": [{"name": "a"}]}`, []string{"/clusters/0", "secretName", "rook"}},
		{"a cluster of two kinds", `{"clusters": [{"name": "a", "secretName": "s", "rook": {}}]}`, []string{"/clusters/0"}},
		{"a name that is none", `{"clusters": [{"name": "A_b", "secretName": "s"}]}`, []string{"/clusters/0/name", "A_b"}},
		{"a misspelt name of Rook's", `{"clusters": [{"name": "a", "rook": {"monEndpoint": "x"}}]}`, []string{"/clusters/0/rook", "monEndpoint"}},
		{"a cluster twice", `{"clusters": [{"name": "a", "secretName": "s"}, {"name": "a", "secretName": "t"}]}`, []string{"a is there twice"}},
		{"Rook elsewhere", `{"clusters": [{"name": "a", "rook": {"namespace": "rook-ceph"}}]}`, []string{"install with --namespace rook-ceph"}},
		{"a class without a pool", `{"storageClasses": [{"name": "a"}]}`, []string{"/storageClasses/0", "pool"}},
		{"a pool in two places", `{"storageClasses": [{"name": "a", "pool": "p", "parameters": {"pool": "q"}}]}`, []string{"/storageClasses/0/parameters/pool"}},
		{"a parameter that is no text", `{"storageClasses": [{"name": "a", "pool": "p", "parameters": {"stripeCount": 4}}]}`, []string{"/storageClasses/0/parameters/stripeCount"}},
		{"a class on no cluster", `{"clusters": [{"name": "a", "secretName": "s"}], "storageClasses": [{"name": "c", "pool": "p", "cluster": "b"}]}`, []string{"c is on cluster b", "has: a"}},
		{"a class on one of several", `{"clusters": [{"name": "a", "secretName": "s"}, {"name": "b", "secretName": "s"}], "storageClasses": [{"name": "c", "pool": "p"}]}`, []string{"c needs a cluster", "a, b"}},
		{"two default classes", `{"storageClasses": [{"name": "c", "pool": "p", "default": true}, {"name": "d", "pool": "p", "default": true}]}`, []string{"c and d"}},
		{"snapshot classes without snapshots", `{"snapshots": {"enabled": false}, "volumeSnapshotClasses": [{"name": "c"}]}`, []string{"volumeSnapshotClasses", "snapshots.enabled"}},
		{"snapshot classes without CRDs", `{"volumeSnapshotClasses": [{"name": "c"}]}`, []string{"snapshot.storage.k8s.io/v1", "external-snapshotter"}},
		{"group classes without CRDs", `{"volumeGroupSnapshotClasses": [{"name": "c"}]}`, []string{"volumeGroupSnapshotClasses", "snapshot.storage.k8s.io/v1"}},
		{"snapshots perhaps", `{"snapshots": {"enabled": "perhaps"}}`, []string{"/snapshots/enabled", "auto"}},
		{"metadata without snapshots", `{"snapshotMetadata": {"enabled": true, "tlsSecret": "a"}}`, []string{"snapshotMetadata", "snapshot.storage.k8s.io/v1"}},
		{"metadata without a certificate", `{"snapshots": {"enabled": true}, "snapshotMetadata": {"enabled": true}}`, []string{"snapshotMetadata.tlsSecret"}},
		{"a certificate in base64", `{"snapshotMetadata": {"caCert": "LS0tLS1CRUdJTiBD"}}`, []string{"/snapshotMetadata/caCert"}},
		{"a monitor of no Service", `{"metrics": {"service": {"enabled": false}, "serviceMonitor": {"enabled": true}}}`, []string{"metrics.service.enabled"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			release := Release{Name: "rbd-csi", Namespace: "storage"}
			if err := json.Unmarshal([]byte(test.values), &release.Values); err != nil {
				t.Fatal(err)
			}
			_, err := Render(directory, release)
			if err == nil {
				t.Fatal("got no error, want one")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to say %q", err, want)
				}
			}
		})
	}
}

// TestSchemaDescribesTheValues has the schema say of each value what values.yaml says of it.
func TestSchemaDescribesTheValues(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(directory, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema property
	if err := json.Unmarshal(content, &schema); err != nil {
		t.Fatal(err)
	}
	values, err := Values(directory)
	if err != nil {
		t.Fatal(err)
	}
	described := map[string]bool{"global": true} // Helm's own
	for _, value := range values {
		described[value.Path] = true
		found := schema
		for key := range strings.SplitSeq(value.Path, ".") {
			found = found.Properties[key]
		}
		if found.Description != value.Description {
			t.Errorf("%s: got description\n%s\nwant that of values.yaml\n%s", value.Path, found.Description, value.Description)
		}
	}
	schema.each("", func(path string, p property) {
		if !described[path] && p.AdditionalProperties != false {
			t.Errorf("%s: is in the schema, and not in values.yaml", path)
		}
	})
	if schema.AdditionalProperties != false {
		t.Error("the schema admits values that nobody knows")
	}
}

// A property is what the tests read of a JSON schema.
type property struct {
	Description          string              `json:"description"`
	Properties           map[string]property `json:"properties"`
	AdditionalProperties any                 `json:"additionalProperties"`
}

func (p property) each(above string, do func(path string, p property)) {
	for key, below := range p.Properties {
		do(above+key, below)
		below.each(above+key+".", do)
	}
}

// TestTable has the README's table agree with values.yaml.
func TestTable(t *testing.T) {
	got, err := os.ReadFile(filepath.Join(directory, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := WithTable(directory)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("README.md has another table of values than values.yaml: run `make generate`")
	}
}
