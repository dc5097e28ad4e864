package chart

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Value is a key of values.yaml with a comment that begins with "-- ", and so one that is described.
type Value struct {
	// Path is the key with those above it, like image.tag.
	Path string
	// Default is the value as it is written in a line: JSON, but for names.
	Default string
	// Description is the comment, up to the first line that is empty.
	Description string
}

// Values reads the values of a chart, in their order.
func Values(directory string) ([]Value, error) {
	content, err := os.ReadFile(filepath.Join(directory, "values.yaml"))
	if err != nil {
		return nil, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	return collect(document.Content[0], "")
}

// collect returns the values in a mapping, and those in the mappings of keys that are not described themselves.
func collect(mapping *yaml.Node, above string) ([]Value, error) {
	var values []Value
	for i := 0; i < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		path := above + key.Value
		text := description(key.HeadComment)
		switch {
		case text != "":
			shown, err := inLine(value)
			if err != nil {
				return nil, fmt.Errorf("value %s: %w", path, err)
			}
			values = append(values, Value{Path: path, Default: shown, Description: text})
		case value.Kind == yaml.MappingNode && len(value.Content) > 0:
			below, err := collect(value, path+".")
			if err != nil {
				return nil, err
			}
			values = append(values, below...)
		default:
			return nil, fmt.Errorf("value %s has no comment that begins with \"# -- \"", path)
		}
	}
	return values, nil
}

// description returns the part of a comment that is one, as one line.
func description(comment string) string {
	_, text, found := strings.Cut("\n"+comment, "\n# -- ")
	if !found {
		return ""
	}
	text, _, _ = strings.Cut(text, "\n#\n")
	return strings.ReplaceAll(text, "\n# ", " ")
}

// inLine writes a value as it could stand in one line of YAML.
func inLine(value *yaml.Node) (string, error) {
	bare := *value
	strip(&bare)
	content, err := yaml.Marshal(&bare)
	return strings.TrimSpace(string(content)), err
}

// strip takes the comments from a node and has everything below it in one line.
func strip(node *yaml.Node) {
	node.HeadComment, node.LineComment, node.FootComment = "", "", ""
	if node.Kind != yaml.ScalarNode {
		node.Style = yaml.FlowStyle
	}
	for _, below := range node.Content {
		strip(below)
	}
}

// The table of values stands between these lines of the chart's README.
const (
	tableBegin = "<!-- The table is made from values.yaml by `make generate`. -->\n"
	tableEnd   = "<!-- End of the table. -->\n"
)

// Table returns the values of a chart as a table in Markdown.
func Table(directory string) (string, error) {
	values, err := Values(directory)
	if err != nil {
		return "", err
	}
	var table strings.Builder
	table.WriteString("| value | default | what it is |\n|---|---|---|\n")
	for _, value := range values {
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", value.Path, value.Default, strings.ReplaceAll(value.Description, "|", "\\|"))
	}
	return table.String(), nil
}

// WithTable returns the README of a chart with the table of its values as they are.
func WithTable(directory string) (string, error) {
	content, err := os.ReadFile(filepath.Join(directory, "README.md"))
	if err != nil {
		return "", err
	}
	before, rest, begun := strings.Cut(string(content), tableBegin)
	_, after, ended := strings.Cut(rest, tableEnd)
	if !begun || !ended {
		return "", errors.New("README.md has no place for the table of values")
	}
	table, err := Table(directory)
	return before + tableBegin + "\n" + table + "\n" + tableEnd + after, err
}

func writeTable(directory string) error {
	content, err := WithTable(directory)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(directory, "README.md"), []byte(content), 0o644)
}
