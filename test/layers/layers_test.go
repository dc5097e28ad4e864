package layers

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/rbd-csi/rbd-csi"

// A row is a line of the table.
type row struct {
	imports, libraries, tests []string
}

// rows reads the table.
func rows(t *testing.T) map[string]row {
	t.Helper()
	rows := map[string]row{}
	for line := range strings.Lines(table) {
		fields := strings.Split(line, "|")
		if len(fields) != 4 || strings.TrimSpace(fields[1]) == "imports" {
			continue
		}
		name := strings.TrimSpace(fields[0])
		if _, twice := rows[name]; twice {
			t.Errorf("%s has two rows, want one", name)
		}
		rows[name] = row{
			imports:   strings.Fields(fields[1]),
			libraries: strings.Fields(fields[2]),
			tests:     strings.Fields(fields[3]),
		}
	}
	return rows
}

// An imported is one import of one file.
type imported struct {
	by   string // the package's folder below the module
	file string
	path string
	test bool // in a _test.go file
}

// imports reads the imports of every Go file below root, whatever its build tags. A
// folder with a go.mod of its own is another module.
func imports(root string) (all []imported, err error) {
	err = filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			_, other := os.Stat(filepath.Join(file, "go.mod"))
			if file != root && (other == nil || strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" || entry.Name() == "build") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		one := imported{by: path.Dir(filepath.ToSlash(below)), file: below, test: strings.HasSuffix(file, "_test.go")}
		all = append(all, one) // even a file without imports shows that its package exists
		for _, spec := range parsed.Imports {
			if one.path, err = strconv.Unquote(spec.Path.Value); err != nil {
				return err
			}
			all = append(all, one)
		}
		return nil
	})
	return all, err
}

// kindOf returns what the table calls an import: a package of ours by its short name, or
// a library by its name. Both are empty for the standard library.
func kindOf(importPath string) (ours, library string, err error) {
	if below, ok := strings.CutPrefix(importPath, module+"/"); ok {
		return strings.TrimPrefix(below, "pkg/"), "", nil
	}
	longest := 0
	for name, prefixes := range libraries {
		for prefix := range strings.FieldsSeq(prefixes) {
			fits := importPath == prefix || strings.HasPrefix(importPath, prefix+"/")
			if fits && len(prefix) > longest {
				library, longest = name, len(prefix)
			}
		}
	}
	if first, _, _ := strings.Cut(importPath, "/"); library == "" && strings.Contains(first, ".") {
		return "", "", fmt.Errorf("library %s has no name in libraries", importPath)
	}
	return "", library, nil
}

// wrong returns what is wrong with an import, or "".
func wrong(rows map[string]row, i imported) string {
	at, listed := rows[i.by]
	if !listed {
		return "the package has no row"
	}
	ours, library, err := kindOf(i.path)
	if err != nil {
		return err.Error()
	}
	if owner := owners[library]; owner != "" && !i.test && !slices.Contains(strings.Fields(owner), i.by) && !strings.HasPrefix(i.by, "test/") {
		return fmt.Sprintf("only %s may import %s", owner, library)
	}
	allowed := slices.Concat(at.imports, at.libraries)
	if i.test {
		allowed = slices.Concat(allowed, at.tests, []string{strings.TrimPrefix(i.by, "pkg/")})
	}
	name := ours + library
	everything := ours != "" && !strings.HasPrefix(ours, "test/") && slices.Contains(allowed, "*")
	if name == "" || everything || slices.Contains(allowed, name) {
		return ""
	}
	return "the row does not allow " + name
}

