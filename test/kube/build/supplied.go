package build

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// A supplied module is one that cannot be compiled as Go's module proxy hands it out. The build takes a changed copy of
// it, below the build folder.
type supplied struct {
	path string
	// replaced is the left side of the replace in go.mod that the copy takes the place of; empty if there is none.
	replaced string
	// folder is the copy's, below the folder of copies.
	folder string
	// change makes the change in the copy.
	change func(copied string) error
}

// suppliedModules are the modules that the build changes.
//
// The library of external-provisioner: release 6.4.0 asks for 13.1.0 of it, of which the proxy hands out the go.mod and
// refuses the files. 13.0.0 is to be had, and what 6.4.0 uses lacks one thing there: the type of an error by which the
// provisioner says that a volume is still attached. go.mod therefore takes 13.0.0, which is enough to resolve
// everything, and the build adds the type. With it such a deletion is tried again as after any other error. When 13.1.0
// can be had, this and the replace in go.mod can go.
//
// external-snapshot-metadata has a file for its tests that belongs to the package itself, and that fits csi-test up to
// 5.4 only, where mocks are of another module. The sidecar does not use it.
func suppliedModules() []supplied {
	const provisioner = "sigs.k8s.io/sig-storage-lib-external-provisioner/v13"
	return []supplied{
		{path: provisioner, replaced: provisioner + "@v13.1.0", folder: "provisioner-library", change: func(copied string) error {
			return os.WriteFile(filepath.Join(copied, "controller", "volumeinuse.go"), []byte(missingType), 0o644)
		}},
		{path: "github.com/kubernetes-csi/external-snapshot-metadata", folder: "snapshot-metadata", change: func(copied string) error {
			return os.Remove(filepath.Join(copied, "pkg", "internal", "runtime", "test_harness.go"))
		}},
	}
}

const missingType = `package controller

// VolumeInUseError says why a volume cannot be deleted yet.
type VolumeInUseError struct{ Reason string }

func (e *VolumeInUseError) Error() string { return e.Reason }
`

// supply returns a go.mod for the build in which the changed modules are replaced by their copies. All of it
// is made again only when it has changed, so that the go command sees nothing new.
func (b Builder) supply(ctx context.Context) (modfile string, err error) {
	folder := filepath.Join(b.Folder, "modules")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(b.Module, name))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o644); err != nil {
			return "", err
		}
	}
	modfile = filepath.Join(folder, "go.mod")
	edits := []string{"mod", "edit"}
	for _, module := range suppliedModules() {
		from, err := b.moduleFolder(ctx, module.path)
		if err != nil {
			return "", err
		}
		to := filepath.Join(folder, module.folder)
		if err := module.copy(from, to); err != nil {
			return "", fmt.Errorf("change module %s: %w", module.path, err)
		}
		if module.replaced != "" {
			edits = append(edits, "-dropreplace="+module.replaced)
		}
		edits = append(edits, "-replace="+module.path+"="+to)
	}
	edit := exec.CommandContext(ctx, GoTool(), append(edits, modfile)...)
	if out, err := edit.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go mod edit: %w\n%s", err, out)
	}
	return modfile, nil
}

// copy makes the changed copy, unless it is there: a file beside it says of which folder, and so of which release, it is.
func (m supplied) copy(from, to string) error {
	whole := to + ".from"
	if made, err := os.ReadFile(whole); err == nil && string(made) == from {
		return nil
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	if err := m.change(to); err != nil {
		return err
	}
	return os.WriteFile(whole, []byte(from), 0o644)
}
