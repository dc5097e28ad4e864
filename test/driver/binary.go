package driver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BinaryVariable names the environment variable with the path of the binary to test.
const BinaryVariable = "RBD_CSI_BINARY"

// Binary returns the path of the binary that BinaryVariable names. Where it is not
// set it builds one into the directory, with the tags that this program was built
// with; the working directory has to be in the module then, as in a test.
func Binary(ctx context.Context, directory string) (string, error) {
	if path := os.Getenv(BinaryVariable); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("%s: %w", BinaryVariable, err)
		}
		return filepath.Abs(path)
	}
	path := filepath.Join(directory, "rbd-csi")
	build := exec.CommandContext(ctx, "go", "build", "-tags", buildTags(), "-o", path,
		"github.com/rbd-csi/rbd-csi/cmd/rbd-csi")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build rbd-csi: %w: %s", err, output)
	}
	return path, nil
}
