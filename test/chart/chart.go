// Package chart renders the Helm chart charts/rbd-csi, and what is made from it: deploy/kubernetes, and the table of values in
// the chart's README. Its tests say what the rendered objects promise.
//
// It is a module of its own because of Helm, whose dependencies the driver does not need. The module is also where the
// command helm comes from: `go build helm.sh/helm/v4/cmd/helm` in this directory.
package chart

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/yaml"
)

// Directory is where the chart is, seen from the top of the repository.
const Directory = "charts/rbd-csi"

// A Release is what Helm knows of an installation before it renders the chart.
type Release struct {
	Name      string
	Namespace string
	// Values are merged over values.yaml. Nil: none.
	Values map[string]any
	// APIs are those that the cluster has beside Kubernetes' own, such as snapshot.storage.k8s.io/v1. Nil: none.
	APIs []string
}

// ReadValues reads a file of values.
func ReadValues(path string) (map[string]any, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	if err := yaml.UnmarshalStrict(content, &values); err != nil {
		return nil, fmt.Errorf("values %s: %w", path, err)
	}
	return values, nil
}

// Render renders the chart in a directory as `helm template` does, without a cluster. It returns the text of each template by
// its path in the chart, such as templates/csidriver.yaml, without those that are empty. An error is one of the
// schema or of a template, and says where.
func Render(directory string, release Release) (map[string]string, error) {
	loaded, err := loader.Load(directory)
	if err != nil {
		return nil, fmt.Errorf("load chart %s: %w", directory, err)
	}
	options := common.ReleaseOptions{Name: release.Name, Namespace: release.Namespace, Revision: 1, IsInstall: true}
	cluster := common.DefaultCapabilities.Copy()
	cluster.APIVersions = append(slices.Clip(cluster.APIVersions), release.APIs...)
	values, err := util.ToRenderValues(loaded, release.Values, options, cluster)
	if err != nil {
		return nil, err
	}
	rendered, err := engine.Render(loaded, values)
	if err != nil {
		return nil, err
	}
	texts := map[string]string{}
	for path, text := range rendered {
		if strings.TrimSpace(text) != "" {
			texts[strings.TrimPrefix(path, loaded.Name()+"/")] = text
		}
	}
	return texts, nil
}

// Manifests joins the templates that are objects, sorted by path, as one text of YAML.
func Manifests(texts map[string]string) string {
	var all strings.Builder
	for _, path := range slices.Sorted(maps.Keys(texts)) {
		if filepath.Ext(path) == ".yaml" {
			fmt.Fprintf(&all, "---\n# Source: %s\n%s\n", path, strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(texts[path]), "---\n")))
		}
	}
	return all.String()
}

// Lint does what `helm lint --strict` does: warnings are errors.
func Lint(directory string, release Release) error {
	var failed []error
	for _, message := range lint.RunAll(directory, release.Values, release.Namespace).Messages {
		if message.Severity >= support.WarningSev {
			failed = append(failed, message)
		}
	}
	return errors.Join(failed...)
}
