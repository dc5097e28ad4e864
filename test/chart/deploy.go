package chart

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// DeployDirectory is where the plain YAML is, seen from the top of the repository.
const DeployDirectory = "deploy/kubernetes"

// deployValues is what deploy/kubernetes is rendered with: the defaults, a cluster and classes, and snapshots, because no cluster
// is asked whether it has their API. The guard is left out, because it works by a hook of Helm's.
var deployValues = map[string]any{
	"clusters":                   []any{map[string]any{"name": "ceph", "secretName": "rbd-csi-ceph"}},
	"storageClasses":             []any{map[string]any{"name": "rbd", "cluster": "ceph", "pool": "kube", "default": true}},
	"snapshots":                  map[string]any{"enabled": true},
	"volumeSnapshotClasses":      []any{map[string]any{"name": "rbd", "default": true}},
	"volumeGroupSnapshotClasses": []any{map[string]any{"name": "rbd", "default": true}},
	"uninstallGuard":             map[string]any{"enabled": false},
}

// namespace is the one object that is not in the chart, where Helm makes it.
const namespace = `apiVersion: v1
kind: Namespace
metadata:
  name: rbd-csi
  labels:
    # The pods on the nodes mount filesystems and make devices.
    pod-security.kubernetes.io/enforce: privileged
`

// notHelm finds the labels that would tell Helm and people that Helm keeps an object.
var notHelm = regexp.MustCompile(`(?m)^ *(app\.kubernetes\.io/managed-by: Helm|helm\.sh/chart: .*)\n`)

// Deploy returns the files of deploy/kubernetes by their path in it. They are the chart's objects, with its comments, one file for
// each part of the driver. Files in the folder example are for a person to change first.
func Deploy(directory string) (map[string]string, error) {
	texts, err := Render(directory, Release{Name: "rbd-csi", Namespace: "rbd-csi", Values: deployValues})
	if err != nil {
		return nil, err
	}
	parts := map[string][]string{"00-namespace.yaml": {namespace}}
	for _, path := range slices.Sorted(maps.Keys(texts)) {
		if file := deployFile(path); file != "" {
			parts[file] = append(parts[file], plain(texts[path]))
		}
	}
	files := map[string]string{}
	for file, objects := range parts {
		files[file] = "# Made from " + Directory + " by `make generate`; change it there.\n" + strings.Join(objects, "---\n")
	}
	return files, nil
}

// deployFile returns the file that a template's objects belong into, and "" if there is none.
func deployFile(template string) string {
	path := strings.TrimPrefix(template, "templates/")
	switch {
	case filepath.Ext(path) != ".yaml", strings.HasPrefix(path, "tests/"):
		return ""
	case path == "storageclasses.yaml":
		return "example/storageclass.yaml"
	case path == "volumesnapshotclasses.yaml":
		return "example/snapshots/classes.yaml"
	case strings.Contains(path, "/"):
		return filepath.Dir(path) + ".yaml"
	default:
		return path
	}
}

// plain takes what is Helm's from the text of a template.
func plain(text string) string {
	text = strings.TrimPrefix(strings.TrimSpace(text), "---\n")
	return notHelm.ReplaceAllString(text+"\n", "")
}

// generated are the files of deploy/kubernetes that [Deploy] makes: all but those that people wrote.
func generated(deploy string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(deploy, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.HasPrefix(string(content), "# Made from ") {
			name, err := filepath.Rel(deploy, path)
			files[name] = string(content)
			return err
		}
		return nil
	})
	return files, err
}

// writeDeploy makes the generated files in deploy/kubernetes anew and removes those that are no longer made.
func writeDeploy(top string) error {
	want, err := Deploy(filepath.Join(top, Directory))
	if err != nil {
		return err
	}
	deploy := filepath.Join(top, DeployDirectory)
	old, err := generated(deploy)
	if err != nil {
		return err
	}
	for name := range old {
		if _, still := want[name]; still {
			continue
		}
		if err := os.Remove(filepath.Join(deploy, name)); err != nil {
			return err
		}
	}
	for name, content := range want {
		file := filepath.Join(deploy, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// Generate makes everything anew that is made from the chart, in the repository whose top is named.
func Generate(top string) error {
	if err := writeDeploy(top); err != nil {
		return err
	}
	return writeTable(filepath.Join(top, Directory))
}
