package linux

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/filesystem"
)

// calledTool matches how this package names a tool that it runs.
var calledTool = regexp.MustCompile(`\btool(?::| =) "([^"]+)"`)

// The image has only what deploy/root.sh lists, so what is called here has to be there, in the list of which
// it makes sure that nothing is missing.
func TestToolsAreInTheImage(t *testing.T) {
	script, err := os.ReadFile("../../../deploy/root.sh")
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(script), "\nfilesystems='")
	list, _, closed := strings.Cut(list, "'")
	if !found || !closed {
		t.Fatal("deploy/root.sh: got no list filesystems='...'")
	}
	listed := strings.Fields(list)
	called := 0
	for _, tool := range toolsCalled(t) {
		called++
		if !slices.Contains(listed, tool) {
			t.Errorf("%s is called, and deploy/root.sh does not list it", tool)
		}
	}
	if called < 10 {
		t.Errorf("got %d tools in the sources, want more: are they named in another way now?", called)
	}
}

func toolsCalled(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var tools []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range calledTool.FindAllStringSubmatch(string(text), -1) {
			if call[1] == "mkfs." {
				tools = append(tools, "mkfs."+string(filesystem.Ext4), "mkfs."+string(filesystem.XFS))
				continue
			}
			tools = append(tools, call[1])
		}
	}
	return tools
}