func TestImports(t *testing.T) {
	rows := rows(t)
	all, err := imports("../..")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	said := map[string]bool{}
	for _, i := range all {
		there[i.by] = true
		if why := wrong(rows, i); why != "" && !said[i.by+why] {
			said[i.by+why] = true
			t.Errorf("%s: %s; see the table in test/layers", i.file, why)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		if !there[name] {
			t.Errorf("%s has a row and no Go file", name)
		}
	}
}

// TestTable checks the table itself: every word in it means something.
func TestTable(t *testing.T) {
	rows := rows(t)
	for name, row := range rows {
		for _, word := range slices.Concat(row.imports, row.libraries, row.tests) {
			_, library := libraries[word]
			_, below := rows["pkg/"+word]
			_, full := rows[word]
			if !library && !below && !full && word != "*" {
				t.Errorf("row %s: got %q, want a library or a package with a row", name, word)
			}
		}
	}
	for library, names := range owners {
		for name := range strings.FieldsSeq(names) {
			if _, ok := rows[name]; !ok {
				t.Errorf("owners of %s: %s has no row", library, name)
			}
		}
	}
}

func TestNames(t *testing.T) {
	for name := range rows(t) {
		if slices.Contains(forbidden, path.Base(name)) {
			t.Errorf("package %s: the name %s says nothing about what is in it", name, path.Base(name))
		}
	}
}

// TestWrong breaks each rule once.
func TestWrong(t *testing.T) {
	rows := rows(t)
	cases := []struct {
		name string
		imported
		want string
	}{
		{"the standard library", imported{by: "pkg/fault", path: "context"}, ""},
		{"C is not of it", imported{by: "pkg/volume", path: "C"}, "only pkg/rbd/librbd"},
		{"downwards", imported{by: "pkg/volume", path: module + "/pkg/rbd"}, ""},
		{"upwards", imported{by: "pkg/rbd", path: module + "/pkg/volume"}, "does not allow volume"},
		{"core upwards", imported{by: "pkg/fault", path: module + "/pkg/volid"}, "does not allow volid"},
		{"a service and another", imported{by: "pkg/node", path: module + "/pkg/controller"}, "does not allow controller"},
		{"a service and an adapter", imported{by: "pkg/controller", path: module + "/pkg/rbd/librbd"}, "does not allow rbd/librbd"},
		{"a service and codes", imported{by: "pkg/node", path: "google.golang.org/grpc/codes"}, "only pkg/server"},
		{"a service and status", imported{by: "pkg/node", path: "google.golang.org/grpc/status"}, "only pkg/server"},
		{"the server and codes", imported{by: "pkg/server", path: "google.golang.org/grpc/codes"}, ""},
		{"policy and an adapter", imported{by: "pkg/volume", path: module + "/pkg/rbd/librbd"}, "does not allow rbd/librbd"},
		{"policy and a fake", imported{by: "pkg/volume", path: module + "/pkg/rbd/rbdtest"}, "does not allow rbd/rbdtest"},
		{"a test of policy and a fake", imported{by: "pkg/volume", path: module + "/pkg/rbd/rbdtest", test: true}, ""},
		{"a test and its own package", imported{by: "pkg/volume", path: module + "/pkg/volume", test: true}, ""},
		{"policy and go-ceph", imported{by: "pkg/volume", path: "github.com/ceph/go-ceph/rbd"}, "only pkg/rbd/librbd"},
		{"an adapter and another's port", imported{by: "pkg/rbd/librbd", path: module + "/pkg/mapper"}, "does not allow mapper"},
		{"a command and an adapter", imported{by: "cmd/rbd-csi", path: module + "/pkg/rbd/librbd"}, ""},
		{"a command and a part of the tests", imported{by: "cmd/rbd-csi", path: module + "/test/report"}, "does not allow test/report"},
		{"an unknown library", imported{by: "pkg/volume", path: "example.com/clever"}, "has no name"},
		{"an unknown package", imported{by: "pkg/clever", path: "context"}, "no row"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := wrong(rows, c.imported)
			if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("wrong(%s imports %s) = %q, want %q", c.by, c.path, got, c.want)
			}
		})
	}
}

// Sizes from which on a file, or a package's files together, are worth a look: could it
// be two? Tests are not counted.
const (
	manyLinesInFile    = 400
	manyLinesInPackage = 1500
)

// TestSizes names large files and packages. It never fails, because a size is a place to
// look and no goal; `go test -v` shows what it says.
func TestSizes(t *testing.T) {
	all, err := imports("../..")
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]int{}
	for _, i := range all {
		if i.path != "" || i.test {
			continue
		}
		text, err := os.ReadFile(filepath.Join("../..", i.file))
		if err != nil {
			t.Fatal(err)
		}
		n := strings.Count(string(text), "\n")
		lines[i.by] += n
		if n > manyLinesInFile {
			t.Logf("%s has %d lines", i.file, n)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		if lines[name] > manyLinesInPackage {
			t.Logf("package %s has %d lines", name, lines[name])
		}
	}
}
