package chart

import (
	"bufio"
	"errors"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

const top = "../.."

var directory = filepath.Join(top, Directory)

// An object is one of those that a chart rendered, and the template that it is of.
type object struct {
	runtime.Object
	template string
}

// cases are the values that the tests render: a name for each file in testdata/values, and none for the chart's own.
var cases = []string{"", "cluster", "rook", "everything"}

// releaseOf is the release for one of [cases].
func releaseOf(t *testing.T, name string) Release {
	t.Helper()
	release := Release{Name: "rbd-csi", Namespace: "storage"}
	if name == "rook" {
		release.Namespace = "rook-ceph"
	}
	if name != "" {
		values, err := ReadValues(filepath.Join("testdata", "values", name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		release.Values = values
	}
	return release
}

// version is the chart's version, and with it the driver's.
func version(t *testing.T) string {
	t.Helper()
	loaded, err := loader.Load(directory)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Metadata.Version != loaded.Metadata.AppVersion {
		t.Errorf("got chart %s of driver %s, want one version for both", loaded.Metadata.Version, loaded.Metadata.AppVersion)
	}
	return loaded.Metadata.Version
}

// render renders the chart and reads the objects, each as the type that it is. A field that its type does not have is an
// error, as it would be one of `kubectl apply --validate=strict`.
func render(t *testing.T, release Release) []object {
	t.Helper()
	texts, err := Render(directory, release)
	if err != nil {
		t.Fatal(err)
	}
	var objects []object
	for _, path := range slices.Sorted(maps.Keys(texts)) {
		if filepath.Ext(path) == ".yaml" {
			objects = append(objects, read(t, path, texts[path])...)
		}
	}
	return objects
}

// with renders the chart with values of one of [cases] and, over them, others given by their paths.
func with(t *testing.T, name string, over map[string]any) []object {
	t.Helper()
	release := releaseOf(t, name)
	if release.Values == nil {
		release.Values = map[string]any{}
	}
	for path, value := range over {
		if err := unstructured.SetNestedField(release.Values, value, strings.Split(path, ".")...); err != nil {
			t.Fatal(err)
		}
	}
	return render(t, release)
}

func read(t *testing.T, path, text string) []object {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	var objects []object
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if onlyComments(string(document)) {
			continue
		}
		decoded, _, err := decoder.Decode(document, nil, nil)
		if runtime.IsNotRegisteredError(err) { // an object of a CRD
			other := &unstructured.Unstructured{}
			err = utilyaml.Unmarshal(document, &other.Object)
			decoded = other
		}
		if err != nil {
			t.Fatalf("%s: %v in\n%s", path, err, document)
		}
		objects = append(objects, object{decoded, path})
	}
}

func onlyComments(document string) bool {
	for line := range strings.Lines(document) {
		line = strings.TrimSpace(line)
		if line != "" && line != "---" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}

// of returns the objects of a type.
func of[T runtime.Object](objects []object) []T {
	var found []T
	for _, o := range objects {
		if typed, ok := o.Object.(T); ok {
			found = append(found, typed)
		}
	}
	return found
}

// one returns the object of a type whose name ends so, and fails if there is another number of them.
func one[T interface {
	runtime.Object
	GetName() string
}](t *testing.T, objects []object, suffix string) T {
	t.Helper()
	var found []T
	for _, typed := range of[T](objects) {
		if strings.HasSuffix(typed.GetName(), suffix) {
			found = append(found, typed)
		}
	}
	if len(found) != 1 {
		var none T
		t.Fatalf("got %d %T named ...%s, want 1", len(found), none, suffix)
	}
	return found[0]
}

// name returns kind and name of an object, for messages.
func (o object) name() string {
	accessor, err := meta.Accessor(o.Object)
	if err != nil {
		return err.Error()
	}
	return o.GetObjectKind().GroupVersionKind().Kind + " " + accessor.GetName()
}

// pods returns the templates of all pods, by the object that they are of.
func pods(objects []object) map[string]corev1.PodTemplateSpec {
	templates := map[string]corev1.PodTemplateSpec{}
	for _, o := range objects {
		switch typed := o.Object.(type) {
		case *appsv1.Deployment:
			templates[o.name()] = typed.Spec.Template
		case *appsv1.DaemonSet:
			templates[o.name()] = typed.Spec.Template
		case *corev1.Pod:
			templates[o.name()] = corev1.PodTemplateSpec{ObjectMeta: typed.ObjectMeta, Spec: typed.Spec}
		}
	}
	return templates
}

// container returns the container of that name.
func container(t *testing.T, spec corev1.PodSpec, name string) corev1.Container {
	t.Helper()
	for _, c := range spec.Containers {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("got no container %s, want one", name)
	return corev1.Container{}
}
